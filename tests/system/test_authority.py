"""The authority itself, with real daemons: its key is rolled over, and several approve what it orders."""

from __future__ import annotations

import json

from ipop_tx.lab import wait_for
from ipop_tx.lab.node import LabNode
from tests.system.case import LabTestCase


class AuthorityTests(LabTestCase):
    """A founder, who holds the key, and two more."""

    def authority(self, node: LabNode, *words: str) -> str:
        """Run `ipop authority` there."""
        return node.ipop("authority", *words, "--socket", str(node.socket))[1]

    def charter(self, node: LabNode) -> int:
        """Which one counts there."""
        return int(json.loads(self.authority(node, "show", "--json"))["number"])

    def test_rolled_over(self) -> None:
        """Traffic goes on; who was off follows; the old key is refused, newcomers come in by the new one, and at last all have left it."""
        founder = self.found(self.lab.public_host("founder"))
        one = self.admit(founder, self.lab.public_host("one"))
        off = self.admit(founder, self.lab.public_host("off"))
        gone = self.admit(founder, self.lab.public_host("gone"))
        self.settle(founder, one, off, gone)
        self.assertTrue(one.reaches(founder.address), "known before half of the replicas are gone")
        founder.ipop("revoke", "gone", "--yes", "--socket", str(founder.socket))
        gone.kill9()
        old_key = (founder.state / "authority.key").read_bytes()
        off.kill9()
        pings = one.host.start(["ping", "-n", "-i0.1", "-c150", founder.address], log="pings.log")
        self.assertIn("charter 1 counts", self.authority(founder, "roll", "--overlap", "40s"))
        self.assertNotEqual((founder.state / "authority.key").read_bytes(), old_key)
        wait_for("the charter", 10, lambda: self.charter(one) == 1)
        roots = json.loads(self.authority(one, "show", "--json"))["roots"]
        self.assertEqual([bool(root["until"]) for root in roots], [True, False])
        off.start()
        off.wait_until_up(60)
        wait_for("the charter at the one that was off", 20, lambda: self.charter(off) == 1)
        for node in (one, off):
            self.assertEqual([each["name"] for each in node.request("GET", "/revocations")], ["gone"])
        pings.wait(90)
        self.assertIn("150 packets transmitted, 150 received", pings.output)
        fresh = self.admit(founder, self.lab.public_host("fresh"))
        self.assert_reach(founder, one, off, fresh)
        for node in (one, off):
            wait_for("a certificate under the new root", 90, lambda node=node: "certificate_renewed" in node.process.output)
        for node in (one, founder):
            node.kill9()
            node.start()
            node.wait_until_up(60)
        self.assert_reach(founder, one, off, fresh)
        self.refused_with(old_key, founder, one)

    def refused_with(self, old_key: bytes, founder: LabNode, member: LabNode) -> None:
        """What the old key orders is refused everywhere."""
        stolen = founder.directory / "stolen.key"
        stolen.touch(mode=0o600)
        stolen.write_bytes(old_key)
        order = self.order_by(founder, stolen.name)
        status, _, err = member.ipop("authority", "give", order, "--socket", str(member.socket), check=False)
        self.assertEqual(status, 1)
        self.assertIn("must be signed by this network's authority", err)

    def order_by(self, founder: LabNode, key: str) -> str:
        """A revocation that is signed with one key only."""
        from ipop_tx.identity.keys import read_key
        from ipop_tx.identity.state import StateDirectory
        from ipop_tx.services.orders import signed, to_file
        from ipop_tx.wire import messages as m

        pen = read_key(StateDirectory(founder.directory), key)
        order = signed(pen, m.Revocation(self.network_of(founder), bytes(range(32)), "fresh", 1_800_000_000))
        file = founder.directory / "stolen-order.json"
        file.write_text(json.dumps(to_file([order])))
        return str(file)

    def network_of(self, node: LabNode) -> bytes:
        """The ident of its network."""
        from ipop_tx.identity.authority import read_certificates
        from ipop_tx.identity.certificates import network_of
        from ipop_tx.identity.state import NODE_CHAIN, StateDirectory

        return network_of(read_certificates(StateDirectory(node.state), NODE_CHAIN)[-1]).ident

    def test_two_of_three(self) -> None:
        """One signature is not enough, two of the three are, whoever brings them; so it is with appointing; the old key is none."""
        founder = self.found(self.lab.public_host("founder"))
        two = self.admit(founder, self.lab.public_host("two"))
        gone = self.admit(founder, self.lab.public_host("gone"))
        self.settle(founder, two, gone)
        keys = [str(founder.directory / f"approver{number}.key") for number in range(3)]
        points = [founder.ipop("authority", "key", key)[1].strip() for key in keys]
        file = str(founder.directory / "order.json")
        self.authority(founder, "approvers", "2", *points, "--order", file)
        self.sign(founder, file, *keys[:2])
        self.assertIn("makes charter 1: 2 of the keys", self.give(founder, file)[1])
        wait_for("the charter", 10, lambda: self.charter(two) == 1)
        status, _, told = founder.ipop("revoke", "gone", "--yes", "--order", file, "--socket", str(founder.socket))
        self.assertIn(f"wrote {file}", told)
        self.assertEqual(self.give(two, file)[0], 1)
        self.sign(founder, file, keys[2], keys[2])
        status, _, err = self.give(two, file)
        self.assertEqual((status, "must be signed by this network's authority" in err), (1, True))
        self.assertEqual(two.request("GET", "/revocations"), [])
        self.sign(founder, file, keys[0])
        self.assertIn("throws out gone", self.give(two, file)[1])
        wait_for("the revocation", 10, lambda: founder.request("GET", "/revocations"))
        self.assertNotIn("gone", [peer["name"] for peer in founder.status()["peers"]])

        deputy = self.admit(founder, self.lab.public_host("deputy"), "--appoint")
        refused = self.node_on(self.lab.public_host("new")).refused_join(deputy.invite("new"))
        self.assertEqual(refused.status, 1)
        self.authority(founder, "renew", "--order", file)
        self.sign(founder, file, keys[1], keys[2])
        self.give(deputy, file)
        wait_for("the charter", 10, lambda: self.charter(two) == 2)
        new = self.admit(deputy, self.lab.public_host("new2"))
        self.assert_reach(founder, two, new)

    def sign(self, node: LabNode, file: str, *keys: str) -> None:
        """One after another."""
        for key in keys:
            node.ipop("sign", file, "--key", key)

    def give(self, node: LabNode, file: str) -> tuple[int, str, str]:
        """Have it carried out."""
        return node.ipop("authority", "give", file, "--socket", str(node.socket), check=False)
