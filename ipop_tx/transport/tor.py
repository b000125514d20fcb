"""Tor: members that are reached as onion services, and reach others so, without either end showing where it is.

What goes over Tor is what goes over TLS (`transport.tls`): the same connections, frames, bounds and certificates. They are made through
tor's SOCKS port, and come in from tor on a port of loopback to which it leads our onion service.

The service is of version 3, its key is kept, so its name stays. It asks for client authorization (rend-spec-v3, 2.5.1): who does not know
the key cannot even read where the service is to be met. All members derive that key from the fingerprint of the network's root, as they do
for the knock of TLS: it keeps out strangers; members are judged by their certificates.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from twisted.internet.defer import Deferred
from zope.interface import implementer

from ipop_tx.errors import EnvironmentProblem, IpopError
from ipop_tx.interfaces import IDatagramReceiver, ITransport
from ipop_tx.log import Logger
from ipop_tx.transport.tls import TlsSettings, TlsTransport
from ipop_tx.transport.tls_connection import TlsConnection
from ipop_tx.transport.tls_context import TlsCredentials
from ipop_tx.transport.tor_process import TorConnection, TorProcess
from ipop_tx.values import ONION, Endpoint, Proxy

KNOWN = 4096
"""Onion services whose client key tor has been told."""


@dataclass(frozen=True)
class TorSettings:
    """`[tor]` of the configuration."""

    control: str | None = None
    """Of a tor that runs: `unix:PATH` or `HOST:PORT`; None: we start one."""
    password: str = ""
    """For its control port; without one, the cookie that it names."""
    binary: str = "tor"
    torrc: Path | None = None
    """More lines for the tor that we start."""
    data: Path | None = None
    """Where the tor that we start keeps what it learns: guards and the like, which it should not choose anew each time."""
    port: int = 4500
    """Of the onion service, as others see it."""


class KeyFile(Protocol):
    """Where the onion service's key is kept."""

    def load(self) -> str:
        """As tor writes it, `ED25519-V3:...`; empty when there is none yet."""

    def save(self, key: str) -> None:
        """Keep it."""


@implementer(ITransport)
class TorTransport(TlsTransport):
    """Datagrams over Tor. `start` never fails for want of tor: it is waited for, and `health` tells what is missing."""

    scheme = "onion"
    opening_seconds = 40.0
    strangers_each = 64
    """All of them come from tor on this machine."""
    _log = Logger()

    def __init__(self, reactor: Any, credentials: TlsCredentials, settings: TorSettings, key: KeyFile) -> None:
        super().__init__(reactor, credentials, TlsSettings("127.0.0.1", 0, self._proxy_of))
        control = settings.control or TorProcess(reactor, settings.binary, settings.torrc, settings.data)
        self._tor = TorConnection(reactor, control, settings.password, self._up, self._down)
        self._onion_port = settings.port
        self._key = key
        self._client = client_key(credentials.fingerprint)
        self._socks: Proxy | None = None
        self._told: dict[str, bool] = {}
        """Services whose client key tor is being told (False) or knows (True)."""
        self._name = ""
        """Of our own service, while tor has it."""
        self.problem = ""

    def start(self, receiver: IDatagramReceiver) -> None:
        """Bind the port that tor leads to, and look for tor. Raises `EnvironmentProblem`."""
        super().start(receiver)
        self._tor.start()

    def stop(self) -> None:
        """Close everything; a tor that we started ends, one that ran before forgets our service."""
        self._tor.stop()
        super().stop()

    def local_endpoints(self) -> list[Endpoint]:
        """Our onion service, once tor has it."""
        return [Endpoint(self.scheme, self._name, self._onion_port)] if self._name else []

    def health(self) -> list[str]:
        """What is wrong with tor, or with us in its eyes."""
        return [sentence for sentence in (self._tor.problem, self.problem) if sentence]

    # --- our service -------------------------------------------------------------------------

    def _up(self, socks: tuple[str, int]) -> None:
        """Tor is there and knows the way."""
        self._socks = Proxy("socks5", *socks)
        self._told.clear()
        Deferred.fromCoroutine(self._publish()).addErrback(lambda failure: self._log.failure("tor_failed", failure))

    async def _publish(self) -> None:
        try:
            kept = self._key.load()
            public = base64.b32encode(self._client.public_key().public_bytes_raw()).decode().rstrip("=")
            answer = await self._tor.ask(
                f"ADD_ONION {kept or 'NEW:ED25519-V3'} Flags=V3Auth Port={self._onion_port},127.0.0.1:{self.port} ClientAuthV3={public}"
            )
            if not kept:
                self._key.save(_field(answer, "PrivateKey"))
            self._name = _field(answer, "ServiceID") + ONION
        except IpopError as error:
            self.problem = f"this node is no onion service: {error}"
            return
        self.problem = ""
        self._log.info("onion_service endpoint={endpoint}", endpoint=self.local_endpoints()[0])

    def _down(self) -> None:
        """Tor is gone, and with it our service and all connections."""
        self._socks, self._name = None, ""
        for connection in list(self):
            connection.fail(EnvironmentProblem("tor has ended"))

    # --- others' services --------------------------------------------------------------------

    def _proxy_of(self, host: str) -> Proxy | None:
        return self._socks

    def _reach(self, endpoint: Endpoint) -> TlsConnection | None:
        """A connection that is being made; none before tor knows the service's client key: what was to be sent is lost, as on any wire."""
        if self._socks is None or endpoint.inward or not endpoint.host.endswith(ONION):
            return None
        if self._told.get(endpoint.host):
            return super()._reach(endpoint)
        if endpoint.host not in self._told:
            self._introduce(endpoint)
        return None

    def _introduce(self, endpoint: Endpoint) -> None:
        if len(self._told) >= KNOWN:
            self._told.clear()
        self._told[endpoint.host] = False
        secret = base64.b64encode(self._client.private_bytes_raw()).decode()
        asked = Deferred.fromCoroutine(self._tor.ask(f"ONION_CLIENT_AUTH_ADD {endpoint.host.removesuffix(ONION)} x25519:{secret}"))
        asked.addCallbacks(lambda _: self._introduced(endpoint), lambda failure: self._told.pop(endpoint.host, None))

    def _introduced(self, endpoint: Endpoint) -> None:
        self._told[endpoint.host] = True
        if self._running:
            super()._reach(endpoint)  # whoever asked will ask again, and shall find it on its way


def client_key(fingerprint: bytes) -> X25519PrivateKey:
    """The key of all clients of a network's onion services."""
    return X25519PrivateKey.from_private_bytes(HKDF(SHA256(), 32, None, b"ipop-tx onion client 1").derive(fingerprint))


def _field(answer: str, name: str) -> str:
    """One of the lines `NAME=VALUE` of tor's answer. Raises `EnvironmentProblem`."""
    for line in answer.splitlines():
        if line.startswith(name + "="):
            return line.partition("=")[2].strip()
    raise EnvironmentProblem(f"tor's answer has no {name}", "look at tor's log, or update tor")
