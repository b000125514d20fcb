"""`python -m benchmarks.ring`: the ring at several sizes, simulated: idle, under churn, after mass failure, parted, asleep, with strangers.

The nodes run the daemons' `core`; only their links are modelled (`ipop_tx.simulation.linkmodel`). A ring of more than `--static-from`
nodes stands still: its links are chosen and its questions routed by the same functions.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from benchmarks.command import command
from ipop_tx.simulation.static import measure
from ipop_tx.simulation.story import Plan, Story

SCENES: dict[str, Callable[[Plan], Plan]] = {
    "idle": lambda plan: plan,
    "churn60": lambda plan: replace(plan, session=60.0),
    "churn5": lambda plan: replace(plan, session=5.0),
    "kill": lambda plan: replace(plan, kill=0.5, minutes=1.0),
    "split2": lambda plan: replace(plan, parts=2, minutes=1.0),
    "split3": lambda plan: replace(plan, parts=3, minutes=1.0),
    "asleep": lambda plan: replace(plan, asleep=0.3, minutes=1.0),
    "strangers": lambda plan: replace(plan, strangers=0.3),
    "flood": lambda plan: replace(plan, flood=True, minutes=1.0),
}
"""What may happen to a ring: the first is what `--nodes` alone measures."""


@command("ring")
def main(argv: Sequence[str] | None) -> int:
    """Run with words of the command line; gives the exit status: 0 when no simulated node met an error of its own."""
    options = _parser().parse_args(argv)
    results = []
    for nodes in options.nodes:
        for scene in options.scenes if nodes < options.static_from else ["static"]:
            results.append(_run(nodes, scene, options))
            print(f"ring: {nodes} nodes, {scene}: {json.dumps(results[-1])}", file=sys.stderr, flush=True)
    print(json.dumps(results) if options.json else _text(results), flush=True)
    return 1 if any(result.get("faults") for result in results) else 0


def _run(nodes: int, scene: str, options: argparse.Namespace) -> dict[str, Any]:
    begun = time.monotonic()
    if scene == "static":
        report, _ = measure(nodes, options.seed, options.lookups, 0.1, _progress)
    else:
        plan = Plan(nodes=nodes, seed=options.seed, minutes=options.minutes, lookups=options.lookups, parted=options.parted)
        report = Story(SCENES[scene](plan), _progress).run()
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr)
    return {"scene": scene, **report, "wall_s": round(time.monotonic() - begun, 1)}


def _progress(what: str, share: float) -> None:
    if sys.stderr.isatty():
        print(f"\r{what} {share:4.0%}\x1b[K", end="", file=sys.stderr, flush=True)


def _text(results: list[dict[str, Any]]) -> str:
    head = f"{'nodes':>8} {'scene':<10} {'hops':>6} {'p99':>4} {'right':>9} {'bytes/s':>8} {'stretch':>8} {'wall s':>7}"
    rows = [
        f"{one['nodes']:>8} {one['scene']:<10} {one['hops_mean']:>6.2f} {one['hops_p99']:>4.0f} {one['lookup_success']:>9.4%}"
        f" {one.get('bytes_per_s_per_node', '-'):>8} {one['stretch_p50']:>8.2f} {one['wall_s']:>7}"
        for one in results
    ]
    return "\n".join([head, *rows])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make bench-ring", description="The ring at several sizes, simulated.")
    parser.add_argument("--nodes", type=_numbers, default=[1000, 10000], metavar="N,...", help="sizes (1000,10000)")
    parser.add_argument("--scenes", type=_scenes, default=["idle"], metavar="NAME,...", help=f"what happens: {', '.join(SCENES)}, or all")
    parser.add_argument("--minutes", type=float, default=5.0, help="simulated minutes, idle or under churn (5)")
    parser.add_argument("--parted", type=float, default=60.0, help="simulated minutes for which a net is split, or some are asleep (60)")
    parser.add_argument("--lookups", type=int, default=5000, help="look-ups judged in each (5000)")
    parser.add_argument("--static-from", type=int, default=200_000, metavar="N", help="from this size on a ring stands still (200000)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="one JSON list on the last line")
    return parser


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def _scenes(text: str) -> list[str]:
    names = list(SCENES) if text == "all" else text.split(",")
    for name in names:
        if name not in SCENES:
            raise argparse.ArgumentTypeError(f"there is no scene {name}: {', '.join(SCENES)}, or all")
    return names


if __name__ == "__main__":
    sys.exit(main())
