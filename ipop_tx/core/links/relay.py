"""Datagrams that travel over the ring, sealed end to end, from member to member along direct paths.

Each hop is greedy: the neighbour nearest to the destination, the shorter way round. A neighbour that is itself reached only
through a relay is put in front of the route, and the datagram goes to that relay. Where greed finds nothing nearer (the target
has no settled place yet, or cannot be reached from here) it goes to our neighbour on the target's other side, else one step back;
the ttl bounds it. Who is noted as having passed a datagram on does not get it again while there is anybody else: each of
three members may believe that another one of them has a direct path.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import replace

from ipop_tx.core.ident import apart
from ipop_tx.core.links.link import Link, Route
from ipop_tx.core.links.links import Links
from ipop_tx.core.runtime import Runtime
from ipop_tx.errors import BadMessage
from ipop_tx.values import Ident
from ipop_tx.wire.datagram import RELAY
from ipop_tx.wire.relay import MAX_BACK, MAX_VIA, Relayed


class Relay:
    """Sends our own datagrams over the ring and passes on those of others."""

    def __init__(self, links: Links, runtime: Runtime) -> None:
        self.across: Callable[[Ident], Ident | None] = lambda target: None
        """Our ring neighbour on the other side of a target that lies just beside us."""
        self._links = links
        self._runtime = runtime
        links.relaying = self

    def originate(self, route: Route, datagram: bytes) -> None:
        """Send a datagram of ours to `route.destination`."""
        relayed = self._begun(route, bytes(datagram), route.via)
        hop, via = self._next(relayed, None)
        if hop is None:
            self._runtime.count("relay_no_route")
            return
        self._pass(hop, replace(relayed, via=via))
        link = self._links.by_ident.get(route.destination)
        if link is not None and (link.is_direct or route == link.active):
            link.first_hop = hop.ident

    def _begun(self, route: Route, datagram: bytes, via: tuple[Ident, ...]) -> Relayed:
        return Relayed(route.destination, self._links.ident, datagram, via=tuple(ident for ident in via if ident != self._links.ident))

    def way(self, route: Route) -> tuple[Ident, Relayed] | None:
        """How traffic takes a route now: the first hop, and the header (of an empty datagram) to put before each record."""
        # Traffic needs no long route: the station next to its destination must do.
        begun = self._begun(route, b"", route.via[-1:])
        hop, via = self._next(begun, None)
        return (hop.ident, replace(begun, via=via)) if hop is not None else None

    def next_hop(self, target: Ident, came_by: Ident) -> tuple[Ident, Ident | None] | None:
        """The member to hand traffic for `target` to that came by another one, and through whom that reaches it, if not by itself."""
        link = self._links.by_ident.get(came_by)
        hop, detour = self._towards(target, link)
        if hop is None:
            return None
        for one in (hop, link):
            if one is not None:
                one.used = self._runtime.now
        return hop.ident, detour if detour != target else None

    def needs(self, ident: Ident) -> bool:
        """Whether a relayed link of ours goes by way of the link to a member."""
        return any(not link.is_direct and ident in (link.first_hop, *link.route.via, *link.relays) for link in self._links)

    def received(self, link: Link, payload: bytes) -> None:
        """A relayed datagram came by `link`: for us, or to be passed on."""
        try:
            relayed = Relayed.decode(payload)
        except BadMessage:
            self._runtime.count("relay_bad")
            return
        via = relayed.via
        while via and via[0] == self._links.ident:  # twice, when somebody has put the next station in front of the route once more
            via = via[1:]
        if not via and relayed.destination == self._links.ident:
            if relayed.source != self._links.ident:
                self._links.receive(Route(relayed.source, relayed.back), relayed.datagram)
        elif relayed.ttl <= 1:
            self._runtime.count("relay_ttl")
        else:
            self._runtime.count("relayed")
            # Each hop notes itself, so the answer finds its way back also to a node that the ring has in a wrong place.
            noted = len(relayed.back) < MAX_BACK
            onward = relayed.next(via, (self._links.ident, *relayed.back) if noted else relayed.back)
            hop, via = self._next(onward, link)
            if hop is not None:
                link.used = hop.used = self._runtime.now
                self._pass(hop, replace(onward, via=via))
            else:
                self._runtime.count("relay_no_route")

    def _next(self, relayed: Relayed, came_by: Link | None) -> tuple[Link | None, tuple[Ident, ...]]:
        """The link to send to, and what is then left of the route."""
        target = relayed.via[0] if relayed.via else relayed.destination
        via = relayed.via
        hop = self._direct(target)
        if hop is None:
            hop, detour = self._towards(target, came_by, {relayed.source, *relayed.back})
            if detour is not None and detour != target and len(via) < MAX_VIA:
                via = (detour, *via)
        return hop, via

    def _pass(self, hop: Link, relayed: Relayed) -> None:
        self._links.send_datagram(hop.active, hop.session.protect(RELAY, relayed.encode()))

    def _direct(self, ident: Ident | None) -> Link | None:
        link = self._links.by_ident.get(ident) if ident else None
        return link if link is not None and link.is_direct else None

    def _towards(self, target: Ident, came_by: Link | None, passed: AbstractSet[Ident] = frozenset()) -> tuple[Link | None, Ident | None]:
        """The link to send to, and the neighbour to pass first when that one is reached through the link. Not by who has `passed` it on."""
        others = [link for link in self._links.by_ident.values() if link is not came_by]
        distances = {link: apart(link.ident, target) for link in others if link.ident not in passed}
        here = apart(self._links.ident, target)
        nearer = [link for link, distance in distances.items() if distance < here and link.placed]
        while nearer:
            link = min(nearer, key=distances.__getitem__)
            nearer.remove(link)
            if link.is_direct:
                return link, None
            relay = self._direct(link.first_hop) or (self._direct(link.route.via[0]) if link.route.via else None)
            if relay is not None and relay is not came_by and relay.ident not in passed:
                return relay, link.ident
        across = self._direct(self.across(target))
        if across in distances:
            return across, None
        if not any(link.is_direct for link in distances):
            distances = {link: apart(link.ident, target) for link in others}
        direct = (link for link in distances if link.is_direct)
        return min(direct, key=lambda link: (not link.placed, distances[link]), default=None), None
