"""Invitations: the one line that a newcomer pastes, the key that follows from it, and the record that says what it admits."""

from __future__ import annotations

import base64
import binascii
import hashlib
import ipaddress
import os
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, NamedTuple, NoReturn

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ipop_tx.errors import InvitationRefused, LocalMisuse, PeerRefused
from ipop_tx.identity import certificates as certs
from ipop_tx.identity.keys import PrivateKey, compressed_point_of, key_of_point, sign, signed_by
from ipop_tx.identity.trust import Trust
from ipop_tx.values import Endpoint, key_digest

PREFIX = "ipop1-"
SECRET_BYTES = 16
MOST_ENDPOINTS = 4
MOST_USES = 1000
"""Machines that one invitation may admit."""
LONGEST_NAME = 40
RECORD_BYTES = 1024

_CHECKSUM_BYTES = 3
_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551  # of P-256 (FIPS 186-5)
_ASK = "ask for a new one"
_COPY = "copy the whole line again"
_RECORD_CONTEXT = b"ipop-tx invitation record 1\0"


@dataclass(frozen=True)
class Invitation:
    """The right to join a network, once or as often as its record says. Written as one line that begins with `ipop1-`.

    `secret` is all that gives the right: whoever has the line can join, until it is used up or `expires` (seconds since the epoch).
    """

    network: str
    fingerprint: bytes
    secret: bytes
    expires: int
    endpoints: tuple[Endpoint, ...]

    @classmethod
    def make(cls, root: x509.Certificate, expires: int, endpoints: tuple[Endpoint, ...]) -> Invitation:
        """A new invitation to the network of `root`, with the first four of `endpoints`."""
        name = certs.network_of(root).name
        return cls(name, certs.fingerprint(root), os.urandom(SECRET_BYTES), expires, endpoints[:MOST_ENDPOINTS])

    @classmethod
    def parse(cls, token: str) -> Invitation:
        """Read the line; blanks and line breaks within are forgiven. Raises `InvitationRefused`."""
        text = "".join(token.split())
        if not text.startswith(PREFIX):
            raise InvitationRefused("this is not an invitation", f"an invitation is one line that begins with {PREFIX}")
        encoded = text[len(PREFIX) :]
        try:
            raw = base64.b64decode(encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            raise InvitationRefused("this invitation is mistyped or incomplete", _COPY) from None
        body, checksum = raw[:-_CHECKSUM_BYTES], raw[-_CHECKSUM_BYTES:]
        if len(checksum) < _CHECKSUM_BYTES or _checksum(body) != checksum:
            raise InvitationRefused("this invitation is mistyped or incomplete", _COPY)
        try:
            return _decode(body)
        except (IndexError, ValueError, LocalMisuse):
            raise InvitationRefused("this invitation is of a kind that this version does not know", "use the inviter's version") from None

    def __str__(self) -> str:
        name = self.network.encode()
        parts = [self.secret, self.fingerprint, self.expires.to_bytes(4, "big"), bytes([len(name)]), name]
        body = b"".join([*parts, *map(_endpoint_bytes, self.endpoints)])
        return PREFIX + base64.urlsafe_b64encode(body + _checksum(body)).decode().rstrip("=")

    @cached_property
    def key(self) -> PrivateKey:
        """The P-256 key that follows from the secret (HKDF, RFC 5869)."""
        seed = HKDF(SHA256(), 48, None, b"ipop-tx invitation key 1").derive(self.secret)
        return ec.derive_private_key(int.from_bytes(seed, "big") % (_ORDER - 1) + 1, ec.SECP256R1())

    @property
    def public(self) -> bytes:
        """The key's compressed point, 33 bytes: the name of this invitation in the DHT."""
        return compressed_point_of(self.key.public_key())

    def check_expiry(self, wall: float) -> None:
        """Raise `InvitationRefused` when the invitation has expired."""
        check_expiry(self.expires, wall)


class Wish(NamedTuple):
    """What an invitation is to admit; see `InvitationRecord`."""

    name: str = ""
    appoints: bool = False
    rights: certs.Rights = certs.ORDINARY
    uses: int = 1
    approval: bool = False
    limits: certs.Limits = certs.UNLIMITED


class InvitationRecord(msgspec.Struct, frozen=True, array_like=True):
    """What the register of an invitation's public key holds: what it admits, signed by an admission key."""

    public: bytes
    """The invitation's key, compressed point."""
    name: str
    """The name that the newcomer gets, a pattern with one `*` in it (`named`), or nothing: then it chooses."""
    expires: int
    appoints: bool
    """Whether the newcomer is to admit others."""
    admission: bytes
    """The inviter's admission certificate, DER."""
    signature: bytes = b""
    rights: certs.Rights = certs.ORDINARY
    """What the newcomer is given."""
    uses: Annotated[int, msgspec.Meta(ge=1, le=MOST_USES)] = 1
    """How many machines may join by it."""
    approval: bool = False
    """Whether each must be let in by hand, too."""
    limits: certs.Limits = certs.UNLIMITED
    """To what the newcomer is limited, if it is to admit others."""

    @classmethod
    def make(cls, invitation: Invitation, wish: Wish, admission_key: PrivateKey, admission: x509.Certificate) -> InvitationRecord:
        """The signed record of `invitation`."""
        whom = (wish.name, invitation.expires, wish.appoints, certs.to_der(admission))
        unsigned = cls(invitation.public, *whom, b"", wish.rights, wish.uses, wish.approval, wish.limits)
        return msgspec.structs.replace(unsigned, signature=sign(admission_key, unsigned._signed()))

    @classmethod
    def decode(cls, value: bytes) -> InvitationRecord:
        """Read the register's value. Raises `InvitationRefused`."""
        try:
            return msgspec.msgpack.decode(value, type=cls)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise InvitationRefused("the record of this invitation is damaged", _ASK) from None

    def encode(self) -> bytes:
        """The register's value, at most 1 KiB. Raises `LocalMisuse` beyond that."""
        value = msgspec.msgpack.encode(self)
        if len(value) > RECORD_BYTES:
            raise LocalMisuse("the invitation's record is longer than a register", "choose a shorter name")
        return value

    def verify(self, trust: Trust, wall: float) -> None:
        """Raise `InvitationRefused` unless a key that the authority appointed has signed this, and it is not expired."""
        try:
            admission, root = trust.above(x509.load_der_x509_certificate(self.admission))
            appointed = certs.is_issued_by(admission, root)
            certs.verify_admission_usage(admission, "the inviter's")
            certs.check_dates(admission, wall, "the inviter's")
            key = admission.public_key()
            good = isinstance(key, ec.EllipticCurvePublicKey) and signed_by(key, self._signed(), self.signature)
            key_of_point(self.public)
        except PeerRefused as refusal:
            raise InvitationRefused(f"this invitation is not valid: {refusal.sentence}", _ASK) from refusal
        except certs.MALFORMED:
            _refuse_signature()
        if not (appointed and good):
            _refuse_signature()
        check_expiry(self.expires, wall)

    def named(self, wish: str) -> str:
        """The name of a newcomer that wishes to be called so: its wish, if that fits the pattern; else its wish in place of the `*`."""
        before, star, after = self.name.partition("*")
        if not star:
            return self.name or wish
        return wish if certs.fits(self.name, wish) else f"{before}{wish[: LONGEST_NAME - len(self.name) + 1].strip('-')}{after}"

    def check_limits(self, name: str, trust: Trust) -> None:
        """Raise `InvitationRefused` unless whoever has signed this could let a machine of that name in with these rights itself.

        Whoever grants it may have wider limits, or none.
        """
        limits = certs.limits_of(trust.above(x509.load_der_x509_certificate(self.admission))[0])
        if excess := limits.excess(name, self.rights):
            raise InvitationRefused(f"whoever made this invitation may not grant {excess}", "ask somebody else for one")

    @property
    def inviter(self) -> bytes:
        """The digest of the admission key that has signed this, once `verify` has passed."""
        key = x509.load_der_x509_certificate(self.admission).public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        return key_digest(compressed_point_of(key))

    def _signed(self) -> bytes:
        return _RECORD_CONTEXT + msgspec.msgpack.encode(msgspec.structs.replace(self, admission=b"", signature=b""))


def check_expiry(expires: int, wall: float) -> None:
    """Raise `InvitationRefused` when `expires` has passed."""
    if wall >= expires:
        raise InvitationRefused(f"this invitation expired {_ago(wall - expires)} ago", _ASK)


def _refuse_signature() -> NoReturn:
    raise InvitationRefused("this invitation is not signed by a member that may admit", _ASK)


def _ago(seconds: float) -> str:
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60), ("second", 1)):
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {unit}{'s' * (count > 1)}"
    return "a moment"


def _checksum(body: bytes) -> bytes:
    return hashlib.sha256(body).digest()[:_CHECKSUM_BYTES]


# secret (16) | fingerprint (16) | expires (4) | length of name, name | endpoints, each:
#   4, IPv4 address (4), port (2)  |  6, IPv6 address (16), port (2)  |  0, length, text      (4 and 6: over UDP)
def _decode(body: bytes) -> Invitation:
    at = SECRET_BYTES + certs.FINGERPRINT_BYTES + 5
    end = at + body[at - 1]
    secret, fingerprint, expires = body[:SECRET_BYTES], body[SECRET_BYTES : at - 5], int.from_bytes(body[at - 5 : at - 1], "big")
    if len(body) < end:
        raise ValueError("the name is cut off")
    return Invitation(body[at:end].decode(), fingerprint, secret, expires, _endpoints(body[end:]))


def _endpoints(rest: bytes) -> tuple[Endpoint, ...]:
    endpoints: list[Endpoint] = []
    while rest:
        length = {4: 4, 6: 16}.get(rest[0])
        if length is None:
            end = 2 + rest[1] if rest[0] == 0 else 0
            endpoints.append(Endpoint.parse(rest[2:end].decode()))
        else:
            end = length + 3
            if len(rest) < end:
                raise ValueError("an endpoint is cut off")
            host, port = ipaddress.ip_address(rest[1 : 1 + length]), int.from_bytes(rest[1 + length : end], "big")
            endpoints.append(Endpoint("udp", str(host), port))
        rest = rest[end:]
    return tuple(endpoints)


def _endpoint_bytes(endpoint: Endpoint) -> bytes:
    if endpoint.scheme == "udp":
        address = ipaddress.ip_address(endpoint.host)
        return bytes([address.version]) + address.packed + endpoint.port.to_bytes(2, "big")
    text = str(endpoint).encode()
    return bytes([0, len(text)]) + text
