"""Five peers behind five different NATs, all to all: how long until each has had an answer of each other one."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import permutations
from typing import Any

from benchmarks.nat.kinds import Router
from ipop_tx.lab.node import LabNode
from ipop_tx.simulation.scenarios import percentile

KINDS = ("kept-eif", "changed-adf", "kept-apdf", "seq-apdf", "random-apdf")
PATIENCE = 60.0
"""Seconds for which an answer is waited for."""
SETTLE = 30.0
"""Seconds after the last answer until paths are looked at."""


def measure(nodes: Sequence[tuple[Router, LabNode]]) -> dict[str, Any]:
    """Start five members that have their certificates, all at once; then each pings each other one. Times in seconds."""
    begun = time.monotonic()
    with ThreadPoolExecutor(len(nodes) ** 2) as pool:
        addresses = dict(zip([node.name for _, node in nodes], pool.map(lambda one: _up(one[1]), nodes), strict=True))
        up = time.monotonic()
        pairs = list(permutations(nodes, 2))
        answered = list(pool.map(lambda pair: _answered(pair[0][1], addresses[pair[1][1].name]), pairs))
    late = [when - up for when in answered if when is not None]
    last = max(late, default=0.0)
    time.sleep(SETTLE)
    direct = [one.path_to(other).startswith("direct udp") for (_, one), (_, other) in pairs]
    possible = [a.meets(b) for (a, _), (b, _) in pairs]
    return {
        "peers": {kind.name: addresses[node.name] for kind, node in nodes},
        "pairs": len(pairs),
        "answered": len(late),
        "addresses_s": round(up - begun, 2),
        "answered_s": {"p50": round(percentile(late, 0.5), 3), "last": round(last, 3)} if late else None,
        "answered_since_start_s": round(up - begun + last, 2),
        "feasible": sum(possible),
        "direct": sum(direct),
        "feasible_direct": sum(one and two for one, two in zip(possible, direct, strict=True)),
    }


def _up(node: LabNode) -> str:
    node.start()
    return node.wait_until_up(PATIENCE)


def _answered(node: LabNode, address: str) -> float | None:
    """When the first answer came. A packet is sent each second, as ping does."""
    done = node.host.run(["ping", "-n", f"-w{PATIENCE:g}", "-c1", address], check=False, timeout=PATIENCE + 10)
    return time.monotonic() if done.returncode == 0 else None
