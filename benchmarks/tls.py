"""`python -m benchmarks.tls`: what is left of the throughput when no UDP passes, as root.

One TCP stream from A to B, in turns: over the direct UDP path; by TLS on the same path, to B that listens for it, while the router drops
all UDP; and then over R, by TLS at both sides. Once as fast as the machine goes, where all daemons and both ends of iperf3 share its
processors, and once over lines of a fixed rate, as most are.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from benchmarks.command import command
from benchmarks.dataplane import measure, packages
from benchmarks.dataplane.ratios import quotient
from benchmarks.dataplane.relayed import Parted
from benchmarks.dataplane.report import extremes, median, table
from benchmarks.dataplane.underlay import Triangle
from ipop_tx.errors import EnvironmentProblem, IpopError
from ipop_tx.lab import Lab, netns
from ipop_tx.lab.waiting import wait_for

RATES = (0, 200)
"""Mbit/s of every line; 0: as fast as the machine goes."""
KINDS = ("direct", "tls", "tls_relayed")


@dataclass
class Line:
    """What was found at one rate of the lines."""

    rate_mbit: int
    mbps: dict[str, list[float]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    cpu: dict[str, list[float]] = field(default_factory=lambda: {kind: [] for kind in KINDS})

    def as_json(self) -> dict[str, Any]:
        """The entry: medians, and how far the figures lie apart."""
        found = {f"{kind}_mbps": median(values) for kind, values in self.mbps.items()}
        return {
            "rate_mbit": self.rate_mbit,
            **found,
            "ratio": quotient(found["tls_mbps"], found["direct_mbps"]),
            "ratio_relayed": quotient(found["tls_relayed_mbps"], found["direct_mbps"]),
            "cpu_s_per_gb": {kind: median(values) for kind, values in self.cpu.items()},
            "spread": {kind: extremes(values) for kind, values in self.mbps.items()},
        }


@command("tls")
def main(argv: Sequence[str] | None) -> int:
    """Run with words of the command line; gives the exit status."""
    options = _parser().parse_args(argv)
    faults: list[str] = []
    netns.require_root_and(())
    packages.require(packages.TOOLS)
    with Lab("tls") as lab:
        found = [_at(lab, rate, options, faults) for rate in options.rates]
    entries = [one.as_json() for one in found]
    print(json.dumps({"tls": entries, "faults": faults}) if options.json else _text(entries, faults), flush=True)
    return 1 if faults else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.tls", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout, instead of a table")
    parser.add_argument("--seconds", type=int, default=5, help="length of a stream (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured (default: %(default)s)")
    parser.add_argument("--rates", type=int, nargs="+", default=RATES, help="Mbit/s of the lines, 0 for no bound (default: %(default)s)")
    return parser


def _at(lab: Lab, rate: int, options: argparse.Namespace, faults: list[str]) -> Line:
    """Both kinds side by side, each on a triangle of its own, measured in turns."""
    found = Line(rate)
    with ExitStack() as stack:
        running = {kind: _start(stack, lab, kind, rate) for kind in KINDS}
        for number in range(options.rounds):
            for kind in KINDS[:: -1 if number % 2 else 1]:
                try:
                    _measure(found, kind, *running[kind], options.seconds)
                except IpopError as error:
                    faults.append(f"{kind} at {rate} Mbit/s: {error}")
    print(f"tls: {found.as_json()}", file=sys.stderr, flush=True)
    return found


def _start(stack: ExitStack, lab: Lab, kind: str, rate: int) -> tuple[Parted, str]:
    triangle = Triangle(lab, f"{kind}{rate}")
    stack.callback(triangle.stop)
    if rate:
        _limit(triangle, rate)
    parted = Parted(triangle)
    for listens in [parted.r] if kind == "tls_relayed" else [parted.r, parted.b]:
        listens.keys["listen.tls"] = {"port": 443}
    target = parted.start(part=False)
    if kind != "direct":
        triangle.block_udp()
        wait_for("the way by TLS", 60, lambda: _kind_of(parted) == kind and parted.a.reaches(target, 1), 0.5)
    measure.tcp(triangle, target, 2)  # paths, caches and widths settle
    return parted, target


def _limit(triangle: Triangle, rate: int) -> None:
    """Every line carries so much, in either direction."""
    ends = [(host, "eth0") for host in (triangle.a, triangle.b, triangle.r)]
    for host, device in [*ends, *((triangle.router, f"to-{name}") for name in "abr")]:
        host.run(["tc", "qdisc", "add", "dev", device, "root", "tbf", "rate", f"{rate}mbit", "burst", "128k", "latency", "30ms"])


def _kind_of(parted: Parted) -> str:
    """Which of `KINDS` the path from A to B is; empty for none."""
    path = parted.a.path_to(parted.b)
    if path.startswith("direct udp:"):
        return "direct"
    if path.startswith("direct tls"):
        return "tls"
    relay = [node.path_to(parted.r) for node in (parted.a, parted.b)]
    return "tls_relayed" if path.startswith("relay") and all(way.startswith("direct tls:") for way in relay) else ""


def _measure(found: Line, kind: str, parted: Parted, target: str, seconds: int) -> None:
    stream = measure.tcp(parted.triangle, target, seconds)
    if _kind_of(parted) != kind:
        raise EnvironmentProblem(f"the path from A to B is {parted.a.path_to(parted.b)!r}")
    found.mbps[kind].append(stream.gbps * 1000)
    found.cpu[kind].append(stream.cpu_s_per_gb)


def _text(entries: Sequence[dict[str, Any]], faults: Sequence[str]) -> str:
    def figure(value: float | None) -> str:
        return "-" if value is None else f"{value:.3g}"

    rows = [
        [
            f"{one['rate_mbit']} Mbit/s" if one["rate_mbit"] else "no bound",
            *(figure(one[key]) for key in ("direct_mbps", "tls_mbps", "ratio", "tls_relayed_mbps", "ratio_relayed")),
        ]
        for one in entries
    ]
    head = ["TCP one stream, Mbit/s", "direct UDP", "TLS", "ratio", "relayed by TLS", "ratio"]
    return "\n\n".join([table([head], rows), *(f"failed: {fault}" for fault in faults)])


if __name__ == "__main__":
    sys.exit(main())
