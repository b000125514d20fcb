"""Real daemons where no UDP passes: traffic flows by TLS, through proxies too, and goes back to UDP; what slow and strange ones cost."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

from twisted.python import log

from ipop_tx.lab import Host, Nat, wait_for
from ipop_tx.lab.node import LabNode, environment
from ipop_tx.lab.topology import Site
from ipop_tx.lab.traffic import fetch
from ipop_tx.lab.waiting import holds_within
from tests.system.case import LabTestCase

PROXY_PORT = 3128
GROWTH = 24 << 20
"""Bytes by which a relay may grow while it is flooded: buffers for all sizes of datagrams, the queue of the slow one."""


def only_to(address: str, port: int) -> str:
    """Rules of a router that lets out nothing but connections to one TCP port."""
    return f"""flush ruleset
table ip lab {{
 chain post {{
  type nat hook postrouting priority srcnat;
  oifname "wan" masquerade
 }}
 chain fw {{
  type filter hook forward priority filter; policy drop;
  ct state established,related accept
  iifname "lan" oifname "wan" ip daddr {address} tcp dport {port} accept
 }}
}}
"""


def resident(node: LabNode) -> int:
    """Bytes of memory that a daemon holds."""
    assert node.process is not None
    fields = Path(f"/proc/{node.process.pid}/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


class TlsCase(LabTestCase):
    """A public member that listens for TLS at port 443."""

    def setUp(self) -> None:
        super().setUp()
        self.relay = LabNode(self.lab.public_host("relay"))
        self.relay.keys["listen.tls"] = {"port": 443}
        self.relay.create("lab")
        self.relay.start()
        self.relay.wait_until_up()

    def blocked(self, name: str) -> LabNode:
        """A member at a site that lets out TCP to port 443 and nothing else; it has joined from there."""
        return self.admit(self.relay, self.lab.site(f"site-{name}", Nat.UDP_BLOCKED).host(name))

    def peer(self, node: LabNode, other: LabNode) -> dict[str, Any]:
        """What a node says of another."""
        return next(peer for peer in node.status()["peers"] if peer["name"] == other.name)

    def assert_carries(self, one: LabNode, other: LabNode) -> None:
        """Pings and a file, both ways."""
        self.assert_reach(one, other, seconds=15)
        for server, client in ((one, other), (other, one)):
            self.assertTrue(fetch(server, client, server.address, megabytes=8).good, f"{server.name} to {client.name}")


class BlockedTests(TlsCase):
    """No UDP at one side, or at both."""

    def test_at_one_side_and_back(self) -> None:
        """It joins, is reached, carries a file; the status says why; UDP is taken within a minute once it passes."""
        right = self.admit(self.relay, self.lab.site("home", Nat.PORT_RESTRICTED).host("right"))
        left = self.blocked("left")
        self.assertIsNotNone(left.ping(right.address), "the very first ping")
        self.assert_carries(left, right)
        self.assertEqual(left.path_to(self.relay), f"direct tls:{self.relay.host.address}:443")
        self.assertTrue(self.relay.path_to(left).startswith("direct tls-in:"))
        self.assertEqual(left.path_to(right), "relay via relay")
        wait_for("a word on UDP", 60, lambda: self.peer(left, self.relay)["why"] == "UDP unanswered", every=0.2)
        self.assertEqual(self.relay.path_to(right).partition(":")[0], "direct udp")
        site = left.host.site  # type: ignore[attr-defined]
        site.set_nat(Nat.PORT_RESTRICTED)
        began = time.monotonic()
        left.wait_for_path(self.relay, lambda path: path.startswith("direct udp"), 60)
        self.relay.wait_for_path(left, lambda path: path.startswith("direct udp"), 30)
        log.msg(f"back to UDP after {time.monotonic() - began:.1f} s")
        self.assert_reach(left, right, seconds=15)
        self.assertIsNone(self.peer(left, self.relay)["why"])
        site.set_nat(Nat.UDP_BLOCKED)
        began = time.monotonic()
        self.assertTrue(holds_within(30, lambda: left.ping(right.address, 1) is not None, 0.2))
        log.msg(f"by TLS again after {time.monotonic() - began:.1f} s")

    def test_at_both_sides(self) -> None:
        left, right = self.blocked("left"), self.blocked("right")
        self.assertIsNotNone(left.ping(right.address), "the very first ping")
        self.assert_carries(left, right)
        self.assertEqual((left.path_to(right), right.path_to(left)), ("relay via relay", "relay via relay"))

    def test_the_relay_is_killed(self) -> None:
        """Its connections go with it; it is found again when it is back."""
        left, right = self.blocked("left"), self.blocked("right")
        self.assert_reach(left, right)
        self.settle(self.relay, left, right)
        self.relay.kill9()
        wait_for("the end of the relay's TAP", 5, lambda: self.relay.address_on_tap() is None)
        self.relay.start()
        self.relay.wait_until_up()
        address = right.address
        self.assertTrue(holds_within(60, lambda: left.ping(address, 1) is not None, 0.2))


class ProxyTests(TlsCase):
    """Nothing but a proxy."""

    def only_by_proxy(self, kind: str, *options: str) -> tuple[LabNode, str]:
        """A member behind a router that lets out nothing but connections to a proxy, and the proxy's URL."""
        host = self.lab.public_host("proxy")
        host.start([sys.executable, "-m", "tests.proxy", kind, str(PROXY_PORT), *options], "proxy.log", environment())
        wait_for("the proxy", 10, lambda: self.listens(host, PROXY_PORT), 0.1)
        site: Site = self.lab.site("office", Nat.PORT_RESTRICTED)
        node = LabNode(site.host("inside"))
        site.router.run(["nft", "-f", "-"], text=only_to(host.address, PROXY_PORT))
        return node, f"{kind}://{'u:p@' if options else ''}{host.address}:{PROXY_PORT}"

    def listens(self, host: Host, port: int) -> bool:
        """Whether somebody accepts connections there."""
        with host.socket(socket.SOCK_STREAM) as trial:
            return trial.connect_ex((host.address, port)) == 0

    def carried(self, node: LabNode) -> None:
        """A node that has joined carries traffic by the relay."""
        node.start()
        node.wait_until_up()
        outside = self.admit(self.relay, self.lab.site("home", Nat.PORT_RESTRICTED).host("outside"))
        self.assert_carries(node, outside)
        self.assertEqual(node.path_to(self.relay), f"direct tls:{self.relay.host.address}:443")

    def test_http(self) -> None:
        """Named on the command line, then in node.toml; with user and password."""
        node, proxy = self.only_by_proxy("http", "auth")
        token = self.relay.invite("inside")
        node.ipop("join", token, "--proxy", proxy, *node._join_options())
        self.assertIn("proxy = ", node.config.read_text())
        node.keys["listen.tls"] = {"proxy": proxy}
        self.carried(node)

    def test_socks_from_the_environment(self) -> None:
        node, proxy = self.only_by_proxy("socks5")
        self.patch(os, "environ", {**os.environ, "all_proxy": proxy})
        node.join(self.relay.invite("inside"))
        self.carried(node)


class BurdenTests(TlsCase):
    """What others can do to a member that listens."""

    def test_a_slow_receiver(self) -> None:
        """A member that reads nothing while it is flooded does not make the relay grow, and others are served as before."""
        left = self.blocked("left")
        right = self.admit(self.relay, self.lab.public_host("right"))
        other = self.admit(self.relay, self.lab.public_host("other"))
        self.assert_reach(left, right, other)
        self.flood(right, left.address, 2)  # every buffer is made once
        before, address = resident(self.relay), left.address
        assert left.process is not None
        os.kill(left.process.pid, signal.SIGSTOP)
        try:
            self.flood(right, address, 4)
            grown = resident(self.relay) - before
            self.assertTrue(other.reaches(self.relay.address, 10))
            lost = self.relay.status()["counters"].get("tls_dropped", 0)
        finally:
            os.kill(left.process.pid, signal.SIGCONT)
        log.msg(f"the relay grew by {grown >> 10} kB and dropped {lost} runs")
        self.assertLess(grown, GROWTH)
        self.assertGreater(lost, 0)
        self.assertTrue(right.reaches(address, 30))

    def flood(self, node: LabNode, address: str, seconds: float) -> None:
        """Send datagrams to an overlay address as fast as they go."""
        with node.host.socket() as sender:
            sender.setblocking(False)
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                for _ in range(50):
                    try:
                        sender.sendto(bytes(1200), (address, 9))
                    except BlockingIOError:
                        time.sleep(0.001)

    def test_strangers(self) -> None:
        """Hundreds of connections that say nothing or nonsense get nothing and cost little; members come in meanwhile."""
        stranger = self.lab.public_host("stranger")
        before = resident(self.relay)
        open_ones: list[socket.socket] = []
        self.addCleanup(lambda: [one.close() for one in open_ones])
        for number in range(300):
            one = stranger.socket(socket.SOCK_STREAM)
            open_ones.append(one)
            one.settimeout(5)
            one.connect((self.relay.host.address, 443))
            if number % 2:
                one.sendall(os.urandom(500))
        for one in open_ones[1::2]:
            try:
                self.assertEqual(one.recv(100), b"")
            except ConnectionResetError:
                continue
        left = self.blocked("left")
        self.assert_reach(left, self.relay)
        self.assertGreaterEqual(self.relay.status()["counters"]["tls_strangers"], 250)
        log.msg(f"the relay grew by {(resident(self.relay) - before) >> 10} kB")
        self.assertLess(resident(self.relay) - before, GROWTH)
