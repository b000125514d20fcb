"""Real daemons behind the lab's NATs get direct paths where it takes more than challenging what others see."""

from __future__ import annotations

from ipop_tx.lab import Nat, wait_for
from ipop_tx.lab.nat import STATEFUL
from ipop_tx.lab.node import LabNode
from tests.system.case import LabTestCase

SEARCHED = 75.0
"""Seconds: the check of the NAT begins 10 s after the first paths, and two searches may be needed on a loaded machine."""


class PunchCase(LabTestCase):
    """Pairs that become direct."""

    def become_direct(self, one: LabNode, other: LabNode) -> None:
        """Both ends use a direct path, and frames pass by it."""
        self.assertTrue(one.reaches(other.address), "the first frame over the ring")
        wait_for(
            f"direct paths of {one.name} and {other.name}",
            SEARCHED,
            lambda: one.path_to(other).startswith("direct udp") and other.path_to(one).startswith("direct udp"),
            every=0.2,
        )
        for here, there in ((one, other), (other, one)):
            self.assertIsNotNone(here.ping(there.address))
            self.assertTrue(here.path_to(there).startswith("direct udp"))


class SearchTests(PunchCase):
    """Three public members, and pairs for which it takes more than challenges at the right moment."""

    def setUp(self) -> None:
        super().setUp()
        self.founder = self.found(self.lab.public_host("founder"))
        for name in ("second", "third"):
            self.admit(self.founder, self.lab.public_host(name))

    def inside(self, name: str, nat: Nat, outer: Nat | None = None) -> LabNode:
        """A node behind a router of a kind, or behind two in a row."""
        behind = self.lab.site(f"{name}o", outer) if outer else None
        return self.admit(self.founder, self.lab.site(f"{name}r", nat, behind).host(name))

    def test_plain_linux(self) -> None:
        """Routers that give a port away to what comes in unasked: with each other, with one that is the outer of two, with random ports."""
        one, other, beyond, random = (
            self.inside("one", Nat.LINUX),
            self.inside("other", Nat.LINUX),
            self.inside("beyond", Nat.PORT_RESTRICTED, Nat.LINUX),
            self.inside("random", Nat.SYMMETRIC),
        )
        for peer in (other, beyond, random):
            self.become_direct(one, peer)
        technique = next(peer["technique"] for peer in one.status()["peers"] if peer["name"] == "random")
        self.assertEqual(technique, "a search among all ports")

    def test_symmetric(self) -> None:
        """Random ports and ports in order, each with a port-restricted NAT; a large transfer goes by the socket that was found."""
        plain, random, ordered = (
            self.inside("plain", Nat.PORT_RESTRICTED),
            self.inside("random", Nat.SYMMETRIC),
            self.inside("seq", Nat.SEQUENTIAL),
        )
        self.become_direct(plain, ordered)
        self.become_direct(plain, random)
        (random.host.directory / "big").write_bytes(bytes(5_000_000))
        server = ["python3", "-m", "http.server", "8000", "--bind", random.address, "--directory", str(random.host.directory)]
        random.host.start(server)
        got = plain.host.run(
            [
                "curl",
                "-s",
                "--retry",
                "8",
                "--retry-connrefused",
                "-o",
                "/dev/null",
                "-w",
                "%{size_download}",
                f"http://{random.address}:8000/big",
            ]
        )
        self.assertEqual(got.stdout, "5000000")
        self.assertIn("@", random.path_to(plain), "carried by a socket of its own")


class Version6Tests(PunchCase):
    """Members with both versions of IP, and such as have one."""

    def test_firewalls(self) -> None:
        """Two firewalls with IPv6 only open for each other; who has IPv4 only is reached by way of others, and status says why."""
        hosts = [self.lab.public_host(name) for name in ("founder", "second", "left", "right")]
        nodes = [self.node_on(host) for host in hosts]
        for node in nodes:
            alone = node.name in ("left", "right")
            self.lab.give_ipv6(node.host, alone)
            node.keys["listen"]["udp"] = "[::]:4500"
            if alone:
                node.host.run(["nft", "-f", "-"], text=STATEFUL)
        founder, second, left, right = nodes
        founder.create("lab")
        founder.start()
        founder.wait_until_up()
        inner = self.node_on(self.lab.site("home", Nat.PORT_RESTRICTED).host("inner"))
        for node in (second, inner, left, right):
            node.enter(founder)
        self.become_direct(left, right)
        self.assertIn("[fd99::", left.path_to(right))
        self.assertTrue(left.reaches(inner.address))
        why = next(peer["why"] for peer in left.status()["peers"] if peer["name"] == "inner")
        self.assertEqual(why, "the peer is reached by IPv4 only, this node by IPv6 only")
