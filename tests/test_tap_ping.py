"""Real programs over real TAPs: two kernels, in two namespaces, joined by two forwarding planes and nothing else."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.utils import getProcessOutputAndValue
from twisted.trial.unittest import TestCase

from ipop_tx.forwarding.fib import PACKED_HEAD, Fib
from ipop_tx.forwarding.plane import ForwardingPlane
from ipop_tx.services.tap import TapService
from ipop_tx.transport.memory import MemoryNet
from ipop_tx.values import Ident
from ipop_tx.wire.address import ipv6_of, mac_of
from ipop_tx.wire.datagram import OVERHEAD
from tests.namespace import Namespace, why_no_namespaces
from tests.plane import NETWORK, Sink, TableControl, clear_pair

MTU = 1400


class End:
    """One node: namespace, TAP, plane, transport."""

    def __init__(self, net: MemoryNet, control: TableControl, ident: Ident, ipv4: IPv4Address) -> None:
        self.ident, self.ipv4, self.ipv6 = ident, ipv4, ipv6_of(NETWORK.prefix, ident)
        self.namespace = Namespace()
        self.tap = TapService(reactor, "tapt0", MTU, NETWORK, ident)
        self.transport = net.transport(f"192.0.2.{ipv4.packed[3]}", 4500)
        self.fib = Fib(ident, NETWORK.prefix)
        clock = reactor.seconds  # type: ignore[attr-defined]
        self.plane = ForwardingPlane(ident, self.fib, self.tap, self.transport, control, clock, Sink())

    def start(self) -> None:
        self.tap.configure(self.ipv4, self.ipv6)
        self.plane.configure(self.ipv4)
        self.transport.start(self.plane)
        self.namespace.call(self.tap.start, self.plane)

    def stop(self) -> None:
        self.tap.stop()
        self.transport.stop()
        self.namespace.remove()


class PingTests(TestCase):
    """ping, which knows nothing of us."""

    timeout = 60

    def setUp(self) -> None:
        reason = why_no_namespaces()
        if reason is not None:
            self.skipTest(reason)
        net, self.control = MemoryNet(reactor), TableControl()
        self.a, self.b = (End(net, self.control, bytes((n,)) * 20, IPv4Address(f"10.128.0.{n}")) for n in (1, 2))
        sessions = clear_pair(0x80000001, 0x80000002)
        for one, other, session in ((self.a, self.b, sessions[0]), (self.b, self.a, sessions[1])):
            self.addCleanup(one.stop)
            one.start()
            self.control.owners.update({one.ipv4: one.ident, one.ipv6: one.ident})
            one.fib.update(other.ident, [session], other.transport._wanted, mtu=MTU + OVERHEAD + PACKED_HEAD)

    async def run_in(self, end: End, *words: str) -> tuple[str, int]:
        executable, *arguments = end.namespace.command(*words)
        done: Deferred[Any] = getProcessOutputAndValue(f"/usr/sbin/{executable}", arguments, {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"})
        out, error, status = await done
        return (out + error).decode(), status

    async def assertPing(self, end: End, *words: str) -> None:
        text, status = await self.run_in(end, "ping", "-n", "-W2", *words)
        self.assertEqual(status, 0, text)
        self.assertIn(" 0% packet loss", text)

    async def test_ipv4(self) -> None:
        await self.assertPing(self.a, "-c3", "-i0.05", str(self.b.ipv4))
        await self.assertPing(self.b, "-c3", "-i0.05", str(self.a.ipv4))
        self.assertEqual(self.a.fib.by_ident[self.b.ident].tx_frames, 6)
        self.assertEqual(sum(self.a.plane.dropped.values()), self.a.plane.dropped["out_multicast"])

    async def test_ipv6(self) -> None:
        await self.assertPing(self.a, "-c3", "-i0.05", str(self.b.ipv6))
        await self.assertPing(self.b, "-c3", "-i0.05", str(self.a.ipv6))
        self.assertEqual([call for call in self.control.calls if call[0] != "resolve"], [])

    async def test_ttl_is_untouched_and_mtu_is_full(self) -> None:
        await self.assertPing(self.a, "-c1", "-t1", "-Mdo", f"-s{MTU - 28}", str(self.b.ipv4))
        await self.assertPing(self.a, "-c1", "-t1", "-Mdo", f"-s{MTU - 48}", str(self.b.ipv6))
        await self.assertPing(self.a, "-c2", "-i0.05", "-s5000", str(self.b.ipv4))
        await self.assertPing(self.a, "-c2", "-i0.05", "-s5000", str(self.b.ipv6))

    async def test_neighbours_stay_fresh(self) -> None:
        """The kernel's unicast probes of a known neighbour are answered here as well, both for ARP and for discovery."""
        for address in (str(self.b.ipv4), str(self.b.ipv6)):
            await self.assertPing(self.a, "-c1", address)
            self.a.namespace.run("ip", "neigh", "change", address, "dev", "tapt0", "nud", "probe")
            await self.assertPing(self.a, "-c5", "-i0.3", address)
            entry = self.a.namespace.run("ip", "neigh", "show", address)
            self.assertIn("REACHABLE", entry)
            self.assertIn(mac_of(self.b.ident).hex(":"), entry)
        self.assertEqual(self.b.plane.dropped["in_neighbour"] + self.b.plane.dropped["in_ethertype"], 0)

    async def test_nobody_there(self) -> None:
        self.a.namespace.run("sysctl", "-qw", "net.ipv4.neigh.tapt0.retrans_time_ms=50")
        text, status = await self.run_in(self.a, "ping", "-n", "-c1", "-W5", "10.128.9.9")
        self.assertEqual(status, 1)
        self.assertIn("Unreachable", text)
        self.assertIn(("resolve", IPv4Address("10.128.9.9")), self.control.calls)

    async def test_a_stolen_address_is_not_delivered(self) -> None:
        await self.assertPing(self.a, "-c1", str(self.b.ipv4))
        self.a.namespace.run("ip", "addr", "add", "10.128.0.77/16", "dev", "tapt0")
        self.control.owners[IPv4Address("10.128.0.77")] = bytes((9,)) * 20
        _, status = await self.run_in(self.a, "ping", "-n", "-c1", "-W1", "-I10.128.0.77", str(self.b.ipv4))
        self.assertEqual(status, 1)
        self.assertEqual(self.b.plane.dropped["in_source_address"], 1)

    def test_the_peer_is_where_it_should_be(self) -> None:
        self.assertEqual(self.a.ipv6, IPv6Address("fd12:3456:789a:101:101:101:101:101"))
