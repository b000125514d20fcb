"""`make bench-dht`: what registers and leases promise, put to the test in simulations, and measured on real daemons (as root).

docs/dht.md has the keys.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.command import command
from benchmarks.dht import durability, linearizability, partition, race, storm
from benchmarks.dht.linearizability import say
from ipop_tx.errors import IpopError


@command("dht")
def main(argv: Sequence[str] | None) -> int:
    """Run with words of the command line; gives the exit status: 0 only when every promise was kept."""
    options = _parser().parse_args(argv)
    found: dict[str, Any] = {}
    for name in options.only:
        begun = time.monotonic()
        say(f"{name} ...")
        found[name] = PARTS[name](options)
        if found[name] is not None:
            found[name]["wall_s"] = round(time.monotonic() - begun, 1)
    found["complaints"] = complaints(found)
    print(json.dumps(found) if options.json else text(found), flush=True)
    return 1 if found["complaints"] else 0


def _linearizability(options: argparse.Namespace) -> dict[str, Any]:
    return linearizability.measure(options.operations, options.seed, say)


def _race(options: argparse.Namespace) -> dict[str, Any]:
    return race.measure(options.seed, *((2, 1000, 200) if options.quick else (5, 10_000, 1000)), say)


def _storm(options: argparse.Namespace) -> dict[str, Any]:
    return storm.measure(options.seed, *((100, "10.9.0.0/25") if options.quick else (1000, storm.POOL)), say)


def _partition(options: argparse.Namespace) -> dict[str, Any]:
    return partition.measure(options.seed, 2 if options.quick else 20, say)


def _durability(options: argparse.Namespace) -> dict[str, Any]:
    return durability.measure(options.seed, 1 if options.quick else 10, say)


def _real(options: argparse.Namespace) -> dict[str, Any] | None:
    """None without root: real daemons need it."""
    if os.geteuid() != 0:
        say("real daemons need root: left out")
        return None
    from benchmarks.dht_real import measure

    try:
        return measure(seconds=2.0 if options.quick else 10.0)
    except IpopError as error:
        return {"faults": [str(error)]}


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any] | None]] = {
    "linearizability": _linearizability,
    "create_race": _race,
    "lease_storm": _storm,
    "partition": _partition,
    "durability": _durability,
    "real": _real,
}


def complaints(found: dict[str, Any]) -> list[str]:
    """Every promise that was not kept, a sentence each."""
    told: list[str] = []

    def expect(good: bool, words: str) -> None:
        if not good:
            told.append(words)

    if one := found.get("linearizability"):
        expect(one["violations"] == 0, f"{one['violations']} registers have a history without an order")
        expect(one["undecided"] == 0, f"the check came to no end for {one['undecided']} registers")
        expect(None not in one["broken_variants"].values(), f"broken variants caught: {one['broken_variants_caught']}")
    if one := found.get("create_race"):
        expect(
            one["rounds_with_one_winner"] == one["rounds"], f"one winner only in {one['rounds_with_one_winner']} of {one['rounds']} rounds"
        )
    for one in (found.get("lease_storm") or {}).get("storms", []):
        expect(one["duplicates"] == 0, f"{one['duplicates']} addresses were given twice")
        expect(one["served"] == one["confirmed"] == one["nodes"], f"{one['served']} of {one['nodes']} nodes have got an address")
        expect(one["loss"] > 0 or one["p99_s"] <= storm.P99, f"the slowest hundredth waited {one['p99_s']} s for an address")
    if one := found.get("partition"):
        expect(one["duplicates"] > 0, "the splits have made no duplicates")
        expect(one["still_double"] == 0, f"{one['still_double']} addresses had two holders to the end")
        expect(one["found_in_30_s"] == one["duplicates"], f"{one['found_in_30_s']} of {one['duplicates']} duplicates were found in 30 s")
        expect(one["one_loser_each"] == one["duplicates"], f"only {one['one_loser_each']} of {one['duplicates']} duplicates have one loser")
    if one := found.get("durability"):
        for name in ("any_two_of_five_gone", "majority_away"):
            expect(
                one[name]["lost"] == one[name]["unread"] == 0, f"{name}: {one[name]['lost']} writes lost, {one[name]['unread']} not read"
            )
        away = one["majority_away"]
        expect(away["granted"] == away["granted_twice"] == 0, f"{away['granted'] + away['granted_twice']} writes without a majority")
    simulated = {name: one for name, one in found.items() if one and name != "real"}
    told += [f"{name}: nodes met {one['faults']} errors of their own" for name, one in simulated.items() if one.get("faults")]
    told += [f"real: {words}" for words in (found.get("real") or {}).get("faults", [])]
    return told


def text(found: dict[str, Any]) -> str:
    """For people."""
    lines = [f"{name}: {key}: {value}" for name, one in found.items() if isinstance(one, dict) for key, value in one.items()]
    return "\n".join([*lines, *(f"complaint: {words}" for words in found["complaints"])])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make bench-dht", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    parser.add_argument("--operations", type=int, default=10**6, metavar="N", help="operations of simulated clients that are judged (10^6)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=_names, default=list(PARTS), metavar="NAME,...", help=f"{', '.join(PARTS)} (all)")
    parser.add_argument("--quick", action="store_true", help="small ones of all but the operations")
    return parser


def _names(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in PARTS:
            raise argparse.ArgumentTypeError(f"there is no part {name}: {', '.join(PARTS)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
