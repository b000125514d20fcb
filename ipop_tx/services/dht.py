"""DHTService: registers and names for applications."""

from __future__ import annotations

from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from zope.interface import implementer

from ipop_tx.core import commands as c
from ipop_tx.interfaces import IDHT, IResolver
from ipop_tx.services.chord import ChordProtocol


@implementer(IDHT, IResolver)
class DHTService(Service):
    """The DHT of the network that this node is in. Keys are 20 bytes: `ipop_tx.core.dht.dht.key_of` makes them."""

    name = "dht"

    def __init__(self, protocol: ChordProtocol) -> None:
        self._protocol = protocol

    def get(self, key: bytes) -> Deferred[Any]:
        """The register's `Record`, or None when it is empty."""
        return self._protocol.submit(c.Get(key))

    def create(self, key: bytes, value: bytes, ttl: float) -> Deferred[int]:
        """Fill an empty register; gives its version."""
        return self._protocol.submit(c.Create(key, value, ttl)).addCallback(_version)

    def compare_and_set(self, key: bytes, version: int, value: bytes, ttl: float) -> Deferred[int]:
        """Replace our version; gives the new one."""
        return self._protocol.submit(c.CompareAndSet(key, version, value, ttl)).addCallback(_version)

    def delete(self, key: bytes, version: int) -> Deferred[None]:
        """Empty our register."""
        return self._protocol.submit(c.Delete(key, version))

    def resolve(self, target: str) -> Deferred[Any]:
        """The `Owner` of an address or name, or None."""
        return self._protocol.submit(c.Resolve(target))


def _version(record: Any) -> int:
    return int(record.version)
