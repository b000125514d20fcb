"""Networks of one to five real daemons: who is needed, what goes on without a majority, and that it ends by itself."""

from __future__ import annotations

from ipop_tx.lab import wait_for
from ipop_tx.lab.node import LabNode, Refusal
from ipop_tx.lab.waiting import holds_within
from tests.system.case import LabTestCase


class SmallNetworkCase(LabTestCase):
    """Nodes that are all on the internet."""

    def grown(self, count: int) -> list[LabNode]:
        """A network of so many nodes, each with a copy of every part of the DHT."""
        founder = self.found(self.lab.public_host("n0"))
        nodes = [founder, *(self.admit(founder, self.lab.public_host(f"n{number}")) for number in range(1, count))]
        if count > 1:
            self.settle(*nodes)
        return nodes

    def dht(self, node: LabNode, *words: str) -> Refusal:
        """Run `ipop dht` at a node."""
        status, out, err = node.ipop("dht", *words, "--socket", str(node.socket), check=False, timeout=60)
        return Refusal(status, out + err)

    def wait_for_health(self, node: LabNode, beginning: str) -> str:
        """Wait until a sentence of a node's health begins like that; gives it."""
        found: list[str] = wait_for(
            f"{beginning!r} in the health of {node.name}",
            30,
            lambda: [sentence for sentence in node.status()["health"] if sentence.startswith(beginning)],
            every=0.2,
        )
        return found[0]

    def wait_until_well(self, *nodes: LabNode) -> None:
        """Wait until no node has anything to complain of."""
        told: list[str] = []

        def well() -> bool:
            told[:] = [f"{node.name}: {sentence}" for node in nodes for sentence in node.status()["health"]]
            return not told

        self.assertTrue(holds_within(40, well, every=0.2), told)

    def assert_kept(self, nodes: list[LabNode], addresses: list[str]) -> None:
        """Everybody who runs has the address that it had."""
        self.assertEqual([node.address_on_tap() for node in nodes], addresses)


class OneTests(SmallNetworkCase):
    """A laptop by itself."""

    def test_alone(self) -> None:
        """It starts, works, and is after a power failure what it was."""
        [node] = self.grown(1)
        address = node.address
        self.assertEqual(self.dht(node, "create", "motd", "hello").status, 0)
        node.kill9()
        node.start()
        self.assertEqual(node.wait_until_up(10), address)
        self.assertEqual(self.dht(node, "get", "motd"), Refusal(0, "hello"))
        self.assertEqual(node.status()["health"], [])


class TwoTests(SmallNetworkCase):
    """Each needs the other, for what is new."""

    def test_one_reboots(self) -> None:
        """Whichever does, neither loses its address; meanwhile the other says what it waits for, and grants nothing."""
        nodes = self.grown(2)
        addresses = [node.address for node in nodes]
        for gone, left in (nodes, nodes[::-1]):
            self.settle(*nodes)
            gone.kill9()
            sentence = self.wait_for_health(left, "1 of 2 replicas reached; waiting for 1 more")
            self.assertIn("addresses are kept, but nothing new is granted", sentence)
            self.assert_refused(self.dht(left, "create", f"by-{left.name}", "x"), "1 of 2 replicas reached", "ipop dht get")
            self.assertEqual(left.address_on_tap(), addresses[nodes.index(left)])
            gone.start()
            gone.wait_until_up(10)
            self.wait_until_well(*nodes)
            self.assert_kept(nodes, addresses)
            self.assert_reach(*nodes)
            self.assertEqual(self.dht(left, "set", f"by-{left.name}", "y").status, 0)
            self.assertEqual(self.dht(gone, "get", f"by-{left.name}"), Refusal(0, "y"))


class FewTests(SmallNetworkCase):
    """Three and four: one may be away, and once the views have changed the others are enough."""

    def test_three(self) -> None:
        self.assert_one_may_go(3)

    def test_four(self) -> None:
        self.assert_one_may_go(4)

    def assert_one_may_go(self, count: int) -> None:
        nodes = self.grown(count)
        addresses = [node.address for node in nodes]
        nodes[0].kill9()
        self.assertEqual(self.dht(nodes[1], "create", "at once", "x").status, 0)
        self.wait_until_well(*nodes[1:])
        self.assertEqual(self.dht(nodes[-1], "get", "at once"), Refusal(0, "x"))
        nodes[0].start()
        nodes[0].wait_until_up(10)
        self.assert_kept(nodes, addresses)
        self.settle(*nodes)
        self.assertEqual(self.dht(nodes[0], "get", "at once"), Refusal(0, "x"))


class MinorityTests(SmallNetworkCase):
    """Two that are left of five."""

    def test_three_of_five_fail_at_once(self) -> None:
        """The two keep what they have, say what they wait for, admit nobody, and go on by themselves when one is back."""
        nodes = self.grown(5)
        addresses = [node.address for node in nodes]
        self.assert_reach(*nodes[:2])
        token = nodes[0].invite("late")
        for node in nodes[2:]:
            node.kill9()
        for node in nodes[:2]:
            self.wait_for_health(node, "2 of 5 replicas reached; waiting for 1 more")
        self.assert_refused(self.dht(nodes[0], "create", "new", "x"), "2 of 5 replicas reached")
        self.assert_refused(self.dht(nodes[1], "get", "new"), "2 of 5 replicas reached", "waiting for the others")
        late = LabNode(self.lab.public_host("late"))
        self.assert_refused(late.refused_join(token), "2 of 5 replicas reached")
        self.assert_kept(nodes[:2], addresses[:2])
        self.assert_reach(*nodes[:2])
        nodes[2].start()
        self.assertEqual(nodes[2].wait_until_up(20), addresses[2])
        self.wait_until_well(*nodes[:3])
        self.assertEqual(self.dht(nodes[0], "set", "new", "y").status, 0)
        late.join(token)
        late.start()
        self.assertNotIn(late.wait_until_up(), addresses)
        self.assert_kept(nodes[:3], addresses[:3])
