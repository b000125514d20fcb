"""Small proxies, HTTP CONNECT and SOCKS5, for tests: in this process, or as a program of their own, `python -m tests.proxy http 3128`."""

from __future__ import annotations

import sys
from typing import Any

from twisted.internet import protocol, reactor
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.trial.unittest import TestCase

from ipop_tx.values import Proxy


class SmallProxy(protocol.Protocol):
    """An HTTP proxy (CONNECT) or SOCKS5 proxy without any care: for tests. The factory says which, and what it wants."""

    def __init__(self, factory: SmallProxyFactory) -> None:
        self._factory = factory
        self._data = b""
        self._beyond: Any = None
        self._greeted = factory.kind == "http"
        self._known = not factory.user

    def dataReceived(self, data: bytes) -> None:
        if self._beyond is not None:
            self._beyond.transport.write(data)
            return
        self._data += data
        if self._factory.kind == "http":
            self._http()
        else:
            self._socks()

    def _http(self) -> None:
        if b"\r\n\r\n" not in self._data:
            return
        head, _, _ = self._data.partition(b"\r\n\r\n")
        if self._factory.user and b"Basic dTpw" not in head:  # u:p
            self.transport.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\n\r\n")
            self.transport.loseConnection()
            return
        host, _, port = head.split(b" ")[1].decode().rpartition(":")
        self._connect(
            host.strip("[]"), int(port), b"HTTP/1.1 200 Connection established\r\nVia: a test\r\n\r\n", b"HTTP/1.1 502 No\r\n\r\n"
        )

    def _socks(self) -> None:
        if not self._greeted:
            self._greeted, self._data = True, b""
            self.transport.write(b"\x05\x02" if self._factory.user else b"\x05\x00")
        elif not self._known:
            self._known, good, self._data = True, self._data == b"\x01\x01u\x01p", b""
            self.transport.write(b"\x01\x00" if good else b"\x01\x01")
        elif len(self._data) >= 10:
            host, port = ".".join(map(str, self._data[4:8])), int.from_bytes(self._data[8:10], "big")
            self._connect(host, port, b"\x05\x00\x00\x01" + bytes(6), b"\x05\x05\x00\x01" + bytes(6))

    def _connect(self, host: str, port: int, good: bytes, bad: bytes) -> None:
        self._data = b""
        self._factory.connects.append((host, port))
        made = connectProtocol(TCP4ClientEndpoint(reactor, host, port, 5), _Beyond(self))

        def connected(beyond: Any) -> None:
            self._beyond = beyond
            self.transport.write(good)

        made.addCallbacks(connected, lambda failure: (self.transport.write(bad), self.transport.loseConnection()))

    def connectionLost(self, reason: Any = protocol.connectionDone) -> None:
        if self._beyond is not None:
            self._beyond.transport.loseConnection()


class _Beyond(protocol.Protocol):
    def __init__(self, front: SmallProxy) -> None:
        self._front = front

    def dataReceived(self, data: bytes) -> None:
        self._front.transport.write(data)

    def connectionLost(self, reason: Any = protocol.connectionDone) -> None:
        self._front.transport.loseConnection()


class SmallProxyFactory(protocol.ServerFactory):
    """Of a kind, `http` or `socks5`; with `user` it wants the user u and the password p."""

    noisy = False

    def __init__(self, kind: str, user: bool = False) -> None:
        self.kind = kind
        self.user = user
        self.connects: list[tuple[str, int]] = []

    def buildProtocol(self, addr: Any) -> SmallProxy:
        return SmallProxy(self)

    def listen(self, case: TestCase) -> Proxy:
        """Listen on loopback for the time of a test."""
        port = reactor.listenTCP(0, self, interface="127.0.0.1")  # type: ignore[attr-defined]
        case.addCleanup(port.stopListening)
        user = "u" if self.user else ""
        return Proxy(self.kind, "127.0.0.1", port.getHost().port, user, "p" if user else "")


if __name__ == "__main__":
    reactor.listenTCP(int(sys.argv[2]), SmallProxyFactory(sys.argv[1], "auth" in sys.argv[3:]))  # type: ignore[attr-defined]
    reactor.run()  # type: ignore[attr-defined]
