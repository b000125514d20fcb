"""UDP sockets beside the transport's own one, for checks of the NAT and searches for a port; one may become a transport of its own."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IReadDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

from ipop_tx.transport.udp_socket import hop_limit, host_for, plain_host
from ipop_tx.values import Endpoint

AT_ONCE = 16
"""Datagrams that one wake-up reads at most."""
LARGEST = 2048

Received = Callable[[int, Endpoint, bytes], None]


@implementer(IReadDescriptor)
class _Side:
    """One of them. Twisted's own UDP ports would write three lines into the log for each."""

    def __init__(self, host: str, number: int, received: Received) -> None:
        self._number = number
        self._received = received
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.socket = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            if family == socket.AF_INET6:
                self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(host != "::"))
            self.socket.bind((host, 0))
        except OSError:
            self.socket.close()
            raise
        self.port = int(self.socket.getsockname()[1])

    def doRead(self) -> None:
        for _ in range(AT_ONCE):
            try:
                datagram, address = self.socket.recvfrom(LARGEST)
            except OSError:  # nothing more, or what ICMP says of something that was sent
                return
            self._received(self._number, Endpoint("udp", plain_host(address[0]), address[1]), datagram)

    def write(self, endpoint: Endpoint, datagram: bytes | memoryview, hops: int = 0) -> None:
        host = host_for(self.socket.family, endpoint.host)
        if host is None:
            return
        try:
            self.socket.sendmsg((datagram,), hop_limit(endpoint.host, hops) if hops else (), 0, (host, endpoint.port))
        except OSError:  # no route, a firewall, a full queue
            return

    write_near = write

    def fileno(self) -> int:
        return self.socket.fileno()

    def logPrefix(self) -> str:
        return f"side:{self.port}"

    def connectionLost(self, reason: Failure) -> None:
        self.socket.close()

    def close(self) -> None:
        self.socket.close()


class SideSockets:
    """Opens, closes and serves them, by numbers that the user gives. `host` tells where to bind, as the transport does."""

    def __init__(self, reactor: Any, host: Callable[[], str], received: Received) -> None:
        self._reactor = reactor
        self._host = host
        self._received = received
        self._sides: dict[int, _Side] = {}

    def open(self, number: int) -> int:
        """A socket on any free port; gives the port. Raises `OSError`."""
        side = self._sides[number] = _Side(self._host(), number, self._received)
        self._reactor.addReader(side)
        return side.port

    def send(self, number: int, endpoint: Endpoint, datagram: bytes) -> None:
        """Send one datagram; what cannot be sent is lost, as on the wire."""
        side = self._sides.get(number)
        if side is not None:
            side.write(endpoint, datagram)

    def carrier(self, number: int) -> Any:
        """What writes single datagrams by one of them; None if it is not open."""
        return self._sides.get(number)

    def release(self, number: int) -> socket.socket | None:
        """Give one away, open as it is."""
        side = self._sides.pop(number, None)
        if side is None:
            return None
        self._reactor.removeReader(side)
        return side.socket

    def close(self, number: int) -> None:
        """Close one. Idempotent."""
        side = self._sides.pop(number, None)
        if side is not None:
            self._reactor.removeReader(side)
            side.close()

    def close_all(self) -> None:
        """Close what is open."""
        for number in list(self._sides):
            self.close(number)
