"""Who watches the daemons of a ring that die and come back: each fault that it is there for is one that it sees."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from benchmarks import dht_real
from benchmarks.chatter import GATED, OPEN, Chatter, Said, datagram, triples
from benchmarks.witness import ENTRIES, Addresses, Thread, Writer, neighbours_at_fault, ring_faults
from ipop_tx.errors import Unreachable
from ipop_tx.wire.address import mac_of


class Node:
    """A node that keeps registers in memory, as the witnesses see one."""

    registers: dict[str, str]

    def __init__(self, name: str, registers: dict[str, str]) -> None:
        self.name = name
        self.registers = registers
        self.tap: str | None = None
        self.dead = False
        self.forgets: Callable[[str], bool] = lambda key: False
        self.neighbours: list[dict[str, Any]] = []
        self.host = SimpleNamespace(run=lambda argv, check: SimpleNamespace(stdout=json.dumps(self.neighbours)))

    def address_on_tap(self) -> str | None:
        return self.tap

    def request(self, method: str, path: str, body: dict[str, Any], timeout: float = 15.0) -> dict[str, Any]:
        if self.dead:
            raise Unreachable("gone")
        return {"answers": [self.answer(path, entry) for entry in body["entries"]]}

    def answer(self, path: str, entry: dict[str, str]) -> dict[str, str]:
        key = entry["key"]
        if path == "/dht/get":
            return {"key": key, "text": self.registers[key]} if key in self.registers else {"key": key, "error": "nothing there"}
        if not self.forgets(key):
            self.registers[key] = entry["text"]
        return {"key": key}


class WriterTests(SynchronousTestCase):
    """Nothing that was acknowledged may be missing."""

    def setUp(self) -> None:
        self.node = Node("a", {})
        running: Any = lambda: [self.node]  # noqa: E731
        self.writer = Writer(running, Random(1))

    def lost(self) -> list[str]:
        node: Any = self.node
        return self.writer.lost(node)

    def test_all_is_there(self) -> None:
        for _ in range(3):
            self.writer.step()
        self.assertEqual((len(self.writer.created), self.writer.counted, self.lost()), (3 * ENTRIES, {"a": 3}, []))

    def test_a_register_is_lost(self) -> None:
        self.node.forgets = lambda key: not key.startswith("count")
        self.writer.step()
        self.assertEqual(len(self.lost()), ENTRIES)
        self.assertIn("is lost: nothing there", self.lost()[0])

    def test_a_register_is_another(self) -> None:
        self.writer.step()
        self.node.registers[next(iter(self.writer.created))] = "x"
        self.assertIn("holds something else", self.lost()[0])

    def test_a_number_goes_back(self) -> None:
        self.writer.step()
        self.node.forgets = lambda key: key.startswith("count")
        self.writer.step()
        self.assertEqual(self.lost(), ["a had counted up to 2, now it is 1"])

    def test_a_node_that_dies_over_it(self) -> None:
        """Nobody knows what became of those writes, so they cannot be lost."""
        self.node.dead = True
        self.writer.step()
        self.assertEqual((self.writer.created, self.writer.counted, self.writer.unanswered), ({}, {}, ENTRIES + 1))


class AddressTests(SynchronousTestCase):
    """Each keeps its own."""

    def setUp(self) -> None:
        self.a, self.b = Node("a", {}), Node("b", {})
        nodes: Any = [self.a, self.b]
        self.watch = Addresses(nodes, {"a": "10.128.0.1", "b": "10.128.0.2"})
        self.a.tap, self.b.tap = "10.128.0.1", None

    def test_one_is_down(self) -> None:
        self.watch.step()
        self.b.tap = "10.128.0.2"
        self.watch.step()
        self.assertEqual((self.watch.looks, self.watch.duplicates, self.watch.faults), (2, 0, []))

    def test_a_duplicate(self) -> None:
        self.b.tap = "10.128.0.1"
        self.watch.step()
        self.watch.step()
        self.assertEqual((self.watch.duplicates, len(self.watch.faults)), (1, 2))

    def test_a_change(self) -> None:
        self.b.tap = "10.128.0.3"
        self.watch.step()
        self.assertEqual(self.watch.faults, ["b took 10.128.0.3; before it had 10.128.0.2"])

    def test_neighbours(self) -> None:
        owner = b"\x07" * 20
        nodes: Any = [self.a]
        self.a.neighbours = [{"dst": "10.128.0.2", "lladdr": mac_of(owner).hex(":")}, {"dst": "10.128.0.9"}, {"dst": "10.128.0.2"}]
        self.assertEqual(neighbours_at_fault(nodes, {"10.128.0.2": owner}), [])
        self.assertEqual(len(neighbours_at_fault(nodes, {"10.128.0.2": b"\x08" * 20})), 1)


class ThreadTests(SynchronousTestCase):
    """A witness that has gone blind says so."""

    def test_it_gives_up(self) -> None:
        class Blind(Thread):
            def step(self) -> None:
                raise ValueError("dark")

        blind = Blind(0.001)
        blind.start()
        deadline = time.monotonic() + 10
        while not blind.faults and time.monotonic() < deadline:
            time.sleep(0.001)
        blind.stop()
        self.assertEqual(blind.faults, ["Blind gave up: ValueError('dark')"])


class RingTests(SynchronousTestCase):
    """Everybody names its true neighbours."""

    def statuses(self) -> dict[str, dict[str, Any]]:
        rings = {"a": ("c", "b"), "b": ("a", "c"), "c": ("b", "a")}
        return {
            name: {"ident": f"{place}0", "ring": {"joined": True, "predecessor": before, "successors": [after]}}
            for place, (name, (before, after)) in enumerate(rings.items())
        }

    def test_whole(self) -> None:
        self.assertEqual(ring_faults(self.statuses()), [])

    def test_not_whole(self) -> None:
        for key, value in (("joined", False), ("predecessor", "b"), ("successors", ["c"]), ("successors", [])):
            statuses = self.statuses()
            statuses["a"]["ring"][key] = value
            self.assertEqual(len(ring_faults(statuses)), 1)


class DiskTests(SynchronousTestCase):
    """What a commit costs depends on where."""

    def test_filesystem(self) -> None:
        self.assertEqual(dht_real.filesystem(Path("/proc/self")), "proc")

    def test_a_commit(self) -> None:
        place = Path(self.mktemp())
        place.mkdir()
        self.assertGreater(dht_real.commit_ms(place, 0.01), 0.0)
        self.assertEqual(list(place.iterdir()), [])


class ChatterTests(SynchronousTestCase):
    """Whoever gets a datagram knows whether it was for him, and as it was sent."""

    HOSTS = ("10.128.0.1", "10.128.0.2", "10.128.0.3")

    def setUp(self) -> None:
        self.chatter = Chatter(self.HOSTS, 1)
        self.texts = [socket.inet_aton(host) for host in self.HOSTS]

    def hear(self, source: int, target: int, port: int, sent: int) -> bytes:
        """As it should come from `source`, were it meant for us; gives it."""
        text = datagram(self.texts[source], self.texts[target], port, sent, b"filling")
        self.chatter.hear(text, self.HOSTS[source], OPEN)
        return text

    def test_good(self) -> None:
        """It is noted, and can be read back."""
        self.hear(0, 1, OPEN, 5)
        self.hear(2, 1, OPEN, 6)
        place = Path(self.mktemp())
        place.mkdir()
        self.chatter.said.save(place, "1")
        said = Said.load(place, "1")
        self.assertEqual((triples(said.received), said.wrong), ([(0, OPEN, 5), (2, OPEN, 6)], []))

    def test_wrong(self) -> None:
        """Altered, cut, twice, to somebody else, to another port, by somebody else."""
        good = self.hear(0, 1, OPEN, 5)
        for text, host in (
            (good[:30] + b"!" + good[31:], self.HOSTS[0]),
            (good[:9], self.HOSTS[0]),
            (good, self.HOSTS[0]),
            (good, self.HOSTS[2]),
        ):
            self.chatter.hear(text, host, OPEN)
        self.hear(0, 2, OPEN, 7)
        self.hear(0, 1, GATED, 8)
        self.assertEqual(
            [line.split()[-1] for line in self.chatter.said.wrong],
            ["altered", "altered", "twice", "10.128.0.3", "10.128.0.1", "10.128.0.1"],
        )
