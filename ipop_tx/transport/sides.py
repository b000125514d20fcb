"""UDP sockets beside the transport's own one, each for one short check of the NAT."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.error import MessageLengthError
from twisted.internet.protocol import DatagramProtocol

from ipop_tx.values import Endpoint

_MAPPED = "::ffff:"

Received = Callable[[int, Endpoint, bytes], None]


class _Side(DatagramProtocol):
    def __init__(self, number: int, received: Received) -> None:
        self._number = number
        self._received = received

    def datagramReceived(self, datagram: bytes, addr: tuple[Any, ...]) -> None:
        host = str(addr[0]).partition("%")[0]
        self._received(self._number, Endpoint("udp", host.removeprefix(_MAPPED) if "." in host else host, addr[1]), datagram)


class SideSockets:
    """Opens, closes and serves them, by numbers that the user gives. `host` tells where to bind, as the transport does."""

    def __init__(self, reactor: Any, host: Callable[[], str], received: Received) -> None:
        self._reactor = reactor
        self._host = host
        self._received = received
        self._ports: dict[int, Any] = {}

    def open(self, number: int) -> int:
        """A socket on any free port; gives the port. Raises twisted's `CannotListenError`."""
        port = self._ports[number] = self._reactor.listenUDP(0, _Side(number, self._received), interface=self._host(), maxPacketSize=2048)
        return int(port.getHost().port)

    def send(self, number: int, endpoint: Endpoint, datagram: bytes) -> None:
        """Send one datagram; what cannot be sent is lost, as on the wire."""
        port = self._ports.get(number)
        if port is None:
            return
        host = _MAPPED + endpoint.host if ":" in port.interface and "." in endpoint.host else endpoint.host
        try:
            port.write(datagram, (host, endpoint.port))
        except (OSError, ValueError, MessageLengthError):  # no route, a firewall, an address of the other family
            return

    def close(self, number: int) -> None:
        """Close one. Idempotent."""
        port = self._ports.pop(number, None)
        if port is not None:
            port.stopListening()

    def close_all(self) -> None:
        """Close what is open."""
        for number in list(self._ports):
            self.close(number)
