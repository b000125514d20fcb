"""Whether what clients of registers saw can be put into one order (Herlihy and Wing 1990), by Wing and Gong's search with memory.

The check knows the specification of a register and the times of calls and answers, and nothing of ballots, replicas and views.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf
from typing import Any

from ipop_tx.core import commands as c
from ipop_tx.errors import Conflict, LocalMisuse
from ipop_tx.values import Ident
from ipop_tx.wire.messages import Record

Content = tuple[Ident, int, bytes] | None
"""What a register holds: owner, version, value."""
State = tuple[Content, int]
"""The content, and the newest version that there has been."""
EMPTY: State = (None, 0)
MOST_STATES = 300_000
"""States of the search after which it gives up without a verdict."""


class Undecided(Exception):
    """The search became too wide."""


@dataclass(slots=True)
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

    def apply(self, content: Content, last: int, seen: dict[bytes, int]) -> State | None:
        """What the register holds after this operation, were it to take effect now: None if its outcome then contradicts.

        `seen` names the versions under which values have been seen, for writes of which nobody knows with which version they ended.
        """
        command, refused = self.command, isinstance(self.outcome, Conflict)
        if isinstance(command, c.Get):
            return (content, last) if content == _content(self.outcome) else None
        if isinstance(command, c.Create):
            matches = content is None
        else:
            matches = content is not None and content[:2] == (self.client, command.version)
        if isinstance(command, c.Delete):
            if matches:
                return None, last + 1  # even if refused: a repeated one may find that somebody has filled the register since it took effect
            return (content, last) if refused or content is None else None
        if refused or not matches:
            return (content, last) if refused and not matches else None
        version = self.outcome.version if self.outcome else seen.get(command.value, last + 1)
        return ((self.client, version, command.value), version) if version > last else None


def _content(record: Record | None) -> Content:
    return (record.owner, record.version, record.value) if record else None


def _versions(operations: Iterable[Operation]) -> dict[bytes, int]:
    records = (operation.outcome for operation in operations if isinstance(operation.outcome, Record))
    return {record.value: record.version for record in records}


def linearizable(operations: Iterable[Operation]) -> bool:
    """Whether the operations on one register have an order that respects time and explains every outcome.

    Those without an answer may take effect at any time after their call, or never. Raises `Undecided`.
    """
    ordered = sorted(operations, key=lambda operation: operation.begin)
    search = _Search([one for one in ordered if one.known], [one for one in ordered if not one.known and not one.idle], _versions(ordered))
    return search.succeeds()


class _Search:
    """Depth first. A place is: all known operations before `base` are done, and of those after it the ones in `mask`; the unknown ones in `used`."""

    def __init__(self, known: list[Operation], unknown: list[Operation], seen: dict[bytes, int]) -> None:
        self._known = known
        self._unknown = unknown
        self._seen = seen
        self._open: list[tuple[int, int, int, State]] = [(0, 0, 0, EMPTY)]

    def succeeds(self) -> bool:
        """Whether there is an order."""
        been: set[tuple[int, int, int, State]] = set()
        while self._open:
            place = self._open.pop()
            if place in been:
                continue
            been.add(place)
            if place[0] == len(self._known):
                return True
            if len(been) > MOST_STATES:
                raise Undecided
            self._go_on(*place)
        return False

    def _go_on(self, base: int, mask: int, used: int, state: State) -> None:
        next_ones, earliest = self._next(base, mask)
        onward: list[tuple[int, int, int, State]] = []
        for at in next_ones:
            operation = self._known[at]
            after = operation.apply(*state, self._seen)
            if after is None:
                continue
            place = (*_advanced(base, mask | 1 << at - base), used, after)
            if operation.idle:
                self._open.append(place)  # where it fits it may as well stand, since nothing depends on it
                return
            onward.append(place)
        for at, operation in enumerate(self._unknown):
            if operation.begin > earliest:
                break
            after = operation.apply(*state, self._seen) if not used >> at & 1 else None
            if after is not None and after != state:
                self._open.append((base, mask, used | 1 << at, after))
        self._open += onward

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
