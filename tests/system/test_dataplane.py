"""The data plane of real daemons under load: wide records, relays."""

from __future__ import annotations

from typing import Any

from ipop_tx.lab import Nat
from ipop_tx.lab.node import LabNode
from ipop_tx.lab.traffic import fetch
from tests.system.case import LabTestCase


def peer(node: LabNode, other: LabNode) -> dict[str, Any]:
    """What a node's status says of another."""
    return next(entry for entry in node.status()["peers"] if entry["name"] == other.name)


class LoadTests(LabTestCase):
    """TCP at full speed."""

    def test_wide_records(self) -> None:
        """Records become wide on a good path, and all offloads are in use."""
        founder = self.found(self.lab.public_host("founder"))
        other = self.admit(founder, self.lab.public_host("other"))
        self.assert_reach(founder, other)
        for node in (founder, other):
            self.assertEqual(node.status()["self"]["offloads"]["udp"], ["segment", "gro"])
            self.assertEqual(node.status()["health"], [])
        self.assertTrue(fetch(founder, other, founder.address, megabytes=64).good)
        wide = peer(founder, other)
        self.assertGreater(wide["width"], 10)
        self.assertEqual((wide["mtu"], wide["path"].split()[0]), (1472, "direct"))

    def test_a_relay_passes_records_on(self) -> None:
        """Where no direct path can be, the relay's forwarding plane carries the stream, and its control plane stays out of it."""
        founder = self.found(self.lab.public_host("founder"))
        left = self.admit(founder, self.lab.site("campus", Nat.SYMMETRIC).host("left"))
        right = self.admit(founder, self.lab.site("home", Nat.SYMMETRIC).host("right"))
        self.assert_reach(left, right)
        before = founder.status()["counters"]
        self.assertTrue(fetch(left, right, left.address, megabytes=64).good)
        after = founder.status()["counters"]
        self.assertGreater(after["relayed_records"] - before.get("relayed_records", 0), 500)
        self.assertLess(after.get("relayed", 0) - before.get("relayed", 0), 500)  # 64 MB are a thousand records at least
        self.assertGreater(peer(left, right)["width"], 1)
