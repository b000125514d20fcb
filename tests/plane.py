"""Around a forwarding plane in tests: a session that seals nothing, and a control plane that is a table."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from zope.interface import implementer

from ipop_tx.errors import BadDatagram
from ipop_tx.interfaces import IForwardingControl, ISession
from ipop_tx.values import Endpoint, Ident, Network

NETWORK = Network("lab", bytes(20), IPv4Network("10.128.0.0/16"), IPv6Network("fd12:3456:789a::/48"))


@implementer(ISession)
class ClearSession:
    """Gives datagrams the shape of sealed ones. The "tag" is a constant, so that a test can forge."""

    established = True
    failure = None
    initiated = True
    opening = bytes(32)
    peer = None
    tag = bytes(8)
    _TAG = b"tag" * 5 + b"!"

    def __init__(self, local_index: int, remote_index: int) -> None:
        self.local_index = local_index
        self.remote_index = remote_index

    def protect(self, kind: int, payload: bytes | memoryview) -> bytes:
        return self.remote_index.to_bytes(4, "big") + bytes((kind,)) + bytes(11) + payload + self._TAG

    def unprotect(self, datagram: bytes | memoryview) -> tuple[int, bytes]:
        if datagram[-16:] != self._TAG:
            raise BadDatagram("forged")
        return datagram[4], bytes(datagram[16:-16])

    def receive(self, now: float, datagram: bytes | memoryview) -> None:
        raise AssertionError("no handshake here")

    def handle_timeout(self, now: float) -> None:
        raise AssertionError("no handshake here")

    def poll_transmit(self) -> None:
        return None

    def poll_timeout(self) -> None:
        return None

    def close(self) -> None:
        return None


@implementer(IForwardingControl)
class TableControl:
    """Answers from `owners`; `later` makes the answers wait in `waiting` until a test fires them."""

    def __init__(self, owners: dict[IPv4Address | IPv6Address, Ident] | None = None) -> None:
        self.owners = owners if owners is not None else {}
        self.later = False
        self.failure: Exception | None = None
        self.waiting: list[Deferred[Any]] = []
        self.calls: list[tuple[Any, ...]] = []

    def _result(self, value: Any) -> Deferred[Any]:
        if self.failure is not None:
            return fail(self.failure)
        if not self.later:
            return succeed(value)
        self.waiting.append(Deferred())
        return self.waiting[-1]

    def resolve(self, address: IPv4Address | IPv6Address) -> Deferred[Ident | None]:
        self.calls.append(("resolve", address))
        return self._result(self.owners.get(address))

    def owns(self, ident: Ident, address: IPv4Address) -> Deferred[bool]:
        self.calls.append(("owns", ident, address))
        return self._result(self.owners.get(address) == ident)

    def send_frame(self, ident: Ident, frame: bytes) -> None:
        self.calls.append(("send_frame", ident, frame))

    def unsealed(self, endpoint: Endpoint, session: ISession, kind: int, payload: bytes) -> None:
        self.calls.append(("unsealed", endpoint, session, kind, payload))

    def path_seen(self, session: ISession, endpoint: Endpoint) -> None:
        self.calls.append(("path_seen", session, endpoint))
