"""Which way a question goes, and which far members are worth a link.

Pure functions of places on the ring, shared by the daemons, the simulation and the static model of a million nodes. A *place* is the first
64 bits of an ident: enough to tell directions, while everything that must be exact compares whole idents.

Routing is greedy with one step of look-ahead: a member is worth as much as the best of the members that it has links to ("know thy
neighbour's neighbour", Manku, Naor and Wieder 2004). A question never comes back to where it was, because the distance to the best
member in sight falls with every hop.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Container, Iterable, Iterator, Sequence
from typing import Protocol, TypeVar

from ipop_tx.values import Ident

AROUND = 1 << 64
_MASK = AROUND - 1
BEFORE = 4
"""A member before a key is worth as much as one that is so many times as far behind it: the owner of a key comes after it."""
DELAY_UNIT = 0.0005
"""Seconds that the first step of an encoded round trip stands for; each of the 255 steps is 4 % longer than the one before."""
_STEP = 1.04
_DELAYS = tuple(DELAY_UNIT * (_STEP**code) for code in range(256))


def place_of(ident: Ident) -> int:
    """Where an ident lies, in 2^-64 of the ring."""
    return int.from_bytes(ident[:8], "big")


def ahead(start: int, end: int) -> int:
    """Steps from one place to another going up."""
    return (end - start) & _MASK


def aside(one: int, other: int) -> int:
    """Steps between two places the shorter way round."""
    steps = (one - other) & _MASK
    return min(steps, AROUND - steps)


def off(place: int, key: int) -> int:
    """How far a member at `place` is from owning `key`."""
    after = (place - key) & _MASK
    return min(after, (AROUND - after) * BEFORE)


def encode_delay(seconds: float) -> int:
    """A round trip as one byte, rounded up by at most 4 %."""
    return min(bisect_left(_DELAYS, seconds), 255)


class Table:
    """The members that a node has links to, in ring order, and the round trip to each."""

    __slots__ = ("delays", "idents", "places")

    def __init__(self, idents: Sequence[Ident], delays: bytes) -> None:
        """`delays` has one byte for each ident, see `encode_delay`; the idents are in ascending order."""
        self.idents = tuple(idents)
        self.delays = delays
        self.places = array("Q", map(place_of, self.idents))

    def delay(self, at: int) -> float:
        """Round trip to the member at an index, in seconds."""
        return _DELAYS[self.delays[at]]

    def within(self, low: int, high: int) -> Iterator[int]:
        """Indices of the members in the arc from `low` up to but without `high`."""
        begin, end = bisect_left(self.places, low), bisect_left(self.places, high)
        yield from range(begin, end) if low <= high else (*range(begin, len(self.places)), *range(end))


class Step(Protocol):
    """A member that a question can be handed to."""

    place: int
    rtt: float
    table: Table | None


S = TypeVar("S", bound=Step)
M = TypeVar("M", Ident, int)
"""How a member is named."""


def next_hop(own: int, key: int, steps: Iterable[S], gone: Container[int] = ()) -> S | None:
    """The step that leads nearest to the owner of `key`, itself or by one of its own links; the quickest of several that lead as near.

    `gone` are places of members that have died, which tables may still name.
    """
    best: S | None = None
    best_off, best_delay = AROUND * BEFORE, 0.0
    for step in steps:
        distance, delay = off(step.place, key), step.rtt
        table = step.table
        if table is not None and table.places:
            places = table.places
            at = bisect_left(places, key)
            for index in (at if at < len(places) else 0, at - 1):
                place = places[index]
                further = off(place, key)
                # A member that is only reached through another one is a little further off than the other itself.
                if further < distance and place != own and place not in gone:
                    distance, delay = further, step.rtt + table.delay(index)
        if distance < best_off or (distance == best_off and delay < best_delay):
            best, best_off, best_delay = step, distance, delay
    return best


def arcs(own: int, reach: int) -> Iterator[tuple[int, int]]:
    """The arcs in which a node wants one far link each: halves of the ring after it, then quarters, ..., down to what its near links span.

    Each as (first place, first place beyond). `reach` is how far the near links go, in steps after `own`.
    """
    high = AROUND
    while high > 1:
        low = high >> 1
        if low <= reach:
            return
        yield (own + low) & _MASK, (own + high - (high == AROUND)) & _MASK
        high = low


def quickest(candidates: Iterable[tuple[float, M]]) -> tuple[float, M] | None:
    """Which of several members in one arc is worth the link: the one with the least round trip (proximity neighbour selection)."""
    return min(candidates, default=None)
