"""Who keeps a shard, as nodes come and go.

The members of a view are to be the first nodes at or after the shard's beginning. The first of them that lives, its *steward*,
compares and, where they differ, changes the view by a stop sign:

1. *seal* the view at a majority: nothing is accepted in it any more;
2. *succeed*: one Paxos decision among its members on who is next (a majority answers for it, so there is never a second one);
3. collect from that majority every promise and accepted value, and *install* them at a majority of the next view, which is thereby open.

Promises travel too: a ballot that was promised in one view cannot be undercut in the next. Members that miss the installation
are simply replicas that have not heard anything yet; any member that has its copy sends them that copy, which is for them as if
everything that it has accepted reached them only now.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple

from ipop_tx.core.dht.coordinator import Coordinator, majority
from ipop_tx.core.dht.replica import REPLICAS, Replicas, Shard, page, raised
from ipop_tx.core.links.linktable import LinkTable
from ipop_tx.core.ring.lookup import Lookups
from ipop_tx.core.ring.ring import Ring
from ipop_tx.core.runtime import Runtime, Timer
from ipop_tx.core.tasks import Future, quorum, successes
from ipop_tx.errors import IpopError
from ipop_tx.values import IDENT_BYTES, Ident
from ipop_tx.wire import messages as m

PERIOD = 3.0
"""Seconds between looks at all shards of this node."""
SETTLE = 0.5
"""Seconds after a change of the ring until the shards are looked at; neighbours often come in company."""
HAND_OVER = 10.0
"""Seconds that a node which leaves gives to handing over."""
VERIFY_AFTER = 5.0
"""Seconds after which a node that has a copy of a view sees whether the other members have theirs."""
UNFINISHED = 4.0
"""Seconds after which a sealed view is taken up by whoever is first among its living members."""


class Shortage(NamedTuple):
    """How many members of a view are linked, how many make a majority, and how many there are."""

    reached: int
    needed: int
    replicas: int


class Views:
    """Keeps the views of this node's shards in step with the ring."""

    def __init__(
        self, replicas: Replicas, coordinator: Coordinator, ring: Ring, lookups: Lookups, links: LinkTable, runtime: Runtime
    ) -> None:
        self._replicas = replicas
        self._coordinator = coordinator
        self._ring = ring
        self._lookups = lookups
        self._links = links
        self._runtime = runtime
        self._changing: set[int] = set()
        self._lagging: dict[int, set[Ident]] = {}
        self._verified: dict[int, int] = {}
        """The view of each shard of which every member has been seen to have its copy."""
        self._round = 0
        self._looking: set[int] = set()
        self._leaving = False
        coordinator.on_lagging = lambda shard, member: self._lagging.setdefault(shard, set()).add(member)
        self._soon: Timer | None = None
        ring.on_changed = self._check_soon
        runtime.background(self._check_for_ever())

    async def _check_for_ever(self) -> None:
        while not self._ring.leaving:
            await self._runtime.sleep(self._runtime.spread(PERIOD))
            self.check()

    def _check_soon(self) -> None:
        if self._soon is None:
            self._soon = self._runtime.after(SETTLE, self._check_now)

    def _check_now(self) -> None:
        self._soon = None
        self.check()

    def needs(self, ident: Ident) -> bool:
        """Whether we need a link to a member: those who keep a shard with us are known to live by it. Any may be an heir."""
        return self._leaving or any(ident in shard.members or ident in self._heard_of(shard) for shard in self._replicas.shards.values())

    def shortages(self) -> list[Shortage]:
        """The shards that this node keeps of which no majority is linked, so that they can be neither read nor written here."""
        found = []
        for shard in self._replicas.shards.values():
            if not self._replicas.superseded(shard):
                reached = sum(member == self._replicas.ident or member in self._links.by_ident for member in shard.members)
                if reached < majority(shard.members):
                    found.append(Shortage(reached, majority(shard.members), len(shard.members)))
        return found

    def _heard_of(self, shard: Shard) -> tuple[Ident, ...]:
        return self._replicas.newest(shard.index).members

    def check(self) -> None:
        """Look at every shard that this node keeps; change the views that want it. Each by itself: one slow look-up delays no other."""
        if self._leaving or not self._ring.joined:
            return
        for shard in list(self._replicas.shards.values()):
            if self._replicas.superseded(shard):
                self._look(shard, self._retire_if_over)
            elif self._is_steward(shard) or self._abandoned(shard):
                self._look(shard, self._check_shard)
            self._look_after(shard)

    def _look(self, shard: Shard, work: Callable[[Shard], Coroutine[Any, None, None]]) -> None:
        if shard.index not in self._changing and shard.index not in self._looking:
            self._looking.add(shard.index)
            self._runtime.background(work(shard)).then(lambda done: self._looking.discard(shard.index))

    async def _retire_if_over(self, shard: Shard) -> None:
        """Forget a copy once a majority answers for the view that we have heard of; while it does not, ours may still be needed."""
        later = self._replicas.newest(shard.index)
        if self._replicas.ident in later.members:
            return
        peek = m.Peek(shard.index, later.number, bytes(IDENT_BYTES))
        needed = majority(later.members)
        answers = await quorum([self._coordinator.ask_member(member, peek) for member in later.members], _enough(m.Promise, needed))
        if _enough(m.Promise, needed)(answers):
            self._replicas.retire(m.Retire(shard.index, later.number - 1, later.members))
        elif self._abandoned(shard) and shard.index not in self._changing:
            await self._check_shard(shard)

    def _is_steward(self, shard: Shard) -> bool:
        living = [member for member in shard.members if member == self._replicas.ident or member in self._links.by_ident]
        return bool(living) and living[0] == self._replicas.ident

    def _abandoned(self, shard: Shard) -> bool:
        """Whether the view has been sealed for so long that its turn has come to us; each member waits longer than the one before it."""
        rank = shard.members.index(self._replicas.ident) if self._replicas.ident in shard.members else len(shard.members)
        return not shard.open and self._runtime.now - shard.sealed_since > UNFINISHED * (1 + rank)

    async def _check_shard(self, shard: Shard) -> None:
        if not shard.open and self._runtime.now - shard.sealed_since < UNFINISHED:
            return
        try:
            desired = await self._desired(shard)
        except IpopError:
            return
        current = self._replicas.shards.get(shard.index)
        if current is shard and (desired != shard.members or not shard.open):
            self._changing.add(shard.index)
            self._runtime.background(self._change_and_note(shard, desired))

    def _look_after(self, shard: Shard) -> None:
        """See that every member of a view has its copy; whoever installed them may have died over it.

        Also of one that is sealed: without the copy a member cannot take part in the change, and its voice may be needed.
        """
        if self._replicas.superseded(shard) or self._runtime.now - shard.opened < VERIFY_AFTER:
            return
        if self._verified.get(shard.index) != shard.number:
            self._runtime.background(self._verify(shard))
        lagging = self._lagging.pop(shard.index, set()) & set(shard.members) & set(self._links.by_ident)
        for member in sorted(lagging):
            parts = self._parts(shard, shard.number, shard.members, self._replicas.copy(shard), shard.floor)
            self._runtime.background(self._install_at(member, parts))

    async def _verify(self, shard: Shard) -> None:
        peek = m.Peek(shard.index, shard.number, bytes(IDENT_BYTES))
        there = 0
        for member in shard.members:
            try:
                answer = await self._coordinator.ask_member(member, peek)
            except IpopError:
                continue
            if isinstance(answer, m.Stale) and answer.number < shard.number:
                self._lagging.setdefault(shard.index, set()).add(member)
            there += isinstance(answer, m.Promise)
        if there == len(shard.members):
            self._verified[shard.index] = shard.number

    async def _desired(self, shard: Shard) -> tuple[Ident, ...]:
        start = self._replicas.start_of(shard.index)
        if self._ring.owns(start):
            return tuple(self._ring.around()[:REPLICAS])
        found = await self._lookups.find(start)
        return (found.owner, *(ident for ident in found.successors if ident != found.owner))[:REPLICAS]

    async def leave(self, heirs: list[Ident]) -> int:
        """Hand over every shard that this node keeps, to `heirs` after the members that stay; gives how many it could not.

        Changes that are under way are seen through first. What cannot be handed over stays on this node's disk.
        """
        self._leaving = True
        deadline = self._runtime.now + HAND_OVER
        while (ours := self._ours()) and self._runtime.now < deadline:
            for shard in ours:
                rest = [member for member in shard.members if member != self._replicas.ident and member in self._links.by_ident]
                members = tuple(dict.fromkeys([*rest, *(heir for heir in heirs if heir in self._links.by_ident)]))[:REPLICAS]
                if not members and not await self._reach_any(heirs):
                    return len(ours)
                if members and shard.index not in self._changing:
                    self._runtime.background(self._change_and_note(shard, members))
            await self._runtime.sleep(0.1)
        return len(ours)

    async def _reach_any(self, heirs: list[Ident]) -> bool:
        """Whether there is a link to one of the heirs now; neighbours that were named to us only just now may have none yet."""
        await quorum([self._links.connect(heir) for heir in dict.fromkeys(heirs)], lambda links: len(links) > 0)
        return any(heir in self._links.by_ident for heir in heirs)

    def _ours(self) -> list[Shard]:
        """The shards whose newest view, as far as we know, needs this node."""
        newest = [(shard, self._replicas.newest(shard.index)) for shard in self._replicas.shards.values()]
        return [shard for shard, view in newest if self._replicas.ident in view.members]

    async def _change_and_note(self, shard: Shard, desired: tuple[Ident, ...]) -> None:
        self._changing.add(shard.index)
        try:
            await self._change(shard, desired)
        finally:
            self._changing.discard(shard.index)

    async def _change(self, shard: Shard, desired: tuple[Ident, ...]) -> None:
        members, needed = shard.members, majority(shard.members)
        self._round = max(self._round, shard.sealed.round) + 1
        ballot = m.Ballot(self._round, self._replicas.ident)
        sealed = await self._seal(shard, ballot)
        if len(sealed) < needed:
            self._runtime.count("view_unchanged")
            return
        earlier = max(sealed.values(), key=lambda answer: answer.accepted)
        chosen = earlier.successor if earlier.accepted != m.NO_BALLOT else desired
        succeed = m.Succeed(shard.index, shard.number, ballot, chosen)
        agreed = await quorum([self._coordinator.ask_member(member, succeed) for member in members], _enough(m.Done, needed))
        if sum(isinstance(answer, m.Done) for answer in agreed) < needed:
            return
        found = await self._collect(shard, list(sealed)[:needed])
        if found is not None:
            await self._install(shard, chosen, *found)

    async def _seal(self, shard: Shard, ballot: m.Ballot) -> dict[Ident, m.Sealed]:
        """Who sealed, ourselves first if we did."""
        sealed: dict[Ident, m.Sealed] = {}
        futures = []
        for member in sorted(shard.members, key=lambda member: member != self._replicas.ident):
            future = self._coordinator.ask_member(member, m.Seal(shard.index, shard.number, ballot))
            future.then(lambda done, member=member: self._note_sealed(member, done, sealed))  # type: ignore[misc]
            futures.append(future)
        await quorum(futures, lambda answers: len(sealed) >= majority(shard.members))
        return dict(sealed)

    def _note_sealed(self, member: Ident, done: Future[m.Answer], sealed: dict[Ident, m.Sealed]) -> None:
        answer = None if done.error else done.result()
        if isinstance(answer, m.Sealed):
            sealed[member] = answer
        elif isinstance(answer, m.Refused):
            self._round = max(self._round, answer.promised.round)
        elif isinstance(answer, m.Stale):
            self._replicas.learn(answer.shard, answer.number, answer.members)

    async def _collect(self, shard: Shard, sources: list[Ident]) -> tuple[list[m.Cell], m.Floor] | None:
        """All cells of a majority, merged: the highest promise and the newest accepted value of each key; and the highest floor."""
        merged: dict[bytes, m.Cell] = {}
        floor = shard.floor
        for source in sources:
            after = b""
            while True:
                try:
                    answer = await self._coordinator.ask_member(source, m.Fetch(shard.index, shard.number, after))
                except IpopError:
                    return None
                if not isinstance(answer, m.Page):
                    return None
                floor = raised(floor, answer.floor)
                for cell in answer.cells:
                    merged[cell.key] = merge(merged.get(cell.key), cell)
                if not answer.more or not answer.cells:
                    break
                after = answer.cells[-1].key
        return [merged[key] for key in sorted(merged)], floor

    async def _install(self, shard: Shard, members: tuple[Ident, ...], cells: list[m.Cell], floor: m.Floor) -> None:
        number = shard.number + 1
        messages = self._parts(shard, number, members, cells, floor)
        needed = majority(members)
        attempts = 0
        while attempts < 5 or not self._leaving:
            installed = await successes([self._runtime.background(self._install_at(member, messages)) for member in members])
            if sum(installed) >= needed:
                await self._retire(shard, members)
                break
            attempts += 1
            await self._runtime.sleep(min(5.0, attempts))
        self._replicas.learn(shard.index, number, members)

    def _parts(self, shard: Shard, number: int, members: tuple[Ident, ...], cells: list[m.Cell], floor: m.Floor) -> list[m.Install]:
        return parts_of(shard.index, number, members, cells, floor, self._runtime.rng.getrandbits(32))

    async def _install_at(self, member: Ident, messages: list[m.Install]) -> bool:
        for message in messages:
            try:
                answer = await self._coordinator.ask_member(member, message)
            except IpopError:
                self._lagging.setdefault(message.shard, set()).add(member)
                return False
            if not isinstance(answer, m.Done):
                return isinstance(answer, m.Stale) and answer.number > message.number
        return True

    async def _retire(self, shard: Shard, members: tuple[Ident, ...]) -> None:
        gone = [member for member in shard.members if member not in members]
        retire = m.Retire(shard.index, shard.number, members)
        await successes([self._coordinator.ask_member(member, retire) for member in gone])


def parts_of(index: int, number: int, members: tuple[Ident, ...], cells: list[m.Cell], floor: m.Floor, attempt: int) -> list[m.Install]:
    """The messages that install a view at a member; at least one."""
    parts: list[tuple[m.Cell, ...]] = []
    while cells or not parts:
        parts.append(page(cells))
        cells = cells[len(parts[-1]) :]
    return [m.Install(index, number, members, part, at, at == len(parts) - 1, attempt, floor) for at, part in enumerate(parts)]


def merge(one: m.Cell | None, other: m.Cell) -> m.Cell:
    """Of two members' cells of a register the newest accepted value, and the highest promise."""
    if one is None:
        return other
    newest = max(one, other, key=lambda cell: cell.accepted)
    age = min(one.age_ms, other.age_ms) if one.accepted == other.accepted else newest.age_ms
    return m.Cell(one.key, max(one.promised, other.promised), newest.accepted, newest.record, age)


def _enough(kind: type, needed: int) -> Callable[[list[m.Answer]], bool]:
    return lambda answers: sum(isinstance(answer, kind) for answer in answers) >= needed
