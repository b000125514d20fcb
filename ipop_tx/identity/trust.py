"""Whom a node believes: the network's root, or what the authority's charters have made of it.

A charter (`wire.trust.Charter`) names the authority's certificates, the keys that sign its orders and how many of them must, and the
admission certificates that it has given. Each follows from the one before: it must be signed as that one demands *and* as it demands
itself, and by every root that it brings in. So whoever starts at any root goes through all later charters, and none that is replaced
is ever taken again (as The Update Framework follows its root, specification 1.0, 5.3).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

from ipop_tx.errors import PeerRefused
from ipop_tx.identity import certificates as certs
from ipop_tx.identity.appointed import digest_of
from ipop_tx.identity.keys import PrivateKey, compressed_point_of, key_of_point, sign, signed_by
from ipop_tx.values import Network, Peer
from ipop_tx.wire import messages as m

_MOST_SIGNATURES = 16


class Trust:
    """What one node has been told by its authority so far."""

    def __init__(self, anchor: x509.Certificate, wall: Callable[[], float] = time.time) -> None:
        """`anchor` is the root of this node's own certificate."""
        self.anchor = anchor
        self.wall = wall
        self.network: Network = certs.network_of(anchor)
        self.charter: m.Charter | None = None
        self._past: list[tuple[tuple[bytes, ...], int]] = [((_point(anchor),), 1)]
        """Whose signatures counted, and how many were needed: at the beginning, and by each charter."""
        self._roots: list[tuple[x509.Certificate, int]] = [(anchor, 0)]
        self._listed: dict[bytes, x509.Certificate] = {}

    @property
    def signers(self) -> tuple[tuple[bytes, ...], int]:
        """The keys (compressed points) that sign orders now, and how many of them must."""
        return self._past[-1]

    @property
    def roots(self) -> list[tuple[x509.Certificate, int]]:
        """The authority's certificates, and until when each counts for what no charter lists; 0 for the one in use."""
        return self._roots

    def ordered(self, text: bytes, signature: bytes, ever: bool = False) -> bool:
        """Whether the authority has signed a text: by its keys of today, or with `ever` by those of any time."""
        return any(enough(text, signature, *signers) for signers in (self._past if ever else self._past[-1:]))

    def adopt(self, charter: m.Charter, text: bytes) -> bool:
        """Take the next charter; gives whether it is that. `text` is what is signed of it."""
        try:
            roots = [(x509.load_der_x509_certificate(der), until) for der, until in charter.roots]
            listed = {digest_of(one): one for one in map(x509.load_der_x509_certificate, charter.admissions)}
            if charter.network != self.network.ident or not self._follows(charter, text, [root for root, _ in roots]):
                return False
        except (PeerRefused, *certs.MALFORMED):
            return False
        self.charter, self._roots, self._listed = charter, roots, listed
        self._past.append((charter.keys, charter.threshold))
        return True

    def _follows(self, charter: m.Charter, text: bytes, roots: list[x509.Certificate]) -> bool:
        if not roots or charter.threshold > len(set(charter.keys)) or any(certs.network_of(root) != self.network for root in roots):
            return False
        known = [root for root, _ in self._roots]
        brought = [root for root in roots if root not in known]
        if self.charter is None and self.anchor in roots and certs.is_later_root(self.anchor):
            brought = [self.anchor]  # the charter that has brought in the root with which this node began
        elif not self.ordered(text, charter.signature) or charter.number != (self.charter.number if self.charter else 0) + 1:
            return False
        new = all(enough(text, charter.signature, (_point(root),), 1) for root in brought)
        return new and enough(text, charter.signature, charter.keys, charter.threshold)

    # --- certificates ------------------------------------------------------------------------

    def above(self, admission: x509.Certificate) -> list[x509.Certificate]:
        """What the authority says of an admission certificate's key by now: the certificate that counts, and its root.

        Raises `PeerRefused` for a key that the charter does not list, unless a root that is on its way out has signed it.
        """
        if self.charter is None:
            return [admission, self.anchor]
        listed = self._listed.get(digest_of(admission))
        leaving = [root for root, until in self._roots if until and self.wall() < until]
        for one, roots in ((listed, [root for root, _ in self._roots]), (admission, leaving)):
            for root in roots if one is not None else ():
                if one is not None and certs.is_issued_by(one, root):
                    return [one, root]
        raise PeerRefused("the key that admitted it is not one that the network's authority lists")

    def verify(self, chain: Sequence[x509.Certificate], whose: str = "the peer's", at: float | None = None) -> Peer:
        """Who is proven by `chain` (leaf, admission certificate; a root behind them is only compared while there is no charter).

        Raises `PeerRefused`.
        """
        wall = self.wall() if at is None else at
        try:
            if self.charter is None or len(chain) not in (2, 3):
                full = chain if len(chain) != 2 else [*chain, self.anchor]
                return certs.verify_member(full, self.anchor, wall, whose)
            if len(chain) == 3 and certs.network_of(chain[2]).ident != self.network.ident:
                raise PeerRefused(f"{whose} certificate is for another network", f"this one is {self.network.name!r}")
            above = self.above(chain[1])
        except certs.MALFORMED:
            raise PeerRefused(f"{whose} certificate is malformed") from None
        return certs.verify_member([chain[0], *above], above[1], wall, whose)


def enough(text: bytes, signature: bytes, keys: Sequence[bytes], threshold: int) -> bool:
    """Whether so many different ones of `keys` (compressed points) have signed."""
    found = signatures_in(signature)
    return sum(key in found and _good(key, text, found[key]) for key in set(keys)) >= threshold > 0


def signatures_in(signature: bytes) -> dict[bytes, bytes]:
    """Who has signed, and what: none in bytes that make no sense."""
    if not signature:
        return {}
    try:
        return dict(msgspec.msgpack.decode(signature, type=list[tuple[bytes, bytes]])[:_MOST_SIGNATURES])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return {}


def add_signature(signature: bytes, key: PrivateKey, text: bytes) -> bytes:
    """The signatures so far, and one more by `key`."""
    found = {**signatures_in(signature), compressed_point_of(key.public_key()): sign(key, text)}
    return msgspec.msgpack.encode(sorted(found.items()))


def _good(key: bytes, text: bytes, signature: bytes) -> bool:
    try:
        return signed_by(key_of_point(key), text, signature)
    except ValueError:
        return False


def _point(certificate: x509.Certificate) -> bytes:
    key = certificate.public_key()
    assert isinstance(key, EllipticCurvePublicKey)  # else it would not be a network's root
    return compressed_point_of(key)
