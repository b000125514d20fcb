"""`python -m tests.faults`: every fault of docs/security.md, on real daemons in the lab where a machine can do it, else in virtual time.

As root. With `--json` the last line is one object; numbers choose rows.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
import unittest
from collections.abc import Sequence
from typing import Any

from tests.system import why_not

NAMES = {
    1: "kill -9 at any write",
    2: "both ends restart, simultaneous handshakes",
    3: "partitions: two-way, three-way, one-way, non-transitive",
    4: "clocks moved, machines suspended",
    5: "loss, reordering, duplicates",
    6: "an MTU black hole",
    7: "NAT rebinding or reboot, address change",
    8: "NAT mappings that time out",
    9: "a disk that is full, read-only, broken",
    10: "damaged state files",
    11: "DHT nodes lost at once",
    12: "all bootstrap nodes dead",
    13: "TAP deleted, descriptors exhausted, reactor stalled",
    14: "a soak with churn",
}
"""The rows, by the numbers of docs/security.md."""
MODULES = ("rows_disk", "rows_host", "rows_net", "rows_sim", "rows_bench")


def tests() -> list[Any]:
    """All of them, in the order of their rows."""
    found = []
    for module in (importlib.import_module(f"tests.faults.{name}") for name in MODULES):
        for kind in vars(module).values():
            if isinstance(kind, type) and issubclass(kind, unittest.TestCase) and kind.__module__ == module.__name__:
                found += [kind(name) for name in vars(kind) if hasattr(getattr(kind, name), "shows")]
    return sorted(found, key=lambda test: (row_of(test), test.id()))


def row_of(test: Any) -> int:
    """The number of the row that a test is part of."""
    return int(getattr(test, test._testMethodName).shows[0])


def quick() -> list[Any]:
    """Those that are part of `make test`."""
    return [test for test in tests() if getattr(test, test._testMethodName).shows[1]]


def part(test: Any) -> dict[str, Any]:
    """Run one test."""
    begun = time.monotonic()
    result = unittest.TestResult()
    test.run(result)
    problems = [*result.failures, *result.errors]
    why = problems[0][1].strip().splitlines()[-1] if problems else ""
    figures = getattr(test, "figures", {})  # none if it was skipped
    missed = [reason for _, reason in result.skipped]
    name = test.id().partition("tests.faults.")[2]
    found = {"test": name, "passed": not problems and not missed, "seconds": round(time.monotonic() - begun), "figures": figures}
    if why or missed:
        found["why"] = why or missed[0]
    say(f"{row_of(test):2} {'passed' if found['passed'] else 'FAILED'} {name} {found['seconds']} s {why} {figures}")
    return found


def row(number: int, parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What one row's tests have shown."""
    figure = {one["test"].rpartition(".")[2].removeprefix("test_"): one["figures"] for one in parts}
    return {"n": number, "name": NAMES[number], "passed": all(one["passed"] for one in parts), "figure": figure, "parts": list(parts)}


def say(words: str) -> None:
    """Progress, for whoever waits."""
    print(f"faults: {words}", file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run with words of the command line; gives the exit status: 0 only when every row holds."""
    parser = argparse.ArgumentParser(prog="tests.faults", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    parser.add_argument("--match", default="", metavar="WORD", help="only tests whose name has this in it")
    parser.add_argument("rows", nargs="*", type=int, help="numbers of rows (default: all)")
    options = parser.parse_args(argv)
    problem = why_not("curl", "gcc")
    if problem:
        say(problem)
        return 1
    parts: dict[int, list[dict[str, Any]]] = {}
    for test in tests():
        if options.match in test.id() and (not options.rows or row_of(test) in options.rows):
            parts.setdefault(row_of(test), []).append(part(test))
    rows = [row(number, found) for number, found in parts.items()]
    if options.json:
        print(json.dumps({"rows": rows}), flush=True)
    return 0 if rows and all(one["passed"] for one in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
