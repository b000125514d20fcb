"""`python -m benchmarks.dataplane`: ipop_tx beside a raw link and packaged VPNs, in one run, as root. See docs/performance.md."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.command import command
from benchmarks.dataplane import packages, plot
from benchmarks.dataplane.peers import PEERS
from benchmarks.dataplane.run import Plan, run
from benchmarks.dataplane.systems import IpopTx, Own, Raw, System
from ipop_tx.errors import LocalMisuse
from ipop_tx.lab import Lab, netns
from ipop_tx.simulation.plot import pyplot

_ALL: tuple[type[System], ...] = (Raw, IpopTx, *PEERS)
KNOWN = {system.name: system for system in _ALL}
QUICK = ("raw", "ipop_tx", "openvpn")

_LOSSY = tuple((rtt, loss) for rtt in (20, 100) for loss in (0, 0.1, 1))
_QUICK_LOSSY = ((20, 0.1),)


@command("dataplane", "interrupted; everything was removed")
def main(argv: Sequence[str] | None) -> int:
    """Run with words of the command line; gives the exit status."""
    options = _parser().parse_args(argv)
    netns.require_root_and(())
    systems, plan = _chosen(options), _plan(options)
    packages.require(packages.TOOLS)
    if options.plot:
        pyplot()
    left_out = {system.name: f"cannot have {', '.join(gone)}" for system in systems if (gone := packages.obtain(system.programs))}
    with Lab("bench") as lab:
        report = run(lab, [system for system in systems if system.name not in left_out], plan, left_out)
    if options.plot:
        plot.plot(report.as_dict(), options.plot)
    print(report.as_json() if options.json else report.as_text(), flush=True)
    return 0 if report.systems else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.dataplane", description=__doc__)
    parser.add_argument("--json", action="store_true", help="the last line on stdout is one JSON object, instead of tables")
    parser.add_argument("--quick", action="store_true", help=f"only {', '.join(QUICK)}, short, in under four minutes")
    parser.add_argument("--only", metavar="NAME,...", help=f"which systems, of {', '.join(KNOWN)} and those given by --peer")
    parser.add_argument("--peer", metavar="NAME=COMMAND", action="append", default=[], help="a system of your own; see docs/performance.md")
    parser.add_argument("--rounds", type=_count, help="how often everything is measured (default: 3)")
    parser.add_argument("--seconds", type=_count, help="length of each stream (default: 5, with --quick 3)")
    parser.add_argument(
        "--congestion", metavar="NAME", help="TCP's congestion control in iperf3, for instance cubic (default: the machine's)"
    )
    parser.add_argument("--no-lossy", action="store_true", help="without the scenario of delay and loss")
    parser.add_argument("--no-relayed", action="store_true", help="without the scenario of a path over a third node")
    parser.add_argument("--plot", metavar="FILE.png", type=Path, help="a picture of the results; needs matplotlib")
    return parser


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return value


def _plan(options: argparse.Namespace) -> Plan:
    quick: bool = options.quick
    rounds, seconds = options.rounds or 3, options.seconds or (3 if quick else 5)
    conditions = () if options.no_lossy else _QUICK_LOSSY if quick else _LOSSY
    lossy_seconds = options.seconds or (5 if quick else 10)
    extra = 1 if quick else rounds
    return Plan(
        rounds=rounds,
        seconds=seconds,
        pings=200 if quick else 500,
        lossy=conditions,
        lossy_rounds=extra,
        lossy_seconds=lossy_seconds,
        relayed_rounds=0 if options.no_relayed else extra,
        congestion=_congestion(options.congestion),
    )


def _congestion(wanted: str | None) -> str:
    """The wanted TCP congestion control, or the machine's default."""
    place = Path("/proc/sys/net/ipv4")
    available = (place / "tcp_available_congestion_control").read_text().split()
    if wanted is not None and wanted not in available:
        raise LocalMisuse(f"this kernel has no congestion control {wanted!r}", f"choose of {', '.join(available)}")
    return wanted or (place / "tcp_congestion_control").read_text().strip()


def _chosen(options: argparse.Namespace) -> list[System]:
    own = [_own(text) for text in options.peer]
    known: dict[str, System] = {name: made() for name, made in KNOWN.items()} | {system.name: system for system in own}
    if options.only:
        names = [name.strip() for name in options.only.split(",") if name.strip()]
    else:
        names = [*(QUICK if options.quick else KNOWN), *(system.name for system in own)]
    for name in names:
        if name not in known:
            raise LocalMisuse(f"there is no system {name!r}", f"choose of {', '.join(known)}")
    return [known[name] for name in dict.fromkeys(names)]


def _own(text: str) -> Own:
    name, equals, command = text.partition("=")
    if not equals or not command.strip() or not name.replace("-", "").replace("_", "").isalnum():
        raise LocalMisuse(f"{text!r} is no peer", "write NAME=COMMAND, where NAME has letters, digits, - and _")
    if name in KNOWN:
        raise LocalMisuse(f"{name} is the name of a system that is known already", "give yours another name")
    return Own(name, command)


if __name__ == "__main__":
    sys.exit(main())
