"""Nodes that speak by Tor alone, over a private Tor network: they join, carry traffic, and no packet of theirs goes anywhere else."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

from ipop_tx.lab import Host, Nat, wait_for
from ipop_tx.lab.node import LabNode
from ipop_tx.lab.tor import TorNetwork
from ipop_tx.lab.traffic import fetch
from tests.system import why_not
from tests.system.case import LabTestCase

ELSEWHERE = """table inet watch {{
 chain out {{ type filter hook output priority 0;
  oifname "ipop0" accept
  oifname "lo" accept
  ip daddr {tor} accept
  icmpv6 type {{ nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert, mld-listener-report, mld2-listener-report }} accept
  counter
 }}
}}
"""


class TorTests(LabTestCase):
    """Two homes behind NATs, and a host that is the Tor network."""

    skip = why_not("tor", "tor-gencert")

    def test_tor_only(self) -> None:
        """Two nodes join and talk; tor killed is told and comes back; nothing else ever leaves them."""
        tor = TorNetwork(self.lab.public_host("torland"))
        tor.start()
        one, two = (self.node(self.lab.site(f"home{number}", Nat()).host(name), tor) for number, name in enumerate(("one", "two")))
        one.create("lab")
        one.start()
        one.wait_until_up()
        onion = self.onion(one)
        self.admit_by_file(one, two, onion)
        two.start()
        address = two.wait_until_up(90)
        self.assertTrue(one.reaches(address, 60))
        self.assertRegex(one.path_to(two), "^direct onion")
        self.assertRegex(two.path_to(one), "^direct onion")
        transfer = fetch(one, two, one.address, 10)
        self.assertTrue(transfer.good)
        self.assert_recovers(one, two, address)
        one.stop()
        one.start()
        one.wait_until_up()
        self.assertEqual(self.onion(one), onion)
        self.assertTrue(one.reaches(address, 90))
        for node in (one, two):
            self.assertIn("counter packets 0 ", node.host.run(["nft", "list", "table", "inet", "watch"]).stdout)

    def node(self, host: Host, tor: TorNetwork) -> LabNode:
        """With Tor alone, watched from before its first packet."""
        node = LabNode(host)
        node.keys["tor"] = {"policy": "tor-only", "torrc": str(tor.torrc)}
        host.run(["nft", "-f", "-"], text=ELSEWHERE.format(tor=tor.address))
        return node

    def onion(self, node: LabNode) -> str:
        """Its endpoint, once there is one."""
        found: list[str] = wait_for(f"the onion service of {node.name}", 60, lambda: node.status()["self"]["endpoints"], every=0.2)
        self.assertEqual(found[1:], [])
        return found[0]

    def admit_by_file(self, authority: LabNode, node: LabNode, bootstrap: str) -> None:
        """Without an invitation, which needs somebody who is reached without Tor."""
        request, chain = node.directory / "request.pem", node.directory / "chain.pem"
        request.write_text(node.ipop("request", "--state", str(node.state), "--name", node.name)[1])
        _, signed, told = authority.ipop("sign", str(request), "--state", str(authority.state))
        chain.write_text(signed)
        fingerprint = re.search(r"--authority (\S+)", told)
        assert fingerprint is not None, told
        node.ipop("install", str(chain), "--authority", fingerprint[1], "--state", str(node.state))
        node.keys["node"]["bootstrap"] = [bootstrap]

    def assert_recovers(self, one: LabNode, two: LabNode, address: str) -> None:
        """`two` loses its tor, says so, gets another, and is reached again."""
        assert two.process is not None
        os.kill(child(two.process.pid, "tor"), signal.SIGKILL)
        wait_for("a word on tor", 20, lambda: any("tor " in sentence for sentence in two.status()["health"]), every=0.1)
        self.assertTrue(one.reaches(address, 120))
        wait_for("health", 60, lambda: not two.status()["health"], every=0.5)


def child(pid: int, name: str) -> int:
    """The process of a name among the descendants of another."""
    for found in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        if Path(f"/proc/{found}/comm").read_text().strip() == name:
            return int(found)
        try:
            return child(int(found), name)
        except LookupError:
            continue
    raise LookupError(f"process {pid} has no {name}")
