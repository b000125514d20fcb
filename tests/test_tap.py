"""Frame ports: one mixin runs over memory and over a real TAP in a namespace; then what only the TAP has."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReadDescriptor
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from ipop_tx.errors import EnvironmentProblem, IpopError, LocalMisuse, PermissionProblem
from ipop_tx.forwarding import offload
from ipop_tx.forwarding.memory import FramePair
from ipop_tx.interfaces import IFramePort, IFrameReceiver
from ipop_tx.services import netlink, tun
from ipop_tx.services.overlap import overlapping
from ipop_tx.services.tap import TapService
from ipop_tx.values import Network
from ipop_tx.wire.address import ipv6_of, mac_of
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


class FramePairTests(FramePortTests, TestCase):
    """Over memory."""

    def setUp(self) -> None:
        self.pair = FramePair()
        self.kernel_sends = self.pair.give
        self.kernel_sends_super = self.pair.give_super

    def open(self, receiver: Any) -> FramePair:
        receiver.port = self.pair
        self.pair.start(receiver)
        return self.pair

    def kernel_got(self, count: int) -> list[bytes]:
        frames, self.pair.taken = self.pair.taken, []
        return frames

    def test_written_is_what_was_written(self) -> None:
        port, whole = self.open(Inbox()), FLOWS[0].whole(b"abcdef", 4)
        buffer = bytearray(whole)
        port.writev([buffer])
        buffer[:] = bytes(len(buffer))
        self.assertEqual(port.written, [whole])
        port.writev([whole[:50]])
        self.assertEqual((len(port.written), len(port.taken), port.refused), (2, 2, 1))

    def test_super_frames_come_as_they_are(self) -> None:
        inbox, whole = Inbox(b"\x08\x00"), FLOWS[0].whole(b"abcdef", 4)
        self.open(inbox).give_super(whole)
        self.assertEqual(inbox.frames, [whole])

    def test_nothing_is_left_behind_a_frame(self) -> None:
        inbox = Inbox()
        self.open(inbox).give(OTHER + bytes(range(1, 200)))
        view = memoryview(inbox.buffer)[100:200]
        self.assertTrue(any(view))
        self.pair.give(OTHER)
        self.assertFalse(any(view))

    def test_a_receiver_that_takes_nothing(self) -> None:
        inbox = Inbox(at_a_time=0)
        self.open(inbox).give(OTHER)
        self.assertEqual(inbox.turns, 1)

    def test_a_frame_that_comes_of_another(self) -> None:
        inbox = Inbox(at_a_time=1)
        keep = inbox.keep

        def answer(frame: bytes) -> None:
            keep(frame)
            if len(inbox.frames) < 4:
                self.pair.give(FRAME)

        inbox.keep = answer  # type: ignore[method-assign]
        self.open(inbox).give(OTHER)
        self.assertEqual(inbox.frames, [PLAIN + OTHER, *[PLAIN + FRAME] * 3])


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


class RealFramePortTests(FramePortTests, RealPort):
    """Over a real TAP."""

    def test_is_what_the_reactor_wants(self) -> None:
        made = self.open(Inbox())
        verifyObject(IReadDescriptor, made)
        self.assertFalse(os.get_inheritable(made.fileno()))
        self.assertFalse(os.get_blocking(made.fileno()))

    async def test_a_fault_of_the_receiver_costs_one_frame(self) -> None:
        """Before it read any as well as after."""
        self.namespace.run("sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1")  # no frames but ours
        inbox = Inbox()
        inbox.faults = 1
        made = self.open(inbox)
        self.kernel_sends(OTHER)
        self.kernel_sends(FRAME)
        await inbox.have(1)
        self.assertEqual(inbox.frames, [PLAIN + FRAME])
        keep = inbox.keep

        def bad(_: Any) -> None:
            inbox.keep = keep  # type: ignore[method-assign]
            raise RuntimeError("a fault")

        inbox.keep = bad  # type: ignore[method-assign,assignment]
        self.kernel_sends(OTHER)
        self.kernel_sends(FRAME)
        await inbox.have(2)
        self.assertEqual(inbox.frames, [PLAIN + FRAME] * 2)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 2)
        self.assertEqual(made.counters.rx_frames, 4)

    def test_a_frame_that_the_kernel_refuses_is_counted(self) -> None:
        made = self.open(Inbox())
        self.shown("link", "set", self.name, "down")
        made.writev([PLAIN, FRAME])
        self.assertEqual((made.counters.unwritten, made.counters.tx_frames), (1, 0))

    async def test_counters_do_not_count_the_heads(self) -> None:
        self.namespace.run("sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1")
        inbox = Inbox()
        made = self.open(inbox)
        made.writev([PLAIN, FRAME])
        self.kernel_sends(OTHER)
        await inbox.have(1)
        counters = made.counters
        self.assertEqual((counters.tx_frames, counters.tx_bytes, counters.rx_frames, counters.rx_bytes), (1, len(FRAME), 1, len(OTHER)))


class TapAddressTests(RealTap):
    """What the interface looks like from outside."""

    def addresses(self) -> set[str]:
        words = self.shown("-o", "addr", "show", "dev", self.name).split()
        return {words[i + 1] for i, word in enumerate(words) if word in ("inet", "inet6")}

    def start(self, **changes: Any) -> TapService:
        made = self.make(**changes)
        self.namespace.call(made.start, Inbox())
        return made

    def test_link(self) -> None:
        self.start()
        link = self.shown("link", "show", "dev", self.name)
        self.assertIn("mtu 1380", link)
        self.assertIn("LOWER_UP", link)
        self.assertIn("link/ether 62:61:62:63:64:65", link)
        self.assertIn("qlen 1000", link)
        self.assertIn(f"gso_max_size {offload.GSO_MAX}", self.shown("-d", "link", "show", "dev", self.name))

    def test_a_short_queue_is_made_longer(self) -> None:
        self.patch(netlink, "QUEUE_LENGTH", 1234)
        self.start()
        self.assertIn("qlen 1234", self.shown("link", "show", "dev", self.name))

    def test_a_kernel_that_cannot_be_eased(self) -> None:
        made = self.make()
        self.patch(offload, "GSO_MAX", 1 << 30)  # more than any device takes
        self.namespace.call(made.start, Inbox())
        self.assertEqual(made.health(), [])

    def test_addresses_come_and_change(self) -> None:
        made = self.make()
        ipv6 = ipv6_of(NETWORK.prefix, IDENT)
        made.configure(None, ipv6)
        self.namespace.call(made.start, Inbox())
        sixth = {f"{ipv6}/48", "fe80::6061:6263:6465:6667/64"}
        self.assertEqual(self.addresses(), sixth)
        for last in (5, 5, 6):
            self.namespace.call(made.configure, IPv4Address(f"10.128.0.{last}"), ipv6)
            self.assertEqual(self.addresses(), {*sixth, f"10.128.0.{last}/16"})
        self.assertIn("10.128.0.0/16", self.shown("route"))
        self.namespace.call(made.configure, None, ipv6)
        self.assertEqual(self.addresses(), sixth)
        self.assertNotIn("tentative", self.shown("addr", "show", "dev", self.name))
        self.assertEqual(made.health(), [])

    def test_stop_puts_all_back(self) -> None:
        before = self.shown("addr"), self.shown("route"), self.shown("-6", "route")
        made = self.start()
        self.namespace.call(made.configure, IPv4Address("10.128.0.5"), ipv6_of(NETWORK.prefix, IDENT))
        self.assertNotEqual(self.shown("addr"), before[0])
        made.stop()
        self.assertEqual((self.shown("addr"), self.shown("route"), self.shown("-6", "route")), before)

    def test_service(self) -> None:
        made = self.make()
        self.assertRaises(LocalMisuse, made.startService)
        made.receiver = Inbox()
        self.namespace.call(made.startService)
        self.assertIn(self.name, self.shown("link"))
        made.stopService()
        self.assertNotIn(self.name, self.shown("link"))

    def test_inside_an_asyncio_loop(self) -> None:
        """As under Twisted's asyncio reactor, where a library may not run a loop of its own in our thread."""

        async def inside() -> None:
            self.start()

        asyncio.run(inside())
        self.assertIn("mtu 1380", self.shown("link", "show", "dev", self.name))

    def test_without_ipv6_it_degrades_and_says_so(self) -> None:
        self.namespace.run("sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1")
        made = self.start()
        self.namespace.call(made.configure, IPv4Address("10.128.0.5"), ipv6_of(NETWORK.prefix, IDENT))
        self.assertEqual(self.addresses(), {"10.128.0.5/16"})
        [sentence] = made.health()
        self.assertIn("IPv6 is switched off on tapt0", sentence)

    def test_a_small_mtu_degrades_and_says_so(self) -> None:
        made = self.start(mtu=1200)
        self.namespace.call(made.configure, IPv4Address("10.128.0.5"), ipv6_of(NETWORK.prefix, IDENT))
        self.assertEqual(self.addresses(), {"10.128.0.5/16"})
        self.assertIn("IPv6 needs an MTU of 1280", made.health()[0])

    async def test_removed_by_somebody_else(self) -> None:
        made = self.start()
        gone: Deferred[None] = Deferred()
        lost = made._lost
        made._lost = lambda why: (lost(why), gone.callback(None))  # type: ignore[method-assign,assignment,func-returns-value]
        self.shown("link", "del", self.name)
        await gone
        self.assertIn("tapt0 was removed", made.health()[0])
        self.assertEqual(made.fileno(), -1)


class TapProblemTests(RealTap):
    """Each one clear sentence, and nothing left behind."""

    def test_name_taken_by_a_persistent_tap(self) -> None:
        self.shown("tuntap", "add", self.name, "mode", "tap")
        self.assertProblem(EnvironmentProblem, ["an interface named tapt0 exists already", "tap.name"], self.make())
        self.assertIn(self.name, self.shown("link"))

    def test_name_taken_by_another_kind(self) -> None:
        self.assertProblem(EnvironmentProblem, ["an interface named lo exists already"], self.make(name="lo"))

    def test_name_taken_between_look_and_open(self) -> None:
        self.shown("tuntap", "add", self.name, "mode", "tap")
        self.patch(socket, "if_nameindex", list)
        self.assertProblem(EnvironmentProblem, ["an interface named tapt0 exists already"], self.make())

    def test_bad_names(self) -> None:
        for name in ("", "sixteen-letters!", "a b", "a/b", "..", "é" * 8, "tap%d"):
            self.assertProblem(LocalMisuse, [repr(name), "tap.name"], self.make(name=name))

    def test_no_device(self) -> None:
        error = FileNotFoundError(2, "No such file or directory")
        self.assertEqual(tun.problem(error, "x").sentence, "/dev/net/tun is missing")

    def test_no_rights(self) -> None:
        """In a process of its own that has given its capabilities away."""
        script = (
            "import sys; from tests.test_tap import *\n"
            "try: TapService(reactor, 'tapt0', 1380, NETWORK, IDENT).start(Inbox())\n"
            "except PermissionProblem as problem: print(problem)\n"
        )
        words = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", sys.executable, "-c", script]
        here = Path(__file__).parents[1]
        done = subprocess.run(self.namespace.command(*words), check=False, capture_output=True, text=True, cwd=here, timeout=60)
        self.assertEqual(
            done.stdout, "the interface tapt0 may not be made: run as root or with the capability CAP_NET_ADMIN\n", done.stderr
        )

    def test_permission_problem_is_an_environment_problem(self) -> None:
        self.assertTrue(issubclass(PermissionProblem, EnvironmentProblem))

    def test_a_failure_half_way_leaves_nothing(self) -> None:
        self.assertProblem(EnvironmentProblem, ["refused to configure tapt0"], self.make(mtu=70000))
        self.assertNotIn(self.name, self.shown("link"))


class OverlapTests(RealTap):
    """Ranges that the host already uses."""

    def overlap(self, *ignore: str) -> str | None:
        found = self.namespace.call(overlapping, NETWORK.pool, ignore)
        assert found is None or isinstance(found, str)
        return found

    def test_nothing(self) -> None:
        self.shown("link", "add", "veth0", "type", "veth", "peer", "name", "veth1")
        self.shown("addr", "add", "192.0.2.1/24", "dev", "veth0")
        self.shown("link", "set", "veth0", "up")
        self.shown("route", "add", "default", "via", "192.0.2.2")
        self.shown("route", "add", "0.0.0.0/1", "via", "192.0.2.2")
        self.assertIsNone(self.overlap())
        self.shown("route", "add", "10.0.0.0/8", "via", "192.0.2.2")
        self.assertEqual(self.overlap(), "veth0 uses 10.0.0.0/8")

    def test_an_address_without_a_route(self) -> None:
        self.shown("addr", "add", "10.128.7.1/24", "dev", "lo", "noprefixroute")
        self.assertEqual(self.overlap(), "lo uses 10.128.7.0/24")

    def test_our_own_tap_does_not_count(self) -> None:
        made = self.make()
        self.namespace.call(made.start, Inbox())
        self.namespace.call(made.configure, IPv4Address("10.128.0.5"), ipv6_of(NETWORK.prefix, IDENT))
        self.assertEqual(self.overlap(), "tapt0 uses 10.128.0.0/16")
        self.assertIsNone(self.overlap(self.name))
