"""`python -m benchmarks.soak`: two daemons under full load for minutes, and nothing may be lost, doubled, altered or hoarded, as root.

TCP streams both ways fill the path with a payload that the receiver compares byte by byte; beside them numbered datagrams with a CRC-32
each go both ways. Meanwhile the path is cut (a third node relays), mended, and A gets another address. docs/performance.md has the keys.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.command import command
from benchmarks.dataplane import packages
from benchmarks.dataplane.relayed import Parted
from benchmarks.dataplane.report import table
from benchmarks.dataplane.underlay import Triangle
from benchmarks.samples import Growth, Sample, growth, kernel_drops, look
from benchmarks.streams import Flows, Lost
from benchmarks.upheaval import Upheaval
from ipop_tx.lab import Lab, netns
from ipop_tx.lab.node import LabNode

LIMIT = 10.0
"""Percent that memory or descriptors of a daemon may grow."""


@command("soak")
def main(argv: Sequence[str] | None) -> int:
    """Run with words of the command line; gives the exit status: 0 only when there is nothing to complain about."""
    options = _parser().parse_args(argv)
    seconds = options.seconds or options.minutes * 60
    netns.require_root_and(())
    packages.require(packages.TOOLS)
    with Lab("soak") as lab:
        found = run(lab, seconds, options.change_every, options.streams, options.rate)
    print(json.dumps({"soak": found}) if options.json else text(found), flush=True)
    return 0 if found["good"] else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.soak", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout, instead of tables")
    parser.add_argument("--minutes", type=float, default=10, help="how long (default: %(default)g)")
    parser.add_argument("--seconds", type=float, help="the same in seconds, for a short one")
    parser.add_argument("--change-every", type=float, default=20, metavar="SECONDS", help="0: leave the path alone (default: %(default)g)")
    parser.add_argument("--streams", type=int, default=2, help="TCP streams in either direction (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=1000, help="datagrams a second in either direction (default: %(default)g)")
    return parser


def say(words: str) -> None:
    """Progress, for whoever waits."""
    print(f"soak: {words}", file=sys.stderr, flush=True)


def run(lab: Lab, seconds: float, change_every: float, streams: int, rate: float) -> dict[str, Any]:
    """The whole soak. Raises `IpopError` when it cannot begin."""
    triangle = Triangle(lab, "soak")
    parted = Parted(triangle)
    addresses = _start(parted)
    nodes: Mapping[str, LabNode] = {"a": parted.a, "b": parted.b, "r": parted.r}
    before = {name: kernel_drops(node.host) for name, node in nodes.items()}
    triangle.count_hellos()
    flows = Flows(triangle.a, triangle.b, addresses, streams, rate, seconds)
    upheaval = Upheaval(parted)
    start = time.monotonic()
    held = _watch(nodes, upheaval, start, seconds, change_every)
    told = flows.end()
    report = {
        "seconds": seconds,
        "changes": [change.as_json(start) for change in upheaval.changes],
        "client_hellos": triangle.hellos(),
        "tcp": told.tcp(),
        "udp": told.udp(upheaval.changes),
        "held": {name: growth(samples).as_json() for name, samples in held.items()},
        **_at_the_end(nodes, before),
    }
    grown = {name: growth(samples) for name, samples in held.items()}
    report["complaints"] = complaints([*told.problems(), *_ended(nodes)], told.lost(upheaval.changes), report, grown)
    report["good"] = not report["complaints"]
    triangle.stop()
    return report


def _runs(node: LabNode) -> bool:
    return node.process is not None and node.process.returncode is None


def _ended(nodes: Mapping[str, LabNode]) -> list[str]:
    return [f"the daemon on {name} ended by itself" for name, node in nodes.items() if not _runs(node)]


def _at_the_end(nodes: Mapping[str, LabNode], before: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
    """What the daemons that still run have counted, and what the kernel threw away since `before`."""
    alive = {name: node for name, node in nodes.items() if _runs(node)}
    after = {name: kernel_drops(node.host) for name, node in alive.items()}
    return {
        "counters": {name: node.status()["counters"] for name, node in alive.items()},
        "kernel_dropped": {name: {key: after[name][key] - before[name][key] for key in before[name]} for name in alive},
    }


def _start(parted: Parted) -> tuple[str, str]:
    """All three nodes, A and B over the direct path; gives their overlay addresses."""
    target = parted.start(part=False)
    parted.a.wait_for_path(parted.b, lambda path: path.startswith("direct"))
    parted.b.wait_for_path(parted.a, lambda path: path.startswith("direct"))
    return parted.a.address, target


def _watch(nodes: Mapping[str, LabNode], upheaval: Upheaval, start: float, seconds: float, change_every: float) -> dict[str, list[Sample]]:
    """Change paths and look at the daemons until the time is up; the last change has the time to settle before the end."""
    held: dict[str, list[Sample]] = {name: [] for name in nodes}
    every = min(5.0, seconds / 10)
    next_look, next_change = start, start + (change_every or seconds)
    while (now := time.monotonic()) < start + seconds:
        if now >= next_look:
            for name, node in nodes.items():
                held[name].append(look(node.process.pid if node.process else 0, now - start))
            next_look += every
        if change_every and next_change <= now < start + seconds - change_every:
            change = upheaval.next()
            say(f"{change.as_json(start)}")
            next_change = time.monotonic() + change_every
        time.sleep(max(0.0, min(next_look, start + seconds) - time.monotonic()) if not change_every else 0.1)
    return held


def complaints(problems: Sequence[str], lost: Lost, report: Mapping[str, Any], grown: Mapping[str, Growth]) -> list[str]:
    """Everything that must not be, a sentence each."""
    found = list(problems)
    found += [f"{report['tcp']['altered']} blocks of the streams came altered"] if report["tcp"]["altered"] else []
    found += [f"{report['udp'][what]} datagrams came {what}" for what in ("altered", "duplicated") if report["udp"][what]]
    found += [f"{lost.otherwise} datagrams were lost while the path stayed as it was"] if lost.otherwise else []
    for change in report["changes"]:
        if change["settled_after_s"] is None:
            found.append(f"the nodes did not follow the {change['kind']} at {change['at_s']} s")
    for name, one in grown.items():
        if one.percent >= LIMIT:
            found.append(f"the daemon on {name} grew by {one.percent:.1f} %")
        if one.descriptors_percent >= LIMIT:
            found.append(f"the daemon on {name} opened {one.last_descriptors - one.first_descriptors:g} more descriptors")
    return found


def text(found: Mapping[str, Any]) -> str:
    """For people."""
    tcp, udp = found["tcp"], found["udp"]
    lines = [
        f"{found['seconds']:g} s, {len(found['changes'])} changes of the path, {found['client_hellos']} hellos of handshakes on the cables",
        f"TCP: {tcp['gigabytes']} GB, {tcp['gbps']} Gbit/s both ways together, {tcp['altered']} blocks altered",
        f"UDP: {udp['sent']} datagrams, {udp['altered']} altered, {udp['duplicated']} duplicated, {udp['reordered']} out of order",
        f"lost: {udp['lost_around_changes']} around changes of the path, {udp['lost_otherwise']} otherwise",
        table(
            [["daemon", "MB at first", "at last", "growth %", "descriptors"]],
            [
                [name, *(f"{one[key]:g}" for key in ("first_mb", "last_mb", "growth_percent", "last_descriptors"))]
                for name, one in found["held"].items()
            ],
        ),
        *(f"complaint: {complaint}" for complaint in found["complaints"]),
    ]
    return "\n\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
