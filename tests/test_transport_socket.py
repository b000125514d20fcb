"""What a UDP socket may do to us: it is full, it breaks, it cannot be had."""

from __future__ import annotations

import errno
import os
import socket
from typing import Any

from twisted.trial.unittest import SynchronousTestCase, TestCase

from ipop_tx.errors import EnvironmentProblem
from ipop_tx.transport import udp, udp_socket
from ipop_tx.transport.native import native_address, python_address
from ipop_tx.transport.udp import UdpTransport
from ipop_tx.transport.udp_socket import SOCKET_BUFFER
from ipop_tx.values import Endpoint
from tests.transport import BrokenSocket, Inbox, ReadersClock, cut, laid_out


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

        def receive(fd: int) -> None:
            raise OSError(number, os.strerror(number))

        self.transport._incoming.receive = receive  # type: ignore[method-assign, assignment]

    def test_one_turn_is_bounded(self) -> None:
        for _ in range(udp.RUNS_PER_TURN + 5):
            self.transport.write(self.target, b"x")
        self.transport.doRead()
        self.assertEqual(len(self.inbox.items), udp.RUNS_PER_TURN)
        self.transport.doRead()
        self.assertEqual(len(self.inbox.items), udp.RUNS_PER_TURN + 5)
        self.assertEqual(self.inbox.bursts, 2)

    def test_runs_of_changing_sizes(self) -> None:
        """Whatever the buffers were made for, what arrives is what was sent."""
        expected = []
        for number, size in enumerate((1472, 1200, 1472, 300, 8973, 1472, 511, 512, 20, 1472)):
            run = os.urandom(min(3 * size + number, 60000))
            self.transport.write_run(self.target, [run], size, len(run))
            expected += cut(run, size)
        self.transport.doRead()
        self.assertEqual([datagram for _, datagram in self.inbox.items], expected)

    def full(self, *_: Any) -> None:
        raise OSError(errno.EAGAIN, "full")

    def test_a_full_socket_keeps_runs_in_order(self) -> None:
        real = self.transport._outgoing.send
        self.transport._outgoing.send = self.full  # type: ignore[method-assign]
        runs = [os.urandom(3000) for _ in range(3)]
        for run in runs:
            self.assertFalse(self.transport.write_run(self.target, laid_out(self.transport, run, 1000), 1000, 3000))
            self.transport._outgoing.send = real  # type: ignore[method-assign]  # even so the others stay behind the first
        self.assertEqual(self.clock.writers, [self.transport])
        self.assertEqual(self.inbox.drains, 0)
        self.transport.doWrite()
        self.assertEqual((self.clock.writers, self.inbox.drains), ([], 1))
        self.assertTrue(self.transport.write_run(self.target, [b"after"], 1000, 5))
        self.transport.doRead()
        self.assertEqual([datagram for _, datagram in self.inbox.items], [*cut(b"".join(runs), 1000), b"after"])

    def test_what_waited_is_not_lost_to_a_refusal(self) -> None:
        """The kernel takes the run that waited, but not the offload; and a fault of whoever is told costs nothing."""
        self.transport._outgoing.send = self.full  # type: ignore[method-assign]
        run = os.urandom(3000)
        self.assertFalse(self.transport.write_run(self.target, laid_out(self.transport, run, 1000), 1000, 3000))
        socket_, parts = self.real, list[bytes]()

        class NoOffload(BrokenSocket):
            def sendmsg(self, buffers: Any, ancillary: Any, *_: Any) -> None:
                if ancillary:
                    raise OSError(errno.EIO, "no offload")
                parts.append(bytes(buffers[0]))

        def drained() -> None:
            raise RuntimeError("a fault")

        self.transport._socket = NoOffload(errno.EIO)  # type: ignore[assignment]
        self.inbox.drained = drained  # type: ignore[method-assign]
        self.transport.doWrite()
        self.transport._socket = socket_
        self.assertEqual(parts, cut(run, 1000))
        self.assertEqual((self.clock.writers, len(self.flushLoggedErrors(RuntimeError))), ([], 1))

    def test_a_socket_that_stays_full(self) -> None:
        self.transport._outgoing.send = self.full  # type: ignore[method-assign]
        layout = laid_out(self.transport, bytes(2000), 1000)
        for _ in range(udp.BACKLOG + 3):
            self.assertFalse(self.transport.write_run(self.target, layout, 1000, 2000))
        self.assertEqual((len(self.transport._backlog), self.transport.counters.full), (udp.BACKLOG, 3))
        self.failing(errno.EAGAIN)
        self.transport.doWrite()
        self.assertEqual((len(self.transport._backlog), self.inbox.drains), (udp.BACKLOG, 0))
        self.transport.stop()
        self.assertEqual(self.clock.writers, [])

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

    def test_size_is_counted(self) -> None:
        self.transport.write(self.target, bytes(70000))
        self.assertEqual((self.transport.counters.too_big, self.transport.counters.full), (1, 0))

    def test_single_datagrams_wait_for_a_full_socket(self) -> None:
        for number, error in enumerate((errno.ENOBUFS, errno.EAGAIN, errno.ENOMEM)):
            self.failing(error)
            self.transport.write(self.target, memoryview(bytearray(b"%d" % number)))
        self.transport.write(self.target, b"")
        self.assertEqual((self.clock.writers, self.transport.counters.full), ([self.transport], 1))
        self.transport._socket = self.real
        del self.transport._incoming.receive  # type: ignore[method-assign]
        self.assertFalse(self.transport.write_run(self.target, [b"behind"], 1000, 6))
        self.transport.write(self.target, b"overtakes")
        self.transport.doWrite()
        self.transport.doRead()
        self.assertEqual([datagram for _, datagram in self.inbox.items], [b"overtakes", b"0", b"1", b"2", b"behind"])
        self.assertEqual((self.clock.writers, self.inbox.drains), ([], 1))

    def test_so_many_single_datagrams_wait(self) -> None:
        """Also when runs have taken all the room that they get."""
        self.transport._outgoing.send = self.full  # type: ignore[method-assign]
        layout = laid_out(self.transport, bytes(2000), 1000)
        for _ in range(udp.BACKLOG + 1):
            self.transport.write_run(self.target, layout, 1000, 2000)
        self.failing(errno.EAGAIN)
        for _ in range(udp.SINGLE_BACKLOG + 2):
            self.transport.write(self.target, b"x")
        self.assertEqual(len(self.transport._backlog), udp.BACKLOG + udp.SINGLE_BACKLOG)
        self.assertEqual(self.transport.counters.full, 3)

    def test_a_stop_gives_up_what_waits(self) -> None:
        """Whoever holds back for it hears that nothing waits any more; a stop with nothing waiting says nothing."""
        self.failing(errno.EAGAIN)
        self.transport.write(self.target, b"x")
        for _ in range(2):
            self.transport.stop()
        self.assertEqual((len(self.transport._backlog), self.inbox.drains, self.clock.writers), (0, 1, []))

    def test_a_host_of_the_wrong_family_is_counted(self) -> None:
        for host in ("2001:db8::1", "expyuzz4wqqyqhjn.onion"):
            self.transport.write(Endpoint("udp", host, 4500), b"x")
        self.assertEqual(self.transport.counters.unsent, 2)

    def test_caches_are_bounded(self) -> None:
        for port in range(1, udp.CACHED_PEERS + 100):
            self.transport._endpoint(native_address(socket.AF_INET, ("192.0.2.1", port)))
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

    def test_small_buffers_are_said(self) -> None:
        self.patch(udp_socket, "_enlarge", lambda *_: None)
        self.patch(udp_socket, "SOCKET_BUFFER", 1 << 30)
        transport = UdpTransport(ReadersClock(), "127.0.0.1", 0)
        transport.start(Inbox())
        self.addCleanup(transport.stop)
        said = " ".join(transport.health())
        self.assertIn("net.core.rmem_max=", said)
        self.assertIn("net.core.wmem_max=", said)

    def test_a_kernel_without_offloads_is_said(self) -> None:
        self.patch(udp_socket, "UDP_SEGMENT", 9999)
        self.patch(udp_socket, "UDP_GRO", 9998)
        transport = UdpTransport(ReadersClock(), "127.0.0.1", 0)
        transport.start(Inbox())
        self.addCleanup(transport.stop)
        self.assertEqual(transport.offloads, ())
        self.assertEqual(sum("offload" in sentence for sentence in transport.health()), 2)

    def test_native_addresses(self) -> None:
        """They are what the kernel itself gives."""
        for family, address in (
            (socket.AF_INET, ("192.0.2.1", 4500)),
            (socket.AF_INET6, ("2001:db8::1", 1, 0, 0)),
            (socket.AF_INET6, ("fe80::1", 65535, 0, 7)),
            (socket.AF_INET6, ("::ffff:192.0.2.1", 4500, 0, 0)),
        ):
            self.assertEqual(python_address(native_address(family, address)), address)

    def test_buffers_are_large_where_root_may(self) -> None:
        if os.geteuid() != 0:
            self.skipTest("only root may exceed net.core.rmem_max")
        transport = UdpTransport(ReadersClock(), "127.0.0.1", 0)
        transport.start(Inbox())
        self.addCleanup(transport.stop)
        assert transport._socket is not None
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            self.assertGreaterEqual(transport._socket.getsockopt(socket.SOL_SOCKET, option), SOCKET_BUFFER)
