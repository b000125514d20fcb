"""Metrics: what Prometheus reads, over real sockets, of a whole node; and that docs and dashboard name what there is."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path
from typing import Any, ClassVar

from prometheus_client.parser import text_string_to_metric_families
from twisted.internet import reactor
from twisted.internet.task import deferLater
from twisted.trial.unittest import SynchronousTestCase, TestCase
from twisted.web.client import Agent, readBody
from twisted.web.http_headers import Headers

from ipop_tx.services.metrics import MOST, MetricsService, exposition
from ipop_tx.services.status import Port

ROOT = Path(__file__).parent.parent


class Status:
    """What a node would tell."""

    peer: ClassVar[dict[str, Any]] = {"name": "two", "ident": "ab" * 20, "path": "direct udp:192.0.2.1:4500", "rtt_ms": 2.5}

    def status(self) -> dict[str, Any]:
        """The part of it that is read."""
        own = {
            "name": "one",
            "ident": "cd" * 20,
            "network": "home",
            "version": "1",
            "uptime_s": 5.0,
            "certificate_ends": 9,
            "address": None,
        }
        ring, dht = {"joined": True, "nodes_estimate": 2}, {"shards": 3, "registers": 4, "bytes": 5}
        traffic = {"tx_bytes": 7, "rx_bytes": 8, "lost_records": 1}
        nameless = {**self.peer, "name": "", "path": "relay via two", "rtt_ms": None, **traffic}
        peers = [{**self.peer, **traffic}, nameless]
        return {
            "self": {**own, "ring": ring, "dht": dht},
            "peers": peers,
            "guests": [{"state": "bound"}, {"state": "offered"}],
            "health": ["x"],
        }

    def ports(self) -> dict[str, Port]:
        """Of the TAP."""
        return {"tap": Port(1, 2, 3, 4)}

    def events(self) -> dict[str, dict[str, int]]:
        """Of the data plane alone."""
        return {"control": {}, "forwarding": {"policy": 3}, "transport": {}}


def samples(text: str) -> dict[tuple[str, ...], float]:
    """Name and sorted values of the labels -> sample."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[(sample.name, *sorted(sample.labels.values()))] = sample.value
    return found


class FormatTests(SynchronousTestCase):
    """The text."""

    def test_samples(self) -> None:
        found = samples(exposition(Status()).decode())  # type: ignore[arg-type]
        for key, value in {
            ("ipop_node_info", "1", "cd" * 20, "home", "one"): 1,
            ("ipop_uptime_seconds",): 5,
            ("ipop_certificate_expiry_timestamp_seconds",): 9,
            ("ipop_health_problems",): 1,
            ("ipop_address_held",): 0,
            ("ipop_guests",): 1,
            ("ipop_ring_joined",): 1,
            ("ipop_dht_registers",): 4,
            ("ipop_port_packets_total", "tap", "transmit"): 2,
            ("ipop_port_bytes_total", "receive", "tap"): 3,
            ("ipop_peers", "direct"): 1,
            ("ipop_peers", "relay"): 1,
            ("ipop_peers", "idle"): 0,
            ("ipop_peer_rtt_seconds", "two"): 0.0025,
            ("ipop_peer_bytes_total", "transmit", "two"): 7,
            ("ipop_peer_bytes_total", "abababab", "receive"): 8,
            ("ipop_peer_lost_records_total", "two"): 1,
            ("ipop_forwarding_events_total", "policy"): 3,
        }.items():
            self.assertEqual(found.get(key), value, key)
        self.assertIn(("process_resident_memory_bytes",), found)
        self.assertNotIn(("ipop_peer_rtt_seconds", "abababab"), found)

    def test_docs_and_dashboard(self) -> None:
        """Each metric stands in docs/metrics.md, each in there exists, and the dashboard asks for none that does not."""
        families = [*text_string_to_metric_families(exposition(Status()).decode())]  # type: ignore[arg-type]
        ours = {family.name + "_total" * (family.type == "counter") for family in families if family.name.startswith("ipop_")}
        self.assertEqual(ours, set(re.findall(r"`(ipop_\w+)`", (ROOT / "docs/metrics.md").read_text().partition("Worth an alert")[0])))
        dashboard = json.loads((ROOT / "conf/grafana.json").read_text())
        asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
        self.assertEqual(set(re.findall(r"ipop_\w+", " ".join(asked))) - ours, set())


class ServiceTests(TestCase):
    """HTTP on loopback."""

    def service(self, at: tuple[str, int] | None = ("127.0.0.1", 0)) -> MetricsService:
        """A running one."""
        service = MetricsService(reactor, at, Status)  # type: ignore[arg-type]
        service.startService()
        self.addCleanup(service.stopService)
        return service

    async def get(self, port: int, path: str = "/metrics", host: str = "127.0.0.1", **more: str) -> tuple[int, str]:
        """Status and body."""
        headers = Headers({"Host": [host], **{name: [value] for name, value in more.items()}})
        response = await Agent(reactor).request(b"GET", f"http://127.0.0.1:{port}{path}".encode(), headers)
        return response.code, (await readBody(response)).decode()

    async def test_page(self) -> None:
        service = self.service()
        code, text = await self.get(service.port)
        self.assertEqual(code, 200)
        self.assertEqual(samples(text)["ipop_health_problems",], 1)
        self.assertEqual((await self.get(service.port, host=f"localhost:{service.port}"))[0], 200)
        self.assertEqual((await self.get(service.port, "/else"))[0], 404)
        self.assertEqual((await self.get(service.port, host="evil.example"))[0], 403)
        self.assertEqual((await self.get(service.port, Origin="https://evil.example"))[0], 403)

    async def test_another_address(self) -> None:
        """After a reload; the former one is free."""
        service = self.service()
        former = service.port
        await service.reconfigure(("127.0.0.1", 0))
        self.assertNotIn(service.port, (0, former))
        self.assertEqual((await self.get(service.port))[0], 200)
        await service.reconfigure(None)
        self.assertEqual(service.port, 0)

    async def test_many_connections(self) -> None:
        """They cannot use up the daemon's descriptors."""
        service = self.service()
        held = []
        for _ in range(MOST + 8):
            held.append(one := socket.create_connection(("127.0.0.1", service.port)))
            self.addCleanup(one.close)
            one.setblocking(False)
            await deferLater(reactor, 0)  # the port's backlog is shorter
        await deferLater(reactor, 0.1)
        ended = 0
        for one in held:
            try:
                ended += one.recv(1) == b""
            except BlockingIOError:
                continue
            except ConnectionResetError:
                ended += 1
        self.assertEqual(ended, 8)

    async def test_a_taken_port(self) -> None:
        first = self.service()
        second = self.service(("127.0.0.1", first.port))
        self.assertEqual(second.port, 0)
        self.assertIn("choose another metrics.listen", second.health()[0])

    async def test_nowhere(self) -> None:
        self.assertEqual(self.service(None).port, 0)
