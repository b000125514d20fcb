"""A ring that stands still, for a million nodes: links chosen and questions routed by the functions of `core.routing`, and no time passes.

Every node has links to its next `LINKED` members and, in each arc, to the quickest of some members drawn there; links carry both ways.
"""

from __future__ import annotations

import multiprocessing
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from math import hypot
from random import Random
from typing import Any

from ipop_tx.core.ring.lookup import MAX_HOPS
from ipop_tx.core.ring.ring import LINKED
from ipop_tx.core.routing import Table, ahead, arcs, encode_delay, next_hop, quickest
from ipop_tx.simulation.scenarios import CANDIDATES, way_figures
from ipop_tx.values import IDENT_BYTES


@dataclass
class StaticStep:
    """A member as `next_hop` sees it."""

    node: int
    place: int
    rtt: float
    table: Table | None


@dataclass
class Walk:
    """How one question went."""

    hops: int
    latency: float
    """Seconds there and back."""
    direct: float
    """Round trip to the owner, in seconds."""
    arrived: bool


@dataclass
class StaticRing:
    """The places of all nodes in order, where they are on the plane, and their links."""

    count: int
    seed: int = 1
    width_s: float = 0.1
    candidates: int = CANDIDATES
    places: array[int] = field(init=False)

    def __post_init__(self) -> None:
        rng = Random(f"static/{self.seed}")
        self.places = array("Q", sorted({rng.getrandbits(64) for _ in range(self.count)}))
        self.count = len(self.places)
        self.x = array("d", (rng.random() for _ in range(self.count)))
        self.y = array("d", (rng.random() for _ in range(self.count)))
        self._steps: dict[int, list[StaticStep]] = {}
        self._starts = array("Q", [0])
        self._links = array("I")

    def rtt(self, one: int, other: int) -> float:
        """Round trip between two nodes in seconds."""
        return 0.002 + self.width_s * hypot(self.x[one] - self.x[other], self.y[one] - self.y[other])

    # --- building ----------------------------------------------------------------------------

    def choose(self, node: int, rng: Random) -> Iterator[int]:
        """The links that a node makes by itself."""
        places, count = self.places, self.count
        for step in range(1, min(LINKED, count - 1) + 1):
            yield (node + step) % count
        own = places[node]
        for low, high in arcs(own, ahead(own, places[(node + LINKED) % count])):
            first = bisect_left(places, low)
            inside = (bisect_left(places, high) - first) % count
            drawn = range(inside) if inside <= self.candidates else [rng.randrange(inside) for _ in range(self.candidates)]
            best = quickest((self.rtt(node, at), at) for at in ((first + step) % count for step in drawn))
            if best is not None:
                yield best[1]

    def _part(self, bounds: tuple[int, int]) -> tuple[array[int], array[int]]:
        rng = Random(f"static/{self.seed}/{bounds[0]}")
        ones, others = array("I"), array("I")
        for node in range(*bounds):
            for other in self.choose(node, rng):
                ones.append(node)
                others.append(other)
        return ones, others

    def build(self, on_progress: Callable[[int], object] = lambda done: None, processes: int = 2) -> None:
        """Choose all links."""
        size = max(1, min(5000, self.count // 8))
        parts = [(begin, min(begin + size, self.count)) for begin in range(0, self.count, size)]
        pairs = []
        with multiprocessing.get_context("fork").Pool(processes) as pool:
            for at, pair in enumerate(pool.imap(self._part, parts)):
                pairs.append(pair)
                on_progress(parts[at][1])
            pool.close()  # else leaving the block sends SIGTERM, which processes forked under a reactor do not die of
            pool.join()
        degrees = array("I", bytes(4 * self.count))
        for ones, others in pairs:
            for node in (*ones, *others):
                degrees[node] += 1
        self._starts = array("Q", [0, *accumulate(degrees)])
        self._links = array("I", bytes(4 * self._starts[-1]))
        at_node = array("Q", self._starts)
        for ones, others in pairs:
            for one, other in zip(ones, others, strict=True):
                for node, peer in ((one, other), (other, one)):
                    self._links[at_node[node]] = peer
                    at_node[node] += 1

    def links(self, node: int) -> list[int]:
        """All links of a node, in ring order."""
        return sorted({*self._links[self._starts[node] : self._starts[node + 1]]})

    @property
    def links_mean(self) -> float:
        """Links of a node, on average."""
        return len(self._links) / self.count

    # --- routing -----------------------------------------------------------------------------

    def _table(self, node: int) -> Table:
        links = self.links(node)
        idents = [self.places[peer].to_bytes(8, "big") + bytes(IDENT_BYTES - 8) for peer in links]
        return Table(idents, bytes(encode_delay(self.rtt(node, peer)) for peer in links))

    def _steps_of(self, node: int) -> list[StaticStep]:
        steps = self._steps.get(node)
        if steps is None:
            steps = [StaticStep(peer, self.places[peer], self.rtt(node, peer), self._table(peer)) for peer in self.links(node)]
            if len(self._steps) < 20_000:
                self._steps[node] = steps
        return steps

    def walk(self, start: int, key: int) -> Walk:
        """Ask `start` for the owner of a place."""
        owner = bisect_left(self.places, key) % self.count
        at, came_from, hops, latency = start, -1, 0, 0.0
        while at != owner and hops < MAX_HOPS:
            if (at + 1) % self.count == owner:
                onward = owner
            else:
                step = next_hop(self.places[at], key, (step for step in self._steps_of(at) if step.node != came_from))
                if step is None:
                    break
                onward = step.node
            latency += self.rtt(at, onward)
            at, came_from, hops = onward, at, hops + 1
        return Walk(hops, latency, self.rtt(start, owner), at == owner)


def measure(
    nodes: int, seed: int, lookups: int, width_s: float, on_progress: Callable[[str, float], object]
) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """Build a ring and ask it; gives a report as `story.Story` does, and the samples behind it."""
    ring = StaticRing(nodes, seed, width_s)
    ring.build(lambda done: on_progress("choosing links", done / nodes))
    rng = Random(f"static lookups/{seed}")
    walks = []
    for number in range(lookups):
        walks.append(ring.walk(rng.randrange(ring.count), rng.getrandbits(64)))
        on_progress("look-ups", number / lookups)
    arrived = [walk for walk in walks if walk.arrived]
    hops = [walk.hops for walk in arrived]
    stretch = [walk.latency / walk.direct for walk in arrived if walk.hops] or [1.0]
    report = {
        "nodes": ring.count,
        "seed": seed,
        "static": True,
        "links_mean": round(ring.links_mean, 1),
        "lookups": lookups,
        "lookup_success": len(arrived) / lookups,
        **way_figures(hops, stretch),
    }
    samples = {
        "hops": [float(value) for value in hops],
        "latency": [walk.latency for walk in arrived if walk.hops],
        "direct": [walk.direct for walk in arrived if walk.hops],
    }
    return report, samples
