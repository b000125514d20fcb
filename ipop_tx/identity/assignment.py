"""Which address the authority has assigned to whom: a certificate says it, and a lease's record carries that certificate along.

What stands in such a record in place of key and salt is MessagePack of two certificates (DER): the member's and the admission
certificate behind it. The root is every member's own.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from functools import lru_cache

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

from ipop_tx.errors import PeerRefused
from ipop_tx.identity import certificates as certs
from ipop_tx.identity.keys import SALT_BYTES, is_p256, signed_by

NONE = (b"", 0)


def credential(chain: list[x509.Certificate]) -> bytes:
    """What proves the assignment in the leaf of `chain` to those who know the root."""
    return msgspec.msgpack.encode((certs.to_der(chain[0]), certs.to_der(chain[1])))


@lru_cache(maxsize=512)
def chain_of(proof: bytes) -> tuple[x509.Certificate, x509.Certificate] | None:
    """The certificates in a credential, or None where there are none. Nothing is checked."""
    try:
        leaf, admission = msgspec.msgpack.decode(proof, type=tuple[bytes, bytes])
        return x509.load_der_x509_certificate(leaf), x509.load_der_x509_certificate(admission)
    except certs.MALFORMED:
        return None


def key_and_salt(proof: bytes) -> tuple[EllipticCurvePublicKey, bytes] | None:
    """What the leaf in a credential says of its owner, for the check of a signature; None where it says nothing. Nothing else is checked.

    So a record stays as good as its signature is when certificates end: replicas must agree on it at any time.
    """
    chain = chain_of(proof)
    try:
        if chain is None or not is_p256(key := chain[0].public_key()):
            return None
        salt = certs.facts_of(chain[0]).salt
    except certs.MALFORMED:
        return None
    assert isinstance(key, EllipticCurvePublicKey) and len(salt) == SALT_BYTES
    return key, salt


class Assignments:
    """Judges credentials under one root."""

    def __init__(self, root: x509.Certificate, wall: Callable[[], float]) -> None:
        self._root = root
        self._wall = wall

    def by_authority(self, data: bytes, signature: bytes) -> bool:
        """Whether the root's key made a signature."""
        key = self._root.public_key()
        return isinstance(key, EllipticCurvePublicKey) and signed_by(key, data, signature)

    def of(self, proof: bytes) -> tuple[bytes, int]:
        """The address (4 bytes) that the authority has assigned by a credential, and when (Unix seconds); `NONE` if it is no good now."""
        chain = chain_of(proof)
        if chain is None:
            return NONE
        try:
            certs.verify_member([*chain, self._root], self._root, self._wall())
            address = certs.facts_of(chain[0]).address
            issued = int(chain[0].not_valid_before_utc.timestamp())
            return (ipaddress.IPv4Address(address).packed, issued) if address else NONE
        except (PeerRefused, *certs.MALFORMED):
            return NONE
