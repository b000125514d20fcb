"""Decentralised DHCP: the leases of IPv4 addresses, and of names, that a node holds for itself and for the guests behind it.

A lease is a register that can be created only while it is empty, so an address has one owner wherever a majority of its
replicas can be reached, and none gives it away elsewhere. Candidates follow an order that ident and holder fix, and the address that
a holder had last is remembered in a register of its own: who comes back without state asks for the old address first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from itertools import islice
from typing import Any, NoReturn, TypeVar

import msgspec

from ipop_tx.core.dht.dht import Dht
from ipop_tx.core.dht.records import key_of, lease_key
from ipop_tx.core.dht.showing import Showing
from ipop_tx.core.events import LeaseGained, LeaseLost
from ipop_tx.core.runtime import Runtime
from ipop_tx.core.tasks import Future, all_settled, first, spawn
from ipop_tx.errors import Conflict, IpopError, LocalMisuse, PoolExhausted
from ipop_tx.values import Ident, Network, short
from ipop_tx.wire.registers import Record

T = TypeVar("T")
V = TypeVar("V")

TRIES = 200
"""Candidates tried before the pool counts as full."""
SWEPT = 4096
"""Pools of up to so many addresses are searched to the last one; in larger ones, as many tries find a free one unless almost none is."""
WIDEST = 64
"""Candidates looked at in parallel: one at first, then four times as many each time, so that an almost full pool is soon searched."""
REMEMBERED = 30 * 86400.0
"""Seconds for which it is remembered which address a holder had last."""
HOLDER_BYTES = 64
"""The longest name of a guest."""
RETRY_ASSIGNED = 60.0
"""Seconds between attempts to get the address that the authority has assigned, while another node has it with the same right."""
RETRY = 10.0
"""Seconds at most between attempts to renew a lease that could not be renewed: so soon a partition that heals shows who lost an address."""


class LeaseValue(msgspec.Struct, frozen=True, array_like=True):
    """What a lease's register holds; the owner is the record's. `holder` is empty for the node itself, else names one of its guests."""

    address: bytes
    name: str
    holder: bytes = b""


class NameValue(msgspec.Struct, frozen=True, array_like=True):
    """What a name's register holds."""

    address: bytes


def name_key(network: Network, name: str) -> bytes:
    """The register of a node's name; names differ in more than case."""
    return key_of("name", network.ident, name.lower().encode())


def memory_key(network: Network, ident: Ident, holder: bytes) -> bytes:
    """The register that remembers which address a holder had last."""
    return key_of("held", network.ident, ident + holder)


def candidates(pool: IPv4Network, seed: bytes) -> Iterator[bytes]:
    """Host addresses of the pool in an order that the seed fixes; the network's own and the broadcast address are left out."""
    usable = pool.num_addresses - 2
    drawn = [int.from_bytes(hashlib.sha256(seed + number.to_bytes(4, "big")).digest()[:8], "big") % usable for number in range(TRIES)]
    swept = ((drawn[0] + step) % usable for step in range(usable if usable <= SWEPT else 0))
    for offset in dict.fromkeys([*drawn, *swept]):
        yield (int(pool.network_address) + 1 + offset).to_bytes(4, "big")


@dataclass(slots=True)
class Rivals:
    """What is to be done about other nodes that use an address of ours: called with the address and the other node's ident."""

    taken_over: Callable[[bytes, Ident], None] = lambda address, loser: None
    """The authority has assigned to us what the other one held."""
    lost: Callable[[bytes, Ident], None] = lambda address, winner: None
    """We have given up what the other one holds."""
    gone: Callable[[bytes], None] = lambda address: None
    """An address (the only argument) is not ours any more, whoever has it next."""


class Lease:
    """Claims, renews and releases one holder's address, and its name if it has one."""

    def __init__(
        self, ident: Ident, holder: bytes, name: str, network: Network, dht: Dht, showing: Showing, runtime: Runtime, rivals: Rivals
    ) -> None:
        self.holder = holder
        self.name = name
        self.address: bytes | None = None
        self.problem = ""
        """Why there is no address, in a sentence; empty when there is one."""
        self.name_problem = ""
        self.until = float("-inf")
        """When the lease ends unless it is renewed, by this node's clock."""
        self.assigned = dht.signer.assigned if not holder else b""
        """The address that the authority has assigned to this node, which comes before all others; guests have none."""
        self._name_waits = False
        """Whether the name is not registered only because its register could not be reached."""
        self.on_gained: Callable[[], None] = lambda: None
        self.former: Callable[[Ident, bytes, bytes], Awaitable[bool]] | None = None
        """Asks another node, which has leased an address to the same guest, to give it up: (node, address, holder)."""
        self._ident = ident
        self._network = network
        self._dht = dht
        self._showing = showing
        self._runtime = runtime
        self._rivals = rivals
        self._turn: Future[None] | None = None
        self._wake = Future[None]()
        self._overridden: Ident | None = None
        """Whose address we have taken by the authority's assignment, and not told yet."""
        self._running = self._going = False
        self._attempt: Future[bytes] | None = None
        self._held: bytes | None = None
        self._wish: bytes | None = None
        self._avoid: Collection[bytes] = ()
        self._ttl = 86400.0

    def start(
        self, held: bytes | None, wish: bytes | None, ttl: float, avoid: Collection[bytes] = (), after: Future[None] | None = None
    ) -> None:
        """Claim an address and keep it: the one held before, else the wish, else the first free one. `ttl` is in seconds.

        Addresses to `avoid` are not taken. `after` is what has to be over before.
        """
        self._held, self._wish, self._ttl, self._avoid = held, wish, ttl, avoid
        if not self._running:
            self._running = True
            self._runtime.background(self._keep_for_ever(after))

    async def _keep_for_ever(self, after: Future[None] | None) -> None:
        if after is not None:
            await all_settled([after])
        while self._running:
            try:
                self._attempt = spawn(self.renew() if self.address else self.claim())
                await self._attempt
                wait = self._ttl / 2 if self.address == (self.assigned or self.address) else min(RETRY_ASSIGNED, self._ttl / 2)
            except PoolExhausted as error:
                self.problem, wait = str(error), 60.0
            except IpopError as error:
                self.problem, wait = f"no address yet: {error}", 1.0
                if self.address is not None:
                    self.problem, wait = f"the lease could not be renewed: {error}", min(RETRY, self._ttl / 20)
            wait = min(wait, RETRY) if self._name_waits else wait
            self._wake = Future()
            await first([self._runtime.sleep(self._runtime.spread(wait)), self._wake])

    async def _alone(self, work: Coroutine[Any, None, T]) -> T:
        """One thing at a time: two writes of ours to one register would take each other for a rival's."""
        while self._turn is not None:
            await self._turn
        task = spawn(work)
        if not task.done:
            task.then(self._over)
            self._turn = first([task])
        return await task

    def _over(self, done: Future[Any]) -> None:
        self._turn = None

    async def claim(self, wish: bytes | None = None) -> bytes:
        """Lease an address. Raises `PoolExhausted`, `Unavailable`, `Unreachable`."""
        return await self._alone(self._claim(wish))

    async def _claim(self, wish: bytes | None) -> bytes:
        for address in await self._preferred(wish):
            other = await self._obtain(address)
            if other is None or (await self._is_handed_over(address, other) and await self._obtain(address) is None):
                return await self._gained(address)
        every, width = candidates(self._network.pool, self._ident + self.holder), 1
        order = (address for address in every if address not in self._avoid)
        problem: IpopError | None = None
        while batch := list(islice(order, width)):
            asked = {address: spawn(self._dht.get(lease_key(self._network, address))) for address in batch}
            while asked:
                await first(list(asked.values()))
                address = next(address for address, done in asked.items() if done.done)
                done = asked.pop(address)
                if isinstance(done.error, IpopError):
                    problem = done.error
                elif await self._take(address, done.result()):
                    return await self._gained(address)
            width = min(WIDEST, 4 * width)
        raise problem or PoolExhausted(f"no free address was found in {self._network.pool}", "release leases that are not used")

    async def _preferred(self, wish: bytes | None) -> list[bytes]:
        """The addresses that come before all others."""
        known = [self.assigned, self._held, wish, self._wish]
        if self._held is None:
            known.insert(1, await self._remembered())
        good = (address for address in dict.fromkeys(known) if address and address not in self._avoid)
        return [address for address in good if IPv4Address(address) in self._network.pool]

    async def _remembered(self) -> bytes | None:
        value = value_of(await self._dht.get(memory_key(self._network, self._ident, self.holder)), LeaseValue)
        return value.address if value is not None else None

    async def _obtain(self, address: bytes) -> Record | None:
        """Make or renew the lease of an address, unless it is another's: then gives the other's record.

        Several times, since a write of ours that was given up may come to its end meanwhile, or another's change what we have read.
        """
        for _ in range(3):
            current = await self._dht.get(lease_key(self._network, address))
            if await self._take(address, current):
                return None
            if current is not None and not self._is_ours(current) and not self._takes_over(address, current):
                return current
        raise Conflict(f"the lease of {IPv4Address(address)} changes all the time", "try again")

    async def _take(self, address: bytes, current: Record | None) -> bool:
        """Make or renew the lease of an address whose register holds `current`; False when it is another's.

        The authority's assignment makes it ours (`Dht.compare_and_set`).
        """
        key, until = lease_key(self._network, address), self._runtime.now + self._ttl
        if current is not None and not self._is_ours(current):
            if not self._takes_over(address, current):
                return False
            self._overridden = current.owner
        try:
            await self._put(key, current, LeaseValue(address, self.name, self.holder), self._ttl)
        except Conflict:
            self._overridden = None
            return False
        self.until = until
        self._showing.keep(key)
        if self._overridden is not None and address == self.assigned:  # now, or by an attempt before that was not answered
            self._rivals.taken_over(address, self._overridden)
            self._overridden = None
        return True

    def _takes_over(self, address: bytes, current: Record) -> bool:
        return address == self.assigned and self._dht.signer.takes_over(lease_key(self._network, address), current)

    async def _is_handed_over(self, address: bytes, current: Record) -> bool:
        """Whether another node had the address for the same guest, and has given it up to us."""
        value = value_of(current, LeaseValue)
        if current.owner == self._ident or value is None or not self.holder or value.holder != self.holder:
            return False
        return self.former is not None and await self.former(current.owner, address, self.holder)

    def _is_ours(self, record: Record) -> bool:
        value = value_of(record, LeaseValue)
        return record.owner == self._ident and (value is None or value.holder == self.holder)

    async def _gained(self, address: bytes) -> bytes:
        self.address, self._held, self.problem = address, address, ""
        if not self._going:
            self._runtime.emit(LeaseGained(address, self.holder))
            self.on_gained()
        await self._claim_name()
        self._runtime.background(self._remember(address))
        return address

    async def _remember(self, address: bytes) -> None:
        """Only a convenience: without it another address may be first when this node's disk is lost."""
        key = memory_key(self._network, self._ident, self.holder)
        value = LeaseValue(address, self.name, self.holder)
        try:
            current = await self._dht.get(key)
            if current is None or current.value != msgspec.msgpack.encode(value):
                await self._put(key, current, value, REMEMBERED)
        except IpopError:
            self._runtime.count("lease_not_remembered")

    async def renew(self) -> bytes:
        """Extend the lease. Raises `Conflict` when somebody else holds the address now."""
        return await self._alone(self._renew())

    async def _renew(self) -> bytes:
        if self.address is None:
            raise LocalMisuse("there is no lease to renew")
        if self.assigned and self.address != self.assigned and await self._move(self.address):
            return self.assigned
        address = self.address
        other = await self._obtain(address)
        if other is not None:
            self._lose(address, other)
        self.problem = self._unassigned()
        await self._claim_name()
        return address

    def _lose(self, address: bytes, current: Record) -> NoReturn:
        self.address = self._held = None
        self._wake.succeed(None)
        why = "the authority has assigned it to that one" if self._dht.signer.is_assigned(current) else "its lease here had run out"
        whose = "another guest of this node" if current.owner == self._ident else f"node {short(current.owner)}"
        reason = f"{IPv4Address(address)} belongs to {whose} now ({why}); another address is taken"
        self._runtime.emit(LeaseLost(address, reason, self.holder))
        self._gone(address)
        if current.owner != self._ident:
            self._rivals.lost(address, current.owner)
        raise Conflict(reason)

    def _gone(self, address: bytes) -> None:
        self._showing.drop(lease_key(self._network, address))
        self._rivals.gone(address)

    def claims(self, address: bytes) -> bool:
        """Whether it has this address, or is about to get it back."""
        return address == self.address or (self.address is None and self._running and address in (self._held, self.assigned))

    async def check(self) -> None:
        """See whether the address is still ours, and renew or give it up if not. Raises as `renew`."""
        if self.address is not None:
            current = await self._dht.get(lease_key(self._network, self.address))
            if self.address is not None and (current is None or not self._is_ours(current)):
                await self.renew()

    async def _move(self, old: bytes) -> bool:
        """Go over to the address that the authority has assigned, if it can be had now."""
        if await self._obtain(self.assigned) is not None:
            return False
        await self._gained(self.assigned)
        self._gone(old)
        self._runtime.background(self._give_back(lease_key(self._network, old)))
        return True

    def _unassigned(self) -> str:
        if self.address == (self.assigned or self.address):
            return ""
        return f"{IPv4Address(self.assigned)} is assigned to this node, but to another one too: ask who admits to take one back"

    async def _claim_name(self) -> None:
        """Names are a convenience: a failure is told. A name that is another's is tried again with the next renewal, any other soon."""
        if not self.name or self.address is None:
            return
        key = name_key(self._network, self.name)
        try:
            current = await self._dht.get(key)
            if current is None or current.owner == self._ident:
                await self._put(key, current, NameValue(self.address), self._ttl)
                self._showing.keep(key)
            else:
                raise Conflict(f"the name {self.name} belongs to node {short(current.owner)}", "choose another name for this node")
            self.name_problem, self._name_waits = "", False
        except IpopError as error:
            self._name_waits = not isinstance(error, Conflict)
            self.name_problem = f"the name {self.name} is not registered: {error}"

    async def release(self, after: Future[None] | None = None) -> None:
        """Give address and name back, as far as the network can be reached; also those that are just being claimed.

        `after` is the release of the same holder's lease before, whose end is to be told first.
        """
        self._running, self._going = False, True
        if after is not None:
            await all_settled([after])
        if self._attempt is not None:
            await all_settled([self._attempt])
        while self._turn is not None:
            await self._turn
        self._going = False
        address, self.address = self.address, None
        if address is None:
            return
        self._gone(address)
        keys = [lease_key(self._network, address), *([name_key(self._network, self.name)] if self.name else [])]
        for key in keys:
            self._showing.drop(key)
            await self._give_back(key)
        self._runtime.emit(LeaseLost(address, "it was released", self.holder))

    async def _put(self, key: bytes, current: Record | None, value: LeaseValue | NameValue, ttl: float) -> None:
        """Write over what the register held when it was read. Raises `Conflict`."""
        encoded = msgspec.msgpack.encode(value)
        if current is None:
            await self._dht.create(key, encoded, ttl)
        else:
            await self._dht.compare_and_set(key, current.version, encoded, ttl)

    async def _give_back(self, key: bytes) -> None:
        current = await self._dht.get(key)
        if current is not None and current.owner == self._ident:
            await self._dht.delete(key, current.version)


class Leases:
    """The leases that this node holds: its own, and those of the guests behind it by their holder's name."""

    def __init__(self, ident: Ident, name: str, network: Network, dht: Dht, showing: Showing, runtime: Runtime) -> None:
        self.rivals = Rivals()
        self._parts = (network, dht, showing, runtime, self.rivals)
        self._ident = ident
        self.own = Lease(ident, b"", name, *self._parts)
        self.guests: dict[bytes, Lease] = {}
        self.former: Callable[[Ident, bytes, bytes], Awaitable[bool]] | None = None
        """See `Lease.former`."""
        self._leaving: dict[bytes, Future[None]] = {}

    def hold(
        self, holder: bytes, name: str, wish: bytes | None, ttl: float, held: bytes | None = None, avoid: Collection[bytes] = ()
    ) -> Lease:
        """Claim an address for a guest and keep it; see `LeaseGained`. The name may be empty. Nothing changes if it has a lease already.

        A lease that the same holder is just giving back comes to its end first, so that it does not take the new one with it.

        Raises `LocalMisuse` for a holder that is empty or longer than 64 bytes.
        """
        if not 0 < len(holder) <= HOLDER_BYTES:
            raise LocalMisuse(f"a guest is named by 1 to {HOLDER_BYTES} bytes, not {len(holder)}")
        lease = self.guests.get(holder)
        if lease is None:
            lease = self.guests[holder] = Lease(self._ident, holder, name, *self._parts)
            lease.former = self.former
            lease.start(held, wish, ttl, avoid, self._leaving.get(holder))
        return lease

    def all(self) -> list[Lease]:
        """Our own, and those of our guests."""
        return [self.own, *self.guests.values()]

    async def give_up(self, holder: bytes) -> None:
        """Give a guest's address back. Unknown holders are fine; one that is under way already comes to its end."""
        lease, going = self.guests.pop(holder, None), self._leaving.get(holder)
        if lease is not None:
            going = spawn(lease.release(going))
            self._leaving[holder] = going
        if going is None:
            return
        try:
            await going
        finally:
            if self._leaving.get(holder) is going:
                del self._leaving[holder]

    async def release(self) -> None:
        """Give back all that this node holds, as far as the network can be reached."""
        guests = await all_settled([spawn(self.give_up(holder)) for holder in list(self.guests)])
        await self.own.release()
        for done in guests:
            done.result()


def value_of(record: Record | None, kind: type[V]) -> V | None:
    """What a register holds; None where that is nothing, or nonsense."""
    try:
        return msgspec.msgpack.decode(record.value, type=kind) if record is not None else None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
