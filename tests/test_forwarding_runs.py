"""Whatever arrives, in runs or one by one: nothing raises, and nothing reaches the kernel that the peer has not sealed for us."""

from __future__ import annotations

import struct
import time
from collections import Counter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ipop_tx.forwarding import offload
from ipop_tx.wire.datagram import BUNDLE, CONTROL, FRAME, HEADER, HEADER_BYTES, MAX_PIECES, TAG_BYTES, headers
from tests.plane import ClearSession, Planes, gathered, receive_run
from tests.test_forwarding_offload import Flow


def frame_of(sender: Any, receiver: Any, payload: bytes) -> bytes:
    """A packed frame that `receiver` may have from `sender`."""
    length = (20 + len(payload)).to_bytes(2, "big")
    packet = b"\x45\0" + length + bytes(4) + b"\x40\x01\0\0" + bytes(sender.ip.packed + receiver.ip.packed) + payload
    return offload.PLAIN + b"\x08\0" + packet


def record(session: ClearSession, kind: int, plain: bytes, piece: int, counter: int | None = None) -> list[bytes]:
    """A record as it travels: in pieces of `piece` bytes."""
    channel = session.channel
    pieces = max(1, -(-(len(plain) + TAG_BYTES) // piece))
    first = HEADER.pack(channel.send_index, kind, 0, pieces, 0, channel.reserve(1) if counter is None else counter)
    sealed = bytearray(len(plain) + TAG_BYTES)
    channel.encrypt(first[4:], plain, None, memoryview(sealed))
    heads = headers(first, pieces)
    return [bytes(heads[n * HEADER_BYTES :][:HEADER_BYTES] + sealed[n * piece : (n + 1) * piece]) for n in range(pieces)]


class TwoPlanes(SynchronousTestCase):
    """One who sends by hand, one whose plane receives."""

    def setUp(self) -> None:
        self.planes = Planes(2)
        self.one, self.other = self.planes.members
        self.session, self.theirs = self.planes.join(self.one, self.other)
        self.port, self.plane = self.other.port, self.other.plane

    def frame(self, payload: bytes) -> bytes:
        return frame_of(self.one, self.other, payload)

    def receive(self, *datagrams: bytes) -> None:
        receive_run(self.plane, self.one.endpoint, datagrams)
        self.plane.burst_ended()

    def got(self) -> list[bytes]:
        """The payloads that the kernel got."""
        return [frame[34:] for frame in self.port.taken]


class RunTests(TwoPlanes):
    """Runs are taken apart where the kernel has put them together."""

    def test_records_side_by_side(self) -> None:
        """Whole records of one and of several pieces, and one whose last piece is shorter, in one run."""
        payloads = [bytes((n,)) * size for n, size in enumerate((100, 300, 100, 290))]
        piece = len(self.frame(payloads[0])) + TAG_BYTES
        exact = [2 * piece - TAG_BYTES - len(self.frame(b"")), 3 * piece - TAG_BYTES - len(self.frame(b""))]
        payloads[1], payloads[3] = payloads[1][:1] * exact[0], payloads[3][:1] * (exact[1] - 7)
        datagrams = [datagram for payload in payloads for datagram in record(self.session, FRAME, self.frame(payload), piece)]
        self.assertEqual([len(run) for run in gathered(datagrams)], [7])
        self.receive(*datagrams)
        self.assertEqual(self.got(), payloads)

    def test_pieces_of_one_record_in_two_runs(self) -> None:
        datagrams = record(self.session, FRAME, self.frame(b"x" * 1000), 300)
        self.receive(*datagrams[:2])
        self.assertEqual(self.got(), [])
        self.receive(*datagrams[2:])
        self.assertEqual(self.got(), [b"x" * 1000])
        self.receive(*datagrams)
        self.assertEqual(len(self.got()), 1)

    def test_strangers_in_a_run(self) -> None:
        """Datagrams that are not of the plane go to the control plane whole, whatever stands beside them."""
        mine = record(self.session, FRAME, self.frame(b"x" * 100), 1200)
        handshake = b"\x16" + bytes(len(mine[0]) - 1)
        self.receive(handshake, *mine, handshake, b"\x16short")
        self.assertEqual(self.got(), [b"x" * 100])
        self.assertEqual(self.other.elsewhere.datagrams, [handshake, handshake, b"\x16short"])

    def test_a_control_message_in_pieces(self) -> None:
        self.receive(*record(self.session, CONTROL, b"m" * 3000, 1000))
        self.assertEqual(self.other.control.calls, [("unsealed", self.one.endpoint, self.theirs, CONTROL, b"m" * 3000)])


class SenselessTests(TwoPlanes):
    """Headers that nobody makes."""

    def test_every_number_of_pieces(self) -> None:
        """Also none at all, and more than there may be: the run ends, and what is well made in it arrives."""
        good = [record(self.session, FRAME, self.frame(bytes((n,)) * 100), 1200)[0] for n in range(4)]
        for pieces in (0, 2, 3, MAX_PIECES, MAX_PIECES + 1, 127, 255):
            for piece in (0, 1, 63, 64, 255):
                first = HEADER.pack(self.session.channel.send_index, FRAME, piece, pieces, 0, 1000 + pieces)
                junk = [bytearray(first + bytes(len(good[0]) - HEADER_BYTES)) for _ in range(128)]
                for number, datagram in enumerate(junk):
                    datagram[5] = (piece + number) % 256
                self.receive(*map(bytes, junk))
                self.receive(bytes(junk[0]), good[0], bytes(junk[0]))
        self.receive(*good)
        self.assertEqual(self.got(), [bytes((n,)) * 100 for n in range(4)])


class BundleTests(TwoPlanes):
    """Several frames in one record."""

    def datagrams(self, count: int) -> list[bytes]:
        """UDP datagrams of one flow, packed, with checksums still to be made."""
        flow = Flow(str(self.one.ip), str(self.other.ip), tcp=False)
        wholes = [flow.head() + flow.frame(bytes((n,)) * 100, number=n, complete=False) for n in range(count)]
        return [whole[:10] + whole[22:] for whole in wholes]

    def bundle(self, frames: list[bytes]) -> bytes:
        return b"".join(frames) + struct.pack(f"!{len(frames) + 1}H", *map(len, frames), len(frames))

    def test_an_address_that_is_not_verified_yet(self) -> None:
        """Each frame once, whether the answer comes at once or later."""
        for later in (False, True):
            with self.subTest(later=later):
                self.one.adjacency(self.other)
                peer = self.other.adjacency(self.one)
                peer.addresses.clear()
                self.port.taken.clear()
                self.other.control.later = later
                self.other.control.owners[self.one.ip] = self.one.ident
                self.receive(self.session.protect(BUNDLE, self.bundle(self.datagrams(5))))
                for deferred in self.other.control.waiting:
                    deferred.callback(True)
                self.assertEqual([frame[-1] for frame in self.port.taken], [0, 1, 2, 3, 4])

    def test_a_lie_is_counted_once_for_each_frame(self) -> None:
        self.plane.configure(None)
        self.receive(self.session.protect(BUNDLE, self.bundle(self.datagrams(5))))
        self.assertEqual(self.other.dropped(), {"in_destination_address": 5})

    def test_as_many_frames_as_a_record_can_name(self) -> None:
        """Work grows with the number of frames, not with its square: this takes half a minute otherwise."""
        for length, count in ((0, 32000), (20, 2900)):
            for frame in self.bundle([bytes(length)] * count), self.bundle([self.frame(b"")[:length]] * count):
                begun = time.process_time()
                self.receive(*record(self.session, BUNDLE, frame, 1184))
                self.assertLess(time.process_time() - begun, 3.0)
        self.assertEqual(self.other.dropped(), {"in_runt": 2 * 32000 + 2 * 2900})

    def test_joined_again_behind_others(self) -> None:
        """Two flows of one length after each other: two writes."""
        frames = self.datagrams(6)
        other = Flow(str(self.one.ip), str(self.other.ip), tcp=False, ports=(5, 6))
        wholes = [other.head() + other.frame(bytes((n,)) * 100, number=n, complete=False) for n in range(6, 9)]
        self.receive(*record(self.session, BUNDLE, self.bundle(frames + [whole[:10] + whole[22:] for whole in wholes]), 5000))
        self.assertEqual([frame[-1] for frame in self.port.taken], list(range(9)))
        self.assertEqual(len(self.port.written), 2)

    def test_what_does_not_add_up(self) -> None:
        frames = self.datagrams(3)
        good = self.bundle(frames)
        for bad in (b"", b"\0", b"\0\0", good[:-1], good[1:], good + b"\0\3", good[:-2] + b"\xff\xff", b"".join(frames) + b"\0\0"):
            self.receive(self.session.protect(BUNDLE, bad))
        self.assertEqual(self.port.written, [])
        self.assertEqual(self.other.dropped(), {"in_malformed": 8})


class FuzzTests(SynchronousTestCase):
    """Any datagrams, as runs or one by one: `run_received` and `datagram_received` never raise, and write no frame that was not given."""

    piece = st.builds(
        lambda index, kind, piece, pieces, flags, counter, tail: HEADER.pack(index, kind, piece, pieces, flags, counter) + tail,
        st.sampled_from([0x80000003, 0x80000003, 0x80000003, 0x80000001, 0x80000004, 0xBFFFFFFF, 0x16FEFD00]),
        st.integers(0, 6),
        st.one_of(st.integers(0, 3), st.integers(0, 255)),
        st.one_of(st.integers(0, 4), st.integers(0, 255)),
        st.sampled_from([0, 0, 1, 255]),
        st.one_of(st.integers(0, 8), st.integers(0, 2**64 - 1)),
        st.integers(0, 70).map(bytes),
    )
    """Well-formed headers, and nothing behind them that opens."""
    datagrams = st.one_of(st.binary(max_size=80), piece)

    def planes(self) -> tuple[Planes, list[bytes]]:
        """Two planes, and the datagrams of some frames on their way; B's index at A is what `piece` guesses."""
        net = Planes(2)
        one, other = net.members
        ends = net.join(one, other)
        self.assertEqual(ends[0].channel.send_index, 0x80000003)
        one.adjacency(other).width.pieces = 3
        flow = Flow(str(one.ip), str(other.ip))
        whole = flow.whole(bytes(range(256)) * 30, 700)
        one.give([whole[:10] + other.mac + one.mac + whole[22:]])
        for size in (10, 10, 10, 900):
            one.give([offload.PLAIN + other.mac + one.mac + frame_of(one, other, bytes((size % 251,)) * size)[10:]])
        self.given = offload.segment(whole[:10] + other.mac + one.mac + whole[22:])
        self.given += [other.mac + one.mac + frame_of(one, other, bytes((size % 251,)) * size)[10:] for size in (10, 10, 10, 900)]
        return net, [datagram for _, datagram in one.wire.take()]

    def check(self, net: Planes) -> None:
        """What the kernel got was given, and not more often."""
        net.members[1].plane.burst_ended()
        self.assertEqual(Counter(net.members[1].port.taken) - Counter(self.given), Counter())
        self.assertEqual(net.members[1].port.refused, 0)

    @settings(max_examples=300, deadline=None)
    @given(st.lists(st.lists(datagrams, min_size=1, max_size=8), max_size=6), st.booleans())
    def test_any_datagrams(self, groups: list[list[bytes]], by_run: bool) -> None:
        net, _ = self.planes()
        net.deliver(*net.members, [run for group in groups for run in gathered(group)], by_run)
        self.check(net)

    @settings(max_examples=300, deadline=None)
    @given(st.integers(1, 2000), st.integers(0, 4000), st.binary(min_size=0, max_size=400), st.booleans())
    def test_every_size_and_total(self, size: int, total: int, content: bytes, wild: bool) -> None:
        """Also a size beyond the total, below a header, and a last datagram of any length; the buffers hold whatever was there before."""
        net, sent = self.planes()
        total = min(total, 64 * size)
        count = max(1, -(-total // size))
        stream = b"".join(sent) if not wild else (content or b"\xb0") * (1 + 70000 // max(1, len(content)))
        cut = [stream[at : at + size] for at in range(0, max(total, 1), size)]
        heads = bytearray(b"".join(datagram[:HEADER_BYTES].ljust(HEADER_BYTES, b"\x80") for datagram in cut))
        bodies = bytearray(b"".join(datagram[HEADER_BYTES:] for datagram in cut) + bytes(b"\x80" * (size + 64)))
        self.assertLessEqual(count, 64)
        net.members[1].plane.run_received(net.members[0].endpoint, heads, memoryview(bodies), size, total)
        self.check(net)

    @settings(max_examples=300, deadline=None)
    @given(st.data())
    def test_mutated(self, data: st.DataObject) -> None:
        """Good datagrams, damaged, cut, doubled, in any order and grouping: the tag tells."""
        net, sent = self.planes()
        out: list[bytes] = []
        for _ in range(data.draw(st.integers(1, 20))):
            datagram = bytearray(data.draw(st.sampled_from(sent)))
            if data.draw(st.booleans()):
                place = data.draw(st.one_of(st.integers(0, 20), st.integers(0, len(datagram) - 1)))
                datagram[place % len(datagram)] = data.draw(st.integers(0, 255))
            if data.draw(st.integers(0, 3)) == 0:
                datagram = datagram[: data.draw(st.integers(0, len(datagram)))]
            out.append(bytes(datagram))
        net.deliver(*net.members, gathered(out, lambda: data.draw(st.booleans())), data.draw(st.booleans()))
        self.check(net)

    @settings(max_examples=200, deadline=None)
    @given(
        st.lists(st.one_of(st.binary(max_size=200), st.binary(min_size=22, max_size=200).map(lambda tail: bytes(10) + tail)), max_size=8)
    )
    def test_any_frame_of_an_authentic_peer(self, contents: list[bytes]) -> None:
        """Sealed nonsense of every kind: nothing raises, and nothing that the kernel gets has another's source address."""
        net = Planes(2)
        one, other = net.members
        session, _ = net.join(one, other)
        for content in contents:
            for kind in (FRAME, BUNDLE):
                net.deliver(one, other, [record(session, kind, content, 1184)])
        for frame in other.port.taken:
            self.assertIn(frame[26:30] if frame[12:14] == b"\x08\0" else frame[22:38], (one.ip.packed, one.ip6.packed))

    @settings(max_examples=200, deadline=None)
    @given(st.lists(st.binary(max_size=80), max_size=6), st.booleans())
    def test_any_frame_of_the_kernel(self, contents: list[bytes], ours: bool) -> None:
        """The kernel's frames may be anything, even shorter than their headers: nothing raises, and no stale bytes leave."""
        net, _ = self.planes()
        one, other = net.members
        one.port.pause()
        for content in contents:
            one.port.give_super((offload.PLAIN + other.mac + content) if ours else content)
        one.port.resume()
        for datagram in (datagram for _, datagram in one.wire.take()):
            self.assertLess(len(datagram), 80 * len(contents) + 100)
        self.assertEqual(one.port.taken, [])


class RuntTests(TwoPlanes):
    """Frames of the kernel that are not even as long as their headers."""

    def test_what_was_there_before_does_not_come_again(self) -> None:
        """A question, then runts: one answer."""
        self.one.control.owners[self.other.ip] = self.other.ident
        question = b"\xff" * 6 + self.one.mac + b"\x08\x06\0\1\x08\0\6\4\0\1" + self.one.mac + self.one.ip.packed + bytes(6)
        self.one.port.give(question + self.other.ip.packed)
        self.assertEqual(len(self.one.port.taken), 1)
        for length in range(14):
            self.one.port.give(b"\xff" * length)
        self.assertEqual(len(self.one.port.taken), 1)
        self.assertEqual(self.one.dropped(), {"out_runt": 14})
