"""How rings that should be one become one: two that were parted, or one that has got into a tangle.

Stabilisation sees only what neighbours know of each other, so it keeps a wrong ring as faithfully as a right one. Therefore each node
looks for its own place now and then from a member that is none of its neighbours, by a walk that goes by idents and links alone.
What it finds nearer it takes; neighbours that are displaced are told (`Suggest`), so two rings close like a zip from wherever they touch.
"""

from __future__ import annotations

from ipop_tx.core.ident import apart, clockwise, strictly_within
from ipop_tx.core.links.linktable import LinkTable
from ipop_tx.core.ring.lookup import Lookups
from ipop_tx.core.ring.ring import Ring
from ipop_tx.core.runtime import Runtime
from ipop_tx.errors import IpopError
from ipop_tx.values import Ident

EVERY = 30.0
"""Seconds between looks; a fifteenth of it for a ring of one, and in the first half minute."""
CALM_AFTER = 300.0
"""Seconds after the last change of our neighbours from which on a look every `CALM` seconds is enough."""
CALM = 120.0
AVOIDED = 4
"""Neighbours on either side that the walk keeps off: from any of them it would only come back to us."""


class Merging:
    """Looks for nearer neighbours from members at random."""

    def __init__(self, ring: Ring, lookups: Lookups, links: LinkTable, runtime: Runtime) -> None:
        self._ring = ring
        self._lookups = lookups
        self._links = links
        self._runtime = runtime
        ring.on_joined.append(self._begin)

    def _begin(self) -> None:
        self._runtime.background(self._look_for_ever())

    async def _look_for_ever(self) -> None:
        begun = self._runtime.now if not self._ring.placed else -EVERY
        while not self._ring.leaving:
            now = self._runtime.now
            fresh = now - begun < EVERY or not self._ring.successors
            calm = now - self._ring.changed_at > CALM_AFTER
            await self._runtime.sleep(self._runtime.spread(EVERY / 15 if fresh else CALM if calm else EVERY))
            near = self._ring.near()
            linked = sorted(self._links.by_ident)
            far = [ident for ident in linked if ident not in near] or linked
            if far and self._ring.joined:
                await self._look_from(far[self._runtime.rng.randrange(len(far))])

    async def _look_from(self, member: Ident) -> None:
        ring, own = self._ring, self._ring.ident
        try:
            found = await self._lookups.closest(member, own, ring.beside(AVOIDED))
            named = {found.owner, *found.successors} - {own}
            after = min(named, key=lambda ident: clockwise(own, ident), default=None)
            before = min(named, key=lambda ident: clockwise(ident, own), default=None)
            if after and (not ring.successors or strictly_within(own, after, ring.successors[0])):
                await self._links.connect(after, found.agent if after == found.owner else found.owner)
                ring.insert_successor(after)
            behind = before and clockwise(before, own) == apart(before, own)  # else all that were named lie after us
            if before and behind and (not ring.predecessor or strictly_within(ring.predecessor, before, own)):
                await ring.meet_predecessor(before, found.agent or found.owner if before == found.owner else found.owner)
        except IpopError:
            self._runtime.count("merge_unanswered")
