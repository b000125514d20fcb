"""Histories of simulated clients in trouble, judged; and the same of registers that are broken on purpose."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from itertools import count, islice
from typing import Any

from benchmarks.dht.broken import VARIANTS, broken
from ipop_tx.simulation.upheaval import Plan, Tally, run

WORLD = 5000
"""Operations in one world."""
MOST_WORLDS = 60
"""Worlds in which a broken variant has the time to be caught."""

Progress = Callable[[str], object]


def plans(seed: int, operations: int = WORLD) -> Iterator[Plan]:
    """Worlds without end, others for each seed."""
    return (Plan.drawn(seed * 1_000_000 + number, operations) for number in count())


def measure(operations: int, seed: int, on_progress: Progress) -> dict[str, Any]:
    """Run worlds until there have been so many operations, then break one rule after the other."""
    processes = len(os.sched_getaffinity(0))
    size = min(WORLD, max(500, operations // processes))
    tally, wrong = Tally(), list[int]()
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        worlds = islice(plans(seed, size), -(-operations // size))
        for plan, one in pool.imap_unordered(_judged, worlds):
            tally.add(one)
            if one.violations or one.undecided or one.faults:
                wrong.append(plan.seed)
                on_progress(f"seed {plan.seed}: {one.violations} violations, {one.undecided} undecided, faults: {one.faults[:1]}")
            if not tally.worlds % max(1, operations // size // 20):
                on_progress(f"{tally.operations} operations, {tally.violations} violations, {tally.view_changes} changes of views")
        caught = {}
        for name, after in pool.imap_unordered(_caught_after, [(name, seed, size) for name in VARIANTS]):
            caught[name] = after
            on_progress(f"{name}: " + (f"caught within {after} operations" if after else "not caught"))
    return report(tally, wrong, caught)


def report(tally: Tally, wrong: list[int], caught: dict[str, int | None]) -> dict[str, Any]:
    """As it stands in the JSON."""
    happened = {name: value for name, value in vars(tally).items() if name not in ("operations", "violations", "faults")}
    return {
        "operations": tally.operations,
        "violations": tally.violations,
        "broken_variants_caught": f"{sum(after is not None for after in caught.values())} of {len(caught)}",
        "broken_variants": {name: caught[name] for name in VARIANTS if name in caught},
        **happened,
        "simulated_s": round(tally.simulated_s),
        "faults": len(tally.faults),
        "seeds_to_look_at": sorted(wrong),
    }


def _judged(plan: Plan) -> tuple[Plan, Tally]:
    return plan, run(plan)


def _caught_after(task: tuple[str, int, int]) -> tuple[str, int | None]:
    """The name of a broken variant, and after how many operations it was caught, if it was."""
    name, seed, size = task
    return name, caught_after(name, islice(plans(seed, size), MOST_WORLDS))


def caught_after(name: str, worlds: Iterator[Plan]) -> int | None:
    """After how many operations in these worlds a broken variant is caught, to the end of a world; None if it is not."""
    operations = 0
    with broken(name):
        for plan in worlds:
            found = run(plan)
            operations += found.operations
            if found.violations:
                return operations
    return None


def say(words: str) -> None:
    """Progress, for whoever waits."""
    print(f"dht: {words}", file=sys.stderr, flush=True)
