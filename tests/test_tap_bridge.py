"""A TAP as port of a bridge, for real: the bridge has the addresses while we run, and gets its own back afterwards."""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from twisted.trial.unittest import TestCase

from ipop_tx.errors import EnvironmentProblem
from ipop_tx.services.overlap import overlapping
from ipop_tx.services.tap import TapService
from ipop_tx.wire.address import ipv6_of
from tests.port import IDENT, NETWORK, Inbox, RealTap

IPV4, IPV6 = IPv4Address("10.128.0.5"), ipv6_of(NETWORK.prefix, IDENT)


class BridgeTests(RealTap, TestCase):
    """One bridge, br0, which is there before us."""

    def setUp(self) -> None:
        super().setUp()
        self.shown("link", "add", "br0", "type", "bridge", "forward_delay", "0")
        self.shown("link", "set", "br0", "up")

    def make(self, **changes: Any) -> TapService:
        return super().make(**{"bridge": "br0", **changes})

    def start(self) -> TapService:
        made = self.make()
        made.configure(IPV4, IPV6)
        self.namespace.call(made.start, Inbox())
        return made

    def addresses(self, interface: str) -> list[str]:
        lines = self.shown("-o", "addr", "show", "dev", interface, "scope", "global").splitlines()
        return sorted(line.split()[3] for line in lines)

    def health(self, made: TapService) -> list[str]:
        found: list[str] = self.namespace.call(made.health)
        return found

    def test_a_port_with_nothing(self) -> None:
        made = self.start()
        self.assertIn("master br0", self.shown("link", "show", "dev", self.name))
        self.assertEqual(self.addresses(self.name), [])
        self.assertEqual(self.addresses("br0"), sorted([f"{IPV4}/16", f"{IPV6}/48"]))
        self.assertIn("10.128.0.0/16 dev br0", self.shown("route"))
        self.assertEqual(self.health(made), [])
        self.namespace.call(made.configure, IPv4Address("10.128.0.6"), IPV6)
        self.assertEqual(self.addresses("br0"), sorted(["10.128.0.6/16", f"{IPV6}/48"]))

    def test_stop_leaves_the_bridge_as_it_was(self) -> None:
        self.shown("addr", "add", "192.168.7.1/24", "dev", "br0")
        made = self.start()
        self.assertEqual(len(self.addresses("br0")), 3)
        self.namespace.call(made.stop)
        self.assertEqual(self.addresses("br0"), ["192.168.7.1/24"])
        self.assertEqual([line.split()[0] for line in self.shown("route").splitlines()], ["192.168.7.0/24"])
        self.assertNotIn(self.name, self.shown("link"))
        self.assertNotIn("fe80::6061:6263:6465:6667", self.shown("addr"))

    def test_after_a_kill(self) -> None:
        """What an earlier life has left on the bridge is taken over, or taken away; it is no overlap, and other addresses stay."""
        for address in ("10.128.0.99/16", "192.168.7.1/24", "10.128.3.3/24", f"{ipv6_of(NETWORK.prefix, b'x' * 20)}/48"):
            self.shown("addr", "add", address, "dev", "br0", *(["nodad"] if ":" in address else []))
        self.assertIsNone(self.namespace.call(overlapping, IPv4Network("10.129.0.0/16"), [], "br0"))
        self.assertEqual(self.namespace.call(overlapping, NETWORK.pool, [], "br0"), "br0 uses 10.128.3.0/24")
        made = self.start()
        self.assertEqual(self.addresses("br0"), sorted(["10.128.0.5/16", "10.128.3.3/24", "192.168.7.1/24", f"{IPV6}/48"]))
        self.namespace.call(made.stop)
        self.assertEqual(self.addresses("br0"), ["10.128.3.3/24", "192.168.7.1/24"])

    def test_no_such_bridge(self) -> None:
        """Found out before anything is made."""
        self.assertProblem(EnvironmentProblem, ["br9", "no such interface", "ip link add br9 type bridge"], self.make(bridge="br9"))
        self.assertProblem(EnvironmentProblem, ["lo", "no bridge"], self.make(bridge="lo"))
        self.assertNotIn(self.name, self.shown("link"))

    def test_health(self) -> None:
        """A bridge that is down, too wide, or gone."""
        made = self.start()
        self.shown("link", "set", "br0", "down")
        self.assertEqual(self.health(made), ["the bridge br0 is down: ip link set br0 up"])
        self.shown("link", "set", "br0", "up", "mtu", "1500")
        self.assertIn("MTU of 1500, and packets of more than 1380 bytes get lost", *self.health(made))
        self.shown("link", "del", "br0")
        self.assertIn("the bridge br0 is gone", *self.health(made))
        self.namespace.call(made.stop)

    def test_frames(self) -> None:
        """Between a machine on the bridge and us, both ways, and the daemon's own addresses answer on the bridge."""
        made = self.make()
        made.configure(IPV4, IPV6)
        inbox = Inbox(b"\x88\xb5")
        inbox.port = made
        self.namespace.call(made.start, inbox)
        self.shown("link", "add", "g0", "type", "veth", "peer", "name", "g1")
        for words in (("g0", "master", "br0", "up"), ("g1", "up")):
            self.shown("link", "set", *words)
        wire = self.namespace.call(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5))
        self.addCleanup(wire.close)
        wire.bind(("g1", 0x88B5))
        wire.settimeout(10)
        guest = wire.getsockname()[4]
        made.writev((bytes(10), guest + b"\x02peer0" + b"\x88\xb5" + b"to the guest".ljust(50, b".")))
        self.assertIn(b"to the guest", wire.recv(2048))
        wire.send(b"\x02peer0" + guest + b"\x88\xb5" + b"to a peer".ljust(50, b"."))
        made.doRead()
        self.assertIn(b"to a peer", b"".join(inbox.frames))
