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
from ipop_tx.values import Endpoint
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

    timeout = 10
    loop: Any = reactor

    def setUp(self) -> None:
        self.members = Members(Path(self.mktemp()))

    def listening(self, credentials: Any = None, **settings: Any) -> tuple[TlsTransport, Inbox, Endpoint]:
        """A transport that listens, its inbox, where it is reached."""
        transport, inbox = self.dialling(credentials or self.members.founder, host="127.0.0.1", port=0, **settings)
        return transport, inbox, transport.local_endpoints()[0]

    def dialling(self, credentials: Any, **settings: Any) -> tuple[TlsTransport, Inbox]:
        """A transport, by default one that does not listen."""
        transport, inbox = TlsTransport(self.loop, credentials, TlsSettings(**settings)), Inbox()
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
