"""A network in memory, for tests: perfect unless told otherwise, and never delivering inside `write`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from zope.interface import implementer

from ipop_tx.errors import EnvironmentProblem
from ipop_tx.interfaces import IDatagramReceiver, ITransport
from ipop_tx.values import Endpoint


class MemoryNet:
    """Joins the transports made by `transport`. `loses`, when set, is asked for every (source, destination, datagram)."""

    def __init__(self, reactor: Any) -> None:
        self.loses: Callable[[Endpoint, Endpoint, bytes], bool] | None = None
        self._reactor = reactor
        self._bound: dict[Endpoint, IDatagramReceiver] = {}
        self._next_port = 49152

    def transport(self, host: str, port: int) -> MemoryTransport:
        """A transport at `host`; port 0 takes a free one."""
        return MemoryTransport(self, host, port)

    def bind(self, endpoint: Endpoint, receiver: IDatagramReceiver) -> Endpoint:
        """Take an endpoint. Raises `EnvironmentProblem` when it is taken."""
        if endpoint.port == 0:
            endpoint = endpoint._replace(port=self._next_port)
            self._next_port += 1
        if endpoint in self._bound:
            raise EnvironmentProblem(f"{endpoint} is taken", "choose another port")
        self._bound[endpoint] = receiver
        return endpoint

    def release(self, endpoint: Endpoint) -> None:
        """Give an endpoint back."""
        self._bound.pop(endpoint, None)

    def carry(self, source: Endpoint, destination: Endpoint, datagram: bytes) -> None:
        """Deliver in a later turn of the reactor, if anybody is there by then."""
        if self.loses is None or not self.loses(source, destination, datagram):
            self._reactor.callLater(0, self._arrive, source, destination, datagram)

    def _arrive(self, source: Endpoint, destination: Endpoint, datagram: bytes) -> None:
        receiver = self._bound.get(destination)
        if receiver is not None:
            buffer = bytearray(datagram)
            receiver.datagram_received(source, memoryview(buffer))
            receiver.burst_ended()
            buffer[:] = bytes(len(buffer))  # whoever kept the view sees what the interface promised: nothing


@implementer(ITransport)
class MemoryTransport:
    """One endpoint of a `MemoryNet`."""

    scheme = "mem"
    datagram_bytes = 0

    def __init__(self, net: MemoryNet, host: str, port: int) -> None:
        self._net = net
        self._wanted = Endpoint(self.scheme, host, port)
        self._bound: Endpoint | None = None

    def start(self, receiver: IDatagramReceiver) -> None:
        """Take the endpoint. Raises `EnvironmentProblem` when it is taken."""
        self._bound = self._net.bind(self._wanted, receiver)

    def stop(self) -> None:
        """Give the endpoint back."""
        if self._bound is not None:
            self._net.release(self._bound)
            self._bound = None

    def write(self, endpoint: Endpoint, datagram: bytes | memoryview) -> None:
        """Send one datagram."""
        if self._bound is not None:
            self._net.carry(self._bound, endpoint, bytes(datagram))

    def layout(self, buffers: Sequence[memoryview]) -> Sequence[memoryview]:
        """Nothing has to be prepared."""
        return buffers

    def write_run(self, endpoint: Endpoint, buffers: Sequence[bytes | memoryview], size: int, total: int) -> bool:
        """Send the datagrams of a run one by one; this transport is never full."""
        run = b"".join(buffers)[:total]
        for at in range(0, len(run), size):
            self.write(endpoint, run[at : at + size])
        return True

    def local_endpoints(self) -> list[Endpoint]:
        """The endpoint, while it is bound."""
        return [self._bound] if self._bound is not None else []
