"""`ipop netcheck` of real daemons behind the lab's NATs names what the routers were told to be."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from ipop_tx.errors import EnvironmentProblem, Unreachable
from ipop_tx.lab import Filtering, Host, Mapping, Nat, Site, wait_for
from ipop_tx.lab.nat import STATEFUL
from ipop_tx.lab.nat import Kind as NatKind
from ipop_tx.lab.node import LabNode
from tests.system import why_not
from tests.system.case import LabTestCase

INDEPENDENT, ADDRESS, PORT = "endpoint-independent", "address-dependent", "address-and-port-dependent"
MAPPINGS = {
    Mapping.PORT_KEPT: INDEPENDENT,
    Mapping.PORT_CHANGED: INDEPENDENT,
    Mapping.ADDRESS_DEPENDENT: ADDRESS,
    Mapping.SEQUENTIAL: PORT,
    Mapping.RANDOM: PORT,
}
FILTERINGS = {Filtering.ENDPOINT_INDEPENDENT: INDEPENDENT, Filtering.ADDRESS_DEPENDENT: ADDRESS, Filtering.PORT_DEPENDENT: PORT}
EIGHT = [
    Nat.FULL_CONE.with_hairpin(),
    Nat.PORT_RESTRICTED,
    Nat(Mapping.PORT_CHANGED, Filtering.ADDRESS_DEPENDENT),
    Nat(Mapping.ADDRESS_DEPENDENT, Filtering.ADDRESS_DEPENDENT),
    Nat.SEQUENTIAL,
    Nat.SYMMETRIC,
    Nat(Mapping.RANDOM, Filtering.ENDPOINT_INDEPENDENT),
    Nat.LINUX,
]
ALL = [Nat(mapping, filtering) for mapping in Mapping for filtering in Filtering]


class NetcheckCase(LabTestCase):
    """Three public members, and a node in a site whose router changes its kind."""

    def setUp(self) -> None:
        super().setUp()
        self.founder = self.found(self.lab.public_host("founder"))
        self.publics = [self.founder, *(self.admit(self.founder, self.lab.public_host(name)) for name in ("second", "third"))]

    def inner(self, nat: Nat, name: str = "inner") -> LabNode:
        """A node behind a router of a kind."""
        self.site: Site = self.lab.site(f"{name}r", nat)
        return self.admit(self.founder, self.site.host(name))

    def checked(self, node: LabNode) -> dict[str, Any]:
        """What `ipop netcheck --json` says once all public members have direct paths to the node that carry, as seen from both ends."""
        for other in self.publics:
            if other is not node:
                wait_for("a direct path", 60, lambda one=other: self.meets(node, one) and self.meets(one, node), every=0.2)
        found: dict[str, Any] = json.loads(self.netcheck(node, "--json"))
        return found

    def leave(self, node: LabNode) -> None:
        """End a node in good order, so that those to come need not wait for what it kept."""
        node.ipop("leave", "--socket", str(node.socket))

    def meets(self, one: LabNode, other: LabNode) -> bool:
        """Whether a probe takes a direct path and comes back."""
        try:
            return bool(one.request("POST", "/ping", {"target": other.name})["direct"])
        except (EnvironmentProblem, Unreachable):
            return False

    def netcheck(self, node: LabNode, *options: str) -> str:
        """The output of the command."""
        return node.ipop("netcheck", *options, "--socket", str(node.socket))[1]

    def assert_named(self, found: dict[str, Any], nat: Nat) -> None:
        """Mapping and filtering by name, without doubt, and the ports."""
        self.assertEqual((found["mapping"], found["filtering"]), (MAPPINGS[nat.mapping], FILTERINGS[nat.filtering]), str(nat))
        self.assertTrue(found["mapping_sure"] and found["filtering_sure"], found)
        self.assertEqual(found["sequential_step"], 1 if nat.mapping is Mapping.SEQUENTIAL else None, str(nat))
        if nat.mapping.endpoint_independent:
            self.assertEqual(found["port_kept"], nat.mapping is Mapping.PORT_KEPT)
        self.assertEqual(found["hairpin"], nat.hairpin, str(nat))
        self.assertEqual(found["brittle"], nat.kind is NatKind.LINUX, str(nat))
        if nat.mapping.endpoint_independent and nat.filtering is not Filtering.ENDPOINT_INDEPENDENT:
            self.assertEqual(found["opening_hops"], 2, str(nat))
        self.assertTrue(found["udp"] and found["ipv4"] and not found["ipv6"])


class KindTests(NetcheckCase):
    """Every kind of router."""

    def test_eight_kinds(self) -> None:
        """Each mapping, each filtering, a hairpinning router and a plain Linux one, each with a node of its own."""
        for number, nat in enumerate(EIGHT):
            node = self.inner(nat, f"inner{number}")
            found = self.checked(node)
            self.assert_named(found, nat)
            self.assertEqual(found["helpers"], 3)
            self.leave(node)

    def test_one_to_one_and_none(self) -> None:
        """Behind a 1:1 NAT the port is kept and anybody is let in; a public machine has no NAT."""
        found = self.checked(self.inner(Nat.ONE_TO_ONE))
        self.assertEqual((found["mapping"], found["filtering"], found["port_kept"]), (INDEPENDENT, INDEPENDENT, True))
        found = self.checked(self.founder)
        self.assertEqual((found["mapping"], found["filtering"]), ("none", INDEPENDENT))
        self.assertIn("every member", found["verdict"])
        self.assertEqual({relay["name"] for relay in found["relays"]}, {"second", "third", "inner"})

    def test_double_nat(self) -> None:
        """Of two routers in a row the stricter one counts."""
        outer = self.lab.site("carrier", Nat(Mapping.RANDOM, Filtering.ADDRESS_DEPENDENT))
        self.site = self.lab.site("home", Nat.FULL_CONE, behind=outer)
        self.assert_named(self.checked(self.admit(self.founder, self.site.host("deep"))), outer.nat)


class WordsTests(NetcheckCase):
    """What people see."""

    def test_output(self) -> None:
        """Within 80 columns, and in words."""
        node = self.inner(Nat.SYMMETRIC)
        self.checked(node)
        text = self.netcheck(node)
        self.assertLessEqual(max(map(len, text.splitlines())), 80, text)
        for words in ("mapping       address-and-port-dependent", "founder", "path MTU", "Direct paths are possible"):
            self.assertIn(words, text)

    def test_udp_blocked(self) -> None:
        """Where the router begins to let no UDP out, that is what is said, and soon."""
        node = self.inner(Nat.PORT_RESTRICTED)
        self.checked(node)
        self.site.set_nat(Nat.UDP_BLOCKED)
        wait_for("the end of all links", 60, lambda: not node.status()["peers"], every=0.5)
        text = self.netcheck(node)
        self.assertIn("UDP           no answer from any member", text)
        self.assertIn("it is blocked here, or the members are down", " ".join(text.split()))

    def test_no_daemon(self) -> None:
        """One sentence."""
        self.founder.stop()
        status, out, err = self.founder.ipop("netcheck", "--socket", str(self.founder.socket), check=False)
        self.assertEqual((status, out), (1, ""))
        self.assertRegex(err, r"^ipop: no daemon answers on [^\n]*: start it [^\n]*\n$")

    def test_status_says_why(self) -> None:
        """Two behind symmetric NATs are told that this is the reason."""
        left, right = self.inner(Nat.SYMMETRIC, "left"), self.inner(Nat.SYMMETRIC, "right")
        for node in (left, right):
            self.checked(node)
        self.assertTrue(left.reaches(right.address))
        why = "both behind address-and-port-dependent mappings"

        def told() -> bool:
            return all(
                any(peer["name"] == other.name and peer["why"] == why for peer in node.status()["peers"])
                for node, other in ((left, right), (right, left))
            )

        wait_for("the reason at both ends", 75, told, every=0.5)
        text = left.ipop("status", "--socket", str(left.socket))[1]
        self.assertIn(f"relayed: right: {why}", text)
        self.assertLessEqual(max(map(len, text.splitlines())), 80, text)


class LifetimeTests(NetcheckCase):
    """How long a router remembers."""

    def test_short_lifetime(self) -> None:
        """One that forgets after 10 s is found out, and the path to a member stays."""
        node = self.inner(Nat.PORT_RESTRICTED)
        for key in ("nf_conntrack_udp_timeout", "nf_conntrack_udp_timeout_stream"):
            self.site.router.run(["sysctl", "-q", "-w", f"net.netfilter.{key}=10"])
        self.site.forget_mappings()
        wait_for("the lifetime", 60, lambda: json.loads(self.netcheck(node, "--json"))["lifetime_s"]["less_than"], every=3)
        found = json.loads(self.netcheck(node, "--json"))
        self.assertEqual(found["lifetime_s"], {"at_least": 8, "less_than": 12})
        self.assertLess(found["keepalive_s"] * 1.2, 10)


class AgreementTests(NetcheckCase):
    """Another program's opinion: turnutils_natdiscovery of coturn, with a STUN server of two addresses (RFC 5780)."""

    skip = why_not("turnserver", "turnutils_natdiscovery")

    def setUp(self) -> None:
        super().setUp()
        stun: Host = self.lab.public_host("stun")
        second = self.lab.new_public_address()
        stun.run(["ip", "addr", "add", f"{second}/32", "dev", "eth0"])
        self.lab.route(second, stun)
        self.stun = stun.address
        options = ["-n", "--no-cli", "--no-tls", "--no-dtls", "--no-auth", "--stun-only"]
        database = f"--userdb={stun.directory / 'turn.db'}"
        stun.start(["turnserver", *options, database, "-L", stun.address, "-L", second, "--pidfile", str(stun.directory / "turn.pid")])

    def test_agreement(self) -> None:
        """Both say the same; the table stays in `_trial_temp/agreement.txt`. With `IPOP_TX_ALL_NATS` in the environment: of all NATs."""
        table = []
        for number, nat in enumerate(ALL if os.environ.get("IPOP_TX_ALL_NATS") else (ALL[0], ALL[7], ALL[-1])):
            node = self.inner(nat, f"inner{number}")
            found = self.checked(node)
            said = node.host.run(["turnutils_natdiscovery", "-m", "-f", self.stun], timeout=120).stdout
            theirs = tuple(self.named(said, what) for what in ("Mapping", "Filtering"))
            self.leave(node)
            table.append(((found["mapping"], found["filtering"]), theirs, str(nat)))
        Path("agreement.txt").write_text("".join(f"{what}: netcheck {ours}, natdiscovery {theirs}\n" for ours, theirs, what in table))
        self.assertEqual([ours for ours, _, _ in table], [theirs for _, theirs, _ in table])

    def named(self, said: str, what: str) -> str:
        """Which kind a line such as `NAT with Address Dependent Filtering!` names."""
        found = re.findall(rf"NAT with ([A-Za-z ]+?) {what}!", said)
        return found[-1].lower().replace(" ", "-") if found else said


class Version6Tests(LabTestCase):
    """A node that has IPv6 only, behind a firewall that lets in answers."""

    def test_a_firewall(self) -> None:
        """Nothing is translated, and only endpoints that were sent to are let in: that is what is said, and that IPv4 does not work."""
        nodes: list[LabNode] = []
        for name in ("founder", "second", "third", "inner"):
            host = self.lab.public_host(name)
            address = self.lab.give_ipv6(host, alone=name == "inner")
            node = LabNode(host)
            node.keys["listen"]["udp"] = "[::]:4500"
            if name == "inner":
                host.run(["nft", "-f", "-"], text=STATEFUL)
            if nodes:
                node.join(nodes[0].invite(name))
            else:
                node.create("lab")
            node.start()
            node.wait_until_up()
            nodes.append(node)
        inner = nodes[-1]
        wait_for("three direct paths", 40, lambda: sum("direct" in peer["path"] for peer in inner.status()["peers"]) == 3)
        found = json.loads(inner.ipop("netcheck", "--json", "--socket", str(inner.socket))[1])
        self.assertEqual((found["mapping"], found["filtering"], found["helpers"]), ("none", PORT, 3), found)
        self.assertTrue(found["mapping_sure"] and found["filtering_sure"])
        self.assertEqual((found["ipv4"], found["ipv6"]), (False, True))
        self.assertIn(f"udp:[{address}]:4500", [one["endpoint"] for one in found["observed"]])
