"""Frame ports: one mixin runs over memory and over a real TAP in a namespace; then what only the TAP has."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReadDescriptor
from twisted.trial.unittest import TestCase
from zope.interface.verify import verifyObject

from ipop_tx.errors import EnvironmentProblem, LocalMisuse, PermissionProblem
from ipop_tx.forwarding import offload
from ipop_tx.forwarding.memory import FramePair
from ipop_tx.services import netlink, tun
from ipop_tx.services.overlap import overlapping
from ipop_tx.services.tap import TapService
from ipop_tx.wire.address import ipv6_of
from tests.port import FLOWS, FRAME, IDENT, NETWORK, OTHER, PLAIN, FramePortTests, Inbox, RealPort, RealTap


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
            "from ipop_tx.errors import PermissionProblem; from tests.port import *\n"
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

    def test_an_interface_that_is_gone(self) -> None:
        address = IPv4Interface("10.128.0.5/16")
        problem = self.assertRaises(EnvironmentProblem, self.namespace.call, netlink.change_addresses, self.name, [address], [])
        self.assertEqual(str(problem), "the interface tapt0 is gone: somebody removed it; start again")

    def test_what_is_so_already_is_no_problem(self) -> None:
        """An address that somebody else added or removed meanwhile."""
        address = IPv4Interface("10.128.0.5/16")
        self.namespace.call(self.make().start, Inbox())
        for _ in range(2):
            self.namespace.call(netlink.change_addresses, self.name, [address], [])
        self.assertIn(str(address), self.shown("addr", "show", "dev", self.name))
        for _ in range(2):
            self.namespace.call(netlink.change_addresses, self.name, [], [address])
        self.assertNotIn(str(address), self.shown("addr", "show", "dev", self.name))

    def test_configuring_without_rights(self) -> None:
        self.shown("tuntap", "add", self.name, "mode", "tap")
        script = (
            "from ipop_tx.services import netlink; from ipop_tx.errors import PermissionProblem\n"
            "try: netlink.set_up('tapt0', bytes(6), 1380, 65000)\n"
            "except PermissionProblem as problem: print(problem)\n"
        )
        words = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", sys.executable, "-c", script]
        here = Path(__file__).parents[1]
        done = subprocess.run(self.namespace.command(*words), check=False, capture_output=True, text=True, cwd=here, timeout=60)
        self.assertEqual(done.stdout, "tapt0 may not be configured: run as root or with the capability CAP_NET_ADMIN\n", done.stderr)


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
