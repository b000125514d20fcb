"""`python -m tests.attacks`: every attack of docs/security.md against real daemons, then again without its defence, as root.

With the defence the test must pass; without it, it must fail, and by an assertion: an error would only show that the lab is out of order.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import unittest
from collections.abc import Sequence
from typing import Any

from tests.attacks import rows_member, rows_parsers, rows_relay, rows_wire
from tests.attacks.case import AttackCase, Shows
from tests.system import why_not

NAMES = {
    1: "random or bit-flipped datagrams",
    2: "replays",
    3: "counters at the edges of the window",
    4: "forgeries from a new source",
    5: "real datagrams raced from another address",
    6: "floods of hellos from spoofed sources",
    7: "reflection through candidates and relays",
    8: "certificates that are not good",
    9: "a revoked key with another certificate",
    10: "the ident of another",
    11: "a source that is not the sender's",
    12: "spoofed ARP and neighbour advertisements",
    13: "a rogue DHCP server, exhaustion",
    14: "destinations and routes that nobody granted",
    15: "poison in the DHT",
    16: "one key with many idents",
    17: "a relay that drops, delays, reorders or alters",
    18: "downgrade and weak ciphers",
    19: "others at the control socket",
    20: "the overlay's addresses probed from the LAN",
    21: "a tunnel inside itself",
    22: "nesting, promises and truncation at every parser",
    23: "an invitation used twice at once",
    24: "old keys",
}
"""The rows, by the numbers of docs/security.md."""


def tests() -> list[AttackCase]:
    """All of them, in the order of their numbers."""
    found = [
        kind(name)
        for module in (rows_wire, rows_member, rows_relay, rows_parsers)
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, AttackCase) and kind.__module__ == module.__name__
        for name in unittest.TestLoader().getTestCaseNames(kind)  # type: ignore[arg-type]
    ]
    return sorted(found, key=lambda test: (shown(test).number, test.id()))


def shown(test: AttackCase) -> Shows:
    """What a test shows."""
    marked: Shows = getattr(test, test._testMethodName).shows
    return marked


def outcome(test: AttackCase, without: str) -> tuple[str, str, dict[str, Any]]:
    """Run it: ("passed" | "failed" | "error", the last line of why, its figures)."""
    fresh = type(test)(test._testMethodName)
    fresh.without = without
    result = unittest.TestResult()
    fresh.run(result)  # type: ignore[no-untyped-call]
    problems = result.failures + result.errors
    why = problems[0][1].strip().splitlines()[-1] if problems else ""
    return "error" if result.errors else "failed" if result.failures else "passed", why, fresh.figures


def part(test: AttackCase, prove: bool) -> dict[str, Any]:
    """One test, with its defence and without."""
    begun = time.monotonic()
    how, why, figures = outcome(test, "")
    found = {"test": test.id().partition("tests.attacks.")[2], "passed": how == "passed", "figures": figures}
    if why:
        found["why"] = why
    if prove:
        without, reason, _ = outcome(test, shown(test).defence)
        found.update(fails_without_defence=without == "failed", defence=shown(test).defence, without=reason)
    say(f"{shown(test).number:2} {how:6} {'without: ' + without if prove else ''} {found['test']} {time.monotonic() - begun:.0f} s {why}")
    return found


def row(number: int, parts: Sequence[dict[str, Any]], prove: bool) -> dict[str, Any]:
    """What one row's tests have shown."""
    figures = {name: value for one in parts for name, value in one["figures"].items()}
    proven = {"fails_without_defence": all(one["fails_without_defence"] for one in parts)} if prove else {}
    return {"n": number, "name": NAMES[number], "passed": all(one["passed"] for one in parts), **proven, **figures, "parts": list(parts)}


def say(words: str) -> None:
    """Progress, for whoever waits."""
    print(f"attacks: {words}", file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run with words of the command line; gives the exit status: 0 only when every row holds, and would not without its defence."""
    parser = argparse.ArgumentParser(prog="tests.attacks", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    parser.add_argument("--no-proof", action="store_true", help="leave out the runs without defences")
    parser.add_argument("rows", nargs="*", type=int, help="numbers of rows (default: all)")
    options = parser.parse_args(argv)
    problem = why_not("curl")
    if problem:
        say(problem)
        return 1
    parts: dict[int, list[dict[str, Any]]] = {}
    for test in tests():
        number = shown(test).number
        if not options.rows or number in options.rows:
            parts.setdefault(number, []).append(part(test, not options.no_proof))
    rows = [row(number, found, not options.no_proof) for number, found in parts.items()]
    if options.json:
        print(json.dumps({"rows": rows}), flush=True)
    return 0 if rows and all(one["passed"] and one.get("fails_without_defence", True) for one in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
