"""Paths that are makeshifts: by TLS or whatever else there is besides UDP. Better than none; left as soon as UDP answers.

A stream inside a stream stalls where a datagram is lost, and costs more. So kinds of paths have an order (`link.detour`) that no round trip
can change, and a link on a makeshift goes on trying the endpoints of the better kinds.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from ipop_tx.core.links.link import Link, detour
from ipop_tx.core.links.links import Links
from ipop_tx.core.runtime import Runtime
from ipop_tx.core.tasks import Future
from ipop_tx.values import Endpoint, Ident

RETRY_BETTER = 25.0
"""Seconds between attempts to bring a link back to UDP, give or take a fifth: a minute after UDP passes again, none is on a makeshift."""
MAKESHIFT_AFTER = 1.0
"""Seconds for which a peer's best endpoints have been challenged before the others are."""
MOST_OFFERED = 2
"""So many of the endpoints offered are kept for other transports than UDP."""
LOST = float("inf")
"""Round trip of a path whose connection has ended: any other one is better."""


class Makeshifts:
    """Sees to it that no link stays on one for longer than it must, and that one whose connection has ended is not believed in."""

    def __init__(self, links: Links, runtime: Runtime, punch: Callable[[Link], Coroutine[Future[Any], None, None]]) -> None:
        """`punch` exchanges candidates with a peer, and challenges those that are better than what a link has."""
        self.unanswered: set[Ident] = set()
        """Peers whose UDP endpoints did not answer when we last tried them."""
        self._links = links
        self._runtime = runtime
        self._punch = punch
        self._watched: set[Ident] = set()
        links.on_down.append(lambda link: self.unanswered.discard(link.ident))

    def watch(self, link: Link) -> None:
        """The active path of a link is another one now."""
        if link.settled:
            self.unanswered.discard(link.ident)
        elif link.up and link.is_direct and not link.peer.guest and link.ident not in self._watched:
            self._watched.add(link.ident)
            self._runtime.background(self._leave(link))

    async def _leave(self, link: Link) -> None:
        while link.up and link.is_direct and not link.settled:
            await self._runtime.sleep(self._runtime.spread(RETRY_BETTER))
            if link.up and link.is_direct and not link.settled:
                await self._punch(link)
        self._watched.discard(link.ident)

    def tried(self, link: Link, endpoints: list[Endpoint]) -> None:
        """These have been challenged for as long as it makes sense."""
        if not link.settled and not all(map(detour, endpoints)):
            self.unanswered.add(link.ident)

    def lost(self, endpoint: Endpoint) -> list[Link]:
        """The connection behind a path has ended: the links that used it, which must be tested.

        If the peer made it, it will come by another one, which is then the better. One that nobody used is forgotten.
        """
        doubtful = []
        for link in self._links:
            known = link.direct.get(endpoint)
            if known is not None and link.active == endpoint:
                known.rtt = LOST if endpoint.inward else known.rtt
                doubtful.append(link)
            elif known is not None and endpoint.inward:
                del link.direct[endpoint]
        return doubtful


def is_lost(link: Link) -> bool:
    """Whether the active path's connection has ended and cannot be made anew from here."""
    known = link.direct.get(link.active) if isinstance(link.active, Endpoint) else None
    return known is not None and known.rtt == LOST


def by_worth(link: Link) -> list[Endpoint]:
    """The direct paths of a link, the best first."""
    return sorted(link.direct, key=lambda endpoint: (detour(endpoint), link.direct[endpoint].rtt))


def without_onions(endpoints: list[Endpoint]) -> list[Endpoint]:
    """Tor is for pairs of which one end has nothing else: a relay over the ring is quicker."""
    return [endpoint for endpoint in endpoints if endpoint.scheme != "onion"] or endpoints


def better(link: Link, endpoint: Endpoint) -> bool:
    """Whether a direct path is clearly better than the active one: of a better kind, or much shorter."""
    active = link.direct.get(link.active) if isinstance(link.active, Endpoint) else None
    if active is None or link.improves(endpoint):
        return True
    return detour(endpoint) == detour(link.active) and link.direct[endpoint].rtt < 0.8 * active.rtt  # type: ignore[arg-type]  # it is one
