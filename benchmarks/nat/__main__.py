"""Builds the lab, measures all pairs in rounds, sums up. docs/nat.md has the keys of the result."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from itertools import combinations_with_replacement
from pathlib import Path
from threading import Lock
from typing import Any

from benchmarks.command import command
from benchmarks.nat import five
from benchmarks.nat.kinds import QUICK, Router, routers
from benchmarks.nat.pairs import Pair, measure
from ipop_tx.lab import Lab, netns
from ipop_tx.lab.nat import STATEFUL
from ipop_tx.lab.node import LabNode
from ipop_tx.simulation.scenarios import percentile

AT_ONCE = 8
PUBLIC = 12
"""Enough that most of the others are not linked to each other before they are measured."""
SETTLE = 45.0
"""Seconds until checks of NATs, which begin ten seconds after the first paths, are through, and the ring is calm."""


@command("nat")
def main(argv: Sequence[str] | None) -> int:
    """Run with words of the command line; exit status 0 when every pair came out as the model says, and none lost its first packet."""
    options = _parser().parse_args(argv)
    netns.require_root_and(("ip", "ping", "nft", "conntrack"))
    chosen = [one for one in routers() if (not options.only or one.name in options.only) and (not options.quick or one.name in QUICK)]
    if options.five:
        return _five(options.json)
    pairs: list[Pair] = []
    with Lab("nat") as lab:
        matrix = Matrix(lab, chosen)
        for number in range(1 if options.quick else options.rounds):
            if number:
                matrix.restart()
            time.sleep(SETTLE)
            pairs += matrix.round(lambda done, of, number=number: _progress(f"round {number + 1}", done, of))  # type: ignore[misc]
        if options.logs:
            matrix.save(options.logs)
    report = summary(pairs)
    if options.plot:
        from benchmarks.nat.plot import plot

        plot([one.name for one in chosen], pairs, options.plot)
    print(json.dumps(report) if options.json else "\n".join(_text(report)), flush=True)
    return 0 if report["feasible_direct"] == report["infeasible_relayed"] == 1.0 and not report["lost"] else 1


def _five(as_json: bool) -> int:
    """Five NATs, and the public members by which they find each other."""
    kinds = {one.name: one for one in routers()}
    with Lab("nat") as lab:
        founder, *others = public_members(lab, 3)
        nodes = [(kinds[name], node_behind(lab, kinds[name], name)) for name in five.KINDS]
        enter(founder, others)
        for _, node in nodes:
            node.join(founder.invite(node.name))
        report = five.measure(nodes)
    print(json.dumps(report) if as_json else "\n".join(f"{name}: {value}" for name, value in report.items()), flush=True)
    return 0 if report["answered"] == report["pairs"] and report["feasible_direct"] == report["feasible"] else 1


def public_members(lab: Lab, count: int) -> list[LabNode]:
    """So many hosts without a router, which have both versions of IP and listen for TLS; the first one has founded a network and runs."""
    nodes = [LabNode(lab.public_host(f"p{number}")) for number in range(count)]
    for node in nodes:
        lab.give_ipv6(node.host)
        node.keys["listen"]["udp"] = "[::]:4500"
        node.keys["listen.tls"] = {"port": 443}
    nodes[0].create("nat")
    nodes[0].start()
    nodes[0].wait_until_up()
    return nodes


def enter(founder: LabNode, others: Sequence[LabNode]) -> None:
    """Let these in, several at a time."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda node: node.enter(founder, seconds=90), others))


def node_behind(lab: Lab, kind: Router, name: str) -> LabNode:
    """A node at a site of a kind."""
    if kind.nat is not None:
        outer = lab.site(f"{name}-o", kind.outer) if kind.outer else None
        return LabNode(lab.site(f"{name}-r", kind.nat, outer).host(name))
    node = LabNode(lab.public_host(name))
    if 6 in kind.versions:
        lab.give_ipv6(node.host, alone=4 not in kind.versions)
        node.keys["listen"]["udp"] = "[::]:4500"
    if 4 not in kind.versions:
        node.host.run(["nft", "-f", "-"], text=STATEFUL)
    return node


class Matrix:
    """Two sites of each kind with a node each, and some public members."""

    def __init__(self, lab: Lab, chosen: Sequence[Router]) -> None:
        self.public = public_members(lab, PUBLIC)
        founder, *others = self.public
        self.sides = {one.name: (node_behind(lab, one, f"{one.name}-a"), node_behind(lab, one, f"{one.name}-b")) for one in chosen}
        self.kinds = {one.name: one for one in chosen}
        enter(founder, [*others, *(node for both in self.sides.values() for node in both)])
        self.addresses = {node.name: node.address for both in self.sides.values() for node in both}

    def restart(self) -> None:
        """All members behind routers begin anew, so that nobody is linked to anybody; the routers forget, too."""
        nodes = [node for both in self.sides.values() for node in both]

        def again(node: LabNode) -> None:
            node.stop()
            node.start()
            node.wait_until_up(90)

        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(again, nodes))

    def save(self, directory: Path) -> None:
        """What all members have logged, and their status."""
        directory.mkdir(parents=True, exist_ok=True)
        for node in [*self.public, *(node for both in self.sides.values() for node in both)]:
            shutil.copy(node.host.directory / f"{node.name}.log", directory)
            (directory / f"{node.name}.json").write_text(json.dumps(node.status()))

    def round(self, on_progress: Callable[[int, int], None]) -> list[Pair]:
        """All pairs once, several at a time, no node in two of them at once."""
        waiting = list(combinations_with_replacement(self.sides, 2))
        alone = Lock()
        total, busy, lock, found = len(waiting), set[str](), Lock(), list[Pair]()

        def next_pair() -> tuple[str, str] | None:
            with lock:
                for pair in waiting:
                    if not busy & set(pair):
                        waiting.remove(pair)
                        busy.update(pair)
                        return pair
            return None

        def work() -> None:
            while waiting:
                pair = next_pair()
                if pair is None:
                    time.sleep(0.1)
                    continue
                try:
                    one, other = self._sides(*pair)
                    result = measure(one, other, self.kinds[pair[0]], self.kinds[pair[1]], self.addresses[other.name], alone)
                except BaseException:
                    waiting.clear()  # nobody waits for a pair that is never done
                    raise
                with lock:
                    busy.difference_update(pair)
                    found.append(result)
                on_progress(len(found), total)

        with ThreadPoolExecutor(AT_ONCE) as pool:
            try:
                for done in [pool.submit(work) for _ in range(AT_ONCE)]:
                    done.result()
            except BaseException:
                waiting.clear()  # whoever is interrupted waits for no more than the pairs under way
                raise
        return found

    def _sides(self, a: str, b: str) -> tuple[LabNode, LabNode]:
        """A node of each kind; of those choices one that is not linked yet, where there is one."""
        choices = [self.sides[a]] if a == b else [(one, other) for one in self.sides[a] for other in self.sides[b]]
        return next(((one, other) for one, other in choices if one.path_to(other) in ("unknown", "idle")), choices[0])


def summary(pairs: Sequence[Pair]) -> dict[str, Any]:
    """The result: all pairs, and what the bounds are about."""
    possible, impossible = [one for one in pairs if one.feasible], [one for one in pairs if not one.feasible]
    steady = [one for one in possible if one.technique in ("punched", "one-sided")]
    random = [
        one for one in possible if "random" in one.a + one.b and one.technique not in ("punched", "one-sided") and not one.linked_before
    ]
    late = [one for one in pairs if one.first_answer_ms and one.relay_rtt_ms and one.first_answer_ms > 2 * one.relay_rtt_ms + 50]
    answers = [one.first_answer_ms for one in pairs if one.first_answer_ms is not None]
    return {
        "pairs": [asdict(one) for one in pairs],
        "measured": len(pairs),
        "linked_before": sum(one.linked_before for one in pairs),
        "feasible": len(possible),
        "feasible_direct": _share(sum(one.result == "direct" for one in possible), len(possible)),
        "infeasible": len(impossible),
        "infeasible_relayed": _share(sum(one.result in ("relay", "direct") and not one.lost for one in impossible), len(impossible)),
        "not_as_foretold": sorted({f"{one.a} x {one.b}: {one.result}" for one in possible if one.result != "direct"}),
        "lost": sum(one.lost for one in pairs),
        "first_answer_ms": _quantiles(answers),
        "first_answer_late": _share(len(late), len(answers)) if answers else 0.0,
        "direct_ms_steady": _quantiles([one.direct_ms for one in steady if one.direct_ms is not None]),
        "birthday": {"pairs": len(random), "within_20_s": sum(one.direct_ms is not None and one.direct_ms <= 20000 for one in random)},
    }


def _share(part: int, whole: int) -> float:
    return round(part / whole, 4) if whole else 1.0


def _quantiles(values: Sequence[float]) -> dict[str, float] | None:
    return {f"p{share * 100:g}": round(percentile(values, share), 1) for share in (0.5, 0.95)} if values else None


def _text(report: dict[str, Any]) -> Iterator[str]:
    for name, value in report.items():
        if name != "pairs":
            yield f"{name}: {value}"


def _progress(what: str, done: int, of: int) -> None:
    if sys.stderr.isatty() or done % 20 == 0 or done == of:
        print(f"nat: {what}: {done} of {of} pairs", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make bench-nat", description="Every kind of NAT against every other one, with real daemons.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", type=lambda text: text.split(","), metavar="NAME,...", help="some kinds of router")
    parser.add_argument("--quick", action="store_true", help=f"one round of {', '.join(QUICK)}")
    parser.add_argument("--five", action="store_true", help=f"no matrix: {', '.join(five.KINDS)}, all to all, from their start")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the matrix as a picture (PNG)")
    parser.add_argument("--logs", type=Path, metavar="DIRECTORY", help="keep there what all members have logged, and their status")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    return parser


if __name__ == "__main__":
    sys.exit(main(None))
