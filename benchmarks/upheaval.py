"""Changes of the path between A and B of a soak: cut (only the relay is left), mended (direct again), and A at another address."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

from benchmarks.dataplane.relayed import Parted
from benchmarks.dataplane.underlay import A_ADDRESS, ROUTER_A
from ipop_tx.errors import IpopError
from ipop_tx.lab import netns
from ipop_tx.lab.waiting import holds_within

SETTLES = 45.0
"""Seconds that both ends have until their path is as it must be after a change."""
BEFORE, AFTER = 1.0, 2.0
"""Seconds before a change and after it has settled that belong to it: queues, and how exactly we know when a datagram was sent."""
_SPARE = "10.61.9.9/32"
"""An address of B's loopback, where nobody can reach it: that it comes makes B try again for a direct path, as any new address does."""


@dataclass
class Change:
    """One change; times of the monotonic clock. `excused`: what was under way on the old path may be lost."""

    kind: str
    began: float
    settled: float | None = None
    excused: bool = True

    def covers(self, earliest: float, latest: float) -> bool:
        """Whether what was sent between these times may have met this change."""
        return self.excused and earliest <= (self.settled or self.began + SETTLES) + AFTER and latest >= self.began - BEFORE

    def as_json(self, start: float) -> dict[str, Any]:
        """When, counted from `start`, and how long it took both ends to settle; None: they did not."""
        took = None if self.settled is None else round(self.settled - self.began, 2)
        return {"kind": self.kind, "at_s": round(self.began - start, 1), "settled_after_s": took}


class Upheaval:
    """Makes the changes, in turn, and waits after each until both ends say that they have followed."""

    def __init__(self, nodes: Parted) -> None:
        self.changes: list[Change] = []
        self._nodes = nodes
        self._address = A_ADDRESS
        self._addresses = cycle(f"10.61.1.{last}" for last in range(3, 250))
        self._steps: cycle[Callable[[], Change]] = cycle((self._cut, self._mend, self._roam))
        netns.set_kernel(nodes.triangle.a.namespace, "ipv4.conf.eth0.promote_secondaries", 1)

    def next(self) -> Change:
        """The next change, made and settled (or not, which `settled` tells)."""
        change = next(self._steps)()
        self.changes.append(change)
        return change

    def _cut(self) -> Change:
        change = Change("cut", time.monotonic())
        self._nodes.triangle.part()
        self._nodes.b.host.run(["ip", "addr", "del", _SPARE, "dev", "lo"], check=False)  # the first time it is not there
        return self._settle(change, "relay", "relay")

    def _mend(self) -> Change:
        """Nothing may be lost by this one: the relay goes on until the direct path is proven."""
        change = Change("mend", time.monotonic(), excused=False)
        self._nodes.triangle.part(False)
        netns.configure(self._nodes.triangle.b.namespace, f"addr add {_SPARE} dev lo")
        return self._settle(change, "direct", "direct")

    def _roam(self) -> Change:
        change, old, self._address = Change("roam", time.monotonic()), self._address, next(self._addresses)
        netns.configure(
            self._nodes.triangle.a.namespace,
            f"addr add {self._address}/24 dev eth0",
            f"addr del {old}/24 dev eth0",
            f"route replace default via {ROUTER_A}",
        )
        return self._settle(change, "direct", f"direct udp:{self._address}:")

    def _settle(self, change: Change, at_a: str, at_b: str) -> Change:
        """Wait until the paths begin like this at A and at B."""
        a, b = self._nodes.a, self._nodes.b

        def followed() -> bool:
            try:
                return a.path_to(b).startswith(at_a) and b.path_to(a).startswith(at_b)
            except IpopError:  # busy: it is asked again
                return False

        if holds_within(SETTLES, followed, 0.1):
            change.settled = time.monotonic()
        return change


def excused(changes: Sequence[Change], earliest: float, latest: float) -> bool:
    """Whether a loss between these times belongs to a change."""
    return any(change.covers(earliest, latest) for change in changes)
