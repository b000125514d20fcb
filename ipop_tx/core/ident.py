"""Arithmetic on the ring of 160-bit idents.

Idents are `bytes`; their order as bytes is their order as integers, so intervals need no arithmetic at all.
"""

from __future__ import annotations

from bisect import bisect_left

from ipop_tx.values import IDENT_BITS, IDENT_BYTES, Ident

_MASK = (1 << IDENT_BITS) - 1


def within(low: Ident, key: Ident, high: Ident) -> bool:
    """Whether `key` lies in the half-open arc (low, high]; the whole ring when low equals high."""
    if low < high:
        return low < key <= high
    return key > low or key <= high


def strictly_within(low: Ident, key: Ident, high: Ident) -> bool:
    """Whether `key` lies in the open arc (low, high); everything but low when low equals high."""
    if low < high:
        return low < key < high
    return key > low or key < high


def clockwise(start: Ident, end: Ident) -> int:
    """Steps from `start` to `end` going up."""
    return (int.from_bytes(end, "big") - int.from_bytes(start, "big")) & _MASK


def apart(one: Ident, other: Ident) -> int:
    """Steps between two idents the shorter way round."""
    steps = clockwise(one, other)
    return min(steps, (1 << IDENT_BITS) - steps)


def offset(start: Ident, steps: int) -> Ident:
    """The ident `steps` after `start`."""
    return ((int.from_bytes(start, "big") + steps) & _MASK).to_bytes(IDENT_BYTES, "big")


def nearest(ordered: list[Ident], key: Ident) -> Ident:
    """The member of a sorted, non-empty list with the least distance to `key` either way; the lower of two equals."""
    at = bisect_left(ordered, key)
    above = ordered[at % len(ordered)]
    if above == key:
        return above
    below = ordered[at - 1]
    return below if apart(below, key) <= apart(above, key) else above


def shard_of(key: bytes, shards: int) -> int:
    """The shard of `shards` equal parts of the ring in which `key` lies."""
    return int.from_bytes(key, "big") * shards >> IDENT_BITS


def shard_start(shard: int, shards: int) -> Ident:
    """The first ident of a shard."""
    return (((shard << IDENT_BITS) + shards - 1) // shards).to_bytes(IDENT_BYTES, "big")
