"""Transports: one mixin runs over memory and over real sockets on loopback; then what only UDP has."""

from __future__ import annotations

import errno
import os
import socket
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.interfaces import IReadWriteDescriptor
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface.verify import verifyObject

from ipop_tx.errors import EnvironmentProblem
from ipop_tx.interfaces import ITransport
from ipop_tx.transport.interfaces import interface_addresses, largest_mtu
from ipop_tx.transport.memory import MemoryNet
from ipop_tx.transport.udp import UdpTransport
from ipop_tx.values import Endpoint
from tests.namespace import Namespace, why_no_namespaces
from tests.transport import Inbox, cut, laid_out


class TransportTests:
    """What every transport does. A subclass gives `make(port)`, a transport at one host that reaches its siblings."""

    timeout = 20
    largest = 65507
    """Bytes of the largest datagram."""

    def make(self, port: int) -> Any:
        raise NotImplementedError

    def started(self, port: int = 0) -> tuple[Any, Inbox, Endpoint]:
        inbox = Inbox()
        transport = self.make(port)
        transport.start(inbox)
        self.addCleanup(transport.stop)  # type: ignore[attr-defined]
        return transport, inbox, transport.local_endpoints()[0]

    def test_interface(self: Any) -> None:
        transport, _, endpoint = self.started()
        verifyObject(ITransport, transport)
        self.assertEqual(endpoint.scheme, transport.scheme)

    async def test_there_and_back(self: Any) -> None:
        a, a_inbox, a_endpoint = self.started()
        b, b_inbox, b_endpoint = self.started()
        a.write(b_endpoint, b"hello")
        await b_inbox.have(1)
        self.assertEqual(b_inbox.items, [(a_endpoint, b"hello")])
        b.write(b_inbox.items[0][0], memoryview(b"--hello yourself")[2:])
        await a_inbox.have(1)
        self.assertEqual(a_inbox.items, [(b_endpoint, b"hello yourself")])

    async def test_runs_keep_order_and_sizes(self: Any) -> None:
        """Runs of all sizes one after another, in one buffer, in many, and laid out for reuse; with a shorter last datagram or without."""
        a, _, _ = self.started()
        _, inbox, endpoint = self.started()
        expected: list[bytes] = []
        for size, total in (
            (1472, 44 * 1472),
            (1472, 1472),
            (1472, 20),
            (1200, 20 * 1200 + 17),
            (1472, 3 * 1472 + 1),
            (100, 6400),
            (8973, 50000),
        ):
            run = os.urandom(total)
            self.assertTrue(a.write_run(endpoint, laid_out(a, run, size), size, total))
            self.assertTrue(a.write_run(endpoint, a.layout([memoryview(bytearray(run + b"beyond"))]), size, total))
            self.assertTrue(a.write_run(endpoint, [run[: total // 2], memoryview(run)[total // 2 :]], size, total))
            expected += 3 * cut(run, size)
            await inbox.have(len(expected))
        self.assertEqual([datagram for _, datagram in inbox.items], expected)
        self.assertGreater(inbox.bursts, 0)

    async def test_a_layout_is_used_again(self: Any) -> None:
        """A long run, then a short one, then a long one, in the same buffers."""
        a, _, _ = self.started()
        _, inbox, endpoint = self.started()
        run, expected = os.urandom(10 * 1000 + 16 + 5), list[bytes]()
        layout = laid_out(a, run, 1000)
        for total in (len(run), 17, 2500, 10 * 1000, 1000, len(run)):
            self.assertTrue(a.write_run(endpoint, layout, 1000, total))
            expected += cut(run[:total], 1000)
            await inbox.have(len(expected))
        self.assertEqual([datagram for _, datagram in inbox.items], expected)

    async def test_a_datagram_is_valid_only_during_the_call(self: Any) -> None:
        a, _, _ = self.started()
        _, inbox, endpoint = self.started()
        a.write(endpoint, b"first")
        await inbox.have(1)
        a.write(endpoint, b"other")
        await inbox.have(2)
        self.assertNotEqual(bytes(inbox.views[0]), b"first")

    async def test_largest_datagram_is_whole(self: Any) -> None:
        a, _, _ = self.started()
        _, inbox, endpoint = self.started()
        largest = os.urandom(self.largest)
        a.write(endpoint, largest)
        await inbox.have(1)
        self.assertEqual(inbox.items[0][1], largest)

    async def test_nobody_there_is_silent(self: Any) -> None:
        a, _, _ = self.started()
        gone, _, nobody = self.started()
        gone.stop()
        _, inbox, endpoint = self.started()
        for _ in range(3):
            a.write(nobody, b"anybody?")
        a.write(endpoint, b"still works")
        await inbox.have(1)
        self.assertEqual(inbox.items[0][1], b"still works")

    def test_taken(self: Any) -> None:
        _, _, endpoint = self.started()
        problem = self.assertRaises(EnvironmentProblem, self.make(endpoint.port).start, Inbox())
        self.assertIn("is taken", problem.sentence)
        self.assertIn(str(endpoint.port), problem.sentence)
        self.assertTrue(problem.mend)

    def test_stop_releases_and_may_be_repeated(self: Any) -> None:
        transport, _, endpoint = self.started()
        transport.stop()
        transport.stop()
        self.assertEqual(transport.local_endpoints(), [])
        transport.write(endpoint, b"into the void")
        again, _, same = self.started(endpoint.port)
        self.assertEqual(same, endpoint)
        again.stop()
        transport.start(Inbox())
        self.assertEqual(len(transport.local_endpoints()), 1)


class MemoryTests(TransportTests, TestCase):
    """Over memory."""

    def setUp(self) -> None:
        self.net = MemoryNet(reactor)

    def make(self, port: int) -> Any:
        return self.net.transport("192.0.2.1", port)

    async def test_loss(self) -> None:
        a, _, a_endpoint = self.started()
        _, inbox, endpoint = self.started()
        self.net.loses = lambda source, destination, datagram: (source, destination, datagram) == (a_endpoint, endpoint, b"lost")
        a.write(endpoint, b"lost")
        a.write(endpoint, b"kept")
        await inbox.have(1)
        self.assertEqual(inbox.items, [(a_endpoint, b"kept")])


class UdpTests(TransportTests, TestCase):
    """Over a real socket of IPv4."""

    host = "127.0.0.1"

    def make(self, port: int) -> Any:
        return UdpTransport(reactor, self.host, port)

    def test_is_what_the_reactor_wants(self) -> None:
        transport, _, _ = self.started()
        verifyObject(IReadWriteDescriptor, transport)

    async def test_counters(self) -> None:
        a, _, _ = self.started()
        b, inbox, endpoint = self.started()
        a.write(endpoint, b"12345")
        a.write_run(endpoint, [bytes(3000)], 1000, 3000)
        await inbox.have(4)
        self.assertEqual((a.counters.tx_runs, a.counters.tx_bytes), (2, 3005))
        self.assertEqual((b.counters.rx_runs, b.counters.rx_bytes), (2, 3005))

    async def test_a_run_stays_one(self) -> None:
        """The kernel cuts at one end and joins at the other."""
        a, _, _ = self.started()
        _, inbox, endpoint = self.started()
        self.assertEqual(a.offloads, ("segment", "gro"))
        a.write_run(endpoint, [bytes(40 * 1472 + 7)], 1472, 40 * 1472 + 7)
        await inbox.have(41)
        self.assertEqual(inbox.runs, [(1472, 41)])

    async def test_without_offloads(self) -> None:
        """A kernel that cannot cut gets datagrams one by one."""
        a, _, _ = self.started()
        _, inbox, endpoint = self.started()
        a.offloads = ()
        run = os.urandom(5 * 1472 + 1)
        self.assertTrue(a.write_run(endpoint, laid_out(a, run, 1472), 1472, len(run)))
        await inbox.have(6)
        self.assertEqual([datagram for _, datagram in inbox.items], cut(run, 1472))
        self.assertEqual(a.counters.tx_runs, 6)

    async def test_a_route_that_refuses_to_cut(self) -> None:
        """Once refused, cutting is ours; nothing of that run is lost."""
        a, _, _ = self.started()
        _, inbox, endpoint = self.started()
        real, refused = a._outgoing.send, list[int]()

        def refuse(fd: int, layout: Any, size: int, total: int, target: bytes) -> None:
            if total > size:
                refused.append(total)
                raise OSError(errno.EIO, "no checksum offload there")
            real(fd, layout, size, total, target)

        a._outgoing.send = refuse
        run = os.urandom(5 * 1472)
        for _ in range(2):
            self.assertTrue(a.write_run(endpoint, laid_out(a, run, 1472), 1472, len(run)))
        await inbox.have(10)
        self.assertEqual([datagram for _, datagram in inbox.items], 2 * cut(run, 1472))
        self.assertEqual((len(refused), a.offloads), (1, ("gro",)))

    async def test_a_path_too_narrow_for_a_run(self) -> None:
        """The kernel refuses to cut into datagrams that the path would not take: that says nothing about other paths."""
        a, _, _ = self.started()
        _, inbox, endpoint = self.started()

        def refuse(*_: Any) -> None:
            raise OSError(errno.EINVAL, "larger than the path's MTU")

        a._outgoing.send = refuse
        run = os.urandom(3 * 1472)
        self.assertTrue(a.write_run(endpoint, laid_out(a, run, 1472), 1472, len(run)))
        await inbox.have(3)
        self.assertEqual(a.offloads, ("segment", "gro"))

    async def test_a_fault_of_the_receiver_costs_one_datagram(self) -> None:
        a, _, _ = self.started()
        _, inbox, endpoint = self.started()
        good = inbox.run_received

        def bad(*_: Any) -> None:
            inbox.run_received = good  # type: ignore[method-assign]
            raise RuntimeError("a fault")

        inbox.run_received = bad  # type: ignore[method-assign]
        a.write(endpoint, b"one")
        a.write(endpoint, b"two")
        await inbox.have(1)
        self.assertEqual(inbox.items[0][1], b"two")
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)


class UdpSixTests(UdpTests):
    """Over a real socket of IPv6."""

    host = "::1"
    largest = 65536 - 48  # what loopback takes whole

    async def test_larger_than_the_link(self) -> None:
        """Datagrams are never fragmented: what is larger than the interface's MTU is counted, and the next one goes."""
        a, _, _ = self.started()
        _, inbox, endpoint = self.started()
        a.write(endpoint, bytes(self.largest + 1))
        a.write(endpoint, b"small")
        await inbox.have(1)
        self.assertEqual((inbox.items[0][1], a.counters.too_big), (b"small", 1))

    def setUp(self) -> None:
        try:
            with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
                probe.bind(("::1", 0))
        except OSError:
            self.skipTest("this machine has no IPv6 loopback")


class DualStackTests(TestCase):
    """One socket on "::"."""

    timeout = 20

    async def test_ipv4_peers_look_like_ipv4(self) -> None:
        inbox, answer = Inbox(), Inbox()
        dual, single = UdpTransport(reactor, "::", 0), UdpTransport(reactor, "127.0.0.1", 0)
        for transport, receiver in ((dual, inbox), (single, answer)):
            transport.start(receiver)
            self.addCleanup(transport.stop)
        single.write(Endpoint("udp", "127.0.0.1", dual.port), b"over IPv4")
        await inbox.have(1)
        self.assertEqual(inbox.items, [(Endpoint("udp", "127.0.0.1", single.port), b"over IPv4")])
        dual.write(Endpoint("udp", "127.0.0.1", single.port), b"and back")
        await answer.have(1)
        self.assertEqual(answer.items, [(Endpoint("udp", "127.0.0.1", dual.port), b"and back")])

    def test_offers_no_loopback_no_link_local_and_nothing_ignored(self) -> None:
        transport = UdpTransport(reactor, "::", 0)
        transport.start(Inbox())
        self.addCleanup(transport.stop)
        offered = [ip_address(endpoint.host) for endpoint in transport.local_endpoints()]
        usable = {
            one.ip: name for name, one in interface_addresses() if not one.is_loopback and not (one.version == 6 and one.is_link_local)
        }
        self.assertEqual(set(offered), set(usable))
        self.assertEqual(len(offered), len(set(offered)))
        transport.ignore = set(usable.values())
        self.assertEqual(transport.local_endpoints(), [])

    def test_only_ipv4_offers_only_ipv4(self) -> None:
        transport = UdpTransport(reactor, "0.0.0.0", 0)
        transport.start(Inbox())
        self.addCleanup(transport.stop)
        self.assertNotIn(":", "".join(endpoint.host for endpoint in transport.local_endpoints()))


class LargestMtuTests(SynchronousTestCase):
    """Which interface decides how large packets may be inside."""

    skip = why_no_namespaces()

    def test_largest(self) -> None:
        """The widest that is up and leads out; neither loopback nor what overlays have made nor what is to be ignored."""
        space = Namespace()
        self.addCleanup(space.remove)
        self.assertEqual(space.call(largest_mtu), 1500)
        for words in (
            "link add wide type veth peer name elsewhere",
            "link set wide mtu 9000",
            "link add narrow type veth peer name other",
            "link set narrow up mtu 1400",
            "tuntap add tap0 mode tap",
            "link set tap0 up mtu 4000",
            "tuntap add tun0 mode tun",
            "link set tun0 up mtu 5000",
        ):
            space.run("ip", *words.split())
        self.assertEqual(space.call(largest_mtu), 1400)
        space.run("ip", "link", "set", "wide", "up")
        self.assertEqual(space.call(largest_mtu), 9000)
        self.assertEqual(space.call(largest_mtu, ["wide"]), 1400)

    def test_as_sysfs_says(self) -> None:
        """This machine's own interfaces: one of them has that MTU."""
        mtus = {int(path.read_text()) for path in Path("/sys/class/net").glob("*/mtu")}
        self.assertIn(largest_mtu(), mtus | {1500})
