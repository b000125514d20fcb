"""The lab's routers do what their names say, measured with real sockets."""

from __future__ import annotations

from itertools import product
from socket import SOCK_STREAM, socket

from twisted.trial import unittest

from ipop_tx.errors import EnvironmentProblem
from ipop_tx.lab import Filtering, Host, Lab, Mapping, Nat, Site
from ipop_tx.lab.probe import classify
from tests.system import why_not


class NatTests(unittest.SynchronousTestCase):
    """One site whose router changes its kind, and two public hosts."""

    skip = why_not()

    def setUp(self) -> None:
        lab = Lab("nat")
        lab.__enter__()
        self.addCleanup(lab.close)
        self.lab: Lab = lab
        self.one: Host = lab.public_host("one")
        self.other: Host = lab.public_host("other")
        self.site: Site = lab.site("site", Nat.PORT_RESTRICTED)
        self.inner: Host = self.site.host("inner")

    def answers(self, host: Host, address: str) -> bool:
        """Whether a ping from `host` to `address` is answered."""
        return host.run(["ping", "-n", "-c1", "-W2", address], check=False).returncode == 0

    def test_every_mapping_with_every_filtering(self) -> None:
        """The probe finds the very pair that the router was told to be, for all fifteen."""
        for mapping, filtering in product(Mapping, Filtering):
            self.site.set_nat(Nat(mapping, filtering))
            self.assertEqual(classify(self.inner, self.one, self.other), (mapping, filtering))

    def test_plain_linux_keeps_the_port(self) -> None:
        """Linux as it comes is endpoint-independent with port-dependent filtering while nothing comes too early."""
        self.site.set_nat(Nat.LINUX)
        self.assertEqual(classify(self.inner, self.one, self.other), (Mapping.PORT_KEPT, Filtering.PORT_DEPENDENT))

    def test_one_to_one_is_open(self) -> None:
        """A host behind a one-to-one NAT is reached under its outer address, also from beside it."""
        cloud = self.lab.site("cloud", Nat.ONE_TO_ONE)
        left, right = cloud.host("left"), cloud.host("right")
        self.assertEqual(classify(left, self.one, self.other), (Mapping.PORT_KEPT, Filtering.ENDPOINT_INDEPENDENT))
        for asking in (self.one, self.inner, right):
            self.assertTrue(self.answers(asking, left.public or ""), asking.name)

    def test_blocked_udp(self) -> None:
        """Where only the web is allowed, no datagram leaves and a connection to port 443 does."""
        self.site.set_nat(Nat.UDP_BLOCKED)
        self.assertRaises(EnvironmentProblem, classify, self.inner, self.one, self.other, 0.5)
        with self.one.socket(SOCK_STREAM) as web, self.inner.socket(SOCK_STREAM) as browser:
            web.bind((self.one.address, 443))
            web.listen()
            browser.settimeout(5)
            browser.connect((self.one.address, 443))

    def test_double_nat_is_the_stricter(self) -> None:
        """Behind two routers the stricter mapping and filtering rule."""
        home = self.lab.site("home", Nat.FULL_CONE, behind=self.site)
        host = home.host("deep")
        self.site.set_nat(Nat(Mapping.RANDOM, Filtering.ADDRESS_DEPENDENT))
        self.assertEqual(classify(host, self.one, self.other), (Mapping.RANDOM, Filtering.ADDRESS_DEPENDENT))

    def test_hairpin(self) -> None:
        """Two hosts of one site meet at the outer endpoint exactly when the router hairpins."""
        second = self.site.host("second")
        for nat, expected in ((Nat.PORT_RESTRICTED.with_hairpin(), True), (Nat.PORT_RESTRICTED, False)):
            self.site.set_nat(nat)
            with self.inner.socket() as inside, second.socket() as beside, self.one.socket() as outside:
                outside.bind((self.one.address, 0))
                outside.settimeout(5)
                inside.sendto(b"out", outside.getsockname())
                outer = outside.recvfrom(16)[1]
                inside.settimeout(0.5)
                beside.sendto(b"hairpin", outer)
                self.assertEqual(self._hears(inside), expected)

    def _hears(self, inside: socket) -> bool:
        try:
            inside.recvfrom(16)
        except TimeoutError:
            return False
        return True

    def test_no_way_out(self) -> None:
        """Nothing outside the lab can be reached."""
        self.assertTrue(self.answers(self.inner, self.one.address))
        self.assertFalse(self.answers(self.inner, "8.8.8.8"))

    def test_the_lan_is_one_segment(self) -> None:
        """Two hosts of one LAN reach each other without the router having a say."""
        second = self.site.host("second")
        self.assertTrue(self.answers(self.inner, second.address))

    def test_a_cable_is_pulled_and_put_back(self) -> None:
        """An unplugged host reaches nobody, and everybody again when it is plugged in."""
        for host in (self.inner, self.other):
            host.plug(False)
            self.assertFalse(self.answers(host, self.one.address))
            host.plug()
            self.assertTrue(self.answers(host, self.one.address))
