"""Break-glass: views without majority are founded anew by the authority's order, and by nobody else's."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random

import msgspec
from twisted.trial.unittest import TestCase

from ipop_tx.core import commands as c
from ipop_tx.core.dht.records import key_of, lease_key
from ipop_tx.core.dht.recovery import Founded, Loss
from ipop_tx.core.dht.replica import Replicas, genesis
from ipop_tx.core.events import ViewsFounded
from ipop_tx.core.ident import shard_of
from ipop_tx.core.runtime import Runtime
from ipop_tx.errors import IpopError, LocalMisuse, Unavailable, Unreachable
from ipop_tx.identity.store import MemoryReplicaStore
from ipop_tx.simulation.network import NETWORK, SimulatedNet, SimulatedNode
from ipop_tx.values import Ident
from ipop_tx.wire import messages as m
from tests.net import NetCase, by_authority, heal, split
from tests.test_core_quota import deaf

ME, YOU, THIRD = (bytes([digit]) * 20 for digit in (1, 2, 3))
WALL = 1_800_000_000


def ordered(members: Iterable[Ident], shards: Iterable[int], number: int = WALL, nonce: int = 1) -> m.Order:
    """An order that the authority has signed."""
    return by_authority(m.Order(NETWORK.ident, number, tuple(members), tuple(shards), nonce.to_bytes(16, "big"), WALL))


class ReplicaTests(TestCase):
    """One replica that is told of an order."""

    def setUp(self) -> None:
        self.store = MemoryReplicaStore()
        for row in genesis(ME, 4):
            self.store.put(*row)
        self.replicas = self.life()
        self.record = m.Record(YOU, 1, 3600, b"x", b"", b"")
        self.ballot = m.Ballot(1, YOU)

    def life(self) -> Replicas:
        """The replica as it comes up from its disk."""
        self.store.commit()
        return Replicas(ME, 4, self.store, Runtime(Random(1)), lambda key, record: True)

    def test_over(self) -> None:
        """Nothing happens in the old view any more: no write, no change, no installation of what follows it. A restart changes nothing."""
        key = bytes(20)
        self.assertEqual(self.replicas.accept(m.Accept(0, 1, key, self.ballot, self.record, 0)), m.Done())
        self.assertTrue(self.replicas.obey(ordered([YOU], [0, 2])))
        for _ in range(2):
            over = m.Stale(0, WALL, (YOU,), False)
            for answer in (
                self.replicas.peek(m.Peek(0, 1, key)),
                self.replicas.prepare(m.Prepare(0, 1, key, m.Ballot(9, ME))),
                self.replicas.accept(m.Accept(0, 1, key, m.Ballot(9, ME), self.record, 0)),
                self.replicas.seal(m.Seal(0, 1, m.Ballot(9, ME))),
                self.replicas.succeed(m.Succeed(0, 1, m.Ballot(9, ME), (ME,))),
                self.replicas.fetch(m.Fetch(0, 1, b"")),
                self.replicas.install(THIRD, m.Install(0, 2, (ME, THIRD), (), 0, True, 1)),
            ):
                self.assertEqual(answer, over)
            self.assertTrue(self.replicas.superseded(self.replicas.shards[0]))
            self.assertFalse(self.replicas.superseded(self.replicas.shards[1]))
            (cell,) = self.replicas.salvage(m.Salvage(0, WALL, b"")).cells  # type: ignore[union-attr]
            self.assertEqual((cell.key, cell.record), (key, self.record))
            self.assertIsInstance(self.replicas.prepare(m.Prepare(1, 1, key, m.Ballot(9, ME))), (m.Promise, m.Refused))
            self.replicas = self.life()

    def test_only_later(self) -> None:
        """An order for a view that is past is no news, nor a second one with the same number; a later one is."""
        self.assertTrue(self.replicas.obey(ordered([ME], [0])))
        self.assertFalse(self.replicas.obey(ordered([ME], [0])))
        self.assertFalse(self.replicas.obey(ordered([YOU], [0], nonce=2)))
        self.assertEqual(self.replicas.install(YOU, m.Install(0, WALL, (ME,), (), 0, True, 1)), m.Done())
        self.assertEqual(self.replicas.install(YOU, m.Install(0, WALL + 1, (ME, YOU), (), 0, True, 1)), m.Done())
        self.assertFalse(self.replicas.obey(ordered([YOU], [0], WALL + 1)))
        self.assertTrue(self.replicas.obey(ordered([YOU], [0], WALL + 2)))
        self.assertFalse(self.replicas.obey(ordered([YOU], [99])), "there is no such shard")

    def test_its_members_only(self) -> None:
        """Under the order's number only the order's members are installed."""
        self.replicas.obey(ordered([ME, YOU], [0]))
        self.assertIsInstance(self.replicas.install(YOU, m.Install(0, WALL, (ME, THIRD), (), 0, True, 1)), m.Stale)
        self.assertEqual(self.replicas.install(YOU, m.Install(0, WALL, (ME, YOU), (), 0, True, 1)), m.Done())

    def test_salvage_needs_the_order(self) -> None:
        """A copy that is in use is not given away as if it were closed."""
        self.assertIsInstance(self.replicas.salvage(m.Salvage(0, WALL, b"")), m.Stale)


class RecoveryTests(NetCase):
    """Whole nodes."""

    def setUp(self) -> None:
        self.founded: dict[SimulatedNode, list[ViewsFounded]] = {}

    def keys(self, count: int) -> list[bytes]:
        """Some registers, all over the shards."""
        return [key_of("recovery", b"", str(number).encode()) for number in range(count)]

    def noted(self, net: SimulatedNet) -> SimulatedNet:
        """Keep the orders that nodes report."""

        def note(machine: SimulatedNode, event: object) -> None:
            if isinstance(event, ViewsFounded):
                self.founded.setdefault(machine, []).append(event)

        net.on_event = note
        return net

    def recover(self, net: SimulatedNet, machine: SimulatedNode, members: Iterable[SimulatedNode]) -> tuple[list[Loss], list[Founded]]:
        """What the authority does at `machine`."""
        losses: list[Loss] = net.wait(machine.submit(c.Survey()))
        order = ordered([member.ident for member in members], [loss.shard for loss in losses], WALL + int(net.now))
        return losses, net.wait(machine.submit(c.CarryOut(order)), 120)

    def test_majority_lost(self) -> None:
        """Three of five die for ever: nothing can be written, until the authority orders it; what the others held is all there."""
        net = self.noted(self.net())
        machines = self.grow(net, 5)
        keys = self.keys(60)
        written = self.all_done(net, [machines[0].submit(c.Create(key, key, 10**6)) for key in keys])
        net.run(5)
        for victim in machines[2:]:
            victim.crash()
        net.run(30)
        self.assertIsInstance(self.failure(net, machines[0].submit(c.Get(keys[0]))), (Unavailable, Unreachable))
        losses, founded = self.recover(net, machines[0], machines[:2])
        self.assertEqual([loss.shard for loss in losses], list(range(NETWORK.shards)))
        self.assertEqual({(len(loss.members), len(loss.reached), len(loss.copies)) for loss in losses}, {(5, 2, 2)})
        self.assertEqual({(one.copies, one.works) for one in founded}, {(2, True)})
        self.assertEqual(self.all_done(net, [machines[1].submit(c.Get(key)) for key in keys]), written)
        net.wait(machines[1].submit(c.Create(key_of("new", b"", b""), b"y", 3600)))
        self.assertEqual(net.wait(machines[0].submit(c.Survey())), [])

    def failure(self, net: SimulatedNet, future: object) -> BaseException | None:
        """Why an operation fails."""
        net.run(60, lambda: future.done)  # type: ignore[attr-defined]
        return future.error  # type: ignore[attr-defined,no-any-return]

    def test_two_nodes(self) -> None:
        """Of two nodes one dies for ever: the other goes on alone, and keeps its address."""
        net = self.net()
        machines = self.grow(net, 2)
        net.run(30)
        machines[0].submit(c.KeepLease(None, None, 86400.0))
        self.becomes(net, lambda: machines[0].running.leases.own.address is not None, 30, "an address")
        address = machines[0].running.leases.own.address or b""
        machines[1].crash()
        net.run(60)
        self.assertIsInstance(self.failure(net, machines[0].submit(c.RenewLease())), IpopError)
        self.recover(net, machines[0], machines[:1])
        net.wait(machines[0].submit(c.RenewLease()))
        self.assertEqual(machines[0].running.leases.own.address, address)
        third = net.add()
        net.wait(third.start(machines[0]))
        net.run(30)
        self.assertEqual(net.wait(third.submit(c.Get(lease_key(NETWORK, address)))).owner, machines[0].ident)

    def test_they_come_back(self) -> None:
        """The lost ones come back after all, with their old disks: their copies are void, and they take part in the new views."""
        net = self.noted(self.net())
        machines = self.grow(net, 5)
        key = self.keys(1)[0]
        net.wait(machines[0].submit(c.Create(key, b"before", 10**6)))
        net.run(5)
        lost = machines[2:]
        for victim in lost:
            victim.crash()
        net.run(30)
        self.recover(net, machines[0], machines[:2])
        net.wait(machines[0].submit(c.CompareAndSet(key, 1, b"after", 10**6)))
        for victim in lost:
            victim.start(machines[0])
        readings = []
        for _ in range(60):
            net.run(1)
            reads = [victim.submit(c.Get(key)) for victim in lost if victim.running.ring.joined]
            net.run(3, lambda reads=reads: all(read.done for read in reads))  # type: ignore[misc]
            readings += [read.result().value for read in reads if read.done and read.error is None]
        self.assertEqual(set(readings), {b"after"})
        self.assertGreater(len(readings), 50)
        for machine in lost:
            self.assertEqual(len(self.founded[machine]), 1)
            self.assertTrue(all(shard.number >= WALL for shard in machine.running.replicas.shards.values()))

    def test_they_come_back_together(self) -> None:
        """The lost ones were only cut off, and had a majority: both sides wrote. The order gives that up; then there is one again."""
        net = self.noted(self.net(3))
        machines = self.grow(net, 5)
        key = self.keys(1)[0]
        net.wait(machines[0].submit(c.Create(key, b"before", 10**6)))
        net.run(5)
        split(net, machines[:2])
        net.run(40)
        self.recover(net, machines[0], machines[:2])
        net.wait(machines[0].submit(c.CompareAndSet(key, 1, b"here", 10**6)))
        other = key_of("there", b"", b"")
        net.wait(machines[3].submit(c.Create(other, b"there", 10**6)))
        heal(net)
        self.heals(net, 300)
        net.run(60)
        self.assertEqual([net.wait(machine.submit(c.Get(key))).value for machine in machines], [b"here"] * 5)
        self.assertEqual({net.wait(machine.submit(c.Get(other))) for machine in machines}, {None}, "lost, as was said")
        for index in range(NETWORK.shards):
            numbers = {machine.running.replicas.newest(index).number for machine in machines}
            self.assertEqual(len(numbers), 1)
            self.assertGreaterEqual(min(numbers), WALL)

    def test_nobody_else(self) -> None:
        """An order that the authority has not signed, or for another network, is refused by everybody, also where it is carried out."""
        net = self.noted(self.net())
        machines = self.grow(net, 4)
        good = ordered([machines[1].ident], range(32))
        for forged in (
            msgspec.structs.replace(good, signature=b"x" * 64),
            msgspec.structs.replace(good, members=(machines[2].ident,)),
            msgspec.structs.replace(good, number=WALL + 1),
            msgspec.structs.replace(good, shards=(1,)),
            msgspec.structs.replace(good, nonce=bytes(16)),
            msgspec.structs.replace(good, time=0),
            msgspec.structs.replace(good, network=bytes(20)),
        ):
            self.assertIsInstance(self.failure(net, machines[1].submit(c.Ask(machines[0].ident, forged))), LocalMisuse)
            self.assertIsInstance(self.failure(net, machines[1].submit(c.CarryOut(forged))), LocalMisuse)
        self.assertEqual([machine.running.replicas.orders for machine in machines], [{}] * 4)

    def test_interrupted(self) -> None:
        """Whoever carries it out dies half way: the next order finishes it, with nothing lost that was left."""
        for cut_at in (0.05, 0.15, 0.3, 0.6):
            net = self.net()
            machines = self.grow(net, 5)
            keys = self.keys(20)
            written = self.all_done(net, [machines[0].submit(c.Create(key, key, 10**6)) for key in keys])
            net.run(5)
            for victim in machines[2:]:
                victim.crash()
            net.run(30)
            losses = net.wait(machines[0].submit(c.Survey()))
            first = ordered([machine.ident for machine in machines[:2]], [loss.shard for loss in losses])
            machines[0].submit(c.CarryOut(first))
            net.run(cut_at)
            machines[0].crash()
            net.run(5)
            net.wait(machines[0].start(machines[1]))
            net.run(20)
            self.recover(net, machines[0], machines[:2])
            self.assertEqual(self.all_done(net, [machines[1].submit(c.Get(key)) for key in keys]), written)

    def test_what_is_lost(self) -> None:
        """A write that only the lost members had is gone; it is older then, not torn."""
        net = self.net()
        machines = self.grow(net, 5)
        (key,) = self.keys(1)
        net.wait(machines[0].submit(c.Create(key, b"old", 10**6)))
        net.run(5)
        index = shard_of(key, NETWORK.shards)
        members = machines[0].running.replicas.shards[index].members
        survivors = [machine for machine in machines if machine.ident in members[:2]]
        for survivor in survivors:
            survivor.running.coordinator._acceptor[m.Accept] = deaf
        writer = machines[0]
        net.wait(writer.submit(c.CompareAndSet(key, 1, b"new", 10**6)))
        for machine in machines:
            if machine not in survivors:
                machine.crash()
        net.run(30)
        for survivor in survivors:
            survivor.running.coordinator._acceptor[m.Accept] = survivor.running.replicas.accept
        self.recover(net, survivors[0], survivors)
        self.assertEqual(net.wait(survivors[1].submit(c.Get(key))).value, b"old")
