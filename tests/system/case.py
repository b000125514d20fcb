"""What the tests of real daemons share: a lab of their own, networks in a line, logs that outlive a failure."""

from __future__ import annotations

import shutil
from pathlib import Path

from twisted.trial import unittest

from ipop_tx.lab import Host, Lab, wait_for
from ipop_tx.lab.node import LabNode, Refusal
from tests.system import why_not


class LabTestCase(unittest.SynchronousTestCase):
    """Each test has a lab; the nodes' logs are copied to `_trial_temp/logs/<test>/` before the lab goes."""

    skip = why_not("curl")

    def setUp(self) -> None:
        self.lab = Lab("system")
        self.addCleanup(self.lab.close)
        self.lab.__enter__()
        self.addCleanup(self._keep_logs)
        self.addCleanup(self._look_for_tracebacks)  # not in tearDown, which trial calls when the lab has gone

    def _look_for_tracebacks(self) -> None:
        for log in self.lab.scratch.glob("*/*.log"):
            self.assertNotIn("Traceback", log.read_text(errors="replace"), log.name)

    def _keep_logs(self) -> None:
        kept = Path("logs", self.id().rpartition(".")[2]).absolute()
        kept.mkdir(parents=True, exist_ok=True)
        for log in self.lab.scratch.glob("*/*.log"):
            shutil.copy(log, kept)

    def node_on(self, host: Host) -> LabNode:
        """A node that does nothing yet."""
        return LabNode(host)

    def found(self, host: Host, network: str = "lab") -> LabNode:
        """A node that has made a network and runs."""
        node = self.node_on(host)
        node.create(network)
        node.start()
        node.wait_until_up()
        return node

    def admit(self, inviter: LabNode, host: Host, *options: str) -> LabNode:
        """A node that joined with an invitation by `inviter`, and runs; `options` are those of `ipop invite`."""
        node = self.node_on(host)
        node.enter(inviter, *options)
        return node

    def assert_reach(self, *nodes: LabNode, seconds: float = 10.0) -> None:
        """Every node reaches every other over IPv4 and IPv6."""
        addresses = {node.name: (node.address, node.ipv6) for node in nodes}
        for node in nodes:
            for other, (ipv4, ipv6) in addresses.items():
                if other != node.name:
                    self.assertTrue(node.reaches(ipv4, seconds), f"{node.name} -> {other} over IPv4")
                    self.assertTrue(node.reaches(ipv6, seconds), f"{node.name} -> {other} over IPv6")

    def settle(self, *nodes: LabNode, seconds: float = 20.0) -> None:
        """Wait until every node has a copy of every part of the DHT, as in a network of up to five: then any one may be lost."""

        def full() -> bool:
            return all(dht["shards"] == dht["of"] for dht in (node.status()["self"]["dht"] for node in nodes))

        wait_for("a full copy on every node", seconds, full, every=0.2)

    def assert_refused(self, refusal: Refusal, *words: str, status: int = 1) -> None:
        """One sentence with all of `words`, no traceback, the exit status."""
        self.assertEqual(len(refusal.sentences), 1, refusal.text)
        for word in words:
            self.assertIn(word, refusal.sentences[0])
        self.assertNotIn("Traceback", refusal.text)
        self.assertEqual(refusal.status, status, refusal.text)
