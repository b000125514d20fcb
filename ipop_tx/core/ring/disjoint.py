"""Who owns a key, asked over several ways that share as few members as possible: so one liar on the way is outvoted and noticed.

For each question all members are dealt into as many *colours* as there are ways; a hash of key and ident decides, so nobody chooses a
colour. A question has a colour too, and whoever passes it on gives it to the member of that colour that is nearest to the key, as long as
one is nearer than itself; only where there is none, mostly close to the key, to the nearest of any colour. Two ways have no member in
common up to there, without a list of whom to avoid.

Each step comes nearer to the key, so no question goes round in circles; as with `lookup`, none multiplies.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass

from ipop_tx.core.events import LookupDisagreed
from ipop_tx.core.ident import apart, clockwise, within
from ipop_tx.core.links.link import Link
from ipop_tx.core.links.links import Links
from ipop_tx.core.links.rpc import Rpc
from ipop_tx.core.ring.lookup import MAX_HOPS, SENDINGS, Lookups
from ipop_tx.core.ring.ring import Ring
from ipop_tx.core.runtime import Runtime
from ipop_tx.core.tasks import successes
from ipop_tx.errors import LocalMisuse, NotFound, Unreachable
from ipop_tx.values import Ident
from ipop_tx.wire import messages as m

MOST_ROUTES = 8
PATIENCE = 6.0
"""Seconds that each way is given."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of a question over several ways."""

    owner: Ident
    """The one that most ways named; of two named equally often, the one nearer to the key."""
    agreed: bool
    """Whether no way named another."""
    votes: int
    """How many ways named it; of `asked`, some may not have answered."""
    asked: int
    """How many ways there were: at most as many as wished, fewer where we have fewer links. None when we own the key ourselves."""
    answers: tuple[tuple[Ident, Ident], ...]
    """First member of a way, and whom it named."""


def colour_of(ident: Ident, key: bytes, routes: int) -> int:
    """Which of `routes` colours a member has for a key."""
    return int.from_bytes(hashlib.sha256(key + ident).digest()[:8], "big") % routes


class Disjoint:
    """Asks, answers and passes on."""

    def __init__(self, ring: Ring, lookups: Lookups, links: Links, rpc: Rpc, runtime: Runtime) -> None:
        self._ring = ring
        self._lookups = lookups
        self._links = links
        self._rpc = rpc
        self._runtime = runtime
        self._ident = links.ident
        rpc.serve(m.Seek, self._asked)

    async def find(self, key: bytes, routes: int) -> Verdict:
        """Ask over `routes` ways. Raises `LocalMisuse`, and `NotFound` when there is no answer at all."""
        if not 2 <= routes <= MOST_ROUTES:
            raise LocalMisuse(f"a look-up takes 2 to {MOST_ROUTES} ways, not {routes}")
        if self._ring.owns(key):
            return Verdict(self._ident, True, 0, 0, ())
        ways = self._ways(key, routes)
        asked = [self._rpc.on_link(hop, question, PATIENCE, SENDINGS) for hop, question in ways]
        await successes(asked)
        answers = tuple(
            (hop.ident, found.owner)
            for (hop, _), answer in zip(ways, asked, strict=True)
            if answer.error is None and isinstance(found := answer.result(), m.Found)
        )
        if not answers:
            raise NotFound("nobody on the ring could say who owns a key", "the ring is healing; try again")
        return self._judge(key, answers, len(ways))

    def _judge(self, key: bytes, answers: tuple[tuple[Ident, Ident], ...], asked: int) -> Verdict:
        votes = Counter(owner for _, owner in answers)
        owner = min(votes, key=lambda named: (-votes[named], clockwise(key, named)))
        dissent = tuple(first for first, named in answers if named != owner)
        if dissent:
            self._runtime.count("lookup_disagreed")
            self._runtime.emit(LookupDisagreed(key, owner, dissent))
        return Verdict(owner, not dissent, votes[owner], asked, answers)

    def _ways(self, key: bytes, routes: int) -> list[tuple[Link, m.Seek]]:
        """A first member for each colour, of that colour if we have a link to one; never one member for two."""
        free = sorted((link for link in self._links if link.placed), key=lambda link: apart(link.ident, key))
        ways, left = [], []
        for colour in range(routes):
            hop = next((link for link in free if colour_of(link.ident, key, routes) == colour), None)
            if hop is None:
                left.append(colour)
            else:
                free.remove(hop)
                ways.append((hop, m.Seek(key, MAX_HOPS, routes, colour)))
        return ways + [(hop, m.Seek(key, MAX_HOPS, routes, colour)) for hop, colour in zip(free, left, strict=False)]

    async def _asked(self, link: Link, question: m.Seek) -> m.Found:
        if not self._ring.joined:
            raise Unreachable("this member is not on the ring yet", "ask another one, or again in a second")
        if self._ring.owns(question.key):
            return m.Found(self._ident, tuple(self._ring.successors), 0)
        if question.ttl == 0:
            raise NotFound("the look-up took too many steps", "the ring is healing; try again")
        onward = m.Seek(question.key, question.ttl - 1, question.routes, question.colour)
        return await self._lookups.pass_on(onward, lambda tried: self._next_hop(question, tried), {link.ident}, ours=False)

    def _next_hop(self, question: m.Seek, tried: set[Ident]) -> Link | None:
        """Our successor, if it owns the key; else the nearest of the question's colour that is nearer than we are; else of any colour.

        Of the others those beyond the key come first: one of them is the owner, while all ways on this side end at the node before it.
        """
        key, here = question.key, apart(self._ident, question.key)
        successor = next((ident for ident in self._ring.successors if ident not in tried), None)
        if successor is not None and within(self._ident, key, successor) and successor in self._links.by_ident:
            return self._links.by_ident[successor]
        nearer = [link for link in self._links if link.placed and link.ident not in tried and apart(link.ident, key) < here]
        coloured = [link for link in nearer if colour_of(link.ident, key, question.routes) == question.colour]
        beyond = [link for link in nearer if clockwise(key, link.ident) < here]
        return min(coloured or beyond or nearer, key=lambda link: apart(link.ident, key), default=None)
