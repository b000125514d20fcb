"""Where the two planes meet: links become adjacencies, and the forwarding plane's questions go to the node."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from zope.interface import implementer

from ipop_tx.core import commands as c
from ipop_tx.core import events as e
from ipop_tx.core.link import Link
from ipop_tx.forwarding.fib import Fib
from ipop_tx.forwarding.plane import ForwardingPlane
from ipop_tx.interfaces import IForwardingControl, IFramePort, ISession, ITransport
from ipop_tx.services.chord import ChordProtocol
from ipop_tx.values import Endpoint, Ident

SILENCE = 1.5
"""Seconds for which a member may be sent frames without a sign of life before its path is tested."""


@implementer(IForwardingControl)
class ForwardingService(Service):
    """Writes the FIB from the events of the node, and answers for the node to the plane."""

    name = "forwarding"

    def __init__(self, reactor: Any, protocol: ChordProtocol, port: IFramePort, transport: ITransport) -> None:
        node = protocol.node
        self.fib = Fib(node.network.prefix)
        self.plane = ForwardingPlane(node.ident, self.fib, port, transport, self, protocol.clock)
        self._protocol = protocol
        self._sent: dict[Ident, tuple[int, float]] = {}
        self._watch = LoopingCall(self._watch_silence)
        self._watch.clock = reactor
        protocol.fast_path = self.plane.receive
        protocol.on(e.LinkUp, self._link_changed)
        protocol.on(e.LinkChanged, self._link_changed)
        protocol.on(e.LinkDown, lambda event: self.fib.remove(event.ident))
        protocol.on(e.FrameReceived, lambda event: self.plane.deliver(event.ident, event.frame))

    def startService(self) -> None:
        """Watch for members that fall silent."""
        Service.startService(self)
        self._watch.start(1.0, now=False)

    def stopService(self) -> None:
        """Stop watching."""
        Service.stopService(self)
        if self._watch.running:
            self._watch.stop()

    # --- FIB ---------------------------------------------------------------------------------

    def _link_changed(self, event: e.LinkUp | e.LinkChanged) -> None:
        link = self._protocol.node.link(event.ident)
        if link is not None:
            self.fib.update(link.ident, sessions_of(link), link.active if isinstance(link.active, Endpoint) else None, link.peer.name)

    def _watch_silence(self) -> None:
        """A member that is sent frames and gives none back may be gone: sooner known than the next keep-alive would tell."""
        now = self._protocol.clock()
        for adjacency in list(self.fib.by_ident.values()):
            frames, since = self._sent.get(adjacency.ident, (adjacency.tx_frames, now))
            if adjacency.tx_frames == frames or adjacency.rx_last > since:
                self._sent[adjacency.ident] = (adjacency.tx_frames, now)
            elif now - since > SILENCE:
                self._sent[adjacency.ident] = (adjacency.tx_frames, now)
                self._protocol.submit(c.Suspect(adjacency.ident))
        self._sent = {ident: entry for ident, entry in self._sent.items() if ident in self.fib.by_ident}

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
        return self._protocol.submit(c.Resolve(str(address))).addCallback(lambda owner: owner is not None and owner.ident == ident)

    def send_frame(self, ident: Ident, frame: bytes) -> None:
        """A frame for a member without a direct path."""
        self._protocol.send_frame(ident, frame)

    def unsealed(self, endpoint: Endpoint, session: ISession, kind: int, payload: bytes) -> None:
        """A sealed datagram that is no frame."""
        self._protocol.unsealed(endpoint, session, kind, payload)

    def path_seen(self, session: ISession, endpoint: Endpoint) -> None:
        """Authentic frames come from another endpoint than the path's."""
        link = self._protocol.node.links.of_session(session)
        if link is not None:
            self._protocol.submit(c.PathSeen(link.ident, endpoint))


def sessions_of(link: Link) -> list[ISession]:
    """The sessions of a link, the one to seal with first."""
    sealing = link.session
    return [sealing, *(keyed.session for keyed in link.sessions if keyed.session is not sealing)]
