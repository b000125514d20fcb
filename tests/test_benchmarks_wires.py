"""The wires of the benchmarks: delay, loss, parting, and super-frames that are cut on the way."""

from __future__ import annotations

import socket
import sys

from twisted.trial.unittest import TestCase

from benchmarks.dataplane import measure
from benchmarks.dataplane.underlay import A_ADDRESS, B_ADDRESS, R_ADDRESS, Pair, Triangle
from benchmarks.dataplane.wire import MOST, Lane
from ipop_tx.errors import EnvironmentProblem
from ipop_tx.lab import Lab
from tests.system import why_not


class Wire(TestCase):
    """The wire's queue has a bound."""

    def test_bound(self) -> None:
        left, inlet = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        outlet, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        for one in (left, inlet, outlet, right):
            self.addCleanup(one.close)
            one.setblocking(False)
        lane = Lane(inlet, outlet, 0.0)
        left.send(b"first")
        left.send(b"second")
        lane.take()
        self.assertEqual(lane.held, 11)
        lane.give()
        self.assertEqual((right.recv(99), right.recv(99), lane.held, lane.due), (b"first", b"second", 0, None))
        lane.held = MOST
        left.send(b"too much")
        lane.take()
        self.assertIsNone(lane.due)


class Delay(TestCase):
    """The wires under test do what their figures say."""

    skip = why_not()
    timeout = 60

    def test_delay_and_loss(self) -> None:
        with Lab("benchwire") as lab:
            pair = Pair(lab, "x", rtt_ms=20, congestion="reno")
            pings = measure.idle_pings(pair, B_ADDRESS, 50)
            self.assertGreater(min(pings), 19.5)
            self.assertLess(measure.percentile(pings, 0.5), 60)
            pair.lose(100)
            self.assertRaises(EnvironmentProblem, measure.idle_pings, pair, B_ADDRESS, 3)
            pair.lose(0)
            self.assertEqual(len([one for one in measure.idle_pings(pair, B_ADDRESS, 20) if one < measure.UNANSWERED_MS]), 20)
            self.assertEqual(measure.tcp(pair, B_ADDRESS, 1).congestion, "reno")

    def test_super_frames_leave_the_wire_as_datagrams(self) -> None:
        sent = bytes(range(256)) * 64
        with Lab("benchgso") as lab:
            pair = Pair(lab, "x", rtt_ms=4)
            with pair.b.socket() as inlet, pair.a.socket() as outlet:
                inlet.bind((B_ADDRESS, 9000))
                inlet.settimeout(5)
                outlet.sendmsg([sent], [(socket.IPPROTO_UDP, 103, (1400).to_bytes(2, sys.byteorder))], 0, (B_ADDRESS, 9000))
                came = [inlet.recv(1 << 16) for _ in range(12)]
        self.assertEqual({len(one) for one in came}, {1400, len(sent) % 1400})
        self.assertEqual(b"".join(came), sent)

    def test_parted(self) -> None:
        with Lab("benchpart") as lab:
            triangle = Triangle(lab, "x")

            def passes(target: str) -> bool:
                host = triangle.b if target == B_ADDRESS else triangle.r
                with host.socket() as inlet, triangle.a.socket() as outlet:
                    inlet.bind((target, 9000))
                    inlet.settimeout(0.5)
                    outlet.sendto(b"x", (target, 9000))
                    try:
                        return inlet.recvfrom(9)[1][0] == A_ADDRESS
                    except TimeoutError:
                        return False

            self.assertEqual((passes(B_ADDRESS), passes(R_ADDRESS)), (True, True))
            triangle.part()
            triangle.lose(0)
            self.assertEqual((passes(B_ADDRESS), passes(R_ADDRESS)), (False, True))
            triangle.part(False)
            self.assertTrue(passes(B_ADDRESS))
            self.assertEqual(triangle.pids(), [])
