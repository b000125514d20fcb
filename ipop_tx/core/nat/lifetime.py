"""Learns for how long our NAT, or a firewall, keeps a mapping that nobody uses, so that links need no more keep-alive than that.

For each length of time there is a fresh socket. It talks to a member twice, some seconds apart, because many routers keep a mapping
for longer once it has carried a conversation, as that of a link does. Then it is silent for that time, and the member knocks. The
first knock that does not come in ends the search; lengths that are too short to matter beside it have been found by then.
"""

from __future__ import annotations

from ipop_tx.core.events import NatChecked
from ipop_tx.core.links.paths import KEEPALIVE, MOST_KEEPALIVE, Paths
from ipop_tx.core.nat.check import Helper, NatCheck
from ipop_tx.core.natkind import Kind, Lifetime
from ipop_tx.core.runtime import Runtime
from ipop_tx.core.tasks import Future, all_settled, spawn
from ipop_tx.errors import IpopError

IDLE = (5.0, 8.0, 12.0, 16.0, 20.0, 25.0, 31.0, 40.0, 50.0, 62.0, 90.0, 125.0, 185.0)
"""Seconds of silence tried, all at the same time; beside usual lifetimes, so that these can be told."""
CONVERSATION = 3.0
"""Seconds between the two exchanges before the silence: Linux calls it a stream after two."""
STAGGER = 0.25
"""Seconds between the beginnings, so that the member is not asked for all in one moment."""
SHARE = 0.75
"""Part of a lifetime after which to refresh; with the spread of keep-alives at most nine tenths of it."""


class NatLife:
    """`lifetime` is what is known so far. Keep-alives follow it."""

    def __init__(self, check: NatCheck, paths: Paths, runtime: Runtime) -> None:
        self.lifetime = Lifetime()
        self._check = check
        self._paths = paths
        self._runtime = runtime
        self._running: Future[Lifetime] | None = None

    def learn(self) -> Future[Lifetime]:
        """Start to learn, or join what runs. Takes a little more than three minutes where nothing expires."""
        if self._running is None:
            running = self._running = spawn(self._learn())
            running.then(lambda done: self._learnt())
            return running
        return self._running

    def _learnt(self) -> None:
        self._running = None

    async def _learn(self) -> Lifetime:
        self.lifetime = Lifetime()
        self._paths.keepalive = min(KEEPALIVE, self._paths.keepalive)  # this may be another router than before
        reach = self._check.facts.reach
        if reach.filtering is Kind.ENDPOINT_INDEPENDENT and reach.mapping is Kind.NONE:  # nothing to keep open
            self._found(Lifetime(IDLE[-1]))
            return self.lifetime
        helpers = self._check.helpers()
        if helpers:
            alive: set[float] = set()
            dead: set[float] = set()
            await all_settled([spawn(self._try(helpers[0], number, alive, dead)) for number in range(len(IDLE))])
        return self.lifetime

    async def _try(self, helper: Helper, number: int, alive: set[float], dead: set[float]) -> None:
        idle = IDLE[number]
        await self._runtime.sleep(STAGGER * number)
        made = await self._check.open()
        try:
            outer = None
            for pause in (CONVERSATION, idle):
                (outer,) = await self._check.probe(made, [helper])
                if outer is None:
                    return
                await self._runtime.sleep(pause)
                if any(shorter <= idle for shorter in dead):
                    return
            came = (
                await self._check.knock(made, outer, helper) if outer and helper.link.up and helper.link.active == helper.endpoint else None
            )
        except IpopError:
            return
        finally:
            self._check.close(made)
        if came is not None:
            (alive if came else dead).add(idle)
            self._weigh(alive, dead)

    def _weigh(self, alive: set[float], dead: set[float]) -> None:
        """A knock that came in counts for more than one that did not: those get lost for other reasons too."""
        lived = max(alive, default=0.0)
        died = min((idle for idle in dead if idle > lived), default=None)
        self._found(Lifetime(lived, died))

    def _found(self, lifetime: Lifetime) -> None:
        self.lifetime = lifetime
        if lifetime.dead is not None or SHARE * lifetime.alive > self._paths.keepalive:
            self._paths.keepalive = min(MOST_KEEPALIVE, SHARE * max(lifetime.alive, IDLE[0] / 2))
        self._runtime.emit(NatChecked())
