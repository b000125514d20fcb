"""MetricsService: what the daemon counts, in the text format of Prometheus, at an address of this machine.

The samples are made from `Status` when somebody asks, so that nothing is counted twice and the hot path knows nothing of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import CannotListenError

from ipop_tx.log import Logger
from ipop_tx.services.ports import why_taken
from ipop_tx.services.status import Port, Status

if TYPE_CHECKING:
    from prometheus_client.core import Metric

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
MOST = 64
"""Connections at a time: whoever is on this machine may make some, and is not to use up the daemon's descriptors."""
_log = Logger()


class Samples:
    """A collector of prometheus_client: families of samples made from one look at the node."""

    def __init__(self, status: Status) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        """All families, in the order of docs/metrics.md."""
        status = self._status.status()
        yield from _of_node(status)
        yield from _of_ring(status["self"])
        yield from _of_traffic(self._status.ports())
        yield from _of_peers(status["peers"])
        yield from _of_events(self._status.events())


def _gauge(name: str, told: str, value: float) -> Metric:
    from prometheus_client.core import GaugeMetricFamily

    return GaugeMetricFamily(f"ipop_{name}", told, value=value)


def _labelled(
    name: str, told: str, labels: tuple[str, ...], samples: Iterable[tuple[tuple[str, ...], float]], total: bool = True
) -> Metric:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    family = (CounterMetricFamily if total else GaugeMetricFamily)(f"ipop_{name}", told, labels=labels)
    for values, sample in samples:
        family.add_metric(values, sample)
    return family


def _of_node(status: dict[str, Any]) -> Iterator[Metric]:
    own = status["self"]
    names = ("name", "ident", "network", "version")
    yield _labelled("node_info", "This node; always 1.", names, [(tuple(own[name] for name in names), 1.0)], total=False)
    yield _gauge("uptime_seconds", "Since the daemon started.", own["uptime_s"])
    yield _gauge("certificate_expiry_timestamp_seconds", "When this node's certificate ends.", own["certificate_ends"])
    yield _gauge("health_problems", "Sentences under health in ipop status; 0 when all is well.", len(status["health"]))
    yield _gauge("address_held", "1 while this node has an IPv4 address of the network.", own["address"] is not None)
    yield _gauge("guests", "Guests that have an address from this node.", sum(guest["state"] == "bound" for guest in status["guests"]))


def _of_ring(own: dict[str, Any]) -> Iterator[Metric]:
    ring, dht = own["ring"], own["dht"]
    yield _gauge("ring_joined", "1 while this node is on the ring.", ring["joined"])
    yield _gauge("ring_nodes_estimate", "Nodes on the ring, estimated from the density of neighbours.", ring["nodes_estimate"])
    yield _gauge("dht_shards", "Shards of the DHT of which this node keeps a copy.", dht["shards"])
    yield _gauge("dht_registers", "Registers in them.", dht["registers"])
    yield _gauge("dht_bytes", "What they fill, as counted for the limits in [dht] of node.toml.", dht["bytes"])


def _of_traffic(ports: dict[str, Port]) -> Iterator[Metric]:
    for what, told in (("packets", "Frames of the TAP, runs of datagrams of UDP"), ("bytes", "Bytes")):
        samples = (((name, way), float(getattr(port, f"{way}_{what}"))) for name, port in ports.items() for way in ("receive", "transmit"))
        yield _labelled(f"port_{what}", f"{told}, by port and direction.", ("port", "direction"), samples)


def _of_peers(peers: list[dict[str, Any]]) -> Iterator[Metric]:
    kinds = [peer["path"].split()[0] for peer in peers]
    counts = (((kind,), float(kinds.count(kind))) for kind in ("direct", "relay", "idle"))
    yield _labelled("peers", "Linked peers, by kind of path.", ("path",), counts, total=False)
    who = [(peer["name"] or peer["ident"][:8], peer) for peer in peers]
    rtts = (((name,), peer["rtt_ms"] / 1000) for name, peer in who if peer["rtt_ms"] is not None)
    yield _labelled("peer_rtt_seconds", "Round trip to a peer.", ("peer",), rtts, total=False)
    both = (((name, way), float(peer[key])) for name, peer in who for way, key in (("receive", "rx_bytes"), ("transmit", "tx_bytes")))
    yield _labelled("peer_bytes", "Bytes of frames from and to a peer since it was linked.", ("peer", "direction"), both)
    lost = (((name,), float(peer["lost_records"])) for name, peer in who)
    yield _labelled("peer_lost_records", "Sealed records to a peer that did not arrive, as far as it told.", ("peer",), lost)


def _of_events(events: dict[str, dict[str, int]]) -> Iterator[Metric]:
    told = {
        "control": "What the control plane has counted: refusals, forgeries, things shed.",
        "forwarding": "What the data plane has dropped, by reason, and relayed.",
        "transport": "What transports have counted.",
    }
    for part, counts in events.items():
        yield _labelled(f"{part}_events", told[part], ("event",), (((name,), float(count)) for name, count in sorted(counts.items())))


def exposition(status: Status) -> bytes:
    """Everything, and what the process uses, as Prometheus reads it."""
    from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest

    registry = CollectorRegistry()
    registry.register(Samples(status))
    ProcessCollector(registry=registry)
    return generate_latest(registry)


class MetricsService(Service):
    """Answers `GET /metrics` at `listen`; nowhere when that is None. What goes wrong is told by `health`."""

    name = "metrics"

    def __init__(self, reactor: Any, listen: tuple[str, int] | None, status: Callable[[], Status]) -> None:
        self._reactor = reactor
        self._at = listen
        self._status = status
        self._port: Any = None
        self.problem = ""

    @property
    def port(self) -> int:
        """Where it listens, 0 for nowhere."""
        return int(self._port.getHost().port) if self._port is not None else 0

    def startService(self) -> None:
        """Listen."""
        super().startService()
        if self._at is None:
            return
        host, port = self._at
        try:
            self._port = self._reactor.listenTCP(port, self._site(), interface=host)
        except CannotListenError as error:
            why = why_taken(error)
            self.problem = f"metrics are not told: TCP port {port} of {host} cannot be used ({why}): choose another metrics.listen"

    def _site(self) -> Any:
        from twisted.protocols.policies import ThrottlingFactory
        from twisted.web.resource import Resource
        from twisted.web.server import Request, Site

        status = self._status

        class Silent(Site):
            """No access log."""

            def log(self, request: Any) -> None:
                """Nothing."""

        class Metrics(Resource):
            """One page. A browser that was lured here by another name than an address gets nothing."""

            isLeaf = True

            def render_GET(self, request: Request) -> bytes:
                """The samples of now."""
                if request.requestHeaders.hasHeader(b"Origin") or not _is_plain(request.getRequestHostname().decode("ascii", "replace")):
                    request.setResponseCode(403)
                    return b"ask by the address of this machine, and not from a web page\n"
                request.setHeader(b"Cross-Origin-Resource-Policy", b"same-origin")
                request.setHeader(b"X-Content-Type-Options", b"nosniff")
                request.setHeader(b"Content-Type", CONTENT_TYPE)
                return exposition(status())

        root = Resource()
        root.putChild(b"metrics", Metrics())
        site = Silent(root, timeout=30)
        site.noisy = False
        return ThrottlingFactory(site, MOST)

    async def reconfigure(self, listen: tuple[str, int] | None) -> None:
        """Answer at another address."""
        await self.stopService()
        self._at, self.problem = listen, ""
        if self.parent is None or self.parent.running:  # the node may have been stopped meanwhile
            self.startService()

    def health(self) -> list[str]:
        """What does not work."""
        return [self.problem] if self.problem else []

    def stopService(self) -> Deferred[Any]:
        """Listen no more."""
        super().stopService()
        port, self._port = self._port, None
        return maybeDeferred(port.stopListening if port is not None else lambda: None)


def _is_plain(host: str) -> bool:
    try:
        ip_address(host.strip("[]"))
    except ValueError:
        return host == "localhost"
    return True
