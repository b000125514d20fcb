"""Registers under loss, restarts and changing views: every history has an order, and the check finds what breaks the rules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

from twisted.trial.unittest import TestCase

from ipop_tx.core import commands as c
from ipop_tx.core import node
from ipop_tx.core.dht import coordinator, views
from ipop_tx.core.dht.replica import CellState, Replicas
from ipop_tx.errors import Conflict
from ipop_tx.simulation.clients import TTL, Clients
from ipop_tx.simulation.history import Operation, linearizable
from ipop_tx.simulation.network import NETWORK, SimulatedNet, SimulatedNode
from ipop_tx.wire import messages as m
from tests.net import NetCase, heal, split


class Trouble:
    """What goes wrong meanwhile: restarts, machines that come late, a net that is cut now and then."""

    def __init__(self, net: SimulatedNet, machines: list[SimulatedNode], clients: Clients) -> None:
        self._net, self._machines, self._clients = net, machines, clients
        self.restarts = 0

    def restart(self, machine: SimulatedNode, after: float) -> None:
        """Off, and on again with the same disk."""
        if machine.node is None:
            return
        machine.crash()
        self._clients.crashed(machine)
        self.restarts += 1
        others = [other for other in self._machines if other is not machine]
        self._net.at(self._net.now + after, lambda: machine.start(*self._net.rng.sample(others, 3)) and None)

    def cut(self, size: int, seconds: float) -> None:
        """Some cannot reach the others for a while."""
        split(self._net, self._net.rng.sample(self._machines, size))
        self._net.at(self._net.now + seconds, lambda: heal(self._net))


class HistoryTests(TestCase):
    """The check itself: it accepts what has an order and nothing else."""

    def operation(self, command: Any, begin: float, end: float, outcome: Any, client: bytes = b"a" * 20) -> Operation:
        """One call."""
        return Operation(command, client, begin, end, outcome)

    def setUp(self) -> None:
        self.record = m.Record(b"a" * 20, 1, TTL, b"x", b"", b"")
        self.create = self.operation(c.Create(b"k", b"x", TTL), 0, 1, self.record)

    def test_stale_read(self) -> None:
        """A read that began after a write was answered must see it; one that overlaps may or may not."""
        self.assertFalse(linearizable([self.create, self.operation(c.Get(b"k"), 2, 3, None)]))
        for outcome in (None, self.record):
            self.assertTrue(linearizable([self.create, self.operation(c.Get(b"k"), 0.5, 3, outcome)]))

    def test_two_winners(self) -> None:
        """A register is created once."""
        other = self.operation(c.Create(b"k", b"y", TTL), 0, 1, replace_owner(self.record), b"b" * 20)
        self.assertFalse(linearizable([self.create, other]))

    def test_unanswered(self) -> None:
        """A write without an answer may be seen later, or never, but not come and go."""
        lost = replace(self.create, end=float("inf"), outcome=None)
        reads = [self.operation(c.Get(b"k"), at, at + 0.5, outcome) for at, outcome in ((2, None), (3, self.record), (4, None))]
        self.assertTrue(linearizable([lost, *reads[:2]]))
        self.assertTrue(linearizable([lost, reads[0]]))
        self.assertFalse(linearizable([lost, *reads]))

    def test_refused(self) -> None:
        """A conflict needs something to be in conflict with."""
        refused = self.operation(c.Create(b"k", b"y", TTL), 2, 3, Conflict("taken"))
        self.assertFalse(linearizable([refused]))
        self.assertTrue(linearizable([self.create, refused]))

    def test_expiry(self) -> None:
        """A record may be gone after its time to live and need not, and never before."""
        short = replace(self.create, command=c.Create(b"k", b"x", 10))
        for begin, end, outcome, good in ((8, 9, None, False), (8, 9, self.record, True), (8, 11, None, True), (50, 51, self.record, True)):
            self.assertIs(linearizable([short, self.operation(c.Get(b"k"), begin, end, outcome)]), good)
        other = replace_owner(replace_version(self.record, 2))
        for begin, end, good in ((8, 9.5, False), (8, 10.5, True)):
            history = [short, self.operation(c.Create(b"k", b"y", 10), begin, end, other, b"b" * 20)]
            self.assertIs(linearizable(history), good)
            refused = self.operation(c.CompareAndSet(b"k", 1, b"z", 10), begin, end, Conflict("gone"))
            self.assertIs(linearizable([short, refused]), good)

    def test_late_expiry_of_an_unknown_write(self) -> None:
        """What nobody answered for cannot replace a record before that may be gone, if others saw the record alive later."""
        short = replace(self.create, command=c.Create(b"k", b"x", 10))
        lost = self.operation(c.Create(b"k", b"y", 10), 2, float("inf"), None, b"b" * 20)
        seen = replace_owner(replace_version(self.record, 2))
        read = self.operation(c.Get(b"k"), 3, 4, seen)
        self.assertFalse(linearizable([short, lost, read]))
        self.assertTrue(linearizable([short, lost, replace(read, begin=12, end=13)]))


def replace_version(record: m.Record, version: int) -> m.Record:
    """The record in another version."""
    return m.Record(record.owner, version, record.ttl, record.value, b"", b"")


def replace_owner(record: m.Record) -> m.Record:
    """The record as another would have written it."""
    return m.Record(b"b" * 20, record.version, record.ttl, b"y", b"", b"")


class LinearizableTests(NetCase):
    """Whole nodes."""

    def busy(
        self,
        seed: int,
        operations: int,
        trouble: Callable[[Trouble, Random], None],
        loss: float = 0.02,
        nodes: int = 7,
        registers: int = 12,
    ) -> Clients:
        """Operations at thirty a second, with trouble every ten seconds; then a calm end, in which all are answered or given up."""
        net = self.net(seed, network=replace(NETWORK, shards=4))
        machines = self.grow(net, nodes)
        net.loss = loss
        clients = Clients(net, machines, registers, seed)
        troubles, rng = Trouble(net, machines, clients), Random(f"trouble/{seed}")
        for number in range(operations):
            clients.step()
            net.run(0.033)
            if number % 300 == 299:
                trouble(troubles, rng)
        heal(net)
        net.run(60)
        return clients

    def test_loss(self) -> None:
        """A tenth of the datagrams lost."""
        for seed in range(2):
            clients = self.busy(seed, 3000, lambda trouble, rng: None, loss=0.1)
            self.assertEqual(clients.disorder(), [], f"seed {seed}")
            self.assertGreater(clients.answered, 2000)

    def test_restarts(self) -> None:
        """Nodes go off and come back with their disks, some at once, some after their view has changed."""
        for seed in range(3):
            clients = self.busy(seed, 3000, self.restart_one)
            self.assertEqual(clients.disorder(), [], f"seed {seed}")
            self.assertGreater(clients.answered, 1800)

    def test_everything(self) -> None:
        """Restarts, several at once, and a net that is cut in two."""
        for seed in range(3):
            clients = self.busy(seed, 3000, self.restart_and_cut)
            self.assertEqual(clients.disorder(), [], f"seed {seed}")
            self.assertGreater(clients.answered, 1200)

    def restart_one(self, trouble: Trouble, rng: Random) -> None:
        """One or two nodes."""
        for machine in rng.sample(trouble._machines, rng.randrange(1, 3)):
            trouble.restart(machine, rng.choice((0.2, 2.0, 15.0)))

    def restart_and_cut(self, trouble: Trouble, rng: Random) -> None:
        """Either or both."""
        if rng.random() < 0.6:
            self.restart_one(trouble, rng)
        if rng.random() < 0.5:
            trouble.cut(rng.randrange(1, 4), rng.uniform(2.0, 9.0))

    # --- broken on purpose ---------------------------------------------------------------------

    def test_broken_acceptor(self) -> None:
        """An acceptor that forgets its promises is found out."""
        self.patch(node, "Replicas", Promiseless)
        self.assertTrue(any(self.busy(seed, 1500, lambda trouble, rng: None, loss=0.1).disorder() for seed in range(4)))

    def test_broken_views(self) -> None:
        """Views that change without a majority are found out."""
        self.patch(views, "majority", lambda members: 1)
        self.assertTrue(any(self.busy(seed, 1500, self.restart_and_cut).disorder() for seed in range(4)))

    def test_broken_coordinator(self) -> None:
        """A coordinator that is content with one replica is found out."""
        self.patch(coordinator, "majority", lambda members: 1)
        self.assertTrue(any(self.busy(seed, 1500, lambda trouble, rng: None, loss=0.1).disorder() for seed in range(4)))


class Promiseless(Replicas):
    """Takes whatever comes."""

    def accept(self, body: m.Accept) -> m.Answer:
        """Forget what was promised first."""
        shard = self.shards.get(body.shard)
        if shard is not None:
            shard.cells[body.key] = CellState()
        return super().accept(body)
