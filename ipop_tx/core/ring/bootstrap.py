"""How a node finds its ring: at the start, and again whenever it has lost it.

A node that reaches nobody becomes a ring of one after a while; it goes on knocking, and rings that meet grow together. That is
harmless, because what must be unique (registers) hangs on majorities and not on the ring.
"""

from __future__ import annotations

from collections.abc import Callable

from ipop_tx.core.links.link import Link, detour
from ipop_tx.core.links.linktable import LinkTable
from ipop_tx.core.ring.ring import Ring
from ipop_tx.core.runtime import Runtime
from ipop_tx.core.tasks import Future, first, quorum
from ipop_tx.errors import IpopError, PeerRefused, Unreachable
from ipop_tx.values import Endpoint, Ident
from ipop_tx.wire import messages as m

ALONE_AFTER = 8.0
"""Seconds after which a node that nobody answers becomes a ring of one."""
FIRST_AFTER = 6.0
"""The same for the least of linked nodes that all are looking for a ring, as after a power cut."""
LINKED_AFTER = 30.0
"""The same for the others of them: each may only be waiting for one that is just joining a ring."""
REMEMBERED = 64
FOR_GOOD = 8
"""Endpoints kept to knock on; the first few of them for good."""
RARELY = 1800.0
"""Seconds until a knock where we know the member: it is linked under another endpoint, or was until neither needed the link."""
RETRY = 1.0
KNOCK_ALONE, FIRST_KNOCK = 3.0, 1.0
"""Seconds between knocks of a node that has lost all its links, and from that loss to the first one."""
ALONE_AT_ONCE = 4
"""Endpoints that it knocks on together: most of those that it remembers may lie behind NATs."""
MAKESHIFT_AFTER = 1.5
"""Seconds for which members are knocked for by UDP before they are by other transports."""
KNOCK_AGAIN = 30.0
"""Seconds between knocks of a joined node on a remembered endpoint that it has no link to."""


class Bootstrap:
    """Knocks on endpoints, joins through whoever answers, keeps knocking."""

    def __init__(self, links: LinkTable, ring: Ring, runtime: Runtime) -> None:
        self.endpoints: list[Endpoint] = []
        self.problem = ""
        """Why we are not on the ring, in a sentence; empty once we are."""
        self.resting = False
        """Whether there is no use in knocking: this node is no member any more."""
        self._links = links
        self._ring = ring
        self._runtime = runtime
        self._next_link: Future[None] = Future()
        self._lonely: Future[None] = Future()
        """Settled when the last link is lost."""
        self._owners: dict[Endpoint, Ident] = {}
        """Who was last met at an endpoint."""
        self._rest: dict[Endpoint, float] = {}
        """Until when there is no need to knock."""
        links.on_up.append(self._link_up)
        links.on_down.append(self._link_down)

    def _link_up(self, link: Link) -> None:
        """Whoever looks for the ring need not wait any longer: somebody has come."""
        came, self._next_link = self._next_link, Future()
        came.succeed(None)
        if self._ring.joined:
            self.problem = ""
        self._rest_at(link)
        for endpoint in self._of(link.ident):  # as long as it is linked it tells us where it is
            if endpoint not in self.endpoints[:FOR_GOOD] and endpoint not in link.direct:
                self.endpoints.remove(endpoint)
                del self._owners[endpoint]

    def _link_down(self, link: Link) -> None:
        if link.parted:
            self._rest_at(link)
        if not self._links.by_ident:
            self._lonely.succeed(None)

    def _rest_at(self, link: Link) -> None:
        """We know that its member is on the ring."""
        self._met(link)
        for endpoint in self._of(link.ident):
            self._rest[endpoint] = self._runtime.now + self._runtime.spread(RARELY)

    def _met(self, link: Link) -> None:
        for endpoint in self.endpoints:
            if endpoint in link.direct:
                self._owners[endpoint] = link.ident

    def _of(self, member: Ident) -> list[Endpoint]:
        return [endpoint for endpoint in self.endpoints if self._owners.get(endpoint) == member]

    async def run(self, endpoints: tuple[Endpoint, ...], alone: bool) -> None:
        """Join; returns once this node has its place. `alone`: there is no other node yet, so do not wait for one."""
        self.remember(endpoints)
        begun = self._runtime.now
        if alone:
            self._ring.found()
        while not self._ring.joined:
            await self._knock()
            for link in self._links:
                if await self._join_through(link):
                    break
            else:
                if self._runtime.now - begun > self._patience():
                    self._ring.found()
                await first([self._runtime.sleep(RETRY), self._next_link])
        self.stay()

    def stay(self) -> None:
        """On the ring: from now on only see that the way back is never lost."""
        self._runtime.background(self._keep_knocking())

    def _patience(self) -> float:
        if not self._links.by_ident:
            return ALONE_AFTER
        return FIRST_AFTER if all(self._links.ident < ident for ident in self._links.by_ident) else LINKED_AFTER

    def remember(self, endpoints: tuple[Endpoint, ...]) -> None:
        """Endpoints to knock on, the newest last; beyond a bound the oldest that came later than the first few are forgotten."""
        known = list(dict.fromkeys([*self.endpoints, *endpoints]))
        self.endpoints = known if len(known) <= REMEMBERED else [*known[:FOR_GOOD], *known[FOR_GOOD - REMEMBERED :]]
        self._owners = {endpoint: self._owners[endpoint] for endpoint in self.endpoints if endpoint in self._owners}
        self._rest = {endpoint: self._rest[endpoint] for endpoint in self.endpoints if endpoint in self._rest}

    def lost(self, member: Ident, endpoints: tuple[Endpoint, ...]) -> None:
        """A member has vanished: knock where it was."""
        self.remember(endpoints)
        self._owners.update((endpoint, member) for endpoint in endpoints if endpoint in self.endpoints)
        for endpoint in self._of(member):
            self._rest.pop(endpoint, None)

    async def _join_through(self, link: Link) -> bool:
        try:
            await self._ring.join(link.ident)
        except IpopError as error:
            self.problem = f"not on the ring yet: {error}"
            return False
        self.problem = ""
        return True

    async def _knock(self) -> None:
        """Try all endpoints at once; come back with the first link, or when all have failed."""
        if not self.endpoints:
            self.problem = "no member is known to join through: put an endpoint into node.bootstrap"
            return
        if self._links.by_ident:
            return
        await self._try(list(self.endpoints))

    async def petition(self, endpoints: tuple[Endpoint, ...], ask: Callable[[Link], Future[m.Answer]]) -> m.Answer:
        """Ask one member after another, by links that are for nothing else, for what one of them gives. Raises why the last did not."""
        problem: IpopError = Unreachable("no member is known who could be asked", "put an endpoint into node.bootstrap")
        for endpoint in sorted(endpoints, key=detour):
            try:
                link = await self._links.connect_endpoint(endpoint)
            except IpopError as error:
                problem = problem if isinstance(error, Unreachable) and not isinstance(problem, Unreachable) else error
                continue
            try:
                return await ask(link)
            except IpopError as error:
                problem = error
            finally:
                if link.peer.guest:
                    self._links.drop(link, "the guest has asked")
        raise problem

    async def _try(self, endpoints: list[Endpoint]) -> None:
        """Knock on all of these, first where UDP leads; come back with the first link, or when all have failed."""
        if self.resting:
            return
        ordered = sorted(endpoints, key=lambda endpoint: detour(endpoint) > 0)
        best = [endpoint for endpoint in ordered if not detour(endpoint)]
        attempts = [self._links.connect_endpoint(endpoint) for endpoint in best]
        linked = quorum(attempts, lambda links: len(links) > 0)
        if len(best) < len(ordered):
            if best:
                await first([linked, self._runtime.sleep(MAKESHIFT_AFTER)])
            if not (linked.done and linked.result()):
                attempts += [self._links.connect_endpoint(endpoint) for endpoint in ordered[len(best) :]]
                linked = quorum(attempts, lambda links: len(links) > 0)
        if not await linked:
            self.problem = self._why_nobody(ordered, attempts)

    def _why_nobody(self, endpoints: list[Endpoint], attempts: list[Future[Link]]) -> str:
        """The most telling of the failures: a refusal before a silence."""
        for endpoint, attempt in zip(endpoints, attempts, strict=True):
            if isinstance(attempt.error, PeerRefused):
                return f"not let in at {endpoint}: {attempt.error}"
        named = ", ".join(str(endpoint) for endpoint in endpoints[:3])
        return f"no member answers at {named}: check that one runs there and that UDP passes"

    async def _keep_knocking(self) -> None:
        """Every few seconds while we have no link at all; else now and then, where we knew members that we have none to."""
        while not self._ring.leaving:
            pause = KNOCK_ALONE
            if self._links.by_ident:
                pause, self._lonely = FIRST_KNOCK, Future()
                await first([self._runtime.sleep(self._runtime.spread(KNOCK_AGAIN)), self._lonely])
            if not self._links.by_ident:
                await self._runtime.sleep(self._runtime.spread(pause))
            missing = self._missing()
            if missing and not self._ring.leaving:
                chosen = [endpoint for kind in missing for endpoint in self._some_of(kind)]
                await self._try(chosen)
                for endpoint in chosen:
                    if self._owners.get(endpoint) in self._links.by_ident:
                        self._rest[endpoint] = self._runtime.now + self._runtime.spread(RARELY)
                if self._links.by_ident:
                    self.problem = ""

    def _some_of(self, endpoints: list[Endpoint]) -> list[Endpoint]:
        most = 1 if self._links.by_ident else ALONE_AT_ONCE
        return self._runtime.rng.sample(endpoints, min(most, len(endpoints)))

    def _missing(self) -> list[list[Endpoint]]:
        """Where a knock may tell us something: by UDP, and otherwise; nothing, when there is nowhere to knock.

        A member linked under another endpoint is knocked for rarely, since it may have left this one to somebody else. As long as UDP
        leads to anybody, nobody is knocked for otherwise.
        """
        for link in self._links:
            self._met(link)
        linked = {endpoint for link in self._links for endpoint in link.direct}
        now, missing = self._runtime.now, []
        for endpoint in self.endpoints:
            if endpoint in linked:
                continue
            if self._owners.get(endpoint) in self._links.by_ident:
                self._rest.setdefault(endpoint, now + self._runtime.spread(RARELY))
            if not self._links.by_ident or self._rest.get(endpoint, now) <= now:
                missing.append(endpoint)
        best = [endpoint for endpoint in missing if not detour(endpoint)]
        others = [] if any(link.settled for link in self._links) else [endpoint for endpoint in missing if detour(endpoint)]
        return [best, others] if best or others else []
