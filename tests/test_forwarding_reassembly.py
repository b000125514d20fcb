"""Pieces that come apart: whole records in the end, bounded memory, and what an attacker beside the path can do with junk."""

from __future__ import annotations

import random
import tracemalloc

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ipop_tx.errors import BadDatagram
from ipop_tx.forwarding.reassembly import MOST, MOST_OF_ONE, OLDEST, Reassembly
from ipop_tx.forwarding.sealing import LARGEST
from ipop_tx.forwarding.width import FIRST_HOLD
from ipop_tx.wire.datagram import FRAME, HEADER, HEADER_BYTES, MAX_PIECES
from tests.plane import Planes, gathered
from tests.test_forwarding_offload import Flow
from tests.test_forwarding_runs import TwoPlanes, record

INDEX = 0x80000001


def cut(content: bytes, piece: int) -> list[bytes]:
    return [content[at : at + piece] for at in range(0, len(content), piece)]


class OrderTests(SynchronousTestCase):
    """Whatever the order, whatever comes twice."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.reassembly = Reassembly(self.clock.seconds)

    def add(self, counter: int, number: int, pieces: int, data: bytes, index: int = INDEX) -> bytes | None:
        whole = self.reassembly.add(index, counter, b"header%10d" % counter, number, pieces, memoryview(bytearray(data)))
        return None if whole is None else bytes(whole)

    @settings(max_examples=100, deadline=None)
    @given(st.integers(2, 700), st.integers(1, 100), st.integers())
    def test_any_order(self, size: int, piece: int, seed: int) -> None:
        """The record is whole with its last missing piece and not before; a copy of a piece changes nothing."""
        rng = random.Random(seed)
        content = rng.randbytes(size)
        parts = list(enumerate(cut(content, max(piece, -(-size // MAX_PIECES)))))
        if len(parts) < 2:
            return
        rng.shuffle(parts)
        for number, data in parts[:-1]:
            for copy in (data, bytes(len(data))):
                self.assertIsNone(self.add(5, number, len(parts), copy))
        self.assertEqual(self.add(5, *parts[-1][:1], len(parts), parts[-1][1]), content)
        self.assertEqual(len(self.reassembly), 0)

    @settings(max_examples=50, deadline=None)
    @given(st.integers())
    def test_several_at_once(self, seed: int) -> None:
        rng = random.Random(seed)
        records = {counter: rng.randbytes(rng.randint(101, 900)) for counter in range(MOST_OF_ONE)}
        pieces = [(counter, *part, len(cut(content, 100))) for counter, content in records.items() for part in enumerate(cut(content, 100))]
        rng.shuffle(pieces)
        whole = {counter: done for counter, number, data, count in pieces if (done := self.add(counter, number, count, data)) is not None}
        self.assertEqual(whole, records)

    def test_senseless(self) -> None:
        for number, pieces, data in (
            (2, 2, b"x"),
            (0, 0, b"x"),
            (64, 65, b"x"),
            (0, 65, b"x"),
            (255, 255, b"x"),
            (0, 2, b""),
            (-1, 2, b"x"),
        ):
            self.assertIsNone(self.add(1, number, pieces, data))
        self.assertEqual(len(self.reassembly), 0)

    def test_what_does_not_fit_is_left_out(self) -> None:
        """Another header, another size, a last piece longer than the others: the record is not whole by it. The first of them is told."""
        self.add(1, 0, 3, b"aaaa")
        self.assertRaises(BadDatagram, self.add, 1, 1, 3, b"bbb")
        self.assertIsNone(self.add(1, 1, 3, b"bbbbb"))
        self.assertIsNone(self.reassembly.add(INDEX, 1, b"another header..", 1, 3, memoryview(b"bbbb")))
        self.assertIsNone(self.add(1, 1, 3, b"bbbb"))
        self.assertEqual(self.add(1, 2, 3, b"c"), b"aaaabbbbc")
        self.add(2, 1, 2, b"last and long")
        self.assertRaises(BadDatagram, self.add, 2, 0, 2, b"short")
        self.assertIsNone(self.add(2, 0, 2, b"short"))
        self.add(3, 0, 3, b"aaaa")
        for raises in (True, False):
            another = (INDEX, 3, b"another header..", 1, 3, memoryview(b"bbbb"))
            if raises:
                self.assertRaises(BadDatagram, self.reassembly.add, *another)
            else:
                self.assertIsNone(self.reassembly.add(*another))

    def test_age(self) -> None:
        """A record that is not whole after a while is given up, whether anybody looks for it or only more pieces come."""
        self.add(1, 0, 2, b"old")
        self.clock.advance(1.0)
        self.add(2, 0, 2, b"young")
        self.clock.advance(OLDEST - 0.9)
        self.reassembly.expire()
        self.assertEqual((len(self.reassembly), self.reassembly.lost), (1, 1))
        self.assertIsNone(self.add(1, 1, 2, b"x"))
        self.assertEqual(self.add(2, 1, 2, b"er"), b"younger")
        self.clock.advance(OLDEST + 0.1)
        self.add(3, 0, 2, b"new")
        self.assertEqual((len(self.reassembly), self.reassembly.lost), (1, 2))
        self.assertEqual(sum(self.reassembly._by_index.values()), 1)


class BoundTests(SynchronousTestCase):
    """What junk can make us keep."""

    def fill(self, reassembly: Reassembly, indexes: int, size: int, pieces: int, number: int) -> None:
        data = memoryview(bytes(size))
        for index in range(indexes):
            for counter in range(200):
                reassembly.add(INDEX + index, counter, b"h" * 16, number, pieces, data)

    def test_in_number(self) -> None:
        reassembly = Reassembly(Clock().seconds)
        self.fill(reassembly, 1, 100, 9, 3)
        self.assertEqual((len(reassembly), reassembly.lost), (MOST_OF_ONE, 200 - MOST_OF_ONE))
        self.fill(reassembly, 20, 100, 9, 3)
        self.assertLessEqual(len(reassembly), MOST)
        self.assertEqual(sum(reassembly._by_index.values()), len(reassembly))

    def test_one_index_costs_another_nothing(self) -> None:
        """As long as there are few that are flooded."""
        reassembly = Reassembly(Clock().seconds)
        reassembly.add(INDEX + 99, 7, b"h" * 16, 0, 2, memoryview(b"first"))
        self.fill(reassembly, 4, 100, 9, 3)
        whole = reassembly.add(INDEX + 99, 7, b"h" * 16, 1, 2, memoryview(b"last"))
        assert whole is not None
        self.assertEqual(bytes(whole), b"firstlast")

    def test_in_bytes(self) -> None:
        """No more than so many of the longest records, however long a piece is and however many it says there are."""
        for size, pieces, number in ((65000, 64, 0), (65000, 64, 63), (33000, 3, 1), (1200, 55, 0), (65000, 2, 1)):
            reassembly = Reassembly(Clock().seconds)
            tracemalloc.start()
            self.fill(reassembly, 10, size, pieces, number)
            kept = tracemalloc.get_traced_memory()[0]
            tracemalloc.stop()
            self.assertLess(kept, MOST * (2 * LARGEST + 2000), (size, pieces, number))


class TooLongTests(TwoPlanes):
    """Records longer than any that we make."""

    def test_they_are_forged(self) -> None:
        channel = self.session.channel
        for size, pieces in ((2000, 64), (60000, 64), (33100, 2), (60000, 2)):
            for number in range(pieces):
                head = HEADER.pack(channel.send_index, FRAME, number, pieces, 0, channel.reserve(0))
                self.receive(head + bytes(size))
            channel.reserve(1)
        self.receive(*record(self.session, FRAME, self.frame(b"good"), 1184))
        self.assertEqual(self.got(), [b"good"])


class AttackTests(TwoPlanes):
    """Somebody beside the path sees what travels and sends junk faster, under the same header."""

    def junk(self, datagram: bytes) -> bytes:
        return datagram[:HEADER_BYTES] + bytes(len(datagram) - HEADER_BYTES)

    def send(self, payload: bytes, piece: int, attacked: bool) -> int:
        """One record, with or without junk before each piece; how many payloads it brought."""
        before = len(self.port.taken)
        for datagram in record(self.session, FRAME, self.frame(payload), piece):
            if attacked:
                self.receive(self.junk(datagram))
            self.receive(datagram)
        return len(self.port.taken) - before

    def test_at_width_one_junk_kills_nothing(self) -> None:
        for _ in range(50):
            self.assertEqual(self.send(b"x" * 100, 1184, True), 1)
        self.assertEqual(self.other.dropped(), {"in_forged": 50})
        self.assertEqual(self.other.adjacency(self.one).failed, 0)

    def test_a_wide_record_fails_and_that_is_told(self) -> None:
        peer = self.other.adjacency(self.one)
        for number in range(1, 6):
            self.assertEqual(self.send(b"x" * 1000, 300, True), 0)
            self.assertEqual(peer.failed, number)
        self.assertEqual(self.other.control.opened_of, [peer], "told once until it is asked")
        self.assertEqual(self.send(b"x" * 1000, 300, False), 1)

    def test_junk_of_another_size_is_told_too(self) -> None:
        """It keeps the pieces of a record from coming together, so that there is nothing to open; a lot of it is one failure."""
        peer = self.other.adjacency(self.one)
        for number, junk in enumerate((b"\0", b"\0" * 299, b"\0" * 1000), 1):
            datagrams = record(self.session, FRAME, self.frame(b"x" * 1000), 300)
            for _ in range(3):
                self.receive(datagrams[0][:HEADER_BYTES] + junk)
            for datagram in datagrams:
                self.receive(datagram)
            self.assertEqual((peer.failed, self.got()), (number, []))
        self.assertEqual(self.other.control.opened_of, [peer])

    def test_junk_behind_a_good_piece(self) -> None:
        """Pieces of another size or with another header: the record arrives all the same, and the attack is told."""
        peer = self.other.adjacency(self.one)
        for number in range(1, 3):
            datagrams = record(self.session, FRAME, self.frame(b"x" * 1000), 300)
            self.receive(datagrams[0])
            head = bytearray(datagrams[1][:HEADER_BYTES])
            if number == 2:
                head[6] = 9
            self.receive(bytes(head) + bytes(299))
            for datagram in datagrams[1:]:
                self.receive(datagram)
            self.assertEqual((peer.failed, len(self.got())), (number, number))

    def test_the_pair_goes_on_at_width_one(self) -> None:
        """The whole circle: wide records, junk, a report; then width one, at which everything arrives, for a while."""
        one, peer, theirs = self.one, self.one.adjacency(self.other), self.other.adjacency(self.one)
        flow = Flow(str(one.ip), str(self.other.ip))
        whole = flow.whole(bytes(range(250)) * 40, 1000)
        whole = whole[:10] + self.other.mac + one.mac + whole[22:]

        def report(now: float) -> None:
            channel = self.theirs.channel
            peer.width.report(now, 1, channel.highest, channel.datagrams_opened, theirs.failed, peer.tx_pieces / peer.tx_records)

        def sends(attacked: bool) -> int:
            before = len(self.port.taken)
            one.give([whole])
            for _, datagram in one.wire.take():
                if attacked:
                    self.receive(self.junk(datagram))
                self.receive(datagram)
            return len(self.port.taken) - before

        for _ in range(500):
            self.assertEqual(sends(False), 10)
        report(1.0)
        self.assertGreater(peer.width.pieces, 2)
        self.assertLess(sends(True), 10)
        report(2.0)
        for second in range(int(FIRST_HOLD)):
            self.assertEqual(peer.width.pieces, 1)
            self.assertEqual(sends(True), 10, "at width one nothing is lost")
            report(2.0 + second)

    def test_an_attack_on_everything_is_noticed(self) -> None:
        """When no wide record at all gets through, there is no news of any that was opened, only of those that failed."""
        width = self.one.adjacency(self.other).width
        for second in range(100):
            width.report(second / 10, 1, 1000 * second, 1000 * second, 0, 1.0)
        self.assertGreater(width.pieces, 20)
        width.report(10.0, 1, 99000, 99000, 1, 20.0)
        self.assertEqual(width.pieces, 1)

    def test_nothing_altered(self) -> None:
        """Junk among the pieces of many records, at random: what arrives is what was sent."""
        planes = Planes(2, sealed=True)
        one, other = planes.members
        planes.join(one, other)
        one.adjacency(other).width.pieces = 7
        rng = random.Random(3)
        sent = []
        flow = Flow(str(one.ip), str(other.ip), tcp=False)
        for number in range(60):
            flow = flow._replace(identification=number * 100)
            content = rng.randbytes(9000)
            whole = flow.whole(content, 1000)
            one.give([whole[:10] + other.mac + one.mac + whole[22:]])
            sent += [content[at : at + 1000] for at in range(0, 9000, 1000)]

        def attack(datagrams: list[bytes]) -> list[list[bytes]]:
            out = []
            for datagram in datagrams:
                if rng.random() < 0.02:
                    damaged = bytearray(datagram)
                    damaged[rng.randrange(4, len(damaged))] ^= 1 << rng.randrange(8)
                    out.append(bytes(damaged[: rng.choice([len(damaged), rng.randrange(17, len(damaged))])]))
                out.append(datagram)
            return gathered(out)

        planes.carry(attack)
        got = [frame[42:] for frame in other.port.taken]
        self.assertEqual([one for one in got if one not in sent], [])
        self.assertEqual(len(got), len(set(got)))
        self.assertGreater(len(got), len(sent) // 2)
        self.assertLess(len(got), len(sent))
