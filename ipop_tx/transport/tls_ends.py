"""The two ways in which a TLS connection begins: somebody makes one to us (`Door`), or we make one (`Dialler`). Both are bounded."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import ClientFactory, ServerFactory
from twisted.internet.tcp import Connector, Port
from twisted.python.failure import Failure

from ipop_tx.errors import EnvironmentProblem, IpopError, PeerRefused, PermissionProblem, Unreachable
from ipop_tx.transport.proxy import tunnel
from ipop_tx.transport.tls_connection import Owner, TlsConnection
from ipop_tx.transport.tls_context import TlsContexts
from ipop_tx.transport.udp_socket import plain_host
from ipop_tx.values import INWARD, Endpoint, Ident, Proxy

STRANGERS = 64
"""Connections at a time of whom nobody knows yet whose they are; beyond that the oldest one that has not knocked makes way."""
EACH = 4
"""Connections of one certificate; the oldest makes way, for mostly it is dead."""
GUESTS = 16
"""Connections of guests, all together: anybody can make as many guests as he likes."""
KNOCKING_SECONDS = 5.0
"""Until a client must have finished its handshake."""
DIALLING = 16
"""Connections that we are making at a time."""
DIALS = 2.0
"""Connections that we begin in a second, in the long run."""
COMPLAIN_SECONDS = 120.0
"""For so long after the last attempt it is told why connections do not come about."""
DIALLED = 64
"""Connections that we have made, at a time."""
PATIENCE = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
"""Seconds to wait after so many failures before an endpoint is tried again."""
STEADY = 30.0
"""A connection that lived so long was no failure."""
MOST_REMEMBERED = 1024


class TlsOwner(Owner, Protocol):
    """What both ends need of the transport."""

    scheme: str
    """Of the endpoints that we reach."""
    opening_seconds: float
    """Until a connection is there, with TCP, proxy and TLS."""
    strangers_each: int
    """Connections at a time, from one address, of whom nobody knows yet whose they are."""

    @property
    def contexts(self) -> TlsContexts:
        """Makes TLS connections."""


def listening(reactor: Any, host: str, port: int, factory: ServerFactory) -> Port:
    """A TCP port that listens. Raises `EnvironmentProblem`, `PermissionProblem`."""
    made = Port(port, factory, 64, host, reactor)
    try:
        made.startListening()
    except CannotListenError as error:
        raise _problem_of(error.socketError, host, port) from error
    return made


def _problem_of(error: Any, host: str, port: int) -> EnvironmentProblem:
    match getattr(error, "errno", None):
        case errno.EADDRINUSE:
            mend = f"stop the other program (`ss -ltnp sport = {port}` names it) or choose another port in [listen.tls]"
            return EnvironmentProblem(f"TCP port {port} of {host} is taken", mend)
        case errno.EADDRNOTAVAIL:
            return EnvironmentProblem(f"this machine has no address {host}", "listen on 0.0.0.0 or on an address that `ip addr` shows")
        case errno.EACCES | errno.EPERM:
            return PermissionProblem(f"TCP port {port} of {host} may not be used", "run as root or choose a port from 1024 up")
        case _:
            return EnvironmentProblem(f"TCP port {port} of {host} cannot be opened ({error})")


class Door(ServerFactory):
    """Lets connections in."""

    noisy = False

    def __init__(self, reactor: Any, owner: TlsOwner, most: int) -> None:
        self.turned_away = 0
        """Connections for which there was no place."""
        self._reactor = reactor
        self._owner = owner
        self._most = most
        self._unknown: dict[TlsConnection, Any] = {}
        """Those that have not shown who they are, and the calls that end their patience."""
        self._from: Counter[str] = Counter()
        """How many of these there are from an address."""
        self._known: dict[Ident, list[TlsConnection]] = {}

    def buildProtocol(self, addr: IAddress | None) -> TlsConnection | None:
        """Somebody connects; None hangs up on it."""
        host = plain_host(addr.host)  # type: ignore[union-attr]  # of IPv4Address and IPv6Address
        endpoint = Endpoint(self._owner.scheme + INWARD, host, addr.port)  # type: ignore[union-attr]
        if self._from[host] >= self._owner.strangers_each or len(self) >= self._most or not self._has_room():
            self.turned_away += 1
            return None
        connection = TlsConnection(self._owner.contexts, endpoint, self._owner)
        self._from[host] += 1
        self._unknown[connection] = self._reactor.callLater(KNOCKING_SECONDS, connection.fail, Unreachable("it said nothing"))
        return connection

    def _has_room(self) -> bool:
        """For one more stranger. Whoever means it knocks within a round trip, so a flood of silent ones takes the places of its own."""
        if len(self._unknown) < STRANGERS:
            return True
        silent = next((connection for connection in self._unknown if not connection.knocked), None)
        if silent is not None:
            silent.fail(Unreachable("it said nothing, and others came"))
        return silent is not None

    def __len__(self) -> int:
        return len(self._unknown) + sum(map(len, self._known.values()))

    def entered(self, connection: TlsConnection) -> None:
        """It has shown who it is. Raises `PeerRefused` when it is one guest too many."""
        assert connection.peer is not None
        self._no_stranger(connection)
        if connection.peer.guest and self._guests() >= GUESTS:
            raise PeerRefused("too many guests ask at once", "they may try again in a minute")
        of_member = self._known.setdefault(connection.peer.ident, [])
        of_member.append(connection)
        if len(of_member) > EACH:
            of_member[0].fail(PeerRefused("this member has made newer connections"))

    def _guests(self) -> int:
        return sum(one.peer is not None and one.peer.guest for of_member in self._known.values() for one in of_member)

    def _no_stranger(self, connection: TlsConnection) -> None:
        patience = self._unknown.pop(connection, None)
        if patience is not None:
            if patience.active():
                patience.cancel()
            host = connection.endpoint.host
            self._from[host] -= 1
            if not self._from[host]:
                del self._from[host]

    def left(self, connection: TlsConnection) -> None:
        """It has ended."""
        self._no_stranger(connection)
        of_member = self._known.get(connection.peer.ident, []) if connection.peer is not None else []
        if connection in of_member:
            of_member.remove(connection)
            if not of_member and connection.peer is not None:
                del self._known[connection.peer.ident]

    def stop(self) -> None:
        """Hang up on strangers."""
        for connection in list(self._unknown):
            connection.fail(Unreachable("this node stops"))


@dataclass(slots=True)
class Dialling:
    """How it goes with an endpoint."""

    failures: int = 0
    not_before: float = 0.0
    since: float = 0.0
    """When the present connection opened."""


class Dialler:
    """Makes connections, each to one endpoint, by a proxy where there is one."""

    def __init__(self, reactor: Any, owner: TlsOwner, proxy_of: Callable[[str], Proxy | None]) -> None:
        self._problem: IpopError | None = None
        self._problem_until = 0.0
        self._reactor = reactor
        self._owner = owner
        self._proxy_of = proxy_of
        self._known: dict[Endpoint, Dialling] = {}
        self._making: dict[TlsConnection, tuple[Any, Any]] = {}
        """The connector of each connection that is not open yet, and the call that ends our patience."""
        self._made: set[TlsConnection] = set()
        self._allowance, self._allowed_at = float(DIALLING), reactor.seconds()

    def dial(self, endpoint: Endpoint) -> TlsConnection | None:
        """A connection that is being made; None when it is not time to try again, or when there are too many."""
        known = self._known.get(endpoint)
        if known is not None and self._reactor.seconds() < known.not_before:
            return None
        if len(self._making) >= DIALLING or len(self._making) + len(self._made) >= DIALLED:
            return None
        if not self._may_dial():
            return None
        try:
            proxy = self._proxy_of(endpoint.host)
        except IpopError as error:
            self._complain(error)
            return None
        connection = TlsConnection(self._owner.contexts, endpoint, self._owner, tunnel(proxy, endpoint) if proxy else None)
        host, port = (proxy.host, proxy.port) if proxy else (endpoint.host, endpoint.port)
        patience = self._reactor.callLater(self._owner.opening_seconds, self._too_slow, connection)
        connector = Connector(host, port, _Dial(connection), self._owner.opening_seconds, None, self._reactor)
        self._making[connection] = (connector, patience)
        connector.connect()
        return connection if connection in self._making else None

    def _may_dial(self) -> bool:
        """Members name endpoints to us; what these cost others is bounded by this."""
        now = self._reactor.seconds()
        self._allowance = min(DIALLING, self._allowance + (now - self._allowed_at) * DIALS)
        self._allowed_at = now
        if self._allowance < 1.0:
            return False
        self._allowance -= 1.0
        return True

    def _complain(self, problem: IpopError) -> None:
        self._problem, self._problem_until = problem, self._reactor.seconds() + COMPLAIN_SECONDS

    @property
    def problem(self) -> IpopError | None:
        """What a proxy said when it refused lately, or why we have none; None once a connection was made."""
        return self._problem if self._reactor.seconds() < self._problem_until else None

    def _too_slow(self, connection: TlsConnection) -> None:
        connection.fail(Unreachable("no answer in time"))

    def succeeded(self, connection: TlsConnection) -> None:
        """It is open."""
        self._no_more_making(connection)
        self._made.add(connection)
        self._problem = None
        if connection.endpoint not in self._known:
            if len(self._known) >= MOST_REMEMBERED:
                self._known.clear()
            self._known[connection.endpoint] = Dialling()
        self._known[connection.endpoint].since = self._reactor.seconds()

    def _no_more_making(self, connection: TlsConnection) -> Any:
        connector, patience = self._making.pop(connection, (None, None))
        if patience is not None and patience.active():
            patience.cancel()
        return connector

    def ended(self, connection: TlsConnection) -> None:
        """It has ended, or never came about."""
        made = connection in self._made
        connector = self._no_more_making(connection)
        if connector is not None and connector.state == "connecting":
            connector.stopConnecting()
        self._made.discard(connection)
        if connector is None and not made:
            return
        if len(self._known) >= MOST_REMEMBERED:
            self._known.clear()
        known, now = self._known.setdefault(connection.endpoint, Dialling()), self._reactor.seconds()
        if made and (connection.failure is None or now - known.since >= STEADY):
            known.failures = 0
        else:
            known.failures = min(known.failures + 1, len(PATIENCE) - 1)
        known.not_before = now + PATIENCE[known.failures]
        if isinstance(connection.failure, EnvironmentProblem) and not isinstance(connection.failure, Unreachable):
            self._complain(connection.failure)

    def stop(self) -> None:
        """Make no more."""
        for connection in list(self._making):
            connection.fail(Unreachable("this node stops"))


class _Dial(ClientFactory):
    """One attempt."""

    noisy = False

    def __init__(self, connection: TlsConnection) -> None:
        self._connection = connection

    def buildProtocol(self, addr: IAddress | None) -> TlsConnection | None:
        """TCP is there."""
        return None if self._connection.over else self._connection

    def clientConnectionFailed(self, connector: Any, reason: Failure) -> None:
        """TCP did not come about."""
        self._connection.fail(Unreachable(f"no connection ({reason.getErrorMessage().rstrip('.')})"))
