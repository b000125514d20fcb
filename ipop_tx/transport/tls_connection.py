"""One TLS connection: handshake, frames in, frames out with a bounded queue. Twisted moves the bytes of TCP, OpenSSL those of TLS.

```
 TCP -> [the proxy's answer] -> [ClientHello: does it knock?] -> OpenSSL -> frames -> receiver
 runs -> queue -> OpenSSL -> TCP
```
"""

from __future__ import annotations

import socket
from collections import deque
from contextlib import suppress
from typing import Any, Protocol

from OpenSSL import SSL
from twisted.internet import protocol
from twisted.internet.interfaces import IPushProducer
from twisted.python.failure import Failure
from zope.interface import implementer

from ipop_tx.errors import IpopError, PeerRefused, Unreachable
from ipop_tx.interfaces import IDatagramReceiver
from ipop_tx.log import Logger
from ipop_tx.transport.frames import LARGEST, deliver, unframed
from ipop_tx.transport.proxy import Tunnel
from ipop_tx.transport.tls_context import TlsContexts, peer_of, reason_of
from ipop_tx.values import Endpoint, Peer

QUEUE_BYTES = 512 << 10
"""What waits in us for a connection at most; more is dropped. Room for all that comes by one reading after `HOLD_BYTES` were passed."""
URGENT_BYTES = 64 << 10
"""So much of the control plane's waits beside it, and goes first."""
HOLD_BYTES = 128 << 10
"""From so much on whoever writes is asked to wait, and it is all that waits for a connection that is known to be slow ..."""
LOW_BYTES = 64 << 10
"""... until so little is left."""
CHUNK_BYTES = 128 << 10
"""Read at once, and lying in Twisted's buffer before it asks us to wait."""
RECORD_BYTES = 16 << 10
"""What one TLS record carries at most (RFC 8446, 5.1)."""
PLAIN_BYTES = LARGEST + CHUNK_BYTES + RECORD_BYTES
UNSENT_BYTES = 128 << 10
"""What the kernel takes beyond what is on its way: the rest of a queue belongs here, where it is bounded and in order of urgency."""
SILENT_MS = 20000
"""Milliseconds without an acknowledgement after which the kernel gives a connection up (RFC 5482)."""

_TCP_USER_TIMEOUT, _TCP_NOTSENT_LOWAT = 18, 25


class Owner(Protocol):
    """The transport that a connection belongs to."""

    chunk: int
    """Bytes to read at once, `CHUNK_BYTES` at most."""
    plain: memoryview
    """`PLAIN_BYTES` to decrypt into; nobody keeps anything there from one call to the next."""
    delivering: TlsConnection | None
    """The connection whose datagrams are being handled."""

    @property
    def receiver(self) -> IDatagramReceiver:
        """Where datagrams go."""

    def opened(self, connection: TlsConnection) -> None:
        """The handshake is done, `connection.peer` is known. Raises `IpopError` when there is no place for it."""

    def received(self, connection: TlsConnection, count: int) -> None:
        """So many bytes came."""

    def drained(self, connection: TlsConnection) -> None:
        """Little waits any more."""

    def ended(self, connection: TlsConnection) -> None:
        """The connection has ended; `connection.failure` says why, if it was not in good order."""


@implementer(IPushProducer)
class TlsConnection(protocol.Protocol):
    """Datagrams from and to one endpoint. `tunnel` leads through a proxy."""

    _log = Logger()

    def __init__(self, contexts: TlsContexts, endpoint: Endpoint, owner: Owner, tunnel: Tunnel | None = None) -> None:
        self.endpoint = endpoint
        self.peer: Peer | None = None
        """Who stands at the other end, once the handshake is done."""
        self.failure: IpopError | None = None
        self.over = False
        self.quiet = 0
        """Looks of the owner since anything was carried."""
        self.looks = 0
        """Looks of the owner since it was there."""
        self.slow_until = float("-inf")
        """Until when nobody waits for this one: it had its time to drain and did not."""
        self.dropped = 0
        """Runs lost because the queue was full."""
        self.queued = 0
        """Bytes in the queue."""
        self._contexts = contexts
        self._owner = owner
        self._tunnel = tunnel
        self._tls: SSL.Connection | None = None
        self._first = bytearray()
        self._rest = b""
        self._queue: deque[bytes] = deque()
        self._urgent: deque[bytes] = deque()
        self._full = False
        self._pauses: set[object] = set()
        """Those who want that nothing is read."""

    @property
    def knocked(self) -> bool:
        """Whether somebody who came to us has shown that it belongs here, or may."""
        return self._tls is not None

    # --- begin -------------------------------------------------------------------------------

    def connectionMade(self) -> None:
        """TCP is there."""
        transport: Any = self.transport
        transport.bufferSize = self._owner.chunk
        transport.setTcpNoDelay(True)
        for option, value in ((_TCP_NOTSENT_LOWAT, UNSENT_BYTES), (_TCP_USER_TIMEOUT, SILENT_MS)):
            with suppress(OSError):  # older kernels do without
                transport.getHandle().setsockopt(socket.IPPROTO_TCP, option, value)
        transport.registerProducer(self, True)
        if self._tunnel is not None:
            transport.write(self._tunnel.opening)
        elif not self.endpoint.inward:
            self._begin(self._contexts.client())

    def _begin(self, connection: SSL.Connection) -> None:
        self._tls = connection
        self._advance()

    def _through(self, tunnel: Tunnel, data: bytes) -> bytes:
        """Talk to the proxy; gives what already comes from beyond it."""
        answer = tunnel.receive(data)
        if answer:
            self.transport.write(answer)  # type: ignore[union-attr]  # there while data comes
        if not tunnel.done:
            return b""
        self._tunnel = None
        self._begin(self._contexts.client())
        return tunnel.rest

    def _let_in(self, data: bytes) -> bytes:
        """Nothing is made for a stranger before it has knocked."""
        self._first += data
        may = self._contexts.may_enter(self._first)
        if may is None:
            return b""
        if not may:
            raise PeerRefused("a stranger")
        first, self._first = bytes(self._first), bytearray()
        self._tls = self._contexts.server()
        return first

    # --- in ----------------------------------------------------------------------------------

    def dataReceived(self, data: bytes) -> None:
        """Bytes of TCP."""
        if self.over:
            return
        self._owner.received(self, len(data))
        try:
            if self._tunnel is not None:
                data = self._through(self._tunnel, data)
            elif self._tls is None:
                data = self._let_in(data)
            if data and self._tls is not None:
                self._tls.bio_write(data)
                self._advance()
        except SSL.Error as problem:
            self.fail(reason_of(problem, self._tls))
        except IpopError as problem:
            self.fail(problem)

    def _advance(self) -> None:
        """Let OpenSSL go on with what it was fed. Raises `SSL.Error`, `IpopError`."""
        assert self._tls is not None
        if self.peer is None:
            try:
                self._tls.do_handshake()
            except SSL.WantReadError:
                self._flush()
                return
            except SSL.Error:
                self._flush()  # its alert tells the other end why
                raise
            self._opened(self._tls)
        self._read()
        self._flush()

    def _opened(self, connection: SSL.Connection) -> None:
        self._flush()
        self.peer = peer_of(connection)
        self._owner.opened(self)
        self.resumeProducing()

    def _read(self) -> None:
        """Decrypt what there is and deliver the frames in it. The buffer is for all connections; what is unfinished, each keeps."""
        plain = self._owner.plain
        end, more = len(self._rest), True
        plain[:end] = self._rest
        while more and self._tls is not None:
            begin = end
            try:
                while end + RECORD_BYTES <= PLAIN_BYTES:
                    end += self._tls.recv_into(plain[end : end + RECORD_BYTES])
            except SSL.WantReadError:
                more = False
            except SSL.ZeroReturnError:
                self.close()
                return
            if end > begin:
                self.quiet = 0
                end = self._deliver(plain, end)
        self._rest = bytes(plain[:end])

    def _deliver(self, plain: memoryview, end: int) -> int:
        """Deliver the frames in `plain[:end]`; gives how much of an unfinished one is left at its beginning."""
        runs, taken = unframed(plain[:end])
        receiver, self._owner.delivering = self._owner.receiver, self
        try:
            for size, run in runs:
                if not self.over:  # the receiver may have stopped us
                    self._hand_over(receiver, size, run)
            receiver.burst_ended()
        except Exception:  # noqa: BLE001 - one fault must not cost the connection
            self._log.failure("burst_failed endpoint={endpoint}", endpoint=self.endpoint)
        finally:
            self._owner.delivering = None
        plain[: end - taken] = bytes(plain[taken:end])
        return end - taken

    def _hand_over(self, receiver: IDatagramReceiver, size: int, run: memoryview) -> None:
        try:
            deliver(receiver, self.endpoint, size, run)
        except Exception:  # noqa: BLE001 - as above
            self._log.failure("datagram_failed endpoint={endpoint}", endpoint=self.endpoint)

    def pause(self, why: object) -> None:
        """Read nothing more, so that TCP slows the other end down, until each who has a reason has said `resume`."""
        if not self._pauses and not self.over:
            self.transport.pauseProducing()  # type: ignore[union-attr]  # bytes came by it
        self._pauses.add(why)

    def resume(self, why: object) -> None:
        """See `pause`."""
        if why in self._pauses:
            self._pauses.discard(why)
            if not self._pauses and not self.over:
                self.transport.resumeProducing()  # type: ignore[union-attr]  # as in `pause`

    # --- out ---------------------------------------------------------------------------------

    def send(self, frame: bytes, most: int = QUEUE_BYTES, urgent: bool = False) -> bool:
        """Send a frame, or keep it until there is room; False when whoever writes had better wait. Beyond `most` bytes it is lost."""
        self.quiet = 0
        if self.peer is not None and not self._full and not self.queued:
            self._write(frame)
            return True
        if self.queued + len(frame) > most or self.over:
            self.dropped += 1
        else:
            (self._urgent if urgent else self._queue).append(frame)
            self.queued += len(frame)
        return self.queued < HOLD_BYTES

    def _write(self, frame: bytes) -> None:
        assert self._tls is not None
        try:
            self._tls.send(frame)
            transport: Any = self.transport
            transport.write(self._tls.bio_read(len(frame) + 4096))  # a record adds 22 bytes to 16 kB
            if not self._full:
                transport.doWrite()  # at once, as UDP does; what the kernel does not take goes when it does
        except SSL.Error as problem:
            self.fail(reason_of(problem))

    def _flush(self) -> None:
        """Send what OpenSSL has to say by itself."""
        while self._tls is not None:
            try:
                self.transport.write(self._tls.bio_read(RECORD_BYTES))  # type: ignore[union-attr]  # as in _through
            except SSL.Error:  # nothing (more)
                return

    def pauseProducing(self) -> None:
        """Twisted's buffer is full."""
        self._full = True

    def resumeProducing(self) -> None:
        """It is empty again."""
        self._full = False
        while self.queued and not self._full and self.peer is not None and not self.over:
            frame = (self._urgent or self._queue).popleft()
            self.queued -= len(frame)
            self._write(frame)
        if self.queued <= LOW_BYTES:
            self._owner.drained(self)

    def stopProducing(self) -> None:
        """`connectionLost` follows."""

    # --- end ---------------------------------------------------------------------------------

    def close(self) -> None:
        """End it in good order: the other end sees that nothing more comes."""
        if self.over:
            return
        if self._tls is not None:
            with suppress(SSL.Error):
                self._tls.shutdown()
            self._flush()
        transport: Any = self.transport
        self._forget()
        if transport is not None:
            transport.unregisterProducer()
            transport.loseConnection()

    def fail(self, problem: IpopError) -> None:
        """End it at once."""
        if self.over:
            return
        self.failure = problem
        transport: Any = self.transport
        self._forget()
        if transport is not None:
            transport.abortConnection()

    def connectionLost(self, reason: Failure = protocol.connectionDone) -> None:
        """TCP is gone."""
        if not self.over:
            self.failure = Unreachable(f"the connection was lost ({reason.getErrorMessage().rstrip('.')})")
            self._forget()

    def _forget(self) -> None:
        self.over = True
        self._tls = self._tunnel = None
        self._queue.clear()
        self._urgent.clear()
        self.queued = 0
        self._owner.ended(self)
