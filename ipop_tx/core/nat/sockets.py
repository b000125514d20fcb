"""The sockets of searches: each has a port of its own before it sends, and one of them comes to carry a link."""

from __future__ import annotations

from collections.abc import Sequence

from ipop_tx.core.links.link import Link
from ipop_tx.core.links.links import Links
from ipop_tx.core.links.paths import Paths
from ipop_tx.core.nat.check import NatCheck
from ipop_tx.core.nat.sides import Side, Sides
from ipop_tx.core.runtime import Runtime, Timer
from ipop_tx.errors import EnvironmentProblem
from ipop_tx.values import Endpoint
from ipop_tx.wire import messages as m

PURPOSE = "searches"
MOST = 320
"""At a time: those of one cast, and some that carry links or meet."""
TEND_EVERY = 30.0
LOOK_EVERY = 0.05
"""Seconds between looks whether a path was found."""
LAST_PORT = 65535


class SearchSockets:
    """Opens them, has ports foretold, sends by them, and keeps those that carry links."""

    def __init__(self, links: Links, paths: Paths, sides: Sides, check: NatCheck, runtime: Runtime) -> None:
        self._links = links
        self._paths = paths
        self._sides = sides
        self._check = check
        self._runtime = runtime
        self._kept: dict[int, Side] = {}
        """Sockets that carry links."""
        self._tending: Timer | None = None

    async def open(self) -> Side:
        """A fresh one. Raises `EnvironmentProblem`."""
        side = await self._sides.open(PURPOSE, MOST)
        self._lead(side)
        return side

    async def foretell(self, ahead: int) -> tuple[Side, Endpoint, list[int]]:
        """A socket, where a member sees it, and the ports that it will get with whom it sends to next. Raises `EnvironmentProblem`."""
        made = await self._check.open(PURPOSE, MOST)
        helper = next(iter(self._check.helpers()), None)
        (outer,) = await self._check.probe(made, [helper]) if helper is not None else (None,)
        if outer is None:
            self._check.close(made)
            raise EnvironmentProblem("no member tells which port the NAT gave", "it is tried again")
        self._lead(made.side)
        reach = self._paths.facts.reach
        if reach.steady:
            return made.side, outer, [outer.port]
        ports = [outer.port + count * reach.step for count in range(1, ahead + 1)] if reach.step else []
        return made.side, outer, [port for port in ports if port <= LAST_PORT]

    def _lead(self, side: Side) -> None:
        """What comes in by a socket now is for the links, by endpoints of its own."""
        side.received = lambda endpoint, datagram: self._links.receive(endpoint.by_side(side.number), datagram)

    def send(self, link: Link, endpoint: Endpoint, near: bool = False) -> None:
        """A challenge whose answer nobody waits for: it opens our NAT, and whom it reaches challenges back. `near`: it reaches nobody."""
        if near:
            self._links.open_towards(link, endpoint, self._paths.facts.opening_hops())
            return
        self._links.send_message(link, m.PathChallenge(self._runtime.rng.getrandbits(62)), endpoint, whole=True)

    async def until_settled(self, link: Link, seconds: float) -> None:
        """Wait so long for a path by UDP."""
        end = self._runtime.now + seconds
        while link.up and not link.settled and self._runtime.now < end:
            await self._runtime.sleep(LOOK_EVERY)

    async def close(self, link: Link, sides: Sequence[Side]) -> None:
        """Keep what carries the link; the peer may still choose between two."""
        if link.settled:
            await self._runtime.sleep(1.0)
        used = {endpoint.side for endpoint in link.direct} if link.up else set()
        for side in sides:
            if side.number in used:
                self._kept[side.number] = side
            else:
                self._sides.close(side)

    def discard(self, side: Side) -> None:
        """No more of one that carries nothing."""
        self._sides.close(side)

    def tend(self) -> None:
        """Close the sockets that carry nothing any more, now and as long as there are any; of several for one link those not used."""
        for link in self._links:
            late = self._runtime.now - TEND_EVERY / 2
            idle = [one for one, path in link.direct.items() if one.side and one != link.active and path.answered < late]
            for endpoint in idle:
                del link.direct[endpoint]
        used = {endpoint.side for link in self._links for endpoint in link.direct}
        for number in [number for number in self._kept if number not in used]:
            self._sides.close(self._kept.pop(number))
        if self._tending is not None:
            self._tending.cancel()
        self._tending = self._runtime.after(TEND_EVERY, self.tend) if self._kept else None
