"""Whether what clients of registers saw can be put into one order (Herlihy and Wing 1990), by Wing and Gong's search with memory."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Any

from ipop_tx.core import commands as c
from ipop_tx.errors import Conflict, LocalMisuse
from ipop_tx.values import Ident
from ipop_tx.wire.messages import Record

Content = tuple[Ident, int, bytes] | None
"""What a register holds: owner, version, value."""


@dataclass
class Operation:
    """One call by one client. `end` is infinite while nobody knows whether it took effect."""

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

    def apply(self, content: Content, last: int) -> list[tuple[Content, int]]:
        """What the register may hold after this operation, were it to take effect now: empty if its outcome then contradicts."""
        command, refused = self.command, isinstance(self.outcome, Conflict)
        if isinstance(command, c.Get):
            fits = self.end == inf or content == _content(self.outcome)
            return [(content, last)] if fits else []
        if isinstance(command, c.Create):
            written, matches = command.value, content is None
        elif isinstance(command, c.CompareAndSet):
            written, matches = command.value, content is not None and content[:2] == (self.client, command.version)
        else:
            written, matches = b"", content is not None and content[:2] == (self.client, command.version)
        if refused and matches and isinstance(command, c.Delete):
            return [(None, last + 1)]  # a repeated deletion may find that somebody else has filled the register since it took effect
        if refused:
            return [(content, last)] if not matches else []
        if isinstance(command, c.Delete):
            return [(None, last + 1)] if matches else [(content, last)] if content is None else []
        version = self.outcome.version if self.outcome else last + 1
        return [((self.client, version, written), version)] if matches and version > last else []


def _content(record: Record | None) -> Content:
    return (record.owner, record.version, record.value) if record else None


def linearizable(operations: list[Operation]) -> bool:
    """Whether the operations on one register have an order that respects time and explains every outcome.

    Those without an answer may take effect at any time after their call, or never.
    """
    operations = sorted(operations, key=lambda operation: operation.begin)
    answered = sum(1 << at for at, operation in enumerate(operations) if operation.end < inf)
    seen: set[tuple[int, Content, int]] = set()
    open_states: list[tuple[int, Content, int]] = [(0, None, 0)]
    while open_states:
        state = open_states.pop()
        if state in seen:
            continue
        seen.add(state)
        done, content, last = state
        if done & answered == answered:
            return True
        earliest = min(operation.end for at, operation in enumerate(operations) if not done >> at & 1)
        for at, operation in enumerate(operations):
            if operation.begin > earliest:
                break
            if not done >> at & 1:
                open_states += [(done | 1 << at, *after) for after in operation.apply(content, last)]
    return False
