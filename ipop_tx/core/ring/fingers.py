"""Far links, so that a question crosses the ring in few hops: the quickest member in each half, quarter, eighth, ... of the ring after us.

Candidates come for nothing from the tables that linked members tell (`core.ring.tables`): by the triangle inequality the round trip to a
member's link is at most the sum of both. So near members find each other's near members, as in Pastry (Rowstron and Druschel 2001), and
only one that promises to be quicker costs a handshake. An arc of which nobody knows a member is looked up (Stoica et al. 2001, section
4.3). Links carry both ways: whoever has us as its finger serves as ours if it lies in an arc of ours.
"""

from __future__ import annotations

from ipop_tx.core.ident import clockwise
from ipop_tx.core.links.link import Link
from ipop_tx.core.links.linktable import LinkTable
from ipop_tx.core.ring.lookup import Lookups
from ipop_tx.core.ring.ring import LINKED, Ring
from ipop_tx.core.routing import ahead, arcs, place_of, quickest
from ipop_tx.core.runtime import Runtime
from ipop_tx.errors import IpopError
from ipop_tx.values import IDENT_BITS, IDENT_BYTES, Ident

FIRST_AFTER = 2.0
"""Seconds after joining until the fingers are looked for."""
EVERY = 30.0
"""Seconds between looks at all of them; a sixth of it in the first minute, up to four times as much while nothing changes."""
SLOWEST = 120.0
FIRST_LOOKS = 6
BETTER = 0.8
"""A candidate must promise so much of the present round trip to be tried."""
HOPELESS = 10.0
"""Seconds: a member as slow as that is better than none."""
ATTEMPTS = 2
"""Candidates tried in one look."""
AVOID = 900.0
"""Seconds for which a candidate that was tried is not tried again."""


class Fingers:
    """Looks the fingers up, links to them, and changes them for quicker ones."""

    def __init__(self, ring: Ring, lookups: Lookups, links: LinkTable, runtime: Runtime) -> None:
        self._ring = ring
        self._lookups = lookups
        self._links = links
        self._runtime = runtime
        self._tried: dict[Ident, float] = {}
        self._empty: dict[int, float] = {}
        """When an arc, by its length, was last found empty."""
        ring.on_joined.append(self._begin)

    def _begin(self) -> None:
        self._runtime.background(self._mend_for_ever())

    async def _mend_for_ever(self) -> None:
        await self._runtime.sleep(self._runtime.spread(FIRST_AFTER))
        looks, pause = FIRST_LOOKS if self._ring.fingers else 0, EVERY
        while not self._ring.leaving:
            changed = await self._mend()
            looks += 1
            pause = EVERY if changed else min(2 * pause, SLOWEST)
            await self._runtime.sleep(self._runtime.spread(EVERY / 6 if looks < FIRST_LOOKS else pause))

    async def _mend(self) -> bool:
        """Go through all arcs once; gives whether there was anything to do."""
        ring = self._ring
        now = self._runtime.now
        self._tried = {ident: moment for ident, moment in self._tried.items() if now - moment < AVOID}
        fresh: list[Ident] = []
        promising: list[tuple[float, Ident, Ident | None]] = []
        for low, high in self._arcs():
            best = self._best_link(low, high)
            if best is not None:
                fresh.append(best.ident)
            candidate = self._best_candidate(low, high, BETTER * best.rtt if best is not None else HOPELESS)
            if candidate is not None:
                promising.append((candidate[0] - (best.rtt if best else HOPELESS), candidate[1], candidate[2]))
            elif best is None:
                found = await self._look_up(low, high)
                if found is not None:
                    fresh.append(found)
        changed = bool(promising) or fresh != ring.fingers
        ring.fingers = fresh
        for _, ident, agent in sorted(promising, key=lambda entry: entry[0])[:ATTEMPTS]:
            self._tried[ident] = now
            try:
                await self._links.connect(ident, agent)
            except IpopError:
                self._runtime.count("finger_missing")
        return changed

    def _arcs(self) -> list[tuple[int, int]]:
        ring = self._ring
        if not ring.successors:
            return []
        return list(arcs(place_of(ring.ident), clockwise(ring.ident, ring.successors[:LINKED][-1]) >> (IDENT_BITS - 64)))

    def _best_link(self, low: int, high: int) -> Link | None:
        links, fingers, reach = self._links.by_ident, self._ring.fingers, ahead(low, high)
        inside = [link for link in links.values() if link.placed and ahead(low, link.place) < reach]
        # Who is our finger already is as good as one that is a little quicker, or fingers would change with every measurement.
        best = quickest(((link.rtt or 9.0) * (BETTER if link.ident in fingers else 1.0), link.ident) for link in inside)
        return links[best[1]] if best else None

    def _best_candidate(self, low: int, high: int, limit: float) -> tuple[float, Ident, Ident | None] | None:
        """The member in an arc that promises the least round trip, below `limit` seconds, and through whom we know it."""
        links = self._links.by_ident
        best: tuple[float, Ident, Ident | None] | None = None
        for link in links.values():
            table, rtt = link.table, link.rtt
            if table is None or rtt >= limit:
                continue
            for at in table.within(low, high):
                delay = rtt + table.delay(at)
                if delay < limit and (ident := table.idents[at]) not in links and ident not in self._tried and ident != self._ring.ident:
                    best, limit = (delay, ident, link.ident), delay
        return best

    async def _look_up(self, low: int, high: int) -> Ident | None:
        """Find and link the first member in an arc."""
        length = ahead(low, high)
        now = self._runtime.now
        if now - self._empty.get(length, -AVOID) < AVOID / 3:
            return None
        try:
            found = await self._lookups.find(low.to_bytes(8, "big") + bytes(IDENT_BYTES - 8))
            if found.owner == self._ring.ident or ahead(low, place_of(found.owner)) >= length:
                self._empty[length] = now
                return None
            await self._links.connect(found.owner, found.agent)
        except IpopError:
            self._runtime.count("finger_missing")
            return None
        return found.owner
