"""Guests behind a node: their packets at the forwarding plane, their DHCP, and what no DHCP server elsewhere can do."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address

from ipop_tx.forwarding import dhcp as frames
from ipop_tx.forwarding import neighbour
from ipop_tx.forwarding.offload import NEEDS_CHECKSUM
from ipop_tx.wire import dhcp
from ipop_tx.wire.address import mac_of
from ipop_tx.wire.datagram import BUNDLE
from ipop_tx.wire.dhcp import Message
from tests.test_forwarding import IN4, OUR_IP, OURS, PEER, PEER_IP, THIRD_IP, PlaneTestCase, ipv4, packed

GUEST, GUEST_MAC = IPv4Address("10.128.7.7"), b"\x02guest"
OTHER, OTHER_MAC = IPv4Address("10.128.7.8"), b"\x02other"
EVERYBODY = b"\xff" * 6
HOME = bytes(6)  # MACs stay at home
DISCOVER = Message(dhcp.DISCOVER, b"xid1", GUEST_MAC)


def udp(frame: bytes, ports: tuple[int, int], options: bytes = b"") -> bytes:
    """The frame as UDP from and to these ports, behind IPv4 options if there are any."""
    header = bytes((0x45 + len(options) // 4,)) + frame[15:23] + b"\x11" + frame[24:34]
    return frame[:14] + header + options + struct.pack(">HHHH", *ports, 8 + 20, 0) + bytes(20)


def question(to: bytes = EVERYBODY, destination: IPv4Address | None = None) -> bytes:
    """A frame with a client's question."""
    made = frames.frame(DISCOVER, GUEST_MAC, bytes(4))  # a server's, from which a client's is made
    target = (destination or IPv4Address("255.255.255.255")).packed
    header = made[14:24] + b"\0\0" + made[26:30] + target
    header = header[:10] + (0xFFFF - frames._sum(header)).to_bytes(2, "big") + header[12:]
    return to + GUEST_MAC + b"\x08\0" + header + struct.pack(">HH", 68, 67) + made[38:40] + b"\0\0" + made[42:]


class GuestCase(PlaneTestCase):
    """Our plane with one guest."""

    def setUp(self) -> None:
        super().setUp()
        self.adjacency.addresses.add(PEER_IP.packed)
        self.plane.serve(GUEST.packed, GUEST_MAC)
        self.asked: list[Message] = []
        self.served = True
        self.plane.dhcp = self.ask

    def ask(self, message: Message) -> bool:
        self.asked.append(message)
        return self.served


class DeliveryTests(GuestCase):
    """Packets for guests, and from them."""

    def test_to_the_guests_mac(self) -> None:
        for target, mac in ((GUEST, GUEST_MAC), (OUR_IP, mac_of(OURS))):
            self.receive(ipv4(HOME, HOME, target, PEER_IP))
            self.assertEqual(self.port.taken.pop(), ipv4(mac, mac_of(PEER), target, PEER_IP))
        self.assertDropped()

    def test_in_a_bundle(self) -> None:
        """Each to its own MAC, also datagrams that are joined."""
        every = [udp(ipv4(HOME, HOME, target, PEER_IP), (9, 9)) for target in (OUR_IP, GUEST, GUEST, GUEST, OTHER, OUR_IP)]
        each = [packed(frame) for frame in every]
        self.receive(b"".join(each) + struct.pack(f"!{len(each)}HH", *map(len, each), len(each)), BUNDLE)
        macs = [frame[:6] for frame in self.port.taken]
        self.assertEqual(macs, [mac_of(OURS), GUEST_MAC, GUEST_MAC, GUEST_MAC, mac_of(OURS)])
        self.assertDropped(in_destination_address=1)

    def test_until_it_is_gone(self) -> None:
        self.plane.serve(GUEST.packed, OTHER_MAC)
        self.receive(ipv4(HOME, HOME, GUEST, PEER_IP))
        self.assertEqual(self.port.taken.pop()[:6], OTHER_MAC)
        self.plane.serve(GUEST.packed, None)
        self.receive(ipv4(HOME, HOME, GUEST, PEER_IP))
        self.assertEqual(self.port.taken, [])
        self.assertDropped(in_destination_address=1)

    def test_our_own_address_changes(self) -> None:
        """The guests stay."""
        self.plane.configure(THIRD_IP)
        self.plane.configure(None)
        for target in (OUR_IP, THIRD_IP, GUEST):
            self.receive(ipv4(HOME, HOME, target, PEER_IP))
        self.assertEqual([frame[:6] for frame in self.port.taken], [GUEST_MAC])

    def test_from_a_guest(self) -> None:
        """Carried like our own: whether the address is the guest's is seen at the other end, where it must be leased to us."""
        frame = ipv4(mac_of(PEER), GUEST_MAC, PEER_IP, GUEST)
        self.port.give(frame)
        [(_, sent)] = self.sent()
        self.assertEqual(sent, packed(frame))

    def test_a_packet_too_large(self) -> None:
        """Who sent it is told: our own kernel, or the guest."""
        self.adjacency.inner_mtu = 1300
        for source, mac in ((GUEST, GUEST_MAC), (OUR_IP, mac_of(OURS)), (OTHER, mac_of(OURS))):
            self.clock.advance(1)
            frame = bytearray(ipv4(mac_of(PEER), mac, PEER_IP, source, bytes(1400)))
            frame[20] = 0x40  # don't fragment
            self.port.give(bytes(frame))
            self.assertEqual(self.port.taken.pop()[:12], mac + mac_of(PEER))

    def test_neighbours(self) -> None:
        """A guest's question for a peer is answered to it; one for us, for a guest, or a probe of its own address, is not."""
        for target, asker, answered in (
            (PEER_IP, GUEST, True),
            (OUR_IP, GUEST, False),
            (GUEST, OTHER, False),
            (GUEST, IPv4Address(0), False),
        ):
            body = struct.pack(">HHBBH", 1, 0x0800, 6, 4, 1) + GUEST_MAC + asker.packed + bytes(6) + target.packed
            self.port.give(EVERYBODY + GUEST_MAC + b"\x08\x06" + body)
            if answered:
                request = neighbour.Request(target, GUEST_MAC, asker.packed)
                self.assertEqual(self.port.taken.pop(), neighbour.answer(request, mac_of(PEER)))
            self.assertEqual(self.port.taken, [])
        self.assertDropped(out_own_address=3)

    def test_what_a_bridge_sends_everywhere(self) -> None:
        """Frames from guest to guest, while the bridge does not know where that is: nobody is asked for them."""
        before = len(self.control.calls)
        self.port.give(ipv4(GUEST_MAC, OTHER_MAC, GUEST, OTHER))
        self.assertDropped(out_own_address=1)
        self.assertEqual(len(self.control.calls), before)


class DhcpTests(GuestCase):
    """DHCP on the port, and from peers."""

    def test_a_question(self) -> None:
        for frame in (question(), question(mac_of(OURS), OUR_IP), question(mac_of(PEER), PEER_IP)):
            self.port.give(frame)
        self.assertEqual(self.asked, [DISCOVER] * 3)
        self.assertEqual((self.sent(), self.port.taken), ([], []), "not even one for a peer is carried")
        self.assertDropped()

    def test_a_checksum_that_is_still_to_be_made(self) -> None:
        frame = question()
        frame = frame[:40] + b"\x12\x34" + frame[42:]
        self.port.give(frame)
        self.assertEqual(self.asked, [])
        self.port.give_super(bytes((NEEDS_CHECKSUM,)) + bytes(5) + struct.pack("<HH", 34, 6) + frame)
        self.assertEqual(self.asked, [DISCOVER])
        self.assertDropped(out_dhcp=1)

    def test_nobody_is_served(self) -> None:
        self.served = False
        self.port.give(question())
        self.assertDropped(out_dhcp=1)

    def test_a_server_beside_us(self) -> None:
        """Neither its broadcasts nor what it sends to a peer gets anywhere, whatever port it takes, or hides behind."""
        for options in (b"", b"\x01" * 4, b"\x01" * 40):
            for ports in ((67, 68), (67, 1234), (1234, 68), (67, 67)):
                for target in (mac_of(PEER), EVERYBODY, b"\x02nobod"):
                    self.port.give(udp(ipv4(target, OTHER_MAC, PEER_IP, OTHER), ports, options))
        self.assertEqual(self.sent(), [])
        self.assertDropped(out_dhcp_server=36)

    def test_other_datagrams(self) -> None:
        """What looks like it in one byte, or in the middle of a fragment, is carried."""
        count = 0
        for options in (b"", b"\x01" * 4):
            for ports in ((53, 0x0143), (0x0143, 53), (0x0144, 0x0144), (68, 53), (4500, 4500)):
                self.port.give(udp(ipv4(mac_of(PEER), GUEST_MAC, PEER_IP, GUEST), ports, options))
                count += 1
        fragment = bytearray(udp(ipv4(mac_of(PEER), GUEST_MAC, PEER_IP, GUEST), (67, 68)))
        fragment[21] = 5
        self.port.give(bytes(fragment))
        self.assertEqual(len(self.sent()), count + 1)
        self.assertDropped()

    def test_from_a_peer(self) -> None:
        """A server elsewhere, a client elsewhere, for us and for guests: nothing arrives."""
        for target in (GUEST, OUR_IP):
            for ports in ((67, 68), (1234, 68), (67, 1234), (68, 67)):
                for options in (b"", b"\x01" * 4):
                    self.receive(udp(ipv4(HOME, HOME, target, PEER_IP), ports, options))
        self.assertEqual(self.port.taken, [])
        self.assertDropped(in_dhcp=16)
        self.receive(udp(ipv4(HOME, HOME, GUEST, PEER_IP), (68, 53)))
        self.receive(IN4)
        self.assertEqual(len(self.port.taken), 2)
