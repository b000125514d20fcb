"""Whose frames are believed, and what bounds the plane: fairness, back-pressure, senseless input."""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from ipop_tx.errors import Unreachable
from ipop_tx.forwarding import offload, outbound, source, waiting
from ipop_tx.forwarding.fib import PACKED_HEAD
from ipop_tx.wire.address import mac_of
from tests.plane import Member, gathered, receive_run
from tests.test_forwarding import IN4, IN6, OUR_IP, OURS, OUT4, OUT6, PEER, PEER_IP, THIRD, THIRD_IP, PlaneTestCase, ipv4
from tests.test_forwarding_neighbour import ARP_REQUEST
from tests.test_forwarding_offload import Flow


class SourceTests(PlaneTestCase):
    """The check of inner IPv4 sources."""

    def claim(self, origin: IPv4Address, payload: bytes = b"") -> bytes:
        frame = ipv4(mac_of(OURS), mac_of(PEER), OUR_IP, origin, payload)
        self.receive(frame)
        return frame

    def asked(self) -> int:
        return len([call for call in self.control.calls if call[0] == "owns"])

    def test_asked_once(self) -> None:
        for _ in range(3):
            self.claim(PEER_IP)
        self.assertEqual(self.control.calls, [("owns", PEER, PEER_IP)])
        self.assertEqual(len(self.port.taken), 3)

    def test_frames_wait_in_order_and_are_bounded(self) -> None:
        self.control.later = True
        frames = [self.claim(PEER_IP, bytes((n,))) for n in range(source.WAITING_FRAMES + 2)]
        self.assertEqual((self.asked(), self.port.taken), (1, []))
        self.control.waiting[0].callback(True)
        self.assertEqual(self.port.taken, frames[:-2])
        self.assertDropped(in_unverified=2)
        self.assertEqual(self.adjacency.asked, {})

    def test_a_refusal_stands_for_a_while(self) -> None:
        self.claim(THIRD_IP)
        self.clock.advance(source.REFUSED_FOR - 0.1)
        self.claim(THIRD_IP)
        self.assertEqual(self.asked(), 1)
        self.assertDropped(in_source_address=2)
        self.control.owners[THIRD_IP] = PEER
        self.clock.advance(0.2)
        self.claim(THIRD_IP)
        self.assertEqual((self.asked(), len(self.port.taken)), (2, 1))
        self.assertEqual(self.adjacency.refused, {})

    def test_a_failed_look_up_is_tried_again_sooner(self) -> None:
        self.control.failure = Unreachable("no answer")
        self.claim(PEER_IP)
        self.claim(PEER_IP)
        self.assertEqual(self.asked(), 1)
        self.control.failure = None
        self.clock.advance(source.UNKNOWN_FOR)
        self.claim(PEER_IP)
        self.assertEqual(len(self.port.taken), 1)
        self.assertDropped(in_source_address=2)

    def test_one_peer_cannot_cause_many_look_ups(self) -> None:
        for n in range(200):
            self.claim(IPv4Address(f"10.128.1.{n}"))
        self.assertEqual(self.asked(), source.DOUBTFUL_ADDRESSES)
        self.assertDropped(in_source_address=source.DOUBTFUL_ADDRESSES, in_unverified=200 - source.DOUBTFUL_ADDRESSES)
        self.claim(PEER_IP)
        self.clock.advance(source.REFUSED_FOR)
        self.claim(PEER_IP)
        self.assertEqual(len(self.port.taken), 1)

    def test_an_answer_after_the_peer_is_gone(self) -> None:
        self.control.later = True
        self.claim(PEER_IP)
        self.fib.remove(PEER)
        self.fib.update(PEER, [self.session], self.there)
        self.control.waiting[0].callback(True)
        self.assertEqual(self.port.taken, [])
        self.assertEqual(self.fib.by_ident[PEER].addresses, set())

    def test_disowned(self) -> None:
        self.claim(PEER_IP)
        self.fib.disown(PEER, PEER_IP)
        self.control.owners[PEER_IP] = THIRD
        self.claim(PEER_IP)
        self.assertEqual(len(self.port.taken), 1)
        self.assertDropped(in_source_address=1)

    def test_a_fault_is_logged(self) -> None:
        self.control.failure = RuntimeError("a fault")
        self.claim(PEER_IP)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)


class FairnessTests(PlaneTestCase):
    """A bulk flow does not starve others."""

    def given_in_one_turn(self, frames: list[bytes]) -> int:
        """How many of the frames one wake-up takes."""
        self.port.pause()
        for frame in frames:
            self.port.give_super(frame)
        left = len(self.port._waiting)
        self.plane.frames_waiting()
        return left - len(self.port._waiting)

    def test_bytes_per_turn(self) -> None:
        flow = Flow(str(OUR_IP), str(PEER_IP))
        whole = flow.whole(bytes(60000), 1400)
        whole = whole[:10] + mac_of(PEER) + mac_of(OURS) + whole[22:]
        taken = self.given_in_one_turn([whole] * 40)
        self.assertLessEqual(taken * len(whole), outbound.BYTES_PER_TURN + len(whole))
        self.assertGreater(taken * len(whole), outbound.BYTES_PER_TURN - len(whole))

    def test_frames_per_turn(self) -> None:
        self.assertEqual(self.given_in_one_turn([offload.PLAIN + OUT4] * 1000), outbound.FRAMES_PER_TURN)


class PressureTests(PlaneTestCase):
    """A full transport: frames wait in the kernel, nothing is lost."""

    def test_paused_and_resumed(self) -> None:
        """The port is paused after the run that made the transport full; one sign that it is drained brings the others, in order."""
        self.adjacency.width.pieces = 4
        frames = [ipv4(mac_of(PEER), mac_of(OURS), PEER_IP, OUR_IP, bytes((n,)) * 1400) for n in range(100)]
        self.port.pause()
        for frame in frames:
            self.port.give(frame)
        self.wire.full = True
        self.port.resume()
        self.assertTrue(self.plane.outbound.held)
        self.assertGreater(len(self.port._waiting), 80)
        self.port.give(OUT6)
        before = len(self.wire.sent)
        self.plane.drained()
        self.assertTrue(self.plane.outbound.held)
        self.assertGreater(len(self.wire.sent), before)
        self.wire.full = False
        self.plane.drained()
        self.plane.drained()
        self.assertEqual((len(self.port._waiting), self.plane.outbound.held), (0, False))
        receiver = Member(2, self.clock)
        for datagrams in gathered(datagram for _, datagram in self.wire.take()):
            receiver.fib.update(OURS, [self.remote], self.there)
            receiver.fib.by_ident[OURS].addresses.add(OUR_IP.packed)
            receive_run(receiver.plane, self.there, datagrams)
        self.assertEqual(receiver.port.taken, [*frames, OUT6])


class PressureOnWaitingTests(PlaneTestCase):
    """Frames that waited for a link are not let loose on a full transport, and are bounded in bytes too."""

    def frame(self, number: int, size: int = 1000, to: bytes = PEER) -> bytes:
        return ipv4(mac_of(to), mac_of(OURS), PEER_IP, OUR_IP, number.to_bytes(4, "big") + bytes(size - 4))

    def numbers(self) -> list[int]:
        """Which frames the peer got."""
        sent = [self.remote.unprotect(datagram) for _, datagram in self.wire.take()]
        return [int.from_bytes(plain[PACKED_HEAD + 20 : PACKED_HEAD + 24], "big") for _, plain in sent]

    def linked(self, up: bool = True) -> None:
        adjacency = self.fib.update(PEER, [self.session], self.there if up else None, mtu=1500)
        assert adjacency is not None
        self.plane.fib_changed(adjacency)

    def parted(self, count: int) -> None:
        """The peer is unreachable, and so many frames wait for it."""
        self.control.later = True
        self.linked(False)
        for number in range(count):
            self.port.give(self.frame(number))

    def test_they_stop_when_the_transport_is_full(self) -> None:
        """And go on when it is drained, before those in the kernel."""
        self.parted(10)
        self.wire.full = True
        self.linked()
        self.control.waiting[0].callback(None)
        self.assertEqual((self.numbers(), self.plane.outbound.held), ([0], True))
        self.port.give(self.frame(10))
        self.linked()
        self.plane.drained()
        self.assertEqual((self.numbers(), self.plane.outbound.held), ([1], True))
        self.wire.full = False
        self.plane.drained()
        self.assertEqual((self.numbers(), self.plane.outbound.held), ([*range(2, 11)], False))
        self.assertDropped()

    def test_the_peer_is_lost_meanwhile(self) -> None:
        """What is left waits for a link as any other: it is asked for again."""
        self.parted(3)
        self.wire.full = True
        self.linked()
        self.control.waiting[0].callback(None)
        self.fib.remove(PEER)
        self.wire.full = False
        self.plane.drained()
        self.assertEqual([call for call in self.control.calls if call[0] == "connect"], [("connect", PEER)] * 2)
        self.plane.drained()
        self.assertEqual(len(self.control.waiting), 2)
        self.control.waiting[1].errback(Unreachable("gone"))
        self.assertEqual(self.numbers(), [0])
        self.assertDropped(out_unreachable=2)

    def test_those_of_a_forgotten_peer(self) -> None:
        """Whose MAC is looked up while the transport gets full: they wait for that too."""
        self.control.later = True
        self.fib.remove(PEER)
        for number in range(2):
            self.port.give(self.frame(number))
        self.linked()
        self.wire.full = True
        self.port.give(self.frame(7))
        self.control.waiting[0].callback(PEER)
        self.assertEqual(self.numbers(), [7])
        self.wire.full = False
        self.plane.drained()
        self.control.waiting[1].callback(None)
        self.assertEqual(self.numbers(), [0, 1])
        self.assertDropped()

    def test_bytes_for_one(self) -> None:
        self.patch(waiting, "WAITING_BYTES", 10 * 1046)
        self.parted(12)
        self.assertDropped(out_busy=2)
        self.linked()
        self.assertEqual(self.numbers(), [*range(10)])
        self.assertEqual(self.plane._waiting._room.taken, 0)

    def test_bytes_in_all(self) -> None:
        """Over links and look-ups together; what goes makes room again."""
        self.patch(waiting, "WAITING_BYTES_IN_ALL", 10 * 1046)
        self.parted(6)
        for number in range(6):
            self.port.give(self.frame(number, to=THIRD))
        self.assertDropped(out_busy=2)
        self.control.waiting[1].callback(None)
        self.assertDropped(out_busy=2, out_unknown_mac=4)
        for number in range(6, 12):
            self.port.give(self.frame(number))
        self.control.waiting[0].errback(Unreachable("nobody there"))
        self.assertDropped(out_busy=4, out_unknown_mac=4, out_unreachable=10)
        self.assertEqual(self.plane._waiting._room.taken, 0)


class FuzzTests(PlaneTestCase):
    """Whatever bytes come from either side: nothing raises, and every frame is carried, delivered, asked about or counted."""

    def settled(self) -> int:
        carried = len(self.wire.sent) + len(self.elsewhere.datagrams) + len(self.plane.inbound.reassembly)
        return sum(self.plane.dropped.values()) + len(self.port.taken) + self.port.refused + carried + len(self.control.calls)

    def mangled(self, frame: bytes, cut: int, place: int, value: int) -> bytes:
        damaged = bytearray(frame)
        damaged[place % len(damaged)] = value
        return bytes(damaged[:cut])

    frames: Any = st.one_of(
        st.binary(max_size=100).map(lambda tail: (b"", tail)),
        st.tuples(
            st.sampled_from([OUT4, OUT6, IN4, IN6, ARP_REQUEST]),
            st.tuples(st.integers(0, 120), st.integers(0, 120), st.integers(0, 255)),
        ),
    )

    @given(frames)
    @settings(deadline=None)
    def test_both_ways(self, drawn: Any) -> None:
        frame = self.mangled(drawn[0], *drawn[1]) if drawn[0] else drawn[1]
        for step in (self.port.give, self.receive, lambda frame: self.plane.datagram_received(self.there, frame)):
            before, taken = self.settled(), len(self.port.taken)
            step(frame)
            self.assertGreater(self.settled(), before)
            for delivered in self.port.taken[taken:]:
                self.assertTrue(delivered[6:12] in (mac_of(PEER), mac_of(THIRD)), delivered)
