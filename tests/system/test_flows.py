"""Flow logs of real daemons: what each end tells, to whom, and over a kill."""

from __future__ import annotations

import json
import sys
from typing import Any

from ipop_tx.lab import wait_for
from ipop_tx.lab.node import LabNode
from tests.system.case import LabTestCase
from tests.system.test_policy import ASK, ECHO

POLICY = 'default = "deny"\n[[allow]]\nname = "echo"\nprotocol = "tcp"\nports = 2007\n[[allow]]\nname = "ping"\nprotocol = "icmp"\n'


class FlowTests(LabTestCase):
    """`founder` is the authority; `one` talks to `two`."""

    def flows(self, node: LabNode, *words: str) -> dict[str, Any]:
        """What `ipop flows --json` says there."""
        found: dict[str, Any] = json.loads(node.ipop("flows", *words, "--json", "--socket", str(node.socket))[1])
        return found

    def connects(self, one: LabNode, other: LabNode, port: int) -> bool:
        """Whether a TCP connection carries a line there and back."""
        return one.host.run([sys.executable, "-c", ASK, other.address, str(port), "3"], check=False).returncode == 0

    def assert_no_secrets(self, founder: LabNode) -> None:
        """A bug report of the node with all the keys has none of them, nor an invitation."""
        token = founder.invite("somebody")
        report = founder.ipop("bugreport", "--config", str(founder.config))[1]
        self.assertIn("founder", json.loads(report)["status"]["self"]["name"])
        secrets = [line for file in founder.state.glob("*.key") for line in file.read_text().splitlines() if not line.startswith("-----")]
        self.assertGreater(len(secrets), 2)
        for secret in (token, *secrets):
            self.assertNotIn(secret, report)

    def test_flows(self) -> None:
        """Both ends tell the same, with the rule; the authority may ask about others, nobody else; a kill loses no more than seconds."""
        founder = self.found(self.lab.public_host("founder"))
        one, two = (self.admit(founder, self.lab.public_host(name)) for name in ("one", "two"))
        self.assert_no_secrets(founder)
        file = founder.directory / "policy.toml"
        file.write_text(POLICY)
        founder.ipop("policy", "set", str(file), "--socket", str(founder.socket))
        wait_for("the policy", 20, lambda: all(node.status()["policy"] for node in (one, two)))
        two.host.start([sys.executable, "-c", ECHO, "2007"], log="echo.log")
        wait_for("a connection", 30, lambda: self.connects(one, two, 2007), every=0.2)
        self.assertFalse(self.connects(one, two, 2008))
        told = self.flows(one, "--between", "one", "two")
        self.assertEqual(told["missing"], [])
        there = [row for row in told["flows"] if row["source"] == one.address and row["target_port"] == 2007]
        self.assertEqual({row["reporter"] for row in there}, {"one", "two"})
        self.assertEqual({(row["action"], row["rule"], row["protocol"]) for row in there}, {("ACCEPT", "echo", 6)})
        carried = {name: sum(row["packets"] for row in there if row["reporter"] == name) for name in ("one", "two")}
        self.assertEqual(carried["one"], carried["two"])
        self.assertGreaterEqual(carried["one"], 4)
        (dropped,) = {(row["reporter"], row["rule"]) for row in self.flows(one, "--rejected")["flows"] if row["target_port"] == 2008}
        self.assertEqual(dropped, ("one", "default"))
        seen = self.flows(founder, "--between", "one", "two")
        self.assertEqual({row["reporter"] for row in seen["flows"] if row["target_port"] == 2007}, {"one", "two"})
        status, _, sentence = one.ipop("flows", "--between", "founder", "two", "--socket", str(one.socket), check=False)
        self.assertEqual((status, "only to the other end" in sentence), (1, True), sentence)
        two.kill9()
        silent = self.flows(one, "--between", "one", "two")
        self.assertEqual([one["name"] for one in silent["missing"]], ["two"])
        self.assertTrue(silent["flows"])
        two.start()
        two.wait_until_up()
        wait_for("what it had before", 20, lambda: any(row["target_port"] == 2007 for row in self.flows(two)["flows"]), every=0.5)
