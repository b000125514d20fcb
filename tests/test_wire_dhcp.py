"""DHCP messages and the frames that carry them: pinned bytes, and no bytes do more than be understood or refused."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import TestCase

from ipop_tx.errors import BadMessage
from ipop_tx.forwarding import dhcp as frames
from ipop_tx.wire import dhcp
from ipop_tx.wire.dhcp import Message

MAC = bytes.fromhex("0250cafe0001")
DISCOVER = Message(
    dhcp.DISCOVER, b"\x01\x02\x03\x04", MAC, {dhcp.REQUESTED: b"\x0a\x80\x00\x09", dhcp.HOST_NAME: b"box"}, broadcast=True, seconds=3
)
VECTOR = (
    "01010600010203040003800000000000000000000000000000000000" + MAC.hex() + "00" * 202 + "63825363"
    "3501013204" + "0a800009" + "0c03" + b"box".hex() + "ff"
)  # fmt: skip

addresses = st.binary(min_size=4, max_size=4)
macs = st.binary(min_size=6, max_size=6).map(lambda mac: bytes((mac[0] & 0xFE | 2,)) + mac[1:])
messages = st.builds(
    Message,
    st.integers(1, 8),
    addresses,
    macs,
    st.dictionaries(
        st.integers(1, 254).filter(lambda code: code not in (dhcp.OVERLOAD, *dhcp._LENGTHS, dhcp.CLIENT)),
        st.binary(max_size=300),
        max_size=3,
    ),
    st.booleans(),
    st.booleans(),
    st.integers(0, 65535),
    addresses,
    addresses,
)


def raw(*options: bytes, sname: bytes = b"", file: bytes = b"") -> bytes:
    """A client's message with these options as they are."""
    head = dhcp.encode(DISCOVER)[:44]
    return head + sname.ljust(64, b"\0") + file.ljust(128, b"\0") + b"\x63\x82\x53\x63" + b"".join(options)


class MessageTests(TestCase):
    """The codec."""

    def test_vector(self) -> None:
        encoded = dhcp.encode(DISCOVER)
        self.assertEqual(encoded.rstrip(b"\0").hex(), VECTOR)
        self.assertEqual(len(encoded), 300)
        self.assertEqual(dhcp.decode(encoded), DISCOVER)

    @given(messages)
    @settings(deadline=None)
    def test_round_trip(self, message: Message) -> None:
        if len(dhcp.encode(message)) <= 1472:
            self.assertEqual(dhcp.decode(dhcp.encode(message)), message)

    @given(st.binary(max_size=700))
    @settings(deadline=None)
    def test_any_bytes(self, data: bytes) -> None:
        self.decoded_or_refused(data)

    @given(st.binary(max_size=64), st.binary(max_size=128), st.binary(max_size=300))
    @settings(deadline=None)
    def test_any_options(self, sname: bytes, file: bytes, options: bytes) -> None:
        """Of a message that is good otherwise, also where options go on elsewhere."""
        self.decoded_or_refused(raw(b"\x35\x01\x01", options, sname=sname, file=file))
        self.decoded_or_refused(raw(b"\x35\x01\x01\x34\x01\x03", options, sname=sname, file=file))

    def decoded_or_refused(self, data: bytes) -> None:
        try:
            message = dhcp.decode(data)
        except BadMessage:
            return
        self.assertTrue(1 <= message.kind <= 8)
        self.assertTrue(2 <= len(message.holder) <= dhcp.HOLDER_BYTES)
        self.assertIn(len(message.asked or bytes(4)), (4,))

    def test_malformed(self) -> None:
        good = dhcp.encode(DISCOVER)
        for at, value in ((0, 3), (1, 6), (2, 16), (24, 1), (28, 3), (236, 0)):
            with self.assertRaises(BadMessage, msg=f"byte {at}"):
                dhcp.decode(good[:at] + bytes((value,)) + good[at + 1 :])
        for options in (
            (),  # BOOTP
            (b"\x35\x01\x00",),
            (b"\x35\x01\x09",),
            (b"\x35\x00",),
            (b"\x35\x02\x01\x01",),
            (b"\x35\x01",),
            (b"\x35\x01\x01\x32\x03\x0a\x80\x00",),
            (b"\x35\x01\x01\x32\x04\x0a\x80\x00",),
            (b"\x35\x01\x01\x3d\x01\x00",),
            (b"\x35\x01\x01\x0c",),
            (b"\x35\x01\x01\x34\x01\x01",),  # goes on in `file`, which is cut short below
        ):
            with self.assertRaises(BadMessage, msg=str(options)):
                dhcp.decode(raw(*options, file=b"\x0c\xff"))
        self.assertRaises(BadMessage, dhcp.decode, good[:239])
        self.assertRaises(BadMessage, dhcp.decode, good.ljust(1473, b"\0"))

    def test_options_in_parts(self) -> None:
        """One that comes twice is one (RFC 3396), and `file` comes before `sname`."""
        found = dhcp.decode(raw(b"\x35\x01\x01\x0c\x02ab\x00\x0c\x01c\xff"))
        self.assertEqual(found.options[dhcp.HOST_NAME], b"abc")
        found = dhcp.decode(raw(b"\x34\x01\x03\xff", file=b"\x35\x01\x03\x0c\x01a\xff", sname=b"\x0c\x01b\xff"))
        self.assertEqual((found.kind, found.options), (dhcp.REQUEST, {dhcp.HOST_NAME: b"ab"}))

    def test_holder(self) -> None:
        """Who sends no identifier is who sends its MAC address as one."""
        named = Message(dhcp.DISCOVER, bytes(4), MAC, {dhcp.CLIENT: b"\x01" + MAC})
        self.assertEqual(named.holder, Message(dhcp.DISCOVER, bytes(4), MAC).holder)
        long = [Message(dhcp.DISCOVER, bytes(4), MAC, {dhcp.CLIENT: bytes((n,)) * 65}).holder for n in (1, 2)]
        self.assertEqual({len(one) for one in long}, {33})
        self.assertNotEqual(*long)

    def test_routes(self) -> None:
        gateway = IPv4Address("10.128.0.9").packed
        packed = dhcp.routes([(24, b"\xc0\xa8\x07\x00", gateway), (0, bytes(4), gateway), (9, b"\x0a\x80\x00\x00", gateway)])
        self.assertEqual(packed.hex(), "18c0a807" + "0a800009" + "00" + "0a800009" + "090a80" + "0a800009")


def udp(body: bytes, ports: tuple[int, int] = (68, 67), options: bytes = b"", fragment: int = 0, total: int = 0, check: int = 0) -> bytes:
    """An Ethernet frame, without UDP checksum unless one is given."""
    length = 20 + len(options)
    header = struct.pack(
        ">BBHHHBBH4s4s", 0x40 | length // 4, 0, total or length + 8 + len(body), 0, fragment, 64, 17, 0, bytes(4), b"\xff" * 4
    )
    header += options
    header = header[:10] + (0xFFFF - frames._sum(header)).to_bytes(2, "big") + header[12:]
    return b"\xff" * 6 + MAC + b"\x08\x00" + header + struct.pack(">HHHH", *ports, 8 + len(body), check) + body


def packed(frame: bytes) -> bytes:
    return bytes(10) + frame[12:]


class FrameTests(TestCase):
    """What is DHCP, and what is a question."""

    def test_question(self) -> None:
        body = dhcp.encode(DISCOVER)
        self.assertEqual(frames.parse(udp(body), True), DISCOVER)
        self.assertEqual(frames.parse(udp(body, options=b"\x01" * 8), True), DISCOVER)
        self.assertEqual(frames.parse(udp(body) + bytes(9), True), DISCOVER)

    def test_no_question(self) -> None:
        body = dhcp.encode(DISCOVER)
        good = udp(body)
        for what, frame in {
            "a wrong checksum": udp(body, check=7),
            "a fragment": udp(body, fragment=0x2000),
            "another fragment": udp(body, fragment=5),
            "a length beyond its end": udp(body, total=400),
            "a length within its headers": udp(body, total=24),
            "another port": udp(body, (68, 68)),
            "a broken IP header": good[:22] + b"\x01" + good[23:],
            "another protocol": good[:23] + b"\x06" + good[24:],
            "an answer": udp(dhcp.encode(Message(dhcp.OFFER, bytes(4), MAC, reply=True))),
            "nonsense": udp(bytes(300)),
            "nothing": b"",
        }.items():
            self.assertIsNone(frames.parse(frame, True), what)
        self.assertEqual(frames.parse(udp(body, check=7), False), DISCOVER, "whose checksum is still to be made")

    @given(st.binary(max_size=400), st.booleans())
    @settings(deadline=None)
    def test_any_bytes(self, data: bytes, summed: bool) -> None:
        frames.parse(data, summed)
        frames.is_dhcp(data)
        whole = bytes(12) + b"\x08\x00" + data
        if frames.parse(whole, summed) is not None:
            self.assertTrue(frames.is_dhcp(packed(whole)))

    def test_told_by_ports(self) -> None:
        for ports, server in (((68, 67), False), ((67, 68), True), ((67, 9), True), ((9, 68), True), ((67, 67), True), ((9, 67), False)):
            for options in (b"", b"\x01" * 8):
                one = packed(udp(b"x" * 300, ports, options))
                self.assertEqual((frames.is_dhcp(one), frames.is_from_server(one)), (True, server), ports)
        for other in ((9, 9), (0x4344, 0x4344), (68, 9), (0x0143, 0x0143)):
            self.assertFalse(frames.is_dhcp(packed(udp(b"x", other))), other)
        self.assertFalse(frames.is_dhcp(packed(udp(b"x", fragment=5))), "what looks like ports is in the middle of something")
        self.assertTrue(frames.is_dhcp(packed(udp(b"x", fragment=0x2000))))

    @given(messages.filter(lambda message: message.kind != dhcp.NAK))
    @settings(deadline=None)
    def test_answers(self, message: Message) -> None:
        """Both checksums are right, and it goes where RFC 2131 says."""
        frame = frames.frame(message, b"\x02srv\0\0", b"\x0a\x80\x00\x01")
        self.assertEqual(frames._sum(frame[14:34]), 0xFFFF)
        pseudo = frame[26:34] + b"\0\x11" + frame[38:40]
        self.assertEqual(frames._sum(pseudo + frame[34:]), 0xFFFF)
        by_broadcast = message.broadcast and message.client == dhcp.NOWHERE
        target = message.client if message.client != dhcp.NOWHERE else message.yours
        self.assertEqual(frame[:6], b"\xff" * 6 if by_broadcast else message.mac)
        self.assertEqual(frame[30:34], b"\xff" * 4 if by_broadcast else target)

    def test_refusal_reaches_who_has_a_wrong_address(self) -> None:
        frame = frames.frame(Message(dhcp.NAK, bytes(4), MAC, reply=True), b"\x02srv\0\0", b"\x0a\x80\x00\x01")
        self.assertEqual((frame[:6], frame[30:34]), (b"\xff" * 6, b"\xff" * 4))
