"""The ring at scale: nodes whose ring, fingers, look-ups and merging are those of the daemons, over links that are only modelled.

A link here is a fact: two nodes that can reach each other, or a third between them. Its handshake is a delay and a number of bytes, its
keep-alive a rate, the death of its far end is noticed as late as the daemons notice it. Everything above (all of `core.ring`, and
`core.links.rpc`) runs unchanged. `simulation.network` runs whole nodes instead, handshakes and all, and a test compares the two.
"""

from __future__ import annotations

import heapq
import itertools
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from math import hypot
from random import Random
from typing import Any
from weakref import WeakValueDictionary

from ipop_tx.core.links.link import Link, Route
from ipop_tx.core.links.paths import KEEPALIVE, NEIGHBOUR_KEEPALIVE
from ipop_tx.core.routing import Table
from ipop_tx.simulation.ringnode import CHALLENGE_BYTES, REKEY_BYTES_PER_S, RingNode
from ipop_tx.values import Endpoint, Ident
from ipop_tx.wire import messages as m


class SharedTable(Table):
    """A table that all who were told of it share."""

    __slots__ = ("__weakref__", "body")

    def __init__(self, body: m.Links) -> None:
        super().__init__(body.idents, body.delays)
        self.body = body


@dataclass
class RingNet:
    """Members on a unit square whose distance is their delay, up to `width_s` seconds of round trip along a side."""

    seed: int = 1
    loss: float = 0.0
    """Share of messages lost, 0..1."""
    width_s: float = 0.1
    delay_of: Callable[[RingNode, RingNode], float] | None = None
    """One-way delay of a pair in seconds; the plane if None."""
    now: float = 0.0
    nodes: dict[Ident, RingNode] = field(default_factory=dict)
    by_endpoint: dict[Endpoint, RingNode] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    bytes_sent: int = 0
    messages: int = 0
    events: int = 0
    changes: int = 0
    """How often any node's neighbours have changed."""

    def __post_init__(self) -> None:
        self.rng = Random(f"ring/{self.seed}")
        self.reaches: Callable[[RingNode, RingNode], bool] = lambda one, other: True
        """Whether datagrams pass between two members, either way."""
        self.on_event: Callable[[RingNode, object], None] = lambda node, event: None
        """Told what nodes emit, but for what the net counts itself."""
        self._queue: list[tuple[float, int, Callable[[Any], object], Any]] = []
        self._order = itertools.count()
        self.order: list[Ident] = []
        """All that ever were, by number."""
        self._members: list[Ident] = []
        """Those on the ring, in order."""
        self._tables: WeakValueDictionary[int, SharedTable] = WeakValueDictionary()

    def table_of(self, body: m.Links) -> Table:
        """One table for all who were told the same, to save memory."""
        table = self._tables.get(id(body))
        if table is None or table.body is not body:
            table = self._tables[id(body)] = SharedTable(body)
        return table

    def add(self) -> RingNode:
        """One more member, switched off."""
        node = RingNode(self, len(self.nodes))
        self.nodes[node.ident] = node
        self.by_endpoint[node.endpoint] = node
        self.order.append(node.ident)
        return node

    def some(self, count: int) -> list[RingNode]:
        """A few of those that run, at random."""
        drawn = (self.nodes[self.order[self.rng.randrange(len(self.order))]] for _ in range(50))
        return list({node.ident: node for node in drawn if node.up}.values())[:count]

    def link(self, one: RingNode, other: RingNode) -> None:
        """Give two members a link, as if they had had it for long."""
        if other.ident not in one.links.by_ident:
            way = self.way(one, other, None)
            if way is not None:
                one.links.come_up(other, way, True, -1e9)
                other.links.come_up(one, way[::-1], False, -1e9)

    def owner(self, key: bytes) -> Ident:
        """The member that a key belongs to, in truth."""
        return self._members[bisect_left(self._members, key) % len(self._members)]

    def entered(self, node: RingNode) -> None:
        """A member has found its place. Idempotent."""
        at = bisect_left(self._members, node.ident)
        if self._members[at : at + 1] != [node.ident]:
            self._members.insert(at, node.ident)

    def gone(self, node: RingNode) -> None:
        """A member is off the ring."""
        at = bisect_left(self._members, node.ident)
        if at < len(self._members) and self._members[at] == node.ident:
            del self._members[at]

    def up(self) -> list[RingNode]:
        """Those that run."""
        return [node for node in self.nodes.values() if node.up]

    # --- time --------------------------------------------------------------------------------

    def at(self, moment: float, call: Callable[[Any], object], argument: Any) -> None:
        """Make a call at a moment."""
        heapq.heappush(self._queue, (moment, next(self._order), call, argument))

    def run(self, seconds: float, until: Callable[[], bool] | None = None) -> bool:
        """Let time pass, at most until the condition holds; gives whether it does."""
        end = self.now + seconds
        queue = self._queue
        if until is not None and until():
            return True
        while queue and queue[0][0] <= end:
            self.now, _, call, argument = heapq.heappop(queue)
            self.events += 1
            call(argument)
            if until is not None and until():
                return True
        self.now = end
        return False

    # --- the wire ----------------------------------------------------------------------------

    def sent(self, size: int, times: int = 1) -> None:
        """Count what goes over the wire."""
        self.messages += times
        self.bytes_sent += size * times

    def one_way(self, one: RingNode, other: RingNode) -> float:
        """Seconds that a datagram takes between two members."""
        if self.delay_of is not None:
            return self.delay_of(one, other)
        (x, y), (u, v) = one.place, other.place
        return 0.001 + self.width_s / 2 * hypot(x - u, y - v)

    def delay_by(self, one: RingNode, other: RingNode, way: tuple[RingNode, ...]) -> float:
        """The same, by way of others."""
        stations = (one, *way, other)
        return sum(self.one_way(here, there) for here, there in pairwise(stations))

    def delay(self, one: RingNode, other: RingNode, link: Link) -> float:
        """Seconds that a datagram of a link takes."""
        if not isinstance(link.active, Route):
            return self.one_way(one, other)
        return self.delay_by(one, other, tuple(self.nodes[ident] for ident in link.route.via))

    def crosses(self, one: RingNode, other: RingNode, link: Link) -> bool:
        """Whether a datagram of a link gets to the other end now."""
        if not isinstance(link.active, Route):
            return self.reaches(one, other)
        stations = [one, *(self.nodes[ident] for ident in link.route.via), other]
        return all(station.up for station in stations) and all(self.reaches(here, there) for here, there in pairwise(stations))

    def way(self, one: RingNode, other: RingNode, agent: Ident | None) -> tuple[RingNode, ...] | None:
        """By way of whom the two can speak: nobody, the agent, a member that both have a link to, or two who have one to each other."""
        if self.reaches(one, other):
            return ()
        ours, theirs = self._direct_of(one, other), self._direct_of(other, one)
        if agent is not None and agent not in theirs and self.nodes[agent].up and self.reaches(self.nodes[agent], other):
            theirs[agent] = self.nodes[agent]
        for ident, relay in theirs.items():
            if ident in ours or (ident == agent and self.reaches(one, relay)):
                return (relay,)
        for first in ours.values():
            for ident, second in theirs.items():
                if (ident == agent or ident in first.links.by_ident) and self.reaches(first, second):
                    return (first, second)
        return None

    def _direct_of(self, node: RingNode, but: RingNode) -> dict[Ident, RingNode]:
        """Those to whom a member has a direct link that carries."""
        linked = {ident: self.nodes[ident] for ident, link in node.links.by_ident.items() if link.is_direct and ident != but.ident}
        return {ident: peer for ident, peer in linked.items() if peer.up and self.reaches(node, peer)}

    # --- death -------------------------------------------------------------------------------

    def cut_off(self, node: RingNode) -> None:
        """A member has crashed: all who have a link to it will find out, each in its time."""
        for link in node.links:
            peer = self.nodes[link.ident]
            back = peer.links.by_ident.get(node.ident)
            if back is not None:
                peer.links.doubt(back, self._until_keepalive(peer, back))
        for peer_link in list(node.links.by_ident):
            for ident in list(self.nodes[peer_link].links.by_ident):
                self._recheck_relayed(self.nodes[peer_link], ident, node)

    def _recheck_relayed(self, peer: RingNode, ident: Ident, relay: RingNode) -> None:
        link = peer.links.by_ident.get(ident)
        if link is not None and relay.ident in link.route.via:
            peer.links.doubt(link, self._until_keepalive(peer, link))

    def recheck(self) -> None:
        """Who reaches whom has changed: links that do not carry any more will be found out."""
        for node in self.up():
            for link in node.links:
                if not self.crosses(node, self.nodes[link.ident], link):
                    node.links.doubt(link, self._until_keepalive(node, link))

    def _until_keepalive(self, node: RingNode, link: Link) -> float:
        interval = NEIGHBOUR_KEEPALIVE if link.ident in node.ring.watched else KEEPALIVE
        return self.rng.random() * interval

    def keepalive_bytes_per_s(self) -> float:
        """What the challenges and fresh keys of all links cost just now."""
        total = 0.0
        for node in self.up():
            for ident in node.links.by_ident:
                interval = NEIGHBOUR_KEEPALIVE if ident in node.ring.watched else KEEPALIVE
                total += (CHALLENGE_BYTES / interval + REKEY_BYTES_PER_S) / 2
        return total
