"""Links that nobody needs are ended.

Links come up for all sorts of reasons: a ping, a look-up, a register far away. Each costs keep-alives and fresh keys for as long as it
lasts, so one that has carried nothing for a while is offered to the peer (`Unneeded`) and ended when that has no use for it either.
What needs a standing link says so by a predicate in `needs`; traffic and questions note when they last used theirs (`Link.used`).
"""

from __future__ import annotations

from collections.abc import Callable

from ipop_tx.core.links.link import UNNEEDED, Link
from ipop_tx.core.links.linktable import LinkTable
from ipop_tx.core.links.rpc import Rpc
from ipop_tx.core.runtime import Runtime
from ipop_tx.values import Ident
from ipop_tx.wire import messages as m

EVERY = 30.0
"""Seconds between looks at all links."""
IDLE = 120.0
"""Seconds without use after which a link is spare."""
GRACE = 5.0
"""Seconds by which the two ends may differ in that."""
AGAIN = 600.0
"""Seconds until a peer that needs a link is asked again."""
FEWEST = 4
"""Links that a node keeps in any case."""
AT_ONCE = 16
"""Links offered at one look, so that a node that has met a thousand does not ask them all in one moment."""
SETTLING = 3.0
"""Seconds after which an agreed end that was not heard of is asked for."""


class Spare:
    """Looks for spare links, and answers peers that do."""

    def __init__(self, links: LinkTable, rpc: Rpc, runtime: Runtime) -> None:
        self.needs: list[Callable[[Ident], bool]] = []
        """Each says whether a part of this node needs a standing link to a member."""
        self.suspect: Callable[[Ident], None]
        """Has a link tested: `Paths.suspect`."""
        self._links = links
        self._rpc = rpc
        self._runtime = runtime
        rpc.serve(m.Unneeded, self._offered)
        runtime.background(self._look_for_ever())

    async def _look_for_ever(self) -> None:
        while True:
            await self._runtime.sleep(self._runtime.spread(EVERY))
            now = self._runtime.now
            spare = [link for link in self._links if link.wanted <= now and self._is_spare(link, IDLE)]
            for link in spare[:AT_ONCE]:
                self._runtime.background(self._offer(link))

    async def _offer(self, link: Link) -> None:
        link.wanted = self._runtime.now + AGAIN
        answer = await self._rpc.on_link(link, m.Unneeded())
        if isinstance(answer, m.Done) and link.up:
            link.wanted = self._runtime.now
            if self._is_spare(link, IDLE):
                self._links.drop(link, UNNEEDED)

    def _offered(self, link: Link, body: m.Unneeded) -> m.Answer:
        if not self._is_spare(link, IDLE - GRACE):
            return m.Needed()
        link.released = self._runtime.now
        self._runtime.after(SETTLING, lambda: self._settle(link))
        return m.Done()

    def _settle(self, link: Link) -> None:
        """If the link has ended over there and we have not been told, a challenge makes the peer say so."""
        if link.up:
            self.suspect(link.ident)

    def _is_spare(self, link: Link, idle: float) -> bool:
        if self._runtime.now - max(link.since, link.used) < idle or any(needs(link.ident) for needs in self.needs):
            return False
        return self._kept() > FEWEST and not self._rpc.asking(link)

    def _kept(self) -> int:
        """Links that stay, as far as we have decided."""
        settled = self._runtime.now - SETTLING
        return sum(link.released < settled for link in self._links)
