"""Real daemons behind the lab's NATs get direct paths where it takes more than challenging what others see."""

from __future__ import annotations

from ipop_tx.lab import Nat, wait_for
from ipop_tx.lab.node import LabNode
from tests.system.case import LabTestCase

SEARCHED = 75.0
"""Seconds: the check of the NAT begins 10 s after the first paths, and two searches may be needed on a loaded machine."""


class SearchTests(LabTestCase):
    """Three public members, and pairs of which one is behind a NAT that gives each far endpoint another port."""

    def setUp(self) -> None:
        super().setUp()
        self.founder = self.found(self.lab.public_host("founder"))
        for name in ("second", "third"):
            self.admit(self.founder, self.lab.public_host(name))

    def inside(self, name: str, nat: Nat) -> LabNode:
        """A node behind a router of a kind."""
        return self.admit(self.founder, self.lab.site(f"{name}r", nat).host(name))

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
