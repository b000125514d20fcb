"""The driver of the control plane: what waits for the disk, and what shares one commit."""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ipop_tx.core import commands as c
from ipop_tx.core import events as e
from ipop_tx.core.tasks import Future
from ipop_tx.errors import EnvironmentProblem, IpopError
from ipop_tx.identity.store import MemoryReplicaStore
from ipop_tx.services.chord import RETRY_DISK, ChordProtocol
from ipop_tx.values import Endpoint

PEER = Endpoint("udp", "192.0.2.1", 4500)


class Scripted:
    """A node that writes a row for each input, and answers it."""

    def __init__(self, store: MemoryReplicaStore) -> None:
        self.replicas = SimpleNamespace(suspended=False)
        self.links: list[Any] = []
        self.transmissions: deque[tuple[Endpoint, bytes]] = deque()
        self.events: deque[object] = deque()
        self.timeout: float | None = None
        self.woken: list[float] = []
        self.asked: list[Future[Any]] = []
        self._store = store

    def receive_datagram(self, now: float, endpoint: Endpoint, datagram: bytes) -> None:
        self._store.put(0, datagram, datagram)
        self.transmissions.append((endpoint, b"re " + datagram))
        self.events.append(e.Joined())
        for asked in self.asked:
            asked.succeed(datagram)

    def submit(self, now: float, command: object) -> Future[Any]:
        future: Future[Any] = Future()
        self.asked.append(future)
        if isinstance(command, c.Create):
            self._store.put(0, command.key, command.value)
            future.succeed("created")
        return future

    def handle_timeout(self, now: float) -> None:
        self.woken.append(now)
        if self.timeout is not None and self.timeout <= now:
            self.timeout = None

    def poll_transmit(self) -> tuple[Endpoint, bytes] | None:
        return self.transmissions.popleft() if self.transmissions else None

    def poll_event(self) -> object | None:
        return self.events.popleft() if self.events else None

    def poll_timeout(self) -> float | None:
        return self.timeout


class Disk(MemoryReplicaStore):
    """Tells in `log` when it was written to; full when told so."""

    def __init__(self, log: list[str]) -> None:
        super().__init__()
        self.full = False
        self._log = log

    def commit(self) -> None:
        if self.full and self._written:
            raise EnvironmentProblem("the disk is full")
        before = self.commits
        super().commit()
        if self.commits > before:
            self._log.append("commit")


class DriverCase(SynchronousTestCase):
    """One protocol; what it does is in `log`."""

    def setUp(self) -> None:
        self.log: list[str] = []
        self.clock = Clock()
        self.disk = Disk(self.log)
        self.node = Scripted(self.disk)
        self.protocol = ChordProtocol(self.clock, self.node, self.disk, self.clock.seconds)  # type: ignore[arg-type]
        carrier: Any = SimpleNamespace(write=lambda endpoint, datagram: self.log.append(datagram.decode()))
        self.protocol.carrier = carrier
        self.protocol.on(e.Joined, lambda event: self.log.append("event"))

    def datagrams(self, *datagrams: bytes) -> None:
        for datagram in datagrams:
            self.protocol.datagram_received(PEER, datagram)

    def told(self, command: object) -> list[Any]:
        """What whoever asks will be told; noted in the log too."""
        told: list[Any] = []

        def tell(outcome: Any) -> None:
            self.log.append("told")
            told.append(outcome)

        self.protocol.submit(command).addBoth(tell)
        return told


class BurstTests(DriverCase):
    """All that came together shares a commit."""

    def test_one_commit_before_all_answers(self) -> None:
        self.datagrams(b"a", b"b", b"c")
        self.assertEqual(self.log, ["event"] * 3)
        self.protocol.burst_ended()
        self.assertEqual(self.log, ["event"] * 3 + ["commit", "re a", "re b", "re c"])
        self.protocol.burst_ended()
        self.assertEqual(self.disk.commits, 1)

    def test_what_is_asked_meanwhile_waits_too(self) -> None:
        told = self.told(c.Get(bytes(20)))
        self.datagrams(b"a")
        self.assertEqual(told, [])
        self.protocol.burst_ended()
        self.assertEqual(self.log[1:], ["commit", "re a", "told"])

    def test_twisted_s_own_port(self) -> None:
        """It knows no bursts."""
        self.protocol.datagramReceived(b"a", ("192.0.2.1", 4500))
        self.assertEqual(self.log, ["event", "commit", "re a"])

    def test_a_timer_ends_what_never_ended(self) -> None:
        """A transport that forgets to say so costs time, no more."""
        self.node.timeout = 1.0
        self.protocol.settle()
        self.datagrams(b"a")
        self.clock.advance(1.0)
        self.assertEqual(self.log[1:], ["commit", "re a"])

    def test_the_end(self) -> None:
        told = self.told(c.Get(bytes(20)))
        self.datagrams(b"a")
        self.protocol.stop()
        self.assertEqual(self.log[1:], ["commit", "re a", "told"])
        self.assertEqual(told, [b"a"])


class DurabilityTests(DriverCase):
    """Nothing is told that the disk has not taken."""

    def test_an_outcome_follows_the_commit(self) -> None:
        self.told(c.Create(bytes(20), b"x", 60))
        self.assertEqual(self.log, ["commit", "told"])

    def test_what_is_asked_when_told_is_committed_too(self) -> None:
        self.protocol.submit(c.Create(b"1" * 20, b"x", 60)).addCallback(lambda _: self.told(c.Create(b"2" * 20, b"x", 60)))
        self.assertEqual(self.log, ["commit", "commit", "told"])

    def test_a_full_disk(self) -> None:
        """Whoever asked is told so, nothing is sent, and this node is no replica until it can write again."""
        self.disk.full = True
        told = self.told(c.Create(bytes(20), b"x", 60))
        self.datagrams(b"a")
        self.protocol.burst_ended()
        self.assertEqual(self.log, ["told", "event", "re a"])  # an honest node does not promise anything while it is suspended
        self.assertIsInstance(told[0].value, IpopError)
        self.assertTrue(self.node.replicas.suspended)
        self.disk.full = False
        self.clock.advance(RETRY_DISK)
        self.assertFalse(self.node.replicas.suspended)
        self.assertEqual(self.disk.commits, 1)

    def test_a_full_disk_in_a_burst(self) -> None:
        self.disk.full = True
        self.datagrams(b"a", b"b")
        self.protocol.burst_ended()
        self.assertEqual(self.log, ["event"] * 2)

    def test_cancelled(self) -> None:
        """Whoever does not want to know is not told."""
        asked = self.protocol.submit(c.Get(bytes(20)))
        asked.addErrback(lambda failure: None)
        asked.cancel()
        self.datagrams(b"a")
        self.protocol.burst_ended()
        self.assertEqual(self.log, ["event", "commit", "re a"])


class TimerTests(DriverCase):
    """One timer, early rather than late."""

    def test_moved(self) -> None:
        for due, calls in ((5.0, 1), (7.0, 1), (3.0, 1)):
            self.node.timeout = due
            self.protocol.settle()
            self.assertEqual(len(self.clock.getDelayedCalls()), calls)
        self.clock.advance(3.0)
        self.assertEqual(self.node.woken, [3.0])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_too_early(self) -> None:
        """It looks, and is set anew."""
        self.node.timeout = 5.0
        self.protocol.settle()
        self.node.timeout = 7.0
        self.protocol.settle()
        self.clock.advance(5.0)
        self.clock.advance(2.0)
        self.assertEqual(self.node.woken, [5.0, 7.0])
