"""The control plane at scale, and the simulator's own promise: same seed, same result."""

from __future__ import annotations

import gc
import hashlib
from typing import Any

from ipop_tx.core import commands as c
from ipop_tx.core.dht.records import key_of
from ipop_tx.simulation.invariants import order_faults, ring_faults
from ipop_tx.simulation.network import SimulatedNet, SimulatedNode
from ipop_tx.wire import messages as m
from tests.net import NetCase

SCALE = 500
CRASHES_TAKE = 600.0


class Story:
    """Nodes join, write registers, and a fifth of them crash one after another over ten minutes."""

    def __init__(self, net: SimulatedNet, count: int, registers: int) -> None:
        self.net = net
        self.written: dict[bytes, m.Record] = {}
        self._join(count)
        self.joined_whole = self._heal()
        self._write(registers)
        for victim in net.rng.sample(net.running(), count // 5):
            net.run(CRASHES_TAKE / (count // 5))
            victim.crash()
        self.healed = self._heal()
        net.run(30)  # the ring is whole before all links to the last victim have ended, and a question that meets one is slow

    def _join(self, count: int) -> None:
        machines = [self.net.founder()]
        self.net.wait(machines[0].start())
        while len(machines) < count:
            fresh = [self.net.add() for _ in range(min(max(1, len(machines) // 4), count - len(machines)))]
            joins = [machine.start(self.net.rng.choice(machines)) for machine in fresh]
            self.net.run(60, lambda joins=joins: all(join.done for join in joins))  # type: ignore[misc]
            machines += fresh

    def _heal(self) -> float:
        """Seconds until the ring is whole; infinite after three minutes."""
        begun = self.net.now
        while ring_faults(self.net) + order_faults(self.net):
            if self.net.now - begun > 180:
                return float("inf")
            self.net.run(2)
        return self.net.now - begun

    def _write(self, registers: int) -> None:
        self.net.run(10)
        keys = [key_of("scale", b"", str(number).encode()) for number in range(registers)]
        creates = {key: self.net.rng.choice(self.net.running()).submit(c.Create(key, key, 36000)) for key in keys}
        self.net.run(30, lambda: all(create.done for create in creates.values()))
        self.written = {key: create.result() for key, create in creates.items() if create.done and create.error is None}

    def read(self) -> dict[bytes, Any]:
        """What random nodes read in every register that was acknowledged."""
        gets = {key: self.net.rng.choice(self.net.running()).submit(c.Get(key)) for key in self.written}
        self.net.run(60, lambda: all(get.done for get in gets.values()))
        return {key: get.error or get.result() if get.done else "no answer" for key, get in gets.items()}

    def digest(self) -> str:
        """All that the nodes ended with."""
        digest = hashlib.sha256(repr((self.net.now, self.net.datagrams, self.net.bytes)).encode())
        for machine in self.net.running():
            digest.update(repr(self._state(machine)).encode())
        return digest.hexdigest()

    def _state(self, machine: SimulatedNode) -> object:
        ring = machine.running.ring
        links = [(ident, link.active, link.rtt) for ident, link in machine.running.links.by_ident.items()]
        return (
            ring.predecessor,
            ring.successors,
            ring.fingers,
            links,
            sorted(machine.running.runtime.counters.items()),
            list(machine.store.load()),
        )


class ScaleTests(NetCase):
    """The story of 500."""

    def setUp(self) -> None:
        # A few million small objects live as long as the net: looking through them again and again takes a third of the time.
        self.addCleanup(gc.set_threshold, *gc.get_threshold())
        gc.set_threshold(50_000, 50, 50)

    def test_five_hundred(self) -> None:
        """500 nodes join, 20% crash one after another over ten minutes: the ring heals, and nothing acknowledged is lost."""
        story = Story(self.net(1), SCALE, 200)
        self.assertLess(story.joined_whole, 180)
        self.assertGreaterEqual(len(story.written), 200, "all are written, for nothing is in the way")
        self.assertLess(story.healed, 180)
        self.assertEqual(len(story.net.running()), SCALE - SCALE // 5)
        self.assertEqual(story.read(), story.written)


class DeterminismTests(NetCase):
    """Runs are functions of their seed."""

    def test_same_seed(self) -> None:
        """Two runs with one seed end in the same state to the last bit; another seed does not."""
        digests = []
        for seed in (5, 5, 6):
            story = Story(self.net(seed, loss=0.02), 40, 20)
            digests.append(story.digest())
            self.assertLess(story.healed, 180)
            self.assertEqual(story.read(), story.written)
        self.assertEqual(digests[0], digests[1])
        self.assertNotEqual(digests[0], digests[2])
