"""What happens to a network by bad luck or by malice: kills in a row, a power cut, a dead relay, strangers' datagrams."""

from __future__ import annotations

import os
import random
import signal

from ipop_tx.lab import Nat, wait_for
from ipop_tx.lab.node import LabNode
from ipop_tx.lab.waiting import holds_within
from tests.system.case import LabTestCase

RECOVERY = 20.0
"""Seconds after which traffic must flow again."""


class AttackTests(LabTestCase):
    """Each with real daemons; no log may show a traceback."""

    def test_a_power_cut(self) -> None:
        """All nodes are killed at once and started in another order: they find each other, with the addresses they had."""
        founder = self.found(self.lab.public_host("founder"))
        others = [self.admit(founder, self.lab.public_host(name)) for name in ("one", "two")]
        others.append(self.admit(founder, self.lab.site("home", Nat.SYMMETRIC).host("three")))
        nodes = [founder, *others]
        self.assert_reach(*nodes)
        addresses = {node.name: node.address for node in nodes}
        peers = [node.state / "peers.json" for node in nodes]
        wait_for("the peers on every disk", 15, lambda: all(path.exists() for path in peers), 0.1)
        for node in nodes:
            node.kill9()
        for node in random.Random(1).sample(nodes, len(nodes)):
            node.start()
        self.assertEqual({node.name: node.wait_until_up(RECOVERY) for node in nodes}, addresses)
        self.assert_reach(*nodes)

    def test_kills_in_a_row(self) -> None:
        """A node that is killed and started eight times is there again each time, at its address."""
        founder = self.found(self.lab.public_host("founder"))
        node = self.admit(founder, self.lab.public_host("node"))
        before = node.address
        for _ in range(8):
            node.kill9()
            wait_for("the end of the TAP", 5, lambda: node.address_on_tap() is None)
            node.start()
            self.assertEqual(node.wait_until_up(10), before)
            self.assertTrue(node.reaches(founder.address, RECOVERY))

    def test_a_relay_is_killed(self) -> None:
        """Two nodes that only a relay can join go on by way of another member, whichever direction used the dead one."""
        founder = self.found(self.lab.public_host("founder"))
        public = [founder, *(self.admit(founder, self.lab.public_host(name)) for name in ("one", "two"))]
        left, right = (self.admit(founder, self.lab.site(name, Nat.SYMMETRIC).host(name)) for name in ("left", "right"))
        self.assert_reach(left, right)
        relay = left.path_to(right).removeprefix("relay via ")
        next(node for node in public if node.name == relay).kill9()
        address = right.address
        self.assertTrue(holds_within(RECOVERY, lambda: left.ping(address, 1) is not None, every=0.2))

    def test_a_daemon_that_was_frozen(self) -> None:
        """SIGSTOP until the others have given it up, then SIGCONT: it is back, with its address."""
        founder = self.found(self.lab.public_host("founder"))
        node = self.admit(founder, self.lab.public_host("node"))
        self.assert_reach(founder, node)
        before = node.address
        assert node.process is not None
        os.kill(node.process.pid, signal.SIGSTOP)
        try:
            wait_for("the end of the link", 40, lambda: founder.path_to(node) == "unknown", 0.2)
        finally:
            os.kill(node.process.pid, signal.SIGCONT)
        self.assertTrue(founder.reaches(before, 2 * RECOVERY))
        self.assertEqual(node.address, before)

    def test_garbage(self) -> None:
        """Random bytes of every first byte and many lengths: no answer, no harm, no trace."""
        founder = self.found(self.lab.public_host("founder"))
        node = self.admit(founder, self.lab.public_host("node"))
        self.assert_reach(founder, node)
        path, rng = founder.path_to(node), random.Random(1)
        with self.lab.public_host("stranger").socket() as stranger:
            stranger.settimeout(0.5)
            for first in range(256):
                for length in (1, 2, 12, 13, 14, 25, 32, 60, 300, 1400):
                    stranger.sendto(bytes([first]) + rng.randbytes(length - 1), (founder.host.address, 4500))
            self.assertRaises(TimeoutError, stranger.recv, 2048)
        self.assertIsNotNone(node.ping(founder.address))
        self.assertEqual(founder.path_to(node), path)
        self.assertEqual(len(founder.status()["peers"]), 1)

    def test_a_second_daemon_on_one_state(self) -> None:
        """The same node.toml twice: the second daemon says that the first one runs, and the first goes on."""
        founder = self.found(self.lab.public_host("founder"))
        before = founder.process
        assert before is not None
        refusal = LabNode.refuse(founder)
        founder.process = before
        self.assertEqual(refusal.status, 1, refusal.text)
        self.assertIn("another", refusal.text.lower())
        self.assertNotIn("Traceback", refusal.text)
        self.assertEqual(founder.status()["self"]["name"], "founder")
