"""Whether what clients of registers saw can be put into one order (Herlihy and Wing 1990), by Wing and Gong's search with memory.

The check knows the specification of a register and the times of calls and answers, and nothing of ballots, replicas and views.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import inf
from typing import Any, NamedTuple

from ipop_tx.core import commands as c
from ipop_tx.errors import Conflict, LocalMisuse
from ipop_tx.values import Ident
from ipop_tx.wire.messages import Record


class Content(NamedTuple):
    """What a register holds, and until when it does so for certain: it may be gone after its time to live, and need not."""

    owner: Ident
    version: int
    value: bytes
    until: float


State = tuple[Content | None, int]
"""The content, and the newest version that there has been."""
EMPTY: State = (None, 0)
MOST_STATES = 100_000
"""States of the search after which it gives up without a verdict."""


class Undecided(Exception):
    """The search became too wide."""


@dataclass(slots=True, eq=False)
class Operation:
    """One call by one client; each writes a value that no other writes. `end` is infinite while nobody knows whether it took effect."""

    command: c.Get | c.Create | c.CompareAndSet | c.Delete
    client: Ident
    begin: float
    end: float = inf
    outcome: Any = None
    """A record, None, or a `Conflict`."""

    def settled(self, now: float, error: BaseException | None, result: Any) -> None:
        """The answer has come. An error other than `Conflict` tells nothing about what happened."""
        if error is None or isinstance(error, Conflict):
            self.end, self.outcome = now, error or result
        elif isinstance(error, LocalMisuse):
            raise error

    @property
    def known(self) -> bool:
        """Whether it has been answered for certain."""
        return self.end < inf

    @property
    def idle(self) -> bool:
        """Whether it cannot have changed anything, whenever it took place."""
        if isinstance(self.command, c.Get):
            return True
        return isinstance(self.outcome, Conflict) and not isinstance(self.command, c.Delete)

    def apply(self, state: State, latest: float, seen: Mapping[bytes, int], named: Collection[int] = ()) -> list[State]:
        """What the register may hold after this operation, were it to take effect next: nothing if its outcome contradicts.

        `latest` is the latest moment at which that may be; `seen` names the versions under which values have been seen, for writes of
        which nobody knows with which version they ended. Where the value was not seen either, a create has had the next version, or one
        of those that somebody has `named` without its value: a register whose former versions are forgotten goes on from a later one.
        """
        content, last = state
        command, refused = self.command, isinstance(self.outcome, Conflict)
        empty = content is None or content.until <= latest
        if isinstance(command, c.Get):
            return [state] if _shows(self.outcome, content) or (empty and self.outcome is None) else []
        if isinstance(command, c.Create):
            fits, contradicts = empty, content is not None
        else:
            fits = content is not None and content[:2] == (self.client, command.version)
            contradicts = empty or not fits
        if isinstance(command, c.Delete):
            # Also a refused one: if it was repeated, it may find that somebody has filled the register since it took effect.
            emptied: list[State] = [(None, last + 1)] if fits else []
            return emptied + ([state] if (contradicts if refused else empty) else [])
        if refused:
            names = not self.outcome.version or (content is not None and content.version == self.outcome.version)
            return [state] if contradicts and names else []
        known = self.outcome.version if self.outcome else seen.get(command.value)
        versions = {known} if known else {last + 1, *(named if isinstance(command, c.Create) else ())}
        until = self.begin + command.ttl
        return [(Content(self.client, version, command.value, until), version) for version in sorted(versions) if fits and version > last]


def _shows(record: Record | None, content: Content | None) -> bool:
    if record is None or content is None:
        return record is None and content is None
    return (record.owner, record.version, record.value) == content[:3]


def _unseen(operation: Operation, seen: Mapping[bytes, int]) -> bool:
    return isinstance(operation.command, c.Create) and operation.command.value not in seen


def _builders_on_unseen(operations: Iterable[Operation]) -> set[Ident]:
    """Clients who name a version of theirs that nobody saw. A version that was seen is that of one record, and of no unseen one."""
    records = {(one.outcome.owner, one.outcome.version) for one in operations if isinstance(one.outcome, Record)}
    named = ((one.client, one.command.version) for one in operations if isinstance(one.command, (c.CompareAndSet, c.Delete)))
    return {client for client, version in named if (client, version) not in records}


def _versions(operations: Iterable[Operation]) -> dict[bytes, int]:
    records = (operation.outcome for operation in operations if isinstance(operation.outcome, Record))
    return {record.value: record.version for record in records}


def _named(operations: Iterable[Operation], seen: Mapping[bytes, int]) -> set[int]:
    """Versions of which all that is known is that somebody was in their way."""
    versions = {operation.outcome.version for operation in operations if isinstance(operation.outcome, Conflict)}
    return {version for version in versions if version} - set(seen.values())


def linearizable(operations: Iterable[Operation]) -> bool:
    """Whether the operations on one register have an order that respects time and explains every outcome.

    Those without an answer may take effect at any time after their call, or never. Raises `Undecided`.
    """
    return _Search(sorted(operations, key=lambda operation: operation.begin)).succeeds()


class _Place(NamedTuple):
    """How far a search has come: which operations have taken effect, and what the register holds."""

    base: int
    """All known operations before this one."""
    mask: int
    """Of the known operations from `base` on, those with a bit here."""
    used: int
    """The unknown ones with a bit here."""
    unseen: int
    """So many of the unseen creates."""
    state: State


class _Search:
    """Depth first, over operations in the order of their calls.

    Creates without an answer whose value nobody ever saw, and on which no other operation can build, differ in nothing but their beginning,
    and the earlier one may do whatever the later one may. So they are used in that order.
    """

    def __init__(self, ordered: list[Operation]) -> None:
        self._seen = _versions(ordered)
        self._named = _named(ordered, self._seen)
        self._known = [one for one in ordered if one.known]
        unknown = [one for one in ordered if not one.known and not one.idle]
        builders = _builders_on_unseen(ordered)
        self._unseen = [one for one in unknown if _unseen(one, self._seen) and one.client not in builders]
        self._unknown = [one for one in unknown if one not in self._unseen]
        self._open = [_Place(0, 0, 0, 0, EMPTY)]

    def succeeds(self) -> bool:
        """Whether there is an order."""
        been: set[_Place] = set()
        while self._open:
            place = self._open.pop()
            if place in been:
                continue
            been.add(place)
            if place.base == len(self._known):
                return True
            if len(been) > MOST_STATES:
                raise Undecided
            self._go_on(place)
        return False

    def _go_on(self, place: _Place) -> None:
        next_ones, earliest = self._next(place.base, place.mask)
        onward: list[_Place] = []
        for at in next_ones:
            operation = self._known[at]
            base, mask = _advanced(place.base, place.mask | 1 << at - place.base)
            afters = operation.apply(place.state, earliest, self._seen, self._named)
            places = [_Place(base, mask, place.used, place.unseen, after) for after in afters]
            if places and operation.idle:
                self._open += places  # where it fits it may as well stand, since nothing depends on it
                return
            onward += places
        self._open += [*self._unknown_ones(place, earliest), *onward]

    def _unknown_ones(self, place: _Place, earliest: float) -> Iterator[_Place]:
        """Where unknown operations may lead next: none must take effect, so only where they change something."""
        for at, operation in enumerate(self._unknown):
            if operation.begin > earliest:
                break
            if not place.used >> at & 1:
                for after in operation.apply(place.state, earliest, self._seen, self._named):
                    if after != place.state:
                        yield place._replace(used=place.used | 1 << at, state=after)
        if place.unseen < len(self._unseen) and self._unseen[place.unseen].begin <= earliest:
            for after in self._unseen[place.unseen].apply(place.state, earliest, self._seen, self._named):
                yield place._replace(unseen=place.unseen + 1, state=after)

    def _next(self, base: int, mask: int) -> tuple[list[int], float]:
        """The known operations that may come next: they began before any other that is left had ended."""
        found, earliest, at = [], inf, base
        while at < len(self._known) and self._known[at].begin <= earliest:
            if not mask >> at - base & 1:
                found.append(at)
                earliest = min(earliest, self._known[at].end)
            at += 1
        return found, earliest


def _advanced(base: int, mask: int) -> tuple[int, int]:
    """The same set of operations with the longest prefix taken into `base`."""
    while mask & 1:
        base, mask = base + 1, mask >> 1
    return base, mask
