"""UDP port 67 of this node's address: there guests renew and release, once they know the server, past the TAP."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from ipaddress import IPv4Address
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import DatagramProtocol

from ipop_tx.forwarding.dhcp import CLIENT_PORT, SERVER_PORT, read
from ipop_tx.services.ports import why_taken
from ipop_tx.wire.dhcp import Message


class DhcpPort(DatagramProtocol):
    """Hands well-formed questions on. It never answers: answers go out by the TAP, to a MAC."""

    noisy = False

    def __init__(self, reactor: Any, asked: Callable[[Message], object]) -> None:
        self.problem = ""
        """Why there is no such port, in a sentence."""
        self._reactor = reactor
        self._asked = asked
        self._port: Any = None
        self._wanted: tuple[IPv4Address, str] | None = None

    def listen(self, address: IPv4Address | None, interface: str) -> None:
        """Listen on another address, or on another interface of that name; None: on none."""
        self._wanted = (address, interface) if address is not None else None
        self._close().addCallback(lambda _: self._bind())

    def _bind(self) -> None:
        if self._wanted is None or self._port is not None:
            return
        address, interface = self._wanted
        try:
            self._port = self._reactor.listenUDP(SERVER_PORT, self, interface=str(address))
            self._port.getHandle().setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, os.fsencode(interface) + b"\0")
        except (CannotListenError, OSError) as error:
            self.problem = (
                f"UDP port {SERVER_PORT} of {address} cannot be used ({why_taken(error)}): "
                "guests renew late, by broadcast, and what they release is free only when it expires"
            )

    def close(self) -> None:
        """Listen no more. Idempotent."""
        self._wanted = None
        self._close()

    def _close(self) -> Deferred[Any]:
        """The port may be bound again only once it is closed."""
        self.problem = ""
        port, self._port = self._port, None
        return maybeDeferred(port.stopListening if port is not None else lambda: None)

    def datagramReceived(self, datagram: bytes, addr: tuple[str, int]) -> None:
        """Only who may use the client's port, on this machine root, speaks for a guest."""
        question = read(datagram)
        if question is not None and addr[1] == CLIENT_PORT:
            self._asked(question)
