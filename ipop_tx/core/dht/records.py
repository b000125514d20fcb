"""Records: the keys of registers, and what is signed in them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import msgspec

from ipop_tx.interfaces import IRecordSigner
from ipop_tx.values import Network, Peer
from ipop_tx.wire import messages as m

AuthorityOrder = m.Order | m.Revocation | m.Settings | m.Charter
"""What the authority alone may order, under its signature."""
AuthorityWord = AuthorityOrder | m.AskFlows
"""What the authority alone may say."""


def key_of(kind: str, network: bytes, name: bytes) -> bytes:
    """The key of a register: SHA-256 over the parts, each with its length, cut to 160 bits."""
    digest = hashlib.sha256()
    for part in (kind.encode(), network, name):
        digest.update(len(part).to_bytes(4, "big") + part)
    return digest.digest()[:20]


def lease_key(network: Network, address: bytes) -> bytes:
    """The register of an IPv4 address (4 bytes)."""
    return key_of("lease", network.ident, address)


class RegisterSigner:
    """Signs and checks records: network, key, version, time to live and value are all under the signature."""

    def __init__(self, network: Network, signer: IRecordSigner) -> None:
        self.is_revoked: Callable[[bytes], bool] = lambda key: False
        """Whether a key is trusted no more, by its digest (`links.revocation`)."""
        self.is_out: Callable[[Peer], bool] = lambda peer: False
        """Whether a member is none any more."""
        self._network = network
        self._signer = signer

    @property
    def assigned(self) -> bytes:
        """The IPv4 address (4 bytes) that the authority has assigned to this node; empty if none."""
        return self._signer.assigned

    def record(self, key: bytes, version: int, ttl: float, value: bytes) -> m.Record:
        """A signed record of this node; at the register of the address that is assigned to it, with the proof of that."""
        signer = self._signer.credential if self.assigned and key == lease_key(self._network, self.assigned) else self._signer.signer
        unsigned = m.Record(self._signer.ident, version, max(1, int(ttl)), value, signer, b"")
        return msgspec.structs.replace(unsigned, signature=self._signer.sign(self._text(key, unsigned)))

    def authentic(self, key: bytes, record: m.Record) -> bool:
        """Whether the record's owner signed it for this key in this network."""
        unsigned = msgspec.structs.replace(record, signature=b"")
        return self._signer.verify(record.signer, self._text(key, unsigned), record.signature) == record.owner

    def is_void(self, record: m.Record) -> bool:
        """Whether its owner was thrown out: then the register counts as empty, and whoever comes may fill it."""
        return self.is_revoked(self.key(record))

    def key(self, record: m.Record) -> bytes:
        """The digest of the owner's key."""
        return self._signer.key(record.signer)

    def overrides(self, key: bytes, record: m.Record, live: m.Record) -> bool:
        """Whether the authority has assigned the address of the lease `key` to the owner of `record`, later than ever to that of `live`."""
        return record.owner != live.owner and self._assigned_at(key, record.signer) > self._assigned_at(key, live.signer)

    def is_assigned(self, record: m.Record) -> bool:
        """Whether a record carries a good proof that the authority has assigned an address to its owner."""
        return bool(self._signer.assignment(record.signer)[0])

    def takes_over(self, key: bytes, live: m.Record) -> bool:
        """Whether a record of this node would override `live`."""
        return live.owner != self._signer.ident and self._assigned_at(key, self._signer.credential) > self._assigned_at(key, live.signer)

    def _assigned_at(self, key: bytes, signer: bytes) -> int:
        address, issued = self._signer.assignment(signer)
        return issued if address and key == lease_key(self._network, address) else 0

    def is_ordered(self, order: AuthorityWord, ever: bool = False) -> bool:
        """Whether this network's authority has signed something that only it may say, by the keys of today, or with `ever` of any time."""
        return order.network == self._network.ident and self._signer.by_authority(order_text(order), order.signature, ever)

    def adopts(self, charter: m.Charter) -> bool:
        """Whether this is the next charter; then its keys count from now on."""
        return self._signer.adopt(charter, order_text(charter))

    def _text(self, key: bytes, unsigned: m.Record) -> bytes:
        return b"ipop-record-1" + self._network.ident + key + m.encode(unsigned)


def order_text(order: AuthorityWord) -> bytes:
    """What the authority signs: each kind in a context of its own, so that none can be shown as another."""
    return _CONTEXTS[type(order)] + m.encode(msgspec.structs.replace(order, signature=b""))


_CONTEXTS: dict[type, bytes] = {
    m.Order: b"ipop-order-1",
    m.Revocation: b"ipop-revocation-1",
    m.Settings: b"ipop-settings-1",
    m.AskFlows: b"ipop-flows-1",
    m.Charter: b"ipop-charter-1",
}
