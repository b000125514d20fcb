"""What can happen to a ring, and what is then measured of it: the building blocks of `ipop simulate` and `make bench-ring`."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from random import Random
from statistics import fmean

from ipop_tx.core.ring.ring import LINKED
from ipop_tx.core.routing import ahead, arcs, place_of, quickest
from ipop_tx.errors import IpopError
from ipop_tx.simulation.linkmodel import RingNet
from ipop_tx.simulation.ringnode import ModelRuntime, RingNode
from ipop_tx.values import IDENT_BYTES

CANDIDATES = 16
"""Members that a node of a settled or a static ring has met in each arc."""

Progress = Callable[[float], object]
"""Told the simulated seconds that have passed."""


def _silent(seconds: float) -> None:
    pass


# --- rings to begin with -----------------------------------------------------------------------------


def joining(net: RingNet, count: int, per_second: float | None = None, on_progress: Progress = _silent) -> None:
    """Members who come one after another, each through one that is there already; `per_second` is a hundredth of all if not given."""
    first = net.add()
    first.start()
    net.run(1.0)
    nodes, rate = [first], max(1, round(per_second or count / 100))
    without: list[RingNode] = []
    while len(nodes) < count:
        there = [node for node in nodes if node.ring.placed] or nodes[:1]
        fresh = [net.add() for _ in range(min(count - len(nodes) - len(without), max(1, min(rate, len(nodes) // 2))))]
        waiting, without = [*without, *fresh], []
        for node in waiting:
            contacts = _reachable(net, node, there)
            if contacts:
                node.start(contacts[0])
                nodes.append(node)
            else:
                without.append(node)  # it cannot reach anybody yet
        net.run(1.0)
        on_progress(net.now)


def _reachable(net: RingNet, node: RingNode, others: list[RingNode]) -> list[RingNode]:
    """Some of the others, in random order, to whom a node gets: nobody joins through a member that it cannot reach."""
    drawn = net.rng.sample(others, min(len(others), 30))
    return [other for other in drawn if net.reaches(node, other)]


def settled(net: RingNet, count: int) -> None:
    """Members who have been on the ring for long: right neighbours, links, and in each arc the quickest of some members."""
    nodes = sorted((net.add() for _ in range(count)), key=lambda node: node.ident)
    places = [place_of(node.ident) for node in nodes]
    for at, node in enumerate(nodes):
        node.up = True
        node.ring.predecessor = nodes[at - 1].ident if count > 1 else None
        for step in range(1, min(count, 64)):
            if len(node.ring.successors) < node.ring.length:
                node.ring.insert_successor(nodes[(at + step) % count].ident)
    for at, node in enumerate(nodes):
        for step in range(1, min(LINKED + 1, count)):
            net.link(node, nodes[(at + step) % count])
        for low, high in arcs(places[at], ahead(places[at], places[(at + min(LINKED, count - 1)) % count])):
            first = bisect_left(places, low)
            inside = (bisect_left(places, high) - first) % count
            drawn = range(inside) if inside <= CANDIDATES else net.rng.sample(range(inside), CANDIDATES)
            met = [nodes[(first + step) % count] for step in drawn]
            best = quickest((net.one_way(node, other), other.ident) for other in met if other is not node)
            if best is not None:
                net.link(node, net.nodes[best[1]])
                node.ring.fingers.append(best[1])
    for node in nodes:
        table = net.table_of(node.tables.presume())
        for ident in node.links.by_ident:
            net.nodes[ident].links.by_ident[node.ident].table = table
    for node in nodes:
        node.bootstrap.remember(tuple(net.nodes[ident].endpoint for ident in node.ring.fingers[:8]))
        node.ring.calm()
        node.ring.found()
        node.bootstrap.stay()


# --- what happens ------------------------------------------------------------------------------------


@dataclass
class Churn:
    """Sessions of exponential length: a node crashes (or leaves, in a share of cases), and another joins in its place."""

    net: RingNet
    session_s: float
    """Mean length of a session in seconds."""
    leave_share: float = 0.0
    ended: int = 0

    def begin(self) -> None:
        """From now on until `stop`."""
        self.going = True
        for node in self.net.up():
            self._draw(node)

    def stop(self) -> None:
        """No more comings and goings."""
        self.going = False

    def _draw(self, node: RingNode) -> None:
        self.net.at(self.net.now + self.net.rng.expovariate(1 / self.session_s), self._end, node)

    def _end(self, node: RingNode) -> None:
        if not self.going or not node.up:
            return
        self.ended += 1
        if self.net.rng.random() < self.leave_share:
            node.leave()
        else:
            node.crash()
        fresh = self.net.add()
        contacts = [other for other in self.net.some(8) if other.ring.joined and self.net.reaches(fresh, other)][:3]
        if contacts:
            fresh.start(*contacts)
            self._draw(fresh)


def kill(net: RingNet, share: float) -> list[RingNode]:
    """A share of all nodes crash in one moment."""
    victims = net.rng.sample(net.up(), round(share * len(net.up())))
    for victim in victims:
        victim.crash()
    return victims


def suspend(net: RingNet, share: float) -> list[RingNode]:
    """A share of all nodes fall asleep in one moment, until `resume`; their clocks stand still meanwhile."""
    sleepers = net.rng.sample(net.up(), round(share * len(net.up())))
    for sleeper in sleepers:
        sleeper.suspend()
    return sleepers


def part(net: RingNet, parts: int) -> None:
    """Split the net into parts that do not reach each other; 1 joins them again."""
    if parts > 1:
        side = {node.ident: net.rng.randrange(parts) for node in net.nodes.values()}
        net.reaches = lambda one, other: side.get(one.ident, 0) == side.get(other.ident, 0)
    else:
        net.reaches = lambda one, other: True
    net.recheck()


def strangers(net: RingNet, share: float) -> None:
    """From now on a share of all pairs, the same for one seed, cannot reach each other directly."""
    limit = round(share * 2**32)

    def reaches(one: RingNode, other: RingNode) -> bool:
        mixed = int.from_bytes(one.ident[:8], "big") ^ int.from_bytes(other.ident[:8], "big")
        return (mixed * 0x9E3779B97F4A7C15 >> 16) & 0xFFFFFFFF >= limit

    net.reaches = reaches
    net.recheck()


# --- what is measured --------------------------------------------------------------------------------


def misplaced(net: RingNet) -> int:
    """Running nodes whose first successor is not the next running node: 0 when all are in one ring."""
    ordered = sorted(net.up(), key=lambda node: node.ident)
    return sum(
        not node.ring.joined or node.ring.successors[:1] != [ordered[(at + 1) % len(ordered)].ident]
        for at, node in enumerate(ordered)
        if len(ordered) > 1
    )


@dataclass
class LookupFigures:
    """How look-ups went. Times in seconds; `stretch` is the time of a look-up over the round trip to the owner."""

    asked: int = 0
    """Those left out whose asker has gone before there was an answer."""
    right: int = 0
    wrong: int = 0
    """Answers that named a node which was not the owner, neither when they were asked nor when they came back."""
    failed: int = 0
    hops: list[int] = field(default_factory=list)
    latency: list[float] = field(default_factory=list)
    direct: list[float] = field(default_factory=list)
    stretch: list[float] = field(default_factory=list)

    @property
    def success(self) -> float:
        """Share of right answers."""
        return self.right / self.asked if self.asked else 1.0


def percentile(values: Iterable[float], share: float) -> float:
    """The value that a share of all do not exceed; 0.0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def way_figures(hops: Sequence[int], stretch: Sequence[float]) -> dict[str, float]:
    """What reports tell of the ways that questions took."""
    return {
        "hops_mean": round(fmean(hops), 3) if hops else 0.0,
        "hops_p99": percentile(hops, 0.99),
        "stretch_p50": round(percentile(stretch, 0.5), 2),
        "stretch_p90": round(percentile(stretch, 0.9), 2),
    }


class LookupLoad:
    """Asks random nodes for the owners of random keys, evenly over time, and judges the answers by who really is the owner."""

    def __init__(self, net: RingNet, seed: int = 1) -> None:
        self.net = net
        self.figures = LookupFigures()
        self._rng = Random(f"lookups/{seed}")
        self._waiting: dict[int, ModelRuntime] = {}
        """By number, whoever waits for an answer."""

    def run(self, count: int, seconds: float, on_progress: Progress = _silent) -> LookupFigures:
        """`count` look-ups in `seconds`, and up to half a minute more for the last answers."""
        for _ in range(count):
            self._ask()
            self.net.run(seconds / count)
            on_progress(self.net.now)
        self.net.run(30.0, lambda: not any(asker.alive for asker in self._waiting.values()))
        gone = sum(not asker.alive for asker in self._waiting.values())
        self.figures.asked -= gone
        self.figures.failed += len(self._waiting) - gone
        return self.figures

    def _ask(self) -> None:
        asker = self._asker()
        if asker is None:
            return
        key = self._rng.randbytes(IDENT_BYTES)
        asked_at, owner_then = self.net.now, self.net.owner(key)
        self.figures.asked += 1
        number = self.figures.asked
        self._waiting[number] = asker.runtime
        future = asker.runtime.background(asker.lookups.find(key))

        def answered(_: object) -> None:
            del self._waiting[number]
            if isinstance(future.error, IpopError):
                self.figures.failed += 1
                return
            found = future.result()
            if found.owner not in (owner_then, self.net.owner(key)):
                self.figures.wrong += 1
                return
            self.figures.right += 1
            self.figures.hops.append(found.hops)
            if found.owner != asker.ident:
                took, direct = self.net.now - asked_at, 2 * self.net.one_way(asker, self.net.nodes[found.owner])
                self.figures.latency.append(took)
                self.figures.direct.append(direct)
                self.figures.stretch.append(took / direct)

        future.then(answered)

    def _asker(self) -> RingNode | None:
        for _ in range(20):
            node = self.net.nodes[self.net.order[self._rng.randrange(len(self.net.order))]]
            if node.up and node.ring.placed:
                return node
        return None


@dataclass
class Idle:
    """What a node sends when nobody asks anything, in bytes per second."""

    messages: float
    keepalive: float

    @property
    def total(self) -> float:
        """Both."""
        return self.messages + self.keepalive


def idle_bytes(net: RingNet, seconds: float, on_progress: Progress = _silent) -> Idle:
    """Let time pass, and see what is sent meanwhile."""
    before = net.bytes_sent
    for _ in range(max(1, round(seconds / 10))):
        net.run(min(10.0, seconds))
        on_progress(net.now)
    nodes = max(1, len(net.up()))
    return Idle((net.bytes_sent - before) / nodes / seconds, net.keepalive_bytes_per_s() / nodes)
