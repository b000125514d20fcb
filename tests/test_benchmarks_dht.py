"""What registers and leases promise, in the simulations of `make bench-dht`, shorter ones; and that these find what is broken."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from typing import Any
from unittest.mock import patch

from twisted.trial.unittest import TestCase

from benchmarks.dht import __main__ as bench
from benchmarks.dht import durability, partition
from benchmarks.dht.broken import VARIANTS, broken
from benchmarks.dht.linearizability import caught_after, plans, report
from benchmarks.dht.race import measure as race_measure
from benchmarks.dht.race import race
from benchmarks.dht.storm import storm
from ipop_tx.simulation.upheaval import Plan, Tally, run


class UpheavalTests(TestCase):
    """Worlds in trouble."""

    def test_every_history_has_an_order(self) -> None:
        """In a dozen worlds, in which a lot happens."""
        tally = Tally()
        for plan in islice(plans(7, 1500), 12):
            tally.add(run(plan))
        self.assertEqual((tally.violations, tally.undecided, tally.faults), (0, 0, []))
        for name, least in (("crashes", 100), ("crashes_in_commit", 30), ("partitions", 10), ("view_changes", 100), ("lost", 1000)):
            self.assertGreater(getattr(tally, name), least, name)
        self.assertGreater(tally.answered, 0.6 * tally.operations)
        self.assertLess(tally.answered, tally.operations)

    def test_same_seed(self) -> None:
        """A world is the same each time."""
        first, second = (run(Plan.drawn(3, 600)) for _ in range(2))
        self.assertEqual(first, second)


LONG = ("promises forgotten at restart", "answers before the commit", "view numbers ignored")
"""Variants that it takes tens of thousands of operations to catch: the benchmark does."""


SOONER = {"forgotten without asking all": 7, "records expire a second early": 7}
"""Variants that are caught within a few worlds of another seed."""


class BrokenTests(TestCase):
    """Registers without one of their rules are found out."""

    def caught(self, name: str) -> None:
        """By the same check, in the same kind of worlds."""
        self.assertIsNotNone(caught_after(name, islice(plans(SOONER.get(name, 1), 1500), 20)))

    def test_mended_again(self) -> None:
        """Nothing stays broken."""
        before = [[getattr(where, what) for where, what, _ in patches] for patches in VARIANTS.values()]
        for name in VARIANTS:
            with broken(name):
                pass
        self.assertEqual(before, [[getattr(where, what) for where, what, _ in patches] for patches in VARIANTS.values()])


def _tests() -> Iterator[tuple[str, Any]]:
    for name in VARIANTS:
        if name in LONG:
            continue

        def test(self: BrokenTests, name: str = name) -> None:
            self.caught(name)

        test.__doc__ = f"{name}."
        yield "test_" + name.replace(" ", "_").replace("-", "_"), test


for _name, _test in _tests():
    setattr(BrokenTests, _name, _test)


class PromiseTests(TestCase):
    """The other parts."""

    def test_race(self) -> None:
        """A thousand creates at once: one wins, everybody else is told so."""
        found = race(1, 1000, 100)
        self.assertTrue(found["one_winner"], found)
        self.assertEqual((found["winners"], found["conflicts"], found["faults"]), (1, 999, 0))

    def test_storm(self) -> None:
        """A hundred nodes at once in a pool of 126 addresses, with loss."""
        found = storm(1, 100, "10.9.0.0/25", 0.05)
        self.assertEqual((found["served"], found["confirmed"], found["duplicates"], found["faults"]), (100, 100, 0, 0))

    def test_partition(self) -> None:
        """Each address that has two holders after a split has one half a minute after the healing, and one loser."""
        outcome = partition.split(1)
        self.assertEqual((outcome.left, outcome.faults), (0, 0))
        found = outcome.duplicates
        self.assertGreater(len(found), 4)
        self.assertEqual([len(one.losers) for one in found], [1] * len(found))
        self.assertLess(max(one.losers[0][1] for one in found), partition.FOUND_BY)

    def test_two_of_five(self) -> None:
        """Two replicas vanish: all that was answered can be read, at once."""
        for pair in ((0, 1), (0, 4), (2, 3)):
            found = durability.two_of_five(1, pair)
            self.assertGreater(found["acknowledged"], 100)
            self.assertEqual((found["lost"], found["unread"], found["faults"]), (0, 0, 0), pair)

    def test_majority_away(self) -> None:
        """Nothing is granted; with the replicas everything comes back."""
        for killed in (3, 5):
            found = durability.majority(1, killed)
            self.assertEqual((found["granted"], found["granted_twice"], found["lost"], found["unread"]), (0, 0, 0, 0))
            self.assertEqual(found["refused"], found["asked"])


class ReportTests(TestCase):
    """What the benchmark says, and when it complains."""

    def good(self) -> dict[str, Any]:
        """Everything as it should be."""
        storms = [{"loss": 0.0, "duplicates": 0, "served": 9, "confirmed": 9, "nodes": 9, "p99_s": 4.9}]
        durable = {"lost": 0, "unread": 0, "granted": 0, "granted_twice": 0}
        return {
            "linearizability": report(Tally(worlds=1, operations=5), [], dict.fromkeys(VARIANTS, 1)),
            "create_race": {"rounds_with_one_winner": 2, "rounds": 2},
            "lease_storm": {"storms": storms},
            "partition": {"duplicates": 3, "found_in_30_s": 3, "one_loser_each": 3, "still_double": 0},
            "durability": {"any_two_of_five_gone": durable, "majority_away": durable},
            "real": None,
        }

    def test_good(self) -> None:
        """No complaint."""
        self.assertEqual(bench.complaints(self.good()), [])

    def test_complaints(self) -> None:
        """One for each promise that is not kept."""
        for part, change in (
            ("linearizability", {"violations": 1}),
            ("linearizability", {"undecided": 1}),
            ("linearizability", {"broken_variants": {"no ballot check": None}}),
            ("linearizability", {"faults": 1}),
            ("create_race", {"rounds_with_one_winner": 1}),
            ("lease_storm", {"storms": [{"loss": 0.1, "duplicates": 1, "served": 9, "confirmed": 9, "nodes": 9, "p99_s": 1}]}),
            ("lease_storm", {"storms": [{"loss": 0.1, "duplicates": 0, "served": 8, "confirmed": 8, "nodes": 9, "p99_s": 1}]}),
            ("lease_storm", {"storms": [{"loss": 0.0, "duplicates": 0, "served": 9, "confirmed": 9, "nodes": 9, "p99_s": 5.1}]}),
            ("partition", {"found_in_30_s": 2}),
            ("partition", {"one_loser_each": 2}),
            ("partition", {"still_double": 1}),
            ("partition", {"duplicates": 0, "found_in_30_s": 0, "one_loser_each": 0}),
            ("lease_storm", {"faults": 2}),
            ("durability", {"any_two_of_five_gone": {"lost": 1, "unread": 0}}),
            ("durability", {"majority_away": {"lost": 0, "unread": 0, "granted": 1, "granted_twice": 0}}),
        ):
            found = self.good()
            found[part] |= change
            self.assertEqual(len(bench.complaints(found)), 1, change)
        self.assertEqual(bench.complaints({"real": {"faults": ["n1 ended"]}}), ["real: n1 ended"])

    def test_json_line(self) -> None:
        """Only what was asked for, on one line; a part that does not exist is named."""
        lines: list[str] = []
        quick = {"create_race": lambda options: race_measure(options.seed, 1, 20, 10, lambda words: None)}
        with patch("builtins.print", lambda *words, **options: lines.append(words[0])), patch.dict(bench.PARTS, quick):
            status = bench.main(["--json", "--quick", "--only", "create_race"])
        self.assertEqual((status, list(json.loads(lines[-1]))), (0, ["create_race", "complaints"]))
        with patch("sys.stderr"):
            self.assertRaises(SystemExit, bench.main, ["--only", "nothing"])
