"""Addresses and names: one owner each, kept, renewed, given back, and lost with a word."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from itertools import pairwise

from twisted.trial.unittest import TestCase

from ipop_tx.core import commands as c
from ipop_tx.core.dht.records import lease_key
from ipop_tx.core.events import HandOverAsked, LeaseGained, LeaseLost
from ipop_tx.core.leases.lease import TRIES, candidates, name_key
from ipop_tx.core.leases.resolver import SOON, Owner
from ipop_tx.errors import Conflict, PoolExhausted, Unavailable
from ipop_tx.simulation.network import NETWORK, SimulatedNet, SimulatedNode
from ipop_tx.wire.address import ipv6_of
from ipop_tx.wire.registers import Record
from tests.net import NetCase

SMALL = replace(NETWORK, pool=IPv4Network("10.9.0.0/29"), shards=4)
DAY = 86400.0


class CandidateTests(TestCase):
    """The order in which addresses are tried."""

    def test_within_pool(self) -> None:
        """Hosts only, the same order each time, another for each node, and in a small pool every one."""
        for pool in (IPv4Network("10.9.0.0/24"), IPv4Network("10.9.0.0/22")):
            order = list(candidates(pool, b"a" * 20))
            self.assertEqual(order, list(candidates(pool, b"a" * 20)))
            self.assertNotEqual(order[:5], list(candidates(pool, b"b" * 20))[:5])
            self.assertEqual(sorted(IPv4Address(address) for address in order), list(pool.hosts()))
        self.assertAlmostEqual(len(list(candidates(IPv4Network("10.0.0.0/8"), b"a" * 20))), TRIES, delta=1)


class LeaseTests(NetCase):
    """Whole nodes."""

    def claimed(self, net: SimulatedNet, machine: SimulatedNode, wish: bytes | None = None) -> bytes:
        """An address, now."""
        address: bytes = net.wait(machine.submit(c.ClaimLease(wish)))
        return address

    def keep(self, net: SimulatedNet, machine: SimulatedNode, held: bytes | None = None, ttl: float = DAY) -> None:
        """Have an address kept."""
        machine.submit(c.KeepLease(held, None, ttl))
        self.becomes(net, lambda: machine.running.leases.own.address is not None, 30, "an address")

    def test_hundred_at_once(self) -> None:
        """A hundred nodes ask a /24 at once, in a net that loses: everybody gets an address of its own, and all agree whose it is."""
        net = self.net(network=replace(NETWORK, pool=IPv4Network("10.9.0.0/24")))
        machines = self.grow(net, 100)
        net.loss = 0.05
        for machine in machines:
            machine.submit(c.KeepLease(None, None, DAY))
        self.becomes(net, lambda: all(machine.running.leases.own.address for machine in machines), 120, "an address each")
        net.loss = 0.0
        owners = {machine.running.leases.own.address: machine for machine in machines}
        self.assertEqual(len(owners), 100)
        asker = machines[17]
        found = self.all_done(net, [asker.submit(c.Resolve(str(IPv4Address(address)))) for address in owners if address])
        self.assertEqual([owner.ident for owner in found], [machine.ident for machine in owners.values()])

    def test_sticky(self) -> None:
        """A node that comes back, without its memory and even without its disk, has the address that it had."""
        net = self.net()
        machines = self.grow(net, 6)
        self.keep(net, machines[4])
        address = machines[4].running.leases.own.address
        machines[4].crash()
        net.run(60)
        net.wait(machines[4].start(machines[1]))
        self.keep(net, machines[4])
        self.assertEqual(machines[4].running.leases.own.address, address)

    def test_remembered(self) -> None:
        """A node that comes back without its disk has the address that it once wished for, though others of its order are free."""
        net = self.net()
        machines = self.grow(net, 6)
        wish = IPv4Address("10.128.3.4").packed
        self.keep(net, machines[4], wish)
        net.run(5)
        machines[4].crash()
        net.run(60)
        net.wait(machines[4].start(machines[1]))
        self.keep(net, machines[4])
        self.assertEqual(machines[4].running.leases.own.address, wish)

    def test_guests(self) -> None:
        """A node holds addresses for the guests behind it: each its own, the same one again, given back one by one."""
        net = self.net()
        machines = self.grow(net, 5)
        self.keep(net, machines[1])
        for holder in (b"one", b"two"):
            machines[1].submit(c.HoldLease(holder, holder.decode(), None, DAY))
        leases = machines[1].running.leases
        self.becomes(net, lambda: all(lease.address for lease in leases.guests.values()), 30, "an address each")
        net.run(5)
        first, second = leases.guests[b"one"].address, leases.guests[b"two"].address
        self.assertEqual(len({first, second, leases.own.address}), 3)
        self.assertEqual(net.wait(machines[3].submit(c.Resolve("two"))), Owner(machines[1].ident, "two", second or b""))
        net.wait(machines[1].submit(c.GiveUpLease(b"one")))
        self.assertIsNone(net.wait(machines[3].submit(c.Get(lease_key(NETWORK, first or b"")))))
        self.assertEqual(net.wait(machines[3].submit(c.Get(lease_key(NETWORK, second or b"")))).owner, machines[1].ident)
        machines[1].submit(c.HoldLease(b"one", "one", None, DAY))
        self.becomes(net, lambda: leases.guests[b"one"].address is not None, 30, "its address again")
        self.assertEqual(leases.guests[b"one"].address, first)
        held = [leases.own.address, first, second]
        net.wait(machines[1].submit(c.ReleaseLease()))
        self.assertEqual(leases.guests, {})
        for address in held:
            self.assertIsNone(net.wait(machines[3].submit(c.Get(lease_key(NETWORK, address or b"")))))

    def test_guests_held_and_avoided(self) -> None:
        """The address that a guest is known to have had comes before all others, and those to avoid never."""
        net = self.net()
        machines = self.grow(net, 4)
        held, bad = IPv4Address("10.128.3.4").packed, IPv4Address("10.128.3.5").packed
        leases = machines[1].running.leases
        machines[1].submit(c.HoldLease(b"one", "", IPv4Address("10.128.3.6").packed, DAY, held))
        machines[1].submit(c.HoldLease(b"two", "", bad, DAY, None, frozenset((bad,))))
        before = net.now
        self.becomes(net, lambda: all(lease.address for lease in leases.guests.values()), 30, "an address each")
        self.assertEqual(leases.guests[b"one"].address, held)
        self.assertNotEqual(leases.guests[b"two"].address, bad)
        self.assertTrue(before + DAY <= leases.guests[b"one"].until <= net.now + DAY)

    def test_a_guest_that_comes_and_goes(self) -> None:
        """Given up while it is being claimed, held again while it is being given up: nothing is left behind, and what is told is true."""
        for pause in (0.0, 0.01, 0.05, 0.1, 0.3, 1.0):
            net = self.net(loss=0.1)
            machines = self.grow(net, 4)
            events: list[object] = []
            net.on_event = lambda machine, event, events=events: events.append(event)  # type: ignore[misc]
            for _ in range(3):
                machines[1].submit(c.HoldLease(b"one", "one", None, DAY))
                net.run(pause)
                gone = machines[1].submit(c.GiveUpLease(b"one"))
                net.run(pause / 2)
            machines[1].submit(c.HoldLease(b"one", "one", None, DAY))
            lease = machines[1].running.leases.guests[b"one"]
            self.becomes(net, lambda lease=lease: lease.address is not None, 30, "an address")  # type: ignore[misc]
            net.run(60)
            self.assertTrue(gone.done)
            address = lease.address or b""
            found = net.wait(machines[3].submit(c.Get(lease_key(NETWORK, address))))
            self.assertIsNotNone(found, "the lease that is believed to be held")
            told = [event for event in events if isinstance(event, (LeaseGained, LeaseLost)) and event.holder]
            self.assertEqual((type(told[-1]), told[-1].address), (LeaseGained, address), "what is told last is what is true")
            taken = {event.address for event in told} - {address}
            self.assertEqual([net.wait(machines[3].submit(c.Get(lease_key(NETWORK, one)))) for one in taken], [None] * len(taken))

    def test_a_guest_that_moves(self) -> None:
        """It takes its address along when the node where it was lets it go, and only then; its name as well."""
        for here in (False, True):
            net = self.net()
            machines = self.grow(net, 5)
            asked: list[HandOverAsked] = []

            def decide(machine: SimulatedNode, event: object, here: bool = here, asked: list[HandOverAsked] = asked) -> None:
                if isinstance(event, HandOverAsked):
                    asked.append(event)
                    if here:
                        event.reply.fail(Conflict("it is still here"))
                    else:
                        machine.submit(c.GiveUpLease(event.holder)).then(lambda done: event.reply.succeed(None))

            net.on_event = decide
            machines[1].submit(c.HoldLease(b"one", "one", None, DAY))
            machines[1].submit(c.HoldLease(b"two", "", None, DAY))
            before, after = (machines[number].running.leases.guests for number in (1, 2))
            self.becomes(net, lambda before=before: all(one.address for one in before.values()), 30, "an address each")  # type: ignore[misc]
            net.run(5)
            address, other = before[b"one"].address, before[b"two"].address
            assert address and other
            machines[2].submit(c.HoldLease(b"one", "one", None, DAY, address))
            machines[2].submit(c.HoldLease(b"three", "", None, DAY, other))
            self.becomes(net, lambda after=after: all(one.address for one in after.values()), 30, "an address each")  # type: ignore[misc]
            net.run(5)
            self.assertEqual([(event.ident, event.address, event.holder) for event in asked], [(machines[2].ident, address, b"one")])
            self.assertEqual(after[b"one"].address == address, not here)
            owner = machines[1 if here else 2].ident
            self.assertEqual(net.wait(machines[3].submit(c.Get(lease_key(NETWORK, address)))).owner, owner)
            self.assertEqual(net.wait(machines[3].submit(c.Resolve("one"))), Owner(owner, "one", address))
            self.assertEqual((b"two" in before, after[b"three"].address == other), (True, False), "another guest gets nothing")

    def test_almost_full(self) -> None:
        """The last free address of a /24 is found in a few seconds."""
        net = self.net(network=replace(NETWORK, pool=IPv4Network("10.9.0.0/24")))
        machines = self.grow(net, 4)
        for number in range(253):
            machines[1].submit(c.HoldLease(b"guest%d" % number, "", None, DAY))
        self.becomes(net, lambda: all(lease.address for lease in machines[1].running.leases.guests.values()), 120, "253 addresses")
        begin = net.now
        self.claimed(net, machines[2])
        self.assertLess(net.now - begin, 5)

    def test_held_and_wished(self) -> None:
        """The address held before comes first; one that is not of the pool is not asked for."""
        net = self.net()
        machines = self.grow(net, 4)
        held = IPv4Address("10.128.3.4").packed
        self.keep(net, machines[1], held)
        self.assertEqual(machines[1].running.leases.own.address, held)
        self.keep(net, machines[2], IPv4Address("192.168.0.1").packed)
        self.assertIn(IPv4Address(machines[2].running.leases.own.address or b""), NETWORK.pool)
        self.keep(net, machines[3], held)
        self.assertNotEqual(machines[3].running.leases.own.address, held)

    def test_release(self) -> None:
        """What is given back can be taken, address and name alike."""
        net = self.net()
        machines = self.grow(net, 5)
        address = self.claimed(net, machines[1])
        net.wait(machines[1].submit(c.ReleaseLease()))
        for key in (lease_key(NETWORK, address), name_key(NETWORK, "n1")):
            self.assertIsNone(net.wait(machines[3].submit(c.Get(key))))
        self.keep(net, machines[2], address)
        self.assertEqual(machines[2].running.leases.own.address, address)

    def test_exhausted(self) -> None:
        """Six addresses for eight nodes: two are told so, in a sentence, and get one as soon as one is free."""
        net = self.net(network=SMALL)
        machines = self.grow(net, 8)
        for machine in machines:
            machine.submit(c.KeepLease(None, None, DAY))
        net.run(60)
        without = [machine for machine in machines if machine.running.leases.own.address is None]
        self.assertEqual(len(without), 2)
        for machine in without:
            self.assertIn("no free address was found in 10.9.0.0/29", machine.running.leases.own.problem)
        self.assertIsInstance(self.failureOf(net, without[0]), PoolExhausted)
        happy = next(machine for machine in machines if machine.running.leases.own.address)
        net.wait(happy.submit(c.ReleaseLease()))
        self.becomes(net, lambda: any(machine.running.leases.own.address for machine in without), 120, "the address that was given back")

    def failureOf(self, net: SimulatedNet, machine: SimulatedNode) -> BaseException | None:
        """Why a claim fails."""
        future = machine.submit(c.ClaimLease())
        net.run(60, lambda: future.done)
        return future.error

    def test_renewal(self) -> None:
        """Renewed at half its life, a lease outlives it by far; without its node it ends."""
        net = self.net()
        machines = self.grow(net, 5)
        self.keep(net, machines[1], ttl=600)
        address = machines[1].running.leases.own.address or b""
        versions = []
        for _ in range(4):
            net.run(400)
            versions.append(net.wait(machines[3].submit(c.Get(lease_key(NETWORK, address)))).version)
        self.assertEqual(machines[1].running.leases.own.address, address)
        self.assertTrue(all(later > earlier for earlier, later in pairwise(versions)), versions)
        machines[1].crash()
        net.run(601)
        self.assertIsNone(net.wait(machines[3].submit(c.Get(lease_key(NETWORK, address)))))

    def test_lost(self) -> None:
        """A node that was away for too long finds its address taken: it says so and takes another."""
        net = self.net()
        machines = self.grow(net, 6)
        events: list[object] = []
        net.on_event = lambda machine, event: events.append(event) if machine is machines[1] else None
        self.keep(net, machines[1], ttl=300)
        address = machines[1].running.leases.own.address or b""
        net.reachable = lambda one, other: machines[1] not in (one, other)
        net.run(320)
        self.keep(net, machines[2], address)
        self.assertEqual(machines[2].running.leases.own.address, address)
        self.assertEqual(machines[1].running.leases.own.address, address)
        self.assertIn("could not be renewed", machines[1].running.leases.own.problem)
        net.reachable = lambda one, other: True
        self.becomes(net, lambda: machines[1].running.leases.own.address not in (None, address), 300, "another address")
        lost = next(event for event in events if isinstance(event, LeaseLost))
        self.assertEqual(lost.address, address)
        self.assertIn(f"belongs to node {machines[2].ident.hex()[:8]} now (its lease here had run out)", lost.reason)
        self.assertEqual([event.address for event in events if isinstance(event, LeaseGained)][-1], machines[1].running.leases.own.address)

    def test_name_taken(self) -> None:
        """Two nodes with one name: the first has it, the second has an address all the same and says what is wrong."""
        net = self.net()
        machines = self.grow(net, 5)
        machines[2].peer = replace(machines[2].peer, name="N1")
        machines[2].crash()
        net.wait(machines[2].start(machines[0]))
        for machine in machines[1:3]:
            self.keep(net, machine)
            net.run(5)
        self.assertEqual(machines[1].running.leases.own.name_problem, "")
        self.assertIn("the name N1 belongs to node", machines[2].running.leases.own.name_problem)
        owner = net.wait(machines[4].submit(c.Resolve("n1")))
        self.assertEqual(owner, Owner(machines[1].ident, "n1", machines[1].running.leases.own.address or b""))

    def test_name_not_reached(self) -> None:
        """A name whose register does not answer is tried again soon, not with the next renewal hours later."""
        net = self.net(15)
        machines = self.grow(net, 3)
        own = machines[1].running.leases.own
        get, key = own._dht.get, name_key(net.network, "n1")

        async def failing(wanted: bytes) -> Record | None:
            if wanted == key:
                raise Unavailable(1, 2, 3)
            return await get(wanted)

        self.patch(own._dht, "get", failing)
        machines[1].submit(c.KeepLease(None, None, DAY))
        net.run(10)
        self.assertIn("the name n1 is not registered: 1 of 3 replicas reached", own.name_problem)
        own._dht.get = get  # type: ignore[method-assign]
        net.run(15)
        self.assertEqual(own.name_problem, "")
        self.assertEqual(net.wait(machines[2].submit(c.Resolve("n1"))).ident, machines[1].ident)
        net.run(60)
        record = net.wait(machines[2].submit(c.Get(key)))
        self.assertEqual(record.version, 1)

    def test_resolve(self) -> None:
        """By name, IPv4 and IPv6 address; nothing for what nobody owns or what is not of the network."""
        net = self.net()
        machines = self.grow(net, 5)
        address = IPv4Address(self.claimed(net, machines[3]))
        asker = machines[1]
        for target in (str(address), "n3", str(ipv6_of(NETWORK.prefix, machines[3].ident))):
            self.assertEqual(net.wait(asker.submit(c.Resolve(target))).ident, machines[3].ident)
        nobody = ("10.128.255.254", "nobody", "192.168.1.1", "2001:db8::1", str(ipv6_of(NETWORK.prefix, b"z" * 20)))
        self.assertEqual([net.wait(asker.submit(c.Resolve(target))) for target in nobody], [None] * 5)

    def test_resolve_nonsense(self) -> None:
        """A lease or a name whose register holds nonsense belongs to nobody."""
        net = self.net()
        machines = self.grow(net, 4)
        for value in (b"nonsense", b"\x92\xc4\x04aaaa\xa1\xff", b"\x91\xc4\x04aaaa"):
            address = IPv4Address(f"10.128.0.{len(value)}")
            net.wait(machines[1].submit(c.Create(lease_key(NETWORK, address.packed), value, 3600)))
            self.assertIsNone(net.wait(machines[2].submit(c.Resolve(str(address)))))

    def test_no_majority(self) -> None:
        """Those who are left of five go on with the addresses that they know, at once each time, until the lease may be over."""
        net = self.net(9)
        machines = self.grow(net, 5)
        for machine in machines:
            machine.submit(c.KeepLease(None, None, 3600.0))
        net.run(30)
        one, other, third = machines[:3]
        address, unknown = (str(IPv4Address(machine.running.leases.own.address or b"")) for machine in (other, third))
        self.assertEqual(net.wait(one.submit(c.Resolve(address))).ident, other.ident)
        for victim in machines[2:]:
            victim.crash()
        for _ in range(10):
            net.run(120)
            began = net.now
            self.assertEqual(net.wait(one.submit(c.Resolve(address))).ident, other.ident)
            self.assertLessEqual(net.now - began, SOON)
        self.assertRaises(Unavailable, net.wait, one.submit(c.Resolve(unknown)))
        net.run(1500)
        self.assertEqual(net.wait(one.submit(c.Resolve(address))).ident, other.ident, "its owner can prove it")
        net.run(1000)
        self.assertRaises(Unavailable, net.wait, one.submit(c.Resolve(address)))

    def test_cache(self) -> None:
        """What was found is kept for a while, what was not found for a short one."""
        net = self.net()
        machines = self.grow(net, 5)
        target = IPv4Address("10.128.0.9")
        self.assertIsNone(net.wait(machines[1].submit(c.Resolve(str(target)))))
        self.keep(net, machines[3], target.packed)
        net.run(3.1)
        self.assertEqual(net.wait(machines[1].submit(c.Resolve(str(target)))).ident, machines[3].ident)
        sent = net.datagrams
        self.assertTrue(machines[1].submit(c.Resolve(str(target))).done)
        self.assertEqual(net.datagrams, sent)
