"""Who owns a key? The question goes from node to node, greedily, and the answer comes back the same way.

Each hop asks the next by an ordinary request, which repeats itself when it is lost; when the next hop is dead, the hop before it tries
another, so a look-up survives what a fire-and-forget message would not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from ipop_tx.core.ident import apart, within
from ipop_tx.core.links.link import Link
from ipop_tx.core.links.linktable import LinkTable
from ipop_tx.core.links.rpc import Rpc, unexpected
from ipop_tx.core.routing import aside, next_hop, place_of
from ipop_tx.core.runtime import Runtime
from ipop_tx.errors import IpopError, NotFound, Unreachable
from ipop_tx.values import Ident
from ipop_tx.wire import messages as m

MAX_HOPS = 24
"""Thrice what a look-up takes in a ring of a million, so that one which goes round in circles ends soon."""
NEAREST = 8
"""Nodes that a walk names."""
SENDINGS = 3
"""Sendings of a question to a next hop until another is tried; fewer than usual, since there are others."""
GONE = 180.0
"""Seconds for which a member whose link broke is left out of what others' tables promise."""
SLOW = 5.0
"""Seconds after which a question without an answer is under way somewhere: a dead hop shows sooner."""
AGAIN = (1.0, 2.0)
"""Seconds after which whoever asked first asks again, if the ring knew no answer: where several neighbours have just died, it soon does."""
DETOURS = 3
"""Next hops tried at each node before it gives up."""


class Place(Protocol):
    """What look-ups need to know of the ring."""

    joined: bool
    successors: list[Ident]

    def owns(self, key: bytes, without: Ident | None = None) -> bool:
        """Whether the key is ours, if `without` is left out of account."""


class Lookups:
    """Asks, answers and passes on."""

    def __init__(self, links: LinkTable, rpc: Rpc, runtime: Runtime) -> None:
        self.ring: Place
        self._ident = links.ident
        self._links = links
        self._rpc = rpc
        self._runtime = runtime
        self._gone: dict[int, float] = {}
        """Places of members whose links broke lately, and when: tables that others told may still name them."""
        links.on_down.append(self._link_down)
        links.on_up.append(self._link_up)
        rpc.serve(m.Lookup, self._asked)
        rpc.serve(m.Closest, lambda link, body: self._walk(body))

    async def find(self, key: bytes) -> m.Found:
        """The owner of a key; asks again, up to 3 s later, if the ring knows no answer. Raises `NotFound`, `Unreachable`."""
        for wait in AGAIN:
            try:
                return await self._resolve(m.Lookup(key, MAX_HOPS), None)
            except NotFound:
                if not self._links.by_ident:
                    raise
                await self._runtime.sleep(self._runtime.spread(wait))
        return await self._resolve(m.Lookup(key, MAX_HOPS), None)

    async def ask(self, contact: Ident, key: bytes, exclude: Ident | None = None) -> m.Found:
        """The same, through a given member."""
        return _found(await self._rpc.call(contact, m.Lookup(key, MAX_HOPS, exclude)))

    async def closest(self, contact: Ident, key: bytes, exclude: Iterable[Ident]) -> m.Found:
        """The nodes nearest to a key that a greedy walk from `contact` comes to; the walk keeps off those in `exclude`.

        It looks only at idents and links, so it finds the right place also while the ring is wrong.
        """
        return _found(await self._rpc.call(contact, m.Closest(key, MAX_HOPS, tuple(exclude))))

    async def _asked(self, link: Link, question: m.Lookup) -> m.Found:
        """A member asks. Where all start at once nobody knows better: were the question passed on there, it would multiply at each hop."""
        if not self.ring.joined:
            raise Unreachable("this member is not on the ring yet", "ask another one, or again in a second")
        return await self._resolve(question, link.ident)

    async def _walk(self, question: m.Closest) -> m.Found:
        barred = {question.key, *question.exclude}
        links = [link for link in self._links.by_ident.values() if link.placed and link.ident not in barred]
        key = place_of(question.key)
        hop = min(links, key=lambda link: aside(link.place, key), default=None)
        if hop is None or question.ttl == 0 or apart(hop.ident, question.key) >= apart(self._ident, question.key):
            near = sorted((link.ident for link in links), key=lambda ident: apart(ident, question.key))[:NEAREST]
            return m.Found(self._ident, tuple(near), 0)
        found = _found(await self._rpc.on_link(hop, m.Closest(question.key, question.ttl - 1, question.exclude)))
        return m.Found(found.owner, found.successors, found.hops + 1, self._ident if found.hops == 0 else found.agent)

    async def _resolve(self, question: m.Lookup, asker: Ident | None) -> m.Found:
        if self.ring.owns(question.key, question.exclude):
            successors = tuple(ident for ident in self.ring.successors if ident != question.exclude)
            return m.Found(self._ident, successors, 0)
        if question.ttl == 0:
            raise NotFound("the look-up went round in circles", "the ring is healing; try again")
        tried = {ident for ident in (self._ident, asker, question.exclude) if ident is not None}
        onward = m.Lookup(question.key, question.ttl - 1, question.exclude)
        return await self.pass_on(onward, lambda tried: self._next_hop(question.key, tried), tried, asker is None)

    async def pass_on(
        self, question: m.Lookup | m.Seek, choose: Callable[[set[Ident]], Link | None], tried: set[Ident], ours: bool
    ) -> m.Found:
        """Hand a question to the hop that `choose` names out of those not tried yet; to another one if that is dead.

        Only whoever asked first (`ours`) tries other ways round where the hop lives; else the question would multiply at every hop.
        Raises `NotFound`.
        """
        for _ in range(DETOURS):
            hop = choose(tried)
            if hop is None:
                break
            tried.add(hop.ident)
            asked_at = self._runtime.now
            try:
                found = _found(await self._rpc.on_link(hop, question, sendings=SENDINGS))
            except NotFound:
                if not ours:
                    raise
            except IpopError:
                if not ours and self._runtime.now - asked_at > SLOW:
                    break  # the hop lives, and the question goes on beyond it
            else:
                agent = self._ident if found.hops == 0 else found.agent
                return m.Found(found.owner, found.successors, found.hops + 1, agent)
        raise NotFound("nobody on the ring could say who owns a key", "the ring is healing; try again")

    def _next_hop(self, key: bytes, tried: set[Ident]) -> Link | None:
        """Where we precede the owner ourselves, our successor; else where greed with one step of look-ahead leads."""
        successor = next((ident for ident in self.ring.successors if ident not in tried), None)
        if successor is not None and within(self._ident, key, successor):
            link = self._links.by_ident.get(successor)
            if link is not None:
                return link
        untried = [link for link in self._links.by_ident.values() if link.ident not in tried]
        placed = [link for link in untried if link.placed]
        return next_hop(place_of(self._ident), place_of(key), placed or untried, self._gone)

    def _link_up(self, link: Link) -> None:
        self._gone.pop(link.place, None)

    def _link_down(self, link: Link) -> None:
        if link.parted:
            return
        now = self._runtime.now
        self._gone = {place: moment for place, moment in self._gone.items() if now - moment < GONE}
        self._gone[link.place] = now


def _found(answer: m.Answer) -> m.Found:
    if not isinstance(answer, m.Found):
        raise unexpected(answer)
    return answer
