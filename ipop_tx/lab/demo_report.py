"""What the demo found, as one JSON object, and whether it is good."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

JOIN_SECONDS_MOST = 5.0
"""Half of all nodes must have an address this soon after the start of their process."""


def spread(values: Sequence[float], digits: int = 3) -> dict[str, float | None]:
    """The median and the greatest of some figures; None without any."""
    if not values:
        return {"p50": None, "max": None}
    return {"p50": round(statistics.median(values), digits), "max": round(max(values), digits)}


@dataclass
class AfterKill:
    """What went on after the founder was killed. `pairs` are those among the nodes that were left."""

    pairs: int = 0
    pairs_reached: int = 0
    outages: list[float] = field(default_factory=list)
    joined: bool = False
    join_seconds: float | None = None
    newcomer_pairs: int = 0
    newcomer_pairs_reached: int = 0

    def as_json(self) -> dict[str, Any]:
        """For the result."""
        return {
            "pairs": self.pairs,
            "pairs_reached": self.pairs_reached,
            "outage_seconds": spread(self.outages, 2),
            "joined": self.joined,
            "join_seconds": None if self.join_seconds is None else round(self.join_seconds, 3),
            "newcomer_pairs": self.newcomer_pairs,
            "newcomer_pairs_reached": self.newcomer_pairs_reached,
        }


@dataclass
class Report:
    """All figures of one run; pairs are ordered ones."""

    nodes: int = 0
    pairs: int = 0
    pairs_reached: int = 0
    ipv6_pairs_reached: int = 0
    join_seconds: list[float] = field(default_factory=list)
    first_pings: list[float] = field(default_factory=list)
    first_pings_lost: int = 0
    paths: dict[str, int] = field(default_factory=dict)
    file_ok: bool = False
    file_megabytes: int = 0
    file_seconds: float | None = None
    file_path: str = ""
    after_kill: AfterKill = field(default_factory=AfterKill)
    seconds: float = 0.0
    error: str = ""

    def as_json(self) -> str:
        """One line."""
        found: dict[str, Any] = {
            "nodes": self.nodes,
            "pairs": self.pairs,
            "pairs_reached": self.pairs_reached,
            "ipv6_pairs_reached": self.ipv6_pairs_reached,
            "join_seconds": spread(self.join_seconds),
            "first_ping_ms": spread(self.first_pings),
            "first_pings_lost": self.first_pings_lost,
            "paths": self.paths,
            "file_ok": self.file_ok,
            "file_megabytes": self.file_megabytes,
            "file_seconds": None if self.file_seconds is None else round(self.file_seconds, 3),
            "file_path": self.file_path,
            "after_kill": self.after_kill.as_json(),
            "seconds": round(self.seconds, 1),
            "ok": not self.faults(),
        }
        return json.dumps({**found, "error": self.error} if self.error else found)

    def faults(self) -> list[str]:
        """What is not as it must be, a sentence each; empty when all is good."""
        after = self.after_kill
        claims = [
            (not self.error, self.error),
            (self.nodes >= 7, f"only {self.nodes} nodes came up"),
            (0 < self.pairs == self.pairs_reached, f"{self.pairs_reached} of {self.pairs} pairs reached each other over IPv4"),
            (0 < self.pairs == self.ipv6_pairs_reached, f"{self.ipv6_pairs_reached} of {self.pairs} pairs reached each other over IPv6"),
            (self.first_pings_lost == 0, f"{self.first_pings_lost} first pings were not answered"),
            (self.file_ok, "the file did not arrive as it was sent"),
            (0 < after.pairs == after.pairs_reached, f"{after.pairs_reached} of {after.pairs} pairs reached each other after the kill"),
            (after.joined, "no new node joined after the kill"),
            (
                0 < after.newcomer_pairs == after.newcomer_pairs_reached,
                f"the new node's pairs reached: {after.newcomer_pairs_reached} of {after.newcomer_pairs}",
            ),
            (
                bool(self.join_seconds) and statistics.median(self.join_seconds) <= JOIN_SECONDS_MOST,
                f"half of the nodes took longer than {JOIN_SECONDS_MOST:g} s to join",
            ),
        ]
        return [sentence for good, sentence in claims if not good]
