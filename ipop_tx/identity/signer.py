"""Signatures on what nodes write to the DHT: ECDSA P-256, checked against the ident that key and salt give.

A check costs as much as all else that is done with a record, and the same record is met again and again: at the door, as a replica, when it
is read, when it is handed over. So the last good ones are remembered.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict

from cryptography import x509
from zope.interface import implementer

from ipop_tx.identity.assignment import NONE, Assignments, credential, key_and_salt
from ipop_tx.identity.keys import (
    COMPRESSED_BYTES,
    SALT_BYTES,
    PrivateKey,
    compressed_point_of,
    ident_of,
    key_of_point,
    point_of,
    sign,
    signed_by,
)
from ipop_tx.interfaces import IRecordSigner
from ipop_tx.values import Ident, Peer, key_digest
from ipop_tx.wire import messages as m

REMEMBERED = 1024
"""Signatures found good of which the next check costs nothing; some 200 bytes each."""


@implementer(IRecordSigner)
class RecordSigner:
    """Signs for one node. `signer` is its compressed public point (33 bytes) and its salt (16 bytes)."""

    def __init__(self, private_key: PrivateKey, salt: bytes, assignments: Assignments | None = None, shown: bytes = b"") -> None:
        """`assignments` judges credentials, and `shown` is this node's own credential; without them it is nobody's member."""
        self._key = private_key
        self._assignments = assignments
        public = private_key.public_key()
        self.signer = compressed_point_of(public) + salt
        self.ident = ident_of(point_of(public), salt)
        self._good: OrderedDict[tuple[bytes, bytes, bytes], Ident] = OrderedDict()
        self.credential = shown
        self.assigned = self.assignment(shown)[0]

    def show(self, chain: list[x509.Certificate]) -> None:
        """This node's certificate is another one now."""
        self.credential = credential(chain)

    def sign(self, data: bytes) -> bytes:
        """A signature by this node's key, in DER."""
        return sign(self._key, data)

    def verify(self, signer: bytes, data: bytes, signature: bytes) -> Ident | None:
        """The ident whose key made `signature` over `data`, or None when it is not good."""
        seen = (signer, hashlib.sha256(data).digest(), signature)
        ident = self._good.get(seen)
        if ident is None:
            ident = _owner(signer, data, signature)
            if ident is not None:
                self._good[seen] = ident
                if len(self._good) > REMEMBERED:
                    self._good.popitem(last=False)
        return ident

    def assignment(self, signer: bytes) -> tuple[bytes, int]:
        """The address that the authority has assigned to a signer, and when."""
        if self._assignments is None or len(signer) == COMPRESSED_BYTES + SALT_BYTES:
            return NONE
        return self._assignments.of(signer)

    def key(self, signer: bytes) -> bytes:
        """The digest of the key in a signer, of either kind; empty when there is none."""
        if len(signer) == COMPRESSED_BYTES + SALT_BYTES:
            return key_digest(signer[:COMPRESSED_BYTES])
        found = key_and_salt(signer)
        return key_digest(point_of(found[0])) if found is not None else b""

    def admitted(self, credential: bytes) -> Peer | None:
        """The member whose credential this is; None if it is nobody's."""
        return self._assignments.admitted(credential) if self._assignments is not None else None

    def wall(self) -> float:
        """Seconds since the Unix epoch."""
        return self._assignments.wall() if self._assignments is not None else 0.0

    def by_authority(self, data: bytes, signature: bytes, ever: bool = False) -> bool:
        """Whether the network's authority made `signature` over `data`, with its keys of today or, with `ever`, of any time."""
        return self._assignments is not None and self._assignments.trust.ordered(data, signature, ever)

    def adopt(self, charter: m.Charter, text: bytes) -> bool:
        """Whether this is the authority's next charter; then it counts from now on."""
        return self._assignments is not None and self._assignments.adopt(charter, text)


def _owner(signer: bytes, data: bytes, signature: bytes) -> Ident | None:
    if len(signer) == COMPRESSED_BYTES + SALT_BYTES:
        try:
            key, salt = key_of_point(signer[:COMPRESSED_BYTES]), signer[COMPRESSED_BYTES:]
        except ValueError:
            return None
    else:
        found = key_and_salt(signer)
        if found is None:
            return None
        key, salt = found
    return ident_of(point_of(key), salt) if signed_by(key, data, signature) else None
