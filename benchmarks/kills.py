"""`python -m benchmarks.kills`: daemons of a real ring are killed at any moment and started again, as root.

Each must be back at its address soon. Meanwhile all TAPs are watched, everybody pings, and registers are written; nobody may ever have the
address of another, and nothing that was acknowledged may be lost. docs/performance.md has the keys of the result.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.command import command
from benchmarks.daemons import PATIENCE, Ring
from benchmarks.dataplane.report import table
from benchmarks.witness import Addresses, Writer, keep_logs, neighbours_at_fault, selves, whole_within
from ipop_tx.errors import IpopError
from ipop_tx.lab import Lab, netns
from ipop_tx.lab.demo_report import spread
from ipop_tx.lab.node import LabNode
from ipop_tx.lab.process import Process

RETURN_MOST = 10.0
"""Seconds from the start of a daemon until it has its address again."""
DOWN_MOST = 8.0
"""Seconds at most that a daemon stays dead."""
PAUSE_MOST = 3.0
"""Seconds at most between a return and the next kill."""
YOUNG, YOUTH = 0.2, 1.5
"""Share of daemons that are killed again while they start, within so many seconds."""
HASTY = 0.3
"""Share of returns after which the next kill does not wait until the ring is whole."""
WHOLE_MOST = 30.0
"""Seconds that the ring has to be whole again after a return."""


@command("kills", "interrupted; everything was removed")
def main(argv: Sequence[str] | None) -> int:
    """Run with words of the command line; gives the exit status: 0 only when there is no fault."""
    options = _parser().parse_args(argv)
    netns.require_root_and(("ip", "ping"))
    with Lab("kills", options.disk) as lab:
        found = run(lab, options.nodes, options.kills, options.at_once, options.seed)
        if found["faults"] and options.logs:
            keep_logs(lab, options.logs)
    print(json.dumps(found) if options.json else text(found), flush=True)
    return 0 if found["ok"] else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.kills", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout, instead of a table")
    parser.add_argument("--nodes", type=int, default=8, choices=range(5, 41), metavar="N", help="daemons, 5 to 40 (default: %(default)s)")
    parser.add_argument("--kills", type=int, default=50, help="how many (default: %(default)s)")
    parser.add_argument("--at-once", type=int, default=1, choices=(1, 2), help="daemons killed at the same moment (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="chooses victims and moments (default: %(default)s)")
    parser.add_argument("--disk", type=Path, default=Path("/var/tmp"), metavar="DIR", help="a directory on a disk (default: %(default)s)")
    parser.add_argument("--logs", type=Path, metavar="DIR", help="where to put the daemons' logs if there is a fault")
    return parser


def say(words: str) -> None:
    """Progress, for whoever waits."""
    print(f"kills: {words}", file=sys.stderr, flush=True)


def run(lab: Lab, nodes: int, kills: int, at_once: int, seed: int) -> dict[str, Any]:
    """All of it. Raises `IpopError` when not even the ring comes up."""
    ring = Ring(lab, nodes)
    ring.start(os.cpu_count() or 1)
    slaughter = Slaughter(ring, Random(seed), at_once)
    while slaughter.kills < kills:
        say(f"kill {slaughter.kills + 1} of {kills}")
        slaughter.once(kills)
    return slaughter.end()


@dataclass
class Slaughter:
    """Kills one after the other, and looks after each what became of it."""

    ring: Ring
    rng: Random
    at_once: int = 1
    deaths: int = 0
    in_their_youth: int = 0
    """Kills of a daemon that had only just been started."""
    returns: list[float] = field(default_factory=list)
    wholes: list[float] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    down: set[str] = field(default_factory=set)
    pings: list[Process] = field(default_factory=list)

    def __post_init__(self) -> None:
        nodes = self.ring.up
        self.faults += self.ring.faults
        self.idents = {self.ring.addresses[name]: bytes.fromhex(me["ident"]) for name, me in selves(nodes).items()}
        self.addresses = Addresses(nodes, self.ring.addresses)
        self.writer = Writer(self._running, Random(self.rng.random()))
        self._whole_within(PATIENCE)
        for place, node in enumerate(nodes):
            following = self.ring.addresses[nodes[(place + 1) % len(nodes)].name]
            self.pings.append(node.host.start(["ping", "-n", "-i", "0.2", "-W", "1", following]))
        self.addresses.start()
        self.writer.start()

    @property
    def kills(self) -> int:
        """All that there were, or are about to be."""
        return self.deaths + self.in_their_youth

    def _running(self) -> list[LabNode]:
        return [node for node in self.ring.up if node.name not in self.down]

    def once(self, most: int) -> None:
        """Kill one or several at once, start each after a while, see them back. Some are killed once more while they start."""
        time.sleep(self.rng.uniform(0, PAUSE_MOST))
        victims = self.rng.sample(self._running(), min(self.at_once, most - self.kills))
        for victim in victims:
            self._kill(victim)
        plans = [(victim, self.rng.uniform(0, DOWN_MOST), self._youth(most)) for victim in victims]
        with ThreadPoolExecutor(len(plans)) as pool:
            list(pool.map(self._revive, *zip(*plans, strict=True)))
        self.faults += neighbours_at_fault(self.ring.up, self.idents)
        if self.rng.random() >= HASTY or self.kills >= most:
            self._whole_within(WHOLE_MOST, time.monotonic())

    def _youth(self, most: int) -> float | None:
        """How long a daemon that is started again runs before it is killed once more; None: it is not, or there are to be no more kills."""
        if self.rng.random() >= YOUNG or self.kills >= most:
            return None
        self.in_their_youth += 1
        return self.rng.uniform(0, YOUTH)

    def _revive(self, victim: LabNode, after: float, youth: float | None) -> None:
        time.sleep(after)
        began = self._start(victim)
        if youth is not None:
            time.sleep(youth)
            victim.kill9()
            began = self._start(victim)
        if self._back(victim, began):
            self.down.discard(victim.name)

    def _kill(self, victim: LabNode) -> None:
        self.deaths += 1
        self.down.add(victim.name)
        victim.kill9()

    def _start(self, victim: LabNode) -> float:
        began = time.monotonic()
        victim.start()
        return began

    def _back(self, victim: LabNode, began: float) -> bool:
        """Wait for the address on the TAP; a daemon that does not come back stays down, which is a fault."""
        try:
            address = victim.wait_until_up(PATIENCE)
        except IpopError as error:
            self.faults.append(f"{victim.name} did not come back: {error}")
            return False
        took = time.monotonic() - began
        self.returns.append(took)
        say(f"{victim.name} was back after {took:.2f} s")
        if address != self.ring.addresses[victim.name]:
            self.faults.append(f"{victim.name} came back as {address}, not as {self.ring.addresses[victim.name]}")
        if took > RETURN_MOST:
            self.faults.append(f"{victim.name} took {took:.1f} s to come back")
        return True

    def _whole_within(self, seconds: float, began: float | None = None) -> None:
        if fault := whole_within(seconds, self._running, 0.1):
            self.faults.append(f"the ring is not whole after {seconds:g} s: {fault}")
        elif began is not None:
            self.wholes.append(time.monotonic() - began)

    def end(self) -> dict[str, Any]:
        """Stop the witnesses and hear them."""
        self.writer.stop()
        self.addresses.stop()
        lost = self._lost()
        sent, answered = self._pings()
        faults = [*self.faults, *self.ring.ended(), *self.addresses.faults, *self.writer.faults, *lost[:10]]
        returned = spread(self.returns, 2)
        return {
            "nodes": self.ring.count,
            "kills": self.kills,
            "killed_while_starting": self.in_their_youth,
            "returned": len(self.returns),
            "slowest_return_s": returned["max"],
            "p50_return_s": returned["p50"],
            "whole_again_s": spread(self.wholes, 2),
            "looks": self.addresses.looks,
            "duplicates": self.addresses.duplicates,
            "acknowledged": len(self.writer.created) + len(self.writer.counted),
            "unanswered": self.writer.unanswered,
            "lost": len(lost),
            "pings": {"sent": sent, "answered": answered},
            "faults": faults,
            "ok": not faults,
        }

    def _lost(self) -> list[str]:
        try:
            return self.writer.lost(self.rng.choice(self._running()))
        except IpopError as error:
            return [f"what was acknowledged cannot be read: {error}"]

    def _pings(self) -> tuple[int, int]:
        """(sent, answered) of all pings; those to a dead daemon and from one have no answer."""
        sent = answered = 0
        for ping in self.pings:
            ping.interrupt()
            found = re.search(r"(\d+) packets transmitted, (\d+) received", ping.output)
            if found:
                sent, answered = sent + int(found[1]), answered + int(found[2])
        return sent, answered


def text(found: dict[str, Any]) -> str:
    """For people."""
    rows = [[key, str(value)] for key, value in found.items() if key not in ("faults", "ok")]
    return "\n\n".join([table([["of the whole run", ""]], rows), *(f"failed: {fault}" for fault in found["faults"])])


if __name__ == "__main__":
    sys.exit(main())
