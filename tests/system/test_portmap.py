"""Real daemons behind a router that runs miniupnpd, which speaks PCP, NAT-PMP and UPnP-IGD."""

from __future__ import annotations

import shutil
from ipaddress import IPv4Address
from typing import Any

from ipop_tx.lab import Nat, Site, netns, wait_for
from ipop_tx.lab.node import LabNode
from ipop_tx.lab.process import Process
from ipop_tx.transport.gateway import Gateway, default_gateway
from tests.system import why_not
from tests.system.case import LabTestCase

OUTER = "45.45.45.45"
"""What miniupnpd is told to be its outer address: it refuses private ranges, and those of documentation."""
TABLE = """
table inet miniupnpd {
 chain forward { type filter hook forward priority 0; }
 chain prerouting { type nat hook prerouting priority dstnat; }
 chain postrouting { type nat hook postrouting priority srcnat; }
}
"""
CONFIG = f"""
ext_ifname=wan
ext_ip={OUTER}
listening_ip=lan
enable_natpmp=%(pmp)s
enable_upnp=%(upnp)s
secure_mode=yes
upnp_table_name=miniupnpd
upnp_nat_table_name=miniupnpd
upnp_forward_chain=forward
upnp_nat_chain=prerouting
upnp_nat_postrouting_chain=postrouting
lease_file=
allow 1024-65535 0.0.0.0/0 1024-65535
"""


class GatewayTests(LabTestCase):
    """Whom a node would ask."""

    def test_never_through_an_overlay(self) -> None:
        """A better default route over a tun device, or to a gateway of the network itself, is left out; without another there is none."""
        site = self.lab.site("home", Nat.PORT_RESTRICTED)
        host = site.host("inner")
        for command in (
            "route replace default via {0} dev eth0 metric 100",
            "route del default metric 0",
            "tuntap add dev over mode tun",
            "addr add 10.9.0.2/24 dev over",
            "link set over up",
            "route add default via 10.9.0.1 dev over metric 1",
        ):
            host.run(["ip", *command.format(site.gateway).split()])
        with netns.inside(host.namespace):
            self.assertEqual(default_gateway(), Gateway("eth0", IPv4Address(site.gateway), IPv4Address(host.address)))
            self.assertIsNone(default_gateway(["eth0"]))
            self.assertIsNone(default_gateway((), site.subnet))
        host.run(["ip", "route", "del", "default", "via", site.gateway])
        with netns.inside(host.namespace):
            self.assertIsNone(default_gateway())


class PortMapTests(LabTestCase):
    """A founder, and a node in a site with a strict NAT whose router maps ports."""

    skip = why_not("miniupnpd")

    def setUp(self) -> None:
        super().setUp()
        self.founder = self.found(self.lab.public_host("founder"))

    def mapping_site(self, pmp: bool = True, upnp: bool = True) -> Site:
        """A site whose router runs miniupnpd."""
        site = self.lab.site("home", Nat.SYMMETRIC)
        site.router.run(["nft", "-f", "-"], text=TABLE)
        site.router.run(["ip", "addr", "add", f"{OUTER}/32", "dev", "lo"])
        self.lab.route(OUTER, site.router)
        self.config = site.router.directory / "miniupnpd.conf"
        self.config.write_text(CONFIG % {"pmp": "yes" if pmp else "no", "upnp": "yes" if upnp else "no"})
        self.site = site
        self.gateway = self.run_gateway()
        return site

    def test_killed_and_started_again(self) -> None:
        """What a killed daemon left behind is its own when it comes back."""
        left = self.admit(self.founder, self.mapping_site(upnp=False).host("left"))
        endpoint = f"udp:{OUTER}:4500"
        wait_for("the mapping among the endpoints", 20, lambda: endpoint in left.status()["self"]["endpoints"])
        left.kill9()
        self.assertTrue(self.mapped())
        left.start()
        left.wait_until_up()
        wait_for("the mapping among the endpoints", 20, lambda: endpoint in left.status()["self"]["endpoints"])
        self.assertEqual(self.report(left)["problem"], "")

    def test_a_gateway_that_comes_later(self) -> None:
        """One that refuses at first (nothing listens there) and then announces itself is asked again: the socket has survived that."""
        site = self.mapping_site(upnp=False)
        self.gateway.stop()
        left = self.admit(self.founder, site.host("left"))
        wait_for("silence", 30, lambda: left.process is not None and left.status()["self"]["uptime_s"] > 10)
        self.run_gateway()
        wait_for("the mapping", 20, self.mapped)

    def run_gateway(self) -> Process:
        """Start miniupnpd."""
        pid = self.site.router.directory / "miniupnpd.pid"
        pid.unlink(missing_ok=True)
        return self.site.router.start([shutil.which("miniupnpd") or "", "-d", "-f", str(self.config), "-P", str(pid)])

    def mapped(self) -> bool:
        """Whether the router has a rule that leads port 4500 inside."""
        rules = self.site.router.run(["nft", "-n", "list", "table", "inet", "miniupnpd"]).stdout
        return "4500" in rules

    def report(self, node: LabNode) -> dict[str, Any]:
        """What netcheck says of port mappings."""
        answer: dict[str, Any] = node.request("POST", "/netcheck", {})["port_mapping"]
        return answer

    def test_a_mapping_makes_direct_what_could_not_be(self) -> None:
        """Two symmetric NATs, one of which maps a port: the pair is direct. Stopping gives the mapping back."""
        left = self.admit(self.founder, self.mapping_site().host("left"))
        right = self.admit(self.founder, self.lab.site("campus", Nat.SYMMETRIC).host("right"))
        endpoint = f"udp:{OUTER}:4500"
        wait_for("the mapping among the endpoints", 20, lambda: endpoint in left.status()["self"]["endpoints"])
        self.assertTrue(self.mapped())
        found = self.report(left)
        self.assertEqual(found["protocols"], ["NAT-PMP", "PCP", "UPnP-IGD"])
        self.assertEqual(found["endpoints"], [endpoint])
        self.assert_reach(left, right)
        self.assertEqual(right.wait_for_path(left, lambda path: path.startswith("direct"), 75), f"direct {endpoint}")
        left.stop()
        self.assertFalse(self.mapped())

    def test_upnp_alone(self) -> None:
        """Where the router speaks nothing better, UPnP does; and the mapping goes with the daemon."""
        left = self.admit(self.founder, self.mapping_site(pmp=False).host("left"))
        wait_for("the mapping", 40, lambda: f"udp:{OUTER}:4500" in left.status()["self"]["endpoints"])
        self.assertEqual(self.report(left)["protocols"], ["UPnP-IGD"])
        self.assertTrue(self.mapped())
        left.stop()
        self.assertFalse(self.mapped())

    def test_the_router_restarts(self) -> None:
        """Killed and started again it has forgotten everything: what it announces brings the mapping back within seconds."""
        left = self.admit(self.founder, self.mapping_site(upnp=False).host("left"))
        wait_for("the mapping", 20, self.mapped)
        self.gateway.kill9()
        self.site.router.run(["nft", "delete", "table", "inet", "miniupnpd"])
        self.site.router.run(["nft", "-f", "-"], text=TABLE)
        self.assertFalse(self.mapped())
        self.run_gateway()
        wait_for("the mapping again", 30, self.mapped)
        self.assertIn(f"udp:{OUTER}:4500", left.status()["self"]["endpoints"])

    def test_switched_off(self) -> None:
        """`nat.port_mapping = false` asks nobody."""
        node = LabNode(self.mapping_site().host("left"))
        node.join(self.founder.invite("left"))
        node.keys["nat"] = {"port_mapping": False}
        node.start()
        node.wait_until_up()
        found = self.report(node)
        self.assertEqual((found["enabled"], found["protocols"]), (False, []))
        self.assertFalse(self.mapped())
