"""TLS over TCP, for members between whom no UDP passes: a transport of datagrams over connections, made when something is to be sent.

What a member sends by it is sealed already and addressed to whoever holds the session's keys, so this layer has two purposes only: to
look like what firewalls let through, and to keep strangers out cheaply. See `tls_context` for who may connect, `frames` for what is on
the stream, `tls_connection` for one connection; here are the endpoints, the bounds and the fairness.

A connection that somebody made to us is an endpoint of its own, with the scheme `tls-in`: datagrams go back by it while it lives, and
nobody ever tries to reach it anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from twisted.internet.tcp import Port
from zope.interface import implementer

from ipop_tx.errors import IpopError, PeerRefused, Unreachable
from ipop_tx.interfaces import IDatagramReceiver, ITransport
from ipop_tx.log import Logger
from ipop_tx.transport.frames import framed
from ipop_tx.transport.interfaces import own_hosts
from ipop_tx.transport.tls_connection import CHUNK_BYTES, HOLD_BYTES, PLAIN_BYTES, QUEUE_BYTES, URGENT_BYTES, TlsConnection
from ipop_tx.transport.tls_context import TlsContexts, TlsCredentials
from ipop_tx.transport.tls_ends import Dialler, Door, listening
from ipop_tx.transport.tls_shares import BURST_SECONDS, Shares
from ipop_tx.values import Endpoint, Proxy
from ipop_tx.wire.datagram import RUN_BYTES

DATAGRAM_BYTES = 1472
"""Of the largest datagram: as on Ethernet, so that what a relay passes on to a UDP path is cut alike on both sides."""
HOLD_SECONDS = 0.1
"""For so long one full connection may keep others waiting: what this node sends, and the connections whose frames are to be passed on by
it. Then it loses what does not fit ..."""
SLOW_SECONDS = 10.0
"""... and nobody waits for it for so long."""
LEAST_CHUNK = 4096
LOOK_EVERY = 15.0
GUESTS_STAY = 6
"""Looks after which a guest must be done."""
OURS_IDLE, THEIRS_IDLE = 4, 20
"""Looks after which a connection that carried nothing is closed: first by the end that can make it anew."""


@dataclass(frozen=True)
class TlsSettings:
    """`[listen.tls]` of the configuration."""

    host: str = "0.0.0.0"
    port: int | None = None
    """None: do not listen."""
    proxy_of: Callable[[str], Proxy | None] = lambda host: None
    """By which proxy an address is reached."""
    rate: float = 0.0
    """Bytes per second that are taken from each member; 0: as many as come."""
    connections: int = 256
    """Most connections of others at a time."""


class Counters:
    """What happened since the start."""

    __slots__ = ("accepted", "closed", "dialled", "dropped", "malformed", "strangers")

    def __init__(self) -> None:
        self.accepted = 0
        """Connections of members and guests."""
        self.dialled = 0
        """Connections that we made."""
        self.closed = 0
        """Connections that ended, ours and theirs."""
        self.dropped = 0
        """Runs lost because a connection was slower than what was to go over it."""
        self.strangers = 0
        """Connections that did not knock, or not in time, or for which there was no place."""
        self.malformed = 0
        """Connections ended because what came by them made no sense, or with certificates that are not good."""


@implementer(ITransport)
class TlsTransport:
    """Datagrams over TLS connections. `ignore` holds names of interfaces whose addresses are never offered to peers."""

    scheme = "tls"
    datagram_bytes = DATAGRAM_BYTES
    opening_seconds = 10.0
    strangers_each = 8
    _log = Logger()

    def __init__(self, reactor: Any, credentials: TlsCredentials, settings: TlsSettings, ignore: Iterable[str] = ()) -> None:
        self.settings = settings
        self.port = settings.port or 0
        """The port that is bound; after `start` never 0 when there is one."""
        self.counters = Counters()
        self.receiver: IDatagramReceiver
        self.contexts = TlsContexts(credentials)
        self._reactor = reactor
        self._ignore = set(ignore)
        self._connections: dict[Endpoint, TlsConnection] = {}
        self._dialler = Dialler(reactor, self, settings.proxy_of)
        self._door = Door(reactor, self, settings.connections)
        self._shares = Shares(reactor, settings.rate)
        self._port: Port | None = None
        self.chunk = min(CHUNK_BYTES, max(LEAST_CHUNK, int(settings.rate * BURST_SECONDS))) if settings.rate else CHUNK_BYTES
        self.plain = memoryview(bytearray(PLAIN_BYTES))
        self.delivering: TlsConnection | None = None
        """The connection whose datagrams are being handled just now."""
        self._held: set[TlsConnection] = set()
        self._holding: Any = None
        self._looking: Any = None
        self._running = False

    def start(self, receiver: IDatagramReceiver) -> None:
        """Bind, if we are to listen. Raises `EnvironmentProblem` when the address is taken or not ours, `PermissionProblem`."""
        self.receiver = receiver
        if self.settings.port is not None:
            self._port = listening(self._reactor, self.settings.host, self.settings.port, self._door)
            self.port = self._port.getHost().port
        self._running = True
        self._looking = self._reactor.callLater(LOOK_EVERY, self._look)

    def stop(self) -> None:
        """Close everything."""
        self._running = False
        if self._port is not None:
            self._port.stopListening()
            self._port = None
        for call in (self._looking, self._holding):
            if call is not None and call.active():
                call.cancel()
        held, self._held, self._holding = self._held, set(), None
        self._dialler.stop()
        self._door.stop()
        for connection in list(self._connections.values()):
            connection.close()
        self._shares.stop()
        if held:
            self.receiver.drained()

    # --- out ---------------------------------------------------------------------------------

    def write(self, endpoint: Endpoint, datagram: bytes | memoryview) -> None:
        """Send one datagram, before runs that wait."""
        connection = self._connections.get(endpoint) or self._reach(endpoint)
        if connection is not None and 0 < len(datagram) <= RUN_BYTES:
            self._sent(connection, framed((datagram,), len(datagram), len(datagram)), QUEUE_BYTES + URGENT_BYTES, urgent=True)

    def layout(self, buffers: Sequence[memoryview]) -> Sequence[memoryview]:
        """Nothing has to be prepared."""
        return buffers

    def write_run(self, endpoint: Endpoint, buffers: Sequence[bytes | memoryview], size: int, total: int) -> bool:
        """Send a run. False asks to wait, for `HOLD_SECONDS` at most, and never for a connection that is known to be slow."""
        connection = self._connections.get(endpoint) or self._reach(endpoint)
        if connection is None:
            return True
        slow = self._reactor.seconds() < connection.slow_until
        if self._sent(connection, framed(buffers, size, total), HOLD_BYTES if slow else QUEUE_BYTES) or slow or connection.peer is None:
            return True
        self._held.add(connection)
        if self.delivering is not None:
            self.delivering.pause(self)
        if self._holding is None:
            self._holding = self._reactor.callLater(HOLD_SECONDS, self._held_long_enough)
        return False

    def _sent(self, connection: TlsConnection, frame: bytes, most: int, urgent: bool = False) -> bool:
        before = connection.dropped
        more = connection.send(frame, most, urgent)
        self.counters.dropped += connection.dropped - before
        return more

    def _reach(self, endpoint: Endpoint) -> TlsConnection | None:
        """A connection that is being made; None when there will be none (now)."""
        if not self._running or endpoint.inward:
            return None
        connection = self._dialler.dial(endpoint)
        if connection is not None:
            self._connections[endpoint] = connection
        return connection

    def _held_long_enough(self) -> None:
        """Whoever is still full is slow: from now on it loses, instead of keeping others waiting."""
        self._holding = None
        held, self._held = self._held, set()
        for connection in held:
            connection.slow_until = self._reactor.seconds() + SLOW_SECONDS
        self._go_on()

    def _go_on(self) -> None:
        """Nobody has to wait any more."""
        self.receiver.drained()
        for connection in list(self._connections.values()):
            connection.resume(self)

    def drained(self, connection: TlsConnection) -> None:
        """See `tls_connection.Owner`."""
        if connection in self._held:
            self._held.discard(connection)
            if not self._held and self._holding is not None:
                self._holding.cancel()
                self._holding = None
                self._go_on()

    # --- connections come and go -------------------------------------------------------------

    def opened(self, connection: TlsConnection) -> None:
        """See `tls_connection.Owner`. Raises `PeerRefused` when a member has too many connections."""
        assert connection.peer is not None
        if connection.endpoint.inward:
            self._door.entered(connection)
            self.counters.accepted += 1
            self._connections[connection.endpoint] = connection
        else:
            self._dialler.succeeded(connection)
            self.counters.dialled += 1
        self._log.info("connection_open endpoint={endpoint} peer={peer}", endpoint=connection.endpoint, peer=connection.peer.name)

    def received(self, connection: TlsConnection, count: int) -> None:
        """See `tls_connection.Owner`."""
        if connection.peer is not None and self.settings.rate:
            self._shares.taken(connection, count)

    def ended(self, connection: TlsConnection) -> None:
        """See `tls_connection.Owner`."""
        self._shares.forget(connection)
        self._door.left(connection)
        self._dialler.ended(connection)
        self.drained(connection)
        if self._connections.get(connection.endpoint) is connection:
            del self._connections[connection.endpoint]
        if connection.peer is not None:
            self.counters.closed += 1
            reason = str(connection.failure or "in good order")
            self._log.info("connection_closed endpoint={endpoint} reason={reason}", endpoint=connection.endpoint, reason=reason)
            self._reactor.callLater(0, self._tell_lost, connection.endpoint)  # not in the midst of whatever was being sent
        elif connection.endpoint.inward:
            self._turned_away(connection.failure)

    def _tell_lost(self, endpoint: Endpoint) -> None:
        if self._running:
            self.receiver.path_lost(endpoint)

    def _turned_away(self, failure: IpopError | None) -> None:
        if isinstance(failure, (PeerRefused, Unreachable)) or failure is None:
            self.counters.strangers += 1
        else:
            self.counters.malformed += 1

    def _look(self) -> None:
        """Close what carries nothing any more. A connection that we can make anew ends first, so that its other end hears of it."""
        self._looking = self._reactor.callLater(LOOK_EVERY, self._look)
        for connection in list(self._connections.values()):
            connection.quiet += 1
            connection.looks += 1
            idle = connection.quiet > (THEIRS_IDLE if connection.endpoint.inward else OURS_IDLE)
            if idle or (connection.peer is not None and connection.peer.guest and connection.looks > GUESTS_STAY):
                connection.close()

    # --- what others ask ---------------------------------------------------------------------

    def __iter__(self) -> Iterator[TlsConnection]:
        return iter(list(self._connections.values()))

    def health(self) -> list[str]:
        """Why connections do not come about, when the reason is one that this machine's owner can mend."""
        problem = self._dialler.problem
        return [str(problem)] if problem is not None else []

    def counts(self) -> dict[str, int]:
        """The counters, by name."""
        found = {name: getattr(self.counters, name) for name in self.counters.__slots__}
        return {**found, "strangers": self.counters.strangers + self._door.turned_away, "open": len(self._connections)}

    def local_endpoints(self) -> list[Endpoint]:
        """Where we listen, if we do."""
        if self._port is None:
            return []
        bound = ip_address(self.settings.host)
        hosts = own_hosts(bound.version == 6, self._ignore) if bound.is_unspecified else [str(bound)]
        return [Endpoint(self.scheme, host, self.port) for host in hosts]
