"""How much of a node its members may use by TLS: each the same rate, however many connections it has.

A member that sends more is not read from for a while: TCP slows it down, nothing is lost and nothing piles up here. Between those who
stay below their rate the loop itself is fair: it reads a bounded amount from each connection in turn.
"""

from __future__ import annotations

from typing import Any

from ipop_tx.transport.tls_connection import TlsConnection
from ipop_tx.values import Ident

BURST_SECONDS = 0.1
"""What a member has not used it may use within so long."""
MOST_REMEMBERED = 4096


class Shares:
    """A bucket for each member: what it may still send. `rate` is in bytes per second."""

    def __init__(self, reactor: Any, rate: float) -> None:
        self._reactor = reactor
        self._rate = rate
        self._left: dict[Ident, tuple[float, float]] = {}
        """Bytes that a member had left, and when."""
        self._waiting: dict[TlsConnection, Any] = {}

    def taken(self, connection: TlsConnection, count: int) -> None:
        """So many bytes came by a connection; if they are more than its member may send, it is not read from until they are not."""
        assert connection.peer is not None
        now, ident = self._reactor.seconds(), connection.peer.ident
        left, since = self._left.get(ident, (self._rate * BURST_SECONDS, now))
        left = min(self._rate * BURST_SECONDS, left + (now - since) * self._rate) - count
        if len(self._left) >= MOST_REMEMBERED and ident not in self._left:
            self._left.clear()
        self._left[ident] = (left, now)
        if left < 0 and connection not in self._waiting:
            connection.pause(self)
            self._waiting[connection] = self._reactor.callLater(-left / self._rate, self._read_again, connection)

    def _read_again(self, connection: TlsConnection) -> None:
        del self._waiting[connection]
        connection.resume(self)

    def forget(self, connection: TlsConnection) -> None:
        """A connection has ended."""
        waiting = self._waiting.pop(connection, None)
        if waiting is not None:
            waiting.cancel()

    def stop(self) -> None:
        """Read nothing any more."""
        for connection in list(self._waiting):
            self.forget(connection)
