"""Registers as clients on a simulated net see them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import msgspec

from ipop_tx.core import commands as c
from ipop_tx.core.dht.records import key_of
from ipop_tx.core.dht.replica import REPLICAS
from ipop_tx.core.ident import shard_of
from ipop_tx.errors import Conflict, IpopError, LocalMisuse, Unavailable
from ipop_tx.simulation.network import NETWORK, SimulatedNet, SimulatedNode
from ipop_tx.wire import messages as m
from tests.net import NetCase, heal, split

KEY = key_of("test", b"", b"a register")


def keepers(net: SimulatedNet, key: bytes) -> list[SimulatedNode]:
    """The running members of the newest view of a key's shard."""
    index = shard_of(key, net.network.shards)
    copies = [machine.running.replicas.shards[index] for machine in net.running() if index in machine.running.replicas.shards]
    members = max(copies, key=lambda shard: shard.number).members
    return [machine for machine in net.running() if machine.ident in members]


class RegisterTests(NetCase):
    """A calm net of eight nodes, then trouble."""

    def setUp(self) -> None:
        self.sim = self.net(1)
        self.machines = self.grow(self.sim, 8)
        self.keepers = keepers(self.sim, KEY)
        self.strangers = [machine for machine in self.machines if machine not in self.keepers]
        self.assertEqual(len(self.keepers), REPLICAS)

    def do(self, machine: SimulatedNode, command: object, seconds: float = 60.0) -> m.Record:
        """One operation to its end."""
        record: m.Record = self.sim.wait(machine.submit(command), seconds)
        return record

    def value(self, machine: SimulatedNode) -> bytes | None:
        """What a node reads."""
        record = self.do(machine, c.Get(KEY))
        return record.value if record else None

    # --- the four operations ---------------------------------------------------------------------

    def test_empty(self) -> None:
        """A register never written is empty, wherever one asks."""
        self.assertEqual([self.value(machine) for machine in self.machines], [None] * 8)

    def test_create(self) -> None:
        """What one creates, everybody reads at once; a second create names the holder and its version."""
        written = self.do(self.machines[3], c.Create(KEY, b"x", 3600))
        self.assertEqual((written.owner, written.version, written.value), (self.machines[3].ident, 1, b"x"))
        self.assertEqual([self.do(machine, c.Get(KEY)) for machine in self.machines], [written] * 8)
        error = self.assertRaises(Conflict, self.do, self.machines[4], c.Create(KEY, b"y", 3600))
        self.assertEqual(error.version, 1)
        self.assertIn(self.machines[3].ident.hex()[:8], str(error))

    def test_one_winner(self) -> None:
        """Fifty creates at once under loss: one wins, the others are told who did."""
        for number in range(5):
            self.one_winner(key_of("test", b"", bytes([number])))

    def one_winner(self, key: bytes) -> None:
        """Once."""
        self.sim.loss = 0.1
        creates = [self.sim.rng.choice(self.machines).submit(c.Create(key, str(number).encode(), 3600)) for number in range(50)]
        self.sim.run(60, lambda: all(create.done for create in creates))
        self.sim.loss = 0.0
        won = [create.result().value for create in creates if create.error is None]
        self.assertEqual(len(won), 1)
        self.assertEqual({type(create.error) for create in creates if create.error}, {Conflict})
        self.assertEqual(self.do(self.machines[0], c.Get(key)).value, won[0])

    def test_chain(self) -> None:
        """Versions follow each other; only the current one may be replaced, and only by its owner."""
        owner, other = self.machines[2], self.machines[5]
        self.do(owner, c.Create(KEY, b"0", 3600))
        for version in range(1, 20):
            written = self.do(owner, c.CompareAndSet(KEY, version, str(version).encode(), 3600))
            self.assertEqual((written.version, self.value(other)), (version + 1, str(version).encode()))
        for machine, version in ((owner, 19), (owner, 21), (other, 20)):
            error = self.assertRaises(Conflict, self.do, machine, c.CompareAndSet(KEY, version, b"no", 3600))
            self.assertEqual(error.version, 20)
            self.assertRaises(Conflict, self.do, machine, c.Delete(KEY, version))
        self.assertEqual(self.value(other), b"19")

    def test_absent(self) -> None:
        """There is nothing to replace in an empty register; emptying it is done already."""
        self.assertIn("is empty", str(self.assertRaises(Conflict, self.do, self.machines[1], c.CompareAndSet(KEY, 1, b"x", 3600))))
        self.do(self.machines[1], c.Delete(KEY, 1))

    def test_delete(self) -> None:
        """Deleted is empty; whoever creates it next owns it, and its version goes on."""
        owner, other = self.machines[2], self.machines[5]
        self.do(owner, c.Create(KEY, b"x", 3600))
        self.do(owner, c.Delete(KEY, 1))
        self.assertIsNone(self.value(other))
        self.assertEqual(self.do(other, c.Create(KEY, b"y", 3600)).version, 3)
        self.assertRaises(Conflict, self.do, owner, c.CompareAndSet(KEY, 1, b"z", 3600))
        self.assertEqual(self.value(owner), b"y")

    def test_late_duplicate(self) -> None:
        """A write that a second coordinator still carries about does not revive what has been deleted since."""
        owner, keeper = self.strangers[0], self.keepers[1]
        written = self.do(owner, c.Create(KEY, b"x", 3600))
        self.do(owner, c.Delete(KEY, 1))
        late = self.do(owner, c.Ask(keeper.ident, m.Write(KEY, 0, written)))
        self.assertEqual(late, m.Current(False, None, 2))
        self.assertIsNone(self.value(owner))

    def test_expiry(self) -> None:
        """A record lives for its time and not much longer; then the register may be created anew."""
        self.do(self.machines[2], c.Create(KEY, b"x", 100))
        self.sim.run(99)
        self.assertEqual(self.value(self.machines[4]), b"x")
        self.sim.run(2)
        self.assertIsNone(self.value(self.machines[4]))
        self.assertEqual(self.do(self.machines[5], c.Create(KEY, b"y", 100)).version, 2)

    def test_expiry_and_renewal(self) -> None:
        """Replacing a record begins its time anew."""
        self.do(self.machines[2], c.Create(KEY, b"x", 100))
        self.sim.run(60)
        self.do(self.machines[2], c.CompareAndSet(KEY, 1, b"y", 100))
        self.sim.run(60)
        self.assertEqual(self.value(self.machines[4]), b"y")

    def test_sizes(self) -> None:
        """1024 bytes go in, 1025 and none do not; a large one travels in pieces."""
        self.assertEqual(self.do(self.machines[2], c.Create(KEY, bytes(1024), 100)).value, bytes(1024))
        self.assertEqual(self.value(self.machines[5]), bytes(1024))
        for size in (0, 1025):
            future = self.machines[2].submit(c.Create(KEY, bytes(size), 100))
            self.assertIsInstance(future.error, LocalMisuse)

    # --- who may -----------------------------------------------------------------------------------

    def test_forged(self) -> None:
        """A record without its owner's signature, or in somebody else's name, is refused at the door."""
        signed = self.machines[2].running.dht.signer.record(KEY, 1, 3600, b"x")
        forged = msgspec.structs.replace(signed, value=b"y")
        for sender, record in ((self.machines[2], forged), (self.machines[3], signed)):
            error = self.assertRaises(LocalMisuse, self.do, sender, c.Ask(self.other_keeper(sender).ident, m.Write(KEY, 0, record)))
            self.assertIn("only by its owner", str(error))
        self.assertIsNone(self.value(self.machines[4]))

    def other_keeper(self, machine: SimulatedNode) -> SimulatedNode:
        """A member of the view that is not this one."""
        return next(keeper for keeper in self.keepers if keeper is not machine)

    # --- replicas that fail --------------------------------------------------------------------------

    def test_two_of_five(self) -> None:
        """Two replicas die at the moment of the answer; all that was answered is there, at once and after the views have changed."""
        keys = [key for number in range(400) if shard_of(key := key_of("two", b"", str(number).encode()), 32) == shard_of(KEY, 32)]
        self.assertGreater(len(keys), 5)
        written = self.all_done(self.sim, [self.strangers[0].submit(c.Create(key, key, 3600)) for key in keys])
        for victim in self.keepers[:2]:
            victim.crash()
        for _ in range(2):
            read = self.all_done(self.sim, [self.strangers[1].submit(c.Get(key)) for key in keys])
            self.assertEqual(read, written)
            self.sim.run(60)
        self.assertEqual(len(keepers(self.sim, KEY)), REPLICAS)

    def test_no_majority(self) -> None:
        """With three of five gone an operation says so, in numbers, and does nothing; it is well again when one comes back."""
        self.do(self.strangers[0], c.Create(KEY, b"x", 3600))
        for victim in self.keepers[:3]:
            victim.crash()
        for command in (c.Get(KEY), c.CompareAndSet(KEY, 1, b"y", 3600)):
            error = self.assertRaises(Unavailable, self.do, self.strangers[0], command, 120.0)
            self.assertEqual((error.reached, error.needed, error.replicas), (2, 3, 5))
            self.assertIn("2 of 5 replicas reached", str(error))
        self.sim.run(60)
        self.assertIn((2, 3, 5), self.keepers[3].running.views.shortages())
        self.keepers[0].start(self.strangers[0])
        self.sim.run(60)
        self.assertEqual([machine.running.views.shortages() for machine in self.sim.running()], [[]] * len(self.sim.running()))
        self.assertIn(self.value(self.strangers[1]), (b"x", b"y"))
        self.assertEqual(self.value(self.strangers[0]), self.value(self.strangers[2]))

    def test_minority_side(self) -> None:
        """In a net that is cut, one side at most goes on; nothing that it wrote is missing afterwards."""
        self.do(self.keepers[4], c.Create(KEY, b"x", 3600))
        split(self.sim, self.keepers[:2])
        error = self.assertRaises(IpopError, self.do, self.keepers[0], c.Get(KEY), 120.0)
        self.assertIsInstance(error, Unavailable)
        self.do(self.keepers[4], c.CompareAndSet(KEY, 1, b"y", 3600), 120.0)
        heal(self.sim)
        self.heals(self.sim, 300)
        self.sim.run(20)
        self.assertEqual([self.value(machine) for machine in self.machines], [b"y"] * 8)

    def test_all_restart(self) -> None:
        """A power cut everywhere: the disks keep everything, and the time that a record has left, however late it is."""
        self.sim.run(5000)
        self.do(self.machines[2], c.Create(KEY, b"x", 1000))
        for machine in self.machines:
            machine.crash()
        self.sim.run(30)
        joins = [machine.start(*self.machines[:3]) for machine in self.machines]
        self.all_done(self.sim, joins)
        self.heals(self.sim, 300)
        self.assertEqual(self.value(self.machines[7]), b"x")


class MembershipTests(NetCase):
    """Views follow the ring."""

    def views(self, net: SimulatedNet) -> Iterable[tuple[int, list[bytes], list[bytes]]]:
        """(shard, members of its newest view, members that it should have)."""
        ordered = sorted(machine.ident for machine in net.running())
        for index in range(net.network.shards):
            copies = [machine.running.replicas.shards.get(index) for machine in net.running()]
            newest = max((shard for shard in copies if shard), key=lambda shard: shard.number)
            start = net.running()[0].running.replicas.start_of(index)
            around = [ident for ident in ordered if ident >= start] + [ident for ident in ordered if ident < start]
            yield index, list(newest.members), around[:REPLICAS]

    def test_founder_alone(self) -> None:
        """A network of one keeps everything itself."""
        net = self.net()
        (founder,) = self.grow(net, 1)
        net.wait(founder.submit(c.Create(KEY, b"x", 100)))
        self.assertEqual(net.wait(founder.submit(c.Get(KEY))).value, b"x")

    def test_views_settle(self) -> None:
        """After joins, crashes and a leave each view has the first nodes after its shard's beginning, and nobody else keeps a copy."""
        net = self.net()
        machines = self.grow(net, 12)
        machines[3].crash()
        net.run(60)
        net.wait(machines[5].submit(c.Leave()))
        machines[5].crash()
        net.run(90)
        for index, members, expected in self.views(net):
            self.assertEqual(members, expected, f"shard {index}")
            copies = {machine.ident for machine in net.running() if index in machine.running.replicas.shards}
            self.assertEqual(copies, set(expected), f"copies of shard {index}")

    def test_leave_hands_over(self) -> None:
        """One after another leaves, down to one; what was written stays to the last."""
        net = self.net()
        machines = self.grow(net, 6)
        net.wait(machines[0].submit(c.Create(KEY, b"x", 36000)))
        for leaver in machines[:5]:
            net.wait(leaver.submit(c.Leave()), 120)
            leaver.crash()
            net.run(30)
            self.assertEqual(net.wait(machines[5].submit(c.Get(KEY))).value, b"x")

    def test_leave_while_another_joins(self) -> None:
        """However far the newcomer's views are: who leaves just then takes nothing with it."""
        for step in range(12):
            net = self.net(step)
            machines = self.grow(net, 3)
            net.wait(machines[0].submit(c.Create(KEY, b"x", 36000)))
            newcomer = net.add()
            net.wait(newcomer.start(*machines))
            net.run(0.1 * step)
            for leaver in machines:
                self.assertEqual(net.wait(leaver.submit(c.Leave())), 0, f"shards kept by a node that left after {step / 10} s")
                leaver.crash()
                net.run(2.0)
            self.assertEqual(net.wait(newcomer.submit(c.Get(KEY))).value, b"x")

    def test_last_one_leaves(self) -> None:
        """Nobody is there to take over: all of it stays on the disk, and is there again when the node comes back."""
        net = self.net()
        (founder,) = self.grow(net, 1)
        net.wait(founder.submit(c.Create(KEY, b"x", 36000)))
        self.assertEqual(net.wait(founder.submit(c.Leave()), 2.0), net.network.shards)
        founder.crash()
        net.wait(founder.start())
        self.assertEqual(net.wait(founder.submit(c.Get(KEY))).value, b"x")

    def test_many_registers_hand_over(self) -> None:
        """More than one page of cells moves to a newcomer, none is lost."""
        net = self.net(network=replace(NETWORK, shards=1))
        machines = self.grow(net, 3)
        keys = [key_of("many", b"", str(number).encode()) for number in range(200)]
        written = self.all_done(net, [machines[0].submit(c.Create(key, bytes(500), 36000)) for key in keys])
        newcomer = net.add()
        net.wait(newcomer.start(machines[0]))
        net.run(60)
        shard = newcomer.running.replicas.shards[0]
        self.assertEqual(sorted(shard.cells), sorted(keys))
        self.assertEqual(self.all_done(net, [newcomer.submit(c.Get(key)) for key in keys]), written)

    def test_interrupted_installation(self) -> None:
        """A changer that cannot reach the next view's members goes on when it can; nobody gives its copy up before."""
        net = self.net(network=replace(NETWORK, shards=1))
        founder = net.founder()
        net.wait(founder.start())
        net.wait(founder.submit(c.Create(KEY, b"x", 36000)))
        second = net.add()
        net.wait(second.start(founder))
        self.assertTrue(
            net.run(30, lambda: founder.running.replicas.shards[0].number == 2), "the founder installs view 2 with itself first"
        )
        self.assertNotIn(0, second.running.replicas.shards)
        net.reachable = lambda one, other: False
        net.run(25)
        heal(net)
        net.run(60)
        self.assertEqual(net.wait(second.submit(c.Get(KEY))).value, b"x")

    def test_changer_dies_half_way(self) -> None:
        """The changer crashes when only it and one other have the next view: neither view has a majority, until that one hands it on."""
        net = self.net(network=replace(NETWORK, shards=1))
        machines = self.grow(net, 3)
        net.wait(machines[0].submit(c.Create(KEY, b"x", 36000)))
        number = machines[0].running.replicas.shards[0].number + 1
        newcomer = net.add()
        newcomer.start(machines[0])
        pair: list[SimulatedNode] = []

        def cut(one: SimulatedNode, other: SimulatedNode) -> bool:
            """From the moment at which the changer has the next view, it reaches only one of the others."""
            if not pair and self.having(machines, number):
                changer = self.having(machines, number)[0]
                pair.extend([changer, next(machine for machine in machines if machine is not changer)])
            return not pair or {one.number, other.number} == {machine.number for machine in pair}

        net.reachable = cut
        self.assertTrue(net.run(60, lambda: len(self.having(machines, number)) == 2))
        pair[0].crash()
        heal(net)
        self.assertEqual(len(self.having([*machines, newcomer], number)), 1)
        net.run(120)
        for machine in net.running():
            self.assertEqual(net.wait(machine.submit(c.Get(KEY))).value, b"x")

    def having(self, machines: Iterable[SimulatedNode], number: int) -> list[SimulatedNode]:
        """Who of the machines has its copy of view `number` of shard 0."""
        copies = [(machine, machine.running.replicas.shards.get(0)) for machine in machines if machine.node]
        return [machine for machine, shard in copies if shard is not None and shard.number == number and shard.open]
