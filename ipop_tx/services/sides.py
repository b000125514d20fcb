"""SideService: the sockets beside the transport's own one, for checks of the NAT, and those of them that come to carry a link."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.application.service import Service

from ipop_tx.core import events as e
from ipop_tx.errors import EnvironmentProblem
from ipop_tx.interfaces import IDatagramReceiver, ITransport
from ipop_tx.log import Logger
from ipop_tx.services.chord import ChordProtocol
from ipop_tx.transport.sides import SideSockets
from ipop_tx.transport.udp import UdpTransport
from ipop_tx.values import Endpoint


class SideService(Service):
    """Opens, keeps and closes sockets as the node wants (`core.nat.sides`)."""

    _log = Logger()
    name = "sides"

    def __init__(self, reactor: Any, pump: Any, protocol: ChordProtocol, udp: UdpTransport) -> None:
        """`reactor` serves those of checks, which are many and short-lived; `pump` those that carry a link."""
        self.receiver: IDatagramReceiver = protocol
        """Where a socket that carries a link delivers: a forwarding plane, where there is one."""
        self._protocol = protocol
        self._udp = udp
        self._pump = pump
        self._sockets = SideSockets(reactor, lambda: udp.host, self._received)
        self._kept: dict[int, UdpTransport] = {}
        listeners: tuple[tuple[type, Callable[[Any], object]], ...] = (
            (e.SideWanted, self._open),
            (e.SideSend, lambda event: self._sockets.send(event.number, event.endpoint, event.datagram)),
            (e.SendNear, self._send_near),
            (e.SideKept, self._keep),
            (e.SideDone, self._close),
        )
        for kind, listener in listeners:
            protocol.on(kind, listener)

    def stopService(self) -> None:
        """Close what is open."""
        Service.stopService(self)
        self._sockets.close_all()
        for transport in self._kept.values():
            transport.stop()
        self._kept.clear()

    def _send_near(self, event: e.SendNear) -> None:
        carrier: Any = self.carrier(event.endpoint.side) if event.endpoint.side else self._udp
        if carrier is not None and event.endpoint.carrier == self._udp.scheme:
            carrier.write_near(event.endpoint, event.datagram, event.hops)

    def carrier(self, number: int) -> ITransport | None:
        """What sends to the endpoints of a socket."""
        return self._kept.get(number) or self._sockets.carrier(number)

    def _open(self, event: e.SideWanted) -> None:
        try:
            port = self._sockets.open(event.number)
        except OSError as error:
            event.port.fail(EnvironmentProblem(f"no second UDP port could be opened ({error.strerror})"))
        else:
            event.port.succeed(port)

    def _keep(self, event: e.SideKept) -> None:
        taken = self._sockets.release(event.number)
        if taken is not None:
            transport = self._kept[event.number] = UdpTransport(self._pump, taken.getsockname()[0], 0, taken=taken, side=event.number)
            transport.start(self.receiver)
            self._log.info("side_kept number={number} port={port}", number=event.number, port=transport.port)

    def _close(self, event: e.SideDone) -> None:
        self._sockets.close(event.number)
        transport = self._kept.pop(event.number, None)
        if transport is not None:
            transport.stop()

    def _received(self, number: int, endpoint: Endpoint, datagram: bytes) -> None:
        if self.running:
            self._protocol.node.receive_aside(self._protocol.clock(), number, endpoint, datagram)
            self._protocol.settle()
