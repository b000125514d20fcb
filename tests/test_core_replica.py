"""The acceptor's side of registers: promises, views, what is left behind, what a restart must not change."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random
from typing import Any

from twisted.trial.unittest import TestCase

from ipop_tx.core.dht.records import RegisterSigner
from ipop_tx.core.dht.replica import LEFT_ROW, Replicas, genesis, page
from ipop_tx.core.runtime import Runtime
from ipop_tx.errors import StateError
from ipop_tx.identity.store import MemoryReplicaStore
from ipop_tx.simulation.network import NETWORK, PlainSigner
from ipop_tx.values import Ident
from ipop_tx.wire import messages as m

ME, YOU, THIRD = (bytes([digit]) * 20 for digit in (1, 2, 3))
KEY = bytes(20)
SHARD = 0


class ReplicaTests(TestCase):
    """One replica, asked directly."""

    def setUp(self) -> None:
        self.store = MemoryReplicaStore()
        for row in genesis(ME, 4):
            self.store.put(*row)
        self.replicas = self.life()

    def life(self, now: float = 0.0) -> Replicas:
        """The replica as it comes up from its disk."""
        self.store.commit()
        self.runtime = Runtime(Random(1), now)
        signer = RegisterSigner(NETWORK, PlainSigner(ME))
        return Replicas(ME, 4, self.store, self.runtime, signer.authentic)

    def record(self, value: bytes = b"x", version: int = 1, owner: Ident = YOU, key: bytes = KEY) -> m.Record:
        """A signed one."""
        return RegisterSigner(NETWORK, PlainSigner(owner)).record(key, version, 3600, value)

    def prepare(self, round: int, proposer: Ident = YOU, key: bytes = KEY, number: int = 1) -> m.Answer:  # noqa: A002
        """Phase 1."""
        return self.replicas.prepare(m.Prepare(SHARD, number, key, m.Ballot(round, proposer)))

    def accept(self, round: int, record: m.Record | None, proposer: Ident = YOU, number: int = 1, age_ms: int = 0) -> m.Answer:  # noqa: A002
        """Phase 2."""
        return self.replicas.accept(m.Accept(SHARD, number, KEY, m.Ballot(round, proposer), record, age_ms))

    def peek(self) -> m.Answer:
        """What was accepted."""
        return self.replicas.peek(m.Peek(SHARD, 1, KEY))

    def install(self, number: int, members: Iterable[Ident] = (ME, YOU), cells: tuple[m.Cell, ...] = (), **fields: Any) -> m.Answer:
        """A view begins."""
        part, final = fields.get("part", 0), fields.get("final", True)
        return self.replicas.install(YOU, m.Install(SHARD, number, tuple(members), cells, part, final, 1))

    # --- registers -------------------------------------------------------------------------------

    def test_promise(self) -> None:
        """Nothing below a promise is promised or accepted, by round and then by proposer."""
        self.assertEqual(self.prepare(5), m.Promise(m.NO_BALLOT, None, 0))
        refused = m.Refused(m.Ballot(5, YOU))
        self.assertEqual([self.prepare(4), self.prepare(5, ME), self.accept(4, None), self.accept(5, None, ME)], [refused] * 4)
        self.assertEqual(self.prepare(5, THIRD), m.Promise(m.NO_BALLOT, None, 0))
        self.assertEqual(self.accept(5, self.record(), YOU), m.Refused(m.Ballot(5, THIRD)))
        self.assertEqual(self.peek(), m.Promise(m.NO_BALLOT, None, 0))

    def test_same_ballot_twice(self) -> None:
        """A ballot is promised once: its proposer may have forgotten in a restart what it put under it."""
        self.prepare(5)
        self.assertEqual(self.prepare(5), m.Refused(m.Ballot(5, YOU)))
        self.assertEqual(self.accept(5, self.record()), m.Done())

    def test_accepted(self) -> None:
        """What is accepted is told, with its age; an accept without a promise binds too."""
        self.assertEqual(self.accept(3, self.record()), m.Done())
        self.runtime.now = 1.5
        self.assertEqual(self.peek(), m.Promise(m.Ballot(3, YOU), self.record(), 1500))
        self.assertEqual(self.prepare(2), m.Refused(m.Ballot(3, YOU)))
        self.assertEqual(self.prepare(4), m.Promise(m.Ballot(3, YOU), self.record(), 1500))

    def test_age_travels(self) -> None:
        """A record that is completed later is as old as it was."""
        self.accept(3, self.record(), age_ms=700)
        self.runtime.now = 1.0
        self.assertEqual(self.peek(), m.Promise(m.Ballot(3, YOU), self.record(), 1700))

    def test_forged(self) -> None:
        """A record that its owner did not sign for this very key changes nothing."""
        for forged in (self.record(key=bytes([7]) * 20), m.Record(YOU, 1, 3600, b"x", ME, self.record(owner=ME).signature)):
            self.assertIsInstance(self.accept(3, forged), m.Failed)
        self.assertEqual(self.peek(), m.Promise(m.NO_BALLOT, None, 0))
        self.assertEqual(self.runtime.counters, {"record_forged": 2})

    def test_other_view(self) -> None:
        """Whoever names another view is told ours."""
        for answer in (self.prepare(1, number=2), self.accept(1, None, number=2), self.replicas.peek(m.Peek(SHARD, 2, KEY))):
            self.assertEqual(answer, m.Stale(SHARD, 1, (ME,), False))
        self.assertEqual(self.replicas.peek(m.Peek(9, 1, KEY)), m.Stale(9, 0, (), False))

    # --- restarts --------------------------------------------------------------------------------

    def test_restart(self) -> None:
        """Promises, records and seals come back; ages go on from where they were written, whatever the clock says."""
        self.prepare(5)
        self.accept(5, self.record(), age_ms=700)
        self.prepare(8)
        self.replicas = self.life(now=10_000.0)
        self.assertEqual(self.prepare(7), m.Refused(m.Ballot(8, YOU)))
        self.assertEqual(self.peek(), m.Promise(m.Ballot(5, YOU), self.record(), 700))
        self.replicas.seal(m.Seal(SHARD, 1, m.Ballot(2, YOU)))
        self.replicas = self.life()
        self.assertEqual(self.accept(9, None), m.Stale(SHARD, 1, (ME,), True))

    def test_uncommitted(self) -> None:
        """What the driver did not commit has not happened."""
        self.accept(5, self.record())
        durable = Replicas(ME, 4, self.store, Runtime(Random(1)), lambda key, record: True)
        self.assertEqual(durable.shards[SHARD].cells, {})

    def test_damaged(self) -> None:
        """A disk that makes no sense is told in a sentence."""
        self.store.put(SHARD, KEY, b"nonsense")
        self.assertIn("the stored registers are damaged", str(self.assertRaises(StateError, self.life)))

    # --- views -----------------------------------------------------------------------------------

    def test_sealed(self) -> None:
        """A sealed view accepts, promises and shows nothing; only a sealed one is handed over."""
        self.accept(1, self.record())
        fetch = m.Fetch(SHARD, 1, b"")
        self.assertIsInstance(self.replicas.fetch(fetch), m.Stale)
        self.assertEqual(self.replicas.seal(m.Seal(SHARD, 1, m.Ballot(2, YOU))), m.Sealed(m.NO_BALLOT, (), 1))
        closed = m.Stale(SHARD, 1, (ME,), True)
        self.assertEqual([self.accept(9, None), self.prepare(9), self.peek()], [closed] * 3)
        (cell,) = self.replicas.fetch(fetch).cells  # type: ignore[union-attr]
        self.assertEqual((cell.accepted, cell.record), (m.Ballot(1, YOU), self.record()))

    def test_one_successor(self) -> None:
        """The decision on the next view is Paxos: lower ballots are refused, what was accepted is told to higher ones."""
        low, high = m.Ballot(2, YOU), m.Ballot(3, YOU)
        self.replicas.seal(m.Seal(SHARD, 1, high))
        self.assertEqual(self.replicas.seal(m.Seal(SHARD, 1, low)), m.Refused(high))
        self.assertEqual(self.replicas.succeed(m.Succeed(SHARD, 1, low, (ME,))), m.Refused(high))
        self.assertEqual(self.replicas.succeed(m.Succeed(SHARD, 1, high, (YOU,))), m.Done())
        self.assertEqual(self.replicas.seal(m.Seal(SHARD, 1, m.Ballot(4, ME))), m.Sealed(high, (YOU,), 0))

    def test_install(self) -> None:
        """A view opens with its last part, in whatever order they come; promises come along; what it does not hold goes."""
        self.accept(1, self.record())
        other = bytes([1]) * 20
        cell = m.Cell(other, m.Ballot(9, YOU), m.Ballot(4, YOU), self.record(key=other), 500)
        self.install(2, part=1, cells=(cell,))
        self.assertEqual(self.replicas.shards[SHARD].number, 1)
        self.install(2, part=0, final=False)
        shard = self.replicas.shards[SHARD]
        self.assertEqual((shard.number, shard.open, list(shard.cells)), (2, True, [other]))
        self.assertEqual(self.prepare(8, key=other, number=2), m.Refused(m.Ballot(9, YOU)))
        self.assertEqual([key for index, key, _ in self.loaded() if index == SHARD], [b"", other])

    def test_installed_once(self) -> None:
        """A view that is there, or older than what is there, is not put in its place; nor one that is not ours."""
        self.install(3)
        self.replicas.accept(m.Accept(SHARD, 3, KEY, m.Ballot(1, YOU), self.record(), 0))
        self.assertEqual(self.install(3), m.Done())
        self.assertEqual(self.install(2), m.Stale(SHARD, 3, (ME, YOU), False))
        self.assertEqual(self.install(4, (YOU,)), m.Stale(SHARD, 3, (ME, YOU), False))
        self.assertIn(KEY, self.replicas.shards[SHARD].cells)
        self.assertIsInstance(self.replicas.install(YOU, m.Install(4, 2, (ME, YOU), (), 0, True, 1)), m.Stale)
        self.assertNotIn(4, self.replicas.shards, "there are only four shards")

    def test_hearsay(self) -> None:
        """A copy is not given up because somebody names a later view, only when a majority of that has it."""
        self.accept(1, self.record())
        self.replicas.learn(SHARD, 2, (YOU, THIRD))
        self.assertIn(SHARD, self.replicas.shards)
        self.assertTrue(self.replicas.superseded(self.replicas.shards[SHARD]))
        self.assertEqual(self.replicas.newest(SHARD), m.Redirect(SHARD, 2, (YOU, THIRD)))
        self.replicas.retire(m.Retire(SHARD, 1, (YOU, THIRD)))
        self.assertNotIn(SHARD, self.replicas.shards)
        self.assertEqual([row[1] for row in self.loaded() if row[0] == SHARD], [LEFT_ROW], "only that it was given up is remembered")

    def test_retire(self) -> None:
        """Whoever is a member of the next view keeps its copy until it gets that; an old message retires no newer copy."""
        self.replicas.retire(m.Retire(SHARD, 1, (ME, YOU)))
        self.assertIn(SHARD, self.replicas.shards)
        self.install(5)
        self.replicas.retire(m.Retire(SHARD, 3, (YOU,)))
        self.assertEqual(self.replicas.shards[SHARD].number, 5)

    def test_late_installation(self) -> None:
        """What was given up does not come back by a message that was under way."""
        self.install(3)
        self.replicas.retire(m.Retire(SHARD, 3, (YOU,)))
        self.assertEqual(self.install(2), m.Stale(SHARD, 4, (YOU,), False))
        self.assertEqual(self.install(3), m.Stale(SHARD, 4, (YOU,), False))
        self.assertNotIn(SHARD, self.replicas.shards)
        self.assertEqual(self.install(5), m.Done())
        self.assertEqual(self.replicas.newest(SHARD).number, 5)

    def test_page(self) -> None:
        """Parts of a hand-over are bounded in bytes and number, and never empty."""
        large = m.Cell(KEY, m.NO_BALLOT, m.NO_BALLOT, self.record(bytes(m.MAX_VALUE)), 0)
        small = m.Cell(KEY, m.NO_BALLOT, m.NO_BALLOT, None, 0)
        self.assertEqual((len(page([large] * 9)), len(page([small] * 99)), len(page([large])), page([])), (6, 64, 1, ()))

    def loaded(self) -> list[tuple[int, bytes, bytes]]:
        """What lies on the disk."""
        self.store.commit()
        return list(self.store.load())
