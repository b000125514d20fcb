"""What the tests of TLS share: members of a network, transports on loopback, small proxies."""

from __future__ import annotations

import time
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

from twisted.internet import protocol, reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from ipop_tx.identity.authority import Admitter, create_network, install_chain, make_request, sign_request
from ipop_tx.identity.certificates import fingerprint
from ipop_tx.identity.credentials import Credentials
from ipop_tx.identity.state import StateDirectory
from ipop_tx.transport.tls import TlsSettings, TlsTransport
from ipop_tx.values import Endpoint, Proxy
from tests.transport import Inbox


class Members:
    """A network on disk, and as many members of it as a test wants."""

    def __init__(self, directory: Path, name: str = "lab") -> None:
        self._directory = directory
        self._founder = StateDirectory(directory / "founder")
        create_network(self._founder, name, IPv4Network("10.128.0.0/16"), "founder")
        self.root = Admitter.load(self._founder).root
        self.founder = Credentials.load(self._founder)

    def member(self, name: str) -> Credentials:
        """One more member."""
        state = StateDirectory(self._directory / name)
        install_chain(state, sign_request(self._founder, make_request(state, name), ""), fingerprint(self.root))
        return Credentials.load(state)


class TlsCase(TestCase):
    """Transports on loopback under the real reactor."""

    timeout = 8

    def setUp(self) -> None:
        self.members = Members(Path(self.mktemp()))

    def listening(self, credentials: Any = None, **settings: Any) -> tuple[TlsTransport, Inbox, Endpoint]:
        """A transport that listens, its inbox, where it is reached."""
        transport, inbox = self.dialling(credentials or self.members.founder, host="127.0.0.1", port=0, **settings)
        return transport, inbox, transport.local_endpoints()[0]

    def dialling(self, credentials: Any, **settings: Any) -> tuple[TlsTransport, Inbox]:
        """A transport, by default one that does not listen."""
        transport, inbox = TlsTransport(reactor, credentials, TlsSettings(**settings)), Inbox()
        transport.start(inbox)
        self.addCleanup(self.stopped, transport)
        return transport, inbox

    async def stopped(self, transport: TlsTransport) -> None:
        """Stop it, and wait until the reactor has forgotten its sockets."""
        transport.stop()
        await self.sleep(0.02)

    def sleep(self, seconds: float) -> Deferred[None]:
        """Let the reactor run."""
        return deferLater(reactor, seconds, lambda: None)

    async def becomes(self, condition: Any, seconds: float = 10.0, what: str = "") -> None:
        """Wait until the condition holds."""
        end = time.monotonic() + seconds
        while not condition():
            self.assertLess(time.monotonic(), end, what or "it did not become so")
            await self.sleep(0.005)

    async def raw(self, endpoint: Endpoint) -> Raw:
        """A stranger's connection."""
        plain: Raw = await connectProtocol(TCP4ClientEndpoint(reactor, endpoint.host, endpoint.port), Raw())
        self.addCleanup(plain.end)
        return plain


class Raw(protocol.Protocol):
    """A bare TCP connection that notes what comes."""

    def __init__(self) -> None:
        self.received = b""
        self.closed = False

    def dataReceived(self, data: bytes) -> None:
        self.received += data

    def connectionLost(self, reason: Any = protocol.connectionDone) -> None:
        self.closed = True

    def end(self) -> None:
        """Hang up."""
        if self.transport is not None:
            self.transport.abortConnection()


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
        return Proxy(self.kind, "127.0.0.1", port.getHost().port)
