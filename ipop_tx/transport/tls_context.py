"""What TLS connections between members are made of: TLS 1.3, both ends show certificates, strangers are sent away before any of that.

The two ends check each other exactly as the sessions inside do: `TlsCredentials.verify` looks at chain, dates, usage and the ident in the
subject alternative name. Which member stands at an endpoint nobody knows before it has spoken, so there is no name to compare (RFC 9525):
that it is *a* member is enough here. Who it is, the DTLS session inside proves.

A server shows its certificate before it has seen the client's. So that it does not show it to whoever connects, a client *knocks*: its
ClientHello carries, as the name of an application protocol (ALPN, RFC 7301), 8 random bytes and an HMAC over them under the fingerprint
of the network's root, which every member and every invitation knows. It costs the server one HMAC to hang up on anybody else. The
fingerprint is no secret among those who have been guests, so the knock keeps scanners out, and the certificates keep out everybody.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from dataclasses import dataclass, field
from typing import Protocol

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from OpenSSL import SSL
from OpenSSL.crypto import X509

from ipop_tx.errors import IpopError, PeerRefused, RemoteMisbehaviour
from ipop_tx.values import Peer

HELLO_BYTES = 4096
"""No ClientHello of ours is longer."""

_KNOCK = b"ipop/"
_NONCE_BYTES, _MAC_BYTES = 8, 16
_RECORD_BYTES = 5
_HANDSHAKE_RECORD = 22
_PARTIAL_WRITE = 1  # SSL_MODE_ENABLE_PARTIAL_WRITE, which pyOpenSSL sets and does not name
_SUITES = b"TLS_AES_128_GCM_SHA256:TLS_CHACHA20_POLY1305_SHA256:TLS_AES_256_GCM_SHA384"


class TlsCredentials(Protocol):
    """What a node shows to its peers, and how it judges what they show."""

    @property
    def private_key(self) -> EllipticCurvePrivateKey:
        """The P-256 key of the first certificate of `chain`."""

    @property
    def chain(self) -> list[x509.Certificate]:
        """Leaf first, then the certificates that lead to the root."""

    @property
    def lapsed(self) -> bool:
        """Whether this node is a member no more, and so takes everybody for a guest."""

    @property
    def fingerprint(self) -> bytes:
        """Of the network's first root, or the one that a guest was told."""

    @property
    def fingerprints(self) -> set[bytes]:
        """All by which others may know the network."""

    def verify(self, chain: list[x509.Certificate]) -> Peer:
        """Who has shown `chain` (leaf first; possession of its key is proven). Raises `PeerRefused` with the reason."""


class TlsContexts:
    """Makes the connections of one node, without sockets: bytes go in by `bio_write` and come out by `bio_read`."""

    def __init__(self, credentials: TlsCredentials) -> None:
        self._credentials = credentials
        self.refresh()

    def refresh(self) -> None:
        """The credentials show another chain now: so do all connections that begin from now on."""
        credentials = self._credentials
        self._context = SSL.Context(SSL.TLS_METHOD)
        self._context.set_min_proto_version(SSL.TLS1_3_VERSION)
        self._context.set_options(SSL.OP_NO_TICKET)
        self._context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        self._context.set_mode(SSL.MODE_RELEASE_BUFFERS)
        self._context.clear_mode(_PARTIAL_WRITE)  # a frame is encrypted whole: what comes of it goes to memory, where there is room
        self._context.set_tls13_ciphersuites(_SUITES)
        self._context.use_privatekey(credentials.private_key)
        leaf, *above = credentials.chain
        self._context.use_certificate(leaf)
        for certificate in above:
            self._context.add_extra_chain_cert(certificate)
        self._context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, self._shown)

    def client(self) -> SSL.Connection:
        """Our end of a connection that we make."""
        connection = self._connection(inward=False)
        connection.set_alpn_protos([knock(self._credentials.fingerprint)])
        connection.set_connect_state()
        return connection

    def server(self) -> SSL.Connection:
        """Our end of a connection that somebody makes to us."""
        connection = self._connection(inward=True)
        connection.set_accept_state()
        return connection

    def _connection(self, inward: bool) -> SSL.Connection:
        connection = SSL.Connection(self._context, None)
        connection.set_app_data(_Shown(inward))
        return connection

    def _shown(self, connection: SSL.Connection, certificate: X509, problem: int, depth: int, good: int) -> bool:
        """OpenSSL goes through the peer's chain, root first and leaf last; its own findings are left to the credentials.

        They decide here, while a client has not shown its own certificate yet.
        """
        shown: _Shown = connection.get_app_data()
        try:
            shown.chain[depth] = certificate.to_cryptography()
            if good and depth == 0:
                shown.peer = self._credentials.verify([shown.chain[level] for level in sorted(shown.chain)])
                if shown.peer.guest and not shown.inward and not self._credentials.lapsed:
                    raise PeerRefused("whoever answers there is no member")
        except PeerRefused as refusal:
            shown.refusal = refusal
        except (ValueError, TypeError, LookupError, UnsupportedAlgorithm, x509.InvalidVersion):
            shown.refusal = PeerRefused("the peer's certificate is malformed")
        return shown.refusal is None

    def may_enter(self, received: bytes | bytearray) -> bool | None:
        """Whether what a client has sent so far begins with a ClientHello that knocks; None while that cannot be said yet."""
        answers = [knocked(fingerprint, received) for fingerprint in self._credentials.fingerprints]
        return True if True in answers else answers[0]


@dataclass(slots=True)
class _Shown:
    """What the peer of one connection has shown."""

    inward: bool
    """Whether it came to us, so that it may be a guest."""
    chain: dict[int, x509.Certificate] = field(default_factory=dict)
    peer: Peer | None = None
    refusal: PeerRefused | None = None


def peer_of(connection: SSL.Connection) -> Peer:
    """Who stands at the other end, after the handshake. Raises `PeerRefused`."""
    shown: _Shown = connection.get_app_data()
    shown.chain.clear()
    if shown.peer is None:
        raise shown.refusal or PeerRefused("the peer showed no certificate that could be checked")
    return shown.peer


def knock(fingerprint: bytes) -> bytes:
    """A fresh knock; two of them show nobody that they belong to one network."""
    nonce = os.urandom(_NONCE_BYTES)
    return _KNOCK + nonce + _mac(fingerprint, nonce)


def knocked(fingerprint: bytes, received: bytes | bytearray) -> bool | None:
    """See `TlsContexts.may_enter`."""
    if received[:1] not in (b"", bytes([_HANDSHAKE_RECORD])):
        return False
    if len(received) < _RECORD_BYTES:
        return None
    end = _RECORD_BYTES + int.from_bytes(received[3:5], "big")
    if end > HELLO_BYTES:
        return False
    if len(received) < end:
        return None
    at = received.find(_KNOCK, 0, end)
    nonce = bytes(received[at + len(_KNOCK) :][:_NONCE_BYTES])
    mac = bytes(received[at + len(_KNOCK) + _NONCE_BYTES : end][:_MAC_BYTES])
    return at >= 0 and hmac.compare_digest(mac, _mac(fingerprint, nonce))


def _mac(fingerprint: bytes, nonce: bytes) -> bytes:
    return hmac.new(fingerprint, b"ipop-tx tls 1" + nonce, hashlib.sha256).digest()[:_MAC_BYTES]


def reason_of(problem: SSL.Error, connection: SSL.Connection | None = None) -> IpopError:
    """Why OpenSSL ended a connection, as an error of ours."""
    if connection is not None and connection.get_app_data().refusal is not None:
        refusal: PeerRefused = connection.get_app_data().refusal
        return refusal
    entries = problem.args[0] if problem.args and isinstance(problem.args[0], list) else []
    said = ", ".join(str(entry[-1]) for entry in entries) or "the connection was cut"
    return RemoteMisbehaviour(f"TLS failed ({said})")
