"""`python -m benchmarks.width`: what the width of a record is worth under loss, as root.

A lost piece loses its whole record, so the daemon makes records no wider than the loss that it measures allows. Here one TCP stream runs
over daemons that choose the width themselves and over others that never exceed 1, in turns, under the same conditions.
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
from benchmarks.dataplane.report import median, table
from benchmarks.dataplane.systems import IpopTx
from benchmarks.dataplane.underlay import Pair
from ipop_tx.errors import IpopError
from ipop_tx.lab import Lab, netns

VARIABLE = "IPOP_TX_WIDTH"
"""The daemon reads it: the greatest width it may use; without it the daemon chooses."""
LOSSES = (0.01, 0.1, 1.0)
RTTS = (0, 20)
"""Added round trip, ms. 0: no wire with a delay in between."""
KINDS = {"adaptive_mbps": {}, "width1_mbps": {VARIABLE: "1"}}


@dataclass
class Condition:
    """What was found under one loss and one delay: Mbit/s of each round, for each of `KINDS`."""

    loss_percent: float
    rtt_ms: int
    mbps: dict[str, list[float]] = field(default_factory=lambda: {kind: [] for kind in KINDS})

    def as_json(self) -> dict[str, Any]:
        """The entry of `width`: medians."""
        return {"loss_percent": self.loss_percent, "rtt_ms": self.rtt_ms} | {kind: median(values) for kind, values in self.mbps.items()}


@command("width")
def main(argv: Sequence[str] | None) -> int:
    """Run with words of the command line; gives the exit status."""
    options = _parser().parse_args(argv)
    faults: list[str] = []
    netns.require_root_and(())
    packages.require(packages.TOOLS)
    with Lab("width") as lab:
        found = [one for rtt in options.rtt for one in _under_delay(lab, rtt, options, faults)]
    entries = [one.as_json() for one in found]
    print(json.dumps({"width": entries, "faults": faults}) if options.json else _text(entries, faults), flush=True)
    return 1 if faults else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.width", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout, instead of a table")
    parser.add_argument("--seconds", type=int, default=5, help="length of a stream (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured (default: %(default)s)")
    parser.add_argument("--loss", type=float, nargs="+", default=LOSSES, help="percent lost in either direction (default: %(default)s)")
    parser.add_argument("--rtt", type=int, nargs="+", default=RTTS, help="added round trips in ms (default: %(default)s)")
    return parser


def _under_delay(lab: Lab, rtt: int, options: argparse.Namespace, faults: list[str]) -> list[Condition]:
    """All losses at one delay, with both kinds of daemons running side by side, each on a pair of its own."""
    with ExitStack() as stack:
        running = {kind: _start(stack, lab, kind, rtt) for kind in KINDS}
        found = [Condition(loss, rtt) for loss in options.loss]
        for condition in found:
            for pair, _ in running.values():
                pair.lose(condition.loss_percent)
            for number in range(options.rounds):
                for kind in list(KINDS)[:: -1 if number % 2 else 1]:
                    _measure(condition, kind, *running[kind], options.seconds, faults)
            print(f"width: {condition.as_json()}", file=sys.stderr, flush=True)
        return found


def _start(stack: ExitStack, lab: Lab, kind: str, rtt: int) -> tuple[Pair, str]:
    pair = Pair(lab, f"{kind.partition('_')[0]}-{rtt}ms", rtt)
    stack.callback(pair.stop)
    if not rtt:  # the wire with a delay cuts super-frames itself
        pair.without_offloads()
    system = IpopTx()
    system.environment = KINDS[kind]
    target = system.start(pair)
    measure.tcp(pair, target, 1)  # the path, the caches and the MTU settle
    return pair, target


def _measure(condition: Condition, kind: str, pair: Pair, target: str, seconds: int, faults: list[str]) -> None:
    try:
        condition.mbps[kind].append(measure.tcp(pair, target, seconds).gbps * 1000)
    except IpopError as error:
        faults.append(f"{kind} at {condition.rtt_ms} ms and {condition.loss_percent:g} % loss: {error}")


def _text(entries: Sequence[dict[str, Any]], faults: Sequence[str]) -> str:
    def figure(value: float | None) -> str:
        return "-" if value is None else f"{value:.3g}"

    rows = [[f"{one['rtt_ms']} ms, {one['loss_percent']:g} % lost", *(figure(one[kind]) for kind in KINDS)] for one in entries]
    return "\n\n".join([table([["TCP one stream, Mbit/s", "adaptive", "width 1"]], rows), *(f"failed: {fault}" for fault in faults)])


if __name__ == "__main__":
    sys.exit(main())
