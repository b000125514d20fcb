"""A node's place on the ring: predecessor and successors.

Chord (Stoica et al. 2001) with the corrections of Zave ("Reasoning about identifier spaces", 2017): a list of successors
that is never empty once joined, joining in two steps, and *rectify* in place of notify: a predecessor is replaced only by a nearer
node that is alive, or when it is dead. Here alive means: has a link.

Links carry both ways and every linked node is considered as a neighbour. `merging` mends rings that have gone wrong; `fingers`
keeps the far links.
"""

from __future__ import annotations

from collections.abc import Callable

from ipop_tx.core.events import Joined, RingChanged
from ipop_tx.core.ident import clockwise, strictly_within, within
from ipop_tx.core.links.link import Link
from ipop_tx.core.links.linktable import LinkTable
from ipop_tx.core.links.rpc import Rpc, unexpected
from ipop_tx.core.ring.lookup import Lookups
from ipop_tx.core.runtime import Runtime
from ipop_tx.errors import IpopError
from ipop_tx.values import IDENT_BITS, Ident
from ipop_tx.wire import messages as m

SUCCESSORS = 8
"""Least length of the successor list; in a large ring it is 2 log2 N: half of all nodes may fail at once (Liben-Nowell et al. 2002)."""
LONGEST = 48
LINKED = 4
"""How many of them a node has links to; the others are known by ident only, for when those are gone."""
LINKED_IN_NEED = 12
"""How many are linked to where those four are gone."""
STABILISE = 10.0
"""Seconds between stabilisations of a calm ring; after a change it is a tenth."""


class Ring:
    """Joins, stabilises, rectifies, leaves; owns predecessor and successor list."""

    def __init__(self, links: LinkTable, rpc: Rpc, lookups: Lookups, runtime: Runtime) -> None:
        self.ident = links.ident
        self.predecessor: Ident | None = None
        self.successors: list[Ident] = []
        self.fingers: list[Ident] = []
        """Far members that `Fingers` keeps links to."""
        self.joined = False
        self.leaving = False
        self.placed = False
        """Whether we have had neighbours on both sides since we joined."""
        self.watched: frozenset[Ident] = frozenset()
        """Neighbours whose death must be noticed soon."""
        self.length = SUCCESSORS
        """How long the successor list is to be."""
        self.changed_at = runtime.now
        """When the neighbours changed last."""
        self.on_changed: Callable[[], None] = lambda: None
        self.on_placed: Callable[[], None] = lambda: None
        self.on_joined: list[Callable[[], None]] = []
        self._links = links
        self._rpc = rpc
        self._lookups = lookups
        self._runtime = runtime
        self._unsettled = 5
        """Quick stabilisations still to come after the last change."""
        self._stabilising = False
        self._version = runtime.rng.getrandbits(32)
        self._known: tuple[Ident, m.Neighbours] | None = None
        """What our successor answered last."""
        self._settled_version = 0
        """Our own version when we had taken that in; if neither has changed, nothing is to be done."""
        self._said_before: Ident | None = None
        """Who was before our successor when we came: before us then, whoever that is by now."""
        lookups.ring = self
        links.on_down.append(self._link_down)
        links.on_up.append(self._link_up)
        rpc.serve(m.GetNeighbours, lambda link, body: self.neighbours())
        rpc.serve(m.Notify, self._notified)
        rpc.serve(m.Leaving, self._neighbour_leaves)
        rpc.serve(m.Suggest, self._suggested)

    # --- what others ask ---------------------------------------------------------------------

    def neighbours(self) -> m.Neighbours:
        """Our surroundings, as told to others."""
        return m.Neighbours(self.predecessor, tuple(self.successors), self.joined, self._version)

    def owns(self, key: bytes, without: Ident | None = None) -> bool:
        """Whether `key` lies between our predecessor and us; while we have none, the nearest member before us that we know.

        `without` names a node that is to be left out of account, because it is only looking for its place.
        """
        if not self.joined:
            return False
        if self.predecessor is not None and self.predecessor != without:
            return within(self.predecessor, key, self.ident)
        if not self.placed and self._said_before is None:
            return not self.successors
        before = self._said_before or self._linked_before(without)
        return before is None or within(before, key, self.ident)

    def around(self) -> list[Ident]:
        """This node and its successors, in ring order: who keeps what this node owns."""
        return [self.ident, *self.successors]

    def near(self) -> list[Ident]:
        """All neighbours, those after us first."""
        return self.beside(len(self.successors))

    def beside(self, count: int) -> list[Ident]:
        """The nearest neighbours, `count` after us and the one before."""
        return [*self.successors[:count], *([self.predecessor] if self.predecessor else [])]

    def across(self, target: Ident) -> Ident | None:
        """Our neighbour on the other side of `target`, where that lies between the two of us."""
        if self.successors and strictly_within(self.ident, target, self.successors[0]):
            return self.successors[0]
        if self.predecessor and strictly_within(self.predecessor, target, self.ident):
            return self.predecessor
        return None

    def estimate(self) -> int:
        """How many nodes the ring has, judged by how dense it is here."""
        known = [*self.successors]
        if not known:
            return 1
        arc = clockwise(self.ident, known[-1])
        return max(len(known) + 1, round(len(known) * (1 << IDENT_BITS) / arc)) if arc else len(known) + 1

    def calm(self) -> None:
        """Take the neighbours as long settled: for simulations that begin in the middle."""
        self._unsettled = 0
        self.changed_at = -1e9

    # --- life --------------------------------------------------------------------------------

    def found(self) -> None:
        """Be a ring of one: the first node of a network, or one that finds nobody."""
        self._become_member()

    async def join(self, contact: Ident) -> None:
        """Find our place through a linked member and take it. Raises `Unreachable` when the ring does not answer."""
        found = await self._lookups.ask(contact, self.ident, exclude=self.ident)
        await self._links.connect(found.owner, found.agent)
        for ident in (found.owner, *found.successors):
            self.insert_successor(ident)
        self._become_member()
        await self._stabilise()

    def _become_member(self) -> None:
        if self.joined:
            return
        self.joined = True
        self._runtime.emit(Joined())
        self._runtime.background(self._stabilise_for_ever())
        for hook in self.on_joined:
            hook()

    async def leave(self) -> None:
        """Tell the neighbours who takes our place."""
        self.leaving, self.joined = True, False
        message = m.Leaving(self.predecessor, tuple(self.successors))
        for ident in dict.fromkeys([*self.successors[:1], *([self.predecessor] if self.predecessor else [])]):
            try:
                await self._rpc.call(ident, message, 2.0)
            except IpopError:
                self._runtime.count("leave_untold")

    def _neighbour_leaves(self, link: Link, body: m.Leaving) -> m.Done:
        link.placed = False
        self._forget(link.ident)
        for ident in (*body.successors, *([body.predecessor] if body.predecessor else [])):
            if ident != link.ident:
                self._suggest(ident, link.ident)
        return m.Done()

    # --- stabilise and rectify ---------------------------------------------------------------

    async def _stabilise_for_ever(self) -> None:
        rounds = 0
        while not self.leaving:
            await self._stabilise()
            quick = self._unsettled > 0
            rounds += 1
            if quick or rounds % 6 == 0:
                self._consider_linked()
            self._unsettled = max(0, self._unsettled - 1)
            await self._runtime.sleep(self._runtime.spread(STABILISE / 10 if quick else STABILISE))

    async def _stabilise(self) -> None:
        """Ask the successor for its surroundings, take a nearer one if it knows one, then present ourselves."""
        if self._stabilising or not self.joined:
            return
        self._stabilising = True
        try:
            for _ in range(SUCCESSORS):
                if not self.successors:
                    return
                if await self._stabilise_with(self.successors[0]):
                    return
        finally:
            self._stabilising = False

    async def _stabilise_with(self, successor: Ident) -> bool:
        """True when `successor` answered and is still our first."""
        try:
            known = self._known[1] if self._known and self._known[0] == successor else None
            answer = await self._rpc.call(successor, m.Notify(known.version if known else 0), 4.0)
            if known and isinstance(answer, m.Done):
                if self._settled_version == self._version:
                    return True
                answer = known
            if not isinstance(answer, m.Neighbours):
                raise unexpected(answer)
        except IpopError:
            self._forget(successor)
            return False
        if not answer.joined:
            self._forget(successor)
            return False
        self._known = (successor, answer)
        nearer = answer.predecessor
        if nearer and nearer != self.ident and strictly_within(self.ident, nearer, successor):
            try:
                await self._links.connect(nearer, successor)
            except IpopError:
                self._runtime.count("nearer_unreachable")
            else:
                self.insert_successor(nearer)
                return False
        elif self.predecessor is None:
            before = self._before_us(successor, answer)
            if before is not None:
                self._runtime.background(self.meet_predecessor(before, successor))
        self._adopt_list(successor, answer.successors)
        self._settled_version = self._version
        return True

    def _before_us(self, successor: Ident, answer: m.Neighbours) -> Ident | None:
        """Who precedes us, by what our successor says: whom it had before us; if that is us already, who stands before us in its list."""
        if answer.predecessor and strictly_within(successor, answer.predecessor, self.ident):
            return answer.predecessor
        if self.ident in answer.successors:
            return (successor, *answer.successors)[answer.successors.index(self.ident)]
        return None

    async def meet_predecessor(self, ident: Ident, informant: Ident) -> None:
        """Make ourselves known to the member that is said to be before us: the second step of joining need not wait for it to find us."""
        if self.predecessor is None:
            self._said_before = ident
        await self.consider(await self._links.connect(ident, informant))

    def _adopt_list(self, successor: Ident, theirs: tuple[Ident, ...]) -> None:
        """Our list is our successor and the head of its list, as long as that goes on clockwise and does not pass us."""
        fresh = [successor]
        for ident in theirs:
            if not strictly_within(fresh[-1], ident, self.ident):
                break
            fresh.append(ident)
        fresh = fresh[: self.length]
        if fresh != self.successors:
            self.successors = fresh
            self._changed()
        for ident in fresh[:LINKED]:
            if ident not in self._links.by_ident:
                self._runtime.background(self._keep_or_forget(ident, successor))

    async def _keep_or_forget(self, ident: Ident, informant: Ident | None) -> None:
        try:
            await self._links.connect(ident, informant)
        except IpopError:
            self._forget(ident)

    def _notified(self, link: Link, body: m.Notify) -> m.Neighbours | m.Done:
        """Rectify: the asker believes that it precedes us. It learns whom we had before."""
        link.placed = True
        answer = m.Done() if body.known == self._version else self.neighbours()
        self._consider_predecessor(link.ident)
        return answer

    def _consider_predecessor(self, ident: Ident) -> None:
        if not self.joined or ident == self.ident:
            return
        old = self.predecessor
        if old is not None and old in self._links.by_ident and not strictly_within(old, ident, self.ident):
            return
        if old == ident:
            return
        self.predecessor, self._said_before = ident, None
        self._changed()
        if not self.successors:
            self.insert_successor(ident)
        if old is not None and old in self._links.by_ident:
            self._runtime.background(self._tell(old, m.Suggest(ident)))

    async def _tell(self, ident: Ident, body: m.Ask) -> None:
        await self._rpc.call(ident, body)

    # --- candidates --------------------------------------------------------------------------

    def _link_up(self, link: Link) -> None:
        """Every linked member may be a neighbour; whether it is on the ring shows when we ask it."""
        if self.joined and self._fits(link.ident):
            self._runtime.background(self.consider(link))

    def _fits(self, ident: Ident) -> bool:
        return self.predecessor is None or strictly_within(self.predecessor, ident, self.ident) or self._fits_after(ident)

    def _fits_after(self, ident: Ident) -> bool:
        """Not behind the last of a list that is shorter than it might be: those that come there only our successor can tell."""
        return len(self.successors) < SUCCESSORS or strictly_within(self.ident, ident, self.successors[-1])

    def _consider_linked(self) -> None:
        """A member to whom we have a link and who lies nearer than our neighbours has been overlooked."""
        for link in self._links:
            after = not self.successors or strictly_within(self.ident, link.ident, self.successors[0])
            before = self.predecessor is None or strictly_within(self.predecessor, link.ident, self.ident)
            if link.placed and (after or before):
                self._runtime.background(self.consider(link))

    async def consider(self, link: Link) -> None:
        """Ask a member whether it is on the ring, and take it as neighbour on either side if it is nearer than those we have."""
        answer = await self._rpc.on_link(link, m.GetNeighbours())
        if not isinstance(answer, m.Neighbours) or not answer.joined or not self.joined:
            return
        if self._fits_after(link.ident):
            self.insert_successor(link.ident)
        if self.placed or self.predecessor or self._may_precede(link.ident):
            self._consider_predecessor(link.ident)

    def _may_precede(self, ident: Ident) -> bool:
        """Whether a newcomer may take a member for the one before it: not just anybody it happens to know."""
        said = self._said_before
        return said is not None and (ident == said or strictly_within(said, ident, self.ident))

    def _suggested(self, link: Link, body: m.Suggest) -> m.Done:
        self._suggest(body.ident, link.ident)
        return m.Done()

    def _suggest(self, ident: Ident, informant: Ident) -> None:
        """Somebody named a node that may be near."""
        if ident != self.ident and self.joined and self._fits(ident) and ident not in self._links.by_ident:
            self._runtime.background(self._try(ident, informant))

    async def _try(self, ident: Ident, informant: Ident) -> None:
        await self._links.connect(ident, informant)

    def insert_successor(self, ident: Ident) -> None:
        """Put a linked member where it belongs in the list, if it does; tell it of the first one that it displaces."""
        if ident == self.ident or ident in self.successors:
            return
        ordered = sorted([*self.successors, ident], key=lambda other: clockwise(self.ident, other))[: self.length]
        if ordered != self.successors:
            displaced = self.successors[0] if self.successors and ordered[0] == ident else None
            self.successors = ordered
            self._changed()
            if displaced is not None and ident in self._links.by_ident:
                self._runtime.background(self._tell(ident, m.Suggest(displaced)))

    def needs(self, ident: Ident) -> bool:
        """Whether we need a link to a member: as neighbour or finger, and to anybody while we look for our place."""
        return not self.joined or ident == self.predecessor or ident in self.successors[:LINKED] or ident in self.fingers

    def _link_down(self, link: Link) -> None:
        if link.parted and self.joined:
            self._parted(link.ident)
        else:
            self._forget(link.ident)

    def _parted(self, ident: Ident) -> None:
        """A link has ended that was not needed. Its member lives: should it have become a neighbour just then, link to it again."""
        if ident == self.predecessor or ident in self.successors[:LINKED]:
            self._runtime.background(self._keep_or_forget(ident, None))

    def _forget(self, ident: Ident) -> None:
        changed = False
        if ident in self.successors:
            self.successors.remove(ident)
            changed = True
        if ident == self.predecessor:
            self.predecessor = self._linked_before(ident)
            changed = True
        if ident in self.fingers:
            self.fingers.remove(ident)
        if ident == self._said_before:  # else it could not come back: its own place would not be ours to give
            self._said_before = None
        if changed:
            self._refill()
            self._changed()
            self._reach_on()

    def _reach_on(self) -> None:
        """Somebody has gone: link to who is next, and to many at once where nobody linked is left: each dead one takes its time."""
        many = not self.successors or self.successors[0] not in self._links.by_ident
        for ident in self.successors[: LINKED_IN_NEED if many else LINKED]:
            if self.joined and ident not in self._links.by_ident:
                self._runtime.background(self._keep_or_forget(ident, None))

    def _linked_before(self, without: Ident | None) -> Ident | None:
        """The nearest member before us to whom we have a link."""
        linked = (link.ident for link in self._links.by_ident.values() if link.placed and link.ident != without)
        return min(linked, key=lambda ident: clockwise(ident, self.ident), default=None)

    def _refill(self) -> None:
        """An empty list is filled from whoever is linked, nearest first, so that a ring is never left for want of patience."""
        if self.successors or not self.joined:
            return
        linked = sorted((link.ident for link in self._links), key=lambda ident: clockwise(self.ident, ident))
        self.successors = linked[: self.length]

    def _changed(self) -> None:
        self._unsettled = 5
        self._version = self._version % (1 << 60) + 1
        self.changed_at = self._runtime.now
        wanted = min(max(SUCCESSORS, 2 * (self.estimate() - 1).bit_length()), LONGEST)
        if abs(wanted - self.length) > 2:  # the estimate itself depends on the list
            self.length = wanted
        self.watched = frozenset(self.beside(2))
        self._runtime.emit(RingChanged())
        if not self.placed and self.predecessor and self.successors:
            self.placed = True
            self.on_placed()
        self.on_changed()
        if self.joined:
            self._runtime.after(0.05, lambda: self._runtime.background(self._stabilise()))
