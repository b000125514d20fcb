"""The report of `ipop netcheck`: what it says, and that it fits; why a peer is relayed; the sockets of checks."""

from __future__ import annotations

import socket
import struct
from ipaddress import IPv4Network
from itertools import product
from random import Random
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from ipop_tx.cli.netcheck import WIDTH, lines
from ipop_tx.core import commands as c
from ipop_tx.core.links.why import why_relayed
from ipop_tx.core.natkind import Kind, NatFacts, Reach
from ipop_tx.services.netcheck import verdict
from ipop_tx.simulation.nat import Depends, Ports
from ipop_tx.transport.gateway import default_gateway
from ipop_tx.transport.sides import SideSockets
from ipop_tx.transport.udp import UdpTransport
from ipop_tx.values import Endpoint
from tests.net import separate
from tests.test_core_nat import NatCase
from tests.test_core_paths import PathCase, link_of
from tests.transport import Inbox

IP_RECVTTL = 12  # Linux; not in the socket module

KINDS = (Kind.NONE, Kind.ENDPOINT_INDEPENDENT, Kind.ADDRESS_DEPENDENT, Kind.ADDRESS_AND_PORT_DEPENDENT)
REPORT: dict[str, Any] = {
    "udp": True,
    "ipv4": True,
    "ipv6": False,
    "local": ["udp:192.168.1.10:4500"],
    "observed": [{"endpoint": "udp:198.51.100.7:40001", "peers": 3}, {"endpoint": "udp:198.51.100.7:40002", "peers": 1}],
    "mapping": "endpoint-independent",
    "mapping_sure": True,
    "filtering": "address-and-port-dependent",
    "filtering_sure": True,
    "port_kept": False,
    "sequential_step": None,
    "brittle": False,
    "opening_hops": 2,
    "hairpin": False,
    "lifetime_s": {"at_least": 25.0, "less_than": 31.0},
    "keepalive_s": 18.8,
    "helpers": 3,
    "port_mapping": {"enabled": True, "gateway": "192.168.1.1", "protocols": ["NAT-PMP", "PCP"], "endpoints": [], "problem": ""},
    "peers": [{"name": "founder", "path": "direct udp:203.0.113.10:4500", "mtu": 1472, "rtt_ms": 12.3}],
    "relays": [{"name": "founder", "rtt_ms": 12.3}],
    "verdict": "Direct paths are possible with all members.",
}


class OutputTests(TestCase):
    """Text of a report."""

    def text(self, **changes: Any) -> str:
        """The report with some values changed."""
        return "\n".join(lines({**REPORT, **changes}))

    def test_words(self) -> None:
        """Every part is there."""
        text = self.text()
        for words in (
            "UDP           works",
            "IPv4, IPv6    yes, no",
            "seen at       198.51.100.7:40001 by 3 addresses, 198.51.100.7:40002 by 1 address",
            "mapping       endpoint-independent, port changed",
            "filtering     address-and-port-dependent",
            "mapping lives between 25 and 31 s; idle links are refreshed every 18.8 s",
            "port mapping  NAT-PMP, PCP at 192.168.1.1",
            "path MTU      founder 1472",
            "relays        founder 12.3 ms",
        ):
            self.assertIn(words, text)

    def test_doubt_is_told(self) -> None:
        """What is not sure says so; what is unknown needs no doubt."""
        self.assertIn("endpoint-independent, port changed, perhaps", self.text(mapping_sure=False))
        self.assertIn("address-and-port-dependent, perhaps", self.text(filtering_sure=False))
        self.assertIn("filtering     unknown\n", self.text(filtering="unknown", filtering_sure=False))
        self.assertIn("address-and-port-dependent; what comes in unasked takes", self.text(brittle=True))
        self.assertIn("ports in order (step 1)", self.text(mapping="address-and-port-dependent", sequential_step=1))

    def test_width(self) -> None:
        """However much there is to say, no line has more than 80 columns."""
        rng = Random(1)
        many = [{"name": "n" * rng.randrange(1, 63), "mtu": 9000, "rtt_ms": 1234.5} for _ in range(50)]
        seen = [{"endpoint": f"udp:[2001:db8:1234:5678:9abc:def0:1234:{n:x}]:40000", "peers": n} for n in range(50)]
        mapping = {
            "enabled": True,
            "gateway": "192.168.1.1",
            "protocols": [],
            "endpoints": [one["endpoint"] for one in seen],
            "problem": "x " * 99,
        }
        for text in (
            self.text(
                peers=many, relays=many, observed=seen, port_mapping=mapping, verdict="word " * 60, local=[one["endpoint"] for one in seen]
            ),
            self.text(peers=[], relays=[], observed=[], local=[], udp=False, port_mapping={**mapping, "gateway": None}),
            self.text(port_mapping={**mapping, "enabled": False}, lifetime_s={"at_least": None, "less_than": None}, hairpin=None),
        ):
            self.assertLessEqual(max(map(len, text.splitlines())), WIDTH, text)


class VerdictTests(TestCase):
    """One sentence on what it means."""

    def test_each_is_one_sentence(self) -> None:
        """For every pair of kinds, and without UDP."""
        for mapping, filtering, sure in product(KINDS, KINDS[1:], (True, False)):
            facts = NatFacts(Reach(mapping, filtering), sure, sure, helpers=3)
            for udp, mapped in product((True, False), (True, False)):
                said = verdict(facts, udp=udp, blocked=not udp, mapped=mapped)
                self.assertRegex(said, r"^[^.]+\.$")
                self.assertEqual("to be sure" in said, udp and not mapped and not sure)

    def test_meaning(self) -> None:
        """The sentences fit the kinds."""
        for reach, words in (
            (Reach(Kind.NONE, Kind.ENDPOINT_INDEPENDENT), "every member"),
            (Reach(Kind.ENDPOINT_INDEPENDENT, Kind.ENDPOINT_INDEPENDENT), "every member"),
            (Reach(Kind.ENDPOINT_INDEPENDENT, Kind.ADDRESS_DEPENDENT), "every member"),
            (Reach(Kind.ENDPOINT_INDEPENDENT, Kind.ADDRESS_AND_PORT_DEPENDENT), "every member"),
            (Reach(Kind.ADDRESS_AND_PORT_DEPENDENT, Kind.ENDPOINT_INDEPENDENT), "all members but"),
            (Reach(Kind.ADDRESS_AND_PORT_DEPENDENT, Kind.ADDRESS_AND_PORT_DEPENDENT), "whose mapping does not depend"),
        ):
            self.assertIn(words, verdict(NatFacts(reach, True, True, helpers=3), udp=True, blocked=False, mapped=False), reach)
        self.assertIn("blocked here", verdict(NatFacts(), udp=False, blocked=True, mapped=False))
        self.assertIn("other transports", verdict(NatFacts(), udp=False, blocked=True, mapped=False, otherwise=True))
        self.assertIn("No other member", verdict(NatFacts(), udp=False, blocked=False, mapped=False))


class WhyTests(PathCase):
    """Why a link is relayed."""

    def test_reasons(self) -> None:
        """From what has been tried, and what is known of both ends."""
        self.assertIsNone(why_relayed(link_of(self.one, self.other), self.one.running.paths, self.sim.now))
        separate(self.sim, [(self.one, self.other)])
        self.becomes(self.sim, lambda: not link_of(self.one, self.other).is_direct, 60, "the ring instead")
        link, paths = link_of(self.one, self.other), self.one.running.paths

        def why() -> str:
            return why_relayed(link, paths, self.sim.now) or ""

        paths.tried.clear()
        self.assertIn("has not told its endpoints", why())
        self.sim.run(75)
        self.sim.run(10)
        self.assertRegex(
            why(), r"^(no answer to challenges yet \(1 endpoint tried \d+ s ago\); the NAT at the peer and here is not|challenges are)"
        )
        paths.tried[link.ident] = self.sim.now, 2
        self.assertEqual(why(), "challenges are under way to 2 endpoints")
        paths.tried[link.ident] = self.sim.now, 0
        self.assertIn("no endpoint that this node can send to", why())
        strict = Reach(Kind.ADDRESS_AND_PORT_DEPENDENT, Kind.ADDRESS_AND_PORT_DEPENDENT)
        paths.facts.reach = paths.reaches[link.ident] = strict
        self.assertEqual(why(), "both behind address-and-port-dependent mappings")
        paths.reaches[link.ident] = Reach(Kind.BLOCKED, Kind.BLOCKED)
        self.assertEqual(why(), "UDP is blocked at the peer")


class ToldTests(NatCase):
    """What one end finds out the other end of a relayed link hears."""

    def test_peers_learn_of_each_other(self) -> None:
        """Two behind symmetric NATs: once both have checked, both know why they are relayed."""
        net, one, _ = self.grown(mapping=Depends.ENDPOINT, filtering=Depends.ENDPOINT, ports=Ports.RANDOM)
        other = net.add()
        net.behind(other, Depends.ENDPOINT, Depends.ENDPOINT, Ports.RANDOM)
        net.wait(other.start(next(machine for machine in net.running() if machine is not one)))
        net.run(20)
        net.wait(one.submit(c.Connect(other.ident)))
        self.check(net, one)
        self.check(net, other)
        net.run(3)
        for machine, peer in ((one, other), (other, one)):
            why = why_relayed(link_of(machine, peer), machine.running.paths, net.now)
            self.assertEqual(why, "both behind address-and-port-dependent mappings")


class SideTests(TestCase):
    """The sockets of checks, on loopback."""

    async def test_back_and_forth(self) -> None:
        """Two of them talk, whichever family they are bound to; what cannot be sent is lost without a word; closed they are silent."""
        got: list[tuple[int, Endpoint, bytes]] = []
        came: Deferred[None] = Deferred()

        def received(number: int, endpoint: Endpoint, datagram: bytes) -> None:
            got.append((number, endpoint, datagram))
            if len(got) == 2:
                came.callback(None)

        host = "0.0.0.0"
        sides = SideSockets(reactor, lambda: host, received)
        self.addCleanup(sides.close_all)
        four = sides.open(1)
        host = "::"
        six = sides.open(2)
        sides.send(1, Endpoint("udp", "127.0.0.1", six), b"one")
        sides.send(2, Endpoint("udp", "127.0.0.1", four), b"two")
        for number, endpoint in ((1, Endpoint("udp", "::1", 9)), (1, Endpoint("udp", "x.onion", 9)), (3, Endpoint("udp", "127.0.0.1", 9))):
            sides.send(number, endpoint, b"nowhere")
        sides.send(1, Endpoint("udp", "127.0.0.1", six), bytes(70000))
        await came.addTimeout(5, reactor)
        self.assertEqual(sorted(got), [(1, Endpoint("udp", "127.0.0.1", six), b"two"), (2, Endpoint("udp", "127.0.0.1", four), b"one")])
        sides.close(1)
        sides.close(1)
        sides.send(1, Endpoint("udp", "127.0.0.1", six), b"closed")
        await deferLater(reactor, 0.05, lambda: None)  # type: ignore[arg-type]
        self.assertEqual(len(got), 2)

    def test_near(self) -> None:
        """A datagram that shall not get far leaves with so small a hop limit, over either version of IP, by a side as by the transport."""
        for bound, target, name, level, option in (
            ("0.0.0.0", "127.0.0.1", "127.0.0.1", socket.IPPROTO_IP, IP_RECVTTL),
            ("::", "127.0.0.1", "127.0.0.1", socket.IPPROTO_IP, IP_RECVTTL),
            ("::", "::1", "::1", socket.IPPROTO_IPV6, socket.IPV6_RECVHOPLIMIT),
        ):
            with socket.socket(socket.AF_INET6 if ":" in target else socket.AF_INET, socket.SOCK_DGRAM) as there:
                there.bind((target, 0))
                there.settimeout(5)
                there.setsockopt(level, option, 1)
                endpoint = Endpoint("udp", name, there.getsockname()[1])
                sides = SideSockets(reactor, lambda bound=bound: bound, lambda *got: None)  # type: ignore[misc]
                self.addCleanup(sides.close_all)
                sides.open(1)
                transport = UdpTransport(reactor, bound, 0)
                transport.start(Inbox())
                self.addCleanup(transport.stop)
                for carrier, hops in ((sides.carrier(1), 2), (transport, 3)):
                    carrier.write_near(endpoint, b"near", hops)
                    got = there.recvmsg(16, 64)
                    self.assertEqual((got[0], struct.unpack("i", got[1][0][2])), (b"near", (hops,)))

    def test_default_gateway(self) -> None:
        """Whatever this machine has, the answer is a gateway beside an address of ours, or none."""
        found = default_gateway()
        self.assertTrue(found is None or (found.interface and found.client != found.address))
        self.assertIsNone(default_gateway([found.interface]) if found else None)
        self.assertIsNone(default_gateway((), IPv4Network("0.0.0.0/0")))
