"""Nodes tell those that they are linked to whom else they are linked to.

From such tables come the step of look-ahead in routing, and candidates for quicker fingers. They are hints: a wrong or old one makes a
question take a longer way, no more.
"""

from __future__ import annotations

from collections.abc import Callable

from ipop_tx.core.links.link import Link
from ipop_tx.core.links.linktable import LinkTable
from ipop_tx.core.links.rpc import Rpc
from ipop_tx.core.ring.merging import CALM_AFTER
from ipop_tx.core.ring.ring import Ring
from ipop_tx.core.routing import Table, encode_delay
from ipop_tx.core.runtime import Runtime
from ipop_tx.errors import BadMessage
from ipop_tx.values import Ident
from ipop_tx.wire import messages as m

SOON = 3.0
"""Seconds after a new link until it is told for the first time; others often come in company."""
EVERY = 60.0
"""Least seconds between two tellings on one link."""
LASTING = 150.0
"""Seconds after which a link of no use to us is one that its peer needs, or it would have been ended by now (`core.links.spare`).
In a calm ring younger ones are not told of: most of them end soon."""
MOST = 48
"""Members told of: neighbours and fingers first, then the quickest."""


class Tables:
    """Tells our links to those whom they concern, and keeps what others tell."""

    def __init__(self, ring: Ring, links: LinkTable, rpc: Rpc, runtime: Runtime) -> None:
        self._ring = ring
        self._links = links
        self._rpc = rpc
        self._runtime = runtime
        self.table_of: Callable[[m.Links], Table] = lambda body: Table(body.idents, body.delays)
        self._told: dict[Ident, tuple[Ident, ...]] = {}
        """What each member was told last."""
        self._own: tuple[Ident, ...] = ()
        links.on_down.append(self._link_down)
        rpc.serve(m.Links, self._heard)
        ring.on_joined.append(self._begin)

    def _begin(self) -> None:
        self._runtime.background(self._tell_for_ever())

    async def _tell_for_ever(self) -> None:
        await self._runtime.sleep(self._runtime.spread(SOON))
        quick = 4
        while not self._ring.leaving:
            self._tell()
            quick -= quick > 0
            await self._runtime.sleep(self._runtime.spread(4 * SOON if quick else EVERY))

    def _tell(self) -> None:
        table = self._table()
        for link in self._links:
            if link.placed and self._told.get(link.ident) != table.idents:
                self._told[link.ident] = table.idents
                self._runtime.background(self._tell_one(link, table))

    async def _tell_one(self, link: Link, table: m.Links) -> None:
        try:
            await self._rpc.on_link(link, table)
        except BaseException:
            self._told.pop(link.ident, None)
            raise

    def presume(self) -> m.Links:
        """What our table is now, henceforth taken as told to everybody: for simulations that begin in the middle."""
        table = self._table()
        self._told = dict.fromkeys(self._links.by_ident, table.idents)
        return table

    def _table(self) -> m.Links:
        now = self._runtime.now
        old = now - LASTING if now - self._ring.changed_at > CALM_AFTER else now
        chosen = [link for link in self._links.by_ident.values() if link.placed and (link.since <= old or self._ring.needs(link.ident))]
        if len(chosen) > MOST:
            first = {*self._ring.near(), *self._ring.fingers}
            chosen = sorted(chosen, key=lambda link: (link.ident not in first, link.rtt))[:MOST]
        chosen.sort(key=lambda link: link.ident)
        idents = tuple(link.ident for link in chosen)
        if idents == self._own:
            idents = self._own
        self._own = idents
        return m.Links(idents, bytes(encode_delay(link.rtt) for link in chosen))

    def _heard(self, link: Link, body: m.Links) -> m.Done:
        if len(body.delays) != len(body.idents) or any(one >= other for one, other in zip(body.idents, body.idents[1:], strict=False)):
            raise BadMessage("a table of links is out of order")
        link.table = self.table_of(body)
        return m.Done()

    def _link_down(self, link: Link) -> None:
        self._told.pop(link.ident, None)
