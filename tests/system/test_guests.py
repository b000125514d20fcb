"""Machines with the DHCP clients of Debian behind real nodes: they get, renew, release, and reach the others."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

from ipop_tx.lab import Host, Nat, netns, wait_for
from ipop_tx.lab.guest import Guest, add_bridge
from ipop_tx.lab.node import LabNode, environment
from ipop_tx.lab.traffic import fetch
from tests.system import why_not
from tests.system.case import LabTestCase

POOL = IPv4Network("10.128.0.0/16")
ROGUES = IPv4Network("10.128.66.0/24")
ROGUE = Path(__file__).with_name("rogue.py")


class GuestCase(LabTestCase):
    """A founder in the open, nodes with a bridge elsewhere."""

    skip = why_not("udhcpc", "dhclient")

    def bridged(self, founder: LabNode, host: Host, guests: int = 5, **dhcp: Any) -> LabNode:
        """A node with a bridge, and room for guests."""
        add_bridge(host)
        node = LabNode(host)
        node.keys["tap"]["bridge"] = "br0"
        node.keys["dhcp"] = {"guests": guests, **dhcp}
        node.enter(founder)
        return node

    def guests_of(self, node: LabNode) -> dict[str, dict[str, Any]]:
        """By address."""
        return {str(row["address"]): row for row in node.status()["guests"]}

    def bound(self, guest: Guest, after: int = 0) -> str:
        """Wait until the guest has an address; gives it."""
        return guest.wait_for_event("bound", "BOUND", "REBOOT", after=after)[1]


class ClientTests(GuestCase):
    """One node with guests, behind a NAT."""

    def setUp(self) -> None:
        super().setUp()
        self.founder = self.found(self.lab.public_host("founder"))
        self.home = self.lab.site("home", Nat.PORT_RESTRICTED).host("home")

    def test_udhcpc(self) -> None:
        """Get, reach a member far away and be reached, renew, release; the same address again."""
        node = self.bridged(self.founder, self.home, hours=0.02, dns=["10.128.0.9"], domain="lab.example")
        guest = Guest(self.home, "box")
        guest.udhcpc("-x", "hostname:box")
        event = guest.wait_for_event("bound")
        address, mtu = event[1], str(node.status()["self"]["mtu"])
        self.assertIn(IPv4Address(address), POOL)
        self.assertEqual(event[2:], [mtu, "-", "10.128.0.9", "lab.example"])
        row = self.guests_of(node)[address]
        self.assertEqual((row["state"], row["name"], row["mac"]), ("bound", "box", "02:62:6f:78:5f:5f"))
        self.assertTrue(guest.reaches(self.founder.address), "guest -> member")
        self.assertTrue(self.founder.reaches(address), "member -> guest")
        self.assertTrue(guest.reaches(node.address), "guest -> its node")
        self.assertTrue(node.reaches(address), "its node -> guest")
        guest.run(["ping", "-n", "-c3", "-i0.2", "-W5", "-M", "do", "-s", str(int(mtu) - 28), self.founder.address])
        self.assertEqual(self.founder.ipop("ping", "box", "-c", "1", "--socket", str(self.founder.socket))[0], 0, "by its name")
        self.assert_reach(self.founder, node)
        self.assertTrue(fetch(guest, self.founder, address, megabytes=16).good, "a file from the guest")
        self.assertTrue(fetch(self.founder, guest, self.founder.address, megabytes=16).good, "a file to the guest")
        time.sleep(5)  # more than a sixteenth of its time, so that it is given more
        before = self.guests_of(node)[address]["expires_s"]
        count = len(guest.events())
        guest.send(signal.SIGUSR1)
        self.assertEqual(guest.wait_for_event("renew", "bound", after=count, seconds=5)[:2], ["renew", address])
        self.assertGreater(self.guests_of(node)[address]["expires_s"], before)
        guest.send(signal.SIGUSR2)
        wait_for("the end of the lease", 10, lambda: not self.guests_of(node), 0.1)
        self.assertFalse(self.founder.reaches(address, 2))
        count = len(guest.events())
        guest.send(signal.SIGUSR1)
        self.assertEqual(self.bound(guest, count), address)
        self.assertTrue(self.founder.reaches(address))
        self.assertEqual(node.status()["health"], [])

    def test_dhclient_and_a_second_guest(self) -> None:
        """ISC's client too, which renews by itself at half of its time; two guests of one node and a member reach each other."""
        node = self.bridged(self.founder, self.home, hours=0.01)
        one, other = Guest(self.home, "one"), Guest(self.home, "other")
        one.dhclient()
        other.udhcpc()
        first, second = self.bound(one), self.bound(other)
        self.assertNotEqual(first, second)
        for guest, targets in ((one, (second, self.founder.address)), (other, (first, self.founder.address))):
            for target in targets:
                self.assertTrue(guest.reaches(target), f"{guest.name} -> {target}")
        for target in (first, second):
            self.assertTrue(self.founder.reaches(target), f"founder -> {target}")
        self.assertEqual({row["name"] for row in self.guests_of(node).values()}, {"one", None})
        self.assertEqual(one.wait_for_event("RENEW", "REBIND", seconds=40)[:2], ["RENEW", first])
        self.assertEqual(other.wait_for_event("renew", seconds=40)[1], second)
        one.dhclient_release()
        wait_for("the end of one lease", 10, lambda: list(self.guests_of(node)) == [second], 0.1)

    def test_a_kill_of_the_daemon(self) -> None:
        """The guest notices nothing but silence: its address answers again soon, and is renewed as if nothing had been."""
        node = self.bridged(self.founder, self.home)
        guest = Guest(self.home, "box")
        guest.udhcpc()
        address = self.bound(guest)
        self.assertTrue(self.founder.reaches(address))
        for _ in range(3):
            node.kill9()
            node.start()
            self.assertTrue(self.founder.reaches(address, 10), "10 s after the start")
            self.assertTrue(guest.reaches(self.founder.address, 10))
            self.assertEqual(list(self.guests_of(node)), [address])
            count = len(guest.events())
            guest.send(signal.SIGUSR1)
            self.assertEqual(guest.wait_for_event("renew", "bound", after=count)[:2], ["renew", address])
        again = self.home.run(["ip", "-o", "-4", "addr", "show", "dev", "br0"]).stdout
        self.assertEqual(again.count("inet "), 1, again)
        node.stop()
        self.assertNotIn("inet ", self.home.run(["ip", "-o", "-4", "addr", "show", "dev", "br0"]).stdout)

    def test_no_room(self) -> None:
        """One more than there are places: the others stay, and the log and the health say it."""
        node = self.bridged(self.founder, self.home, guests=1)
        one, other = Guest(self.home, "one"), Guest(self.home, "other")
        one.udhcpc()
        address = self.bound(one)
        other.udhcpc()
        wait_for("a word about it", 10, lambda: any("raise dhcp.guests" in line for line in node.status()["health"]), 0.1)
        assert node.process is not None
        self.assertIn("guests_full guests=1", node.process.output)
        one.send(signal.SIGUSR2)
        wait_for("the end of the lease", 10, lambda: address not in self.guests_of(node), 0.1)
        self.bound(other)

    def test_no_majority(self) -> None:
        """A network of two whose other node is away: the guest renews, a new one waits, and is served once the other is back."""
        node = self.bridged(self.founder, self.home, hours=0.02)
        one, other = Guest(self.home, "one"), Guest(self.home, "other")
        one.udhcpc()
        address = self.bound(one)
        self.settle(self.founder, node)
        self.founder.kill9()
        other.udhcpc()
        wait_for("a word about it", 30, lambda: any("guest 02:6f:74" in line for line in node.status()["health"]), 0.1)
        assert node.process is not None
        self.assertIn("guest_waits mac=02:6f:74", node.process.output)
        self.assertRegex(" ".join(node.status()["health"]), r"guest 02:6f:74\S+: no address yet: ")
        before = self.guests_of(node)[address]["expires_s"]
        count = len(one.events())
        one.send(signal.SIGUSR1)
        self.assertEqual(one.wait_for_event("renew", "bound", after=count)[:2], ["renew", address])
        self.assertGreater(self.guests_of(node)[address]["expires_s"], before)
        self.assertEqual([event for event in other.events() if event[0] == "bound"], [])
        self.founder.start()
        self.bound(other)
        self.assertTrue(self.founder.reaches(address, 30))

    def test_a_squatter(self) -> None:
        """A machine on the bridge that uses an address without asking: the client that is given it declines, and gets another."""
        node = self.bridged(self.founder, self.home)
        squatter, guest = Guest(self.home, "squat"), Guest(self.home, "box")
        netns.configure(squatter.namespace, "addr add 10.128.5.5/16 dev eth0")
        guest.udhcpc("-a", "-r", "10.128.5.5")
        self.assertNotEqual(self.bound(guest), "10.128.5.5")
        assert node.process is not None
        self.assertIn("guest_declined address=10.128.5.5", node.process.output)
        self.assertFalse(squatter.reaches(self.founder.address, 3), "what is not leased goes nowhere")

    def test_refused_bridge(self) -> None:
        """A bridge that is not there, and one that is none."""
        node = LabNode(self.home)
        node.join(self.founder.invite(node.name))
        for bridge, words in (("br9", ("br9", "no such interface", "ip link add br9 type bridge")), ("eth0", ("eth0", "no bridge"))):
            node.keys["tap"]["bridge"] = bridge
            self.assert_refused(node.refuse(), *words)

    def test_a_tap_elsewhere_and_macvlan(self) -> None:
        """A TAP that is moved into a namespace gets the node's address back there by DHCP; macvlan guests on a TAP need no bridge."""
        node = LabNode(self.home)
        node.join(self.founder.invite(node.name))
        node.keys["dhcp"] = {"guests": 1}
        node.start()
        address = node.wait_until_up()
        inside = Guest(self.home, "inside", plugged=False)
        netns.configure(self.home.namespace, f"link add macvlan0 link ipop0 netns {inside.namespace} type macvlan mode bridge")
        inside.udhcpc(interface="macvlan0")
        self.assertNotEqual(self.bound(inside), address)
        self.assertTrue(inside.reaches(self.founder.address))
        assert inside.client is not None
        inside.client.stop()
        netns.configure(inside.namespace, "link del macvlan0")
        netns.configure(self.home.namespace, f"link set ipop0 netns {inside.namespace}")
        count = len(inside.events())
        inside.udhcpc(interface="ipop0")
        self.assertEqual(self.bound(inside, count), address)
        self.assertTrue(inside.reaches(self.founder.address))
        self.assertTrue(self.founder.reaches(address))


class MovingTests(GuestCase):
    """Two nodes with bridges, and a machine that goes from one to the other."""

    def at_home(self) -> tuple[LabNode, LabNode, LabNode, Guest, str]:
        """A member, the nodes `left` and `right`, a guest of `left`, and its address."""
        founder = self.found(self.lab.public_host("founder"))
        left, right = (self.bridged(founder, self.lab.public_host(name)) for name in ("left", "right"))
        guest = Guest(left.host, "box")
        guest.udhcpc("-x", "hostname:box")
        return founder, left, right, guest, self.bound(guest)

    def moves(self, guest: Guest, host: Host, address: str) -> None:
        """It goes there, asks again, and is given the same address."""
        guest.move_to(host)
        count = len(guest.events())
        guest.send(signal.SIGUSR1)
        self.assertEqual(guest.wait_for_event("renew", "bound", after=count)[1], address)

    def test_a_guest_moves(self) -> None:
        """It keeps its address, and the member that knew it finds it again; the node where it was gives it up as soon as it is asked."""
        founder, left, right, guest, address = self.at_home()
        self.assertTrue(founder.reaches(address))
        self.moves(guest, right.host, address)
        self.assertEqual((list(self.guests_of(left)), list(self.guests_of(right))), ([], [address]))
        # A member believes for a minute what it has read of a lease.
        self.assertTrue(guest.reaches(founder.address, 90), "guest -> member")
        self.assertTrue(founder.reaches(address, 90), "member -> guest")

    def test_its_connections_go_along(self) -> None:
        """A file that it fetches from a member arrives whole, by the one connection that was open when it moved."""
        founder, _, right, guest, address = self.at_home()
        source, copy = founder.host.directory / "file", guest.host.directory / "copy"
        source.write_bytes(os.urandom(8 << 20))
        serve = [sys.executable, "-m", "ipop_tx.lab.fileserver", founder.address, "8080", str(source)]
        founder.host.start(serve, "fileserver.log", environment())
        fetch = ["curl", "-sS", "--limit-rate", "1M", "--retry", "0", "-o", str(copy), f"http://{founder.address}:8080/file"]
        wait_for("the server", 20, lambda: listens(founder.host, founder.address, 8080), 0.1)
        curl = guest.start(fetch, "curl.log")
        wait_for("a part of it", 30, lambda: copy.exists() and copy.stat().st_size > 2 << 20, 0.05)
        self.moves(guest, right.host, address)
        self.assertEqual(curl.wait(150), 0, curl.output)
        self.assertEqual(copy.read_bytes(), source.read_bytes())

    def test_a_guest_that_is_here_is_not_taken(self) -> None:
        """Another machine with the same identifier elsewhere gets another address, as long as the first answers."""
        founder = self.found(self.lab.public_host("founder"))
        left, right = (self.bridged(founder, self.lab.public_host(name)) for name in ("left", "right"))
        first, second = Guest(left.host, "first"), Guest(right.host, "second")
        first.udhcpc("-x", "0x3d:00aabbccdd")
        address = self.bound(first)
        second.udhcpc("-x", "0x3d:00aabbccdd", "-r", address)
        self.assertNotEqual(self.bound(second), address)
        self.assertEqual(list(self.guests_of(left)), [address])


def listens(host: Host, address: str, port: int) -> bool:
    """Whether somebody takes TCP connections there."""
    with host.socket(socket.SOCK_STREAM) as trial:
        trial.settimeout(2)
        return trial.connect_ex((address, port)) == 0


class RogueTests(GuestCase):
    """A DHCP server of a guest, on the bridge of one node; clients there and elsewhere."""

    def test_a_rogue_server(self) -> None:
        """It serves its own bridge, which nobody can prevent, and nobody beyond, however it sends."""
        founder = self.found(self.lab.public_host("founder"))
        left, right = (self.bridged(founder, self.lab.public_host(name), guests=2) for name in ("left", "right"))
        wicked, far, near = Guest(left.host, "wicked"), Guest(right.host, "far"), Guest(left.host, "near")
        wicked.udhcpc()
        ours = self.bound(wicked)
        far.udhcpc()
        target = self.bound(far)
        self.assertTrue(wicked.reaches(target), "so what it sends could arrive")
        rogue = wicked.start([sys.executable, str(ROGUE), "eth0", ours, target, right.address], "rogue.log", environment())
        wait_for("the rogue", 10, lambda: "ready" in rogue.output)
        left.stop()
        left.keys["dhcp"]["guests"] = 0
        left.start()
        left.wait_until_up()
        near.udhcpc()
        self.assertIn(IPv4Address(self.bound(near)), ROGUES, "the rogue works")
        wait_for("frames of it at our TAP", 10, lambda: left.status()["counters"].get("out_dhcp_server", 0) > 2, 0.1)
        assert far.client is not None
        far.client.stop()
        right.stop()
        right.keys["dhcp"]["guests"] = 0
        right.start()
        right.wait_until_up()
        count, answered = len(far.events()), rogue.output.count("answered")
        far.udhcpc()
        time.sleep(8)
        self.assertEqual([event for event in far.events()[count:] if event[0] == "bound"], [], "nobody serves it now")
        self.assertEqual(rogue.output.count("answered"), answered, "and the rogue has not even heard of it")
