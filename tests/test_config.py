"""node.toml: every key is explained, every mistake is one line that names file, key, value and the mend."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from pathlib import Path

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import TestCase

from ipop_tx.config import Config, check_against, load, load_config, parse_config, sections
from ipop_tx.errors import ConfigError
from ipop_tx.values import Endpoint, Network, Proxy

MODEL = Path(__file__).parent.parent / "conf" / "node.toml"
SECTIONS = [name for name in Config.__struct_fields__ if name not in ("path", "transports")]
NETWORK = Network("lab", b"n" * 20, IPv4Network("10.128.0.0/16"), IPv6Network("fd00:1:2::/48"))


def read(text: str) -> Config:
    return parse_config(text, Path("/etc/n.toml"))


def with_state(text: str) -> str:
    """`text` with the one key that every configuration needs."""
    return text if "[node]" in text else f'[node]\nstate = "/s"\n{text}'


class Model(TestCase):
    """conf/node.toml is the documentation of the keys."""

    def test_equals_the_defaults(self) -> None:
        loaded = load_config(MODEL)
        for name in SECTIONS:
            default = sections.SECTIONS[name](Path("/var/lib/ipop")) if name == "node" else sections.SECTIONS[name]()
            self.assertEqual(getattr(loaded, name), default)

    def test_names_every_key(self) -> None:
        section, named = "", set()
        for line in MODEL.read_text().splitlines():
            if header := re.fullmatch(r"(?:# )?\[([\w.]+)\]", line):
                section = header[1]
            elif key := re.match(r"(?:# )?(\w+) = ", line):
                named.add(f"{section}.{key[1]}")
        every = {f"{name}.{key}" for name, kind in sections.SECTIONS.items() for key in kind.__struct_fields__} - {"listen.tls"}
        self.assertEqual({name for name in named if not name.startswith("transports.")}, every)
        self.assertEqual(every, set(sections.READERS))

    def test_examples_in_comments_load(self) -> None:
        loaded = read(re.sub(r"(?m)^# (\w+ = )", r"\1", MODEL.read_text()))
        self.assertEqual((str(loaded.lease.address), loaded.network.name), ("10.128.0.7", "lab"))
        self.assertEqual((loaded.listen.tls.port, str(loaded.listen.tls.proxy)), (443, "http://proxy.example.net:3128"))


class Values(TestCase):
    """What a correct file gives."""

    def test_full(self) -> None:
        loaded = read(
            '[node]\nstate = "st"\nbootstrap = ["udp:[2001:db8::7]:1"]\n[listen]\nudp = "[::]:0"\n'
            "[lease]\nhours = 1\n[tap]\nenabled = false\n"
        )
        self.assertEqual(loaded.node.state, Path("/etc/st"))
        self.assertEqual(loaded.node.bootstrap, (Endpoint("udp", "2001:db8::7", 1),))
        self.assertEqual(loaded.listen.udp, Endpoint("udp", "::", 0))
        self.assertEqual(loaded.lease.hours, 1.0)
        self.assertFalse(loaded.tap.enabled)

    def test_guests(self) -> None:
        loaded = read(
            with_state(
                '[tap]\nbridge = "br0"\n[dhcp]\nguests = 20\nhours = 0.5\ndns = ["10.128.0.7", "192.0.2.1"]\ndomain = "lab.example"\n'
                'router = "10.128.0.7"\nroutes = ["192.168.7.0/24 via 10.128.0.9"]\n'
            )
        )
        check_against(loaded, NETWORK)
        self.assertEqual((loaded.tap.bridge, loaded.dhcp.guests, loaded.dhcp.hours), ("br0", 20, 0.5))
        self.assertEqual(loaded.dhcp.dns, (IPv4Address("10.128.0.7"), IPv4Address("192.0.2.1")))
        self.assertEqual((loaded.dhcp.domain, loaded.dhcp.router), ("lab.example", IPv4Address("10.128.0.7")))
        self.assertEqual(loaded.dhcp.routes, ((IPv4Network("192.168.7.0/24"), IPv4Address("10.128.0.9")),))

    def test_mtu(self) -> None:
        """A number, or what fits this machine; that is the default."""
        for text, mtu in (("mtu = 1400", 1400), ('mtu = "auto"', None), ("", None)):
            self.assertEqual(read(with_state(f"[tap]\n{text}")).tap.mtu, mtu)

    def test_quota(self) -> None:
        """Megabytes are bytes inside."""
        quota = read(with_state("[dht]\nmember_registers = 7\nmember_megabytes = 2\nmegabytes = 3")).dht.quota
        self.assertEqual((quota.registers, quota.bytes, quota.total), (7, 2 << 20, 3 << 20))

    def test_a_password_is_not_repeated(self) -> None:
        wrong = self.assertRaises(ConfigError, read, with_state('[listen.tls]\nproxy = "https://me:secret@p:1"'))
        self.assertNotIn("secret", str(wrong))

    def test_tls(self) -> None:
        """Off without a port; a proxy is one, none at all, or left to the environment."""
        for text, port, proxy in (
            ("", None, None),
            ("[listen.tls]\nport = 0", 0, None),
            ('[listen.tls]\nproxy = "none"', None, False),
            ('[listen.tls]\nproxy = "socks5://u:p%40w@192.0.2.1"', None, Proxy("socks5", "192.0.2.1", 1080, "u", "p@w")),
        ):
            tls = read(with_state(text)).listen.tls
            self.assertEqual((tls.port, tls.proxy), (port, proxy))

    def test_transports(self) -> None:
        """Tables of foreign transports stay as they are."""
        self.assertEqual(
            read(with_state("[transports.web]\na = 1\n[transports.web.b]\nc = [2]")).transports, {"web": {"a": 1, "b": {"c": [2]}}}
        )

    def test_frozen(self) -> None:
        with self.assertRaises(AttributeError):
            read(with_state("")).tap.mtu = 1400  # type: ignore[misc]


# (file, what the one line must hold)
MISTAKES = [
    ("", ["node.state is missing", "/var/lib/ipop"]),
    ('[nod]\nstate = "/s"', ['nod = {"state": "/s"}', "no such key", "did you mean node?"]),
    ('[node]\nstat = "/s"', ['node.stat = "/s"', "did you mean node.state?"]),
    ("[tap]\nmut = 1400", ["tap.mut = 1400", "no such key", "did you mean tap.mtu?"]),
    ("[tap]\nzzzz = 1400", ["tap.zzzz = 1400", "known are tap.enabled, tap.name, tap.mtu"]),
    ("[log]\nmtu = 1400", ["log.mtu = 1400", "did you mean tap.mtu?"]),
    ('[tap]\nmtu = "1400"', ['tap.mtu = "1400"', "is a string, not a whole number", 'or "auto"']),
    ("[tap]\nmtu = true", ["tap.mtu = true", "is a truth value"]),
    ("[tap]\nmtu = 1279", ["tap.mtu = 1279", "out of range", "1280 to 9000"]),
    ("[tap]\nmtu = 9001", ["tap.mtu = 9001", "out of range"]),
    ("[tap]\nmtu = 1400.0", ["tap.mtu = 1400.0", "not a whole number"]),
    ('[tap]\nname = "a-name-that-is-too-long"', ["tap.name", "cannot be an interface's name"]),
    ('[tap]\nname = "a/b"', ["tap.name", "cannot be an interface's name"]),
    ('[tap]\nname = ""', ["tap.name", "is empty"]),
    ('[tap]\nenabled = "yes"', ["tap.enabled", "write true or false"]),
    ('[listen]\nudp = "4500"', ['listen.udp = "4500"', "not an IP address and a port"]),
    ('[listen]\nudp = "::1:4500"', ["listen.udp", "[::]:4500"]),
    ('[listen]\nudp = "0.0.0.0:70000"', ["listen.udp", "has the port 70000"]),
    ('[listen]\nudp = "0.0.0.0:-1"', ["listen.udp", "not an IP address and a port"]),
    ('[listen]\nudp = ["0.0.0.0:1"]', ["listen.udp", "is a list, not a string"]),
    ('[listen.tls]\nport = "443"', ["listen.tls.port", "is a string, not a whole number"]),
    ("[listen.tls]\nport = 65536", ["listen.tls.port", "out of range", "0 to 65535"]),
    ("[listen.tls]\nport = true", ["listen.tls.port", "is a truth value"]),
    ('[listen.tls]\nhost = "localhost"', ["listen.tls.host", "is not an IP address"]),
    ('[listen.tls]\nproxy = "proxy:3128"', ["listen.tls.proxy", "this is not a proxy", "http://proxy.example.net:3128"]),
    ('[listen.tls]\nproxy = "https://proxy:3128"', ["listen.tls.proxy", "itself reached by TLS"]),
    ('[listen.tls]\nproxy = "socks5://p:99999"', ["listen.tls.proxy", "this is not a proxy"]),
    ("[listen.tls]\nrate_mbit = 0.01", ["listen.tls.rate_mbit", "out of range"]),
    ("[listen.tls]\nconnections = 0", ["listen.tls.connections", "1 to 10000"]),
    ("[listen.tls]\nprot = 443", ["listen.tls.prot", "did you mean listen.tls.port?"]),
    ("[listen]\ntls = 443", ["listen.tls = 443", "write [listen.tls] on a line of its own"]),
    ("transports = 3\n[node]\nstate = '/s'", ["transports = 3", "write [transports.NAME]"]),
    ("[transports.tls]\nport = 1", ["transports.tls", "configure it as listen.tls"]),
    ("[transports.a-b]\nport = 1", ["transports.a-b", "lower-case letters"]),
    ("[transports]\nweb = 1", ["transports.web = 1", "is no section"]),
    ('["listen.tls"]\nport = 1', ["listen.tls", "no such key"]),
    ('[listen]\nadvertise = "udp:192.0.2.1:1"', ["listen.advertise", "not a list of endpoints"]),
    ('[listen]\nadvertise = ["udp:192.0.2.1:1", "udp:192.0.2.1:1"]', ["listen.advertise", "names udp:192.0.2.1:1 twice"]),
    ('[node]\nstate = "/s"\nbootstrap = ["192.0.2.1:1"]', ["node.bootstrap", '"192.0.2.1:1" is not an endpoint', "udp:198.51.100.7:4500"]),
    ('[node]\nstate = "/s"\nbootstrap = [7]', ["node.bootstrap", "7 is a number"]),
    ("[node]\nstate = 1979-05-27", ["node.state", "is a date or time"]),
    ('[lease]\naddress = "10.128.0.300"', ["lease.address", "is not an IPv4 address"]),
    ("[lease]\nhours = nan", ["lease.hours", "out of range"]),
    ("[lease]\nhours = 0", ["lease.hours", "out of range"]),
    ('[tap]\nbridge = "a/b"', ["tap.bridge", "cannot be an interface's name"]),
    ("[dhcp]\nguests = true", ["dhcp.guests = true", "is a truth value, not a whole number"]),
    ("[dhcp]\nguests = -1", ["dhcp.guests = -1", "out of range", "0 to 1000"]),
    ("[dhcp]\nhours = 0", ["dhcp.hours", "out of range"]),
    ('[dhcp]\ndns = "10.128.0.7"', ["dhcp.dns", "is a string, not a list", '["10.128.0.7"]']),
    ('[dhcp]\ndns = ["dns.example"]', ["dhcp.dns", "not an IPv4 address"]),
    ('[dhcp]\ndns = ["10.128.0.7", 7]', ["dhcp.dns", "is a number"]),
    ("[dhcp]\ndns = [" + '"10.128.0.7", ' * 9 + "]", ["dhcp.dns", "is too long", "up to 8"]),
    ('[dhcp]\ndomain = "a..b"', ["dhcp.domain", "is not a domain"]),
    ('[dhcp]\nrouter = "fd00::1"', ["dhcp.router", "is not an IPv4 address"]),
    ('[dhcp]\nroutes = ["192.168.7.1/24 via 10.128.0.9"]', ["dhcp.routes", "not a route", '"192.168.7.0/24 via 10.128.0.9"']),
    ('[dhcp]\nroutes = ["192.168.7.0/24"]', ["dhcp.routes", "not a route"]),
    ("[dhcp]\nroutes = [[]]", ["dhcp.routes", "is a list, not a string"]),
    ("[dht]\nmegabytes = 0", ["dht.megabytes", "out of range"]),
    ("[dht]\nmember_registers = 1.5", ["dht.member_registers", "not a whole number"]),
    ("[dht]\nmember_megabytes = true", ["dht.member_megabytes", "is a truth value"]),
    ('[log]\nlevel = "loud"', ['log.level = "loud"', "choose one of debug, info"]),
    ("[control]\nsocket = '/" + "s" * 200 + "'", ["control.socket", "107 bytes"]),
    ('[network]\nname = "a\\nb"', ["network.name", "cannot be printed"]),
    ("tap = 3\n[node]\nstate = 0", ["tap = 3", "write [tap] on a line of its own"]),
    ("[tap]\nmtu = = 3", ["is not TOML", "line 4"]),
    ("[tap]\nmtu = 1300\nmtu = 1300", ["is not TOML", "Cannot overwrite a value"]),
]


class Mistakes(TestCase):
    """Each is one line, begins with the file and ends with the mend."""

    def test_sentences(self) -> None:
        for text, needles in MISTAKES:
            wrong = self.assertRaises(ConfigError, read, with_state(text) if text and "[nod" not in text else text)
            line = str(wrong)
            self.assertTrue(line.startswith("/etc/n.toml: "), line)
            self.assertNotIn("\n", line)
            self.assertTrue(wrong.mend, line)
            for needle in needles:
                self.assertIn(needle, line)
            self.assertEqual(wrong.exit_status, 2)

    def test_files_that_cannot_be_read(self) -> None:
        directory = Path(self.mktemp())
        directory.mkdir()
        latin = directory / "latin.toml"
        latin.write_bytes(b"# caf\xe9\n")
        for path, needle in [(directory / "none.toml", "no such file"), (directory, "cannot be read"), (latin, "not UTF-8")]:
            line = str(self.assertRaises(ConfigError, load_config, path))
            self.assertIn(f"{path}: ", line)
            self.assertIn(needle, line)

    @settings(deadline=None)
    @given(st.recursive(st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner, max_size=3)))
    def test_any_value_is_taken_or_refused_in_one_line(self, value: object) -> None:
        for key in sections.READERS:
            section, _, name = key.rpartition(".")
            try:
                load._section(Path("/n"), Path("/"), section, {name: value, **({"state": "/s"} if section == "node" != name else {})})
            except ConfigError as wrong:
                self.assertEqual(len(str(wrong).splitlines()), 1)


class Ranges(TestCase):
    """Nothing may lie in the overlay's own ranges, and the machine must not reach them otherwise."""

    def refused(self, text: str, overlap: str | None = None) -> str:
        return str(self.assertRaises(ConfigError, check_against, read(with_state(text)), NETWORK, overlap))

    def test_endpoints_inside_the_overlay(self) -> None:
        for text in [
            '[node]\nstate = "/s"\nbootstrap = ["udp:10.128.7.7:1"]',
            '[listen]\nadvertise = ["udp:[fd00:1:2::9]:1"]',
            '[listen]\nudp = "10.128.0.1:4500"',
            '[listen.tls]\nhost = "10.128.0.1"',
        ]:
            self.assertIn("lies in the range", self.refused(text))

    def test_wish_outside_the_pool(self) -> None:
        for address in ["10.129.0.1", "10.128.0.0", "10.128.255.255"]:
            self.assertIn("is no node's address in 10.128.0.0/16", self.refused(f'[lease]\naddress = "{address}"'))

    def test_guests(self) -> None:
        for text, needle in [
            ('[tap]\nenabled = false\nbridge = "br0"', "there is no TAP to put into it"),
            ('[tap]\nname = "br0"\nbridge = "br0"', "is the name of the TAP itself"),
            ("[tap]\nenabled = false\n[dhcp]\nguests = 1", "set tap.enabled = true"),
            ('[dhcp]\nrouter = "192.0.2.1"', "lies outside 10.128.0.0/16"),
            ('[dhcp]\nroutes = ["192.168.7.0/24 via 192.0.2.1"]', "an address of lab"),
        ]:
            self.assertIn(needle, self.refused(text))

    def test_machine_reaches_the_pool_otherwise(self) -> None:
        sentence = self.refused("", "eth0 uses 10.128.3.0/24")
        self.assertIn(
            "the pool 10.128.0.0/16 of the network lab overlaps what this machine has already (eth0 uses 10.128.3.0/24)", sentence
        )
        self.assertIn("node.state = ", sentence)

    def test_other_network(self) -> None:
        self.assertIn("belongs to lab", self.refused('[network]\nname = "home"'))

    def test_good(self) -> None:
        text = '[node]\nstate = "/s"\nbootstrap = ["udp:192.0.2.1:1"]\n[lease]\naddress = "10.128.0.7"\n[network]\nname = "lab"\n'
        check_against(read(text), NETWORK)


class Shape(TestCase):
    """The values are typed and frozen all the way down."""

    def test_every_section_is_frozen(self) -> None:
        kinds: list[type[msgspec.Struct]] = [Config, *sections.SECTIONS.values()]
        for kind in kinds:
            self.assertTrue(kind.__struct_config__.frozen)
