"""Real daemons in sites behind NATs form a network, carry traffic, and survive."""

from __future__ import annotations

import signal
import time

from ipop_tx.lab import Nat, netns, wait_for
from ipop_tx.lab.node import LabNode
from ipop_tx.lab.traffic import fetch
from ipop_tx.services.enrolment import join
from tests.system.case import LabTestCase


class TwoSitesTests(LabTestCase):
    """A public founder, and one node in each of two sites."""

    def test_the_first_ping_is_answered_and_a_direct_path_follows(self) -> None:
        """Behind two port-restricted NATs: nothing is lost at the beginning, and in the end nobody stands between."""
        founder = self.found(self.lab.public_host("founder"))
        left = self.admit(founder, self.lab.site("campus", Nat.PORT_RESTRICTED).host("left"))
        right = self.admit(founder, self.lab.site("home", Nat.PORT_RESTRICTED).host("right"))
        self.assertIsNotNone(left.ping(right.address), "the very first ping")
        self.assert_reach(founder, left, right)
        path = left.wait_for_path(right, lambda path: path.startswith("direct"))
        self.assertIn(right.host.site.outer_address, path)

    def test_a_relay_where_no_direct_path_can_be(self) -> None:
        """Behind two symmetric NATs every path goes over the founder, and a file arrives whole all the same."""
        founder = self.found(self.lab.public_host("founder"))
        left = self.admit(founder, self.lab.site("campus", Nat.SYMMETRIC).host("left"))
        right = self.admit(founder, self.lab.site("home", Nat.SYMMETRIC).host("right"))
        self.assertIsNotNone(left.ping(right.address), "the very first ping")
        self.assert_reach(founder, left, right)
        self.assertTrue(fetch(left, right, left.address, megabytes=8).good)
        self.assertEqual(left.path_to(right), "relay via founder")
        self.assertEqual(right.path_to(left), "relay via founder")

    def test_neighbours_on_one_lan_meet_there(self) -> None:
        """Two nodes behind one NAT that does not hairpin talk over their LAN."""
        founder = self.found(self.lab.public_host("founder"))
        home = self.lab.site("home", Nat.PORT_RESTRICTED)
        left, right = self.admit(founder, home.host("left")), self.admit(founder, home.host("right"))
        self.assert_reach(left, right)
        path = left.wait_for_path(right, lambda path: path.startswith("direct"))
        self.assertIn(right.host.address, path)

    def test_large_packets(self) -> None:
        """Packets as large as the TAP's MTU arrive, larger ones in fragments."""
        founder = self.found(self.lab.public_host("founder"))
        left = self.admit(founder, self.lab.site("campus", Nat.PORT_RESTRICTED).host("left"))
        self.assert_reach(founder, left)
        mtu = left.status()["self"]["mtu"]
        for size, fragment in ((mtu - 28, "do"), (4000, "dont")):
            left.host.run(["ping", "-n", "-c3", "-i0.2", "-W5", "-M", fragment, "-s", str(size), founder.address])


class CrowdTests(LabTestCase):
    """Many come at once."""

    def test_guests_make_room_for_others(self) -> None:
        """A member has room for 16 guests, and keeps silent ones for a minute; those who are done leave room at once."""
        founder = self.found(self.lab.public_host("founder"))
        outside = self.lab.public_host("outside")
        began = time.monotonic()
        for number in range(20):
            token = founder.request("POST", "/invite", {"name": f"guest{number}"})["token"]
            with netns.inside(outside.namespace):
                joined = join(token, outside.directory / f"state{number}", None)
            self.assertEqual(joined.name, f"guest{number}")
        self.assertLess(time.monotonic() - began, 30)


class SurvivalTests(LabTestCase):
    """Nodes go, and come back."""

    def test_the_founder_is_killed(self) -> None:
        """The others go on, and a new node joins by an invitation of another appointed member."""
        founder = self.found(self.lab.public_host("founder"))
        deputy = self.admit(founder, self.lab.public_host("deputy"), "--appoint")
        left = self.admit(founder, self.lab.site("campus", Nat.PORT_RESTRICTED).host("left"))
        home = self.lab.site("home", Nat.PORT_RESTRICTED)
        right = self.admit(founder, home.host("right"))
        self.assert_reach(deputy, left, right)
        self.settle(founder, deputy, left, right)
        founder.kill9()
        self.assert_reach(deputy, left, right, seconds=20)
        late = self.admit(deputy, home.host("late"))
        self.assert_reach(deputy, left, right, late)

    def test_a_restart_keeps_the_address(self) -> None:
        """After an orderly end and after a kill the node comes back as who it was, and leaves no interface meanwhile."""
        founder = self.found(self.lab.public_host("founder"))
        node = self.admit(founder, self.lab.site("home", Nat.PORT_RESTRICTED).host("node"))
        before = node.status()["self"]
        for end in (node.stop, node.kill9):
            end()
            wait_for("the end of the TAP", 5, lambda: node.address_on_tap() is None)
            node.start()
            self.assertEqual(node.wait_until_up(), before["address"])
            after = node.status()["self"]
            self.assertEqual((after["ident"], after["ipv6"]), (before["ident"], before["ipv6"]))
            self.assert_reach(founder, node, seconds=20)

    def test_the_whole_network_stops_and_starts_again(self) -> None:
        """All nodes end; started in another order they find each other, with the addresses they had."""
        founder = self.found(self.lab.public_host("founder"))
        deputy = self.admit(founder, self.lab.public_host("deputy"))
        node = self.admit(founder, self.lab.site("home", Nat.PORT_RESTRICTED).host("node"))
        addresses = [n.address for n in (node, deputy, founder)]
        for n in (founder, deputy, node):
            self.assertEqual(n.stop(), -signal.SIGTERM)  # twistd ends in good order, then by the signal that it got
            self.assertFalse(n.socket.exists())
        for n in (node, deputy, founder):
            n.start()
        self.assertEqual([n.wait_until_up(60) for n in (node, deputy, founder)], addresses)
        self.assert_reach(founder, deputy, node, seconds=20)

    def test_leave(self) -> None:
        """`ipop leave` ends the daemon, takes the interface away, and the others carry on."""
        founder = self.found(self.lab.public_host("founder"))
        node = self.admit(founder, self.lab.public_host("node"))
        self.assert_reach(founder, node)
        self.leave(node)
        self.assertIsNone(node.address_on_tap())
        self.assertFalse(node.socket.exists())
        self.assertEqual(founder.status()["self"]["name"], "founder")

    def test_leaving_by_turns(self) -> None:
        """Whoever leaves, the founder too, hands over to the other, and comes back to its address; the last one keeps all on its disk."""
        founder = self.found(self.lab.public_host("founder"))
        node = self.admit(founder, self.lab.public_host("node"))
        addresses = founder.address, node.address
        for leaver, stayer in ((node, founder), (founder, node)):
            self.leave(leaver)
            kept = stayer.status()["self"]["dht"]
            self.assertEqual((kept["shards"], kept["of"]), (32, 32))
            leaver.start()
            leaver.wait_until_up()
        self.assertEqual((founder.address, node.address), addresses)
        self.leave(node)
        self.leave(founder)
        founder.start()
        self.assertEqual(founder.wait_until_up(), addresses[0])

    def leave(self, node: LabNode) -> None:
        """Leave by command, and wait for the daemon's end."""
        node.ipop("leave", "--socket", str(node.socket))
        assert node.process is not None
        self.assertEqual(node.process.wait(15), 0)
