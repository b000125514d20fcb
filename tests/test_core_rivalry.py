"""One address, two nodes: whom the authority assigned it to, who came later, who is told, and how others learn of it."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

from ipop_tx.core import commands as c
from ipop_tx.core.dht.records import lease_key
from ipop_tx.core.events import AddressMoved, LeaseContested, LeaseGained, LeaseLost
from ipop_tx.core.leases.lease import RETRY_ASSIGNED
from ipop_tx.core.leases.rivalry import CHECKED, RECENT, TOLD
from ipop_tx.errors import Conflict
from ipop_tx.simulation.network import NETWORK, PlainSigner, SimulatedNet, SimulatedNode
from ipop_tx.wire import messages as m
from tests.net import NetCase, heal, split

WANTED = IPv4Address("10.128.3.4").packed
DAY = 86400.0


class RivalCase(NetCase):
    """Nets whose events are kept."""

    def setUp(self) -> None:
        self.events: list[tuple[float, SimulatedNode, object]] = []

    def noted(self, net: SimulatedNet) -> SimulatedNet:
        """Keep what the nodes of a net tell."""
        net.on_event = lambda machine, event: self.events.append((net.now, machine, event))
        return net

    def told(self, machine: SimulatedNode, kind: type) -> list[object]:
        """The events of a type that a node told."""
        return [event for _, who, event in self.events if who is machine and isinstance(event, kind)]

    def assign(self, machine: SimulatedNode, address: bytes, issued: int = 1) -> None:
        """Give a machine another certificate; it shows it from its next life on."""
        machine.signer = PlainSigner(machine.ident, address, issued)

    def reborn(self, net: SimulatedNet, machine: SimulatedNode, through: SimulatedNode) -> None:
        """A machine restarts."""
        machine.crash()
        net.wait(machine.start(through))

    def keep(self, net: SimulatedNet, machine: SimulatedNode, held: bytes | None = None, ttl: float = DAY) -> bytes:
        """Have an address kept; gives it."""
        machine.submit(c.KeepLease(held, None, ttl))
        self.becomes(net, lambda: machine.running.leases.own.address is not None, 30, "an address")
        return self.address(machine) or b""

    def address(self, machine: SimulatedNode) -> bytes | None:
        """What a machine believes to hold."""
        return machine.running.leases.own.address

    def owner(self, net: SimulatedNet, address: bytes, asker: SimulatedNode) -> bytes | None:
        """Whose the register is."""
        record = net.wait(asker.submit(c.Get(lease_key(NETWORK, address))))
        return record.owner if record else None


class AssignedTests(RivalCase):
    """An address that stands in a certificate."""

    def test_first_of_all(self) -> None:
        """It is taken before the one held and the one wished for, also by a node that holds another already."""
        net = self.noted(self.net())
        machines = self.grow(net, 5)
        other = self.keep(net, machines[2])
        self.assign(machines[2], WANTED)
        self.reborn(net, machines[2], machines[0])
        self.assertEqual(self.keep(net, machines[2], held=other), WANTED)

    def test_squatter(self) -> None:
        """Who holds it without right learns so within a second, takes another, and both hear of it; the record shows the proof."""
        net = self.noted(self.net())
        machines = self.grow(net, 6)
        squatter, owner = machines[2], machines[4]
        self.keep(net, squatter, held=WANTED)
        self.assertEqual(self.address(squatter), WANTED)
        self.assign(owner, WANTED)
        self.reborn(net, owner, machines[0])
        net.run(5)
        self.keep(net, owner)
        self.assertEqual(self.address(owner), WANTED)
        begun = net.now
        self.becomes(net, lambda: self.address(squatter) not in (None, WANTED), 5, "another address")
        (lost,) = self.told(squatter, LeaseLost)
        moment = next(when for when, _, event in self.events if event is lost)
        self.assertLess(moment - begun, 1.0)
        self.assertIn("the authority has assigned it to that one", lost.reason)  # type: ignore[attr-defined]
        self.assertIsInstance(self.told(squatter, LeaseGained)[-1], LeaseGained)
        net.run(5)
        self.assertEqual(self.told(owner, LeaseContested), [LeaseContested(WANTED, squatter.ident)])
        self.assertIn(f"node {squatter.ident.hex()[:8]} used 10.128.3.4 too", owner.running.rivalry.recent()[-1])
        self.assertIn(f"10.128.3.4 was given to node {owner.ident.hex()[:8]}", squatter.running.rivalry.recent()[-1])
        net.run(RECENT + 1)
        self.assertEqual(owner.running.rivalry.recent() + squatter.running.rivalry.recent(), [])
        record = net.wait(machines[1].submit(c.Get(lease_key(NETWORK, WANTED))))
        self.assertEqual(record.signer, owner.signer.credential)

    def test_squatter_away(self) -> None:
        """A squatter that cannot be told now is told when it is back, long before its renewal would show it."""
        net = self.noted(self.net())
        machines = self.grow(net, 8)
        squatter, owner = machines[2], machines[4]
        self.keep(net, squatter, held=WANTED)
        net.run(5)
        split(net, [squatter])
        net.run(20)
        self.assign(owner, WANTED)
        self.reborn(net, owner, machines[0])
        net.run(10)
        self.keep(net, owner)
        net.run(100)
        self.assertEqual((self.address(squatter), self.address(owner)), (WANTED, WANTED))
        heal(net)
        took = self.becomes(net, lambda: self.address(squatter) not in (None, WANTED), 60, "another address")
        self.assertLessEqual(took, 30)
        self.assertEqual(len(self.told(squatter, LeaseLost)), 1)

    def test_without_right(self) -> None:
        """Nobody else takes over a held address: not without assignment, not with that of another address, not with an older one."""
        net = self.noted(self.net())
        machines = self.grow(net, 6)
        holder = machines[1]
        self.assign(holder, WANTED, issued=5)
        self.reborn(net, holder, machines[0])
        net.run(5)
        self.keep(net, holder)
        key = lease_key(NETWORK, WANTED)
        for machine, assigned, issued in ((machines[2], b"", 9), (machines[3], b"\x0a\x80\x03\x05", 9), (machines[4], WANTED, 4)):
            self.assign(machine, assigned, issued)
            self.reborn(net, machine, machines[0])
            net.run(5)
            for proof in (machine.signer.signer, machine.signer.credential):
                record = machine.running.dht.signer.record(key, 2, 3600, b"mine")
                record = self.signed_with(machine, key, proof or record.signer)
                answer = net.wait(machine.submit(c.Ask(holder.ident, m.Write(key, 1, record))))
                answer = answer if isinstance(answer, m.Current) else self.through(net, machine, m.Write(key, 1, record))
                self.assertEqual((answer.won, answer.record.owner), (False, holder.ident))
        self.assertEqual(self.owner(net, WANTED, machines[5]), holder.ident)

    def signed_with(self, machine: SimulatedNode, key: bytes, signer: bytes) -> m.Record:
        """A record that shows what its maker likes."""
        plain = machine.running.dht.signer
        unsigned = m.Record(machine.ident, 2, 3600, b"mine", signer, b"")
        return m.Record(machine.ident, 2, 3600, b"mine", signer, plain._signer.sign(plain._text(key, unsigned)))

    def through(self, net: SimulatedNet, machine: SimulatedNode, write: m.Write) -> m.Current:
        """A write by whoever keeps the shard."""
        from ipop_tx.core.tasks import spawn

        future = spawn(machine.running.dht._operate(write.key, write))
        machine.settle()
        answer: m.Current = net.wait(future)
        return answer

    def test_assigned_anew(self) -> None:
        """Of two to whom it is assigned the later assignment wins, once; of two equal ones the first who came, and the other says so."""
        net = self.noted(self.net())
        machines = self.grow(net, 6)
        first, second, third = machines[1:4]
        for machine, issued in ((first, 3), (second, 7), (third, 7)):
            self.assign(machine, WANTED, issued)
            self.reborn(net, machine, machines[0])
            net.run(5)
            self.keep(net, machine, ttl=600)
            net.run(10)
        self.assertEqual([self.address(machine) == WANTED for machine in (first, second, third)], [False, True, False])
        net.run(RETRY_ASSIGNED * 2)
        self.assertEqual([self.address(machine) == WANTED for machine in (first, second, third)], [False, True, False])
        self.assertIn("10.128.3.4 is assigned to this node, but to another one too", third.running.leases.own.problem)
        self.assertEqual(len(self.told(second, LeaseContested)), 1)
        second.crash()
        net.run(700)
        self.assertIn(WANTED, (self.address(first), self.address(third)), "it is tried for again and again")

    def test_race(self) -> None:
        """The assigned node and others grab the same free address at once, in a net that loses: the assigned one has it in the end."""
        for seed in range(5):
            net = self.noted(self.net(seed, network=replace(NETWORK, pool=IPv4Network("10.128.3.0/28"))))
            machines = self.grow(net, 6)
            self.assign(machines[4], WANTED)
            self.reborn(net, machines[4], machines[0])
            net.run(5)
            net.loss = 0.1
            for machine in machines:
                machine.submit(c.KeepLease(WANTED, None, DAY))
            self.becomes(net, lambda machines=machines: self.address(machines[4]) == WANTED, 30, "the assigned address")  # type: ignore[misc]
            self.becomes(net, lambda machines=machines: self.distinct(machines), 60, "an address each")  # type: ignore[misc]
            self.assertEqual(self.address(machines[4]), WANTED)

    def distinct(self, machines: list[SimulatedNode]) -> bool:
        """Whether everybody has an address of its own."""
        held = [self.address(machine) for machine in machines]
        return None not in held and len(set(held)) == len(held)


class PartitionTests(RivalCase):
    """Duplicates after a net was in two."""

    def test_merged(self) -> None:
        """Addresses that ran out here and were given away there: each duplicate is found within 30 s, with one loser, told to both."""
        net = self.noted(self.net(7))
        machines = self.grow(net, 14)
        for machine in machines:
            self.keep(net, machine, ttl=240)
        net.run(10)
        away = machines[9:]
        lost = {machine: self.address(machine) or b"" for machine in away[:4]}
        split(net, away)
        net.run(300)
        takers = dict(zip(lost, machines[1:5], strict=True))
        for loser, taker in takers.items():
            net.wait(taker.submit(c.ReleaseLease()))
            self.keep(net, taker, held=lost[loser], ttl=240)
        self.assertEqual([self.address(takers[loser]) for loser in lost], [self.address(loser) for loser in lost], "duplicates")
        self.events.clear()
        heal(net)
        self.becomes(net, lambda: self.distinct(machines), 30, "one holder each")
        net.run(20)
        for loser, address in lost.items():
            winner = takers[loser]
            self.assertEqual((self.address(winner), self.owner(net, address, machines[0])), (address, winner.ident))
            self.assertEqual([event.address for event in self.told(loser, LeaseLost)], [address])  # type: ignore[attr-defined]
            self.assertEqual(self.told(winner, LeaseContested), [LeaseContested(address, loser.ident)])
            self.assertEqual(self.told(winner, LeaseLost), [])

    distinct = AssignedTests.distinct

    def test_own_write_in_doubt(self) -> None:
        """A renewal whose answer is lost and that takes effect late is no rival's: the address is kept."""
        net = self.noted(self.net())
        machines = self.grow(net, 6)
        address = self.keep(net, machines[2], ttl=600)
        lease = machines[2].running.leases.own
        dht = machines[2].running.dht
        plain = dht.get

        async def old(key: bytes) -> m.Record | None:
            """The record as it was before a write of ours that is only now carried out."""
            found = await plain(key)
            if key == lease_key(NETWORK, address) and found is not None:
                dht.get = plain  # type: ignore[method-assign]
                await dht.compare_and_set(key, found.version, found.value, 600)
            return found

        dht.get = old  # type: ignore[method-assign]
        net.wait(machines[2].submit(c.RenewLease()))
        self.assertEqual((lease.address, self.told(machines[2], LeaseLost)), (address, []))

    def test_two_renewals_at_once(self) -> None:
        """They wait for each other, rather than take each other for rivals."""
        net = self.noted(self.net())
        machines = self.grow(net, 6)
        address = self.keep(net, machines[2])
        renewals = [machines[2].submit(c.RenewLease()) for _ in range(5)]
        self.assertEqual(self.all_done(net, renewals), [address] * 5)
        self.assertEqual(self.told(machines[2], LeaseLost), [])


class HearsayTests(RivalCase):
    """What members say is never believed of others."""

    def test_liar(self) -> None:
        """Who says without end that an address is not its holder's costs it a look now and then, and nothing else."""
        net = self.noted(self.net())
        machines = self.grow(net, 6)
        address = self.keep(net, machines[2])
        version = net.wait(machines[0].submit(c.Get(lease_key(NETWORK, address)))).version
        looks = []
        machines[2].running.leases.own._dht.get = self.counted(machines[2], looks)  # type: ignore[method-assign]
        for _ in range(100):
            machines[4].submit(c.Ask(machines[2].ident, m.NotYours(address)))
            net.run(0.1)
        self.assertLessEqual(len(looks), 10 / CHECKED + 1)
        self.assertGreater(len(looks), 1)
        self.assertEqual(self.address(machines[2]), address)
        self.assertEqual(net.wait(machines[0].submit(c.Get(lease_key(NETWORK, address)))).version, version)

    def counted(self, machine: SimulatedNode, looks: list[bytes]) -> object:
        """Note what is read."""
        plain = machine.running.dht.get

        async def get(key: bytes) -> m.Record | None:
            looks.append(key)
            return await plain(key)

        return get

    def test_false_rival(self) -> None:
        """Who claims to have given up an address is named, once a minute."""
        net = self.noted(self.net())
        machines = self.grow(net, 6)
        address = self.keep(net, machines[2])
        for _ in range(30):
            machines[4].submit(c.Ask(machines[2].ident, m.NotMine(address, True)))
            net.run(1)
        self.assertEqual(self.told(machines[2], LeaseContested), [LeaseContested(address, machines[4].ident)])
        net.run(TOLD)
        self.assertEqual(self.address(machines[2]), address)

    def test_only_its_own(self) -> None:
        """A member takes back its own addresses, not those of others."""
        net = self.noted(self.net())
        machines = self.grow(net, 6)
        address = self.keep(net, machines[2])
        target = str(IPv4Address(address))
        net.wait(machines[5].submit(c.Resolve(target)))
        sent = net.datagrams
        machines[4].submit(c.Ask(machines[5].ident, m.NotMine(address)))
        net.run(0.5)
        self.assertLess(net.datagrams - sent, 60)
        self.assertTrue(machines[5].submit(c.Resolve(target)).done, "still in the cache")
        self.assertEqual(self.told(machines[5], AddressMoved), [])


class MovedTests(RivalCase):
    """Who has resolved an address learns that it is another's now."""

    def moving(self, seed: int = 1) -> tuple[SimulatedNet, list[SimulatedNode], bytes]:
        """A net where one node has resolved the address of another."""
        net = self.noted(self.net(seed))
        machines = self.grow(net, 7)
        address = self.keep(net, machines[2])
        self.assertEqual(net.wait(machines[5].submit(c.Resolve(str(IPv4Address(address))))).ident, machines[2].ident)
        net.wait(machines[5].submit(c.Connect(machines[2].ident)))
        return net, machines, address

    def moved(self, machines: list[SimulatedNode], address: bytes) -> bool:
        """Whether the observer has been told where the address is now."""
        return AddressMoved(address, machines[2].ident, machines[3].ident) in self.told(machines[5], AddressMoved)

    def test_released(self) -> None:
        """Given back here, taken there a moment later: whoever is linked knows within a second of that."""
        net, machines, address = self.moving()
        net.wait(machines[2].submit(c.ReleaseLease()))
        net.run(0.4)
        self.keep(net, machines[3], held=address)
        self.assertEqual(self.address(machines[3]), address)
        took = self.becomes(net, lambda: self.moved(machines, address), 5, "the new owner known")
        self.assertLessEqual(took, 1.0)
        self.assertEqual(net.wait(machines[5].submit(c.Resolve(str(IPv4Address(address))))).ident, machines[3].ident)

    def test_first_misdirected_frame(self) -> None:
        """One that was not linked just then learns it from the answer to its first frame."""
        net, machines, address = self.moving()
        machines[2].running.leases.rivals.gone = lambda address: None
        net.wait(machines[2].submit(c.ReleaseLease()))
        self.keep(net, machines[3], held=address)
        net.run(3)
        self.assertFalse(self.moved(machines, address))
        machines[2].submit(c.Disown(machines[5].ident, IPv4Address(address)))
        took = self.becomes(net, lambda: self.moved(machines, address), 5, "the new owner known")
        self.assertLessEqual(took, 1.0)

    def test_no_word_for_what_is_ours(self) -> None:
        """A frame that arrives while the address is being configured leads to no denial."""
        net, machines, address = self.moving()
        machines[2].submit(c.Disown(machines[5].ident, IPv4Address(address)))
        net.run(2)
        self.assertEqual(self.told(machines[5], AddressMoved), [])

    def test_new_owner_speaks_first(self) -> None:
        """Frames from the new owner are good at once, though the receiver still believes in the old one."""
        net, machines, address = self.moving()
        machines[2].running.leases.rivals.gone = lambda address: None
        net.wait(machines[2].submit(c.ReleaseLease()))
        self.keep(net, machines[3], held=address)
        net.run(2)
        ipv4 = IPv4Address(address)
        self.assertTrue(net.wait(machines[5].submit(c.Owns(machines[3].ident, ipv4))))
        self.assertTrue(self.moved(machines, address))
        self.assertFalse(net.wait(machines[5].submit(c.Owns(machines[2].ident, ipv4))))

    def test_user_without_right_is_told(self) -> None:
        """A node that sends from an address whose register is another's is told so by whoever gets the frame, and looks."""
        net, machines, address = self.moving()
        record = net.wait(machines[0].submit(c.Get(lease_key(NETWORK, address))))
        machines[2].running.leases.rivals.gone = lambda address: None
        other = machines[2].running.dht
        net.wait(machines[2].submit(c.Delete(lease_key(NETWORK, address), record.version)))
        self.assertIsNotNone(other)
        self.keep(net, machines[3], held=address)
        net.run(61)
        self.assertEqual(self.address(machines[2]), address, "it does not know yet")
        self.assertFalse(net.wait(machines[5].submit(c.Owns(machines[2].ident, IPv4Address(address)))))
        self.becomes(net, lambda: self.address(machines[2]) not in (None, address), 5, "another address")

    def test_nobody_has_it(self) -> None:
        """While nobody has it, the look-ups end after half a minute."""
        net, machines, address = self.moving()
        net.wait(machines[2].submit(c.ReleaseLease()))
        net.run(40)
        self.assertEqual(self.told(machines[5], AddressMoved), [AddressMoved(address, machines[2].ident, None)])
        self.assertEqual(machines[5].running.resolver._following, set())
        error = machines[2].submit(c.RenewLease())
        self.assertNotIsInstance(error.error, Conflict)
