"""Far links, so that a question crosses the ring in few hops: one for each power of two that reaches beyond the successors."""

from __future__ import annotations

from collections.abc import Iterable

from ipop_tx.core.ident import clockwise, offset
from ipop_tx.core.links import Links
from ipop_tx.core.lookup import Lookups
from ipop_tx.core.ring import Ring
from ipop_tx.core.runtime import Runtime
from ipop_tx.errors import IpopError
from ipop_tx.values import IDENT_BITS, Ident

FIRST_AFTER = 2.0
"""Seconds after joining until the fingers are looked for."""
EVERY = 30.0
"""Seconds between looks at all of them."""


class Fingers:
    """Looks the fingers up and links to them (Stoica et al. 2001, section 4.3)."""

    def __init__(self, ring: Ring, lookups: Lookups, links: Links, runtime: Runtime) -> None:
        self._ring = ring
        self._lookups = lookups
        self._links = links
        self._runtime = runtime
        ring.on_joined.append(self._begin)

    def _begin(self) -> None:
        self._runtime.background(self._mend_for_ever())

    async def _mend_for_ever(self) -> None:
        await self._runtime.sleep(self._runtime.spread(FIRST_AFTER))
        while not self._ring.leaving:
            await self._mend()
            await self._runtime.sleep(self._runtime.spread(EVERY))

    async def _mend(self) -> None:
        fresh: list[Ident] = []
        for target in self._targets():
            try:
                found = await self._lookups.find(target)
                if found.owner != self._ring.ident and found.owner not in fresh:
                    await self._links.connect(found.owner, found.agent)
                    fresh.append(found.owner)
            except IpopError:
                self._runtime.count("finger_missing")
        self._ring.fingers = fresh

    def _targets(self) -> Iterable[Ident]:
        ring = self._ring
        if not ring.successors:
            return
        reach = clockwise(ring.ident, ring.successors[-1])
        for power in range(IDENT_BITS - 1, 0, -1):
            if 1 << power <= reach:
                return
            yield offset(ring.ident, 1 << power)
