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

from ipop_tx.errors import BadDatagram, BadMessage, IpopError, LocalMisuse, PeerRefused, Unreachable
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

# The flights of DTLS 1.2, with its sizes: bytes of UDP payload, measured with OpenSSL and the certificates of two members of a real network
# (a member's chain is leaf, admission certificate and root: about 1.4 kB), whose names and signatures make a difference of some bytes.
#
#   client                         server
#   HELLO: empty cookie      ->                                 152
#                            <-    VERIFY: cookie               60              stateless
#   HELLO: cookie            ->                                 184
#                            <-    SHOW: server random, peer    1200 + 585      waits with a timer
#   PROVE: peer              ->                                 1200 + 520      the server is established
#                            <-    FINISH                       75              the client is established; sent anew for each PROVE
#
# 3976 bytes in 8 datagrams. Each begins with: 22, number of the flight, of this part, count of parts, 32 random bytes of the client.
# The parts joined are: length of the body, body, zeros. As with DTLS a flight is worth nothing until all of it has arrived.
# An alert is 15 bytes there and only its head, 36 bytes, here.
_FLIGHT = struct.Struct("!BBBB32s")
_LENGTH = struct.Struct("!H")
_HANDSHAKE = 22
_ALERT = 21
HELLO, VERIFY, SHOW, PROVE, FINISH = 1, 2, 3, 4, 5
SIZES = {HELLO: (152,), VERIFY: (60,), SHOW: (1200, 585), PROVE: (1200, 520), FINISH: (75,)}
"""Bytes of the datagrams of each flight."""
COOKIE_BYTES = 32
"""What the cookie adds to a hello."""
_TAG = struct.Struct("!8sII")
_CHAIN_BYTES = 32


def _flight(step: int, opening: bytes, body: bytes = b"") -> list[bytes]:
    """The datagrams of a flight. Its body must fit the sizes."""
    sizes = [size + COOKIE_BYTES for size in SIZES[step]] if step == HELLO and body else SIZES[step]
    room = [size - _FLIGHT.size for size in sizes]
    content = (_LENGTH.pack(len(body)) + body).ljust(sum(room), b"\0")
    starts = [sum(room[:part]) for part in range(len(room))]
    heads = [_FLIGHT.pack(_HANDSHAKE, step, part, len(room), opening) for part in range(len(room))]
    return [head + content[start : start + size] for head, start, size in zip(heads, starts, room, strict=True)]


def _body(content: bytes) -> bytes:
    return content[_LENGTH.size :][: _LENGTH.unpack_from(content)[0]]


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
        self._flight: list[bytes] = []
        self._arrived: dict[tuple[int, int], bytes] = {}
        self._chain: bytes | None = None
        self._offered = b""
        self._wait = FIRST_WAIT
        self._deadline: float | None = None
        self._give_up_at = now + GIVE_UP_AFTER

    def receive(self, now: float, datagram: bytes | memoryview) -> None:
        """Take a handshake datagram; one that does not belong here has no effect."""
        flight = bytes(datagram)
        if self.failure is not None or len(flight) < _FLIGHT.size:
            return
        first, step, part, parts, opening = _FLIGHT.unpack_from(flight)
        if opening != self.opening:
            return
        if first == _ALERT and not self.established:
            self._fail(PeerRefused("the peer refused this node's certificate", "its log says why"))
        elif first == _HANDSHAKE and parts == len(SIZES.get(step, ())):
            self._arrived[step, part] = flight[_FLIGHT.size :]
            if all((step, one) in self._arrived for one in range(parts)):
                self._step(now, step, _body(b"".join(self._arrived.pop((step, one)) for one in range(parts))))

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
        self._outgoing.extend(self._flight)
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

    @property
    def renewable(self) -> bool:
        """Whether `renew` can still be called."""
        return self._chain is not None

    def offer(self) -> bytes:
        """Random bytes in place of a public key. Raises `LocalMisuse` when this session cannot be renewed (any more)."""
        if self._chain is None:
            raise LocalMisuse("this session cannot be renewed", "make a handshake")
        self._offered = self._offered or self._factory.random.randbytes(32)
        return self._offered

    def renew(self, public: bytes) -> PlainSession:
        """The session that follows. Raises `LocalMisuse` as `offer` does, and `BadMessage` for what could be no public key."""
        ours = self.offer()
        if len(public) != 32 or public in (ours, bytes(32)):
            raise BadMessage("a renewal has a public key that is none")
        session = PlainSession(self._factory, ours > public, 0.0, max(ours, public))
        session.peer = self.peer
        session._establish((self._chain or b"") + max(ours, public) + min(ours, public))
        self._chain = None
        return session

    def close(self) -> None:
        """Forget the session. Idempotent."""
        self.established = False
        self._chain = None
        self._deadline = None
        self._outgoing.clear()

    def send(self, now: float, step: int, body: bytes) -> None:
        """Send a flight, and again until an answer to it comes."""
        self._flight = _flight(step, self.opening, body)
        self._outgoing.extend(self._flight)
        self._wait = FIRST_WAIT
        self._deadline = min(now + self._wait, self._give_up_at)

    def show(self, now: float, server_random: bytes) -> None:
        """The server's first flight that costs state."""
        self._server_random = server_random
        self.send(now, SHOW, server_random + self._factory.description)

    def _step(self, now: float, step: int, body: bytes) -> None:
        if self.initiated and not self.established:
            self._client_step(now, step, body)
        elif not self.initiated and step == PROVE:
            self._server_step(body)

    def _client_step(self, now: float, step: int, body: bytes) -> None:
        if step == VERIFY and not self._server_random:
            self.send(now, HELLO, body)
        elif step == SHOW and not self._server_random and self._judge(body[32:]):
            self._server_random = body[:32]
            self.send(now, PROVE, self._factory.description)
        elif step == FINISH and self._server_random:
            self._establish(self.opening + self._server_random)

    def _server_step(self, body: bytes) -> None:
        if self.established or self._judge(body):
            self._establish(self.opening + self._server_random)
            self._outgoing.extend(_flight(FINISH, self.opening))

    def _judge(self, description: bytes) -> bool:
        try:
            self.peer = msgspec.msgpack.decode(description, type=Peer)
            self._factory.verify(self.peer)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            self._fail(PeerRefused("the peer's certificate is malformed"))
        except PeerRefused as refusal:
            self._fail(refusal)
            self._outgoing.append(_FLIGHT.pack(_ALERT, 0, 0, 1, self.opening))
        return self.failure is None

    def _establish(self, secret: bytes) -> None:
        exported = hashlib.sha512(secret).digest()
        to_server, to_client, self.tag = sealed_index(exported[:4]), sealed_index(exported[4:8]), exported[8:16]
        self.local_index, self._send_index = (to_client, to_server) if self.initiated else (to_server, to_client)
        self._chain = exported[-_CHAIN_BYTES:]
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
        self.random = random
        self._secret = random.randbytes(8)

    def initiate(self, now: float) -> PlainSession:
        """Begin a handshake; its first flight waits in `poll_transmit`."""
        session = PlainSession(self, True, now, self.random.randbytes(32))
        session.send(now, HELLO, b"")
        return session

    def opening(self, datagram: bytes | memoryview) -> bytes | None:
        """The client's random bytes if `datagram` is a hello, None for any other. Never raises."""
        if len(datagram) < SIZES[HELLO][0] or datagram[0] != _HANDSHAKE or datagram[1] != HELLO:
            return None
        return bytes(datagram[4 : _FLIGHT.size])

    def accept(self, now: float, datagram: bytes | memoryview, source: bytes | None) -> tuple[PlainSession | None, bytes | None]:
        """Answer a hello: a session when it carries the cookie for `source` or needs none, else the request for the cookie."""
        opening = self.opening(datagram)
        if opening is None:
            return None, None
        if source is not None:
            cookie = crc32(source, crc32(opening + self._secret)).to_bytes(4, "big")
            if _body(bytes(datagram[_FLIGHT.size :])) != cookie:
                return None, _flight(VERIFY, opening, cookie)[0]
        session = PlainSession(self, False, now, opening)
        session.show(now, self.random.randbytes(32))
        return session, None
