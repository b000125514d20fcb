"""Two nodes that use one address: found out, settled by the address's register, told to both.

Nobody is believed. `NotYours` makes the receiver look at the register of an address that it uses; `NotMine` takes back what the
sender itself had, from whoever resolved it, and tells the one who has it now that there was another. So a liar costs a look-up now and
then, and harms its own addresses only.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address

from ipop_tx.core.events import LeaseContested
from ipop_tx.core.leases.lease import Lease, Leases
from ipop_tx.core.leases.resolver import Resolver
from ipop_tx.core.links.link import Link
from ipop_tx.core.links.linktable import LinkTable
from ipop_tx.core.links.rpc import Rpc
from ipop_tx.core.ring.ring import Ring
from ipop_tx.core.runtime import Runtime
from ipop_tx.errors import IpopError
from ipop_tx.values import Ident, short
from ipop_tx.wire import messages as m

LOOK_EVERY = 5.0
"""Seconds between looks whether the ring has changed: then a partition may have healed, and an address been given away."""
CHECKED = 2.0
"""Seconds for which a lease that was checked because somebody said so is not checked again."""
FIRST_PAUSE, LONGEST_PAUSE, GIVE_UP = 5.0, 300.0, 86400.0
"""Seconds between attempts to tell a rival who cannot be reached: twice as long each time; and when to give up."""
TOLD = 60.0
"""Seconds for which one rival about one address is worth one event."""
RECENT = 600.0
"""Seconds for which the node's health speaks of it."""
MOST = 256
"""Rivals remembered."""


@dataclass(frozen=True, slots=True)
class Contest:
    """That an address of ours was, or is, another one's too."""

    when: float
    sentence: str


class Rivalry:
    """Finds rivals for the addresses that this node and its guests use, and tells them."""

    def __init__(self, leases: Leases, resolver: Resolver, ring: Ring, links: LinkTable, rpc: Rpc, runtime: Runtime) -> None:
        self._leases = leases
        self._resolver = resolver
        self._ring = ring
        self._links = links
        self._rpc = rpc
        self._runtime = runtime
        self._seen = float("-inf")
        """When the ring had changed last, when all leases were checked."""
        self._checked: dict[bytes, float] = {}
        self._contests: dict[tuple[bytes, Ident], Contest] = {}
        self._telling: set[tuple[bytes, Ident]] = set()
        leases.rivals.taken_over = lambda address, loser: self._tell(address, loser, m.NotYours(address))
        leases.rivals.lost = self._lost
        leases.rivals.gone = self._gone
        rpc.serve(m.NotYours, self._not_yours)
        rpc.serve(m.NotMine, self._not_mine)
        runtime.background(self._look_for_ever())

    def recent(self) -> list[str]:
        """Sentences about what happened in the last minutes, the latest last."""
        begin = self._runtime.now - RECENT
        return [contest.sentence for contest in self._contests.values() if contest.when > begin]

    # --- looking -----------------------------------------------------------------------------

    async def _look_for_ever(self) -> None:
        while not self._ring.leaving:
            await self._runtime.sleep(LOOK_EVERY)
            changed = self._ring.changed_at
            if self._ring.joined and changed > self._seen and await self._check_all():
                self._seen = changed

    async def _check_all(self) -> bool:
        """Whether the registers of all our leases could be read."""
        good = True
        for lease in self._leases.all():
            good = await self._check(lease) and good
        return good

    async def _check(self, lease: Lease) -> bool:
        try:
            await lease.check()
        except IpopError:
            return lease.address is None  # lost is an answer too
        return True

    # --- telling -----------------------------------------------------------------------------

    def _lost(self, address: bytes, winner: Ident) -> None:
        sentence = f"{IPv4Address(address)} was given to node {short(winner)}, so this node has taken another address"
        self._note(address, winner, sentence)
        self._tell(address, winner, m.NotMine(address, contested=True))

    def _gone(self, address: bytes) -> None:
        """An address is not ours any more, for whatever reason: whoever is linked may have resolved it to us."""
        for link in self._links:
            self._rpc.on_link(link, m.NotMine(address))

    def _tell(self, address: bytes, ident: Ident, message: m.NotYours | m.NotMine) -> None:
        if (address, ident) not in self._telling and len(self._telling) < MOST:
            self._telling.add((address, ident))
            done = self._runtime.background(self._tell_until_heard(ident, message))
            done.then(lambda done: self._telling.discard((address, ident)))

    async def _tell_until_heard(self, ident: Ident, message: m.NotYours | m.NotMine) -> None:
        pause, give_up = FIRST_PAUSE, self._runtime.now + GIVE_UP
        while self._runtime.now < give_up:
            try:
                await self._rpc.call(ident, message)
                return
            except IpopError:
                await self._runtime.sleep(pause)
                pause = min(LONGEST_PAUSE, 2 * pause)

    async def owns(self, ident: Ident, address: IPv4Address) -> bool:
        """Whether an address is leased to a member that uses it; if not, it is told."""
        good = await self._resolver.owns(ident, address)
        link = self._links.by_ident.get(ident)
        if not good and link is not None:
            self._rpc.on_link(link, m.NotYours(address.packed))
        return good

    def disown(self, ident: Ident, address: bytes) -> None:
        """Frames came from a member for an address (4 bytes) that is not ours."""
        link = self._links.by_ident.get(ident)
        if link is not None and not any(lease.claims(address) for lease in self._leases.all()):
            self._rpc.on_link(link, m.NotMine(address))

    # --- being told --------------------------------------------------------------------------

    def _not_yours(self, link: Link, body: m.NotYours) -> m.Done:
        now = self._runtime.now
        for lease in self._leases.all():
            if lease.address == body.address and now - self._checked.get(body.address, float("-inf")) > CHECKED:
                if len(self._checked) >= MOST:
                    self._checked.clear()
                self._checked[body.address] = now
                self._runtime.background(self._check(lease))
        return m.Done()

    def _not_mine(self, link: Link, body: m.NotMine) -> m.Done:
        self._resolver.disowned(link.ident, body.address)
        for lease in self._leases.all() if body.contested else ():
            if lease.address == body.address and self._is_news(body.address, link.ident):
                sentence = f"node {short(link.ident)} used {IPv4Address(body.address)} too, which is this node's, and has given it up"
                self._note(body.address, link.ident, sentence)
                self._runtime.emit(LeaseContested(body.address, link.ident, lease.holder))
        return m.Done()

    def _is_news(self, address: bytes, ident: Ident) -> bool:
        before = self._contests.get((address, ident))
        return before is None or self._runtime.now - before.when > TOLD

    def _note(self, address: bytes, ident: Ident, sentence: str) -> None:
        self._contests.pop((address, ident), None)
        while len(self._contests) >= MOST:
            del self._contests[next(iter(self._contests))]
        self._contests[address, ident] = Contest(self._runtime.now, sentence)
