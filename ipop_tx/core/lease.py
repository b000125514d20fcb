"""Decentralised DHCP: this node's lease of an IPv4 address, and of its name.

A lease is a register that can be created only while it is empty, so an address has one owner wherever a majority of its
replicas can be reached, and none gives it away elsewhere. Candidates follow an order that the ident fixes: a node that comes
back without its state asks for its old address first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv4Network

import msgspec

from ipop_tx.core.dht import Dht, key_of
from ipop_tx.core.events import LeaseGained, LeaseLost
from ipop_tx.core.runtime import Runtime
from ipop_tx.errors import Conflict, IpopError, LocalMisuse, PoolExhausted
from ipop_tx.values import Ident, Network

TRIES = 200
"""Candidates tried before the pool counts as full."""


class LeaseValue(msgspec.Struct, frozen=True, array_like=True):
    """What a lease's register holds; the owner is the record's."""

    address: bytes
    name: str


class NameValue(msgspec.Struct, frozen=True, array_like=True):
    """What a name's register holds."""

    address: bytes


def lease_key(network: Network, address: bytes) -> bytes:
    """The register of an IPv4 address (4 bytes)."""
    return key_of("lease", network.ident, address)


def name_key(network: Network, name: str) -> bytes:
    """The register of a node's name; names differ in more than case."""
    return key_of("name", network.ident, name.lower().encode())


def candidates(pool: IPv4Network, ident: Ident) -> Iterator[bytes]:
    """Host addresses of the pool in an order that the ident fixes; the network's own and the broadcast address are left out."""
    usable = pool.num_addresses - 2
    for attempt in range(TRIES):
        digest = hashlib.sha256(ident + attempt.to_bytes(4, "big")).digest()
        yield (int(pool.network_address) + 1 + int.from_bytes(digest[:8], "big") % usable).to_bytes(4, "big")
    if usable <= 4 * TRIES:
        for offset in range(usable):
            yield (int(pool.network_address) + 1 + offset).to_bytes(4, "big")


class Leases:
    """Claims, renews and releases this node's address."""

    def __init__(self, ident: Ident, name: str, network: Network, dht: Dht, runtime: Runtime) -> None:
        self.address: bytes | None = None
        self.problem = ""
        """Why there is no address, in a sentence; empty when there is one."""
        self.name_problem = ""
        self.on_gained: Callable[[], None] = lambda: None
        self._ident = ident
        self._name = name
        self._network = network
        self._dht = dht
        self._runtime = runtime
        self._running = False
        self._held: bytes | None = None
        self._wish: bytes | None = None
        self._ttl = 86400.0

    def start(self, held: bytes | None, wish: bytes | None, ttl: float) -> None:
        """Claim an address and keep it: the one held before, else the wish, else the first free one."""
        self._held, self._wish, self._ttl = held, wish, ttl
        if not self._running:
            self._running = True
            self._runtime.background(self._keep_for_ever())

    async def _keep_for_ever(self) -> None:
        while self._running:
            try:
                await (self.renew() if self.address else self.claim())
                wait = self._ttl / 2
            except PoolExhausted as error:
                self.problem, wait = str(error), 60.0
            except IpopError as error:
                self.problem, wait = f"no address yet: {error}", 1.0
                if self.address is not None:
                    self.problem, wait = f"the lease could not be renewed: {error}", min(30.0, self._ttl / 20)
            await self._runtime.sleep(self._runtime.spread(wait))

    async def claim(self) -> bytes:
        """Lease an address. Raises `PoolExhausted`, `Unavailable`, `Unreachable`."""
        preferred = [address for address in (self._held, self._wish) if address and IPv4Address(address) in self._network.pool]
        for address in (*preferred, *candidates(self._network.pool, self._ident)):
            if await self._take(address):
                self._gained(address)
                await self._claim_name()
                return address
        raise PoolExhausted(f"no free address was found in {self._network.pool}", "release leases that are not used")

    async def _take(self, address: bytes) -> bool:
        key = lease_key(self._network, address)
        value = msgspec.msgpack.encode(LeaseValue(address, self._name))
        current = await self._dht.get(key)
        if current is not None and current.owner != self._ident:
            return False
        try:
            if current is None:
                await self._dht.create(key, value, self._ttl)
            else:
                await self._dht.compare_and_set(key, current.version, value, self._ttl)
        except Conflict:
            return False
        return True

    def _gained(self, address: bytes) -> None:
        self.address, self._held, self.problem = address, address, ""
        self._runtime.emit(LeaseGained(address))
        self.on_gained()

    async def renew(self) -> bytes:
        """Extend the lease. Raises `Conflict` when somebody else holds the address now."""
        if self.address is None:
            raise LocalMisuse("there is no lease to renew")
        address = self.address
        if await self._take(address):
            self.problem = ""
            await self._claim_name()
            return address
        self.address = self._held = None
        reason = f"{IPv4Address(address)} belongs to another node now; another address is taken"
        self._runtime.emit(LeaseLost(address, reason))
        raise Conflict(reason)

    async def _claim_name(self) -> None:
        """Names are a convenience: a failure is told, and tried again with the next renewal."""
        if not self._name or self.address is None:
            return
        key = name_key(self._network, self._name)
        value = msgspec.msgpack.encode(NameValue(self.address))
        try:
            current = await self._dht.get(key)
            if current is None:
                await self._dht.create(key, value, self._ttl)
            elif current.owner == self._ident:
                await self._dht.compare_and_set(key, current.version, value, self._ttl)
            else:
                raise Conflict(f"the name {self._name} belongs to node {current.owner.hex()[:8]}", "choose another name for this node")
            self.name_problem = ""
        except IpopError as error:
            self.name_problem = f"the name {self._name} is not registered: {error}"

    async def release(self) -> None:
        """Give address and name back, as far as the network can be reached."""
        self._running = False
        address, self.address = self.address, None
        if address is None:
            return
        keys = [lease_key(self._network, address), *([name_key(self._network, self._name)] if self._name else [])]
        for key in keys:
            current = await self._dht.get(key)
            if current is not None and current.owner == self._ident:
                await self._dht.delete(key, current.version)
        self._runtime.emit(LeaseLost(address, "it was released"))
