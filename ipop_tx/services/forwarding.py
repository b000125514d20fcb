"""Where the two planes meet: links become adjacencies, and the forwarding plane's questions go to the node."""

from __future__ import annotations

import os
from collections import deque
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from zope.interface import implementer

from ipop_tx.core import commands as c
from ipop_tx.core import events as e
from ipop_tx.core.links.link import LINGER, UNNEEDED, Link
from ipop_tx.forwarding.fib import Adjacency, Fib
from ipop_tx.forwarding.noport import NoPort
from ipop_tx.forwarding.plane import ForwardingPlane
from ipop_tx.interfaces import IForwardingControl, IFramePort, ISession, ITransport
from ipop_tx.services.chord import ChordProtocol
from ipop_tx.services.relaywatch import RelayWatch
from ipop_tx.values import Endpoint, Ident
from ipop_tx.wire import messages as m
from ipop_tx.wire.datagram import MAX_PIECES

REPORT_AFTER = 0.05
"""Seconds after which a member is told how many of its records were opened."""
VANISHING = 0.5
"""Share of lost records from which on the path's MTU is doubted."""
SILENCE = 0.6
"""Seconds, beside three round trips, for which a member may be sent frames without a sign of life before its path is tested."""
WATCH_EVERY = 0.25
"""Seconds between looks for silent members."""
SWEEP_EVERY = 10.0
"""Seconds between looks for flows that are over."""
LOOK_EVERY = 1.0
"""Seconds between looks at the ways over relays, which change without an event of the link."""


@implementer(IForwardingControl)
class ForwardingService(Service):
    """Writes the FIB from the events of the node, and answers for the node to the plane."""

    name = "forwarding"

    def __init__(self, reactor: Any, protocol: ChordProtocol, port: IFramePort | None, transport: ITransport) -> None:
        """Without `port` the node only relays."""
        node = protocol.node
        self.fib = Fib(node.ident, node.network.prefix, widest())
        self.plane = ForwardingPlane(node.ident, self.fib, port or NoPort(), transport, self, protocol.clock, protocol)
        self._reactor = reactor
        self._protocol = protocol
        self._heard: list[Adjacency] = []
        """Members whose records were opened since they were last told how many."""
        self._reporting: Any = None
        self._carried: dict[Ident, tuple[int, int, float]] = {}
        """Frames sent to a member, signs of life from it, and when we looked."""
        self._relays = RelayWatch()
        self._parted: deque[tuple[float, Adjacency]] = deque()
        """Members to whom the link was not needed any more, and until when frames of theirs may still come by it."""
        self._look_at = self._sweep_at = float("-inf")
        self._watch = LoopingCall(self._watch_silence)
        self._watch.clock = reactor
        protocol.on(e.LinkUp, self._link_changed)
        protocol.on(e.LinkChanged, self._link_changed)
        protocol.on(e.LinkDown, self._link_down)
        protocol.on(e.RingChanged, lambda event: self._relays_changed())
        protocol.on(e.Reported, self._reported)
        protocol.on(e.AddressMoved, self._moved)

    def startService(self) -> None:
        """Watch for members that fall silent."""
        Service.startService(self)
        self._watch.start(WATCH_EVERY, now=False)

    def stopService(self) -> None:
        """Stop watching."""
        Service.stopService(self)
        if self._watch.running:
            self._watch.stop()
        if self._reporting is not None:
            self._reporting.cancel()
            self._reporting = None

    # --- FIB ---------------------------------------------------------------------------------

    def _link_changed(self, event: e.LinkUp | e.LinkChanged) -> None:
        link = self._protocol.node.link(event.ident)
        if link is not None:
            self._write(link)
            self._relays_changed()

    def _link_down(self, event: e.LinkDown) -> None:
        parted = self.fib.part(event.ident)
        if parted is not None and event.reason == UNNEEDED:
            self._parted.append((self._protocol.clock() + LINGER, parted))
        elif parted is not None:
            self.fib.bury(parted)
        self._carried.pop(event.ident, None)
        self._relays.forget(event.ident)
        self._relays_changed()

    def _relays_changed(self) -> None:
        """Relays come and go with links: look again at the way to every member that is reached through one."""
        for link in self._protocol.node.links:
            if not link.is_direct:
                self._write(link)

    def _write(self, link: Link) -> None:
        """What is true of a link now, as the FIB says it."""
        sessions = [session for session in sessions_of(link) if session.channel is not None]
        groups = link.peer.groups
        if isinstance(link.active, Endpoint):
            adjacency = self.fib.update(link.ident, sessions, link.active, link.peer.name, link.mtu, sealing=link.confirmed, groups=groups)
        else:
            way = self._protocol.node.relay.way(link.active)
            hop, header = (way[0], way[1].traffic_header()) if way is not None else (None, b"")
            adjacency = self.fib.update(
                link.ident, sessions, None, link.peer.name, hop=hop, relay_header=header, sealing=link.confirmed, groups=groups
            )
        if adjacency is not None:
            self.plane.fib_changed(adjacency)

    # --- how much arrives --------------------------------------------------------------------

    def opened(self, adjacency: Adjacency) -> None:
        """Records of a member were opened: tell it how many, soon."""
        adjacency.heard = True
        self._heard.append(adjacency)
        if self._reporting is None:
            self._reporting = self._reactor.callLater(REPORT_AFTER, self._report)

    def _report(self) -> None:
        self._reporting = None
        heard, self._heard = self._heard, []
        for adjacency in heard:
            adjacency.heard = False
            for index in adjacency.indexes:
                session, channel, _ = self.fib.by_index[index]
                if channel.highest >= 0:
                    self._protocol.submit(
                        c.Report(adjacency.ident, session.local_index, channel.highest, channel.datagrams_opened, adjacency.failed)
                    )

    def _reported(self, event: e.Reported) -> None:
        adjacency = self.fib.by_ident.get(event.ident)
        if adjacency is None or adjacency.channel is None or adjacency.channel.send_index != event.index:
            return
        adjacency.reports += 1
        self._relays.reported(adjacency, event.index, event.highest, event.opened)
        each = adjacency.tx_pieces / adjacency.tx_records if adjacency.tx_records else 1.0
        adjacency.tx_records = adjacency.tx_pieces = 0
        lost = adjacency.width.report(self._protocol.clock(), event.index, event.highest, event.opened, event.failed, each)
        if lost > VANISHING and adjacency.endpoint is not None:
            self._protocol.submit(c.DoubtMtu(adjacency.ident))

    # --- silence -----------------------------------------------------------------------------

    def _watch_silence(self) -> None:
        """A member that is sent frames and neither gives any back nor reports them may be gone: known sooner than by keep-alives.

        Or it is there, and opens none because they are wide.
        """
        now = self._protocol.clock()
        while self._parted and now >= self._parted[0][0]:
            self.fib.bury(self._parted.popleft()[1])
        if now >= self._look_at:
            self._look_at = now + LOOK_EVERY
            self._relays_changed()
        self.plane.inbound.reassembly.expire()
        if self.plane.policing is not None and now >= self._sweep_at:
            self._sweep_at = now + SWEEP_EVERY
            self.plane.policing.sweep(self.fib.by_ident)
        for adjacency in list(self.fib.by_ident.values()):
            adjacency.width.look(now, adjacency.tx_records)
            signs = adjacency.rx_frames + adjacency.reports
            sent, seen, since = self._carried.get(adjacency.ident, (adjacency.tx_frames, signs, now))
            silent = adjacency.tx_frames > sent and signs == seen
            link = self._protocol.node.link(adjacency.ident)
            if link is not None and self._relays.is_bad(now, adjacency, link.rtt):
                self._protocol.submit(c.DoubtRelay(adjacency.ident))
            if silent and link is not None and now - since <= SILENCE + 3 * link.rtt:
                continue
            self._carried[adjacency.ident] = (adjacency.tx_frames, signs, now)
            if silent:
                self._protocol.submit(c.Suspect(adjacency.ident))

    # --- IForwardingControl ------------------------------------------------------------------

    def resolve(self, address: IPv4Address | IPv6Address) -> Deferred[Ident | None]:
        """The verified owner of an overlay address; a link to it is begun, so that the packet that follows finds it ready."""
        return self._protocol.submit(c.Resolve(str(address))).addCallback(self._resolved)

    def _resolved(self, owner: Any) -> Ident | None:
        if owner is None or owner.ident == self._protocol.node.ident:
            return None
        ident: Ident = owner.ident
        self._protocol.submit(c.Connect(ident)).addErrback(lambda failure: None)
        return ident

    def owns(self, ident: Ident, address: IPv4Address) -> Deferred[bool]:
        """Whether an address is leased to a member."""
        return self._protocol.submit(c.Owns(ident, address))

    def misdirected(self, ident: Ident, address: IPv4Address) -> None:
        """A member takes us for the owner of an address that is not ours: tell it."""
        self._protocol.submit(c.Disown(ident, address))

    def _moved(self, event: e.AddressMoved) -> None:
        """An address has another owner: frames from the former one are not believed, and the kernel's packets go to the new one."""
        address = IPv4Address(event.address)
        self.fib.disown(event.former, address)
        if event.owner is not None and event.owner != self._protocol.node.ident:
            self.plane.announce(address, event.owner)
            self._protocol.submit(c.Connect(event.owner)).addErrback(lambda failure: None)

    def connect(self, ident: Ident) -> Deferred[Any]:
        """A link to a member, fit to carry frames; the FIB has it before the answer."""
        return self._protocol.submit(c.Connect(ident)).addCallback(self._connected)

    def _connected(self, link: Link) -> Any:
        if not link.confirmed:  # the member made the link: its answer shows that the handshake is over on its side too
            return self._protocol.submit(c.Ask(link.ident, m.GetNeighbours())).addCallback(lambda answer: self._ready(link))
        return self._ready(link)

    def _ready(self, link: Link) -> None:
        if link.up:
            self._write(link)

    def next_hop(self, target: Ident, came_by: Ident) -> tuple[Ident, Ident | None] | None:
        """The next hop of relayed traffic."""
        return self._protocol.node.relay.next_hop(target, came_by)

    def unsealed(self, endpoint: Endpoint, session: ISession, kind: int, payload: bytes) -> None:
        """A sealed datagram that is no frame."""
        self._protocol.unsealed(endpoint, session, kind, payload)

    def path_seen(self, session: ISession, endpoint: Endpoint) -> None:
        """Authentic frames come from another endpoint than the path's."""
        link = self._protocol.node.links.of_session(session)
        if link is not None and link.up:
            self._protocol.submit(c.PathSeen(link.ident, endpoint))


def sessions_of(link: Link) -> list[ISession]:
    """The sessions of a link, the one to seal with first."""
    sealing = link.session
    return [sealing, *(keyed.session for keyed in link.sessions if keyed.session is not sealing)]


def widest() -> int:
    """Most pieces of a record: for benchmarks, the environment variable `IPOP_TX_WIDTH` (docs/performance.md) may say less than usual."""
    wanted = os.environ.get("IPOP_TX_WIDTH", "")
    return max(1, min(MAX_PIECES, int(wanted))) if wanted.isdecimal() else MAX_PIECES
