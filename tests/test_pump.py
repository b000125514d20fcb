"""The small loop inside the reactor's, with real pipes and a reactor in the hands of the test."""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Callable
from typing import Any

from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IReadDescriptor
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from ipop_tx.services import pump as pump_module
from ipop_tx.services.pump import Pump
from tests.transport import ReadersClock


class End:
    """A descriptor of a pipe that counts how often it is served."""

    def __init__(self, fd: int, work: Callable[[End], object] = lambda end: None) -> None:
        self.fd = fd
        self.work = work
        self.served = 0
        self.lost: list[Failure] = []

    def fileno(self) -> int:
        return self.fd

    def doRead(self) -> None:
        self.served += 1
        self.work(self)

    doWrite = doRead

    def connectionLost(self, reason: Failure) -> None:
        self.lost.append(reason)


class PumpTests(SynchronousTestCase):
    """`doRead` is what the reactor calls when the pump's own descriptor is readable."""

    def setUp(self) -> None:
        self.reactor = ReadersClock()
        self.pump = Pump(self.reactor)
        self.addCleanup(self.pump.stop)

    def pipe(self, work: Callable[[End], object] = lambda end: None) -> tuple[End, End]:
        reading, writing = os.pipe()
        for fd in (reading, writing):
            self.addCleanup(os.close, fd)
        return End(reading, work), End(writing)

    def test_interface(self) -> None:
        verifyObject(IReadDescriptor, self.pump)
        self.assertIsInstance(self.reactor, Clock)
        self.assertEqual(self.pump.fileno(), -1)

    def test_served_until_there_is_no_more(self) -> None:
        """One turn of the reactor, three servings; then the reactor has its turn."""
        end, other = self.pipe(lambda end: os.read(end.fd, 1))
        self.pump.addReader(end)
        self.assertEqual(self.reactor.readers, [self.pump])
        self.pump.doRead()
        self.assertEqual(end.served, 0)
        os.write(other.fd, b"abc")
        self.pump.doRead()
        self.assertEqual(end.served, 3)

    def test_one_turn_is_bounded(self) -> None:
        """A descriptor that is always ready does not keep the reactor for ever."""
        self.patch(pump_module, "LONGEST", 0.0)
        end, other = self.pipe()
        self.pump.addReader(end)
        os.write(other.fd, b"x")
        for turn in range(1, 4):
            self.pump.doRead()
            self.assertEqual(end.served, turn)

    def test_writers(self) -> None:
        _, end = self.pipe()
        end.work = self.pump.removeWriter
        self.pump.addWriter(end)
        self.pump.doRead()
        self.assertEqual(end.served, 1)
        self.assertEqual(self.reactor.readers, [])

    def test_removed_is_not_served(self) -> None:
        """Not even when one that is ready at the same time removes it; twice is once."""
        ends: list[End] = []
        for _ in range(2):
            end, other = self.pipe(lambda _: [self.pump.removeReader(one) for one in ends])
            ends.append(end)
            os.write(other.fd, b"x")
            self.pump.addReader(end)
        self.pump.doRead()
        self.assertEqual(sum(end.served for end in ends), 1)
        self.pump.removeReader(ends[0])
        self.assertEqual((self.reactor.readers, self.pump.fileno()), ([], -1))
        self.pump.addReader(ends[0])
        self.assertEqual(self.reactor.readers, [self.pump])

    def test_a_fault_costs_one_descriptor(self) -> None:
        def fail(end: Any) -> None:
            raise RuntimeError("a fault")

        bad, other = self.pipe(fail)
        good, another = self.pipe(lambda end: os.read(end.fd, 1))
        for end, writing in ((bad, other), (good, another)):
            os.write(writing.fd, b"x")
            self.pump.addReader(end)
        self.pump.doRead()
        self.assertEqual((bad.served, len(bad.lost), good.served, good.lost), (1, 1, 1, []))
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_the_reactor_ends(self) -> None:
        end, _ = self.pipe()
        self.pump.addReader(end)
        self.pump.connectionLost(Failure(RuntimeError("the end")))
        self.assertEqual((len(end.lost), self.pump.fileno()), (1, -1))

    def test_one_that_says_that_it_has_ended(self) -> None:
        """As Twisted's own descriptors do: it is forgotten, and told."""
        end = ConnectionDone()
        for work in ("doRead", "doWrite"):
            reading, writing = self.pipe()
            ended, add = (reading, self.pump.addReader) if work == "doRead" else (writing, self.pump.addWriter)
            setattr(ended, work, lambda: end)
            add(ended)
            os.write(writing.fd, b"x")
            self.pump.doRead()
            self.assertEqual([failure.value for failure in ended.lost], [end])
            self.assertEqual((self.pump._readers, self.pump._writers), ({}, {}))

    def test_one_that_its_own_writing_ends(self) -> None:
        """It is not read any more."""
        ours, theirs = socket.socketpair()
        self.addCleanup(ours.close)
        self.addCleanup(theirs.close)
        end = End(ours.fileno())
        end.doWrite = lambda: self.pump.removeReader(end)  # type: ignore[method-assign]
        self.pump.addReader(end)
        self.pump.addWriter(end)
        theirs.send(b"x")
        self.pump._serve(ours.fileno(), select.EPOLLIN | select.EPOLLOUT)
        self.assertEqual(end.served, 0)


class WatchedReactor(ReadersClock):
    """A reactor with an epoll of its own and a next timer, as Twisted's epollreactor has them."""

    def __init__(self) -> None:
        super().__init__()
        self._poller = select.epoll()
        self.running = True
        self.due: float | None = 1.0

    def timeout(self) -> float | None:
        return self.due


class WatchingTests(SynchronousTestCase):
    """Under a reactor whose epoll can be watched the pump stays until that has something to do."""

    def setUp(self) -> None:
        self.reactor = WatchedReactor()
        self.pump = Pump(self.reactor)
        self.addCleanup(self.reactor._poller.close)
        self.addCleanup(self.pump.stop)
        self.fd, self.writing = os.pipe()
        self.end = End(self.fd, lambda end: os.read(end.fd, 1))
        self.pump.addReader(self.end)
        self.other, self.waking = os.pipe()
        self.reactor._poller.register(self.other, select.EPOLLIN)
        for fd in (self.fd, self.writing, self.other, self.waking):
            self.addCleanup(os.close, fd)

    def test_it_waits_for_the_reactor(self) -> None:
        """What comes later is served in the same turn, which ends when the reactor's own descriptor is ready, long before the timer."""
        self.reactor.due = None
        begun = threading.Event()

        def later() -> None:
            begun.wait()
            os.write(self.writing, b"a")
            os.write(self.waking, b"b")

        thread = threading.Thread(target=later)
        thread.start()
        self.end.work = lambda end: (os.read(end.fd, 1), begun.set())
        os.write(self.writing, b"x")
        self.pump.doRead()
        thread.join()
        self.assertLessEqual(self.end.served, 2)
        self.pump.doRead()
        self.assertEqual(self.end.served, 2)

    def test_timers(self) -> None:
        """A timer that is due, also one that a descriptor has set, ends the turn at once; so does a reactor that was stopped."""

        def serve(end: End) -> None:
            os.read(end.fd, 1)
            self.reactor.due = 0.0

        self.end.work = serve
        os.write(self.writing, b"x")
        self.pump.doRead()
        self.assertEqual(self.end.served, 1)
        self.reactor.due, self.reactor.running = None, False
        os.write(self.writing, b"x")
        self.pump.doRead()
        self.assertEqual(self.end.served, 2)

    def test_stopped_while_it_waits(self) -> None:
        """A descriptor may remove all descriptors."""
        self.end.work = self.pump.removeReader
        os.write(self.writing, b"x")
        self.pump.doRead()
        self.assertEqual((self.end.served, self.pump.fileno()), (1, -1))
