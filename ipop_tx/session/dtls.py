"""DTLS 1.2 as the handshake (RFC 6347): mutual P-256 certificates, a cookie for strangers, keys from the exporter (RFC 5705)."""

from __future__ import annotations

from collections import deque
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from OpenSSL import SSL
from OpenSSL.crypto import X509
from zope.interface import implementer

from ipop_tx.errors import IpopError, LocalMisuse, PeerRefused, RemoteMisbehaviour, Unreachable
from ipop_tx.interfaces import ISession, ISessionFactory
from ipop_tx.session.hello import CookieJar, hello_verify_request, parse_client_hello, split_records
from ipop_tx.session.renewal import BLOCK_BYTES, Chain
from ipop_tx.session.sealed import Algorithm, SealedChannel, sealed_index
from ipop_tx.values import Peer

MTU = 1200
"""No handshake datagram is longer; fits every path that IPv6 allows, with a relay's header."""

GIVE_UP_AFTER = 10.0
"""Seconds from the first flight after which a handshake has failed."""
REPEAT_AFTER, REPEAT_GROWTH, MOST_REPEATS = 0.4, 1.3, 8
"""Seconds after which a flight is repeated that has brought nothing, by what factor longer each time, and how often."""

_EXPORTER_LABEL = b"EXPORTER-ipop-tx-1"
_AES = b"ECDHE-ECDSA-AES128-GCM-SHA256"
_CHACHA = b"ECDHE-ECDSA-CHACHA20-POLY1305"
_DTLS_1_2 = 0xFEFD
_OP_PRIORITIZE_CHACHA = 1 << 21  # SSL_OP_PRIORITIZE_CHACHA: take ChaCha20 when it is the client's first choice.


class DtlsCredentials(Protocol):
    """What a node shows to its peers, and how it judges what they show."""

    @property
    def private_key(self) -> EllipticCurvePrivateKey:
        """The P-256 key of the first certificate of `chain`."""

    @property
    def chain(self) -> list[x509.Certificate]:
        """Leaf first, then the certificates that lead to the root."""

    def verify(self, chain: list[x509.Certificate]) -> Peer:
        """Who has shown `chain` (leaf first; possession of its key is proven). Raises `PeerRefused` with the reason."""


@lru_cache(maxsize=1)
def has_aes() -> bool:
    """Whether this machine's processor has AES instructions."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return True
    return any("aes" in line.split() for line in lines if line.startswith(("flags", "Features")))


@implementer(ISession)
class DtlsSession:
    """One end of a DTLS handshake and the sealed channel that follows it. Made by `DtlsSessionFactory`, or without handshake by `renew`."""

    def __init__(self, connection: SSL.Connection | None, initiated: bool, now: float) -> None:
        self.established = False
        self.failure: IpopError | None = None
        self.initiated = initiated
        self.opening = b""
        self.peer: Peer | None = None
        self.local_index = 0
        self.tag = b""
        self.shown: dict[int, x509.Certificate] = {}
        self.judged: Peer | None = None
        self._connection: SSL.Connection | None = connection
        self._channel: SealedChannel | None = None
        self._algorithm = Algorithm.AES_128_GCM
        self._chain: Chain | None = None
        self._outgoing: deque[bytes] = deque()
        self._deadline: float | None = None
        """When OpenSSL wants to retransmit, by its timer of 1, 2, 4 s, or we give up."""
        self._flight: list[bytes] = []
        self._repeat_at: float | None = None
        self._repeat_gap = REPEAT_AFTER
        self._repeats = 0
        self._give_up_at = now + GIVE_UP_AFTER

    @property
    def channel(self) -> SealedChannel | None:
        """The sealed channel, once established."""
        return self._channel

    @property
    def datagrams_sealed(self) -> int:
        """How many datagrams were sealed; a link makes a new session before 2**32."""
        return self._channel.datagrams_sealed if self._channel else 0

    def receive(self, now: float, datagram: bytes | memoryview) -> None:
        """Take a handshake datagram. After the handshake only a repeated last flight of the client has an effect."""
        if self._connection is None or self.failure is not None or not datagram:
            return
        self._connection.bio_write(bytes(datagram))
        self.advance(now)

    def poll_transmit(self) -> bytes | None:
        """The next handshake datagram to send, at most `MTU` bytes, or None."""
        return self._outgoing.popleft() if self._outgoing else None

    def poll_timeout(self) -> float | None:
        """When `handle_timeout` wants to be called, or None."""
        return min((moment for moment in (self._deadline, self._repeat_at) if moment is not None), default=None)

    def handle_timeout(self, now: float) -> None:
        """Repeat the last flight, or what OpenSSL finds due by the real clock; give up `GIVE_UP_AFTER` seconds after the start."""
        if self._repeat_at is not None and now >= self._repeat_at:
            self._repeat(now)
        if self._deadline is None or now < self._deadline or self._connection is None:
            return
        if now >= self._give_up_at:
            self._fail(Unreachable("the peer did not finish the handshake in time"))
            return
        try:
            self._connection.DTLSv1_handle_timeout()
        except SSL.Error as problem:
            self._fail(_reason(problem))
            return
        self._flush(now)

    def _repeat(self, now: float) -> None:
        """The same datagrams once more: who has got them drops them as replays, and where much gets lost OpenSSL's timer is too slow."""
        self._outgoing.extend(self._flight)
        self._repeats += 1
        self._repeat_gap *= REPEAT_GROWTH
        self._repeat_at = now + self._repeat_gap if self._repeats < MOST_REPEATS else None

    def protect(self, kind: int, payload: bytes | memoryview) -> bytes:
        """Seal one datagram for the peer. Raises `LocalMisuse` before the session is established."""
        if self._channel is None:
            raise LocalMisuse("a session that is not established cannot seal")
        return self._channel.protect(kind, payload)

    def unprotect(self, datagram: bytes | memoryview) -> tuple[int, bytes]:
        """Open one sealed datagram. Raises `BadDatagram`, and `LocalMisuse` before the session is established."""
        if self._channel is None:
            raise LocalMisuse("a session that is not established cannot open")
        return self._channel.unprotect(datagram)

    @property
    def renewable(self) -> bool:
        """Whether `renew` can still be called."""
        return self._chain is not None

    def offer(self) -> bytes:
        """Our public key for the renewal. Raises `LocalMisuse` when this session cannot be renewed (any more)."""
        if self._chain is None:
            raise LocalMisuse("this session cannot be renewed", "make a handshake")
        return self._chain.offer()

    def renew(self, public: bytes) -> DtlsSession:
        """The session that follows. Raises `LocalMisuse` as `offer` does, and `BadMessage` for a public key that is none."""
        if self._chain is None:
            raise LocalMisuse("this session cannot be renewed", "make a handshake")
        initiated, block = self._chain.follow(public)
        self._chain = None
        session = DtlsSession(None, initiated, 0.0)
        session.judged = self.peer
        session._use(block, self._algorithm)
        return session

    def _peer_has_keys(self) -> None:
        """The peer uses its keys, so it will not ask again for our last flight: 84 kB can go."""
        self._connection = self._repeat_at = None
        self._flight = []

    def close(self) -> None:
        """Forget the keys, and all that is not yet sent. Idempotent."""
        self.established = False
        self._channel = self._chain = self._connection = self._deadline = self._repeat_at = None
        self._outgoing.clear()

    def advance(self, now: float) -> None:
        """Let OpenSSL go on with what it was fed, and collect what it wants to send."""
        connection = self._connection
        if connection is None:
            return
        try:
            if not self.established:
                connection.do_handshake()
                self._establish(connection)
            while self.established and connection.recv(65536):
                pass  # Nothing travels as DTLS application data; an honest peer sends none.
        except (SSL.WantReadError, SSL.ZeroReturnError):
            pass  # Both are the ordinary end of what was fed.
        except SSL.Error as problem:
            if not self.established and self.failure is None:
                self.failure = _reason(problem)
        self._flush(now)

    def refused(self, reason: IpopError) -> None:
        """Our own verification of the peer has failed; OpenSSL tells the peer by an alert."""
        self.failure = self.failure or reason

    def _establish(self, connection: SSL.Connection) -> None:
        if self.judged is None:
            self._fail(PeerRefused("the peer showed no certificate that could be checked"))
            return
        chacha = "CHACHA20" in (connection.get_cipher_name() or "")
        algorithm = Algorithm.CHACHA20_POLY1305 if chacha else Algorithm.AES_128_GCM
        self._use(connection.export_keying_material(_EXPORTER_LABEL, BLOCK_BYTES, None), algorithm)

    def _use(self, block: bytes, algorithm: Algorithm) -> None:
        """Take the keys of a block (`renewal.BLOCK_BYTES`): the session is established."""
        client_key, server_key, self.tag = block[:32], block[32:64], block[72:80]
        to_server, to_client = sealed_index(block[64:68]), sealed_index(block[68:72])
        if self.initiated:
            self.local_index = to_client
            self._channel = SealedChannel(client_key, server_key, to_server, to_client, algorithm, self._peer_has_keys)
        else:
            self.local_index = to_server
            self._channel = SealedChannel(server_key, client_key, to_client, to_server, algorithm, self._peer_has_keys)
        self._algorithm = algorithm
        self._chain = Chain(block[80:])
        self.peer = self.judged
        self.shown.clear()  # 20 kB for each peer
        self.established = True

    def _flush(self, now: float) -> None:
        connection = self._connection
        if connection is None:
            return
        fresh = split_records(_drain(connection), MTU)
        self._outgoing.extend(fresh)
        if fresh:
            self._flight, self._repeats, self._repeat_gap = fresh, 0, REPEAT_AFTER
            self._repeat_at = now + REPEAT_AFTER
        self._deadline = None
        if self.failure is not None or (self.established and self.initiated):
            self._repeat_at = None
            self._connection = None  # The client's last flight is answered already, nobody will ask for it again.
        elif not self.established:
            left = connection.DTLSv1_get_timeout()
            self._deadline = self._give_up_at if left is None else min(now + left, self._give_up_at)

    def _fail(self, failure: IpopError) -> None:
        self.failure = failure
        self.established = False
        self._channel = self._connection = self._deadline = self._repeat_at = None


@implementer(ISessionFactory)
class DtlsSessionFactory:
    """Makes the DTLS sessions of one node."""

    def __init__(self, credentials: DtlsCredentials) -> None:
        self._credentials = credentials
        self._cookies = CookieJar()
        self.refresh()

    def refresh(self) -> None:
        """The credentials show another chain now: so do all handshakes that begin from now on."""
        self._client_context = self._context(0)
        self._server_context = self._context((SSL.OP_COOKIE_EXCHANGE or 0) | SSL.OP_CIPHER_SERVER_PREFERENCE | _OP_PRIORITIZE_CHACHA)
        # Whether OpenSSL accepts the cookie is our decision too, and was taken before a connection was made.
        self._server_context.set_cookie_generate_callback(lambda connection: bytes(32))
        self._server_context.set_cookie_verify_callback(lambda connection, cookie: True)
        self._vouched_context = self._context(SSL.OP_CIPHER_SERVER_PREFERENCE | _OP_PRIORITIZE_CHACHA)
        """For those of whom no cookie is asked."""

    def initiate(self, now: float) -> DtlsSession:
        """Begin a handshake; its first flight waits in `poll_transmit`."""
        connection = _connection(self._client_context)
        connection.set_connect_state()
        session = DtlsSession(connection, True, now)
        connection.set_app_data(session)
        session.advance(now)
        session.opening = connection.client_random() or b""
        return session

    def opening(self, datagram: bytes | memoryview) -> bytes | None:
        """The random bytes of the ClientHello that `datagram` begins with, None for any other. Never raises."""
        hello = parse_client_hello(datagram)
        return hello.random if hello else None

    def accept(self, now: float, datagram: bytes | memoryview, source: bytes | None) -> tuple[DtlsSession | None, bytes | None]:
        """Answer a ClientHello: a session when it carries the cookie for `source` or needs none, else the request for the cookie."""
        hello = parse_client_hello(datagram)
        if hello is None:
            return None, None
        if source is not None and not self._cookies.valid(now, source, hello):
            return None, hello_verify_request(self._cookies.cookie(now, source, hello.random))
        connection = _connection(self._vouched_context if source is None else self._server_context)
        connection.set_accept_state()
        connection.bio_write(bytes(datagram))
        if source is not None:
            try:
                connection.DTLSv1_listen()
            except SSL.Error:
                return None, None
        session = DtlsSession(connection, False, now)
        connection.set_app_data(session)
        session.opening = hello.random
        session.advance(now)
        return session, None

    def _context(self, options: int) -> SSL.Context:
        context = SSL.Context(SSL.DTLS_METHOD)
        context.set_min_proto_version(_DTLS_1_2)
        context.set_options(options | SSL.OP_NO_RENEGOTIATION | SSL.OP_NO_QUERY_MTU | SSL.OP_NO_TICKET)
        context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        context.set_cipher_list(b":".join([_AES, _CHACHA] if has_aes() else [_CHACHA, _AES]))
        context.use_privatekey(self._credentials.private_key)
        leaf, *above = self._credentials.chain
        context.use_certificate(leaf)
        for certificate in above:
            context.add_extra_chain_cert(certificate)
        context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, self._shown)
        return context

    def _shown(self, connection: SSL.Connection, certificate: X509, problem: int, depth: int, good: int) -> bool:
        """OpenSSL goes through the peer's chain, root first and leaf last. Its own findings are left to `credentials`.

        The credentials decide while the handshake still can be refused with an alert.
        """
        session: DtlsSession = connection.get_app_data()
        try:
            session.shown[depth] = certificate.to_cryptography()
            if good and depth == 0:
                session.judged = self._credentials.verify([session.shown[level] for level in sorted(session.shown)])
        except PeerRefused as refusal:
            session.refused(refusal)
        except (ValueError, TypeError, LookupError, UnsupportedAlgorithm, x509.InvalidVersion):
            session.refused(PeerRefused("the peer's certificate is malformed"))
        return session.failure is None


def _connection(context: SSL.Context) -> SSL.Connection:
    connection = SSL.Connection(context, None)
    connection.set_ciphertext_mtu(MTU)
    return connection


def _drain(connection: SSL.Connection) -> bytes:
    flight = b""
    while True:
        try:
            flight += connection.bio_read(65536)
        except SSL.WantReadError:
            return flight


def _reason(problem: SSL.Error) -> IpopError:
    """Why OpenSSL ended the handshake, as an error of ours."""
    entries = problem.args[0] if problem.args and isinstance(problem.args[0], list) else []
    said = ", ".join(str(entry[-1]) for entry in entries) or "OpenSSL gives no reason"
    # A verify callback that says no makes OpenSSL send "internal error"; other implementations name the certificate.
    if "alert" in said and any(word in said for word in ("internal error", "certificate", "unknown ca", "access denied")):
        return PeerRefused("the peer refused this node's certificate", "its log says why")
    return RemoteMisbehaviour(f"the handshake with the peer failed ({said})")
