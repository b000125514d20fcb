"""The check of histories agrees with one that simply tries every order."""

from __future__ import annotations

from collections import Counter
from math import inf
from random import Random
from typing import Any

from twisted.trial.unittest import TestCase

from ipop_tx.core import commands as c
from ipop_tx.errors import Conflict
from ipop_tx.simulation.history import Operation, linearizable
from ipop_tx.wire.messages import Record

CLIENTS = (b"a" * 20, b"b" * 20)
Content = tuple[bytes, int, bytes, float] | None


def any_order(left: list[Operation], now: float, content: Content, last: int) -> bool:
    """Whether what is left can take effect one after the other from `now` on. Unanswered operations may be left out."""
    if all(operation.end == inf for operation in left):
        return True
    for operation in left:
        rest = [other for other in left if other is not operation]
        for gone in (False, True):
            moment = max(now, operation.begin, content[3] if gone and content else 0.0)
            if moment > operation.end or (gone and content is None):
                continue
            for after, version in effects(operation, None if gone else content, content, last, versions(left)):
                if any_order(rest, moment, after, version):
                    return True
    return False


def versions(operations: list[Operation]) -> dict[bytes, int]:
    """Under which version a value was seen."""
    return {operation.outcome.value: operation.outcome.version for operation in operations if isinstance(operation.outcome, Record)}


def effects(operation: Operation, found: Content, kept: Content, last: int, seen: dict[bytes, int]) -> list[tuple[Content, int]]:
    """What the register holds after an operation that finds `found`; if it changes nothing, what was there is kept."""
    command, outcome = operation.command, operation.outcome
    shown = found and (found[0], found[1], found[2])
    if isinstance(command, c.Get):
        told = outcome and (outcome.owner, outcome.version, outcome.value)
        return [(kept, last)] if operation.end == inf or told == shown else []
    ours = found is not None and found[0] == operation.client and not isinstance(command, c.Create) and found[1] == command.version
    if isinstance(command, c.Delete):
        if ours:
            return [(None, last + 1)]
        return [(kept, last)] if found is None or isinstance(outcome, Conflict) or operation.end == inf else []
    fits = found is None if isinstance(command, c.Create) else ours
    if isinstance(outcome, Conflict) or (operation.end == inf and not fits):
        return [] if fits else [(kept, last)]
    version = outcome.version if outcome else seen.get(command.value, last + 1)
    return [((operation.client, version, command.value, operation.begin + command.ttl), version)] if fits and version > last else []


def drawn(rng: Random, size: int) -> list[Operation]:
    """Calls at random moments with random outcomes, of which some make sense."""
    records = [Record(rng.choice(CLIENTS), rng.randrange(1, 4), 9, b"%d" % at, b"", b"") for at in range(size)]
    operations = []
    for at in range(size):
        begin = rng.uniform(0, 12)
        client, version = rng.choice(CLIENTS), rng.randrange(1, 4)
        kind = rng.randrange(4)
        command: Any = (c.Get(b"k"), c.Create(b"k", b"%d" % at, 6), c.CompareAndSet(b"k", version, b"%d" % at, 6), c.Delete(b"k", version))[
            kind
        ]
        outcome: Any = (rng.choice([None, *records]), records[at], records[at], None)[kind]
        if kind and rng.random() < 0.3:
            outcome = Conflict("taken")
        elif kind in (1, 2):
            outcome = records[at] = Record(client, rng.randrange(1, 4) if kind == 1 else version + 1, 6, b"%d" % at, b"", b"")
        known = rng.random() < 0.75
        operations.append(Operation(command, client, begin, begin + rng.uniform(0, 9) if known else inf, outcome if known else None))
    return operations


class HistoryTests(TestCase):
    """Random histories."""

    def test_agrees(self) -> None:
        """Of thousands of small histories, both find the same ones to have an order, and there are many of either kind."""
        rng = Random(5)
        found: Counter[bool] = Counter()
        for number in range(4000):
            history = drawn(rng, rng.randrange(2, 6))
            expected = any_order(history, 0.0, None, 0)
            self.assertIs(linearizable(history), expected, f"history {number}: {history}")
            found[expected] += 1
        self.assertGreater(min(found.values()), 300, found)
