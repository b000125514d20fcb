"""Transports: one mixin runs over memory and over real sockets on loopback; then what only UDP has."""

from __future__ import annotations

import errno
import os
import socket
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReadDescriptor
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from ipop_tx.errors import EnvironmentProblem
from ipop_tx.interfaces import IDatagramReceiver, ITransport
from ipop_tx.transport import udp
from ipop_tx.transport.interfaces import interface_addresses, largest_mtu
from ipop_tx.transport.memory import MemoryNet
from ipop_tx.transport.udp import UdpTransport
from ipop_tx.values import Endpoint
from tests.namespace import Namespace, why_no_namespaces


@implementer(IDatagramReceiver)
class Inbox:
    """Keeps what arrives; `have(n)` fires once there are n datagrams."""

    def __init__(self) -> None:
        self.items: list[tuple[Endpoint, bytes]] = []
        self.views: list[Any] = []
        self._wanted: list[tuple[int, Deferred[None]]] = []

    def datagram_received(self, endpoint: Endpoint, datagram: bytes | memoryview) -> None:
        self.items.append((endpoint, bytes(datagram)))
        self.views.append(datagram)
        ready = [waiting for waiting in self._wanted if waiting[0] <= len(self.items)]
        self._wanted = [waiting for waiting in self._wanted if waiting not in ready]
        for _, deferred in ready:
            deferred.callback(None)

    def have(self, count: int) -> Deferred[None]:
        deferred: Deferred[None] = Deferred()
        self._wanted.append((count, deferred))
        if len(self.items) >= count:
            self._wanted.pop()
            deferred.callback(None)
        return deferred


class TransportTests:
    """What every transport does. A subclass gives `make(port)`, a transport at one host that reaches its siblings."""

    timeout = 20

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

    async def test_batch_keeps_order_and_sizes(self: Any) -> None:
        a, _, _ = self.started()
        _, inbox, endpoint = self.started()
        batch = [bytes((i,)) * (1 + i * 20) for i in range(200)]
        a.write_batch(endpoint, batch)
        await inbox.have(len(batch))
        self.assertEqual([datagram for _, datagram in inbox.items], batch)

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
        largest = os.urandom(65507)
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
        verifyObject(IReadDescriptor, transport)

    async def test_counters(self) -> None:
        a, _, _ = self.started()
        b, inbox, endpoint = self.started()
        a.write_batch(endpoint, [b"12345"] * 3)
        await inbox.have(3)
        self.assertEqual((a.counters.tx_datagrams, a.counters.tx_bytes), (3, 15))
        self.assertEqual((b.counters.rx_datagrams, b.counters.rx_bytes), (3, 15))

    async def test_a_fault_of_the_receiver_costs_one_datagram(self) -> None:
        a, _, _ = self.started()
        _, inbox, endpoint = self.started()
        good = inbox.datagram_received

        def bad(*_: Any) -> None:
            inbox.datagram_received = good  # type: ignore[method-assign]
            raise RuntimeError("a fault")

        inbox.datagram_received = bad  # type: ignore[method-assign]
        a.write_batch(endpoint, [b"one", b"two"])
        await inbox.have(1)
        self.assertEqual(inbox.items[0][1], b"two")
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)


class UdpSixTests(UdpTests):
    """Over a real socket of IPv6."""

    host = "::1"

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


class SocketErrorTests(TestCase):
    """What a socket may do to us."""

    def setUp(self) -> None:
        self.clock = ReadersClock()
        self.transport = UdpTransport(self.clock, "127.0.0.1", 0)
        self.inbox = Inbox()
        self.transport.start(self.inbox)
        self.addCleanup(self.transport.stop)
        self.target = Endpoint("udp", "127.0.0.1", self.transport.port)
        self.real = self.transport._socket
        self.addCleanup(self.real.close)  # type: ignore[union-attr]

    def failing(self, number: int) -> None:
        self.transport._socket = BrokenSocket(number)  # type: ignore[assignment]

    def test_one_turn_is_bounded(self) -> None:
        self.transport.write_batch(self.target, [b"x"] * (udp.DATAGRAMS_PER_TURN + 5))
        self.transport.doRead()
        self.assertEqual(len(self.inbox.items), udp.DATAGRAMS_PER_TURN)
        self.transport.doRead()
        self.assertEqual(len(self.inbox.items), udp.DATAGRAMS_PER_TURN + 5)

    def test_refusals_of_the_path_are_silent(self) -> None:
        self.failing(errno.ECONNREFUSED)
        self.transport.doRead()
        self.assertIn(self.transport, self.clock.readers)
        self.transport.write(self.target, b"x")
        self.assertEqual(self.transport.counters.unsent, 1)

    def test_a_broken_socket_does_not_spin(self) -> None:
        self.failing(errno.EIO)
        self.transport.doRead()
        self.assertNotIn(self.transport, self.clock.readers)
        self.clock.advance(udp.RETRY_AFTER)
        self.assertIn(self.transport, self.clock.readers)
        self.transport.doRead()
        self.transport.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_full_queue_and_size_are_counted(self) -> None:
        self.transport.write(self.target, bytes(70000))
        self.failing(errno.ENOBUFS)
        self.transport.write(self.target, b"x")
        self.failing(errno.EAGAIN)
        self.transport.write(self.target, b"x")
        self.assertEqual((self.transport.counters.too_big, self.transport.counters.full), (1, 2))

    def test_a_host_of_the_wrong_family_is_counted(self) -> None:
        for host in ("2001:db8::1", "expyuzz4wqqyqhjn.onion"):
            self.transport.write(Endpoint("udp", host, 4500), b"x")
        self.assertEqual(self.transport.counters.unsent, 2)

    def test_caches_are_bounded(self) -> None:
        for port in range(1, udp.CACHED_PEERS + 100):
            self.transport._endpoint(("192.0.2.1", port))
            self.transport._target(Endpoint("udp", "192.0.2.2", port))
        self.assertLessEqual(len(self.transport._seen), udp.CACHED_PEERS)
        self.assertLessEqual(len(self.transport._targets), udp.CACHED_PEERS + 1)


class BindTests(SynchronousTestCase):
    """Addresses that cannot be had."""

    def assertRefused(self, host: str, sentence: str) -> None:
        problem = self.assertRaises(EnvironmentProblem, UdpTransport(ReadersClock(), host, 0).start, Inbox())
        self.assertEqual(problem.sentence, sentence)

    def test_not_ours(self) -> None:
        self.assertRefused("192.0.2.77", "this machine has no address 192.0.2.77")

    def test_no_address(self) -> None:
        self.assertRefused("localhost", "'localhost' is not an IP address of this machine")

    def test_buffers_are_large_where_root_may(self) -> None:
        if os.geteuid() != 0:
            self.skipTest("only root may exceed net.core.rmem_max")
        transport = UdpTransport(ReadersClock(), "127.0.0.1", 0)
        transport.start(Inbox())
        self.addCleanup(transport.stop)
        assert transport._socket is not None
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            self.assertGreaterEqual(transport._socket.getsockopt(socket.SOL_SOCKET, option), udp.SOCKET_BUFFER)


class ReadersClock(Clock):
    """A clock that also keeps readers, so that a test sees when reading pauses."""

    def __init__(self) -> None:
        super().__init__()
        self.readers: list[Any] = []

    def addReader(self, reader: Any) -> None:
        self.readers.append(reader)

    def removeReader(self, reader: Any) -> None:
        if reader in self.readers:
            self.readers.remove(reader)


class BrokenSocket:
    """A socket whose every call fails: no real one does so on command."""

    family = socket.AF_INET

    def __init__(self, number: int) -> None:
        self.number = number

    def recvfrom_into(self, *_: Any) -> None:
        raise OSError(self.number, os.strerror(self.number))

    sendto = recvfrom_into

    def close(self) -> None:
        pass
