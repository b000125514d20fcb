"""Nobody fills the disks of others: quotas, promises that are folded together, and registers that are over and dropped."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from random import Random

from twisted.trial.unittest import TestCase

from ipop_tx.core import commands as c
from ipop_tx.core.dht.forgetting import EVERY
from ipop_tx.core.dht.quota import CELL_BYTES, size_of
from ipop_tx.core.dht.records import RegisterSigner, key_of
from ipop_tx.core.dht.replica import BARE, GRACE, Replicas, genesis
from ipop_tx.core.ident import shard_of
from ipop_tx.core.runtime import Runtime
from ipop_tx.errors import LocalMisuse, QuotaExceeded, Unreachable
from ipop_tx.identity.store import MemoryReplicaStore
from ipop_tx.simulation.network import NETWORK, PlainSigner, SimulatedNet, SimulatedNode
from ipop_tx.values import Ident, Quota
from ipop_tx.wire import messages as m
from tests.net import NetCase

ME, YOU, THIRD = (bytes([digit]) * 20 for digit in (1, 2, 3))
SHARD = 0
TIME_TO_LIVE = 3600


def key(number: int) -> bytes:
    """One of many."""
    return hashlib.sha256(number.to_bytes(4, "big")).digest()[:20]


def deaf(body: m.Accept) -> m.Answer:
    """A replica that does not get what it is to accept."""
    raise Unreachable("nothing arrives here")


class AcceptorCase(TestCase):
    """One replica of one shard, asked directly."""

    quota = Quota(registers=10, bytes=4000, total=20_000)

    def setUp(self) -> None:
        self.store = MemoryReplicaStore()
        for row in genesis(ME, 1):
            self.store.put(*row)
        self.replicas = self.life()

    def life(self, now: float = 0.0) -> Replicas:
        """The replica as it comes up from its disk."""
        self.store.commit()
        self.runtime = Runtime(Random(1), now)
        return Replicas(ME, 1, self.store, self.runtime, lambda key, record: True, self.quota)

    def rows(self) -> int:
        """How many rows the disk holds."""
        self.store.commit()
        return len(list(self.store.load()))

    def record(self, number: int, owner: Ident = YOU, value: bytes = b"x") -> m.Record:
        """A signed one."""
        return RegisterSigner(NETWORK, PlainSigner(owner)).record(key(number), 1, TIME_TO_LIVE, value)

    def prepare(self, number: int, round: int = 1, record: m.Record | None = None) -> m.Answer:  # noqa: A002
        """Phase 1."""
        owner, size = (record.owner, size_of(record)) if record else (b"", 0)
        return self.replicas.prepare(m.Prepare(SHARD, 1, key(number), m.Ballot(round, YOU), owner, size))

    def accept(self, number: int, record: m.Record | None, round: int = 1) -> m.Answer:  # noqa: A002
        """Phase 2."""
        return self.replicas.accept(m.Accept(SHARD, 1, key(number), m.Ballot(round, YOU), record, 0))

    def write(self, number: int, owner: Ident = YOU, value: bytes = b"x", round: int = 1) -> None:  # noqa: A002
        """Both."""
        record = self.record(number, owner, value)
        self.assertIsInstance(self.prepare(number, round, record), m.Promise)
        self.assertEqual(self.accept(number, record, round), m.Done())


class QuotaTests(AcceptorCase):
    """What one replica takes."""

    def test_registers(self) -> None:
        """The eleventh register is refused, in a sentence and before anything is promised; another owner's is not."""
        for number in range(10):
            self.write(number)
        error = self.assertRaises(QuotaExceeded, self.prepare, 10, 1, self.record(10))
        self.assertIn("02020202 has 10 registers in this part of the DHT", str(error))
        self.assertNotIn(key(10), self.replicas.shards[SHARD].cells)
        self.write(11, THIRD)

    def test_bytes(self) -> None:
        """Few but large registers count by their bytes."""
        for number in range(3):
            self.write(number, value=bytes(1000))
        error = self.assertRaises(QuotaExceeded, self.prepare, 3, 1, self.record(3, value=bytes(1000)))
        self.assertIn("02020202 fills", str(error))
        self.write(3, value=b"little")

    def test_total(self) -> None:
        """When all of them together fill the shard, nobody gets more."""
        for owner in range(10, 20):
            self.write(owner, bytes([owner]) * 20, bytes(1024))
        refused = [owner for owner in range(20, 30) if self.is_refused(owner, bytes([owner]) * 20)]
        self.assertEqual(refused, list(range(26, 30)))

    def is_refused(self, number: int, owner: Ident) -> bool:
        """Whether a large register is."""
        try:
            self.write(number, owner, bytes(1024))
        except QuotaExceeded as error:
            self.assertIn("this part of the DHT is full", str(error))
            return True
        return False

    def test_no_growth(self) -> None:
        """Whoever has all it may, or more, still renews, shrinks and deletes; it may not grow."""
        for number in range(10):
            self.write(number, value=bytes(150))
        self.quota = Quota(registers=1, bytes=1, total=1)
        self.replicas = self.life()
        self.write(3, value=bytes(150), round=2)
        self.write(3, value=bytes(100), round=3)
        self.assertRaises(QuotaExceeded, self.prepare, 3, 4, self.record(3, value=bytes(300)))
        self.assertIsInstance(self.prepare(3, 4), m.Promise)
        self.assertEqual(self.accept(3, self.record(3, value=b""), 4), m.Done())

    def test_counts(self) -> None:
        """What is counted is what is kept, through overwriting by others, restarts and hand-over."""
        self.write(1, value=bytes(100))
        self.write(1, THIRD, b"much less", round=2)
        self.write(2, value=bytes(50))
        self.prepare(3)
        for _ in range(2):
            room = self.replicas.shards[SHARD].room
            self.assertEqual(room.registers, {YOU: 1, THIRD: 1})
            self.assertEqual(
                room.total, size_of(self.record(1, THIRD, b"much less")) + size_of(self.record(2, YOU, bytes(50))) + CELL_BYTES
            )
            self.replicas = self.life()
        cells = tuple(self.replicas.copy(self.replicas.shards[SHARD]))
        self.replicas.install(YOU, m.Install(SHARD, 2, (ME,), cells, 0, True, 1))
        self.assertEqual(self.replicas.shards[SHARD].room.__dict__, room.__dict__)

    def test_agreed_by_others(self) -> None:
        """What a majority took is taken, but not without end, whatever is said to have been agreed."""
        taken = [number for number in range(100) if self.takes(number)]
        self.assertEqual(taken, list(range(20)))

    def takes(self, number: int) -> bool:
        """Whether a record is accepted that nobody asked room for."""
        try:
            return isinstance(self.accept(number, self.record(number)), m.Done)
        except QuotaExceeded:
            return False

    def test_handed_over(self) -> None:
        """A hand-over is not refused, however full."""
        cells = tuple(m.Cell(key(number), m.Ballot(1, YOU), m.Ballot(1, YOU), self.record(number), 0) for number in range(50))
        self.assertEqual(self.replicas.install(YOU, m.Install(SHARD, 2, (ME,), cells, 0, True, 1)), m.Done())
        self.assertEqual(len(self.replicas.shards[SHARD].cells), 50)


class FloorTests(AcceptorCase):
    """Promises for keys that nobody wrote."""

    def test_flood(self) -> None:
        """Ten thousand keys that are only prepared take no more rows than a few hundred; none of the promises is broken."""
        for number in range(10_000):
            self.prepare(number, 1 + number % 7)
        self.assertLessEqual(self.rows(), BARE + 2)
        for _ in range(2):
            for number in range(10_000):
                self.assertIsInstance(self.prepare(number, 1 + number % 7), m.Refused, "the same ballot twice")
                if number % 7:
                    self.assertIsInstance(self.accept(number, self.record(number), number % 7), m.Refused, "below the promise")
            self.replicas = self.life()

    def test_honest_ballot(self) -> None:
        """Folding takes the oldest: an operation that is under way meanwhile goes on, if its ballot is not lower."""
        for number in range(BARE):
            self.prepare(number)
        self.prepare(-1 & 0xFFFF, 1)
        self.assertEqual(self.accept(-1 & 0xFFFF, self.record(-1 & 0xFFFF), 1), m.Done())
        self.assertIsInstance(self.prepare(0, 2), m.Promise)

    def test_handed_over(self) -> None:
        """The floor goes along to the next view, for keys with and without cells."""
        self.write(5)
        for number in range(10, 10 + BARE):
            self.prepare(number, 9)
        self.replicas.seal(m.Seal(SHARD, 1, m.Ballot(1, YOU)))
        page = self.replicas.fetch(m.Fetch(SHARD, 1, b""))
        assert isinstance(page, m.Page)
        self.assertEqual(page.floor, self.replicas.shards[SHARD].floor)
        self.prepare(11, 9)
        other = Replicas(THIRD, 1, MemoryReplicaStore(), Runtime(Random(1)), lambda key, record: True)
        other.install(YOU, m.Install(SHARD, 2, (THIRD,), (), 0, True, 1, m.Floor(m.Ballot(9, YOU), 4)))
        self.assertEqual(other.prepare(m.Prepare(SHARD, 2, key(5), m.Ballot(9, YOU))), m.Refused(m.Ballot(9, YOU)))
        self.assertEqual(other.prepare(m.Prepare(SHARD, 2, key(5), m.Ballot(10, YOU))), m.Promise(m.NO_BALLOT, None, 0, 4))


class ForgetTests(AcceptorCase):
    """When a replica drops a register that is over."""

    quota = Quota()

    def forget(self, round: int, number: int = 1) -> m.Answer:  # noqa: A002
        """Ask it to."""
        return self.replicas.forget(m.Forget(SHARD, 1, key(number), m.Ballot(round, YOU)))

    def test_over(self) -> None:
        """Not while it lives, nor until it has been over for an hour."""
        self.write(1)
        for age, over in ((0.0, False), (TIME_TO_LIVE + 1, False), (TIME_TO_LIVE + GRACE, False), (TIME_TO_LIVE + GRACE + 1, True)):
            self.runtime.now = age
            self.prepare(1, 10 + int(age))
            self.assertEqual(self.replicas.over(self.replicas.shards[SHARD]) == [key(1)], over)
            self.assertEqual(self.forget(10 + int(age)) == m.Done(), over)
        self.assertEqual(self.rows(), 1)

    def test_promise_kept(self) -> None:
        """What was dropped leaves its promise behind; what was promised to somebody else since is not dropped."""
        self.write(1)
        self.runtime.now = 3 * 3600.0
        self.prepare(1, 5)
        self.assertEqual(self.forget(4), m.Refused(m.Ballot(5, YOU)))
        self.prepare(1, 6)
        self.assertEqual(self.forget(5), m.Refused(m.Ballot(6, YOU)))
        self.assertEqual(self.forget(6), m.Done())
        self.replicas = self.life()
        self.assertEqual(self.accept(1, self.record(1), 5), m.Refused(m.Ballot(6, YOU)))
        self.assertEqual(self.prepare(1, 6), m.Refused(m.Ballot(6, YOU)))
        self.assertEqual(self.prepare(1, 7), m.Promise(m.NO_BALLOT, None, 0, 1), "the version goes on")
        self.assertEqual(self.forget(6), m.Refused(m.Ballot(7, YOU)), "said twice")

    def test_sealed(self) -> None:
        """Nothing is dropped from a view that is being handed over."""
        self.write(1)
        self.runtime.now = 3 * 3600.0
        self.prepare(1, 5)
        self.replicas.seal(m.Seal(SHARD, 1, m.Ballot(1, YOU)))
        self.assertIsInstance(self.forget(5), m.Stale)


class NetTests(NetCase):
    """Whole nodes."""

    def keys(self, shard: int, count: int, kind: str = "many") -> list[bytes]:
        """Keys of one shard."""
        found = (key_of(kind, b"", str(number).encode()) for number in range(100_000))
        return [one for one in found if shard_of(one, NETWORK.shards) == shard][:count]

    def keepers(self, net: SimulatedNet, shard: int) -> list[SimulatedNode]:
        """Who has a copy."""
        return [machine for machine in net.running() if shard in machine.running.replicas.shards]

    def limit(self, machines: list[SimulatedNode], quota: Quota) -> None:
        """Have every node keep to other limits, at once."""
        for machine in machines:
            replicas = machine.running.replicas
            replicas._quota = quota
            for shard in replicas.shards.values():
                shard.room.__init__(quota, 1)  # type: ignore[misc]

    def test_refused(self) -> None:
        """Who has all it may is told so, from wherever it asks, at once; what it has it keeps and renews; others are not concerned."""
        net = self.net()
        machines = self.grow(net, 8)
        self.limit(machines, Quota(registers=5))
        keys = self.keys(3, 10)
        keepers = self.keepers(net, 3)
        greedy = next(machine for machine in machines if machine not in keepers)
        for one in (greedy, keepers[2]):
            mine = self.keys(3, 6, one.peer.name)
            for number in range(5):
                net.wait(one.submit(c.Create(mine[number], b"x", 36000)))
            begun = net.now
            error = self.failureOf(net, one.submit(c.Create(mine[5], b"x", 36000)))
            self.assertLess(net.now - begun, 3.0)
            self.assertIsInstance(error, QuotaExceeded)
            self.assertIn("has 5 registers in this part of the DHT, and may have no more: delete some", str(error))
            net.wait(one.submit(c.CompareAndSet(mine[0], 1, b"y", 36000)))
            self.assertIsNone(net.wait(machines[0].submit(c.Get(mine[5]))))
        other = next(machine for machine in machines if machine not in (greedy, keepers[2]))
        net.wait(other.submit(c.Create(keys[0], b"x", 36000)))

    def failureOf(self, net: SimulatedNet, future: object) -> BaseException | None:
        """Why an operation fails."""
        net.run(60, lambda: future.done)  # type: ignore[attr-defined]
        return future.error  # type: ignore[attr-defined,no-any-return]

    def test_flood(self) -> None:
        """A member that writes and deletes without end grows nobody's disk without end, and has room again once all that is over."""
        net = self.net()
        machines = self.grow(net, 6)
        self.limit(machines, Quota(registers=50))
        keys = self.keys(3, 200)
        outcomes = []
        for begin in range(0, 200, 20):
            creates = [machines[1].submit(c.Create(one, b"x", 3600)) for one in keys[begin : begin + 20]]
            net.run(30, lambda creates=creates: all(create.done for create in creates))  # type: ignore[misc]
            outcomes += [create.error for create in creates]
            for one, create in zip(keys[begin : begin + 20], creates, strict=True):
                if create.error is None:
                    net.wait(machines[1].submit(c.Delete(one, 1)))
        self.assertTrue(50 <= sum(error is None for error in outcomes) <= 70, "twenty at a time may cross the line together")
        self.assertEqual({type(error) for error in outcomes if error}, {QuotaExceeded})
        self.assertLess(max(len(machine.running.replicas.shards[3].cells) for machine in self.keepers(net, 3)), 75)
        net.run(TIME_TO_LIVE + GRACE + 3 * EVERY)
        self.assertEqual({len(machine.running.replicas.shards[3].cells) for machine in self.keepers(net, 3)}, {0})
        net.wait(machines[1].submit(c.Create(keys[0], b"y", 3600)))

    def test_missed_deletion(self) -> None:
        """A replica that missed a deletion brings nothing back: the others keep the mark until it has been told."""
        net = self.net()
        machines = self.grow(net, 6)
        (one,) = self.keys(3, 1)
        keepers = self.keepers(net, 3)
        first = keepers[0].running.replicas.shards[3].members[0]
        late = next(machine for machine in keepers if machine.ident != first)
        net.wait(machines[1].submit(c.Create(one, b"x", 10**6)))
        net.run(5)
        accept = late.running.coordinator._acceptor[m.Accept]
        late.running.coordinator._acceptor[m.Accept] = deaf
        net.wait(machines[1].submit(c.Delete(one, 1)))
        self.assertEqual(late.running.replicas.shards[3].cells[one].record.value, b"x")  # type: ignore[union-attr]
        late.running.coordinator._acceptor[m.Accept] = accept
        for _ in range(12):
            net.run(1000)
            for reader in machines:
                self.assertIsNone(net.wait(reader.submit(c.Get(one))))
        self.assertEqual({one in machine.running.replicas.shards[3].cells for machine in keepers}, {False})
        self.assertEqual(net.wait(machines[2].submit(c.Create(one, b"y", 3600))).version, 3, "versions go on all the same")

    def test_missing_member(self) -> None:
        """While a member is away nothing is dropped, for nobody knows what it holds."""
        net = self.net(network=replace(NETWORK, shards=1))
        machines = self.grow(net, 3)
        one = self.keys(3, 1)[0]
        net.wait(machines[1].submit(c.Create(one, b"x", 100)))
        net.run(5)
        away = next(machine for machine in machines if machine.ident == machines[0].running.replicas.shards[0].members[2])
        for machine in machines:
            machine.running.views.check = lambda: None  # type: ignore[method-assign]
        away.crash()
        net.run(3 * 3600)
        rest = [machine for machine in machines if machine is not away]
        self.assertEqual([one in machine.running.replicas.shards[0].cells for machine in rest], [True, True])

    def test_stranger(self) -> None:
        """Only members of a view propose in it, and only in their own name."""
        net = self.net()
        machines = self.grow(net, 8)
        keepers = self.keepers(net, 3)
        stranger = next(machine for machine in machines if machine not in keepers)
        (one,) = self.keys(3, 1)
        view = keepers[0].running.replicas.shards[3]
        for asker, proposer in ((stranger, stranger), (keepers[1], keepers[2])):
            ballot = m.Ballot(99, proposer.ident)
            for body in (
                m.Prepare(3, view.number, one, ballot),
                m.Accept(3, view.number, one, ballot, None, 0),
                m.Seal(3, view.number, ballot),
                m.Succeed(3, view.number, ballot, (asker.ident,)),
                m.Forget(3, view.number, one, ballot),
            ):
                error = self.failureOf(net, asker.submit(c.Ask(keepers[0].ident, body)))
                self.assertIsInstance(error, LocalMisuse)
        self.assertTrue(view.open)
        self.assertNotIn(one, view.cells)
