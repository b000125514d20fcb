"""A member that is thrown out of a network of real daemons: direct and relayed sessions end, and it stays out."""

from __future__ import annotations

import json
import re

from ipop_tx.lab import Nat, wait_for
from ipop_tx.lab.node import LabNode
from ipop_tx.lab.process import Process
from ipop_tx.lab.waiting import holds_within
from tests.system.case import LabTestCase


class RevocationTests(LabTestCase):
    """`gone` pings one peer directly and another by relay, without a pause."""

    def test_thrown_out(self) -> None:
        """Both stop being answered in seconds; who was off learns of it before it answers; the certificate opens no door any more."""
        founder = self.found(self.lab.public_host("founder"))
        off = self.admit(founder, self.lab.public_host("off"))
        away = self.admit(founder, self.lab.site("campus", Nat.SYMMETRIC).host("away"))
        gone = self.admit(founder, self.lab.site("home", Nat.SYMMETRIC).host("gone"))
        self.settle(founder, off, away, gone)
        address = gone.address
        self.assertTrue(gone.reaches(off.address))
        self.assertTrue(gone.reaches(away.address))
        self.assertRegex(gone.path_to(away), "^relay")
        target = off.address
        off.stop()
        pings = {node.name: self.pinging(gone, node.address) for node in (founder, away)}
        self.assertEqual(self.revoke(away, "gone")[0], 1)
        self.assertIn("would throw out gone", self.revoke(founder, "gone")[2])
        self.assertIn("gone", [peer["name"] for peer in founder.status()["peers"]])
        status, out, _ = self.revoke(founder, "gone", "--yes")
        self.assertEqual((status, "gone is thrown out" in re.sub(r" \(\w+\)", "", out)), (0, True), out)
        for name, log in pings.items():
            self.assertTrue(holds_within(10, lambda log=log: self.quiet(log), every=0.1), f"{name} still answers")
        wait_for("the sentence", 10, lambda: any("was revoked" in sentence for sentence in gone.status()["health"]))
        for node in (founder, away):
            self.assertNotIn("gone", [peer["name"] for peer in node.status()["peers"]])
            (one,) = json.loads(node.ipop("revocations", "--json", "--socket", str(node.socket))[1])
            self.assertEqual(one["name"], "gone")
        knocking = self.pinging(gone, target)
        off.start()
        off.wait_until_up()
        wait_for("the revocation at the one that was off", 10, lambda: off.request("GET", "/revocations", None))
        for node in (gone, off):
            node.kill9()
            node.start()
        off.wait_until_up()
        self.assertFalse(gone.reaches(target, 5))
        self.assertNotIn(" bytes from ", knocking.output)
        self.assertIn("was thrown out of the network", founder.process.output + off.process.output + away.process.output)
        wish = self.lab.public_host("new")
        fresh = LabNode(wish)
        fresh.keys["lease"] = {"address": address}
        fresh.join(founder.invite("new"))
        fresh.start()
        self.assertEqual(fresh.wait_until_up(), address)
        self.assert_reach(founder, off, away, fresh)

    def pinging(self, node: LabNode, address: str) -> Process:
        """A ping that goes on."""
        return node.host.start(["stdbuf", "-oL", "ping", "-n", "-i0.2", address], log=f"pings-{address}.log")

    def quiet(self, pings: Process) -> bool:
        """Whether half a second and more passed without an answer."""
        before = pings.output.count(" bytes from ")
        return not holds_within(1.5, lambda: pings.output.count(" bytes from ") > before, every=0.1)

    def revoke(self, node: LabNode, *words: str) -> tuple[int, str, str]:
        """Run `ipop revoke` there."""
        return node.ipop("revoke", *words, "--socket", str(node.socket), check=False)
