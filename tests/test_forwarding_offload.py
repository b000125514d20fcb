"""The kernel's work on super-frames, against a naive reference that cuts, counts and adds word by word."""

from __future__ import annotations

import struct
from ipaddress import ip_address
from itertools import pairwise
from typing import Any, NamedTuple

from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ipop_tx.errors import BadDatagram
from ipop_tx.forwarding import offload

MACS = bytes.fromhex("0a0102030405 0a0a0b0c0d0e")
FIN, SYN, PSH, ACK, ECE, CWR = 0x01, 0x02, 0x08, 0x10, 0x40, 0x80
TIMESTAMPS = bytes.fromhex("0101080a0102030405060708")
SACK = bytes.fromhex("0101050a0000000100000002")
HOP_BY_HOP = bytes.fromhex("0600010400000000")  # next header TCP, one PadN

at_most = settings(max_examples=150, deadline=None)


def folded(data: bytes) -> int:
    """RFC 1071, naive."""
    total = sum(struct.unpack(f">{len(data) // 2}H", data)) if not len(data) & 1 else 0
    if len(data) & 1:
        return folded(data + b"\0")
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


class Flow(NamedTuple):
    """What the headers of a packet say, however its payload is cut."""

    source: str = "10.128.0.1"
    destination: str = "10.128.0.2"
    tcp: bool = True
    flags: int = ACK
    options: bytes = b""
    sequence: int = 1000
    identification: int = 7
    dont_fragment: bool = True
    ports: tuple[int, int] = (1111, 2222)
    hops: int = 64
    traffic_class: int = 0
    extension: bytes = b""

    @property
    def version(self) -> int:
        return ip_address(self.source).version

    @property
    def protocol(self) -> int:
        return 6 if self.tcp else 17

    @property
    def l4(self) -> int:
        """From the beginning of the Ethernet header."""
        return 34 if self.version == 4 else 54 + len(self.extension)

    @property
    def headers(self) -> int:
        return self.l4 + (20 + len(self.options) if self.tcp else 8)

    def pseudo(self, length: int) -> bytes:
        addresses = ip_address(self.source).packed + ip_address(self.destination).packed
        return addresses + struct.pack(">II", length, self.protocol)

    def transport(self, payload: bytes, before: int, flags: int, complete: bool) -> bytes:
        """With its checksum, or the partial one."""
        if self.tcp:
            sequence, reach = (self.sequence + before) % 2**32, 5 + len(self.options) // 4
            header = struct.pack(">HHIIBBHHH", *self.ports, sequence, 99, reach << 4, flags, 500, 0, 0) + self.options
        else:
            header = struct.pack(">HHHH", *self.ports, 8 + len(payload), 0)
        at = 16 if self.tcp else 6
        pseudo = self.pseudo(len(header) + len(payload))
        checksum = 0xFFFF - folded(pseudo + header + payload) if complete else folded(pseudo)
        if complete and not self.tcp:
            checksum = checksum or 0xFFFF
        return header[:at] + struct.pack(">H", checksum) + header[at + 2 :] + payload

    def packet(self, content: bytes, number: int) -> bytes:
        source, destination = ip_address(self.source).packed, ip_address(self.destination).packed
        if self.version == 6:
            following = 0 if self.extension else self.protocol
            first = 6 << 28 | self.traffic_class << 20 | 0xABCDE
            size = len(self.extension) + len(content)
            return struct.pack(">IHBB", first, size, following, self.hops) + source + destination + self.extension + content
        identification, fragment = (self.identification + number) % 65536, 0x4000 * self.dont_fragment
        form = (0x45, self.traffic_class, 20 + len(content), identification, fragment, self.hops, self.protocol)
        checksum = 0xFFFF - folded(struct.pack(">BBHHHBBH", *form, 0) + source + destination)
        return struct.pack(">BBHHHBBH", *form, checksum) + source + destination + content

    def frame(self, payload: bytes, number: int = 0, before: int = 0, flags: int | None = None, complete: bool = True) -> bytes:
        """An Ethernet frame."""
        content = self.transport(payload, before, self.flags if flags is None else flags, complete)
        return MACS + (b"\x08\x00" if self.version == 4 else b"\x86\xdd") + self.packet(content, number)

    def head(self, size: int = 0) -> bytes:
        """The offload head for segments of `size` bytes, 0 for an ordinary frame."""
        kind = (offload.GSO_TCPV4 if self.version == 4 else offload.GSO_TCPV6) if self.tcp else offload.GSO_UDP_L4
        if self.tcp and self.flags & CWR:
            kind |= offload.GSO_ECN
        head = (offload.NEEDS_CHECKSUM, kind if size else 0, self.headers if size else 0, size, self.l4, 16 if self.tcp else 6)
        return struct.pack("<BBHHHH", *head)

    def whole(self, payload: bytes, size: int) -> bytes:
        """A super-frame in port layout."""
        return self.head(size) + self.frame(payload, complete=False)

    def segments(self, payload: bytes, size: int) -> list[bytes]:
        """What the kernel makes of it: tcp_gso_segment, __udp_gso_segment, inet_gso_segment."""
        frames = []
        for number, before in enumerate(range(0, len(payload), size)):
            flags = self.flags & (0xFF if not number else ~CWR) & (0xFF if before + size >= len(payload) else ~(FIN | PSH))
            frames.append(self.frame(payload[before : before + size], number, before, flags))
        return frames


def packed(port_layout: bytes) -> bytearray:
    return bytearray(port_layout[:10] + port_layout[22:])


def unpacked(frame: bytes | bytearray) -> bytes:
    return bytes(frame[:10]) + MACS + bytes(frame[10:])


def part_of(whole: bytes, first: int, count: int) -> bytes:
    """`count` segments of a super-frame from `first` on, restored, in port layout. The length of headers is not needed for it."""
    frame = packed(whole)
    (size,) = struct.unpack_from("<H", frame, 4)
    payload = offload.payload_at(frame, len(frame))
    stop = payload + (first + count) * size
    part = frame[:payload] + frame[payload + first * size : stop]
    part[2:4] = b"\xee\xee"
    end = len(part)
    part += b"behind"
    offload.restore(part, end, first, stop < len(frame))
    return unpacked(part[:end])


ADDRESSES = st.sampled_from([("10.128.0.1", "10.128.0.2"), ("255.255.255.255", "0.0.0.0"), ("fd12::1", "fd12:3456::ffff")])
PAYLOADS = st.integers(1, 3000).flatmap(lambda size: st.binary(min_size=size, max_size=size))


@st.composite
def flows(draw: Any, tcp: bool | None = None) -> Flow:
    source, destination = draw(ADDRESSES)
    tcp = draw(st.booleans()) if tcp is None else tcp
    return Flow(
        source,
        destination,
        tcp,
        flags=ACK | draw(st.sampled_from([0, FIN, PSH, FIN | PSH])) | draw(st.sampled_from([0, ECE, CWR, ECE | CWR])),
        options=draw(st.sampled_from([b"", TIMESTAMPS, SACK, TIMESTAMPS + SACK])) if tcp else b"",
        sequence=draw(st.sampled_from([0, 12345, 2**32 - 1, 2**32 - 700])),
        identification=draw(st.sampled_from([0, 1000, 65535, 65530])),
        dont_fragment=draw(st.booleans()),
        ports=draw(st.tuples(st.integers(1, 65535), st.integers(1, 65535))),
        traffic_class=draw(st.integers(0, 255)),
        extension=HOP_BY_HOP if tcp and ":" in source and draw(st.booleans()) else b"",
    )


@st.composite
def super_frames(draw: Any) -> tuple[Flow, bytes, int]:
    """A flow, a payload, the size of a segment, which is less than the payload's."""
    payload = draw(PAYLOADS.filter(lambda one: len(one) > 1))
    size = draw(st.integers(max(1, len(payload) // 20), len(payload) - 1))
    return draw(flows()), payload, size


class PayloadAtTests(SynchronousTestCase):
    """The way out."""

    @at_most
    @given(super_frames())
    def test_it_begins_behind_the_headers(self, made: tuple[Flow, bytes, int]) -> None:
        flow, payload, size = made
        frame = packed(flow.whole(payload, size))
        at = offload.payload_at(memoryview(frame + b"more"), len(frame))
        self.assertEqual(bytes(frame[at:]), payload)

    def test_what_is_refused(self) -> None:
        tcp4, tcp6 = Flow(), Flow("fd12::1", "fd12::2", extension=HOP_BY_HOP)
        udp4 = Flow(tcp=False)
        for flow, at, value in [
            (tcp4, 0, 0),  # the checksum is complete
            (tcp4, 1, offload.GSO_NONE),
            (tcp4, 1, offload.GSO_UDP),
            (tcp4, 1, offload.GSO_TCPV6),
            (tcp4, 1, offload.GSO_UDP_L4),
            (udp4, 1, offload.GSO_TCPV4),
            (udp4, 1, offload.GSO_UDP_L4 | offload.GSO_ECN),
            (tcp4, 4, 0),  # no segment size
            (tcp4, 6, 35),
            (tcp4, 6, 38),
            (tcp4, 6, 1),
            (tcp4, 8, 6),
            (udp4, 8, 16),
            (tcp4, 10, 0x86),
            (tcp4, 12, 0x44),
            (tcp4, 12, 0x65),
            (tcp4, 18, 0x20),  # more fragments
            (tcp4, 19, 1),  # a later fragment
            (tcp4, 21, 17),
            (tcp4, 32 + 12, 0x40),
            (tcp4, 32 + 12, 0xF0),  # headers longer than the frame
            (tcp6, 18, 44),  # a fragment
            (tcp6, 18, 6),
            (tcp6, 6, 54),
            (tcp6, 6, 70),
            (tcp6, 52, 17),
            (tcp6, 53, 1),
        ]:
            frame = packed(flow.whole(b"abcdef", 4))
            self.assertTrue(offload.payload_at(frame, len(frame)))
            frame[at] = value
            with self.assertRaises(BadDatagram, msg=f"{flow} byte {at} is {value}"):
                offload.payload_at(frame, len(frame))

    def test_every_end(self) -> None:
        for flow in (Flow(), Flow(tcp=False), Flow("fd12::1", "fd12::2", options=SACK, extension=HOP_BY_HOP)):
            frame = packed(flow.whole(b"abcdef", 4))
            for end in range(len(frame) - 5):
                self.assertRaises(BadDatagram, offload.payload_at, frame, end)
            self.assertRaises(BadDatagram, offload.payload_at, frame, len(frame) + 1)


class SegmentTests(SynchronousTestCase):
    """The fall-back, against the reference."""

    @at_most
    @given(super_frames())
    def test_super_frames(self, made: tuple[Flow, bytes, int]) -> None:
        flow, payload, size = made
        self.assertEqual(offload.segment(flow.whole(payload, size)), flow.segments(payload, size))

    @at_most
    @given(flows(), PAYLOADS)
    def test_a_checksum_is_completed(self, flow: Flow, payload: bytes) -> None:
        self.assertEqual(offload.segment(flow.head() + flow.frame(payload, complete=False)), [flow.frame(payload)])

    @given(st.binary(min_size=14, max_size=100))
    def test_a_plain_frame_passes(self, frame: bytes) -> None:
        self.assertEqual(offload.segment(memoryview(offload.PLAIN + frame)), [frame])

    def test_a_udp_checksum_of_zero_is_written_as_its_other_form(self) -> None:
        flow = Flow(tcp=False)
        (rest,) = struct.unpack_from(">H", flow.frame(b"\0\0"), 40)
        [frame] = offload.segment(flow.head() + flow.frame(struct.pack(">H", rest), complete=False))
        self.assertEqual(frame[40:42], b"\xff\xff")

    def test_there_are_limits(self) -> None:
        whole = Flow().whole(bytes(offload.SEGMENTS), 1)
        self.assertEqual(len(offload.segment(whole)), offload.SEGMENTS)
        self.assertRaises(BadDatagram, offload.segment, whole + b"1")

    def test_a_checksum_beyond_the_end(self) -> None:
        for start, offset in ((34, 16), (65535, 65535), (33, 0)):
            head = offload.HEAD.pack(offload.NEEDS_CHECKSUM, 0, 0, 0, start, offset)
            self.assertRaises(BadDatagram, offload.segment, head + bytes(34))


class RestoreTests(SynchronousTestCase):
    """The way in."""

    @at_most
    @given(super_frames(), st.data())
    def test_parts_are_as_good_as_the_whole(self, made: tuple[Flow, bytes, int], data: Any) -> None:
        flow, payload, size = made
        whole, number = flow.whole(payload, size), -(-len(payload) // size)
        cuts = sorted(data.draw(st.sets(st.integers(1, number - 1))) | {0, number})
        frames: list[bytes] = []
        for first, last in pairwise(cuts):
            part = part_of(whole, first, last - first)
            self.assertEqual(part[0], offload.NEEDS_CHECKSUM)
            self.assertEqual(part[2:4], struct.pack("<H", flow.headers))
            self.assertEqual(part[6:10], whole[6:10])
            self.assertEqual(part[1] == offload.GSO_NONE, part[4:6] == b"\0\0")
            frames += offload.segment(part)
        self.assertEqual(frames, offload.segment(whole))

    @at_most
    @given(super_frames())
    def test_the_whole_is_unaltered(self, made: tuple[Flow, bytes, int]) -> None:
        flow, payload, size = made
        whole = flow.whole(payload, size)
        self.assertEqual(part_of(whole, 0, len(payload)), whole)

    def test_a_single_segment_becomes_an_ordinary_frame(self) -> None:
        flow = Flow(flags=ACK | PSH | FIN | CWR, identification=65535, sequence=2**32 - 1)
        middle = part_of(flow.whole(b"abcdefgh", 3), 1, 1)
        self.assertEqual(middle[:6], bytes((offload.NEEDS_CHECKSUM, 0, 54, 0, 0, 0)))
        self.assertEqual(middle[10:], flow.frame(b"def", 1, 3, ACK, complete=False))

    def test_parts_that_do_not_add_up(self) -> None:
        frame = packed(Flow().whole(b"abcdefgh", 3))
        end = len(frame)
        for cut, first, more in ((0, 0, True), (0, 1, False), (1, 0, False), (2, 1, True), (1, 0, True), (2, 2, True), (5, -1, True)):
            before = bytes(frame)
            self.assertRaises(BadDatagram, offload.restore, frame, end - cut, first, more)
            self.assertEqual(frame, before)


class JoinTests(SynchronousTestCase):
    """Datagrams of one flow in one write."""

    def join(self, frames: list[bytes], start: int = 0) -> offload.Joined | None:
        """`frames` are in port layout and equally long."""
        bundle = bytes(start) + b"".join(bytes(packed(frame)) for frame in frames)
        return offload.join_datagrams(memoryview(bundle), start, len(frames[0]) - 12, len(frames))

    def written(self, joined: offload.Joined, frames: list[bytes]) -> bytes:
        return unpacked(joined.headers) + b"".join(packed(frame)[joined.payload :] for frame in frames[: joined.frames])

    def frames(self, *flows: Flow, size: int = 3) -> list[bytes]:
        return [flow.head() + flow.frame(bytes((65 + n,)) * size, complete=False) for n, flow in enumerate(flows)]

    @at_most
    @given(flows(tcp=False), st.integers(1, 100), st.integers(2, 80), st.integers(0, 50), st.randoms(use_true_random=False))
    @example(Flow(tcp=False), 1472, 64, 0, None)
    def test_cut_again_they_are_what_they_were(self, flow: Flow, size: int, count: int, start: int, chance: Any) -> None:
        frames = []
        for number in range(count):
            payload = chance.randbytes(size) if chance is not None else bytes((number,)) * size
            frames.append(flow.head() + flow.frame(payload, number, complete=False))
        joined = self.join(frames, start)
        assert joined is not None
        self.assertEqual(joined.frames, min(count, offload.JOINED_FRAMES, offload.JOINED_BYTES // size))
        whole = self.written(joined, frames)
        self.assertEqual(whole[:10], flow.head(size))
        originals = [offload.segment(frame)[0] for frame in frames[: joined.frames]]
        self.assertEqual(offload.segment(whole), originals)

    @given(st.lists(st.integers(0, 65535), min_size=2, max_size=6))
    def test_identifications_mean_nothing_under_dont_fragment(self, identifications: list[int]) -> None:
        flow = Flow(tcp=False)
        frames = self.frames(*(flow._replace(identification=one) for one in identifications))
        joined = self.join(frames)
        assert joined is not None
        self.assertEqual(joined.frames, len(frames))
        for cut, frame in zip(offload.segment(self.written(joined, frames)), frames, strict=True):
            [original] = offload.segment(frame)
            self.assertEqual((cut[:18], cut[20:24], cut[26:]), (original[:18], original[20:24], original[26:]))

    def test_where_they_mean_something_they_count_up(self) -> None:
        flow = Flow(tcp=False, dont_fragment=False)
        frames = self.frames(*(flow._replace(identification=one) for one in (65534, 65535, 0, 2)))
        joined = self.join(frames)
        assert joined is not None
        self.assertEqual(joined.frames, 3)
        self.assertEqual(self.join(self.frames(flow, flow)), None)

    @at_most
    @given(flows(tcp=False), flows(tcp=False), st.integers(1, 5))
    def test_only_what_is_alike(self, flow: Flow, other: Flow, leading: int) -> None:
        assume(flow.version == other.version)
        numbered = [flow._replace(identification=(flow.identification + n) % 65536) for n in range(leading)]
        frames = self.frames(*numbered, other)
        joined = self.join(frames)
        following = other.identification == (flow.identification + leading) % 65536
        same = flow._replace(identification=0, sequence=0, flags=0) == other._replace(identification=0, sequence=0, flags=0)
        if flow.version == 4:
            same = same and (flow.dont_fragment or following)
        else:
            same = flow._replace(identification=0, sequence=0, flags=0, dont_fragment=True) == other._replace(
                identification=0, sequence=0, flags=0, dont_fragment=True
            )
        self.assertEqual(joined.frames if joined else 1, leading + same)

    def test_any_byte_of_the_headers_that_differs(self) -> None:
        for flow, whatever in ((Flow(tcp=False), range(16, 18)), (Flow("fd12::1", "fd12::2", tcp=False), range(0))):
            good = self.frames(flow, flow, flow)
            for at in range(flow.headers - 2):
                third = packed(good[2])
                third[at] ^= 0x20
                if at in whatever:  # the identification, with its checksum mended
                    folded_once = 0xFFFF - folded(bytes(third[12:22] + third[24:32]))
                    struct.pack_into(">H", third, 22, folded_once)
                joined = self.join([*good[:2], unpacked(third)])
                assert joined is not None
                self.assertEqual(joined.frames, 3 if at in whatever else 2, at)

    def test_any_bit_of_the_first_that_is_wrong(self) -> None:
        """All alike, but no two of them that could be joined, unless the bit means nothing."""
        for flow, free in (
            (Flow(tcp=False), {2, 3, 4, 5, *range(32, 36), 38, 39}),
            (Flow("fd12::1", "fd12::2", tcp=False), {2, 3, 4, 5, *range(13, 16), *range(19, 56), 58, 59}),
        ):
            [good] = self.frames(flow)
            for at in range(flow.headers - 2):
                for bit in range(8):
                    frame = packed(good)
                    frame[at] ^= 1 << bit
                    joined = self.join([unpacked(frame)] * 2)
                    if at in free or (at == 12 and flow.version == 6 and bit < 4):
                        self.assertIsNotNone(joined, (at, bit))
                    else:
                        self.assertIsNone(joined, (at, bit))

    def test_no_payload_no_second_no_room(self) -> None:
        flow = Flow(tcp=False)
        self.assertIsNone(self.join(self.frames(flow, flow, size=0)))
        self.assertIsNone(self.join(self.frames(flow)))
        self.assertIsNone(self.join(self.frames(flow, flow, size=40000)))
        self.assertIsNone(self.join(self.frames(Flow(), Flow())))


class FuzzTests(SynchronousTestCase):
    """Every function of the module raises nothing but `BadDatagram` on arbitrary bytes."""

    @at_most
    @given(st.data())
    def test_arbitrary_bytes(self, data: Any) -> None:
        flow, payload, size = data.draw(super_frames())
        frame = packed(flow.whole(payload, size))
        for _ in range(data.draw(st.integers(0, 4))):
            frame[data.draw(st.integers(0, min(len(frame), 80) - 1))] = data.draw(st.integers(0, 255))
        frame = frame[: data.draw(st.integers(0, len(frame)))]
        self.survive(frame, data)

    @at_most
    @given(st.binary(max_size=120), st.data())
    def test_noise(self, noise: bytes, data: Any) -> None:
        self.survive(bytearray(noise), data)

    def survive(self, frame: bytearray, data: Any) -> None:
        number, more = data.draw(st.integers(0, 32767)), data.draw(st.booleans())
        end = data.draw(st.integers(0, 200) | st.just(len(frame)))
        for function, arguments in (
            (offload.payload_at, (frame, end)),
            (offload.restore, (bytearray(frame), end, number, more)),
            (offload.segment, (bytes(frame),)),
            (offload.segment, (unpacked(frame),)),
            (offload.join_datagrams, (frame * 3, 0, len(frame), 3)),
            (offload.join_datagrams, (frame, number % 50, end, 5)),
        ):
            try:
                function(*arguments)
            except BadDatagram:
                continue
