"""The header of relayed datagrams, the first byte's families, and the addresses that an ident implies."""

from __future__ import annotations

from ipaddress import IPv6Address, IPv6Network

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import TestCase

from ipop_tx.errors import BadMessage
from ipop_tx.wire.address import ident_prefix_of, ipv6_of, mac_of
from ipop_tx.wire.datagram import (
    BUNDLE,
    CONTROL,
    FRAME,
    HEADER,
    HEADER_BYTES,
    MAX_PIECES,
    OVERHEAD,
    PIECE_AT,
    RELAY,
    Form,
    form_of,
    headers,
    receiver_index,
)
from ipop_tx.wire.relay import MAX_BACK, MAX_TTL, MAX_VIA, Relayed

A, B, C, D = (bytes([digit]) * 20 for digit in (0xAA, 0xBB, 0xCC, 0xDD))
IDENTS = st.binary(min_size=20, max_size=20)
PREFIX = IPv6Network("fd12:3456:789a::/48")


class RelayTests(TestCase):
    """Payloads of sealed kind 3."""

    VECTORS = (
        (Relayed(A, B, b"\x17datagram"), "20000000" + "aa" * 20 + "bb" * 20 + "17" + b"datagram".hex()),
        (Relayed(A, B, b"d", 7, (C,)), "07010000" + "aa" * 20 + "bb" * 20 + "cc" * 20 + "64"),
        (Relayed(A, B, b"d", 1, (), (D, C)), "01000200" + "aa" * 20 + "bb" * 20 + "dd" * 20 + "cc" * 20 + "64"),
        (Relayed(A, B, b"d", 32, (C,), (D,)), "20010100" + "aa" * 20 + "bb" * 20 + "cc" * 20 + "dd" * 20 + "64"),
    )

    def test_vectors(self) -> None:
        """The bytes are those of the drawing, both ways."""
        for relayed, text in self.VECTORS:
            self.assertEqual(relayed.encode().hex(), text)
            self.assertEqual(Relayed.decode(bytes.fromhex(text)), relayed)

    def test_traffic(self) -> None:
        """What stands before a record of the forwarding plane: flag 1, no way back; and it decodes like any other."""
        self.assertEqual(Relayed(A, B, b"").traffic_header().hex(), "20000001" + "aa" * 20 + "bb" * 20)
        routed = Relayed(A, B, b"", 7, (B,), (D, C)).traffic_header()
        self.assertEqual(routed.hex(), "07000201" + "aa" * 20 + "bb" * 20 + "dd" * 20 + "cc" * 20)
        self.assertEqual(Relayed.decode(routed + b"record"), Relayed(A, B, b"record", 7, (), (D, C)))

    def test_out_of_range(self) -> None:
        """Too short, too long a way back, too long a route, too far to go, nothing inside."""
        idents = A + B + C * 16
        for head in (b"\x20\x07\x00\x00", b"\x20\x00\x09\x00", b"\x21\x00\x00\x00", b"\xff\xff\xff\x00"):
            self.assertRaises(BadMessage, Relayed.decode, head + idents + b"datagram")
        self.assertRaises(BadMessage, Relayed.decode, b"")
        self.assertRaises(BadMessage, Relayed.decode, b"\x20\0\0\0" + A + B)
        self.assertRaises(BadMessage, Relayed.decode, b"\x20\1\1\0" + A + B + C + D)

    def test_next(self) -> None:
        """A hop takes one from the ttl, shortens the route and lengthens the way back."""
        self.assertEqual(Relayed(A, B, b"d", 7, (C,), (D,)).next((), (A, C)), Relayed(A, B, b"d", 6, (A, C), ()))

    @given(
        IDENTS,
        IDENTS,
        st.binary(min_size=1),
        st.integers(0, MAX_TTL),
        st.lists(IDENTS, max_size=MAX_BACK),
        st.lists(IDENTS, max_size=MAX_VIA),
    )
    def test_round_trip(self, destination: bytes, source: bytes, datagram: bytes, ttl: int, back: list[bytes], via: list[bytes]) -> None:
        """Every relayed datagram comes back."""
        relayed = Relayed(destination, source, datagram, ttl, tuple(back), tuple(via))
        self.assertEqual(Relayed.decode(relayed.encode()), relayed)

    @given(st.binary(max_size=200))
    def test_any_bytes(self, payload: bytes) -> None:
        """Only `BadMessage`; what decodes is bounded and encodes to the same, the reserved byte apart."""
        try:
            relayed = Relayed.decode(payload)
        except BadMessage:
            return
        self.assertTrue(relayed.ttl <= MAX_TTL and len(relayed.via) <= MAX_VIA and len(relayed.back) <= MAX_BACK and relayed.datagram)
        self.assertEqual(relayed.encode(), payload[:3] + b"\0" + payload[4:])


class RecordTests(TestCase):
    """The header of sealed datagrams."""

    def test_vectors(self) -> None:
        """In one piece, and in three: the headers differ in the number of the piece only."""
        one = HEADER.pack(0x80000005, CONTROL, 0, 1, 0, 0x0102030405060708)
        self.assertEqual(one.hex(), "80000005010001000102030405060708")
        self.assertEqual(headers(one, 1).hex(), one.hex())
        three = headers(HEADER.pack(0xBFFFFFFF, BUNDLE, 0, 3, 0, 9), 3)
        self.assertEqual(three.hex(), "".join(f"bfffffff04{piece:02x}03000000000000000009" for piece in range(3)))
        self.assertEqual((three[PIECE_AT], three[PIECE_AT + HEADER_BYTES]), (0, 1))

    def test_every_number_of_pieces(self) -> None:
        for pieces in range(1, MAX_PIECES + 1):
            first = HEADER.pack(0x80000005, FRAME, 0, pieces, 0, 7)
            found = [HEADER.unpack_from(headers(first, pieces), number * HEADER_BYTES) for number in range(pieces)]
            self.assertEqual(found, [(0x80000005, FRAME, number, pieces, 0, 7) for number in range(pieces)])

    def test_kinds(self) -> None:
        self.assertEqual((CONTROL, FRAME, RELAY, BUNDLE), (1, 2, 3, 4))


class FormTests(TestCase):
    """Which family a first byte belongs to (RFC 7983)."""

    def test_borders(self) -> None:
        """The borders of both ranges."""
        expected = {19: Form.OTHER, 20: Form.HANDSHAKE, 63: Form.HANDSHAKE, 64: Form.OTHER}
        expected |= {127: Form.OTHER, 128: Form.SEALED, 191: Form.SEALED, 192: Form.OTHER}
        self.assertEqual({first: form_of(bytes([first, 1])) for first in expected}, expected)
        self.assertEqual(form_of(b""), Form.OTHER)

    def test_receiver_index(self) -> None:
        """The first four bytes; nobody's for a datagram that cannot be sealed."""
        self.assertEqual(receiver_index(b"\x80\x00\x00\x05" + bytes(OVERHEAD - 4)), 0x80000005)
        self.assertEqual(receiver_index(b"\x80\x00\x00\x05" + bytes(OVERHEAD - 5)), 0)


class AddressTests(TestCase):
    """MAC and IPv6 address of an ident."""

    def test_vectors(self) -> None:
        """Worked examples."""
        self.assertEqual(mac_of(bytes(range(255, 235, -1))).hex(), "fefefdfcfbfa")
        self.assertEqual(mac_of(bytes(20)).hex(), "020000000000")
        self.assertEqual(ipv6_of(PREFIX, bytes(range(1, 21))), IPv6Address("fd12:3456:789a:102:304:506:708:90a"))
        self.assertEqual(ident_prefix_of(IPv6Address("fd12:3456:789a:102:304:506:708:90a")), bytes(range(1, 11)) + bytes(10))

    @given(IDENTS)
    def test_implied(self, ident: bytes) -> None:
        """The MAC is unicast and locally administered; the IPv6 address leads back to the first 80 bits."""
        self.assertEqual(mac_of(ident)[0] & 3, 2)
        address = ipv6_of(PREFIX, ident)
        self.assertIn(address, PREFIX)
        self.assertEqual(ident_prefix_of(address), ident[:10] + bytes(10))
