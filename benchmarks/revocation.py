"""`python -m benchmarks.revocation`: how long a member that is thrown out goes on to have sessions, in a network of real daemons.

All in the lab: a tenth of the members stand behind symmetric NATs, so that links between them are relayed. What is told is the time
from the command to the moment at which the last of the others has no link with that member any more, and each one's own.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from statistics import median

from benchmarks.command import command
from ipop_tx.lab import Lab, Nat
from ipop_tx.lab.node import LabNode

AT_ONCE = 8
GIVE_UP = 60.0


@command("revocation")
def main(argv: Sequence[str] | None) -> int:
    """Run with words of the command line; exit status 0 when all sessions have ended."""
    options = _parser().parse_args(argv)
    with Lab("revocation") as lab:
        report = _run(lab, options.nodes, options.rounds)
    print(json.dumps(report) if options.json else "\n".join(f"{name}: {value}" for name, value in report.items()), flush=True)
    return 0 if report["left"] == 0 else 1


def _run(lab: Lab, count: int, rounds: int) -> dict[str, object]:
    founder = LabNode(lab.public_host("n0"))
    founder.create("lab")
    founder.start()
    founder.wait_until_up()
    relayed = [LabNode(lab.site(f"home{number}", Nat.SYMMETRIC).host(f"r{number}")) for number in range(max(2, count // 10))]
    nodes = [*relayed, *(LabNode(lab.public_host(f"n{number}")) for number in range(1, count - len(relayed)))]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda node: node.enter(founder, seconds=120), nodes))
        seconds: list[float] = []
        links = left = 0
        for number in range(rounds):
            gone = nodes.pop(0 if number % 2 == 0 else -1)  # one that is relayed, one that is not
            rest = [founder, *nodes]
            list(pool.map(lambda node, gone=gone: gone.ping(node.address, 2), rest))
            linked = [node for node in rest if _linked(node, gone)]
            links += len(linked)
            begun = time.monotonic()
            founder.ipop("revoke", gone.name, "--yes", "--socket", str(founder.socket))
            ended = list(pool.map(lambda node, gone=gone, begun=begun: _ended(node, gone, begun), linked))
            seconds += [one for one in ended if one is not None]
            left += sum(one is None for one in ended)
            gone.stop()
            print(f"revocation: {gone.name}: {len(linked)} links, the last ended after {max(seconds):.2f} s", file=sys.stderr, flush=True)
    return {
        "nodes": count,
        "relayed": len(relayed),
        "rounds": rounds,
        "links": links,
        "left": left,
        "seconds": {"p50": round(median(seconds), 3), "max": round(max(seconds), 3)},
    }


def _linked(node: LabNode, gone: LabNode) -> bool:
    return any(peer["name"] == gone.name for peer in node.status()["peers"])


def _ended(node: LabNode, gone: LabNode, begun: float) -> float | None:
    """Seconds from the command until a node has no link with the one that is gone; None if it still has one in the end."""
    while time.monotonic() - begun < GIVE_UP:
        if not _linked(node, gone):
            return time.monotonic() - begun
        time.sleep(0.02)
    return None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="make bench-revocation", description="How long a member that is thrown out goes on to have sessions."
    )
    parser.add_argument("--nodes", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=2, help="members thrown out, one after the other (2)")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    return parser


if __name__ == "__main__":
    sys.exit(main())
