"""The forwarding plane and its table, between a port in memory, a transport in memory and a control plane that is a table."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from ipop_tx.errors import Unreachable
from ipop_tx.forwarding import neighbour, offload, waiting
from ipop_tx.forwarding import plane as plane_module
from ipop_tx.forwarding.fib import Fib
from ipop_tx.forwarding.memory import FramePair
from ipop_tx.forwarding.plane import ForwardingPlane
from ipop_tx.interfaces import IDatagramReceiver, IForwardingControl, IFrameReceiver, ISealedChannel, ISession, ITransport
from ipop_tx.values import Endpoint
from ipop_tx.wire.address import ident_prefix_of, ipv6_of, mac_of
from ipop_tx.wire.datagram import BUNDLE, CONTROL, FRAME
from tests.plane import NETWORK, ClearSession, Sink, TableControl, Wire, clear_pair, sealed_pair
from tests.test_forwarding_neighbour import ARP_REQUEST, icmp6, solicitation

OURS, PEER, THIRD = (bytes((n,)) * 20 for n in (1, 2, 3))
OUR_IP, PEER_IP, THIRD_IP = (IPv4Address(f"10.128.0.{n}") for n in (1, 2, 3))
OUR_IP6, PEER_IP6, THIRD_IP6 = (ipv6_of(NETWORK.prefix, ident) for ident in (OURS, PEER, THIRD))
OUR_INDEX, PEER_INDEX = 0x80000001, 0x80000002


def ipv4(to: bytes, by: bytes, destination: IPv4Address, origin: IPv4Address, payload: bytes = b"payload") -> bytes:
    header = b"\x45\0" + (20 + len(payload)).to_bytes(2, "big") + bytes(4) + b"\x40\x01\0\0" + origin.packed + destination.packed
    return to + by + b"\x08\0" + header + payload


def ipv6(to: bytes, by: bytes, destination: IPv6Address, origin: IPv6Address, payload: bytes = b"payload") -> bytes:
    header = b"\x60\0\0\0" + len(payload).to_bytes(2, "big") + b"\x11\x40" + origin.packed + destination.packed
    return to + by + b"\x86\xdd" + header + payload


OUT4 = ipv4(mac_of(PEER), mac_of(OURS), PEER_IP, OUR_IP)
OUT6 = ipv6(mac_of(PEER), mac_of(OURS), PEER_IP6, OUR_IP6)
IN4 = ipv4(mac_of(OURS), mac_of(PEER), OUR_IP, PEER_IP)
IN6 = ipv6(mac_of(OURS), mac_of(PEER), OUR_IP6, PEER_IP6)


class PlaneTestCase(SynchronousTestCase):
    """Our plane, one peer with a direct path, and one that nobody has spoken to."""

    def setUp(self) -> None:
        self.clock, self.port, self.wire, self.elsewhere = Clock(), FramePair(mtu=1500), Wire(), Sink()
        self.there = Endpoint("mem", "192.0.2.2", 4500)
        self.control = TableControl({PEER_IP: PEER, PEER_IP6: PEER, THIRD_IP: THIRD, THIRD_IP6: THIRD})
        self.fib = Fib(OURS, NETWORK.prefix)
        self.plane = ForwardingPlane(OURS, self.fib, self.port, self.wire, self.control, self.clock.seconds, self.elsewhere)
        self.plane.configure(OUR_IP)
        self.port.start(self.plane)
        self.session, self.remote = clear_pair(OUR_INDEX, PEER_INDEX)
        adjacency = self.fib.update(PEER, [self.session], self.there, "peer", mtu=1500)
        assert adjacency is not None
        self.adjacency = adjacency

    def assertDropped(self, **expected: int) -> None:
        self.assertEqual({reason: count for reason, count in self.plane.dropped.items() if count}, expected)

    def sent(self) -> list[tuple[int, bytes]]:
        """Kind and packed frame of what the peer got since the last time."""
        return [self.remote.unprotect(datagram) for endpoint, datagram in self.wire.take()]

    def receive(self, frame: bytes, kind: int = FRAME, endpoint: Endpoint | None = None) -> None:
        """A record of the peer; of an Ethernet frame its MAC addresses stay at home."""
        self.plane.datagram_received(endpoint or self.there, self.remote.protect(kind, packed(frame) if kind == FRAME else frame))
        self.plane.burst_ended()


class InterfaceTests(PlaneTestCase):
    """What is promised to others."""

    def test_the_control_plane_hears_of_the_end(self) -> None:
        """Of each burst, also of one in which something goes wrong: its answers wait for that."""
        self.plane.burst_ended()
        self.assertEqual(self.elsewhere.bursts, 1)

        def failing() -> None:
            raise ValueError("on purpose")

        self.patch(self.plane.outbound, "frames_waiting", failing)
        self.assertRaises(ValueError, self.plane.burst_ended)
        self.assertEqual(self.elsewhere.bursts, 2)

    def test_interfaces(self) -> None:
        verifyObject(IFrameReceiver, self.plane)
        verifyObject(IForwardingControl, self.control)
        verifyObject(ISession, self.session)
        verifyObject(ISealedChannel, self.session.channel)
        verifyObject(ISealedChannel, sealed_pair(1, 2)[0].channel)
        verifyObject(ITransport, self.wire)
        verifyObject(IDatagramReceiver, self.plane)
        verifyObject(IDatagramReceiver, self.elsewhere)


class AddressTests(SynchronousTestCase):
    """MAC and IPv6 address of an ident."""

    IDENT = bytes.fromhex("ff0102030405060708090a0b0c0d0e0f10111213")

    def test_vectors(self) -> None:
        self.assertEqual(mac_of(self.IDENT).hex(":"), "fe:01:02:03:04:05")
        self.assertEqual(mac_of(bytes(20)).hex(":"), "02:00:00:00:00:00")
        self.assertEqual(ipv6_of(NETWORK.prefix, self.IDENT), IPv6Address("fd12:3456:789a:ff01:0203:0405:0607:0809"))

    @given(st.binary(min_size=20, max_size=20))
    @settings(deadline=None)
    def test_every_ident(self, ident: bytes) -> None:
        self.assertEqual((mac_of(ident)[0] & 3, len(mac_of(ident))), (2, 6))
        self.assertIn(ipv6_of(NETWORK.prefix, ident), NETWORK.prefix)
        prefix = ident_prefix_of(ipv6_of(NETWORK.prefix, ident))
        self.assertEqual((prefix[:10], prefix[10:]), (ident[:10], bytes(10)))
        self.assertLessEqual(prefix, ident)


class FibTests(PlaneTestCase):
    """The table."""

    def test_update_keeps_what_was_learnt(self) -> None:
        self.adjacency.tx_frames = 7
        self.adjacency.addresses.add(PEER_IP.packed)
        older, newer = self.session, ClearSession(0x80000009, 5)
        self.assertIs(self.fib.update(PEER, [newer, older], None), self.adjacency)
        self.assertEqual((self.adjacency.tx_frames, self.adjacency.name, self.adjacency.endpoint), (7, "peer", None))
        self.assertEqual(self.adjacency.addresses, {PEER_IP.packed})
        self.assertIs(self.adjacency.session, newer)
        self.assertIs(self.adjacency.channel, newer.channel)
        entries = {session.local_index: (session, session.channel, self.adjacency) for session in (newer, older)}
        self.assertEqual(self.fib.by_index, entries)
        self.fib.update(PEER, [newer], None)
        self.assertEqual(list(self.fib.by_index), [0x80000009])
        self.fib.update(PEER, [], None)
        self.assertEqual((self.fib.by_index, self.adjacency.session, self.adjacency.channel), ({}, None, None))

    def test_remove(self) -> None:
        self.fib.remove(PEER)
        self.fib.remove(PEER)
        self.assertEqual((self.fib.by_ident, self.fib.by_mac, self.fib.by_index), ({}, {}, {}))

    def test_part_and_bury(self) -> None:
        """Nothing is sent to a peer that we have parted from, and what it has sent arrives until it is buried; a new link is apart."""
        parted = self.fib.part(PEER)
        self.assertIs(parted, self.adjacency)
        self.assertIsNone(self.fib.part(PEER))
        self.assertEqual((self.fib.by_ident, self.fib.by_mac, list(self.fib.by_index)), ({}, {}, [OUR_INDEX]))
        self.assertFalse(self.adjacency.reachable)
        self.receive(IN6)
        self.assertEqual(self.port.taken, [IN6])
        fresh = self.fib.update(PEER, [ClearSession(0x80000009, 5)], self.there)
        self.assertIsNot(fresh, self.adjacency)
        self.fib.bury(self.adjacency)
        self.assertEqual((list(self.fib.by_index), self.fib.by_ident), ([0x80000009], {PEER: fresh}))

    def test_no_sealing_yet(self) -> None:
        """A peer that may not have its keys yet is heard; frames for it wait, and what was sealed before tells nothing of the path."""
        session, remote = clear_pair(0x80000009, 5)
        self.fib.remove(PEER)
        peer = self.fib.update(PEER, [session], self.there, sealing=False)
        assert peer is not None
        self.remote = remote
        self.receive(IN6)
        self.assertEqual((self.port.taken, peer.reachable), ([IN6], False))
        session.channel.reserve(5)
        self.fib.update(PEER, [session], self.there)
        self.assertTrue(peer.reachable)
        peer.width.report(1.0, 5, 4, 1, 0, 1.0)
        self.assertEqual(peer.width.lost, 0)

    def test_mac_collision_is_refused(self) -> None:
        self.assertIsNone(self.fib.update(PEER[:6] + bytes(14), [ClearSession(0x80000003, 3)], None))
        self.assertEqual(list(self.fib.by_ident), [PEER])
        self.assertIs(self.fib.by_mac[mac_of(PEER)], self.adjacency)
        self.fib.remove(PEER[:6] + bytes(14))
        self.assertIs(self.fib.by_mac[mac_of(PEER)], self.adjacency)

    def test_index_collision_stays_with_the_first(self) -> None:
        other = self.fib.update(THIRD, [ClearSession(OUR_INDEX, 3)], None)
        self.assertIs(self.fib.by_index[OUR_INDEX][2], self.adjacency)
        self.fib.remove(THIRD)
        self.assertIs(self.fib.by_index[OUR_INDEX][2], self.adjacency)
        self.assertIsNotNone(other)

    def test_disown(self) -> None:
        self.adjacency.addresses.add(PEER_IP.packed)
        self.fib.disown(PEER, PEER_IP)
        self.fib.disown(THIRD, PEER_IP)
        self.assertEqual(self.adjacency.addresses, set())


class OutTests(PlaneTestCase):
    """Frames from the kernel."""

    def test_direct(self) -> None:
        self.port.give(OUT4)
        self.port.give(OUT6)
        self.assertEqual([endpoint for endpoint, _ in self.wire.sent], [self.there] * 2)
        self.assertEqual(self.sent(), [(FRAME, packed(OUT4)), (FRAME, packed(OUT6))])
        self.assertEqual((self.adjacency.tx_frames, self.adjacency.tx_bytes), (2, len(packed(OUT4)) + len(packed(OUT6))))
        self.assertEqual(self.control.calls, [])

    def test_together(self) -> None:
        """Frames that wait together travel in one record, in order; others do not wait for them."""
        self.port.pause()
        for frame in (OUT4, OUT6, OUT4, ARP_REQUEST, OUT6):
            self.port.give(frame)
        self.port.resume()
        frames = [packed(frame) for frame in (OUT4, OUT6, OUT4)]
        bundle = b"".join(frames) + struct.pack("!4H", *map(len, frames), 3)
        self.assertEqual(self.sent(), [(BUNDLE, bundle), (FRAME, packed(OUT6))])
        self.assertEqual(len(self.port.taken), 1)

    def test_without_a_path_or_a_session_frames_wait(self) -> None:
        self.control.later = True
        self.fib.update(PEER, [self.session], None)
        self.port.give(OUT4)
        self.fib.update(PEER, [], self.there)
        self.port.give(OUT6)
        self.assertEqual(self.control.calls, [("connect", PEER)])
        self.assertEqual(self.wire.sent, [])
        adjacency = self.fib.update(PEER, [self.session], self.there)
        assert adjacency is not None
        self.plane.fib_changed(adjacency)
        self.assertEqual(self.sent(), [(FRAME, packed(OUT4)), (FRAME, packed(OUT6))])
        self.control.waiting[0].callback(None)
        self.assertEqual(self.sent(), [])
        self.assertDropped()

    def test_what_waits_for_a_link_is_bounded(self) -> None:
        self.control.later = True
        self.fib.update(PEER, [], None)
        for _ in range(waiting.WAITING_FRAMES + 3):
            self.port.give(OUT4)
        self.assertDropped(out_busy=3)
        self.control.waiting[0].errback(Unreachable("nobody there"))
        self.assertDropped(out_busy=3, out_unreachable=waiting.WAITING_FRAMES)

    def test_a_link_that_is_there_but_of_no_use(self) -> None:
        self.fib.update(PEER, [self.session], None)
        self.port.give(OUT4)
        self.assertDropped(out_unreachable=1)
        self.assertEqual(self.wire.sent, [])

    def test_arp_is_answered(self) -> None:
        self.port.give(ARP_REQUEST)
        [reply] = self.port.taken
        self.assertEqual((reply[6:12], reply[20:32]), (mac_of(PEER), b"\0\x02" + mac_of(PEER) + PEER_IP.packed))

    def test_solicitation_is_answered(self) -> None:
        question = icmp6(OUR_IP6, IPv6Address("ff02::1:ff02:202"), solicitation(target=PEER_IP6))
        asker = question[6:12]
        self.assertTrue(any(asker))
        self.port.give(question)
        [reply] = self.port.taken
        self.assertEqual((reply[:12], reply[54], reply[-6:]), (asker + mac_of(PEER), 136, mac_of(PEER)))

    def test_unicast_probes_are_answered_and_never_carried(self) -> None:
        self.port.give(mac_of(PEER) + ARP_REQUEST[6:])
        self.port.give(icmp6(OUR_IP6, PEER_IP6, solicitation(b"", PEER_IP6), ether=mac_of(PEER)))
        self.assertEqual([reply[6:12] for reply in self.port.taken], [mac_of(PEER)] * 2)
        self.assertTrue(all(any(reply[:6]) for reply in self.port.taken))
        self.assertEqual(self.sent(), [])

    def test_an_address_nobody_owns(self) -> None:
        del self.control.owners[PEER_IP]
        self.port.give(ARP_REQUEST)
        self.control.failure = Unreachable("no answer")
        self.port.give(ARP_REQUEST)
        self.assertEqual(self.port.taken, [])
        self.assertDropped(out_unresolved=2)

    def test_a_fault_of_the_resolver_is_logged(self) -> None:
        self.control.failure = RuntimeError("a fault")
        self.port.give(ARP_REQUEST)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.assertDropped(out_unresolved=1)

    def test_our_own_address_is_never_answered(self) -> None:
        probe = icmp6(IPv6Address("::"), IPv6Address("ff02::1:ff01:101"), solicitation(b"", OUR_IP6))
        self.port.give(probe)
        self.port.give(ARP_REQUEST[:28] + bytes(4) + ARP_REQUEST[32:38] + OUR_IP.packed)
        self.assertEqual((self.port.taken, self.control.calls), ([], []))
        self.assertDropped(out_own_address=2)

    def test_repeated_questions_are_one_look_up_and_one_answer(self) -> None:
        self.control.later = True
        for _ in range(3):
            self.port.give(ARP_REQUEST)
        self.assertEqual(self.control.calls, [("resolve", PEER_IP)])
        self.control.waiting[0].callback(PEER)
        self.assertEqual(len(self.port.taken), 1)
        self.port.give(ARP_REQUEST)
        self.assertEqual(len(self.control.calls), 2)

    def test_a_scan_is_bounded(self) -> None:
        self.control.later = True
        for n in range(plane_module.WAITING_LOOKUPS + 10):
            self.port.give(ARP_REQUEST[:38] + b"\x0a\x80" + (n + 2).to_bytes(2, "big"))
        self.assertEqual(len(self.control.calls), plane_module.WAITING_LOOKUPS)
        self.assertDropped(out_busy=10)
        for n in range(plane_module.WAITING_LOOKUPS + 10):
            self.port.give(ipv4(b"\x06" * 4 + n.to_bytes(2, "big"), mac_of(OURS), THIRD_IP, OUR_IP))
        self.assertEqual(len(self.control.calls), 2 * plane_module.WAITING_LOOKUPS)
        self.assertDropped(out_busy=20)

    def test_a_forgotten_peer_is_found_again(self) -> None:
        self.control.later = True
        frames = [ipv4(mac_of(THIRD), mac_of(OURS), THIRD_IP, OUR_IP, bytes((n,))) for n in range(waiting.WAITING_FRAMES + 1)]
        for frame in frames:
            self.port.give(frame)
        self.assertEqual(self.control.calls, [("resolve", THIRD_IP)])
        self.control.waiting[0].callback(THIRD)
        self.assertEqual(self.control.calls[1:], [("connect", THIRD)])
        session, remote = clear_pair(0x80000008, 8)
        adjacency = self.fib.update(THIRD, [session], self.there)
        assert adjacency is not None
        self.plane.fib_changed(adjacency)
        self.assertEqual(
            [remote.unprotect(datagram) for _, datagram in self.wire.take()], [(FRAME, packed(frame)) for frame in frames[:-1]]
        )
        self.assertDropped(out_busy=1)

    def test_a_peer_found_again_with_a_path_is_sent_to_directly(self) -> None:
        self.control.later = True
        frame = ipv6(mac_of(THIRD), mac_of(OURS), THIRD_IP6, OUR_IP6)
        self.port.give(frame)
        session, remote = clear_pair(0x80000008, 8)
        self.fib.update(THIRD, [session], self.there)
        self.control.waiting[0].callback(THIRD)
        [(_, datagram)] = self.wire.take()
        self.assertEqual(remote.unprotect(datagram), (FRAME, packed(frame)))

    def test_a_mac_of_nobody(self) -> None:
        self.port.give(ipv4(b"\x06" * 6, mac_of(OURS), THIRD_IP, OUR_IP))
        self.port.give(ipv4(b"\x06" * 6, mac_of(OURS), IPv4Address("10.128.9.9"), OUR_IP))
        self.port.give(ipv6(b"\x06" * 6, mac_of(OURS), IPv6Address("2001:db8::1"), OUR_IP6))
        self.assertDropped(out_unknown_mac=3)

    def test_what_ends_here(self) -> None:
        every = b"\xff" * 6
        dhcp = ipv4(every, mac_of(OURS), IPv4Address("255.255.255.255"), IPv4Address(0), b"\0\x44\0\x43" + bytes(20))
        dhcp = dhcp[:23] + b"\x11" + dhcp[24:]
        for frame in (
            dhcp,
            ipv4(b"\x01\0\x5e\0\0\xfb", mac_of(OURS), IPv4Address("224.0.0.251"), OUR_IP),
            icmp6(IPv6Address("fe80::1"), IPv6Address("ff02::2"), bytes((133, 0)) + bytes(6)),
            icmp6(IPv6Address("fe80::1"), IPv6Address("ff02::16"), bytes((143, 0)) + bytes(6), hops=1),
            every + mac_of(OURS) + b"\x88\xb5" + b"x" * 50,
            mac_of(PEER) + mac_of(OURS) + b"\x88\xb5" + b"x" * 50,
            b"short",
            icmp6(OUR_IP6, IPv6Address("ff02::1:ff00:1"), solicitation(target=IPv6Address("fe80::5"))),
            icmp6(OUR_IP6, PEER_IP6, solicitation(b"\x01\0"), ether=mac_of(PEER)),
        ):
            self.port.give(frame)
        self.assertDropped(out_dhcp=1, out_multicast=3, out_ethertype=2, out_runt=1, out_neighbour=2)
        self.assertEqual((self.control.calls, self.port.taken, self.sent()), ([], [], []))


class InTests(PlaneTestCase):
    """Datagrams from peers."""

    def test_delivered(self) -> None:
        self.receive(IN4)
        self.receive(IN6)
        self.assertEqual(self.port.taken, [IN4, IN6])
        self.assertEqual((self.adjacency.rx_frames, self.adjacency.rx_bytes), (2, len(packed(IN4)) + len(packed(IN6))))
        self.assertDropped()

    def test_two_sessions(self) -> None:
        """After a rekey the new session seals and both open, also in turns."""
        newer, remote = clear_pair(0x80000009, 9)
        self.fib.update(PEER, [newer, self.session], self.there)
        frames = [ipv6(mac_of(OURS), mac_of(PEER), OUR_IP6, PEER_IP6, bytes((n,))) for n in range(6)]
        for n, frame in enumerate(frames):
            self.plane.datagram_received(self.there, (remote if n % 2 else self.remote).protect(FRAME, packed(frame)))
        self.assertEqual(self.port.taken, frames)
        self.port.give(OUT6)
        [(_, datagram)] = self.wire.take()
        self.assertEqual(remote.unprotect(datagram), (FRAME, packed(OUT6)))
        self.fib.update(PEER, [newer], self.there)
        stale = self.remote.protect(FRAME, packed(IN6))
        self.plane.datagram_received(self.there, stale)
        self.assertEqual(self.elsewhere.datagrams, [stale])

    def test_not_ours(self) -> None:
        good = self.remote.protect(FRAME, packed(IN6))
        strangers = [b"", good[:15], good[:16], b"\x16" + good[1:], b"\xc0" + good[1:], good[:3] + b"\x07" + good[4:]]
        for datagram in strangers:
            self.plane.datagram_received(self.there, datagram)
        self.assertEqual(self.elsewhere.datagrams, strangers)
        self.assertEqual(self.port.taken, [])
        self.assertDropped()

    def test_forged(self) -> None:
        good = self.remote.protect(FRAME, packed(IN6))
        for datagram in (good[:-1] + bytes((good[-1] ^ 1,)), good[:17], good[:31]):
            self.plane.datagram_received(self.there, datagram)
        self.assertDropped(in_forged=3)
        self.assertEqual((self.adjacency.rx_frames, self.control.calls, self.control.opened_of), (0, [], []))

    def test_nothing_twice(self) -> None:
        good = self.remote.protect(FRAME, packed(IN6))
        for _ in range(3):
            self.plane.datagram_received(self.there, good)
        self.assertEqual(self.port.taken, [IN6])
        self.assertDropped(in_forged=2)

    def test_other_kinds_go_to_the_control_plane(self) -> None:
        elsewhere = Endpoint("mem", "192.0.2.9", 9)
        self.receive(b"message", CONTROL, elsewhere)
        self.assertEqual(self.control.calls, [("unsealed", elsewhere, self.session, CONTROL, b"message")])
        self.assertEqual(self.port.written, [])

    def test_another_path_is_reported_once_per_change(self) -> None:
        self.adjacency.addresses.add(PEER_IP.packed)
        first, second = Endpoint("mem", "192.0.2.8", 8), Endpoint("mem", "192.0.2.9", 9)
        for endpoint in (self.there, first, first, self.there, first, second, second):
            self.receive(IN4, endpoint=endpoint)
        self.assertEqual(self.control.calls, [("path_seen", self.session, first), ("path_seen", self.session, second)])
        self.fib.update(PEER, [self.session], first)
        for endpoint in (first, second):
            self.receive(IN4, endpoint=endpoint)
        self.assertEqual(self.control.calls[2:], [("path_seen", self.session, second)])
        self.assertEqual(len(self.port.taken), 9)

    def test_macs_are_not_on_the_wire(self) -> None:
        """A peer cannot say whose frame it is: that is known from its session."""
        lie = ipv4(mac_of(THIRD), mac_of(THIRD), OUR_IP, PEER_IP)
        self.receive(lie)
        self.assertEqual(self.port.taken, [IN4])

    def test_every_lie_is_dropped_under_its_name(self) -> None:
        us, them = mac_of(OURS), mac_of(PEER)
        claim = bytes((136, 0, 0, 0, 0x60, 0, 0, 0)) + THIRD_IP6.packed + b"\x02\x01" + them
        advertisement = icmp6(PEER_IP6, OUR_IP6, claim, ether=us)
        for frame in (
            us + them + b"\x08\x06" + ARP_REQUEST[14:],
            ipv4(us, them, THIRD_IP, PEER_IP),
            ipv6(us, them, THIRD_IP6, PEER_IP6),
            ipv6(us, them, OUR_IP6, THIRD_IP6),
            advertisement[:6] + them + advertisement[12:],
            ipv4(us, them, OUR_IP, PEER_IP)[:33],
            ipv6(us, them, OUR_IP6, PEER_IP6)[:53],
            us + them + b"\x08\0" + b"\x65" + IN4[15:],
            us + them + b"\x86\xdd" + b"\x40" + IN6[15:],
            b"",
        ):
            self.receive(frame)
        self.assertEqual(self.port.taken, [])
        wanted = {"in_ethertype": 2, "in_destination_address": 2}
        self.assertDropped(**wanted, in_source_address=1, in_neighbour=1, in_runt=4)

    def test_misdirected(self) -> None:
        """Who sends us frames for an address that is not ours is told, a few times a second at most."""
        us, them = mac_of(OURS), mac_of(PEER)
        self.control.calls.clear()
        for _ in range(5):
            self.receive(ipv4(us, them, THIRD_IP, PEER_IP))
        self.assertEqual(self.control.calls, [("misdirected", PEER, THIRD_IP)])
        self.clock.advance(plane_module.TELL_EVERY)
        self.receive(ipv4(us, them, THIRD_IP, PEER_IP))
        self.assertEqual(self.control.calls, [("misdirected", PEER, THIRD_IP)] * 2)

    def test_announcement(self) -> None:
        """The kernel is told of an owner that has changed."""
        self.plane.announce(THIRD_IP, PEER)
        self.assertEqual(self.port.taken, [neighbour.announcement(THIRD_IP, mac_of(PEER))])

    def test_without_an_address_no_ipv4_is_ours(self) -> None:
        self.plane.configure(None)
        self.receive(IN4)
        self.assertDropped(in_destination_address=1)


def packed(frame: bytes) -> bytes:
    """An Ethernet frame as it travels."""
    return offload.PLAIN + frame[12:]
