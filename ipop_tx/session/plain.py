"""A session without cryptography, for simulations: the shape, sizes and timing of the DTLS one, at the price of a checksum."""

from __future__ import annotations

import hashlib
import struct
from collections import deque
from collections.abc import Callable
from random import Random
from zlib import crc32

import msgspec
from zope.interface import implementer

from ipop_tx.errors import BadDatagram, IpopError, LocalMisuse, PeerRefused, Unreachable
from ipop_tx.interfaces import ISession, ISessionFactory
from ipop_tx.session.replay import ReplayWindow
from ipop_tx.session.sealed import sealed_index
from ipop_tx.values import Peer
from ipop_tx.wire.datagram import HEADER, OVERHEAD

FIRST_WAIT = 0.5
"""Seconds until the first retransmission; doubles each time."""
LONGEST_WAIT = 4.0
GIVE_UP_AFTER = 10.0
"""Seconds from the first flight after which a handshake has failed."""

# The flights of DTLS 1.2, one datagram each: 22, number, 32 random bytes of the client, body.
#
#   client                         server
#   HELLO: empty cookie      ->
#                            <-    VERIFY: cookie               stateless
#   HELLO: cookie            ->
#                            <-    SHOW: server random, peer    waits with a timer
#   PROVE: peer              ->                                 the server is established
#                            <-    FINISH                       the client is established; sent anew for each PROVE
_FLIGHT = struct.Struct("!BB32s")
_HANDSHAKE = 22
_ALERT = 21
HELLO, VERIFY, SHOW, PROVE, FINISH = 1, 2, 3, 4, 5
_TAG = struct.Struct("!8sII")


@implementer(ISession)
class PlainSession:
    """One end of the imitated handshake. Made by `PlainSessionFactory`. Runs on `now` alone."""

    def __init__(self, factory: PlainSessionFactory, initiated: bool, now: float, opening: bytes) -> None:
        self.established = False
        self.failure: IpopError | None = None
        self.initiated = initiated
        self.opening = opening
        self.peer: Peer | None = None
        self.local_index = 0
        self.channel = None
        self.tag = b""
        self.datagrams_sealed = 0
        self._factory = factory
        self._send_index = 0
        self._replay = ReplayWindow()
        self._outgoing: deque[bytes] = deque()
        self._server_random = b""
        self._flight = b""
        self._wait = FIRST_WAIT
        self._deadline: float | None = None
        self._give_up_at = now + GIVE_UP_AFTER

    def receive(self, now: float, datagram: bytes | memoryview) -> None:
        """Take a handshake datagram; one that does not belong here has no effect."""
        flight = bytes(datagram)
        if self.failure is not None or len(flight) < _FLIGHT.size:
            return
        first, step, opening = _FLIGHT.unpack_from(flight)
        if opening != self.opening:
            return
        body = flight[_FLIGHT.size :]
        if first == _ALERT and not self.established:
            self._fail(PeerRefused("the peer refused this node's certificate", "its log says why"))
        elif first == _HANDSHAKE and self.initiated and not self.established:
            self._client_step(now, step, body)
        elif first == _HANDSHAKE and not self.initiated and step == PROVE:
            self._server_step(body)

    def poll_transmit(self) -> bytes | None:
        """The next handshake datagram to send, or None."""
        return self._outgoing.popleft() if self._outgoing else None

    def poll_timeout(self) -> float | None:
        """When `handle_timeout` wants to be called, or None."""
        return self._deadline

    def handle_timeout(self, now: float) -> None:
        """Retransmit the last flight; give up `GIVE_UP_AFTER` seconds after the start."""
        if self._deadline is None or now < self._deadline:
            return
        if now >= self._give_up_at:
            self._fail(Unreachable("the peer did not finish the handshake in time"))
            return
        self._wait = min(2 * self._wait, LONGEST_WAIT)
        self._outgoing.append(self._flight)
        self._deadline = min(now + self._wait, self._give_up_at)

    def protect(self, kind: int, payload: bytes | memoryview) -> bytes:
        """Number one datagram for the peer. Raises `LocalMisuse` before the session is established."""
        if not self.established:
            raise LocalMisuse("a session that is not established cannot seal")
        counter = self.datagrams_sealed
        self.datagrams_sealed = counter + 1
        sealed = HEADER.pack(self._send_index, kind, 0, 1, 0, counter) + payload
        return sealed + _TAG.pack(self.tag, crc32(sealed), 0)

    def unprotect(self, datagram: bytes | memoryview) -> tuple[int, bytes]:
        """Check and strip one datagram. Raises `BadDatagram`, and `LocalMisuse` before the session is established."""
        if not self.established:
            raise LocalMisuse("a session that is not established cannot open")
        end = len(datagram) - _TAG.size
        if end < OVERHEAD - _TAG.size:
            raise BadDatagram("a sealed datagram is too short")
        index, kind, _, _, _, counter = HEADER.unpack_from(datagram)
        if index != self.local_index:
            raise BadDatagram("a sealed datagram is for another session")
        if not self._replay.fresh(counter):
            raise BadDatagram("a sealed datagram came twice or too late")
        if _TAG.unpack_from(datagram, end) != (self.tag, crc32(datagram[:end]), 0):
            raise BadDatagram("a sealed datagram is forged or damaged")
        self._replay.accept(counter)
        return kind, bytes(datagram[HEADER.size : end])

    def close(self) -> None:
        """Forget the session. Idempotent."""
        self.established = False
        self._deadline = None
        self._outgoing.clear()

    def send(self, now: float, step: int, body: bytes) -> None:
        """Send a flight, and again until an answer to it comes."""
        self._flight = _FLIGHT.pack(_HANDSHAKE, step, self.opening) + body
        self._outgoing.append(self._flight)
        self._wait = FIRST_WAIT
        self._deadline = min(now + self._wait, self._give_up_at)

    def show(self, now: float, server_random: bytes) -> None:
        """The server's first flight that costs state."""
        self._server_random = server_random
        self.send(now, SHOW, server_random + self._factory.description)

    def _client_step(self, now: float, step: int, body: bytes) -> None:
        if step == VERIFY and not self._server_random:
            self.send(now, HELLO, body)
        elif step == SHOW and not self._server_random and self._judge(body[32:]):
            self._server_random = body[:32]
            self.send(now, PROVE, self._factory.description)
        elif step == FINISH and self._server_random:
            self._establish()

    def _server_step(self, body: bytes) -> None:
        if self.established or self._judge(body):
            self._establish()
            self._outgoing.append(_FLIGHT.pack(_HANDSHAKE, FINISH, self.opening))

    def _judge(self, description: bytes) -> bool:
        try:
            self.peer = msgspec.msgpack.decode(description, type=Peer)
            self._factory.verify(self.peer)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            self._fail(PeerRefused("the peer's certificate is malformed"))
        except PeerRefused as refusal:
            self._fail(refusal)
            self._outgoing.append(_FLIGHT.pack(_ALERT, 0, self.opening))
        return self.failure is None

    def _establish(self) -> None:
        exported = hashlib.sha256(self.opening + self._server_random).digest()
        to_server, to_client, self.tag = sealed_index(exported[:4]), sealed_index(exported[4:8]), exported[8:16]
        self.local_index, self._send_index = (to_client, to_server) if self.initiated else (to_server, to_client)
        self.established = True
        self._deadline = None

    def _fail(self, failure: IpopError) -> None:
        self.failure = failure
        self.peer = None
        self._deadline = None


@implementer(ISessionFactory)
class PlainSessionFactory:
    """Makes the plain sessions of one node, which believes whatever a peer says unless `verify` raises `PeerRefused`."""

    def __init__(self, peer: Peer, random: Random, verify: Callable[[Peer], None] | None = None) -> None:
        self.description = msgspec.msgpack.encode(peer)
        self.verify: Callable[[Peer], None] = verify or (lambda peer: None)
        self._random = random
        self._secret = random.randbytes(8)

    def initiate(self, now: float) -> PlainSession:
        """Begin a handshake; its first flight waits in `poll_transmit`."""
        session = PlainSession(self, True, now, self._random.randbytes(32))
        session.send(now, HELLO, bytes(4))
        return session

    def opening(self, datagram: bytes | memoryview) -> bytes | None:
        """The client's random bytes if `datagram` is a hello, None for any other. Never raises."""
        if len(datagram) < _FLIGHT.size or datagram[0] != _HANDSHAKE or datagram[1] != HELLO:
            return None
        return bytes(datagram[2 : _FLIGHT.size])

    def accept(self, now: float, datagram: bytes | memoryview, source: bytes) -> tuple[PlainSession | None, bytes | None]:
        """Answer a hello: a session when it carries the cookie for `source`, else the request for the cookie."""
        opening = self.opening(datagram)
        if opening is None:
            return None, None
        cookie = crc32(source, crc32(opening + self._secret)).to_bytes(4, "big")
        if bytes(datagram[_FLIGHT.size :]) != cookie:
            return None, _FLIGHT.pack(_HANDSHAKE, VERIFY, opening) + cookie
        session = PlainSession(self, False, now, opening)
        session.show(now, self._random.randbytes(32))
        return session, None
