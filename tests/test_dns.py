"""Names: the zone, the server over real sockets, and our lines in resolv.conf."""

from __future__ import annotations

import os
import socket
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.names import client, dns
from twisted.names.error import DNSNameError, DNSQueryRefusedError, DNSServerError
from twisted.trial.unittest import SynchronousTestCase, TestCase

from ipop_tx.config.sections import DnsSection
from ipop_tx.core.leases.resolver import Owner
from ipop_tx.errors import PermissionProblem, Unavailable
from ipop_tx.services.dns import AGAIN, SOON, DNSService
from ipop_tx.services.dnszone import PATIENCE, Zone, address_of, reverse_zones
from ipop_tx.services.resolvconf import ResolvConf, is_in, servers_of, with_ours, without_ours
from ipop_tx.values import Network
from ipop_tx.wire.address import ipv6_of

NETWORK = Network("home", b"n" * 20, IPv4Network("10.128.0.0/16"), IPv6Network("fd12:3456:789a::/48"), 32)
ONE, TWO, LIAR = (bytes([digit]) * 20 for digit in (1, 2, 3))
OWNERS = {
    "two": Owner(TWO, "two", IPv4Address("10.128.0.2").packed),
    "10.128.0.2": Owner(TWO, "two", IPv4Address("10.128.0.2").packed),
    str(ipv6_of(NETWORK.prefix, TWO)): Owner(TWO, "two", b""),
    "liar": Owner(LIAR, "liar", IPv4Address("10.128.0.2").packed),
    "young": Owner(LIAR, "young", b""),
}


def resolve(target: str) -> Deferred[Any]:
    """What the core would say."""
    if target == "away":
        return fail(Unavailable(1, 2, 3))
    return Deferred() if target == "slow" else succeed(OWNERS.get(target))


def own() -> tuple[str, IPv4Address | None, bytes]:
    """This node."""
    return "one", IPv4Address("10.128.0.1"), ONE


class ZoneTests(SynchronousTestCase):
    """Answers without sockets."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.zone = Zone(NETWORK, resolve, own, self.clock)

    def ask(self, name: str, kind: int = dns.A) -> list[str]:
        """The answers as text; an apex alone stands for an authority that says that there is none."""
        answers, authority, _ = self.successResultOf(self.zone.query(dns.Query(name.encode(), kind)))
        self.assertTrue(all(record.isAuthoritative() for record in answers + authority))
        return [value_of(record.payload) for record in answers] or [str(record.name) for record in authority]

    def test_names(self) -> None:
        for name, kind, expected in [
            ("two.home.ipop", dns.A, ["10.128.0.2"]),
            ("TWO.Home.ipop", dns.A, ["10.128.0.2"]),
            ("two.home.ipop", dns.AAAA, [str(ipv6_of(NETWORK.prefix, TWO))]),
            ("one.home.ipop", dns.A, ["10.128.0.1"]),
            ("one.home.ipop", dns.AAAA, [str(ipv6_of(NETWORK.prefix, ONE))]),
            ("two.home.ipop", dns.MX, ["home.ipop"]),
            ("young.home.ipop", dns.A, ["home.ipop"]),
            ("liar.home.ipop", dns.A, ["home.ipop"]),  # 10.128.0.2 is leased to another
            ("liar.home.ipop", dns.AAAA, [str(ipv6_of(NETWORK.prefix, LIAR))]),
            ("home.ipop", dns.NS, ["one.home.ipop"]),
            ("home.ipop", dns.A, ["home.ipop"]),
        ]:
            self.assertEqual(self.ask(name, kind), expected, f"{name} {kind}")

    def test_the_way_back(self) -> None:
        for address, expected in [
            (IPv4Address("10.128.0.2"), "two.home.ipop"),
            (IPv4Address("10.128.0.1"), "one.home.ipop"),
            (ipv6_of(NETWORK.prefix, TWO), "two.home.ipop"),
            (ipv6_of(NETWORK.prefix, ONE), "one.home.ipop"),
        ]:
            self.assertEqual(self.ask(address.reverse_pointer, dns.PTR), [expected])
        self.assertEqual(self.ask("0.128.10.in-addr.arpa", dns.PTR), ["128.10.in-addr.arpa"])

    def test_not_there(self) -> None:
        for name in ("three.home.ipop", "a.two.home.ipop", "3.0.128.10.in-addr.arpa"):
            self.failureResultOf(self.zone.query(dns.Query(name.encode(), dns.A)), dns.AuthoritativeDomainError)

    def test_not_ours(self) -> None:
        for name in ("example.org", "two.lab.ipop", "xhome.ipop", "1.1.0.10.in-addr.arpa", "ipop", ""):
            self.failureResultOf(self.zone.query(dns.Query(name.encode(), dns.A)), dns.DomainError)

    def test_nobody_answers(self) -> None:
        self.failureResultOf(self.zone.query(dns.Query(b"away.home.ipop", dns.A)), Unavailable)
        slow = self.zone.query(dns.Query(b"slow.home.ipop", dns.A))
        self.clock.advance(PATIENCE)
        self.assertIn("4 s", self.failureResultOf(slow).getErrorMessage())

    def test_reverse_zones(self) -> None:
        for pool, expected in [
            ("10.0.0.0/8", ["10.in-addr.arpa"]),
            ("10.128.0.0/15", ["128.10.in-addr.arpa", "129.10.in-addr.arpa"]),
            ("192.168.7.0/24", ["7.168.192.in-addr.arpa"]),
        ]:
            network = Network("home", b"n" * 20, IPv4Network(pool), NETWORK.prefix, 32)
            self.assertEqual([*reverse_zones(network)], [*expected, "a.9.8.7.6.5.4.3.2.1.d.f.ip6.arpa"])

    @given(st.ip_addresses())
    def test_pointers(self, address: IPv4Address | IPv6Address) -> None:
        self.assertEqual(address_of(address.reverse_pointer), address)

    @given(st.text("0123456789abcdefx.-").map(lambda text: text + ".arpa"))
    def test_no_pointers(self, name: str) -> None:
        """Anything is an address or none."""
        self.assertIsNone(address_of(name))
        address_of(name.replace("arpa", "in-addr.arpa")), address_of(name.replace("arpa", "ip6.arpa"))


def value_of(payload: Any) -> str:
    """What a record says."""
    if isinstance(payload, (dns.Record_A, dns.Record_AAAA)):
        family = socket.AF_INET if isinstance(payload, dns.Record_A) else socket.AF_INET6
        return socket.inet_ntop(family, payload.address)
    return str(payload.name)


class ServiceTests(TestCase):
    """Real sockets on loopback."""

    def service(self, section: DnsSection) -> DNSService:
        """A running one, stopped at the end."""
        service = DNSService(reactor, section, NETWORK, "ipop0", resolve, own)
        service.startService()
        self.addCleanup(service.stopService)
        return service

    def file(self, text: str = "") -> Path:
        """A resolv.conf."""
        path = Path(self.mktemp())
        path.write_text(text)
        return path

    async def refused(self, resolver: client.Resolver, name: str, error: type[Exception]) -> None:
        """A question that fails so."""
        await self.assertFailure(resolver.lookupAddress(name), error)

    async def test_answers(self) -> None:
        service = self.service(DnsSection(("127.0.0.1", 0), "none"))
        resolver = client.Resolver(servers=[("127.0.0.1", service.port)], timeout=(5,))
        answers, _, _ = await resolver.lookupAddress("two.home.ipop")
        self.assertEqual([value_of(record.payload) for record in answers], ["10.128.0.2"])
        await self.refused(resolver, "three.home.ipop", DNSNameError)
        await self.refused(resolver, "example.org", DNSQueryRefusedError)
        await self.refused(resolver, "away.home.ipop", DNSServerError)
        self.assertEqual(self.flushLoggedErrors(), [])

    async def test_upstream(self) -> None:
        """Other names are asked of the servers that were there before; those of other networks are not."""
        upstream = self.service(DnsSection(("127.0.0.1", 0), "none"))
        foreign = Network("other", b"o" * 20, IPv4Network("10.9.0.0/16"), IPv6Network("fd00:1::/48"), 32)
        from ipop_tx.services.dnszone import Server

        server = Server(Zone(foreign, resolve, own, reactor), [("127.0.0.1", upstream.port)], reactor)
        port: Any = reactor.listenUDP(0, dns.DNSDatagramProtocol(server), interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        resolver = client.Resolver(servers=[("127.0.0.1", port.getHost().port)], timeout=(5,))
        answers, _, _ = await resolver.lookupPointer("2.0.128.10.in-addr.arpa")
        self.assertEqual(str(answers[0].payload.name), "two.home.ipop")
        await self.refused(resolver, "two.home.ipop", DNSQueryRefusedError)

    async def test_resolv_conf(self) -> None:
        """Our line is there while the service runs, again after somebody wrote the file anew, and gone after it."""
        before = "# by hand\nnameserver 192.0.2.1\nsearch example.org\n"
        path = self.file(with_ours(before, "home", "127.0.0.9"))  # as a killed daemon left it
        service = DNSService(reactor, DnsSection(("127.0.0.1", 0), "resolv.conf", True, path), NETWORK, "ipop0", resolve, own)
        service.startService()
        self.assertEqual(path.read_text(), with_ours(before, "home", "127.0.0.1", "home.ipop"))
        path.write_text("nameserver 192.0.2.2\n")
        await service._put()
        self.assertEqual(servers_of(path.read_text()), ["192.0.2.2"])
        self.assertIn("nameserver 127.0.0.1\n", path.read_text())
        await service.stopService()
        self.assertEqual(path.read_text(), "nameserver 192.0.2.2\n")

    async def test_no_root(self) -> None:
        """It cannot write the file: it rings, looks again soon, then rarely, and is content once root has told for it."""
        path, bell = self.file("nameserver 192.0.2.1\n"), self.file()
        bell.unlink()

        def refuse(server: str, domain: str) -> None:
            if not is_in(path.read_text(), "home", server, domain):
                raise PermissionProblem("resolv.conf cannot be written")

        self.patch(os, "geteuid", lambda: 4001)
        service = DNSService(reactor, DnsSection(("127.0.0.1", 0), "resolv.conf", True, path), NETWORK, "ipop0", resolve, own, bell)
        self.patch(ResolvConf, "put", lambda file, server, domain: refuse(server, domain))
        service.startService()
        self.addCleanup(service.stopService)
        self.assertTrue(bell.exists())
        self.assertEqual((len(service.health()), service._again.interval), (1, SOON))
        bell.unlink()
        await service._put()
        self.assertFalse(bell.exists())
        self.assertEqual(service._again.interval, AGAIN)
        await service._put()
        self.assertTrue(bell.exists())
        path.write_text(with_ours("nameserver 192.0.2.1\n", "home", "127.0.0.1", "home.ipop"))
        await service._put()
        self.assertEqual((service.health(), service._again.interval), ([], AGAIN))

    async def test_what_was_left_goes_also_without_dns(self) -> None:
        path = self.file(with_ours("nameserver 192.0.2.1\n", "home", "127.0.0.9", "home.ipop"))
        self.service(DnsSection(resolv_conf=path))
        self.assertEqual(path.read_text(), "nameserver 192.0.2.1\n")

    async def test_a_taken_port(self) -> None:
        """The node goes on; the sentence names the mend."""
        first = self.service(DnsSection(("127.0.0.1", 0), "none"))
        path = self.file("nameserver 192.0.2.1\n")
        second = self.service(DnsSection(("127.0.0.1", first.port), "resolv.conf", True, path))
        self.assertEqual(second.port, 0)
        self.assertIn("choose another dns.listen", second.health()[0])
        self.assertEqual(path.read_text(), "nameserver 192.0.2.1\n")

    async def test_a_file_that_cannot_be_written(self) -> None:
        service = self.service(DnsSection(("127.0.0.1", 0), "resolv.conf", True, Path("/proc/self/no/resolv.conf")))
        self.assertIn("dns.resolv_conf", service.health()[0])


LINES = st.lists(
    st.sampled_from(
        [
            "nameserver 192.0.2.1",
            "nameserver fe80::1%eth0",
            "nameserver x",
            "search a b",
            "domain c",
            "options ndots:2",
            "# ipop",
            "",
            "; é",
        ]
    )
)


class FileTests(SynchronousTestCase):
    """resolv.conf as text."""

    @given(LINES, st.sampled_from(["", "home.ipop"]))
    def test_there_and_back(self, lines: list[str], domain: str) -> None:
        """Whatever stands in the file, it is there again, and putting twice is putting once."""
        text = "".join(f"{line}\n" for line in lines)
        ours = with_ours(text, "home", "127.0.0.153", domain)
        self.assertEqual(without_ours(ours, "home"), text)
        self.assertEqual(with_ours(ours, "home", "127.0.0.153", domain), ours)
        self.assertEqual(servers_of(ours), servers_of(text))
        self.assertTrue(ours.startswith("# ipop home: begin\nnameserver 127.0.0.153\n"))

    def test_two_networks(self) -> None:
        """Each takes out its own lines."""
        text = "nameserver 192.0.2.1\n"
        both = with_ours(with_ours(text, "home", "127.0.0.153", "home.ipop"), "lab", "127.0.0.154", "lab.ipop")
        self.assertEqual(servers_of(both), ["192.0.2.1"])
        self.assertIn("search home.ipop lab.ipop\n", both)
        self.assertEqual(
            without_ours(both, "home"), with_ours(text, "lab", "127.0.0.154", "lab.ipop").replace("search lab", "search home.ipop lab")
        )
        self.assertEqual(without_ours(without_ours(both, "home"), "lab"), text)

    def test_search(self) -> None:
        """What was searched before goes on to be searched; the last line counts (resolv.conf(5))."""
        ours = with_ours("domain a\nsearch b c", "home", "127.0.0.153", "home.ipop")
        self.assertEqual([line for line in ours.splitlines() if line.startswith("search")][-1], "search b c home.ipop")

    def test_links_are_followed(self) -> None:
        directory = Path(self.mktemp())
        directory.mkdir()
        (directory / "real").write_text("nameserver 192.0.2.1\n")
        (directory / "real").chmod(0o640)
        (directory / "link").symlink_to("real")
        file = ResolvConf(directory / "link", "home")
        file.put("127.0.0.153", "")
        self.assertTrue((directory / "link").is_symlink())
        self.assertEqual((directory / "real").stat().st_mode & 0o777, 0o640)
        self.assertTrue(file.take_back())
        self.assertFalse(file.take_back())
        self.assertEqual((directory / "real").read_text(), "nameserver 192.0.2.1\n")
        self.assertEqual(sorted(path.name for path in directory.iterdir()), ["link", "real"])

    def test_several_networks_do_not_push_each_other_aside(self) -> None:
        """Each is content where it stands, as long as no foreign server stands before it; and no search line grows."""
        nets = {"home": "127.0.0.153", "lab": "127.0.0.154"}
        path = Path(self.mktemp())
        path.write_text("nameserver 192.0.2.1\nsearch example.test\n")
        for _ in range(3):
            for network, server in nets.items():
                ResolvConf(path, network).put(server, f"{network}.ipop")
        text = path.read_text()
        for network, server in nets.items():
            self.assertTrue(is_in(text, network, server, f"{network}.ipop"))
        self.assertEqual(text.splitlines()[-2], "search example.test home.ipop lab.ipop")
        self.assertEqual(text.count("nameserver"), 3)
        self.assertFalse(is_in("nameserver 192.0.2.1\n" + text, "home", nets["home"], "home.ipop"))
        self.assertFalse(is_in(text, "home", "127.0.0.9", "home.ipop"))
        self.assertFalse(is_in(text, "home", nets["home"]))
        self.assertFalse(is_in(with_ours("", "home", nets["home"]), "home", nets["home"], "home.ipop"))
