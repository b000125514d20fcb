"""A node of the link model: the daemons' ring, fingers, tables, look-ups, merging and bootstrap over links that are facts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ipop_tx.core.events import Fault, Joined, RingChanged
from ipop_tx.core.links.link import UNNEEDED, DirectPath, Keyed, Link, Route
from ipop_tx.core.links.linktable import LinkTable
from ipop_tx.core.links.paths import PROBE_WAIT
from ipop_tx.core.links.rpc import Rpc
from ipop_tx.core.links.spare import Spare
from ipop_tx.core.ring.bootstrap import Bootstrap
from ipop_tx.core.ring.fingers import Fingers
from ipop_tx.core.ring.lookup import Lookups
from ipop_tx.core.ring.merging import Merging
from ipop_tx.core.ring.ring import Ring
from ipop_tx.core.ring.tables import Tables
from ipop_tx.core.routing import place_of
from ipop_tx.core.runtime import Runtime, Timer
from ipop_tx.core.tasks import Future
from ipop_tx.errors import Unreachable
from ipop_tx.values import Endpoint, Ident, Peer
from ipop_tx.wire import messages as m
from ipop_tx.wire.datagram import OVERHEAD

if TYPE_CHECKING:
    from ipop_tx.simulation.linkmodel import RingNet

UDP_IP = 28
"""Bytes of the headers of UDP over IPv4."""
HANDSHAKE_BYTES = 3968 + 8 * UDP_IP
"""What both ends of a DTLS handshake send: eight datagrams."""
REKEY_BYTES_PER_S = (168 + 2 * UDP_IP) / 120 + HANDSHAKE_BYTES / 3600
"""What renewing the keys of a link costs both ends."""
CHALLENGE_BYTES = 2 * (OVERHEAD + UDP_IP) + 42
"""A path challenge and its answer."""
HANDSHAKE_FAILS_AFTER = 10.0
PROBES_TAKE = PROBE_WAIT * (1 + 1.5 + 2.25)
"""Seconds until a link is given up after the first challenge that stays unanswered."""
HELLO_BYTES = 2 * (OVERHEAD + UDP_IP) + 180
"""Greeting on a new link."""


NO_SESSIONS: list[Keyed] = []
"""Of all modelled links."""


class ModelTimer(Timer):
    """A call that one node will make."""

    __slots__ = ("runtime",)

    def __init__(self, call: Callable[[], object], runtime: ModelRuntime) -> None:
        super().__init__(call)
        self.runtime = runtime

    def fire(self) -> None:
        """Make the call, unless it has been cancelled."""
        self.runtime.fire(self)


class ModelRuntime(Runtime):
    """A runtime whose timers are the net's own events, and whose clock is the net's, but that it stands still while the node sleeps."""

    def __init__(self, net: RingNet, node: RingNode) -> None:
        self.net = net
        self.node = node
        self.rng = net.rng
        self.counters = net.counters
        self.alive = True
        """False once the node has been switched off, for good: it gets a new runtime when it starts again."""
        self.slept = 0.0
        """Seconds that its clock has not seen."""
        self._asleep_since: float | None = None
        self._parked: list[tuple[float, ModelTimer]] = []
        """Timers that were due while it slept, and how long after it fell asleep."""

    @property
    def now(self) -> float:  # type: ignore[override]
        """Seconds of virtual time."""
        return (self.net.now if self._asleep_since is None else self._asleep_since) - self.slept

    def after(self, delay: float, call: Callable[[], object]) -> Timer:
        """Make `call` in `delay` seconds, unless the node is down by then."""
        timer = ModelTimer(call, self)
        self.net.at(self.net.now + delay, ModelTimer.fire, timer)
        return timer

    def fire(self, timer: ModelTimer) -> None:
        """A timer is due."""
        if self._asleep_since is not None:
            self._parked.append((self.net.now - self._asleep_since, timer))
            return
        call, timer.call = timer.call, None
        if call is not None and self.alive:
            call()

    def sleep_deeply(self) -> None:
        """From now on no timer fires and the clock stands still."""
        self._asleep_since = self.net.now

    def wake(self) -> None:
        """Go on where it stopped."""
        assert self._asleep_since is not None
        self.slept += self.net.now - self._asleep_since
        self._asleep_since = None
        parked, self._parked = self._parked, []
        for left, timer in parked:
            self.net.at(self.net.now + left, ModelTimer.fire, timer)

    def emit(self, event: object) -> None:
        """Take note of members that enter the ring, and of our own errors."""
        if isinstance(event, RingChanged):
            self.net.changes += 1
        elif isinstance(event, Joined):
            self.net.entered(self.node)
        elif isinstance(event, Fault):
            self.net.faults.append(f"{self.node.peer.name} at {self.net.now:.3f}: {event.text}")
        else:
            self.net.on_event(self.node, event)


class ModelLinks(LinkTable):
    """The links of one node."""

    def __init__(self, node: RingNode) -> None:
        super().__init__(node.ident)
        self.node = node

    def send_message(self, link: Link, message: m.Message) -> None:
        """Count it, and let it arrive later, perhaps."""
        net = self.node.net
        if not self.node.up:
            return
        net.sent(len(m.encode(message)) + OVERHEAD + UDP_IP, 1 if link.is_direct else 1 + len(link.route.via))
        if net.loss and net.rng.random() < net.loss:
            return
        net.at(net.now + link.rtt / 2, self._deliver, (net.nodes[link.ident], message))

    def _deliver(self, arrival: tuple[RingNode, m.Message]) -> None:
        peer, message = arrival
        back = peer.links.by_ident.get(self.ident)
        if not peer.up or back is None or not peer.net.crosses(peer, self.node, back):
            return
        if isinstance(message, m.Request):
            peer.rpc.requested(back, message)
        elif isinstance(message, m.Reply):
            peer.rpc.replied(back, message)
        elif isinstance(message, m.Close):
            peer.links.drop(back, message.reason, tell=False)

    def connect_endpoint(self, endpoint: Endpoint) -> Future[Link]:
        """See `LinkTable`."""
        peer = self.node.net.by_endpoint[endpoint]
        if peer.ident in self.by_ident or peer.ident in self._connecting or self.node.net.reaches(self.node, peer):
            return self.connect(peer.ident)
        pending = self._connecting[peer.ident] = Future()
        self._fail_later(peer)
        return pending

    def _begin(self, ident: Ident, agent: Ident | None) -> None:
        """It takes as long as a cookie exchange and a handshake, over the ring."""
        net = self.node.net
        peer = net.nodes[ident]
        way = net.way(self.node, peer, agent)
        if not peer.up or way is None:
            self._fail_later(peer)
            return
        met_by = (net.nodes[agent],) if agent and not way else way  # even those who can be direct meet over the ring
        delay = net.delay_by(self.node, peer, met_by)
        if net.loss and net.rng.random() < 6 * net.loss:
            delay += 0.25  # one of the flights is sent again
        net.sent(HANDSHAKE_BYTES + HELLO_BYTES, 1 + len(way))
        net.at(net.now + 5 * delay, self._shaken, (peer, agent))

    def _fail_later(self, peer: RingNode) -> None:
        net = self.node.net
        net.sent(6 * 250)
        net.at(net.now + HANDSHAKE_FAILS_AFTER, self._failed, peer)

    def _failed(self, peer: RingNode) -> None:
        pending = self._connecting.pop(peer.ident, None)
        if pending is not None and self.node.links is self:
            pending.fail(Unreachable(f"no answer from {peer.peer.name}"))

    def _shaken(self, arrival: tuple[RingNode, Ident | None]) -> None:
        peer, agent = arrival
        net = self.node.net
        if self.node.links is not self:
            return
        way = net.way(self.node, peer, agent)
        if not self.node.up or not peer.up or way is None:
            net.at(net.now + HANDSHAKE_FAILS_AFTER / 2, self._failed, peer)
            return
        if peer.ident not in self.by_ident:
            self.come_up(peer, way, True)
        if self.ident not in peer.links.by_ident:
            peer.links.come_up(self.node, way[::-1], False)

    def come_up(self, peer: RingNode, way: tuple[RingNode, ...], initiated: bool, since: float | None = None) -> None:
        """This end of a fresh link, or of one that has been up `since` some moment."""
        net = self.node.net
        link = Link(peer.peer, net.now if since is None else since, initiated)
        link.route = Route(peer.ident, tuple(station.ident for station in way)) if way else peer.route
        link.active = link.route if way else peer.endpoint
        link.direct = {} if way else peer.direct
        link.sessions, link.place = NO_SESSIONS, peer.ring_place
        link.rtt = 2 * net.delay_by(self.node, peer, way)
        link.placed = peer.ring.placed
        self.by_ident[peer.ident] = link
        self._announce(link)

    def drop(self, link: Link, reason: str = "it is dead", tell: bool = False) -> None:
        """End a link."""
        if not link.up:
            return
        link.parted = reason == UNNEEDED
        if tell or link.parted:
            self.send_message(link, m.Close(reason))
        link.up = False
        if self.by_ident.get(link.ident) is link:
            del self.by_ident[link.ident]
        peer = self.node.net.nodes[link.ident]
        if not link.parted:
            self.node.bootstrap.lost(peer.ident, (peer.endpoint,))
        for hook in self.on_down:
            hook(link)

    def doubt(self, link: Link, after: float = 0.0) -> None:
        """Challenge it `after` seconds: when nothing comes back, it ends, unless another relay is found."""
        if not link.alarm:
            link.alarm = True
            self.node.net.at(self.node.net.now + after + PROBES_TAKE, self._judge, link)

    def _judge(self, link: Link) -> None:
        link.alarm = False
        net = self.node.net
        peer = net.nodes[link.ident]
        if not link.up or self.node.links is not self or not self.node.up:
            return
        back = peer.links.by_ident.get(self.ident) if peer.up else None
        if back is None:
            self.drop(link)
        elif not net.crosses(self.node, peer, link):
            way = net.way(self.node, peer, None)
            if way is None:
                self.drop(link)
                return
            for end, other, stations in ((link, peer, way), (back, self.node, way[::-1])):
                end.route = Route(other.ident, tuple(station.ident for station in stations))
                end.active = end.route if stations else other.endpoint
                end.rtt = 2 * net.delay_by(self.node, peer, way)


class RingNode:
    """One member: everything of a daemon that makes the ring, and nothing else."""

    __slots__ = ("bootstrap", "direct", "endpoint", "fingers", "ident", "links", "lookups", "merging", "net", "number", "peer", "place",
                 "ring", "ring_place", "route", "rpc", "runtime", "spare", "tables", "up")  # fmt: skip

    def __init__(self, net: RingNet, number: int) -> None:
        self.net = net
        self.number = number
        self.ident: Ident = hashlib.sha256(b"node" + number.to_bytes(8, "big")).digest()[:20]
        self.peer = Peer(self.ident, f"n{number}")
        self.endpoint = Endpoint("udp", f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}", 4500)
        self.direct = {self.endpoint: DirectPath(0.0, 0.0)}
        self.route = Route(self.ident)
        self.ring_place = place_of(self.ident)
        self.place = (net.rng.random(), net.rng.random())
        self.up = False
        self._power_on()

    def _power_on(self) -> None:
        self.runtime = ModelRuntime(self.net, self)
        self.links = self._unlinked()
        self.rpc = Rpc(self.links, self.runtime)
        self.lookups = Lookups(self.links, self.rpc, self.runtime)
        self.ring = Ring(self.links, self.rpc, self.lookups, self.runtime)
        self.tables = Tables(self.ring, self.links, self.rpc, self.runtime)
        self.fingers = Fingers(self.ring, self.lookups, self.links, self.runtime)
        self.merging = Merging(self.ring, self.lookups, self.links, self.runtime)
        self.bootstrap = Bootstrap(self.links, self.ring, self.runtime)
        self.spare = Spare(self.links, self.rpc, self.runtime)
        self.spare.needs += [self.ring.needs, self._relays_by]
        self.spare.suspect = self.rpc.suspect = self._suspect
        self.tables.table_of = self.net.table_of
        self.ring.on_placed = self._placed

    def _unlinked(self) -> ModelLinks:
        return ModelLinks(self)

    def start(self, *contacts: RingNode) -> Future[Any]:
        """Join through other members, or found a ring if none are named."""
        self.up = True
        work = self.bootstrap.run(tuple(contact.endpoint for contact in contacts), not contacts)
        return self.runtime.background(work)

    def crash(self) -> None:
        """Stop without a word. The others notice after a while."""
        self.net.cut_off(self)
        self._power_off()

    def _power_off(self) -> None:
        self.up = self.runtime.alive = False
        self.net.gone(self)
        self._power_on()

    def suspend(self) -> None:
        """The machine falls asleep as a laptop does: for the others that is a crash, for itself nothing has happened."""
        self.net.cut_off(self)
        self.up = False
        self.net.gone(self)
        self.runtime.sleep_deeply()

    def resume(self) -> None:
        """It wakes, with the links, the neighbours and the plans that it had."""
        self.up = True
        self.net.entered(self)
        self.runtime.wake()
        for link in self.links:
            self.links.doubt(link)

    def leave(self) -> None:
        """Say goodbye, then stop."""

        def gone(_: object) -> None:
            for link in self.links:
                self.links.drop(link, "the node leaves", tell=True)
            self._power_off()

        self.runtime.background(self.ring.leave()).then(gone)

    def _relays_by(self, ident: Ident) -> bool:
        """Whether a relayed link of ours goes by way of a member."""
        return any(ident in link.route.via and not link.is_direct for link in self.links.by_ident.values())

    def _suspect(self, ident: Ident) -> None:
        link = self.links.by_ident.get(ident)
        if link is not None:
            self.links.doubt(link)

    def _placed(self) -> None:
        """Tell it to all links, as `Hello` does."""
        for link in self.links:
            self.net.sent(HELLO_BYTES)
            peer = self.net.nodes[link.ident]
            self.net.at(self.net.now + link.rtt / 2, self._told, peer)

    def _told(self, peer: RingNode) -> None:
        back = peer.links.by_ident.get(self.ident)
        if back is not None:
            back.placed = True
