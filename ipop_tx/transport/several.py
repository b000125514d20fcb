"""Several transports as one: datagrams go to the transport whose scheme their endpoint has."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from zope.interface import implementer

from ipop_tx.errors import LocalMisuse
from ipop_tx.interfaces import IDatagramReceiver, ITransport, ITransports
from ipop_tx.values import Endpoint


@implementer(ITransport)
class Nowhere:
    """The transport of endpoints whose scheme nobody has: what is sent there is lost, as on any wire."""

    scheme = ""
    datagram_bytes = 0

    def start(self, receiver: IDatagramReceiver) -> None:
        """Nothing to bind."""

    def stop(self) -> None:
        """Nothing to release."""

    def write(self, endpoint: Endpoint, datagram: bytes | memoryview) -> None:
        """Lose it."""

    def layout(self, buffers: Sequence[memoryview]) -> Sequence[memoryview]:
        """Nothing to prepare."""
        return buffers

    def write_run(self, endpoint: Endpoint, buffers: Sequence[bytes | memoryview], size: int, total: int) -> bool:
        """Lose all of it."""
        return True

    def local_endpoints(self) -> list[Endpoint]:
        """None."""
        return []


@implementer(ITransports)
class Transports:
    """All transports of a node. The first one prepares buffers (`layout`); the others take them as they are."""

    scheme = ""
    datagram_bytes = 0

    def __init__(self, first: ITransport, *others: ITransport) -> None:
        """Raises `LocalMisuse` when two have one scheme."""
        self._all = (first, *others)
        self._by_scheme = {transport.scheme: transport for transport in self._all}
        if len(self._by_scheme) < len(self._all):
            raise LocalMisuse("two transports have one scheme", "configure each scheme once")
        self._nowhere = Nowhere()
        self.layout = first.layout
        self.aside: Callable[[int], ITransport | None] = lambda number: None
        """What sends by a socket beside a transport's own one (`Endpoint.side`)."""

    def __iter__(self) -> Iterator[ITransport]:
        return iter(self._all)

    def carries(self) -> tuple[tuple[str, int], ...]:
        """The schemes that can be reached, and the largest datagram of each; see `ITransport.datagram_bytes`."""
        return tuple((transport.scheme, transport.datagram_bytes) for transport in self._all)

    def carrier(self, endpoint: Endpoint) -> ITransport:
        """The transport of an endpoint's scheme, or the socket that it names."""
        if endpoint.side:
            return self.aside(endpoint.side) or self._nowhere
        return self._by_scheme.get(endpoint.carrier, self._nowhere)

    def start(self, receiver: IDatagramReceiver) -> None:
        """Start all of them, or none. Raises `EnvironmentProblem`."""
        try:
            for transport in self._all:
                transport.start(receiver)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop all of them."""
        for transport in self._all:
            transport.stop()

    def write(self, endpoint: Endpoint, datagram: bytes | memoryview) -> None:
        """Send one datagram."""
        self.carrier(endpoint).write(endpoint, datagram)

    def write_run(self, endpoint: Endpoint, buffers: Sequence[bytes | memoryview], size: int, total: int) -> bool:
        """Send a run."""
        return self.carrier(endpoint).write_run(endpoint, buffers, size, total)

    def local_endpoints(self) -> list[Endpoint]:
        """Those of the first transport, then those of the others."""
        return [endpoint for transport in self._all for endpoint in transport.local_endpoints()]

    def health(self) -> list[str]:
        """Sentences of all transports about what does not work as it should."""
        return [sentence for transport in self._all if hasattr(transport, "health") for sentence in transport.health()]

    def counts(self) -> dict[str, int]:
        """What transports have counted for `ipop status`, without zeros, each under its scheme."""
        found = ((f"{one.scheme}_{name}", count) for one in self._all if hasattr(one, "counts") for name, count in one.counts().items())
        return {name: count for name, count in found if count}
