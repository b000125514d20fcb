"""`python -m benchmarks.daemons`: a ring of real daemons on this machine, as root: who reaches whom, and what an idle one costs.

Every node is a `twistd ipop` in a network namespace of its own, all at one router. They join a few at a time, every one pings every other
through the network, then all is left alone. docs/performance.md has the keys of the result.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

from benchmarks import echoes
from benchmarks.command import command
from benchmarks.dataplane.measure import cpu_seconds
from benchmarks.dataplane.report import table
from benchmarks.samples import memory_mb, sent
from ipop_tx.errors import IpopError
from ipop_tx.lab import Lab, netns
from ipop_tx.lab.demo_report import spread
from ipop_tx.lab.node import LabNode

PATIENCE = 60.0
"""Seconds that a daemon has to get an address."""
MOST_NODES = 400
"""As many addresses does the lab's internet have, and a few more."""


@command("daemons", "interrupted; everything was removed")
def main(argv: Sequence[str] | None) -> int:
    """Run with words of the command line; gives the exit status: 0 only when every node reaches every other."""
    options = _parser().parse_args(argv)
    netns.require_root_and(("ip",))
    with Lab("daemons") as lab:
        found = run(lab, options)
    print(json.dumps(found) if options.json else text(found), flush=True)
    return 0 if found["ok"] else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.daemons", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout, instead of a table")
    parser.add_argument("--nodes", type=_count, default=60, help="daemons (default: %(default)s)")
    parser.add_argument("--settle", type=float, default=120, metavar="SECONDS", help="rest after the pings (default: %(default)g)")
    parser.add_argument("--idle", type=float, default=120, metavar="SECONDS", help="how long idleness is measured (default: %(default)g)")
    parser.add_argument("--at-once", type=int, default=os.cpu_count() or 1, help="daemons that join together (default: one for each core)")
    parser.add_argument("--rate", type=float, default=50, help="pings a second in all (default: %(default)g)")
    return parser


def _count(text: str) -> int:
    if not (text.isdecimal() and 2 <= int(text) <= MOST_NODES):
        raise argparse.ArgumentTypeError(f"a number from 2 to {MOST_NODES}")
    return int(text)


def say(words: str) -> None:
    """Progress, for whoever waits."""
    print(f"daemons: {words}", file=sys.stderr, flush=True)


def run(lab: Lab, options: argparse.Namespace) -> dict[str, Any]:
    """All of it; gives the result. Raises `IpopError` when not even the first node comes up."""
    ring = Ring(lab, options.nodes)
    ring.start(options.at_once)
    pings = echoes.ping_all([node.host for node in ring.up], [ring.addresses[node.name] for node in ring.up], options.rate, say)
    pairs = options.nodes * (options.nodes - 1)
    say(f"{len(pings.answered)} of {pairs} pairs are routable; {pings.first_lost} first pings were lost; now {options.settle:g} s of rest")
    time.sleep(options.settle)
    say(f"measuring {options.idle:g} s of idleness")
    idle = ring.idle(options.idle)
    faults = [*ring.faults, *ring.ended()]
    return {
        "nodes": options.nodes,
        "joined": ring.joined(),
        "pairs": pairs,
        "pairs_routable": len(pings.answered),
        "first_pings_lost": pings.first_lost,
        "join_seconds": spread(ring.join_seconds, 2),
        **idle,
        "faults": faults,
        "ok": len(pings.answered) == pairs and not faults,
    }


@dataclass
class Ring:
    """The nodes: the founder, then those that it invites."""

    lab: Lab
    count: int
    nodes: list[LabNode] = field(default_factory=list)
    addresses: dict[str, str] = field(default_factory=dict)
    """Of those that came up, by name."""
    join_seconds: list[float] = field(default_factory=list)
    """From the start of the process to an address on the TAP, the founder left out."""
    faults: list[str] = field(default_factory=list)
    _stopped: bool = False

    @property
    def up(self) -> list[LabNode]:
        """Those that came up."""
        return [node for node in self.nodes if node.name in self.addresses]

    def start(self, at_once: int) -> None:
        """Make all nodes and have them join, `at_once` at a time."""
        self.nodes = [LabNode(self.lab.public_host(f"n{number}")) for number in range(self.count)]
        founder, *others = self.nodes
        founder.create("ring")
        founder.start()
        self.addresses[founder.name] = founder.wait_until_up(PATIENCE)
        pool = ThreadPoolExecutor(at_once)
        try:
            self._done([pool.submit(self._join, founder, node) for node in others])
        except BaseException:
            self._stopped = True
            pool.shutdown(wait=False, cancel_futures=True)
            for node in self.nodes:
                node.kill9()
            raise
        finally:
            pool.shutdown()
        say(f"{len(self.addresses)} of {self.count} have an address")

    def _done(self, waiting: Sequence[Any]) -> None:
        left = set(waiting)
        while left:
            done, left = wait(left, timeout=10, return_when=FIRST_EXCEPTION)
            for one in done:
                one.result()
            if left:
                say(f"{len(self.addresses)} of {self.count} have joined")

    def _join(self, founder: LabNode, node: LabNode) -> None:
        try:
            node.join(founder.request("POST", "/invite", {"name": node.name, "expires_s": 3600.0})["token"])
            if self._stopped:
                return
            began = time.monotonic()
            node.start()
            self.addresses[node.name] = node.wait_until_up(PATIENCE)
            self.join_seconds.append(time.monotonic() - began)
        except IpopError as error:
            if not self._stopped:
                self.faults.append(f"{node.name} did not join: {error}")
                say(self.faults[-1])

    def joined(self) -> int:
        """How many have an address and say that they are in the ring."""
        return sum(bool(node.status()["self"]["ring"]["joined"]) for node in self._running())

    def _running(self) -> list[LabNode]:
        return [node for node in self.up if _pid(node)]

    def ended(self) -> list[str]:
        """The nodes whose daemon ended by itself, a sentence each."""
        return [f"the daemon of {node.name} ended" for node in self.up if not _pid(node)]

    def idle(self, seconds: float) -> dict[str, Any]:
        """What the daemons do and hold while nobody uses them."""
        pids = [_pid(node) for node in self._running()]
        began, before = time.monotonic(), [(sent(pid), cpu_seconds([pid])) for pid in pids]
        time.sleep(seconds)
        took, after = time.monotonic() - began, [(sent(pid), cpu_seconds([pid])) for pid in pids]
        deltas = [(there[0] - here[0], there[1] - here[1]) for here, there in zip(before, after, strict=True)]
        held = [memory_mb(pid) for pid in pids]
        return {
            "idle_bytes_per_s_per_node": spread([sent_bytes / took for sent_bytes, _ in deltas], 1),
            "links_per_node": spread([len(node.status()["peers"]) for node in self._running()], 2),
            "rss_mb": spread([rss for rss, _ in held], 1),
            "pss_mb": spread([pss for _, pss in held], 1),
            "idle_cpu_percent": spread([100 * used / took for _, used in deltas], 2),
        }


def _pid(node: LabNode) -> int:
    """The running daemon; 0 when there is none."""
    return node.process.pid if node.process is not None and node.process.returncode is None else 0


def text(found: dict[str, Any]) -> str:
    """For people."""
    rows = [
        [key, *(f"{value[part]:g}" if value[part] is not None else "-" for part in ("p50", "max"))]
        for key, value in found.items()
        if isinstance(value, dict)
    ]
    return "\n\n".join(
        [
            f"{found['joined']} of {found['nodes']} joined, {found['pairs_routable']} of {found['pairs']} pairs are routable",
            table([["of all nodes", "median", "max"]], rows),
            *(f"failed: {fault}" for fault in found["faults"]),
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
