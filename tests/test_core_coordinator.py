"""Whom a coordinator asks: as few as must agree, and the others in time."""

from __future__ import annotations

from random import Random
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from ipop_tx.core.dht.coordinator import HEDGE, Coordinator, majority
from ipop_tx.core.dht.records import RegisterSigner
from ipop_tx.core.dht.replica import Replicas, Shard
from ipop_tx.core.runtime import Runtime
from ipop_tx.core.tasks import Future, spawn
from ipop_tx.errors import Unreachable
from ipop_tx.identity.store import MemoryReplicaStore
from ipop_tx.simulation.network import NETWORK, PlainSigner
from ipop_tx.values import Ident
from ipop_tx.wire import messages as m

MEMBERS = tuple(bytes([number]) * 20 for number in range(5))
ME = MEMBERS[2]
KEY = bytes(20)
EMPTY = m.Promise(m.NO_BALLOT, None, 0)


class Asked:
    """In the place of `Rpc`: what was asked waits to be answered. The round trip to a member is its number in tenths of a second."""

    def __init__(self) -> None:
        self.waiting: dict[Ident, Future[m.Answer]] = {}
        self.bodies: list[m.Ask] = []

    def serve(self, kind: type, handler: Any) -> None:
        """Nobody asks us."""

    def call(self, member: Ident, body: m.Ask, deadline: float) -> Future[m.Answer]:
        self.waiting[member] = Future()
        self.bodies.append(body)
        return self.waiting[member]

    def nearest_first(self, members: tuple[Ident, ...]) -> list[Ident]:
        return sorted(members, key=lambda member: (member != ME, -member[0]))

    def slowest(self, members: list[Ident]) -> float:
        return 0.1

    def take(self) -> dict[Ident, Future[m.Answer]]:
        """Those who were asked since the last time."""
        taken, self.waiting = self.waiting, {}
        return taken


class SparingTests(SynchronousTestCase):
    """A view of five, of which we are the third."""

    def setUp(self) -> None:
        self.runtime, self.asked = Runtime(Random(1)), Asked()
        signer = RegisterSigner(NETWORK, PlainSigner(ME))
        replicas = Replicas(ME, NETWORK.shards, MemoryReplicaStore(), self.runtime, signer.authentic)
        replicas.shards[0] = Shard(0, 1, MEMBERS)
        rpc: Any = self.asked
        self.coordinator = Coordinator(replicas, rpc, self.runtime)
        self.record = signer.record(KEY, 1, 60, b"x")

    def at(self, moment: float) -> None:
        self.runtime.now = moment
        self.runtime.run_due()

    def read(self) -> Future[Any]:
        return spawn(self.coordinator.read(KEY))

    def test_two_others_are_enough(self) -> None:
        """The nearest; nobody else is ever asked."""
        reading = self.read()
        asked = self.asked.take()
        self.assertEqual(set(asked), {MEMBERS[4], MEMBERS[3]})
        for future in asked.values():
            future.succeed(EMPTY)
        self.assertEqual(reading.result(), (False, None, 0))
        self.at(10.0)
        self.assertEqual(self.asked.take(), {})

    def test_one_is_slow(self) -> None:
        """The rest is asked after a while, and their answers do as well."""
        reading = self.read()
        self.asked.take()[MEMBERS[4]].succeed(EMPTY)
        self.at(HEDGE + 0.19)
        self.assertEqual(self.asked.take(), {})
        self.at(HEDGE + 0.21)
        rest = self.asked.take()
        self.assertEqual(set(rest), {MEMBERS[0], MEMBERS[1]})
        self.assertFalse(reading.done)
        rest[MEMBERS[0]].succeed(EMPTY)
        self.assertEqual(reading.result(), (False, None, 0))

    def test_one_fails_or_has_another_view(self) -> None:
        """The rest is asked at once."""
        for answer in (None, m.Stale(0, 0, (), False)):
            reading = self.read()
            future = self.asked.take()[MEMBERS[3]]
            if answer is None:
                future.fail(Unreachable("gone"))
            else:
                future.succeed(answer)
            rest = self.asked.take()
            self.assertEqual(set(rest), {MEMBERS[0], MEMBERS[1]})
            for future in rest.values():
                future.succeed(EMPTY)
            self.assertTrue(reading.done)

    def test_too_few(self) -> None:
        """With three of five gone it is known who answered."""
        reading = self.read()
        for tenth in range(100):
            for member, future in self.asked.take().items():
                if member == MEMBERS[4]:
                    future.succeed(EMPTY)
                else:
                    future.fail(Unreachable("gone"))
            self.at(tenth / 10)
        self.assertIn("2 of 5 replicas reached", str(reading.error))

    def test_records_go_to_all(self) -> None:
        """A write: two are asked for their state and for a promise, all four get the record."""
        writing = spawn(self.coordinator.write(KEY, lambda live, last: self.record if live is None else None))
        for _ in (m.Peek, m.Prepare):
            asked = self.asked.take()
            self.assertEqual(len(asked), majority(MEMBERS) - 1)
            for future in asked.values():
                future.succeed(EMPTY)
        asked = self.asked.take()
        self.assertEqual(set(asked), set(MEMBERS) - {ME})
        self.assertIsInstance(self.asked.bodies[-1], m.Accept)
        for future in list(asked.values())[:2]:
            future.succeed(m.Done())
        self.assertEqual(writing.result(), (True, self.record, 0))
