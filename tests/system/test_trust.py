"""Real daemons whose addresses are contested, and a network that has lost its majority."""

from __future__ import annotations

import re
import shutil

from ipop_tx.errors import Unreachable
from ipop_tx.lab import Host, wait_for
from ipop_tx.lab.node import LabNode, environment, program
from ipop_tx.wire.address import mac_of
from tests.system.case import LabTestCase


class AssignedTests(LabTestCase):
    """An address that the authority gives to another node than the one that has it."""

    def signed(self, authority: LabNode, host: Host, address: str) -> LabNode:
        """A node whose certificate was carried by hand and assigns an address; it does not run yet."""
        node = LabNode(host)
        request, chain = node.directory / "request.pem", node.directory / "chain.pem"
        request.write_text(node.ipop("request", "--state", str(node.state), "--name", node.name)[1])
        _, signed, told = authority.ipop("sign", str(request), "--address", address, "--state", str(authority.state))
        chain.write_text(signed)
        fingerprint = re.search(r"--authority ([0-9a-f]+)", told)
        assert fingerprint is not None, told
        node.ipop("install", str(chain), "--authority", fingerprint[1], "--state", str(node.state))
        node.keys["node"]["bootstrap"] = [f"udp:{authority.host.address}:4500"]
        return node

    def mac_at(self, observer: LabNode, address: str) -> str:
        """To which MAC the observer's kernel sends what goes to an address."""
        shown = observer.host.run(["ip", "neigh", "show", address, "dev", "ipop0"]).stdout
        found = re.search(r"lladdr ([0-9a-f:]+)", shown)
        return found[1] if found else shown

    def test_the_holder_yields(self) -> None:
        """It takes another address, both say so, and who was just sending to the address reaches the new owner in seconds."""
        observer = self.found(self.lab.public_host("observer"))
        squatter = self.admit(observer, self.lab.public_host("squatter"))
        self.settle(observer, squatter)
        address, ident = squatter.address, squatter.status()["self"]["ident"]
        self.assertTrue(observer.reaches(address))
        self.assertEqual(self.mac_at(observer, address), mac_of(bytes.fromhex(ident)).hex(":"))
        owner = self.signed(observer, self.lab.public_host("owner"), address)
        pings = observer.host.start(["stdbuf", "-oL", "ping", "-n", "-D", "-i0.1", address], log="pings.log")
        owner.start()
        self.assertEqual(owner.wait_until_up(), address)
        new = mac_of(bytes.fromhex(owner.status()["self"]["ident"])).hex(":")
        wait_for("the new owner's MAC at the observer", 5, lambda: self.mac_at(observer, address) == new, every=0.05)
        wait_for("another address of the squatter", 5, lambda: squatter.address not in (address, "None"), every=0.05)
        answered = pings.output.count(" bytes from ")
        wait_for("answers to the pings that go on", 5, lambda: pings.output.count(" bytes from ") > answered + 10, every=0.05)
        self.assertTrue(observer.reaches(squatter.address, 5))
        pings.stop()
        self.assertIn(f"lease_lost address={address} reason={address} belongs to node", squatter.process.output)
        wait_for("the sentence", 5, lambda: any("used" in sentence for sentence in owner.status()["health"]))
        self.assertIn("lease_contested address=" + address, owner.process.output)
        self.assertTrue(any("so this node has taken another address" in sentence for sentence in squatter.status()["health"]))


class RecoveryTests(LabTestCase):
    """The authority's node alone is left."""

    def test_recover(self) -> None:
        """It says what is lost, does nothing unasked, survives being killed in the middle, and then the network takes new members again."""
        founder = self.found(self.lab.public_host("founder"))
        second = self.admit(founder, self.lab.public_host("second"))
        third = self.admit(founder, self.lab.public_host("third"))
        self.settle(founder, second, third)
        address = founder.address
        for lost in (second, third):
            lost.kill9()
        shutil.rmtree(third.state)
        recover = ("network", "recover", "--socket", str(founder.socket))
        status, out, told = founder.ipop(*recover, timeout=90)
        self.assertEqual(status, 0)
        self.assertIn("32 parts of the DHT have no majority; not reached:", out)
        self.assertIn("if those are lost for ever, and only then", told)
        killed = founder.host.start(["timeout", "60", *program("ipop"), *recover, "--yes"], log="killed.log", environment=environment())
        wait_for("the order", 60, lambda: "views_founded" in founder.process.output, every=0.005)
        founder.kill9()
        killed.wait(60)
        founder.start()
        wait_for("the founder's control socket", 30, lambda: self.answers(founder), every=0.2)
        status, out, _ = founder.ipop(*recover, "--yes", timeout=90)
        self.assertRegex(out, "parts founded anew with|nothing to recover")
        status, out, _ = founder.ipop(*recover, timeout=90)
        self.assertIn("nothing to recover", out)
        wait_for("the same address as before", 40, lambda: founder.address == address)
        fourth = self.admit(founder, self.lab.public_host("fourth"))
        second.start()
        second.wait_until_up(60)
        self.settle(founder, fourth, second)
        wait_for("the order at the one that came back", 10, lambda: "views_founded" in second.process.output)
        self.assert_reach(founder, second, fourth)

    def answers(self, node: LabNode) -> bool:
        """Whether its daemon can be asked."""
        try:
            return bool(node.status())
        except Unreachable:
            return False


class QuotaTests(LabTestCase):
    """A node that keeps to small limits."""

    def test_told(self) -> None:
        """Whoever has all it may is told so by `ipop dht create`, in a sentence; what is there stays, and can be replaced and deleted."""
        node = LabNode(self.lab.public_host("founder"))
        node.create("lab")
        node.keys["dht"] = {"member_registers": 64}
        node.start()
        node.wait_until_up()
        kept, refused = [], []
        for number in range(120):
            (answer,) = node.request("POST", "/dht/create", {"entries": [{"key": f"key{number}", "text": "x"}], "ttl_s": 600})["answers"]
            (refused if "error" in answer else kept).append(f"key{number}")
        self.assertLessEqual(len(kept), 64)
        self.assertGreater(len(kept), 30)
        status, out, err = node.ipop("dht", "create", refused[0], "x", "--socket", str(node.socket), check=False)
        self.assertEqual((status, out), (1, ""))
        self.assertIn("has 2 registers in this part of the DHT, and may have no more: delete some, or wait until they expire", err)
        self.assertEqual(node.ipop("dht", "get", kept[0], "--socket", str(node.socket))[1].strip(), "x")
        node.ipop("dht", "set", kept[0], "y", "--socket", str(node.socket))
        node.ipop("dht", "delete", kept[0], "--socket", str(node.socket))
        self.assertLessEqual(node.status()["self"]["dht"]["registers"], 64 + 3)
