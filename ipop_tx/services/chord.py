"""The driver of the control plane: datagrams, time and disk for one `core.Node`.

After every input, in this order: events to those who listen, replicas to the disk, datagrams to the net, outcomes to those who asked, one
timer. A promise that the disk did not take is never sent, and an outcome that rests on one is not told; see `_commit`.

The datagrams of a burst share all but the first step: an fsync costs as much as hundreds of datagrams, so all answers of a burst leave
after one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.protocol import DatagramProtocol
from zope.interface import implementer

from ipop_tx.core import commands as c
from ipop_tx.core import events as e
from ipop_tx.core.node import Node
from ipop_tx.core.tasks import Future
from ipop_tx.errors import IpopError
from ipop_tx.interfaces import IBroadcast, IDatagramReceiver, IReplicaStore, ISession, ITransport
from ipop_tx.log import Logger
from ipop_tx.values import Endpoint, short
from ipop_tx.wire.datagram import HEADER_BYTES

FROZEN = 5.0
"""Seconds of delay of a timer from which on this process was stopped rather than busy."""
RETRY_DISK = 5.0
"""Seconds between attempts to write what the disk has refused."""


def boot_seconds() -> float:
    """The clock of a node: seconds since the machine started, never set back, and not standing still while it sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@implementer(IDatagramReceiver)
class ChordProtocol(DatagramProtocol):
    """Feeds a node and carries out what it wants. Attach it to an `ITransport` (`transport` below), or to `reactor.listenUDP`."""

    _log = Logger()

    def __init__(self, reactor: Any, node: Node, store: IReplicaStore, clock: Callable[[], float]) -> None:
        self.node = node
        self.clock = clock
        self.disk_problem = ""
        """Why replicas cannot be written, in a sentence; empty when they can."""
        self.carrier: ITransport | None = None
        self.stopped = False
        self._listeners: dict[type, list[Callable[[Any], object]]] = {}
        self._reactor = reactor
        self._store = store
        self._settling = False
        self._in_burst = False
        """Whether datagrams were taken that `burst_ended` has not followed yet."""
        self._outcomes: list[tuple[Deferred[Any], Future[Any]]] = []
        """What was asked of the node and is done, to be told after the next commit."""
        self._timer: Any = None
        self._due = 0.0

    # --- inputs ------------------------------------------------------------------------------

    def datagramReceived(self, datagram: bytes, addr: tuple[str, int]) -> None:
        """Twisted's own UDP ports deliver here."""
        self.datagram_received(Endpoint("udp", addr[0], addr[1]), datagram)
        self.burst_ended()

    def datagram_received(self, endpoint: Endpoint, datagram: bytes | memoryview) -> None:
        """A datagram from a transport, or from the forwarding plane, when it is no member's traffic. `burst_ended` follows."""
        self._in_burst = True
        self.node.receive_datagram(self.clock(), endpoint, datagram)
        self.settle()

    def run_received(self, endpoint: Endpoint, heads: bytearray, bodies: memoryview, size: int, total: int) -> None:
        """A run of datagrams, for a node without forwarding plane."""
        body = size - HEADER_BYTES
        for at in range(0, total, size):
            place = at // size
            head = heads[place * HEADER_BYTES :][: min(HEADER_BYTES, total - at)]
            self.datagram_received(endpoint, bytes(head) + bodies[place * body :][: max(0, min(body, total - at - HEADER_BYTES))])

    def burst_ended(self) -> None:
        """Everything that came is taken: one commit for it, then its answers."""
        if self._in_burst:
            self._in_burst = False
            self.settle()

    def drained(self) -> None:
        """The control plane does not wait for the transport: it repeats what was lost."""

    def path_lost(self, endpoint: Endpoint) -> None:
        """A transport's connection has ended."""
        self.submit(c.PathLost(endpoint))

    def unsealed(self, endpoint: Endpoint, session: ISession, kind: int, payload: bytes) -> None:
        """What the forwarding plane unsealed and did not deliver itself. `burst_ended` follows."""
        self._in_burst = True
        self.node.receive_unsealed(self.clock(), endpoint, session, kind, payload)
        self.settle()

    def submit(self, command: object) -> Deferred[Any]:
        """Ask the node for something: one of `ipop_tx.core.commands`. The outcome is told once it is durable."""
        deferred: Deferred[Any] = Deferred()
        self.node.submit(self.clock(), command).then(lambda done: self._outcomes.append((deferred, done)))
        self.settle()
        return deferred

    def _timed_out(self) -> None:
        self._timer = None
        self._in_burst = False
        now = self.clock()
        if now - self._due > FROZEN:
            self._doubt_everybody(now)
        self.node.handle_timeout(now)
        self.settle()

    def _doubt_everybody(self, now: float) -> None:
        """We were stopped for a while, and others may have given us up: see soon which links still carry."""
        self._log.warn("frozen seconds={seconds}", seconds=round(now - self._due, 1))
        for link in self.node.links:
            self.node.submit(now, c.Suspect(link.ident))

    @property
    def commits(self) -> int:
        """How many times replicas were written to the disk."""
        return self._store.commits

    # --- outputs -----------------------------------------------------------------------------

    def on(self, kind: type, listener: Callable[[Any], object]) -> None:
        """Call `listener` with every event of a type (`ipop_tx.core.events`)."""
        self._listeners.setdefault(kind, []).append(listener)

    def settle(self) -> None:
        """Carry out what the node wants after an input. Listeners may feed it again; the outermost call goes on until all is quiet.

        Within a burst only events are told, which the forwarding plane must know before the next datagram.
        """
        if self._settling or self.stopped:
            return
        self._settling = True
        try:
            self._tell_events()
            while not self._in_burst and self._commit():
                self._transmit()
                if not self._outcomes:
                    break
                self._tell_outcomes()
                self._tell_events()
        finally:
            self._settling = False
        if not self._in_burst:
            self._arm()

    def _tell_events(self) -> None:
        while (event := self.node.poll_event()) is not None:
            for listener in self._listeners.get(type(event), ()):
                try:
                    listener(event)
                except Exception:  # noqa: BLE001 - a fault in one listener must not keep datagrams from going out
                    self._log.failure("listener_failed event={event}", event=type(event).__name__)

    def _tell_outcomes(self) -> None:
        """To those who asked; what they ask next is carried out by the caller."""
        told, self._outcomes = self._outcomes, []
        for deferred, done in told:
            if not deferred.called:  # else whoever asked has cancelled it
                if done.error is not None:
                    deferred.errback(done.error)
                else:
                    deferred.callback(done.result())

    def _commit(self) -> bool:
        """Make the replicas durable.

        When the disk refuses, nothing of this turn is sent, and this node is no replica until it can write again.
        """
        if self.node.replicas.suspended:
            return True
        try:
            self._store.commit()
        except IpopError as error:
            self._suspend(error)
            return False
        return True

    def _suspend(self, error: IpopError) -> None:
        self.disk_problem = str(error)
        self.node.replicas.suspended = True
        self._log.error("replicas_suspended reason={reason}", reason=str(error))
        while self.node.poll_transmit() is not None:
            pass
        told, self._outcomes = self._outcomes, []
        for deferred, _ in told:
            if not deferred.called:
                deferred.errback(error)
        self._reactor.callLater(RETRY_DISK, self._retry_commit)

    def _retry_commit(self) -> None:
        if self.stopped:
            return
        try:
            self._store.commit()
        except IpopError as error:
            self.disk_problem = str(error)
            self._reactor.callLater(RETRY_DISK, self._retry_commit)
            return
        self.node.replicas.suspended, self.disk_problem = False, ""
        self._log.info("replicas_resumed")

    def _transmit(self) -> None:
        while (sending := self.node.poll_transmit()) is not None:
            if self.carrier is not None:
                self.carrier.write(*sending)
            elif self.transport is not None:
                endpoint, datagram = sending
                self.transport.write(datagram, (endpoint.host, endpoint.port))

    def _arm(self) -> None:
        """A timer that is too early is left alone: most are moved later again and again, and almost none is ever due."""
        due = self.node.poll_timeout()
        if self._timer is not None and (due is None or due < self._due):
            self._timer.cancel()
            self._timer = None
        if due is not None and self._timer is None:
            now = self.clock()
            self._due = max(now, due)
            self._timer = self._reactor.callLater(self._due - now, self._timed_out)

    def stop(self) -> None:
        """Send what is left and be quiet."""
        if not self.stopped and self._commit():
            self._transmit()
            self._tell_outcomes()
        self.stopped = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


@implementer(IBroadcast)
class ChordService(Service):
    """The ring as a service: transport, protocol, joining and leaving."""

    _log = Logger()
    name = "chord"

    def __init__(self, protocol: ChordProtocol, transport: ITransport, bootstrap: Callable[[], tuple[Endpoint, ...]]) -> None:
        self.protocol = protocol
        self.transport = transport
        self._bootstrap = bootstrap
        self.receiver: IDatagramReceiver = protocol
        """Where the transport delivers: a forwarding plane, where there is one."""
        protocol.carrier = transport
        for kind, report in (
            (e.LinkUp, self._link_up),
            (e.LinkDown, self._link_down),
            (e.PeerRejected, self._rejected),
            (e.LookupDisagreed, self._disagreed),
            (e.Joined, lambda event: self._log.info("ring_joined")),
            (e.Fault, lambda event: self._log.error("fault {text}", text=event.text)),
        ):
            protocol.on(kind, report)

    def startService(self) -> None:
        """Bind, and look for the ring. Raises `EnvironmentProblem` when the address is taken."""
        self.transport.start(self.receiver)
        Service.startService(self)
        self.protocol.submit(c.Start(self._bootstrap())).addErrback(lambda failure: self._log.failure("start_failed", failure))

    def stopService(self) -> None:
        """Go without a word; `leave` says goodbye."""
        Service.stopService(self)
        self.protocol.stop()
        self.transport.stop()

    def leave(self) -> Deferred[int]:
        """Hand over what this node keeps and close all links; gives how many shards stay on its disk."""
        return self.protocol.submit(c.Leave())

    def broadcast(self, payload: bytes) -> Deferred[None]:
        """Tell everybody else on the ring."""
        return self.protocol.submit(c.Broadcast(payload))

    def on_broadcast(self, listener: Callable[[bytes], object]) -> None:
        """Call `listener` with the payload of each broadcast of others."""
        self.protocol.on(e.BroadcastReceived, lambda event: listener(event.payload))

    def _link_up(self, event: e.LinkUp) -> None:
        link = self.protocol.node.link(event.ident)
        if link is not None:
            self._log.info(
                "link_up peer={peer} name={name} path={path}", peer=short(link.ident), name=link.peer.name, path=path_text(link.active)
            )

    def _link_down(self, event: e.LinkDown) -> None:
        self._log.info("link_down peer={peer} reason={reason}", peer=short(event.ident), reason=event.reason)

    def _disagreed(self, event: e.LookupDisagreed) -> None:
        dissent = ",".join(short(ident) for ident in event.dissent)
        self._log.warn(
            "lookup_disagreed key={key} owner={owner} dissent={dissent}", key=short(event.key), owner=short(event.owner), dissent=dissent
        )

    def _rejected(self, event: e.PeerRejected) -> None:
        self._log.warn("peer_rejected source={source} reason={reason}", source=event.source, reason=event.reason)


def path_text(path: object) -> str:
    """A path for the log: an endpoint, or `ring`."""
    return str(path) if isinstance(path, Endpoint) else "ring"
