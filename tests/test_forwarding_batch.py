"""The plane, which works on batches, against a plain reference that works on one frame after another.

The reference of what is given to one plane is `offload.segment` of each frame, in order: that, and nothing else, comes out at the
other plane, however the wire groups, cuts, loses, doubles and reorders datagrams. It may only lose whole records.
"""

from __future__ import annotations

import random
import struct
from collections import Counter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ipop_tx.forwarding import offload
from ipop_tx.wire.datagram import BUNDLE, FRAME, HEADER, HEADER_BYTES, RELAY, TAG_BYTES
from tests.plane import Member, Planes, gathered, shuffler
from tests.test_forwarding_offload import ACK, CWR, ECE, FIN, PSH, SACK, TIMESTAMPS, Flow

WIDTHS = (1, 2, 3, 10, 44, 64)
MTUS = (1200, 1280, 1400, 1500, 4000, 8973)

# --- frames -----------------------------------------------------------------------------------------


class Maker:
    """Frames of one member for another, in port layout, from a seed: contents that never repeat, shapes of every kind."""

    def __init__(self, seed: int, sender: Member, receiver: Member) -> None:
        self.rng = random.Random(seed)
        self.sender, self.receiver = sender, receiver
        self.macs = receiver.mac + sender.mac
        self.flows = [self.flow(tcp, ipv6) for tcp in (True, False) for ipv6 in (True, False) for _ in range(2)]

    def flow(self, tcp: bool, ipv6: bool) -> Flow:
        rng = self.rng
        ends = (self.sender.ip6, self.receiver.ip6) if ipv6 else (self.sender.ip, self.receiver.ip)
        return Flow(
            str(ends[0]),
            str(ends[1]),
            tcp,
            options=rng.choice([b"", TIMESTAMPS, SACK, TIMESTAMPS + SACK]) if tcp else b"",
            ports=(rng.randint(1, 65535), rng.randint(1, 65535)),
            dont_fragment=rng.random() < 0.7,
            traffic_class=rng.choice([0, 0, 1, 184]),
            sequence=rng.randrange(2**32),
        )

    def some(self, flow: Flow, payload: int) -> Flow:
        """The flow at its next packet."""
        place = self.flows.index(flow)
        self.flows[place] = flow._replace(
            sequence=(flow.sequence + payload) % 2**32, identification=(flow.identification + self.rng.randint(1, 50)) % 65536
        )
        flags = ACK
        for flag, chance in ((FIN, 0.1), (PSH, 0.4), (ECE, 0.2), (CWR, 0.2)):
            flags |= flag * (self.rng.random() < chance)
        return flow._replace(flags=flags if flow.tcp else ACK)

    def addressed(self, frame: bytes) -> bytes:
        return frame[:10] + self.macs + frame[22:]

    def super_frame(self) -> bytes:
        flow = self.rng.choice(self.flows)
        size = self.rng.choice([1, 100, 536, 1000, 1128, 1348, 1388, 1460, 8000])
        total = self.rng.choice([size + 1, 2 * size, 3 * size + 1, 10 * size, self.rng.randint(size + 1, 62000)])
        total = min(total, 62000, size * 300)
        content = self.rng.randbytes(total)
        return self.addressed(self.some(flow, total).whole(content, size))

    def small(self) -> bytes:
        flow = self.rng.choice(self.flows)
        content = self.rng.randbytes(self.rng.choice([1, 8, 100, 100, 100, 1000]))
        flow = self.some(flow, len(content))
        if self.rng.random() < 0.5:
            return self.addressed(flow.head() + flow.frame(content, complete=False))
        return self.addressed(offload.PLAIN + flow.frame(content))

    def datagrams(self) -> list[bytes]:
        """Some of one flow and one length, as a program sends them one after another."""
        flow = self.rng.choice([flow for flow in self.flows if not flow.tcp])
        size, frames = self.rng.choice([1, 18, 160, 1200]), []
        for _ in range(self.rng.randint(2, 70)):
            step = self.flows.index(flow)
            frames.append(self.addressed(flow.head() + flow.frame(self.rng.randbytes(size), complete=False)))
            flow = self.flows[step] = flow._replace(identification=(flow.identification + (not flow.dont_fragment)) % 65536)
        return frames

    def icmp(self) -> bytes:
        content = self.rng.randbytes(self.rng.randint(0, 100))
        header = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(content), 1, 0, 64, 1, 0)
        return offload.PLAIN + self.macs + b"\x08\0" + header + self.sender.ip.packed + self.receiver.ip.packed + content

    def of_mtu(self) -> bytes:
        """As long as the port's MTU allows, and so in several pieces on most paths."""
        flow = self.flows[0]._replace(flags=ACK)
        content = self.rng.randbytes(self.sender.port.mtu + 14 - flow.headers)
        return self.addressed(offload.PLAIN + flow.frame(content))

    def foreign(self) -> bytes:
        return offload.PLAIN + self.macs + b"\x88\xb5" + self.rng.randbytes(40)

    def frames(self, count: int) -> list[bytes]:
        made: list[bytes] = []
        for _ in range(count):
            kind: Any = self.rng.choice([self.super_frame, self.small, self.small, self.datagrams, self.icmp, self.of_mtu, self.foreign])
            one: Any = kind()
            made += [one] if isinstance(one, bytes) else one
        return made


def comparable(frame: bytes) -> bytes:
    """A frame without the IP identification of a datagram with "don't fragment", where it means nothing (RFC 6864)."""
    if frame[12:14] == b"\x08\0" and frame[23] == 17 and frame[20] & 0x40:
        return frame[:18] + bytes(2) + frame[20:24] + bytes(2) + frame[26:]
    return frame


def reference(frames: list[bytes]) -> list[bytes]:
    """What a plain node makes of frames, one after another."""
    carried = [frame for frame in frames if frame[22:24] in (b"\x08\0", b"\x86\xdd")]
    return [comparable(segment) for frame in carried for segment in offload.segment(frame)]


# --- what records hold ------------------------------------------------------------------------------


def records_of(datagrams: list[bytes]) -> dict[tuple[int, int], bytes]:
    """The plaintext of those records of which all pieces are here, by receiver index and counter, as nobody else reads them."""
    pieces: dict[tuple[int, int], dict[int, bytes]] = {}
    counts = {}
    for datagram in datagrams:
        index, _, piece, count, _, counter = HEADER.unpack_from(datagram)
        pieces.setdefault((index, counter), {})[piece] = datagram
        counts[index, counter] = count
    whole = {name: have for name, have in pieces.items() if len(have) == counts[name]}
    return {
        name: have[0][4:5] + b"".join(have[number][HEADER_BYTES:] for number in range(len(have)))[:-TAG_BYTES]
        for name, have in whole.items()
    }


def frames_in(record: bytes) -> list[bytes]:
    """The packed frames in a record; `record[0]` is its kind."""
    kind, plain = record[0], record[1:]
    if kind == FRAME:
        return [plain]
    (count,) = struct.unpack_from("!H", plain, len(plain) - 2)
    lengths = struct.unpack_from(f"!{count}H", plain, len(plain) - 2 - 2 * count)
    ends = [sum(lengths[: number + 1]) for number in range(count)]
    return [plain[end - length : end] for end, length in zip(ends, lengths, strict=True)]


def segments_in(record: bytes, macs: bytes) -> list[bytes]:
    """What comes of a record when it comes alone."""
    found = []
    for frame in frames_in(record):
        packed = bytearray(frame)
        (part,) = offload.PART.unpack_from(packed, 2)
        if packed[1] and part:
            offload.restore(packed, len(packed), part & 0x7FFF, bool(part & 0x8000))
        found += offload.segment(bytes(packed[:10]) + macs + bytes(packed[10:]))
    return [comparable(segment) for segment in found]


# --- the tests --------------------------------------------------------------------------------------

steps = st.lists(
    st.one_of(
        st.tuples(st.just("frames"), st.integers(1, 12)),
        st.tuples(st.just("frames"), st.integers(1, 12)),
        st.tuples(st.just("width"), st.sampled_from(WIDTHS)),
        st.tuples(st.just("mtu"), st.sampled_from(MTUS)),
        st.tuples(st.sampled_from(["rekey", "path", "relay", "direct", "more"]), st.just(0)),
    ),
    min_size=2,
    max_size=12,
)


class Pair:
    """A and B, and a relay R; what is given to A and what came of it at B."""

    def __init__(self, seed: int, width: int, mtu: int, sealed: bool = False) -> None:
        self.net = Planes(3, sealed)
        self.a, self.b, self.r = self.net.members
        self.rng = random.Random(seed)
        self.maker = Maker(seed, self.a, self.b)
        self.macs = self.b.mac + self.a.mac
        self.mtu = mtu
        self.relayed = False
        for other in (self.a, self.b):
            self.net.join(self.r, other)
        self.ends = [self.net.session()]
        self.given: list[bytes] = []
        self.know()
        self.a.adjacency(self.b).width.pieces = width

    def know(self) -> None:
        width = self.a.adjacency(self.b).width.pieces if self.b.ident in self.a.fib.by_ident else 1
        ours, theirs = [ends[0] for ends in self.ends], [ends[1] for ends in self.ends]
        self.a.knows(self.b, ours, self.mtu, by=self.r if self.relayed else None)
        self.b.knows(self.a, theirs, self.mtu, by=self.r if self.relayed else None)
        self.a.adjacency(self.b).width.pieces = width

    def step(self, what: str, value: int) -> None:
        """One step; `more` gives frames that are already in the plane's hands when the next change comes."""
        if what == "width":
            self.a.adjacency(self.b).width.pieces = value
            return
        if what == "mtu":
            self.mtu = value
        elif what == "rekey":
            self.ends = [self.net.session(), *self.ends]
        elif what == "path":
            self.b.endpoint = self.b.endpoint._replace(port=self.b.endpoint.port + 1)
            self.net._by_endpoint[self.b.endpoint] = self.b
            self.r.knows(self.b, [self.r.adjacency(self.b).session])  # type: ignore[list-item]
        elif what in ("relay", "direct"):
            self.relayed = what == "relay"
        else:
            frames = self.maker.frames(value or 3)
            self.given += frames
            self.a.give(frames)
            return
        self.know()

    def taken(self) -> list[bytes]:
        return [comparable(frame) for frame in self.b.port.taken]


class GroupingTests(SynchronousTestCase):
    """Nothing lost, nothing reordered: every frame once, as it was, in order."""

    def exact(self, seed: int, width: int, mtu: int, steps: list[tuple[str, int]], by_run: bool, **options: Any) -> Pair:
        pair = Pair(seed, width, mtu, **options)
        for what, value in steps:
            pair.step(what, value)
            if pair.rng.random() < 0.7:
                pair.net.carry(lambda datagrams: gathered(datagrams, lambda: pair.rng.random() < 0.9), by_run)
        pair.net.carry(gathered, by_run)
        self.assertEqual(pair.taken(), reference(pair.given))
        self.assertEqual((pair.b.dropped(), pair.b.port.refused, pair.r.dropped()), ({}, 0, {}))
        return pair

    @settings(max_examples=120, deadline=None)
    @given(st.integers(), st.sampled_from(WIDTHS), st.sampled_from(MTUS), steps)
    def test_runs(self, seed: int, width: int, mtu: int, steps: list[tuple[str, int]]) -> None:
        """As GRO groups them, with breaks anywhere."""
        self.exact(seed, width, mtu, [("frames", 3), *steps], True)

    @settings(max_examples=60, deadline=None)
    @given(st.integers(), st.sampled_from(WIDTHS), st.sampled_from(MTUS), steps)
    def test_datagram_by_datagram(self, seed: int, width: int, mtu: int, steps: list[tuple[str, int]]) -> None:
        self.exact(seed, width, mtu, [("frames", 3), *steps], False)

    @settings(max_examples=60, deadline=None)
    @given(st.integers(), st.sampled_from(WIDTHS), st.sampled_from(MTUS), steps)
    def test_really_sealed(self, seed: int, width: int, mtu: int, steps: list[tuple[str, int]]) -> None:
        self.exact(seed, width, mtu, [("frames", 3), *steps], True, sealed=True)

    def test_a_port_without_offloads(self) -> None:
        """Datagrams are not joined for it; what is joined on the wire comes out all the same."""
        for width in WIDTHS:
            pair = Pair(width, width, 1500)
            pair.b.port.offloads = ()  # type: ignore[assignment]
            pair.step("frames", 40)
            pair.net.carry()
            self.assertEqual(pair.taken(), reference(pair.given))

    def test_datagrams_are_joined(self) -> None:
        """One write for many datagrams of a flow, so that this file tests what it says."""
        pair = Pair(1, 44, 1500)
        frames = pair.maker.datagrams()
        pair.a.give(frames)
        pair.net.carry()
        self.assertEqual([comparable(frame) for frame in pair.b.port.taken], reference(frames))
        self.assertLess(len(pair.b.port.written), len(frames) // 2 + 1)

    def test_super_frames_stay_whole(self) -> None:
        """Whatever the width, one write for each: parts that follow on each other are joined again."""
        flow = Flow("10.128.0.1", "10.128.0.2", options=TIMESTAMPS, flags=ACK | PSH)
        for width in WIDTHS:
            for mtu in MTUS:
                pair = Pair(2, width, mtu)
                whole = pair.maker.addressed(flow.whole(pair.rng.randbytes(61000), 1100))
                pair.a.give([whole])
                pair.net.carry()
                self.assertEqual(pair.taken(), reference([whole]))
                self.assertEqual(len(pair.b.port.written), 1, (width, mtu))


class BadPathTests(SynchronousTestCase):
    """Records are lost whole; nothing comes twice, nothing altered, and what could arrive does."""

    def bad(self, seed: int, width: int, mtu: int, steps: list[tuple[str, int]], by_run: bool, **how: float) -> None:
        pair = Pair(seed, width, mtu)
        arrived: list[bytes] = []
        mangle = shuffler(seed, **how)

        def way(datagrams: list[bytes]) -> list[list[bytes]]:
            kept = mangle(datagrams)
            arrived.extend(kept)
            return gathered(kept, lambda: pair.rng.random() < 0.9)

        for what, value in steps:
            pair.step(what, value)
            pair.net.carry(way, by_run)
        wanted: Counter[bytes] = Counter()
        indexes = {ends[1].local_index for ends in pair.ends}
        for (index, _), record in records_of(arrived).items():
            if index in indexes:
                wanted.update(segments_in(record, pair.macs))
        taken = Counter(pair.taken())
        self.assertEqual(taken - Counter(reference(pair.given)), Counter(), "altered or doubled")
        self.assertEqual(taken, wanted)
        self.assertEqual(pair.b.port.refused, 0)

    scenes = st.lists(
        st.one_of(
            st.tuples(st.just("frames"), st.integers(1, 3)),
            st.tuples(st.just("width"), st.sampled_from(WIDTHS)),
            st.tuples(st.just("mtu"), st.sampled_from(MTUS)),
            st.tuples(st.just("path"), st.just(0)),
        ),
        min_size=1,
        max_size=5,
    )

    @settings(max_examples=80, deadline=None)
    @given(st.integers(), st.sampled_from(WIDTHS), st.sampled_from(MTUS), scenes)
    def test_loss(self, seed: int, width: int, mtu: int, scene: list[tuple[str, int]]) -> None:
        self.bad(seed, width, mtu, [("frames", 2), *scene], True, lose=0.05)

    @settings(max_examples=80, deadline=None)
    @given(st.integers(), st.sampled_from(WIDTHS), st.sampled_from(MTUS), scenes)
    def test_reordered_and_doubled(self, seed: int, width: int, mtu: int, scene: list[tuple[str, int]]) -> None:
        self.bad(seed, width, mtu, [("frames", 2), *scene], True, double=0.1, displace=0.1)

    @settings(max_examples=80, deadline=None)
    @given(st.integers(), st.sampled_from(WIDTHS), st.sampled_from(MTUS), scenes, st.booleans())
    def test_everything(self, seed: int, width: int, mtu: int, scene: list[tuple[str, int]], by_run: bool) -> None:
        self.bad(seed, width, mtu, [("frames", 2), *scene], by_run, lose=0.03, double=0.05, displace=0.05)

    def test_the_reader_of_records_agrees(self) -> None:
        """`records_of` and `segments_in` find in the datagrams what was given."""
        pair = Pair(4, 10, 1500)
        pair.step("frames", 30)
        datagrams = [datagram for _, datagram in pair.a.wire.sent]
        self.assertNotIn(RELAY, {datagram[4] for datagram in datagrams})
        self.assertIn(BUNDLE, {datagram[4] for datagram in datagrams})
        found = [segment for record in records_of(datagrams).values() for segment in segments_in(record, pair.macs)]
        self.assertEqual(found, reference(pair.given))
