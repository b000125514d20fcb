"""The DHCP server in virtual time: what clients are told, and when it is silent."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from twisted.trial.unittest import TestCase

from ipop_tx.core.leases.dhcp import GRACE, PATIENCE, State
from ipop_tx.core.leases.dhcpterms import Terms
from ipop_tx.wire import dhcp
from ipop_tx.wire.dhcp import Message
from tests.dhcp import DAY, HOUR, OTHER, OWN, POOL, TERMS, World, address, mac


class DhcpServerTests(TestCase):
    """One client, mostly."""

    def setUp(self) -> None:
        self.world = World()

    def kind(self, answer: Message | None) -> int | None:
        return answer.kind if answer is not None else None

    def test_from_discover_to_ack(self) -> None:
        world = self.world
        offer = world.say(dhcp.DISCOVER, 1, broadcast=True)
        assert offer is not None
        self.assertEqual((offer.kind, offer.yours, offer.client, offer.broadcast), (dhcp.OFFER, address(1), bytes(4), True))
        self.assertEqual((world.served, world.disk), ({}, []), "an offer is nothing yet")
        ack = world.say(dhcp.REQUEST, 1, server=OWN, requested=address(1))
        assert ack is not None
        self.assertEqual((ack.kind, ack.yours), (dhcp.ACK, address(1)))
        numbers = {code: int.from_bytes(ack.options[code], "big") for code in (51, 58, 59, 26)}
        self.assertEqual(numbers, {51: 3600, 58: 1800, 59: 3150, 26: 1428})
        self.assertEqual((ack.options[dhcp.SERVER], ack.options[dhcp.SUBNET_MASK]), (OWN, b"\xff\xff\0\0"))
        self.assertFalse({dhcp.ROUTER, dhcp.DNS, dhcp.DOMAIN, dhcp.ROUTES} & ack.options.keys())
        self.assertEqual(world.served, {address(1): mac(1)})
        self.assertEqual([(guest.address, guest.mac, guest.until) for guest in world.disk], [(address(1), mac(1), world.now + HOUR)])

    def test_settings(self) -> None:
        """What the configuration says; a router is among the routes too, since who takes routes overlooks it."""
        router = IPv4Address("10.128.0.7")
        self.world = World(Terms(POOL, b"\x02own\0\0", "node", 3, HOUR, DAY, 1428, (router, IPv4Address(9)), "lab.example", router))
        offer = self.world.say(dhcp.DISCOVER, 1)
        assert offer is not None
        self.assertEqual(offer.options[dhcp.ROUTER], router.packed)
        self.assertEqual(offer.options[dhcp.DNS], router.packed + b"\0\0\0\x09")
        self.assertEqual(offer.options[dhcp.DOMAIN], b"lab.example")
        self.assertNotIn(dhcp.ROUTES, offer.options)
        routes = ((IPv4Network("192.168.7.0/24"), IPv4Address("10.128.0.9")),)
        self.world = World(Terms(POOL, b"\x02own\0\0", "node", 3, HOUR, DAY, 1428, (), "", router, routes))
        offer = self.world.say(dhcp.DISCOVER, 1)
        assert offer is not None
        self.assertEqual(offer.options[dhcp.ROUTES].hex(), "18c0a8070a800009" + "000a800007")

    def test_no_answer_is_too_large(self) -> None:
        """What is least worth is left out, unless the client takes more."""
        routes = tuple((IPv4Network(f"192.168.{n}.0/24"), IPv4Address(9)) for n in range(8))
        self.world = World(Terms(POOL, b"\x02own\0\0", "node", 3, HOUR, DAY, 1428, (IPv4Address(9),) * 8, "x" * 63, None, routes))
        identifier = b"\0" * 150
        message = Message(dhcp.DISCOVER, bytes(4), mac(1), {dhcp.CLIENT: identifier})
        for largest, whole in ((b"", False), (b"\x05\xdc", True), (b"\0\0", False)):
            more = {dhcp.LARGEST: largest} if largest else {}
            self.world.server.receive(self.world.now, Message(message.kind, message.xid, message.mac, message.options | more))
            self.world.settle()
            offer = self.world.answers[-1]
            self.assertEqual(dhcp.DOMAIN in offer.options, whole)
            self.assertIn(dhcp.MTU, offer.options)
            self.assertLessEqual(len(dhcp.encode(offer)), 1472 if whole else 548)

    def test_sticky(self) -> None:
        """The same client, the same address: by its identifier whatever MAC it has, without one by its MAC."""
        world = self.world
        first = world.join(1)
        world.join(2)
        world.say(dhcp.RELEASE, 1, client=first, server=OWN)
        self.assertNotIn(first, world.served)
        self.assertEqual(world.join(1), first)
        named = Message(dhcp.DISCOVER, bytes(4), mac(9), {dhcp.CLIENT: b"\x01" + mac(1)})
        world.server.receive(world.now, named)
        world.settle()
        self.assertEqual(world.answers[-1].yours, first)
        self.assertEqual(world.answers[-1].options[dhcp.CLIENT], b"\x01" + mac(1))
        self.assertEqual(world.served[first], mac(1), "nothing moves before the REQUEST")
        request = Message(dhcp.REQUEST, bytes(4), mac(9), {dhcp.CLIENT: b"\x01" + mac(1), dhcp.SERVER: OWN, dhcp.REQUESTED: first})
        world.server.receive(world.now, request)
        world.settle()
        self.assertEqual(world.served[first], mac(9))

    def test_wish(self) -> None:
        self.assertEqual(self.world.join(1, requested=address(9)), address(9))
        self.assertNotEqual(self.world.join(2, requested=address(9)), address(9))
        self.assertIn(IPv4Address(self.world.join(3, requested=b"\xc0\xa8\0\x01")), POOL)

    def test_renew_and_rebind(self) -> None:
        world = self.world
        held = world.join(1)
        for _ in range(5):
            world.advance(HOUR / 2)
            ack = world.say(dhcp.REQUEST, 1, client=held)
            assert ack is not None
            self.assertEqual((ack.kind, ack.yours, ack.client), (dhcp.ACK, held, held))
            self.assertEqual(world.disk[0].until, world.now + HOUR)
        self.assertEqual(world.served, {held: mac(1)})
        self.assertEqual(world.notes, ["guest_bound"])

    def test_asking_all_the_time(self) -> None:
        """Costs a write to the disk sixteen times in its time, at most."""
        world = self.world
        held = world.join(1)
        writes = 0
        for _ in range(2 * 3600):
            world.now += 0.5
            self.assertEqual(self.kind(world.say(dhcp.REQUEST, 1, client=held)), dhcp.ACK)
            ack = world.answers[-1]
            self.assertLessEqual(world.now + int.from_bytes(ack.options[dhcp.LEASE_SECONDS], "big"), world.disk[0].until)
            writes += world.disk[0].until == world.now + HOUR
        self.assertLessEqual(writes, 16)
        self.assertGreater(writes, 10)

    def test_reboot(self) -> None:
        """INIT-REBOOT: the address it had, refused when that is not its own; unknown clients get what they had if it is free."""
        world = self.world
        held = world.join(1)
        self.assertEqual(self.kind(world.say(dhcp.REQUEST, 1, requested=held)), dhcp.ACK)
        refusal = world.say(dhcp.REQUEST, 1, requested=address(40))
        assert refusal is not None
        self.assertEqual((refusal.kind, refusal.yours, refusal.client), (dhcp.NAK, bytes(4), bytes(4)))
        self.assertEqual(world.served, {held: mac(1)})
        self.assertEqual(self.kind(world.say(dhcp.REQUEST, 2, requested=address(30))), dhcp.ACK)
        self.assertEqual(self.kind(world.say(dhcp.REQUEST, 3, requested=b"\xc0\xa8\0\x01")), dhcp.NAK, "it comes from another network")
        self.assertEqual(world.join(3), world.leases[b"\x01" + mac(3)][0], "and may have one all the same")

    def test_renewal_of_anothers_address(self) -> None:
        held = self.world.join(1)
        self.assertEqual(self.kind(self.world.say(dhcp.REQUEST, 2, client=held)), dhcp.NAK)
        self.assertEqual(self.world.served, {held: mac(1)})

    def test_expiry(self) -> None:
        """Who does not renew keeps its address for a grace; then it is another's."""
        world = self.world
        held = world.join(1)
        world.advance(HOUR + GRACE - 1)
        self.assertIn(held, world.served)
        world.advance(2)
        self.assertEqual((world.served, world.leases, world.disk), ({}, {}, []))
        self.assertEqual(world.notes[-1], "guest_expired")

    def test_offer_without_request(self) -> None:
        self.world.say(dhcp.DISCOVER, 1)
        self.world.advance(PATIENCE - 1)
        self.assertTrue(self.world.leases)
        self.world.advance(2)
        self.assertEqual((self.world.leases, self.world.server.guests), ({}, {}))

    def test_another_server_is_chosen(self) -> None:
        world = self.world
        world.say(dhcp.DISCOVER, 1)
        self.assertIsNone(world.say(dhcp.REQUEST, 1, server=OTHER, requested=address(1)))
        self.assertEqual(world.leases, {})
        held = world.join(2)
        self.assertIsNone(world.say(dhcp.REQUEST, 2, server=OTHER, requested=held))
        self.assertIn(held, world.served, "a guest may come back")
        for kind in (dhcp.RELEASE, dhcp.DECLINE):
            world.say(kind, 2, server=OTHER, client=held, requested=held)
        self.assertIn(held, world.served)

    def test_decline(self) -> None:
        """Somebody uses it beside us: no guest gets it for a while."""
        world = self.world
        held = world.join(1)
        world.say(dhcp.DECLINE, 1, server=OWN, requested=held)
        self.assertEqual((world.served, world.leases), ({}, {}))
        self.assertNotEqual(world.join(1), held)
        self.assertNotEqual(world.join(2, requested=held), held)
        world.advance(2 * HOUR)
        self.assertEqual(world.join(3, requested=held), held)

    def test_decline_and_release_of_anothers_address(self) -> None:
        held = self.world.join(1)
        self.world.say(dhcp.DECLINE, 2, server=OWN, requested=held)
        self.world.say(dhcp.RELEASE, 2, server=OWN, client=held)
        self.world.say(dhcp.RELEASE, 1, server=OWN, client=address(30))
        self.assertEqual(self.world.served, {held: mac(1)})

    def test_inform(self) -> None:
        answer = self.world.say(dhcp.INFORM, 1, client=address(7))
        assert answer is not None
        self.assertEqual((answer.kind, answer.yours, answer.client), (dhcp.ACK, bytes(4), address(7)))
        self.assertNotIn(dhcp.LEASE_SECONDS, answer.options)
        self.assertIsNone(self.world.say(dhcp.INFORM, 1, client=b"\xc0\xa8\0\x01"))
        self.assertIsNone(self.world.say(dhcp.INFORM, 1))
        self.assertEqual(self.world.server.guests, {})

    def test_lease_time(self) -> None:
        for asked, given in ((b"\0\0\0\x3c", 60), (b"\0\0\0\0", 10), (b"\xff\xff\xff\xff", 3600)):
            offer = self.world.say(dhcp.DISCOVER, 1, lease_seconds=asked)
            assert offer is not None
            self.assertEqual(int.from_bytes(offer.options[dhcp.LEASE_SECONDS], "big"), given)

    def test_no_room(self) -> None:
        """Silence, one note a minute; who is there stays, and there is room again when somebody goes."""
        world = self.world
        held = [world.join(number) for number in (1, 2, 3)]
        for number in range(4, 100):
            self.assertIsNone(world.say(dhcp.DISCOVER, number))
        self.assertEqual(world.notes.count("guests_full"), 1)
        self.assertEqual(len(world.leases), 3)
        self.assertEqual(self.kind(world.say(dhcp.REQUEST, 1, client=held[0])), dhcp.ACK)
        world.say(dhcp.RELEASE, 2, client=held[1])
        world.join(4)

    def test_no_guests(self) -> None:
        self.world = World(Terms(POOL, TERMS.mac, "node"))
        self.assertIsNone(self.world.say(dhcp.DISCOVER, 1))
        self.assertEqual(self.world.notes, [])

    def test_no_majority(self) -> None:
        """Known guests keep their leases as long as those last in the DHT; others hear nothing until there is one again."""
        world = self.world
        held = world.join(1)
        world.majority = False
        self.assertIsNone(world.say(dhcp.DISCOVER, 2))
        until = world.leases[b"\x01" + mac(1)][1]
        while world.now < until - HOUR:
            world.advance(HOUR / 2)
            self.assertEqual(self.kind(world.say(dhcp.REQUEST, 1, client=held)), dhcp.ACK)
            self.assertLessEqual(world.disk[0].until, until)
        world.advance(until - world.now - 20)
        ack = world.say(dhcp.REQUEST, 1, client=held)
        assert ack is not None
        self.assertEqual(int.from_bytes(ack.options[dhcp.LEASE_SECONDS], "big"), 20, "no longer than the lease in the DHT")
        world.advance(15)
        self.assertIsNone(world.say(dhcp.REQUEST, 1, client=held))
        self.assertIsNone(world.say(dhcp.DISCOVER, 2))
        world.majority = True
        world.lease()
        world.settle()
        self.assertEqual((world.answers[-1].kind, world.answers[-1].mac), (dhcp.OFFER, mac(2)), "its last question is answered then")

    def test_patience(self) -> None:
        """Who asks no more is forgotten, with what was claimed for it."""
        self.world.majority = False
        for _ in range(3):
            self.world.say(dhcp.DISCOVER, 1)
            self.world.advance(PATIENCE / 2)
        self.assertTrue(self.world.waiting)
        self.world.advance(PATIENCE)
        self.assertEqual((self.world.waiting, self.world.server.guests), ({}, {}))
        self.world.server.gained(self.world.now, b"\x01" + mac(1), address(1))
        self.assertIsNone(self.world.server.poll(), "a lease that comes too late is being given back already")

    def test_lost(self) -> None:
        """Another node has the address now: the client is refused when it renews, and gets another."""
        world = self.world
        held = world.join(1)
        del world.leases[b"\x01" + mac(1)]
        world.server.lost(world.now, b"\x01" + mac(1), held)
        world.settle()
        self.assertEqual((world.served, world.disk), ({}, []))
        self.assertEqual(self.kind(world.say(dhcp.REQUEST, 1, client=held)), dhcp.NAK)
        self.assertNotEqual(world.join(1), held)

    def test_hand_over(self) -> None:
        """To another node; and from one: what a client says it has is asked for first, what it only wishes for is not."""
        world = self.world
        held = world.join(1)
        world.server.hand_over(world.now, b"\x01" + mac(1))
        world.server.hand_over(world.now, b"\x01" + mac(2))
        world.settle()
        self.assertEqual((world.served, world.leases, world.disk), ({}, {}, []))
        world.majority = False
        world.say(dhcp.REQUEST, 2, client=held)
        world.say(dhcp.DISCOVER, 3, requested=address(9))
        holds = {holder[-1]: (hold.held, hold.wish) for holder, hold in world.waiting.items()}
        self.assertEqual(holds, {2: (held, None), 3: (None, address(9))})

    def test_restart(self) -> None:
        """What was acknowledged is there at once, before the DHT has said anything, and renewed as before."""
        world = self.world
        held = [world.join(number) for number in (1, 2)]
        world.majority = False
        world.restart(500)
        self.assertEqual(world.served, {held[0]: mac(1), held[1]: mac(2)})
        self.assertEqual({hold.held for hold in world.waiting.values()}, set(held))
        world.server.own = OWN
        world.leases.clear()
        ack = world.say(dhcp.REQUEST, 1, client=held[0])
        assert ack is not None
        self.assertEqual(int.from_bytes(ack.options[dhcp.LEASE_SECONDS], "big"), 3100, "no more than it was promised before")
        world.free += held
        world.majority = True
        world.lease()
        world.settle()
        ack = world.say(dhcp.REQUEST, 1, client=held[0])
        assert ack is not None
        self.assertEqual(int.from_bytes(ack.options[dhcp.LEASE_SECONDS], "big"), 3600)
        self.assertEqual(world.disk[0].until, world.now + HOUR)

    def test_restart_after_the_address_was_lost(self) -> None:
        world = self.world
        held = world.join(1)
        world.leases.clear()
        world.restart()
        self.assertEqual(len(world.served), 0)
        self.assertEqual(world.notes, ["guest_moved"])
        world.server.own = OWN
        self.assertEqual(self.kind(world.say(dhcp.REQUEST, 1, client=held)), dhcp.NAK)
        self.assertNotEqual(world.join(1), held)

    def test_names(self) -> None:
        """A host name becomes the lease's if it may be one and nobody here has it."""
        self.world = World(Terms(POOL, TERMS.mac, "node", 20, HOUR, DAY))
        names = [b"box", b"BOX", b"Web.lab.example", b"node", b"-x", b"a_b", b"\xff", b"x" * 41, b"", b"two\0"]
        for number, name in enumerate(names, 1):
            self.world.join(number, host_name=name)
        self.assertEqual([guest.name for guest in self.world.server.guests.values()], ["box", "", "web", "", "", "", "", "", "", "two"])

    def test_our_own_interface(self) -> None:
        """A client on the TAP itself gets the node's address, also where there are no guests, and no lease of its own."""
        self.world = world = World(Terms(POOL, mac(5), "node", 0, HOUR))
        self.assertEqual(world.join(5), OWN)
        self.assertEqual((world.leases, world.served, world.server.guests), ({}, {}, {}))
        self.assertEqual(self.kind(world.say(dhcp.REQUEST, 5, client=OWN)), dhcp.ACK)
        self.assertEqual(self.kind(world.say(dhcp.REQUEST, 5, requested=OTHER)), dhcp.NAK)
        self.assertIsNone(world.say(dhcp.REQUEST, 5, requested=OTHER, server=OTHER))

    def test_no_address_of_our_own(self) -> None:
        self.world.server.own = None
        self.assertIsNone(self.world.say(dhcp.DISCOVER, 1))
        self.assertEqual(self.world.server.guests, {})

    def test_nonsense(self) -> None:
        """A REQUEST for nothing, and answers of others."""
        self.assertIsNone(self.world.say(dhcp.REQUEST, 1))
        for kind in (dhcp.OFFER, dhcp.ACK, dhcp.NAK):
            self.assertIsNone(self.world.say(kind, 1, server=OWN, requested=address(1), client=address(1)))
        self.assertEqual(self.world.server.guests, {})


class AnyClients(RuleBasedStateMachine):
    """Clients that say whatever they like, a DHT that comes and goes, restarts: some things hold all the same."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(Terms(POOL, TERMS.mac, "node", 3, HOUR, 2 * HOUR))
        self.promised: dict[bytes, tuple[bytes, float]] = {}
        """What each address's client was told last: its MAC, and until when."""

    @rule(kind=st.integers(1, 8), number=st.integers(1, 5), at=st.integers(0, 6), where=st.integers(0, 7))
    def say(self, kind: int, number: int, at: int, where: int) -> None:
        options: dict[str, Any] = {"server": OWN} if where & 1 else {}
        options |= {"requested": address(at)} if where & 2 else {}
        options |= {"client": address(at)} if where & 4 else {}
        answer = self.world.say(kind, number, **options)
        if answer is not None and answer.kind == dhcp.ACK and dhcp.LEASE_SECONDS in answer.options:
            until = self.world.now + int.from_bytes(answer.options[dhcp.LEASE_SECONDS], "big")
            assert answer.yours == (address(at) if where & 6 else None), "an address that it did not ask for"
            _, leased = self.world.leases.get(b"\x01" + mac(number), (b"", 0.0))
            assert until <= max(leased, self.promised.get(answer.yours, (b"", 0.0))[1]), "longer than it is leased in the DHT"
            holder, end = self.promised.get(answer.yours, (mac(number), 0.0))
            assert holder == mac(number) or end <= self.world.now, "an address that another client was promised"
            assert any(guest.address == answer.yours and guest.until >= until for guest in self.world.disk), "the disk knew it first"
            self.promised[answer.yours] = mac(number), until
        if kind in (dhcp.RELEASE, dhcp.DECLINE):
            self.promised = {a: told for a, told in self.promised.items() if a in self.world.served}

    @rule(seconds=st.sampled_from([1.0, 70.0, 900.0, 3000.0, 50000.0]))
    def wait(self, seconds: float) -> None:
        self.world.advance(seconds)

    @rule()
    def flip(self) -> None:
        self.world.majority = not self.world.majority
        self.world.lease()
        self.world.settle()

    @rule()
    def restart(self) -> None:
        self.world.restart()
        self.world.server.own = OWN

    @invariant()
    def bounded(self) -> None:
        assert len(self.world.server.guests) <= TERMS.guests

    @invariant()
    def promises_are_kept(self) -> None:
        for one, (holder, until) in self.promised.items():
            assert until <= self.world.now or self.world.served.get(one) == holder

    @invariant()
    def served_is_bound(self) -> None:
        bound = {guest.address: guest.mac for guest in self.world.server.guests.values() if guest.state is State.BOUND}
        assert self.world.served == bound
        assert {guest.address for guest in self.world.disk} == set(bound), "disk"


AnyClients.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)


class AnyClientsTests(TestCase):
    """Hypothesis drives."""

    def test_any_clients(self) -> None:
        AnyClients.TestCase("runTest").runTest()
