"""From an overlay address or a name to the node that verifiably owns it.

IPv4 addresses and names are registers signed by their owner and read from a majority; an IPv6 address carries the first 80 bits
of its owner's ident, so the ring itself answers. What was found is kept for a while, what was not found for a shorter one.

Where no majority answers, the owner that was found last still counts, for as long as its lease was good: those who are cut off from the
others go on with the addresses that they know.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address

import msgspec

from ipop_tx.core.dht import Dht, RegisterSigner
from ipop_tx.core.lease import LeaseValue, NameValue, lease_key, name_key
from ipop_tx.core.link import Link
from ipop_tx.core.links import Links
from ipop_tx.core.lookup import Lookups
from ipop_tx.core.runtime import Runtime
from ipop_tx.core.tasks import Future, spawn
from ipop_tx.values import Ident, Network
from ipop_tx.wire.address import ident_prefix_of

KEEP_FOUND = 60.0
KEEP_MISSING = 3.0
MOST = 65536
SOON = 0.5
"""Seconds that the registers are given to confirm an owner found earlier: a kernel that asks for a neighbour waits for one second."""


@dataclass(frozen=True, slots=True)
class Owner:
    """Who owns an address or a name. `address` is the IPv4 address, 4 bytes, empty where unknown."""

    ident: Ident
    name: str
    address: bytes
    lasts: float = field(default=0.0, compare=False)
    """Seconds for which the lease is good at least: half its time to live, at which it is renewed."""


class Resolver:
    """Look-ups with a cache; equal questions that are under way are asked once."""

    def __init__(self, network: Network, dht: Dht, signer: RegisterSigner, lookups: Lookups, links: Links, runtime: Runtime) -> None:
        self._network = network
        self._dht = dht
        self._signer = signer
        self._lookups = lookups
        self._links = links
        self._runtime = runtime
        self._cache: dict[str, tuple[float, Owner | None]] = {}
        self._asking: dict[str, Future[Owner | None]] = {}
        self._relied: dict[str, tuple[float, Owner]] = {}
        """The last owner found, and until when it counts while nobody says otherwise."""
        links.on_down.append(self._link_down)

    def resolve(self, target: str) -> Future[Owner | None]:
        """The owner of an IPv4 or IPv6 address or of a name. Fails with `Unavailable` or `Unreachable`."""
        cached = self._cache.get(target)
        if cached is not None and cached[0] > self._runtime.now:
            hit: Future[Owner | None] = Future()
            hit.succeed(cached[1])
            return hit
        asking = self._asking.get(target)
        if asking is None:
            asking = self._asking[target] = spawn(self._ask(target))
            asking.then(lambda done: self._answered(target, done))
        until, owner = self._relied.get(target, (0.0, None))
        return asking if owner is None or until <= self._runtime.now else spawn(self._soon(asking, owner))

    async def _soon(self, asking: Future[Owner | None], before: Owner) -> Owner | None:
        """The answer, if there is one soon; else what it was before."""
        await self._runtime.wait([asking], SOON)
        return asking.result() if asking.done and asking.error is None else before

    def _answered(self, target: str, done: Future[Owner | None]) -> None:
        self._asking.pop(target, None)
        if done.error is None:
            owner = done.result()
            if len(self._cache) >= MOST:
                self._cache.clear()
                self._relied.clear()
            self._cache[target] = (self._runtime.now + (KEEP_FOUND if owner else KEEP_MISSING), owner)
            self._relied.pop(target, None)
            if owner is not None and owner.lasts:
                self._relied[target] = (self._runtime.now + owner.lasts, owner)

    def _link_down(self, link: Link) -> None:
        if not link.parted:
            self.forget(link.ident)

    def forget(self, ident: Ident) -> None:
        """A node is gone: what it owned must be asked for again."""
        self._cache = {target: entry for target, entry in self._cache.items() if entry[1] is None or entry[1].ident != ident}

    async def _ask(self, target: str) -> Owner | None:
        try:
            address = ip_address(target)
        except ValueError:
            return await self._by_name(target)
        if isinstance(address, IPv6Address):
            return await self._by_ipv6(address)
        return await self._by_ipv4(address)

    async def _by_ipv4(self, address: IPv4Address) -> Owner | None:
        if address not in self._network.pool:
            return None
        key = lease_key(self._network, address.packed)
        record = await self._dht.get(key)
        if record is None or not self._signer.authentic(key, record):
            return None
        try:
            value = msgspec.msgpack.decode(record.value, type=LeaseValue)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return None
        return Owner(record.owner, value.name, value.address, record.ttl / 2) if value.address == address.packed else None

    async def _by_name(self, name: str) -> Owner | None:
        key = name_key(self._network, name)
        record = await self._dht.get(key)
        if record is None or not self._signer.authentic(key, record):
            return None
        try:
            value = msgspec.msgpack.decode(record.value, type=NameValue)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return None
        return Owner(record.owner, name, value.address, record.ttl / 2)

    async def _by_ipv6(self, address: IPv6Address) -> Owner | None:
        if address not in self._network.prefix:
            return None
        prefix = ident_prefix_of(address)[:10]
        if self._links.ident[:10] == prefix:
            return Owner(self._links.ident, "", b"")
        for link in self._links:
            if link.ident[:10] == prefix:
                return Owner(link.ident, link.peer.name, b"")
        found = await self._lookups.find(ident_prefix_of(address))
        return Owner(found.owner, "", b"") if found.owner[:10] == prefix else None
