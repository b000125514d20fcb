"""The ground under the control plane: ring arithmetic, futures and coroutines, timers, fragments."""

from __future__ import annotations

from collections.abc import Coroutine
from random import Random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import TestCase

from ipop_tx.core.events import Fault
from ipop_tx.core.ident import apart, clockwise, nearest, offset, shard_of, shard_start, strictly_within, within
from ipop_tx.core.links.fragments import GROUPS, PART, PATIENCE, Reassembly, split
from ipop_tx.core.runtime import Runtime
from ipop_tx.core.tasks import Future, failed, first, quorum, settled, spawn
from ipop_tx.errors import Unreachable
from ipop_tx.values import IDENT_BITS
from ipop_tx.wire import messages as m
from ipop_tx.wire.datagram import DATAGRAM_LIMIT, OVERHEAD

IDENTS = st.binary(min_size=20, max_size=20)
RING = 1 << IDENT_BITS


def ident(number: int) -> bytes:
    """A place on the ring."""
    return (number % RING).to_bytes(20, "big")


class IdentTests(TestCase):
    """Arcs and distances."""

    def test_arcs(self) -> None:
        """Half-open and open arcs, also through zero, and from a node round to itself."""
        low, mid, high = ident(10), ident(20), ident(30)
        self.assertTrue(within(low, mid, high) and within(low, high, high) and not within(low, low, high))
        self.assertTrue(within(high, low, mid) and within(high, ident(-1), mid) and not within(high, ident(25), mid))
        self.assertTrue(within(mid, low, mid) and within(mid, mid, mid))
        self.assertTrue(strictly_within(low, mid, high) and not strictly_within(low, high, high))
        self.assertTrue(strictly_within(mid, low, mid) and not strictly_within(mid, mid, mid))

    @given(IDENTS, IDENTS, IDENTS)
    def test_against_integers(self, low: bytes, key: bytes, high: bytes) -> None:
        """The comparison of bytes is the arithmetic of integers."""
        arc, steps = (int.from_bytes(b, "big") for b in (high, key))
        start = int.from_bytes(low, "big")
        arc, steps = (arc - start) % RING or RING, (steps - start) % RING or RING
        self.assertEqual(within(low, key, high), steps <= arc)
        self.assertEqual(offset(low, clockwise(low, key)), key)
        self.assertEqual(apart(low, key), apart(key, low))
        self.assertLessEqual(apart(low, key), RING // 2)
        self.assertEqual(strictly_within(low, key, high), within(low, key, high) and key not in (low, high))

    @given(st.lists(IDENTS, min_size=1, unique=True), IDENTS)
    def test_nearest(self, members: list[bytes], key: bytes) -> None:
        """The member with the least distance, the same for everybody."""
        chosen = nearest(sorted(members), key)
        self.assertEqual(apart(chosen, key), min(apart(member, key) for member in members))

    @given(IDENTS, st.integers(1, 300))
    def test_shards(self, key: bytes, shards: int) -> None:
        """A key lies at or after the start of its shard and before the start of the next."""
        index = shard_of(key, shards)
        self.assertTrue(0 <= index < shards)
        self.assertLessEqual(shard_start(index, shards), key)
        if index + 1 < shards:
            self.assertLess(key, shard_start(index + 1, shards))
        self.assertEqual(shard_of(shard_start(index, shards), shards), index)


class TaskTests(TestCase):
    """Futures settle once; coroutines run inside whoever settles them."""

    def test_settled_once(self) -> None:
        """The first result stands, whoever asks and whenever."""
        future: Future[int] = Future()
        heard: list[int] = []
        future.then(lambda done: heard.append(done.result()))
        future.succeed(1)
        future.succeed(2)
        future.fail(ValueError())
        future.then(lambda done: heard.append(done.result()))
        self.assertEqual((heard, future.error), ([1, 1], None))

    def test_error(self) -> None:
        """A failure is raised where the result is asked for."""
        self.assertRaises(KeyError, failed(KeyError("x")).result)
        self.assertEqual(settled(3).result(), 3)

    def test_spawn(self) -> None:
        """A coroutine runs to its first unsettled future, and on when that settles."""
        gate: Future[int] = Future()
        seen: list[str] = []

        async def work() -> int:
            seen.append("begun")
            number = await settled(1)
            seen.append("through")
            return number + await gate

        outcome = spawn(work())
        self.assertEqual((seen, outcome.done), (["begun", "through"], False))
        gate.succeed(4)
        self.assertEqual(outcome.result(), 5)

    def test_spawn_fails(self) -> None:
        """An error comes out of the future, also one that was awaited and not caught."""

        async def work() -> None:
            await failed(KeyError("x"))

        self.assertIsInstance(spawn(work()).error, KeyError)

    def test_deep_chain(self) -> None:
        """A loop over settled futures does not grow the stack."""

        async def work() -> int:
            total = 0
            for number in range(20000):
                total += await settled(number)
            return total

        self.assertEqual(spawn(work()).result(), sum(range(20000)))

    def test_quorum(self) -> None:
        """As soon as it is enough; failures do not count; all settled is the end; nothing is an end too."""
        futures: list[Future[int]] = [Future() for _ in range(4)]
        two = quorum(futures, lambda results: len(results) >= 2)
        never = quorum(futures, lambda results: False)
        futures[0].fail(ValueError())
        futures[1].succeed(1)
        self.assertFalse(two.done)
        futures[2].succeed(2)
        self.assertEqual(two.result(), [1, 2])
        futures[3].succeed(3)
        self.assertEqual((two.result(), never.result()), ([1, 2], [1, 2, 3]))
        self.assertEqual(quorum([], lambda results: False).result(), [])

    def test_first(self) -> None:
        """Settled by whichever future is, also by a failure."""
        futures: list[Future[int]] = [Future(), Future()]
        race = first(futures)
        self.assertFalse(race.done)
        futures[1].fail(ValueError())
        self.assertTrue(race.done)
        self.assertIsNone(race.error)


class RuntimeTests(TestCase):
    """Timers and background work."""

    def setUp(self) -> None:
        self.runtime = Runtime(Random(1))

    def test_order(self) -> None:
        """By time, then in the order of their making; cancelled ones not at all; each once."""
        calls: list[str] = []
        for delay, name in ((2.0, "c"), (1.0, "a"), (1.0, "b"), (3.0, "late")):
            self.runtime.after(delay, lambda name=name: calls.append(name))  # type: ignore[misc]
        self.runtime.after(0.5, lambda: calls.append("never")).cancel()
        self.assertEqual(self.runtime.deadline(), 1.0)
        self.runtime.now = 2.0
        self.runtime.run_due()
        self.runtime.run_due()
        self.assertEqual((calls, self.runtime.deadline()), (["a", "b", "c"], 3.0))

    def test_timer_makes_timer(self) -> None:
        """A timer that a timer makes for now is due in the same call."""
        calls: list[int] = []
        self.runtime.after(0.0, lambda: self.runtime.after(0.0, lambda: calls.append(1)))
        self.runtime.run_due()
        self.assertEqual((calls, self.runtime.deadline()), ([1], None))

    def test_sleep(self) -> None:
        """A sleeper wakes at its time and not before."""
        sleeper = self.runtime.sleep(1.0)
        self.runtime.now = 0.99
        self.runtime.run_due()
        self.assertFalse(sleeper.done)
        self.runtime.now = 1.0
        self.runtime.run_due()
        self.assertTrue(sleeper.done)

    def test_background(self) -> None:
        """An expected failure is counted, a bug becomes a fault with its traceback."""

        async def raises(error: Exception) -> None:
            raise error

        self.run_both(raises)
        self.assertEqual(self.runtime.counters, {"background_unreachable": 1})
        (fault,) = self.runtime.events
        self.assertIsInstance(fault, Fault)
        self.assertIn("ZeroDivisionError: by nought", str(fault))

    def run_both(self, raises: Any) -> None:
        """One failure of the world, one of ours."""
        work: Coroutine[Any, Any, None]
        for work in (raises(Unreachable("nobody there")), raises(ZeroDivisionError("by nought"))):
            self.runtime.background(work)

    def test_spread(self) -> None:
        """A fifth either way, and not always the same."""
        drawn = [self.runtime.spread(10.0) for _ in range(200)]
        self.assertTrue(8.0 <= min(drawn) < 8.5 and 11.5 < max(drawn) <= 12.0)


class FragmentTests(TestCase):
    """Long control messages in pieces."""

    def setUp(self) -> None:
        self.runtime = Runtime(Random(1))
        self.reassembly = Reassembly(self.runtime)
        self.sender = bytes(20)

    def pieces(self, payload: bytes) -> list[m.Fragment]:
        """What travels."""
        fragments = [m.decode(part) for part in split(payload, self.runtime)]
        return [fragment for fragment in fragments if isinstance(fragment, m.Fragment)]

    def add(self, fragment: m.Fragment, sender: bytes | None = None) -> bytes | None:
        """One arrives."""
        return self.reassembly.add(sender or self.sender, fragment)

    def test_short(self) -> None:
        """What fits a datagram is left alone; one byte more is not."""
        fits = bytes(DATAGRAM_LIMIT - OVERHEAD)
        self.assertEqual(split(fits, self.runtime), [fits])
        self.assertEqual(len(split(fits + b"x", self.runtime)), 2)

    @given(st.binary(min_size=1), st.integers(DATAGRAM_LIMIT, 64 * PART), st.randoms(use_true_random=False))
    def test_any_order(self, pattern: bytes, length: int, random: Random) -> None:
        """Whatever the order and however often each comes, the last missing piece gives the whole, once, and each fits a datagram."""
        payload = (pattern * (length // len(pattern) + 1))[:length]
        parts = split(payload, self.runtime)
        self.assertLessEqual(max(map(len, parts)) + OVERHEAD, DATAGRAM_LIMIT)
        pieces = self.pieces(payload)
        random.shuffle(pieces)
        self.assertEqual([self.add(piece) for piece in (*pieces[:-1], *pieces[:-1])], [None] * (2 * len(pieces) - 2))
        self.assertEqual(self.add(pieces[-1]), payload)

    def test_lost(self) -> None:
        """Without one piece there is nothing; a sending anew does not mix with it."""
        payload = bytes(3 * PART)
        old, new = self.pieces(payload), self.pieces(payload)
        self.assertEqual([self.add(piece) for piece in (*old[:2], *new[:2])], [None] * 4)
        self.assertEqual(self.add(new[2]), payload)

    def test_senders_apart(self) -> None:
        """Two senders with one group number do not mix."""
        one, two = self.pieces(bytes(2 * PART))
        self.assertIsNone(self.add(one))
        self.assertIsNone(self.add(two, bytes([1]) * 20))

    def test_lies(self) -> None:
        """A piece that disagrees with its group, lies outside it or is too long is dropped."""
        self.assertIsNone(self.add(m.Fragment(1, 0, 2, b"a")))
        for lie in (m.Fragment(1, 1, 3, b"b"), m.Fragment(1, 2, 2, b"b"), m.Fragment(1, 1, 2, bytes(PART + 1))):
            self.assertIsNone(self.add(lie))
        self.assertEqual(self.runtime.counters, {"fragment_bad": 3})
        self.assertEqual(self.add(m.Fragment(1, 1, 2, b"b")), b"ab")

    def test_bounded(self) -> None:
        """Unfinished messages make way, the oldest first."""
        for group in range(GROUPS + 1):
            self.assertIsNone(self.add(m.Fragment(group, 0, 2, b"a")))
        self.assertIsNone(self.add(m.Fragment(0, 1, 2, b"b")))
        self.assertEqual(self.add(m.Fragment(GROUPS, 1, 2, b"b")), b"ab")

    def test_patience(self) -> None:
        """An unfinished message is forgotten after a while, when another one begins."""
        self.add(m.Fragment(1, 0, 2, b"a"))
        self.runtime.now = PATIENCE
        self.add(m.Fragment(2, 0, 2, b"a"))
        self.assertIsNone(self.add(m.Fragment(1, 1, 2, b"b")))
