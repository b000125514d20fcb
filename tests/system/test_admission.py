"""Who gets in, and stays in, with real daemons: counted invitations, machines let in by hand, certificates that renew themselves."""

from __future__ import annotations

import json
import re
import time
from concurrent.futures import ThreadPoolExecutor

from ipop_tx.lab import wait_for
from ipop_tx.lab.node import LabNode, environment, program
from ipop_tx.lab.process import Process
from tests.system.case import LabTestCase

LOST = re.compile(r"(\d+) packets transmitted, (\d+) received")


class InvitationTests(LabTestCase):
    """Two members that admit."""

    def test_as_many_as_it_says(self) -> None:
        """Four machines use an invitation for three at once, two at each member: exactly three get in, under names of its pattern."""
        founder = self.found(self.lab.public_host("founder"))
        second = self.admit(founder, self.lab.public_host("second"), "--appoint")
        self.settle(founder, second)
        token = founder.invite("lab-*", "--uses", "3", "--group", "lab")
        nodes = [self.node_on(self.lab.public_host(f"pc{number}")) for number in range(4)]
        tokens = [self.token_to(member, token) for member in (founder, second)]
        with ThreadPoolExecutor(4) as pool:
            refusals = list(pool.map(lambda at: nodes[at].refused_join(tokens[at % 2]), range(4)))
        refused = [refusal for refusal in refusals if refusal.status]
        self.assertEqual(len(refused), 1, [refusal.text for refusal in refusals])
        self.assert_refused(refused[0], "this invitation has been used by 3 machines, as many as it admits")
        inside = [node for node, refusal in zip(nodes, refusals, strict=True) if not refusal.status]
        for node in inside:
            node.keys["node"]["bootstrap"] = [f"udp:{founder.host.address}:4500"]
            node.start()
        for node in inside:
            node.wait_until_up()
        own = [node.status()["self"] for node in inside]
        self.assertEqual(sorted(one["name"] for one in own), sorted(f"lab-{node.name}" for node in inside))
        self.assertEqual([one["groups"] for one in own], [["lab"]] * 3)
        for member in (founder, second):
            self.assertIn("admitted name=lab-pc", member.process.output)  # type: ignore[union-attr]

    def token_to(self, member: LabNode, token: str) -> str:
        """The same invitation, but it names this member only."""
        from dataclasses import replace

        from ipop_tx.identity.invitation import Invitation
        from ipop_tx.values import Endpoint

        return str(replace(Invitation.parse(token), endpoints=(Endpoint("udp", member.host.address, 4500),)))


class ApprovalTests(LabTestCase):
    """By hand."""

    def joining(self, node: LabNode, token: str, log: str) -> Process:
        """`ipop join` in the background."""
        argv = [*program("ipop"), "join", token, "--state", str(node.state), "--name", node.name, "--config", str(node.config)]
        return node.host.start(argv, log=log, environment=environment())

    def waiting(self, member: LabNode) -> list[str]:
        """Who waits there."""
        return [one["name"] for one in json.loads(member.ipop("requests", "--json", "--socket", str(member.socket))[1])]

    def test_by_hand(self) -> None:
        """It waits and is told so, over a restart of either side; then it is in. Another is denied. A rule of the network does the same."""
        founder = self.found(self.lab.public_host("founder"))
        socket = ("--socket", str(founder.socket))
        node, other = (self.node_on(self.lab.public_host(name)) for name in ("new", "other"))
        joining = self.joining(node, founder.invite("new", "--approval"), "first.log")
        wait_for("the sentence", 20, lambda: "this machine waits to be let in as new" in joining.output)
        self.assertEqual(self.waiting(founder), ["new"])
        joining.kill9()
        founder.kill9()
        founder.start()
        founder.wait_until_up()
        wait_for("those who wait, after a restart", 20, lambda: self.waiting(founder) == ["new"])
        token = founder.invite("new", "--approval")
        joining = self.joining(node, token, "second.log")
        self.assertTrue(any("waits to be let in" in sentence for sentence in founder.status()["health"]))
        self.assertIn("new (", founder.ipop("admit", "new", *socket)[1])
        self.assertEqual(joining.wait(30), 0, joining.output)
        node.keys["node"]["bootstrap"] = [f"udp:{founder.host.address}:4500"]
        node.start()
        node.wait_until_up()
        self.assertEqual(self.waiting(founder), [])

        self.assertIn("let in by hand", founder.ipop("admission", "set", "--approval", *socket)[1])
        refused = node.ipop("admission", "set", "--no-approval", "--socket", str(node.socket), check=False)
        self.assertIn("only the node that holds the authority's key can change the rules", refused[2])
        joining = self.joining(other, founder.invite("other"), "third.log")
        wait_for("the other one", 20, lambda: self.waiting(founder) == ["other"])
        founder.ipop("deny", "other", *socket)
        self.assertEqual(joining.wait(30), 1)
        self.assertIn("somebody decided not to let this machine in", joining.output)


class RenewalTests(LabTestCase):
    """Certificates that count for seconds."""

    def test_under_traffic(self) -> None:
        """Both ends of a ping renew theirs several times, one by way of the other: not a packet is lost, and the ident stays."""
        founder = self.found(self.lab.public_host("founder"))
        one = self.admit(founder, self.lab.public_host("one"), "--life", "30s")
        two = self.admit(founder, self.lab.public_host("two"), "--life", "30s")
        idents = [node.status()["self"]["ident"] for node in (one, two)]
        self.assertTrue(one.reaches(two.address))
        pings = one.host.start(["ping", "-n", "-i0.05", "-c1000", two.address], log="pings.log")
        for node in (one, two):
            wait_for("the second renewal", 60, lambda node=node: node.process.output.count("certificate_renewed") >= 2)
        ends = [node.status()["self"]["certificate_ends"] for node in (one, two)]
        self.assertGreater(min(ends), time.time())
        pings.wait(90)
        found = LOST.search(pings.output)
        assert found is not None, pings.output[-500:]
        self.assertEqual(found[1], found[2], "packets lost")
        self.assertEqual([node.status()["self"]["ident"] for node in (one, two)], idents)
        self.assertEqual([node.status()["health"] for node in (one, two)], [[], []])
        for node in (one, two):  # what is on the disk is the new one
            node.kill9()
            node.start()
            node.wait_until_up()
        self.assert_reach(one, two)

    def test_after_its_end(self) -> None:
        """A node that was off when its certificate ended is a member again by itself; beyond the grace it is refused, and says so."""
        founder = self.found(self.lab.public_host("founder"))
        late = self.admit(founder, self.lab.public_host("late"), "--life", "20s")
        ident, address = (late.status()["self"][key] for key in ("ident", "address"))
        late.kill9()
        ends = self.ends_of(late)
        founder.kill9()
        wait_for("the end of its certificate", 60, lambda: time.time() > ends + 1)
        late.start()
        wait_for("its health", 20, lambda: late.socket.exists() and self.says(late, "so nobody lets it in; it asks to be admitted again"))
        founder.start()
        wait_for("the renewal", 60, lambda: "certificate_renewed" in late.process.output)  # type: ignore[union-attr]
        wait_for("a link", 60, lambda: [peer["name"] for peer in late.status()["peers"]] == ["founder"])
        late.wait_until_up(60)
        self.assertEqual((late.status()["self"]["ident"], late.address), (ident, address))
        self.assertTrue(founder.reaches(address, 30))
        late.kill9()
        founder.ipop("admission", "set", "--grace", "1s", "--socket", str(founder.socket))
        wait_for("the end of the grace", 60, lambda: time.time() > self.ends_of(late) + 2)
        late.start()
        wait_for("the refusal", 60, lambda: self.says(late, "too long to be renewed: join the network anew"))
        self.assertNotIn("late", [peer["name"] for peer in founder.status()["peers"]])

    def ends_of(self, node: LabNode) -> float:
        """When the certificate on its disk ends."""
        from ipop_tx.identity.authority import read_certificates
        from ipop_tx.identity.certificates import ends_of
        from ipop_tx.identity.state import NODE_CHAIN, StateDirectory

        return ends_of(read_certificates(StateDirectory(node.state), NODE_CHAIN)[0])

    def says(self, node: LabNode, words: str) -> bool:
        """Whether its health does."""
        try:
            return any(words in sentence for sentence in node.status()["health"])
        except Exception:  # noqa: BLE001 its daemon is only starting
            return False
