"""From an overlay address or a name to the node that verifiably owns it.

IPv4 addresses and names are registers signed by their owner and certified by a majority; an IPv6 address carries the first 80 bits
of its owner's ident, so the ring itself answers. What was found is kept for a while, what was not found for a shorter one. An owner
that says it is none any more is believed in that, and the look-up is repeated until there is another one.

Where no majority answers, the owner that was found last still counts, for as long as its lease was good, and an owner that was not known is
asked for its own certificate: those who are cut off from the others go on reaching each other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address

from ipop_tx.core.dht.dht import Dht
from ipop_tx.core.dht.records import lease_key
from ipop_tx.core.dht.showing import Showing
from ipop_tx.core.events import AddressMoved
from ipop_tx.core.leases.lease import LeaseValue, NameValue, name_key, value_of
from ipop_tx.core.links.link import Link
from ipop_tx.core.links.linktable import LinkTable
from ipop_tx.core.ring.lookup import Lookups
from ipop_tx.core.runtime import Runtime
from ipop_tx.core.tasks import Future, first, settled, spawn
from ipop_tx.errors import IpopError
from ipop_tx.values import Ident, Network
from ipop_tx.wire.address import ident_prefix_of
from ipop_tx.wire.registers import Record

KEEP_FOUND = 60.0
KEEP_MISSING = 3.0
MOST = 65536
FRESH = 1.0
"""Seconds for which an answer is good enough to doubt what a member says of its own address."""
FOLLOWED = 30.0
"""Seconds for which the next owner of an address is looked for that its owner has taken back."""
FIRST_PAUSE, LONGEST_PAUSE = 0.15, 2.0
"""Seconds between these look-ups: twice as long each time."""
FOLLOWED_AT_ONCE = 64
SHOWN_AFTER = 1.0
"""Seconds that a majority is given before the owner is asked."""
SHOWN_LASTS = 120.0
"""Seconds for which what the owner has proven counts, while it is asked again."""
SOON = 0.5
"""Seconds that the registers are given to confirm an owner found earlier: a kernel that asks for a neighbour waits for one second."""


@dataclass(frozen=True, slots=True)
class Owner:
    """Who owns an address or a name. `address` is the IPv4 address, 4 bytes, empty where unknown."""

    ident: Ident
    name: str
    address: bytes
    lasts: float = field(default=0.0, compare=False)
    """Seconds for which this counts while no majority confirms it: half the lease's time to live, at which it is renewed, or less."""
    key: bytes = field(default=b"", compare=False)
    """The digest of the owner's key, where a record of its was read."""


@dataclass(slots=True)
class _Entry:
    """What is known of an address or a name."""

    asked: float
    until: float
    owner: Owner | None
    last: Ident | None
    """Who had it last, as far as we know; also where nobody has it now."""


class Resolver:
    """Look-ups with a cache; equal questions that are under way are asked once."""

    def __init__(self, network: Network, dht: Dht, showing: Showing, lookups: Lookups, links: LinkTable, runtime: Runtime) -> None:
        self.claimants: Callable[[bytes], list[Ident]] = lambda address: []
        """Linked members that say of themselves that they have an IPv4 address (4 bytes)."""
        self._network = network
        self._dht = dht
        self._showing = showing
        self._lookups = lookups
        self._links = links
        self._runtime = runtime
        self._cache: dict[str, _Entry] = {}
        self._following: set[str] = set()
        self._asking: dict[str, Future[Owner | None]] = {}
        self._relied: dict[str, tuple[float, Owner]] = {}
        """The last owner found, and until when it counts while nobody says otherwise."""
        links.on_down.append(self._link_down)

    def resolve(self, target: str) -> Future[Owner | None]:
        """The owner of an IPv4 or IPv6 address or of a name. Fails with `Unavailable` or `Unreachable`."""
        cached = self._cache.get(target)
        if cached is not None and cached.until > self._runtime.now:
            return settled(cached.owner)
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
            owner, now = done.result(), self._runtime.now
            if len(self._cache) >= MOST:
                self._cache.clear()
                self._relied.clear()
            before = self._cache.get(target)
            last = owner.ident if owner else before.last if before else None
            self._cache[target] = _Entry(now, now + (KEEP_FOUND if owner else KEEP_MISSING), owner, last)
            self._relied.pop(target, None)
            if owner is not None and owner.lasts:
                self._relied[target] = (now + owner.lasts, owner)
            self._note_move(before, owner)

    def _note_move(self, before: _Entry | None, owner: Owner | None) -> None:
        """Tell the driver when an address has another owner than the last one, or none any more."""
        known = owner or (before.owner if before else None)
        if before is None or before.last is None or known is None or not known.address:
            return
        if (owner.ident if owner else None) != before.last:
            self._runtime.emit(AddressMoved(known.address, before.last, owner.ident if owner else None))

    def _link_down(self, link: Link) -> None:
        if not link.parted:
            self.forget(link.ident)

    def forget_all(self) -> None:
        """Everything must be asked for again."""
        self._relied.clear()
        for entry in self._cache.values():
            entry.until = self._runtime.now

    def forget(self, ident: Ident) -> None:
        """A node is gone: what it owned must be asked for again."""
        for entry in self._cache.values():
            if entry.owner is not None and entry.owner.ident == ident:
                entry.until = self._runtime.now

    async def owns(self, ident: Ident, address: IPv4Address) -> bool:
        """Whether an address is leased to a member; when we believed that it is another's, the register is asked again."""
        owner = await self.resolve(str(address))
        entry = self._cache.get(str(address))
        if (owner is None or owner.ident != ident) and entry is not None and self._runtime.now - entry.asked > FRESH:
            entry.until = self._runtime.now
            owner = await self.resolve(str(address))
        return owner is not None and owner.ident == ident

    def disowned(self, ident: Ident, address: bytes) -> None:
        """A member says that an address (4 bytes) is not its own any more: look for the next owner, if we had resolved it to that one."""
        target = str(IPv4Address(address))
        entry = self._cache.get(target)
        if entry is None or entry.last != ident or (entry.owner is not None and entry.owner.ident != ident):
            return
        self._relied.pop(target, None)
        if target not in self._following and len(self._following) < FOLLOWED_AT_ONCE:
            self._following.add(target)
            self._runtime.background(self._follow(target, ident)).then(lambda done: self._following.discard(target))

    async def _follow(self, target: str, former: Ident) -> None:
        pause, give_up = FIRST_PAUSE, self._runtime.now + FOLLOWED
        while self._runtime.now < give_up:
            entry = self._cache.get(target)
            if entry is not None:
                entry.until = min(entry.until, self._runtime.now)
            try:
                owner = await self.resolve(target)
            except IpopError:
                owner = None
            if owner is not None and owner.ident != former:
                return
            await self._runtime.sleep(pause)
            pause = min(LONGEST_PAUSE, 2 * pause)

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
        record, lasts = await self._read(key, self.claimants(address.packed))
        value = value_of(record, LeaseValue)
        if record is None or value is None or value.address != address.packed:
            return None
        return Owner(record.owner, value.name, value.address, lasts, self._dht.signer.key(record))

    async def _by_name(self, name: str) -> Owner | None:
        key = name_key(self._network, name)
        record, lasts = await self._read(key, [])
        value = value_of(record, NameValue)
        if record is None or value is None:
            return None
        return Owner(record.owner, name, value.address, lasts, self._dht.signer.key(record))

    async def _read(self, key: bytes, claimants: list[Ident]) -> tuple[Record | None, float]:
        """What a majority says, or if none does so soon, what the owner can prove that one has said; and for how many seconds it counts."""
        reading = spawn(self._dht.certified(key))
        await self._runtime.wait([reading], SHOWN_AFTER)
        if not reading.done:
            shown = spawn(self._showing.find(key, claimants))
            await first([reading, shown])
            if not reading.done and shown.error is None and (record := shown.result()) is not None:
                self._runtime.count("resolved_by_owner")
                return record, SHOWN_LASTS
        record = self._dht.certificates.live(await reading)
        return (record, record.ttl / 2) if record is not None else (None, 0.0)

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
