"""Through whom a relayed link goes: the member that gives the shortest measured round trip, with others known to work.

Who may relay is told by tables (`Link.table`): members with a direct path from here that have a link to the peer. Each is measured by a
path challenge through it to the peer and back. That takes the same queues as traffic, so a relay with much to do shows it. While
frames go over the link the best few are measured every few seconds; the others are spares, which cost no session. When the relay does
not answer any more, the best of those that do takes over.

A relay that answers challenges and loses traffic is told by the forwarding plane (`services/relaywatch.py`). It is left for another one,
and taken for that peer again only when nobody else may relay or `MISTRUSTED` seconds have passed.

Each end chooses its own way out. They need not agree, and so they never make each other swap.
"""

from __future__ import annotations

from collections.abc import Callable

from ipop_tx.core.events import LinkChanged
from ipop_tx.core.links.link import Link, Route
from ipop_tx.core.links.links import Links
from ipop_tx.core.runtime import Runtime
from ipop_tx.core.tasks import Future
from ipop_tx.errors import Unreachable
from ipop_tx.values import Ident

MEASURED = 3
"""Relays that are measured for one link."""
SETTLING = 1.0
"""Seconds that a new link has to become direct before anybody looks for a relay."""
BUSY = 15.0
"""Seconds after frames for which a link counts as carrying some."""
BUSY_EVERY, IDLE_EVERY = 5.0, 300.0
"""Seconds between two measurements while frames go over the link, and while none do."""
WAIT = 0.6
"""Least seconds to wait for an answer; thrice the round trip if that is more."""
MISTRUSTED = 120.0
MUCH_SHORTER, LEAST_GAIN = 0.8, 0.002
"""Another relay is taken when its round trip is by this factor, and by so many seconds, shorter."""


class Relays:
    """Chooses the relay of each link that is not direct. `challenge` is `Paths.challenge`."""

    def __init__(self, links: Links, runtime: Runtime, challenge: Callable[[Link, Route, float], Future[float]]) -> None:
        self._links = links
        self._runtime = runtime
        self._challenge = challenge
        self._tended: dict[Link, object] = {}
        """Each relayed link, and what its task is known by."""
        self._mistrusted: dict[tuple[Ident, Ident], float] = {}
        """Peers with relays that lost traffic for them, and until when that counts."""
        links.on_down.append(self._link_down)

    def watch(self, link: Link) -> None:
        """The active path of a link is another one now, or found to be good."""
        if link.is_direct:
            self._tended.pop(link, None)
            link.relay = None
            link.relays.clear()
        elif link.up and not link.peer.guest and link not in self._tended:
            self._tended[link] = task = object()
            self._runtime.background(self._tend(link, task))

    async def _tend(self, link: Link, task: object) -> None:
        await self._runtime.sleep(SETTLING)
        due = 0.0
        while self._tended.get(link) is task:
            if self._runtime.now >= due or self.busy(link) or link.relay is None:
                due = self._runtime.now + IDLE_EVERY
                await self.measure(link)
            await self._runtime.sleep(self._runtime.spread(BUSY_EVERY))

    def busy(self, link: Link) -> bool:
        """Whether frames go over a link. For those that are idle nobody keeps links to relays by measuring them."""
        return self._runtime.now - link.frames < BUSY

    async def measure(self, link: Link) -> None:
        """Ask the peer through each member that may relay; keep those that answer, and take the best if it is clearly better."""
        wanted = self.candidates(link) if link.up else []
        for ident in [known for known in link.relays if known not in wanted]:
            del link.relays[ident]
        under_way = {ident: self._challenge(link, Route(link.ident, (ident,)), max(WAIT, 3 * link.rtt)) for ident in wanted}
        for ident, answered in under_way.items():
            try:
                rtt = await answered
            except Unreachable:
                link.relays.pop(ident, None)
                continue
            if ident not in (doubtful := self._doubtful(link)) or doubtful >= set(wanted):
                link.relays[ident] = 0.75 * link.relays.get(ident, rtt) + 0.25 * rtt
        self._choose(link)

    def candidates(self, link: Link) -> list[Ident]:
        """Who may relay: the one that does, then those with the shortest way as far as tables tell."""
        told = {}
        for relay in self._links:
            delay = _told(relay, link)
            if relay is not link and relay.is_direct and relay.placed and delay is not None:
                told[relay.ident] = relay.rtt + delay
        best = sorted(told.keys() - self._doubtful(link) or told, key=lambda ident: (ident != link.relay, told[ident], ident))
        return best[:MEASURED]

    def _doubtful(self, link: Link) -> set[Ident]:
        return {relay for (peer, relay), until in self._mistrusted.items() if peer == link.ident and until > self._runtime.now}

    def mistrust(self, link: Link) -> None:
        """The relay of a link, chosen or met by chance, loses its traffic: take another one that works, or look for one now."""
        relay = link.relay or link.first_hop
        if relay is None:
            return
        self._runtime.count("relay_mistrusted")
        now = self._runtime.now
        self._mistrusted = {pair: until for pair, until in self._mistrusted.items() if until > now}
        self._mistrusted[link.ident, relay] = now + MISTRUSTED
        for doubtful in [known for known in link.relays if (link.ident, known) in self._mistrusted]:
            del link.relays[doubtful]
        if not self.fails(link, relay):
            link.forget_route()
            self._runtime.background(self.measure(link))

    def _choose(self, link: Link) -> None:
        if not link.up or link.is_direct or not link.relays:
            return
        best = _best(link)
        now = link.relays.get(link.relay) if link.relay else None
        if now is None or link.relays[best] < min(MUCH_SHORTER * now, now - LEAST_GAIN):
            self._take(link, best)

    def _take(self, link: Link, relay: Ident) -> None:
        link.relay = link.first_hop = relay
        link.route = Route(link.ident, (relay,))
        if not link.is_direct:
            link.active = link.route
            link.rtt = link.relays[relay]
        self._runtime.emit(LinkChanged(link.ident))

    def fails(self, link: Link, relay: Ident | None) -> bool:
        """A relay of a link does not answer; gives whether another one has taken over."""
        if relay is not None:
            link.relays.pop(relay, None)
        if link.relays and not link.is_direct:
            self._take(link, _best(link))
            return True
        link.relay = None
        return False

    def _link_down(self, gone: Link) -> None:
        """Who relayed may be gone."""
        self._tended.pop(gone, None)
        for link in self._links:
            link.relays.pop(gone.ident, None)
            if link.relay == gone.ident and not self.fails(link, gone.ident):
                link.forget_route()


def _best(link: Link) -> Ident:
    return min(link.relays, key=lambda ident: (link.relays[ident], ident))


def _told(relay: Link, link: Link) -> float | None:
    """Seconds from a relay to a peer and back, as either of them has told; None if neither has told of the other."""
    for teller, other in ((relay, link), (link, relay)):
        if teller.table is not None and other.ident in teller.table.idents:
            return teller.table.delay(teller.table.idents.index(other.ident))
    return None
