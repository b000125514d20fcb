"""What every frame port does, as tests that run over any of them, and a real TAP in a namespace to run them over."""

from __future__ import annotations

import socket
from ipaddress import IPv4Network, IPv6Network
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from ipop_tx.errors import EnvironmentProblem, IpopError
from ipop_tx.forwarding import offload
from ipop_tx.interfaces import IFramePort, IFrameReceiver
from ipop_tx.services.tap import TapService
from ipop_tx.values import Network
from ipop_tx.wire.address import mac_of
from tests.namespace import Namespace, why_no_namespaces
from tests.test_forwarding_offload import Flow

NETWORK = Network("lab", bytes(20), IPv4Network("10.128.0.0/16"), IPv6Network("fd12:3456:789a::/48"))
IDENT = bytes(range(0x60, 0x74))
STRANGER = bytes.fromhex("020000000001")
# An ethertype for experiments (IEEE 802, 0x88B5), which no kernel sends by itself.
FRAME = mac_of(IDENT) + STRANGER + b"\x88\xb5" + bytes(range(60))
OTHER = b"\xff" * 6 + mac_of(IDENT) + b"\x88\xb5" + b"other" * 10
PLAIN = offload.PLAIN
SOL_PACKET, PACKET_VNET_HDR, PACKET_OUTGOING = 263, 15, 4
FLOWS = [
    Flow(source, destination, tcp) for tcp in (True, False) for source, destination in (("192.0.2.1", "192.0.2.2"), ("fd12::1", "fd12::2"))
]
"""To a MAC that nobody has, so that no kernel answers."""


@implementer(IFrameReceiver)
class Inbox:
    """Keeps the frames, in port layout, whose ethertype is `wanted`; `have(n)` fires once there are n."""

    def __init__(self, wanted: bytes = b"\x88\xb5", at_a_time: int = 64) -> None:
        self.frames: list[bytes] = []
        self.port: Any = None
        self.turns = 0
        self.faults = 0
        self.buffer = bytearray(65600)
        self._wanted, self._at_a_time = wanted, at_a_time
        self._waiter: tuple[int, Deferred[None]] | None = None

    def frames_waiting(self) -> None:
        self.turns += 1
        if self.faults:
            self.faults -= 1
            raise RuntimeError("a fault")
        view = memoryview(self.buffer)
        for _ in range(self._at_a_time):
            size = self.port.readv([view[:10], view[10:24], view[24:]])
            if not size:
                return
            self.keep(bytes(view[:size]))

    def keep(self, frame: bytes) -> None:
        if frame[22:24] != self._wanted:
            return
        self.frames.append(frame)
        if self._waiter is not None and len(self.frames) >= self._waiter[0]:
            waiter, self._waiter = self._waiter[1], None
            waiter.callback(None)

    def have(self, number: int) -> Deferred[None]:
        deferred: Deferred[None] = Deferred()
        if len(self.frames) >= number:
            deferred.callback(None)
        else:
            self._waiter = (number, deferred)
        return deferred


class FramePortTests:
    """What every port does. A subclass gives `open(receiver)`, `kernel_sends(frame)` and `kernel_got(number of frames)`."""

    timeout = 20

    async def test_from_the_kernel(self: Any) -> None:
        inbox = Inbox()
        verifyObject(IFramePort, self.open(inbox))
        self.kernel_sends(OTHER)
        self.kernel_sends(FRAME)
        await inbox.have(2)
        self.assertEqual(inbox.frames, [PLAIN + OTHER, PLAIN + FRAME])

    def test_to_the_kernel(self: Any) -> None:
        port = self.open(Inbox())
        port.writev([PLAIN, FRAME])
        port.writev([PLAIN + OTHER[:12], memoryview(b"--" + OTHER)[14:20], b"", bytearray(OTHER[18:])])
        self.assertEqual(self.kernel_got(2), [FRAME, OTHER])

    def test_a_super_frame_to_the_kernel(self: Any) -> None:
        port = self.open(Inbox())
        for flow in FLOWS:
            whole = flow.whole(bytes(range(250)), 100)
            port.writev([whole[:10], whole[10:22], memoryview(whole)[22:]])
            self.assertEqual(self.kernel_got(3), flow.segments(bytes(range(250)), 100))

    def test_a_checksum_is_left_to_the_kernel(self: Any) -> None:
        port = self.open(Inbox())
        for flow in FLOWS:
            port.writev([flow.head(), flow.frame(b"abc", complete=False)])
            self.assertEqual(self.kernel_got(1), [flow.frame(b"abc")])

    async def test_a_super_frame_from_the_kernel(self: Any) -> None:
        for flow in FLOWS:
            inbox = Inbox(flow.frame(b"")[12:14])
            port, whole = self.open(inbox), flow.whole(bytes(range(250)), 100)
            self.kernel_sends_super(whole)
            await inbox.have(1)
            [frame] = inbox.frames
            self.assertEqual((frame[:2], frame[4:]), (whole[:2], whole[4:]))  # the length of headers is only the kernel's guess
            port.stop()

    def test_nothing_waits(self: Any) -> None:
        inbox = Inbox()
        port = self.open(inbox)
        inbox.frames_waiting()
        self.assertEqual(port.readv([bytearray(100)]), 0)

    async def test_a_long_frame_is_cut_off(self: Any) -> None:
        inbox = Inbox()
        port = self.open(inbox)
        port.pause()
        self.kernel_sends(OTHER)
        short = [bytearray(5), bytearray(17)]
        size = 0
        while not size or short[1][-12:] != OTHER[:12]:  # a real kernel has more to say
            size = port.readv(short)
        self.assertEqual((size, b"".join(short)), (22, PLAIN + OTHER[:12]))

    async def test_pause_and_resume(self: Any) -> None:
        inbox = Inbox()
        port = self.open(inbox)
        port.pause()
        port.pause()
        self.kernel_sends(OTHER)
        await soon()
        self.assertEqual((inbox.turns, inbox.frames), (0, []))
        port.resume()
        port.resume()
        await inbox.have(1)
        port.stop()
        port.pause()
        port.resume()

    async def test_a_pause_outlasts_a_restart(self: Any) -> None:
        inbox = Inbox()
        self.open(inbox).pause()
        inbox.port.stop()
        self.open(inbox)
        self.kernel_sends(OTHER)
        await soon()
        self.assertEqual(inbox.turns, 0)
        inbox.port.resume()
        await inbox.have(1)

    async def test_the_receiver_takes_as_many_as_it_likes(self: Any) -> None:
        inbox = Inbox(at_a_time=2)
        port = self.open(inbox)
        port.pause()
        for _ in range(7):
            self.kernel_sends(OTHER)
        port.resume()
        await inbox.have(7)
        self.assertGreaterEqual(inbox.turns, 4)

    def test_open_twice(self: Any) -> None:
        self.open(Inbox())
        self.assertRaises(EnvironmentProblem, self.open, Inbox())

    def test_stop_may_be_repeated_and_start_again(self: Any) -> None:
        port = self.open(Inbox())
        port.stop()
        port.stop()
        port.writev([PLAIN, FRAME])
        self.assertEqual(port.readv([bytearray(100)]), 0)
        port = self.open(Inbox())
        port.writev([PLAIN, OTHER])
        self.assertEqual(self.kernel_got(1), [OTHER])


def soon() -> Deferred[None]:
    """Some turns of the reactor later."""
    return deferLater(reactor, 0.05, lambda: None)


class RealTap(TestCase):
    """A namespace for each test."""

    def setUp(self) -> None:
        reason = why_no_namespaces()
        if reason is not None:
            self.skipTest(reason)
        self.namespace = Namespace()
        self.addCleanup(self.namespace.remove)
        self.name = "tapt0"

    def make(self, **changes: Any) -> TapService:
        made = TapService(reactor, **{"name": self.name, "mtu": 1380, "network": NETWORK, "ident": IDENT, **changes})
        self.addCleanup(made.stop)
        return made

    def shown(self, *words: str) -> str:
        return self.namespace.run("ip", *words)

    def assertProblem(self, kind: type[IpopError], parts: list[str], made: TapService) -> None:
        problem = self.assertRaises(kind, self.namespace.call, made.start, Inbox())
        for part in parts:
            self.assertIn(part, str(problem))


class RealPort(RealTap):
    """A real TAP as a port: the kernel's side is a packet socket, which sees frames as the stack does."""

    def open(self, receiver: Any) -> TapService:
        made = receiver.port = receiver.port or self.make()
        self.namespace.call(made.start, receiver)
        self.wire = self.namespace.call(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003))
        self.addCleanup(self.wire.close)
        self.wire.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        self.wire.bind((self.name, 0x0003))
        self.wire.settimeout(10)
        return made

    def kernel_sends(self, frame: bytes) -> None:
        self.kernel_sends_super(PLAIN + frame)

    def kernel_sends_super(self, frame: bytes) -> None:
        self.wire.send(frame)

    def kernel_got(self, count: int) -> list[bytes]:
        frames: list[bytes] = []
        while len(frames) < count:
            frame, address = self.wire.recvfrom(70000)
            if address[2] != PACKET_OUTGOING:
                frames += offload.segment(frame)
        return frames
