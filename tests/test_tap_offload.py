"""Real TAPs and what kernels leave to each other: real programs behind two TAPs that a patch cable joins, and kernels that can do less."""

from __future__ import annotations

import fcntl
import hashlib
import os
import socket
import sys
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytun
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase
from zope.interface import implementer

from ipop_tx.forwarding import offload
from ipop_tx.interfaces import IFrameReceiver
from ipop_tx.services import tun
from ipop_tx.services.tap import TapService
from ipop_tx.wire.address import ipv6_of
from tests.namespace import Namespace, why_no_namespaces
from tests.port import FLOWS, NETWORK, FramePortTests, Inbox, RealPort
from tests.test_forwarding_offload import MACS, Flow, packed

ALL = offload.OFFLOADS
UDP_SEGMENT = 103
SLOW = "the kernel refuses {} offload on tapt0: all works, but transfers are slower and cost more CPU time"


@implementer(IFrameReceiver)
class Cable:
    """Carries the frames of one TAP to another as they are, and remembers their heads and lengths."""

    def __init__(self, port: TapService, other: TapService) -> None:
        self.port, self.other = port, other
        self.seen: list[tuple[int, int]] = []
        self.buffer = bytearray(65600)

    def frames_waiting(self) -> None:
        view = memoryview(self.buffer)
        for _ in range(64):
            size = self.port.readv([view])
            if not size:
                return
            self.seen.append((view[1], size))
            self.other.writev([view[:10], view[10:size]])

    def longest(self, kind: int) -> int:
        """Of the frames of a GSO type, without the ECN bit."""
        return max((size for seen, size in self.seen if seen & ~offload.GSO_ECN == kind), default=0)


class Kernel:
    """Patches what the kernel says to the TAPs made from now on."""

    def __init__(self, test: TestCase) -> None:
        self._test = test

    def refuses_heads(self) -> None:
        made = pytun.TunTapDevice

        def device(name: str, flags: int) -> Any:
            if flags & pytun.IFF_VNET_HDR:
                raise pytun.Error(22, "Invalid argument")
            return made(name=name, flags=flags)

        self._test.patch(pytun, "TunTapDevice", device)

    def refuses_offloads(self, *levels: int, request: int = tun.TUNSETOFFLOAD) -> None:
        real = fcntl.ioctl

        def ioctl(fd: int, asked: int, argument: Any) -> Any:
            if asked == request and (not levels or argument in levels):
                raise OSError(22, "Invalid argument")
            return real(fd, asked, argument)

        self._test.patch(fcntl, "ioctl", ioctl)

    def refuses_types(self, *kinds: int) -> None:
        write, writev = os.write, os.writev

        def checked(frame: bytes) -> bytes:
            if frame[:1] == b"\1" and offload.type_of(frame) in kinds:
                raise OSError(22, "Invalid argument")
            return frame

        self._test.patch(os, "write", lambda fd, frame: write(fd, checked(frame)))
        self._test.patch(os, "writev", lambda fd, buffers: writev(fd, [checked(b"".join(buffers))]))


class TrafficTests(TestCase):
    """Programs that know nothing of us."""

    timeout = 60

    def setUp(self) -> None:
        reason = why_no_namespaces()
        if reason is not None:
            self.skipTest(reason)
        self.kernel = Kernel(self)

    def join(self, right: Any = None) -> None:
        """Two namespaces with a TAP each; `right` is called before the second is made."""
        self.spaces = [Namespace(), Namespace()]
        self.taps = [TapService(reactor, "tapt0", 1380, NETWORK, bytes((n,)) * 20) for n in (2, 4)]
        self.addresses = {4: ["10.128.0.2", "10.128.0.4"], 6: [str(ipv6_of(NETWORK.prefix, bytes((n,)) * 20)) for n in (2, 4)]}
        self.cables = [Cable(*self.taps), Cable(*reversed(self.taps))]
        for number, (space, tap) in enumerate(zip(self.spaces, self.taps, strict=True)):
            self.addCleanup(space.remove)
            self.addCleanup(tap.stop)
            tap.configure(IPv4Address(self.addresses[4][number]), IPv6Address(self.addresses[6][number]))
            if number and right is not None:
                right()
            space.call(tap.start, self.cables[number])

    def socket(self, number: int, version: int, kind: socket.SocketKind) -> socket.socket:
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        made: socket.socket = self.spaces[number].call(socket.socket, family, kind)
        made.settimeout(20)
        self.addCleanup(made.close)
        return made

    async def assertTcp(self, version: int, backwards: bool = False) -> None:
        """Four megabytes arrive as they were; the one who connects is the one who sends, unless `backwards`."""
        listener = self.socket(1, version, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((self.addresses[version][1], 7))
        listener.listen()
        client = self.socket(0, version, socket.SOCK_STREAM)
        data = os.urandom(1 << 16) * 64
        accepting = deferToThread(listener.accept)
        await deferToThread(client.connect, (self.addresses[version][1], 7))
        server, _ = await accepting
        listener.close()
        self.addCleanup(server.close)
        sender, receiver = (server, client) if backwards else (client, server)
        digests: Deferred[Any] = gatherResults([deferToThread(_send, sender, data), deferToThread(_digest, receiver)])
        self.assertEqual(*await digests)

    async def assertUdp(self, version: int) -> None:
        """A run of datagrams from one call, the last of them short."""
        receiver, sender = (self.socket(number, version, socket.SOCK_DGRAM) for number in (1, 0))
        receiver.bind((self.addresses[version][1], 7))
        data = os.urandom(10_500)
        await deferToThread(sender.sendto, b"first", (self.addresses[version][1], 7))  # which finds the neighbour
        self.assertEqual(await deferToThread(receiver.recv, 2000), b"first")
        sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1000)
        await deferToThread(sender.sendto, data, (self.addresses[version][1], 7))
        got = [await deferToThread(receiver.recv, 2000) for _ in range(11)]
        self.assertEqual([len(one) for one in got], [1000] * 10 + [500])
        self.assertEqual(b"".join(got), data)

    async def test_super_frames_pass_from_kernel_to_kernel(self) -> None:
        self.join()
        self.assertEqual([tap.offloads for tap in self.taps], [ALL, ALL])
        for version, kind in ((4, offload.GSO_TCPV4), (6, offload.GSO_TCPV6)):
            await self.assertTcp(version)
            self.assertGreater(self.cables[0].longest(kind), 30_000)
            self.assertLessEqual(self.cables[0].longest(kind), offload.GSO_MAX + 24)
            await self.assertUdp(version)
            self.assertGreater(self.cables[0].longest(offload.GSO_UDP_L4), 10_500)
        self.assertEqual([tap.counters.unwritten for tap in self.taps], [0, 0])
        self.assertEqual([tap.health() for tap in self.taps], [[], []])

    async def test_the_other_kernel_has_no_heads(self) -> None:
        self.join(self.kernel.refuses_heads)
        self.assertEqual([tap.offloads for tap in self.taps], [ALL, ()])
        self.assertEqual(self.taps[1].health(), [SLOW.format("checksum and tso4 and tso6")])
        for version in (4, 6):
            await self.assertTcp(version)
            await self.assertTcp(version, backwards=True)
            await self.assertUdp(version)
        self.assertEqual({kind for kind, _ in self.cables[1].seen}, {offload.GSO_NONE})

    async def test_the_other_kernel_takes_none_of_the_types(self) -> None:
        self.join(lambda: self.kernel.refuses_types(offload.GSO_TCPV4, offload.GSO_TCPV6, offload.GSO_UDP_L4))
        self.assertEqual([tap.offloads for tap in self.taps], [ALL, ("checksum",)])
        self.assertEqual(self.taps[1].health(), [SLOW.format("tso4 and tso6")])
        for version in (4, 6):
            await self.assertTcp(version)
            await self.assertUdp(version)
        self.assertEqual(self.taps[1].counters.unwritten, 0)

    async def test_it_gives_no_segments_of_udp(self) -> None:
        self.kernel.refuses_offloads(0x6F)
        self.join()
        self.assertEqual([tap.offloads for tap in self.taps], [ALL[:3]] * 2)
        await self.assertTcp(4)
        await self.assertUdp(4)
        self.assertGreater(self.cables[0].longest(offload.GSO_TCPV4), 30_000)
        self.assertEqual(self.cables[0].longest(offload.GSO_UDP_L4), 0)
        self.assertEqual(self.taps[0].health(), [])

    async def test_it_gives_only_checksums(self) -> None:
        self.kernel.refuses_offloads(0x6F, 0x0F)
        self.join()
        self.assertEqual(self.taps[0].offloads, ("checksum",))
        await self.assertTcp(6)
        self.assertEqual(self.cables[0].longest(offload.GSO_TCPV6), 0)
        self.assertEqual(self.taps[0].health(), [SLOW.format("tso4 and tso6")])

    async def test_it_gives_nothing(self) -> None:
        self.kernel.refuses_offloads()
        self.join()
        self.assertEqual(self.taps[0].offloads, ())
        await self.assertTcp(4)
        self.assertEqual(self.taps[0].health(), [SLOW.format("checksum and tso4 and tso6")])

    async def test_joined_datagrams_arrive_one_by_one(self) -> None:
        self.join()
        for version in (4, 6):
            source, destination = self.addresses[version]
            flow = Flow(source, destination, tcp=False)
            receiver = self.socket(1, version, socket.SOCK_DGRAM)
            receiver.bind((destination, 2222))
            frames = [packed(flow.head() + flow.frame(bytes((n,)) * 100, n, complete=False)) for n in range(20)]
            joined = offload.join_datagrams(b"".join(frames), 0, len(frames[0]), 20)
            assert joined is not None
            macs = self.taps[1].mac + self.taps[0].mac
            payloads = [frame[joined.payload :] for frame in frames]
            self.taps[1].writev([joined.headers[:10], macs, joined.headers[10:], *payloads])
            self.assertEqual([await deferToThread(receiver.recv, 2000) for _ in frames], payloads)

    def test_big_endian_heads_are_not_ours(self) -> None:
        """Where the kernel does not know TUNSETVNETLE, heads are in the machine's order."""
        self.kernel.refuses_offloads(request=tun.TUNSETVNETLE)
        self.join()
        self.assertEqual(self.taps[0].offloads, ALL)
        for tap in self.taps:
            tap.stop()
        self.patch(sys, "byteorder", "big")
        self.join()
        self.assertEqual(self.taps[0].offloads, ())


class CutTests(FramePortTests, RealPort):
    """All that a port does, where the kernel takes no offload heads."""

    offloads: tuple[str, ...] = ()

    def setUp(self) -> None:
        super().setUp()
        self.limit()

    def limit(self) -> None:
        Kernel(self).refuses_heads()

    def open(self, receiver: Any) -> TapService:
        made = super().open(receiver)
        self.assertEqual(made.offloads, self.offloads)
        return made

    async def test_a_super_frame_from_the_kernel(self) -> None:
        """There are none: it cuts them."""
        for flow in FLOWS:
            inbox = Inbox(flow.frame(b"")[12:14])
            port = self.open(inbox)
            self.kernel_sends_super(flow.whole(bytes(range(250)), 100))
            await inbox.have(3)
            self.assertEqual(inbox.frames, [offload.PLAIN + frame for frame in flow.segments(bytes(range(250)), 100)])
            port.stop()

    def test_nonsense_is_counted(self) -> None:
        made, whole = self.open(Inbox()), FLOWS[0].whole(b"abcdef", 4)
        for frame in (b"", whole[:1], whole[:10], whole[:60], whole[:4] + b"\0\0" + whole[6:]):
            made.writev([frame])
        self.assertEqual((made.counters.unwritten, made.counters.tx_frames), (5, 0))


class CutTypesTests(CutTests):
    """Where it takes heads, but no super-frames."""

    offloads = ("checksum",)

    def limit(self) -> None:
        Kernel(self).refuses_types(offload.GSO_TCPV4, offload.GSO_TCPV6, offload.GSO_UDP_L4)

    test_a_super_frame_from_the_kernel = FramePortTests.test_a_super_frame_from_the_kernel


class RefusalTests(RealPort):
    """A kernel that knows the type and refuses a frame nevertheless: only that frame is cut."""

    def test_a_refused_frame_is_cut(self) -> None:
        made, flow = self.open(Inbox()), FLOWS[0]
        whole = flow.whole(bytes(range(250)), 100)
        real = os.writev
        self.patch(made, "_writev", self.refusing_once(real))
        for _ in range(2):
            made.writev([whole[:10], whole[10:]])
            self.assertEqual(self.kernel_got(3), flow.segments(bytes(range(250)), 100))
        self.assertEqual((made.counters.tx_frames, made.counters.unwritten, self.calls), (2, 0, 2))

    def refusing_once(self, real: Any) -> Any:
        self.calls = 0

        def writev(fd: int, buffers: Any) -> Any:
            self.calls += 1
            if self.calls == 1:
                raise OSError(22, "Invalid argument")
            return real(fd, buffers)

        return writev

    def test_what_cannot_be_cut_is_counted(self) -> None:
        made = self.open(Inbox())
        for head in (offload.HEAD.pack(1, 7, 0, 9, 34, 16), offload.HEAD.pack(1, 0, 0, 0, 60000, 16)):
            made.writev([head, FLOWS[0].frame(b"abc")])
        self.assertEqual((made.counters.unwritten, made.counters.tx_frames), (2, 0))


class KernelCutsTests(RealPort):
    """`segment` and the reference do as the kernel does."""

    def test_the_kernel_agrees(self) -> None:
        made = self.open(Inbox())
        self.shown("link", "add", "veth0", "type", "veth", "peer", "name", "veth1")
        for words in (
            ("ethtool", "-K", "veth0", "tx", "off", "tso", "off", "gso", "off", "tx-udp-segmentation", "off"),
            ("ip", "link", "add", "br0", "type", "bridge"),
            *(("ip", "link", "set", name, "up") for name in ("br0", "veth0", "veth1")),
            *(("ip", "link", "set", name, "master", "br0") for name in ("veth0", "tapt0")),
        ):
            self.namespace.run(*words)
        wire = self.namespace.call(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003))
        self.addCleanup(wire.close)
        wire.bind(("veth1", 0x0003))
        wire.settimeout(10)
        for flow in FLOWS:
            flow = flow._replace(flags=0xD9, options=bytes(12) if flow.tcp else b"", identification=65534, sequence=2**32 - 150)
            payload = os.urandom(777)
            made.writev([flow.whole(payload, 100)])
            got: list[bytes] = []
            while len(got) < 8:
                frame = wire.recv(2000)
                if frame[:12] == MACS:
                    got.append(frame)
            self.assertEqual(got, flow.segments(payload, 100))


def _send(sender: socket.socket, data: bytes) -> str:
    sender.sendall(data)
    sender.shutdown(socket.SHUT_WR)
    return hashlib.sha256(data).hexdigest()


def _digest(receiver: socket.socket) -> str:
    digest = hashlib.sha256()
    while data := receiver.recv(1 << 16):
        digest.update(data)
    return digest.hexdigest()
