"""The language of policies: what it means, what it refuses, and that it refuses in sentences."""

from __future__ import annotations

import json
from ipaddress import ip_address

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from benchmarks import policy
from benchmarks.dataplane.measure import Stream
from ipop_tx.errors import LocalMisuse
from ipop_tx.wire import policy as p

ADMIN, SERVER, OTHER = p.Party("laptop", ("admins", "staff")), p.Party("db", ("servers",)), p.Party("other")

EXAMPLE = """default = "deny"
[[allow]]
name = "ssh"
from = ["group:admins", "name:other"]
to = "group:servers"
protocol = "tcp"
ports = [22, "8000-8100"]
[[allow]]
from = "10.128.3.0/24"
protocol = "udp"
[[allow]]
to = ["fd00::/8", "10.128.0.9"]
protocol = ["icmp", 47]
[[allow]]
name = "errors"
protocol = "icmp"
types = ["time-exceeded", "v6:2"]
"""


def packet(protocol: int, source: str, target: str, port: int | None = None, kind: int | None = None) -> p.Packet:
    """One packet."""
    return p.Packet(protocol, ip_address(source).packed, ip_address(target).packed, port, kind)


class MeaningTests(SynchronousTestCase):
    """The example, decided."""

    def test_decisions(self) -> None:
        """By group, name, range, protocol, port and type; never the other way round."""
        example = p.parse(EXAMPLE)
        a, b, far = "10.128.0.1", "10.128.0.2", "10.128.3.77"
        for source, target, what, rule in (
            (ADMIN, SERVER, packet(6, a, b, 22), "ssh"),
            (ADMIN, SERVER, packet(6, a, b, 8100), "ssh"),
            (OTHER, SERVER, packet(6, a, b, 22), "ssh"),
            (ADMIN, SERVER, packet(6, a, b, 8101), None),
            (ADMIN, SERVER, packet(17, a, b, 22), None),
            (SERVER, ADMIN, packet(6, b, a, 22), None),
            (ADMIN, OTHER, packet(6, a, b, 22), None),
            (SERVER, OTHER, packet(17, far, b, 53), "rule 2"),
            (SERVER, OTHER, packet(17, a, far, 53), None),
            (SERVER, OTHER, packet(1, a, "10.128.0.9", None, 8), "rule 3"),
            (SERVER, OTHER, packet(47, "fd00::1", "fd00::2"), "rule 3"),
            (SERVER, OTHER, packet(47, a, b), None),
            (SERVER, OTHER, packet(1, a, b, None, 11), "errors"),
            (SERVER, OTHER, packet(58, "2001:db8::1", "2001:db8::2", None, 2), "errors"),
            (SERVER, OTHER, packet(58, "2001:db8::1", "2001:db8::2", None, 11), None),
        ):
            decided = example.decide(source, target, what)
            self.assertEqual(decided.name if decided else None, rule, what)

    def test_json(self) -> None:
        """The same in JSON means the same."""
        value = {"default": "allow", "allow": [{"name": "x", "from": ["any"], "protocol": "any"}]}
        self.assertEqual(p.parse(json.dumps(value)), p.Policy(True, (p.Rule("x"),)))

    def test_services(self) -> None:
        """What `ipop policy test` takes."""
        for text, wanted in (
            ("tcp/22", (6, 22, None)),
            ("UDP/53", (17, 53, None)),
            ("icmp", (1, None, 8)),
            ("icmp/time-exceeded", (1, None, 11)),
            ("gre", (47, None, None)),
            ("47", (47, None, None)),
        ):
            self.assertEqual(p.parse_service(text), wanted)
        for text in ("tcp", "tcp/0", "tcp/x", "http", "", "icmp/x", "gre/1", "/22", "300"):
            self.assertRaises(LocalMisuse, p.parse_service, text)


class BenchmarkTests(SynchronousTestCase):
    """What `benchmarks.policy` sets and tells."""

    def test_rules(self) -> None:
        """As many as asked for; the last one allows, and no other has anything to do with the pair."""
        made = p.parse(policy.rules_text(64))
        self.assertEqual((len(made.rules), made.allow), (64, False))
        decided = made.decide(ADMIN, SERVER, packet(6, "10.128.0.1", "10.128.0.2", 2000))
        self.assertEqual(decided, made.rules[-1])

    def test_summary(self) -> None:
        """Ratios are those of the rounds."""
        one, other = Stream(4.0, 0.5, 0, 1400, cpu_seconds=1.0), Stream(2.0, 0.5, 0, 1400, cpu_seconds=2.0)
        found = policy.summary([one, one], [other, other], 64)
        self.assertEqual((found["throughput_ratio"], found["cpu_ratio"]), (0.5, 2.0))


class RefusalTests(SynchronousTestCase):
    """What cannot be meant."""

    def test_sentences(self) -> None:
        """Each names line or rule, and the mend."""
        rule = 'default = "deny"\n[[allow]]\n'
        for text, words in (
            ("", "default is None: write"),
            ('default = "deny"\n[[allow]\n', "does not parse: .*line 2"),
            ('default = "no"', "default is 'no'"),
            ('default = "deny"\ndeny = 1', "unknown key 'deny'"),
            ('default = "deny"\nallow = 1', r"begin each rule with a line \[\[allow\]\]"),
            (rule + 'form = "any"', "rule 1 has an unknown key 'form'"),
            (rule + 'name = "web"\nto = "servers"', r"'to' of rule 1 \(web\) has 'servers'.*group:NAME"),
            (rule + 'from = "10.128.3.1/24"', "has host bits set"),
            (rule + "from = []", "'from' of rule 1 is empty: leave it out"),
            (rule + "ports = 22", "ports without a protocol"),
            (rule + 'protocol = ["tcp", "icmp"]\nports = 22', "ports without a protocol"),
            (rule + 'protocol = "tcp"\nports = "22-21"', "'22-21' among its ports"),
            (rule + 'protocol = "tcp"\nports = 65536', "'65536' among its ports"),
            (rule + 'protocol = "tcp"\nports = [[1]]', "not a list of texts"),
            (rule + 'protocol = "http"', "unknown protocol 'http'"),
            (rule + 'types = "echo-request"', "types without ICMP"),
            (rule + 'protocol = "icmp"\ntypes = "ping"', "unknown ICMP type 'ping'"),
            (rule + 'name = "a"\n[[allow]]\nname = "a"', "two rules are called 'a'"),
            (rule + "name = 1", "the name of rule 1"),
            ("#" * 20000, "longer than"),
            (rule + "[[allow]]\n" * 300, "301 rules"),
        ):
            with self.subTest(text[:60]):
                self.assertRegex(str(self.assertRaises(LocalMisuse, p.parse, text)), words)

    @given(st.text(max_size=200) | st.dictionaries(st.text(max_size=9), st.integers() | st.text(max_size=9)).map(json.dumps))
    def test_junk(self, text: str) -> None:
        """Whatever somebody writes is a policy or a sentence."""
        try:
            p.parse(text)
        except LocalMisuse as refusal:
            self.assertTrue(refusal.mend)

    @given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=9), lambda x: st.lists(x, max_size=3)), st.data())
    def test_junk_in_rules(self, value: object, data: st.DataObject) -> None:
        """The same for values of known keys."""
        key = data.draw(st.sampled_from(["name", "from", "to", "protocol", "ports", "types"]))
        try:
            p.parse(json.dumps({"default": "deny", "allow": [{key: value}]}))
        except LocalMisuse as refusal:
            self.assertTrue(refusal.mend)
