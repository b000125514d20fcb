"""The short way for records that are the next parts of a super-frame: it must differ from the long way in nothing but time."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from ipop_tx.forwarding import inbound, offload
from ipop_tx.wire.datagram import FRAME, HEADER, HEADER_BYTES
from tests.plane import receive_run
from tests.test_forwarding_batch import Pair, comparable, reference
from tests.test_forwarding_offload import ACK, TIMESTAMPS, Flow

SEGMENTS = 20
SIZE = 1100


class PartsTests(SynchronousTestCase):
    """A super-frame of twenty segments, each a record in one datagram, the last one shorter."""

    def setUp(self) -> None:
        original = inbound.Inbound._parts

        def counting(plane: inbound.Inbound, *arguments: object) -> int:
            taken = original(plane, *arguments)  # type: ignore[arg-type]
            self.short += taken
            return taken

        self.patch(inbound.Inbound, "_parts", counting)
        self.begin()

    def begin(self) -> None:
        """A pair of members, and what one has sent to the other."""
        self.pair = Pair(3, 1, 1500)
        self.b = self.pair.b
        flow = Flow("10.128.0.1", "10.128.0.2", options=TIMESTAMPS, flags=ACK)
        self.whole = self.pair.maker.addressed(flow.whole(self.pair.rng.randbytes((SEGMENTS - 1) * SIZE + 300), SIZE))
        self.pair.a.give([self.whole])
        self.sent = [datagram for _, datagram in self.pair.a.wire.take()]
        self.assertEqual(len(self.sent), SEGMENTS)
        self.ends = self.pair.ends[0]
        self.short = 0

    def receive(self, datagrams: list[bytes], runs: int = 0) -> None:
        """As one run, or in runs of so many."""
        for at in range(0, len(datagrams), runs or len(datagrams)):
            receive_run(self.b.plane, self.pair.a.endpoint, datagrams[at : at + (runs or len(datagrams))])
        self.b.plane.burst_ended()

    def assertTaken(self, lost: set[int] = frozenset()) -> None:  # type: ignore[assignment]
        """All segments but those arrived, in order, unaltered."""
        wanted = [segment for number, segment in enumerate(reference([self.whole])) if number not in lost]
        self.assertEqual([comparable(frame) for frame in self.b.port.taken], wanted)
        self.assertEqual(self.b.port.refused, 0)

    def test_whole(self) -> None:
        """One write; the first record goes the long way. Nothing of it is taken a second time."""
        for runs in (0, 7, 1):
            self.begin()
            self.receive(self.sent, runs)
            self.assertTaken()
            self.assertEqual((self.short, len(self.b.port.written)), (SEGMENTS - 1, 1))
            self.assertEqual(self.ends[1].channel.highest, SEGMENTS - 1)
            self.assertEqual(self.ends[1].channel.datagrams_opened, SEGMENTS)
            self.receive(self.sent)
            self.assertTaken()
            self.assertEqual(self.b.dropped(), {"in_forged": SEGMENTS})

    def test_forged(self) -> None:
        """A part that does not open is lost alone, counted once, and may still come; what was there before it stays as it was."""
        at = 8
        forged = self.sent[at][:-1] + bytes([self.sent[at][-1] ^ 1])
        self.receive([*self.sent[:at], forged, *self.sent[at + 1 :]])
        self.assertTaken({at})
        self.assertEqual(self.b.dropped(), {"in_forged": 1})
        self.assertTrue(self.ends[1].channel.fresh(at))
        self.receive([self.sent[at]])
        self.assertEqual(len(self.b.port.taken), SEGMENTS)

    def test_another_super_frame(self) -> None:
        """The right counter and a good tag, but other headers, or another part: both frames come, each for itself."""
        for change in (10 + 2 + 4, 2):  # the identification of the IP header, the number of the part
            self.begin()
            index, _, _, _, _, counter = HEADER.unpack_from(self.sent[4])
            plain = bytearray(self.sent[4][HEADER_BYTES:-16])
            plain[change] ^= 1
            header = HEADER.pack(index, FRAME, 0, 1, 0, counter)
            sealed = bytearray(len(plain) + 16)
            self.ends[0].channel.encrypt(header[4:], plain, None, memoryview(sealed))
            self.receive([*self.sent[:4], header + bytes(sealed), *self.sent[5:]])
            taken = [comparable(frame) for frame in self.b.port.taken]
            rest = reference([self.whole])
            self.assertEqual((taken[:4], taken[5:]), (rest[:4], rest[5:]))
            self.assertNotEqual(taken[4], rest[4])
            self.assertEqual(len(taken), SEGMENTS)
            self.assertEqual(self.ends[1].channel.datagrams_opened, SEGMENTS)

    def test_lost_and_late(self) -> None:
        """After a gap the long way is taken, and what comes late too."""
        self.receive([*self.sent[:5], *self.sent[6:12], self.sent[5], *self.sent[12:]])
        self.assertEqual(sorted(comparable(frame) for frame in self.b.port.taken), sorted(reference([self.whole])))
        self.assertEqual(self.b.dropped(), {})

    def test_from_elsewhere(self) -> None:
        """Parts that come from another endpoint are reported as any other record is, and so is that something was opened."""
        adjacency = self.b.adjacency(self.pair.a)
        receive_run(self.b.plane, self.pair.a.endpoint, self.sent[:3])
        adjacency.heard = False
        other = self.pair.a.endpoint._replace(port=9)
        receive_run(self.b.plane, other, self.sent[3:])
        self.b.plane.burst_ended()
        self.assertTaken()
        self.assertTrue(adjacency.heard)
        self.assertIn(("path_seen", self.ends[1], other), self.b.control.calls)

    def test_the_session_ends_meanwhile(self) -> None:
        """What comes after it has been forgotten is not opened."""
        receive_run(self.b.plane, self.pair.a.endpoint, self.sent[:3])
        self.b.fib.remove(self.pair.a.ident)
        receive_run(self.b.plane, self.pair.a.endpoint, self.sent[3:])
        self.b.plane.burst_ended()
        self.assertEqual(self.short, 2)
        self.assertEqual(self.ends[1].channel.datagrams_opened, 3)
        self.assertEqual(len(self.b.elsewhere.datagrams), SEGMENTS - 3)

    def test_no_longer_than_a_frame_may_be(self) -> None:
        """A peer that never says that its super-frame ends cannot fill more than the buffer has."""
        self.patch(inbound, "_JOINED", 6 * SIZE)
        self.receive(self.sent)
        self.assertTaken()
        self.assertGreater(len(self.b.port.written), 3)
        self.assertLessEqual(max(len(frame) for frame in self.b.port.written), 6 * SIZE + offload.HEAD.size + 14)

    def test_runts(self) -> None:
        """Datagrams that are too short to be anything, among the others."""
        for junk in (b"\x80", self.sent[5][:15], self.sent[5][:HEADER_BYTES], self.sent[5][:31]):
            self.begin()
            self.receive(self.sent[:5])
            self.receive([junk])
            self.receive(self.sent[5:])
            self.assertTaken()
