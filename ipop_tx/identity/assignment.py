"""Credentials: who is a member, and which address the authority has assigned to it, for those who have no link to it.

A credential is MessagePack of two certificates (DER): the member's and the admission certificate behind it. The root is every member's own.
It stands in place of key and salt in the record of a lease whose address is assigned, and in what replicas certify.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from functools import lru_cache

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

from ipop_tx.errors import PeerRefused
from ipop_tx.identity import certificates as certs
from ipop_tx.identity.keys import SALT_BYTES, is_p256
from ipop_tx.identity.trust import Trust
from ipop_tx.values import Peer
from ipop_tx.wire import messages as m

NONE = (b"", 0)
RECHECK = 3600.0
"""Seconds after which a credential that was good is checked again."""
REMEMBERED = 512
"""Good credentials of which the next check costs nothing."""


def credential(chain: list[x509.Certificate]) -> bytes:
    """What proves to those who know the root whatever the leaf of `chain` says."""
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
    """Judges credentials."""

    def __init__(self, trust: Trust) -> None:
        self.trust = trust
        self.wall = trust.wall
        self._good: OrderedDict[bytes, tuple[float, Peer]] = OrderedDict()
        """Credentials found good: when, and whose they are."""

    def adopt(self, charter: m.Charter, text: bytes) -> bool:
        """See `Trust.adopt`."""
        adopted = self.trust.adopt(charter, text)
        self._good.clear()
        return adopted

    def admitted(self, proof: bytes) -> Peer | None:
        """The member whose credential this is, if it is good now, or was within the last hour."""
        now = self.wall()
        checked, member = self._good.get(proof, (float("-inf"), None))
        if member is not None and 0 <= now - checked < RECHECK:
            return member
        chain = chain_of(proof)
        if chain is None:
            return None
        try:
            member = self.trust.verify(chain)
        except PeerRefused:
            return None
        self._good[proof] = now, member
        if len(self._good) > REMEMBERED:
            self._good.popitem(last=False)
        return member

    def of(self, proof: bytes) -> tuple[bytes, int]:
        """The address (4 bytes) that the authority has assigned by a credential, and when (Unix seconds); `NONE` if it is no good now."""
        chain = chain_of(proof)
        if chain is None:
            return NONE
        try:
            self.trust.verify(chain)
            facts = certs.facts_of(chain[0])
            return (ipaddress.IPv4Address(facts.address).packed, facts.assigned_at) if facts.address else NONE
        except (PeerRefused, *certs.MALFORMED):
            return NONE
