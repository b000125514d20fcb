"""Routing with one step of look-ahead, and the arcs of fingers: pure functions."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import TestCase

from ipop_tx.core.routing import AROUND, Table, ahead, arcs, encode_delay, next_hop, off, place_of, quickest

PLACES = st.integers(0, AROUND - 1)


@dataclass
class Member:
    """A step."""

    place: int
    rtt: float = 0.01
    table: Table | None = None


def ident(place: int) -> bytes:
    """An ident at a place."""
    return place.to_bytes(8, "big") + bytes(12)


def table(*places: int, delay: float = 0.01) -> Table:
    """A table of members at some places."""
    return Table([ident(place) for place in sorted(places)], bytes([encode_delay(delay)]) * len(places))


class RoutingTests(TestCase):
    """Where a question goes."""

    @given(PLACES, PLACES)
    def test_off(self, place: int, key: int) -> None:
        """Only the owner's own place is no way off; after the key counts for more than before it."""
        self.assertEqual(off(place, key) == 0, place == key)
        self.assertLessEqual(off(place, key), ahead(key, place))

    @given(st.lists(PLACES, min_size=1, max_size=20, unique=True), PLACES, PLACES)
    def test_without_tables(self, places: list[int], own: int, key: int) -> None:
        """The nearest member, if nobody has told of others."""
        found = next_hop(own, key, [Member(place) for place in places])
        assert found is not None
        self.assertEqual(off(found.place, key), min(off(place, key) for place in places))

    def test_look_ahead(self) -> None:
        """A member further off that has a link to the owner is better than a nearer one that has none; the quicker of two such."""
        far, quick, near = Member(900, 0.05, table(100)), Member(800, 0.01, table(100)), Member(150)
        self.assertIs(next_hop(500, 100, [far, near, quick]), quick)
        self.assertIs(next_hop(500, 100, [far, near, quick], {100}), near, "the owner that it knows is dead")
        self.assertIs(next_hop(100, 100, [far, near, quick]), near, "we ourselves are no step")
        self.assertIsNone(next_hop(1, 2, list[Member]()))

    @given(PLACES, st.integers(0, 2**60))
    def test_arcs(self, own: int, reach: int) -> None:
        """Halves, quarters, ...: side by side from a full turn down to the reach, ourselves left out."""
        found = list(arcs(own, reach))
        self.assertEqual(found[0][1], (own - 1) % AROUND)
        for (low, _), (_, high) in pairwise(found):
            self.assertEqual(low, high)
        self.assertTrue(all(reach < ahead(own, low) for low, _ in found))

    @given(st.floats(0, 100))
    def test_delays(self, seconds: float) -> None:
        """One byte, at most 4 % too much up to ten seconds."""
        told = table(1, delay=seconds).delay(0)
        if 0.0005 <= seconds <= 10:
            self.assertTrue(seconds <= told <= 1.041 * seconds)

    @given(st.lists(PLACES, max_size=20, unique=True), PLACES, PLACES)
    def test_within(self, places: list[int], low: int, high: int) -> None:
        """The members in an arc, also across the end of the numbers."""
        known = table(*places)
        inside = {known.places[at] for at in known.within(low, high)}
        self.assertEqual(inside, {place for place in places if low != high and ahead(low, place) < ahead(low, high)})

    def test_quickest(self) -> None:
        """The least round trip."""
        self.assertEqual(quickest([(0.2, b"a"), (0.1, b"b")]), (0.1, b"b"))
        self.assertIsNone(quickest([]))
        self.assertEqual(place_of(ident(7)), 7)
