"""The policy on the fast path: against a reference that thinks in tuples, and what attackers and time do to its memory."""

from __future__ import annotations

import random
import struct
from ipaddress import ip_address

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ipop_tx.forwarding import flows as flow_table
from ipop_tx.forwarding.fib import Adjacency
from ipop_tx.forwarding.flows import MOST_OF_ONE
from ipop_tx.forwarding.inner import ACK, FIN, RST, SYN, read
from ipop_tx.forwarding.policing import Policing
from ipop_tx.wire.policy import Packet, Party, Policy, parse

OWN, PEER = Party("own", ("servers",)), Party("peer", ("clients",))
A4, B4, A6, B6 = "10.128.0.1", "10.128.0.2", "fd00::1", "fd00::2"  # the peer's, ours
RULES = """default = "deny"
[[allow]]
name = "ssh"
from = "group:clients"
to = "group:servers"
protocol = "tcp"
ports = 22
[[allow]]
name = "dns"
to = ["10.128.0.2", "fd00::2"]
protocol = "udp"
ports = "53-54"
[[allow]]
name = "ping"
protocol = "icmp"
types = "echo-request"
"""


def ip(protocol: int, source: str, target: str, payload: bytes, fragment: int = 0, options: bytes = b"", identification: int = 7) -> bytes:
    """A packed frame; `fragment` is the field of flags and offset."""
    one, other = ip_address(source), ip_address(target)
    if one.version == 6:
        body = payload if not fragment else struct.pack("!BBHI", protocol, 0, fragment, identification) + payload
        return (
            bytes(10)
            + b"\x86\xdd"
            + struct.pack("!IHBB", 6 << 28, len(body), 44 if fragment else protocol, 64)
            + one.packed
            + other.packed
            + body
        )
    header = struct.pack(
        "!BBHHHBBH", 0x45 + len(options) // 4, 0, 20 + len(options) + len(payload), identification, fragment, 64, protocol, 0
    )
    return bytes(10) + b"\x08\x00" + header + one.packed + other.packed + options + payload


def tcp(source: str, target: str, sport: int, dport: int, flags: int = SYN, **more: int) -> bytes:
    """A TCP segment."""
    return ip(6, source, target, struct.pack("!HHIIBBHHH", sport, dport, 0, 0, 0x50, flags, 1000, 0, 0) + b"data", **more)  # type: ignore[arg-type]


def udp(source: str, target: str, sport: int, dport: int, **more: int) -> bytes:
    """A UDP datagram."""
    return ip(17, source, target, struct.pack("!HHHH", sport, dport, 30, 0) + bytes(22), **more)  # type: ignore[arg-type]


def echo(source: str, target: str, identifier: int = 9, answer: bool = False) -> bytes:
    """A ping or its answer."""
    six = ":" in source
    kind = (129 if answer else 128) if six else (0 if answer else 8)
    return ip(58 if six else 1, source, target, struct.pack("!BBHHH", kind, 0, 0, identifier, 1) + bytes(16))


class PolicingCase(SynchronousTestCase):
    """One peer; `heard` and `said` are frames from and to it."""

    def setUp(self) -> None:
        self.begin(parse(RULES))

    def begin(self, policy: Policy) -> None:
        """A node without memory."""
        self.clock = Clock()
        self.policing = Policing(OWN, policy, self.clock.seconds)
        self.peer = self.of(1, PEER)

    def of(self, number: int, party: Party) -> Adjacency:
        """A peer."""
        peer = Adjacency(bytes((number,)) * 20, bytes(16), bytes(6))
        peer.name, peer.groups = party
        return peer

    def heard(self, frame: bytes) -> bool:
        """Whether it gets to the kernel."""
        return self.policing.admits(self.peer, memoryview(bytearray(frame)), True)

    def said(self, frame: bytes) -> bool:
        """Whether it gets onto the wire."""
        return self.policing.admits(self.peer, memoryview(bytearray(frame)), False)


class StateTests(PolicingCase):
    """Answers pass, openings are judged."""

    def test_tcp(self) -> None:
        """A connection both ways; its answers do not open the other direction."""
        for a, b in ((A4, B4), (A6, B6)):
            self.assertTrue(self.heard(tcp(a, b, 999, 22)))
            self.assertTrue(self.said(tcp(b, a, 22, 999, SYN | ACK)))
            for _ in range(3):
                self.assertTrue(self.heard(tcp(a, b, 999, 22, ACK)))
                self.assertTrue(self.said(tcp(b, a, 22, 999, ACK)))
            self.assertFalse(self.said(tcp(b, a, 22, 999, SYN)))
            self.assertFalse(self.said(tcp(b, a, 999, 22)))
            self.assertFalse(self.heard(tcp(a, b, 999, 23)))
            self.assertFalse(self.heard(tcp(a, b, 999, 23, ACK)))
        self.assertEqual(self.policing.status()["allowed"], {"ssh": 2, "dns": 0, "ping": 0})

    def test_udp_and_icmp(self) -> None:
        """Answers of UDP pass only after a question; those of a ping only for that ping."""
        for a, b in ((A4, B4), (A6, B6)):
            self.assertFalse(self.said(udp(b, a, 53, 999)))
            self.assertTrue(self.heard(udp(a, b, 999, 53)))
            self.assertTrue(self.said(udp(b, a, 53, 999)))
            self.assertFalse(self.said(udp(b, a, 53, 998)))
            self.assertFalse(self.heard(echo(a, b, answer=True)))
            self.assertTrue(self.said(echo(b, a)))
            self.assertTrue(self.heard(echo(a, b, answer=True)))
            self.assertFalse(self.heard(echo(a, b, 10, answer=True)))

    def test_without_memory(self) -> None:
        """A connection that was there before us goes on from either side; one that nothing allows does not."""
        self.assertTrue(self.said(tcp(B4, A4, 22, 999, ACK)))
        self.assertTrue(self.heard(tcp(A4, B4, 999, 22, ACK)))
        self.assertFalse(self.said(tcp(B4, A4, 22, 999, SYN)))
        self.assertFalse(self.said(tcp(B4, A4, 999, 22, ACK)))

    def test_errors(self) -> None:
        """ICMP errors pass when they are about a flow."""
        about = udp(B4, A4, 53, 999)[12:40]
        error = ip(1, A4, B4, b"\x03\x03" + bytes(6) + about)
        self.assertFalse(self.heard(error))
        self.assertTrue(self.heard(udp(A4, B4, 999, 53)))
        self.assertTrue(self.heard(error))
        self.assertFalse(self.heard(ip(1, A4, B4, b"\x03\x03" + bytes(6) + udp(B4, A4, 53, 998)[12:40])))

    def test_fragments(self) -> None:
        """Later ones follow an allowed first one of their packet; nothing that decides may come later."""
        for a, b in ((A4, B4), (A6, B6)):
            more, later = (0x2000, 0x0002) if "." in a else (0x0001, 0x0010)
            rest = ip(17, a, b, bytes(40), fragment=later)
            self.assertFalse(self.heard(rest))
            self.assertFalse(self.heard(udp(a, b, 999, 99, fragment=more)))
            self.assertFalse(self.heard(rest))
            self.assertTrue(self.heard(udp(a, b, 999, 53, fragment=more)))
            self.assertTrue(self.heard(rest))
            self.assertFalse(self.heard(ip(17, a, b, bytes(40), fragment=later, identification=8)))
            self.clock.advance(31)
            self.assertFalse(self.heard(rest))
        self.assertFalse(self.heard(ip(6, A4, B4, struct.pack("!HH", 999, 22) + bytes(4), fragment=0x2000)))
        self.assertFalse(self.heard(ip(6, A4, B4, bytes(40), fragment=1)))

    def test_options(self) -> None:
        """Options and extension headers hide nothing."""
        datagram = struct.pack("!HHHH", 999, 53, 30, 0) + bytes(22)
        self.assertTrue(self.heard(ip(17, A4, B4, datagram, options=bytes(8))))
        self.assertFalse(self.heard(ip(17, A4, B4, struct.pack("!HHHH", 53, 99, 30, 0) + bytes(22), options=bytes(8))))
        self.assertTrue(self.heard(ip(60, A6, B6, bytes((17, 0)) + bytes(6) + datagram)))
        self.assertFalse(self.heard(ip(60, A6, B6, bytes((6, 0)) + bytes(6) + datagram)))

    @given(st.binary(max_size=90), st.sampled_from([b"\x45", b"\x60", b"\x4f", b""]))
    def test_junk(self, junk: bytes, first: bytes) -> None:
        """Bytes of anybody do not raise."""
        frame = bytes(10) + b"\x08\x00" + first + junk
        read(frame)
        self.heard(frame)


class ChangeTests(PolicingCase):
    """Another policy under way."""

    def test_allowed_goes_on(self) -> None:
        """Flows that the new one allows lose nothing; others are cut, in both directions."""
        for port, frames in ((22, tcp), (53, udp)):
            self.assertTrue(self.heard(frames(A4, B4, 999, port)))
            self.assertTrue(self.said(tcp(B4, A4, port, 999, SYN | ACK) if frames is tcp else udp(B4, A4, port, 999)))
        self.assertTrue(self.heard(tcp(A4, B4, 999, 22, ACK)))
        self.policing.change(parse(RULES.replace('name = "dns"', 'name = "names"')))
        self.assertTrue(self.said(udp(B4, A4, 53, 999)))
        self.assertTrue(self.said(tcp(B4, A4, 22, 999, ACK)))
        self.policing.change(parse(RULES.replace("22", "23")))
        self.assertTrue(self.said(udp(B4, A4, 53, 999)))
        self.assertFalse(self.said(tcp(B4, A4, 22, 999, ACK)))
        self.assertFalse(self.heard(tcp(A4, B4, 999, 22, ACK)))
        self.policing.change(Policy(True))
        self.assertTrue(self.heard(tcp(A4, B4, 999, 22, ACK)))

    def test_other_certificate(self) -> None:
        """A peer that is in other groups now may go on only with what those may."""
        self.assertTrue(self.heard(tcp(A4, B4, 999, 22)))
        self.peer = self.of(1, Party("peer"))
        self.assertFalse(self.heard(tcp(A4, B4, 999, 22, ACK)))

    def test_other_peer(self) -> None:
        """The flows of one peer are not those of another, whatever its addresses."""
        self.assertTrue(self.heard(udp(A4, B4, 999, 53)))
        self.peer = self.of(2, Party("other"))
        self.assertFalse(self.said(udp(B4, A4, 53, 999)))


class BoundTests(PolicingCase):
    """Memory."""

    def test_syn_flood(self) -> None:
        """Connections that never get beyond a SYN, answered or not, drive out none that did."""
        self.heard(tcp(A4, B4, 999, 22))
        self.said(tcp(B4, A4, 22, 999, SYN | ACK))
        self.heard(tcp(A4, B4, 999, 22, ACK))
        for port in range(1000, 1000 + 2 * MOST_OF_ONE):
            self.assertTrue(self.heard(tcp(A4, B4, port, 22)))
            self.said(tcp(B4, A4, 22, port, SYN | ACK))
        self.assertEqual(len(self.policing), MOST_OF_ONE)
        assert self.peer.flows is not None
        self.assertEqual(len(self.peer.flows.by_key), 2 * MOST_OF_ONE)
        kept = [flow for flow in self.peer.flows if flow.state == flow_table.SETTLED]
        self.assertEqual([flow.begun.key[-4:-2] for flow in kept], [(999).to_bytes(2, "big")])

    def test_time(self) -> None:
        """Idle flows are over after their time, swept or not; peers that are gone leave nothing."""
        self.heard(udp(A4, B4, 999, 53))
        self.clock.advance(29)
        self.assertTrue(self.said(udp(B4, A4, 53, 999)))
        self.clock.advance(179)
        self.assertTrue(self.said(udp(B4, A4, 53, 999)))
        self.clock.advance(181)
        self.assertFalse(self.said(udp(B4, A4, 53, 999)))
        self.heard(tcp(A4, B4, 999, 22))
        self.said(tcp(B4, A4, 22, 999, SYN | ACK))
        self.heard(tcp(A4, B4, 999, 22, ACK))
        self.clock.advance(7000)
        self.policing.sweep({})
        self.assertEqual(len(self.policing), 1)
        self.heard(tcp(A4, B4, 999, 22, FIN | ACK))
        self.clock.advance(61)
        self.policing.sweep({})
        self.assertEqual((len(self.policing), self.policing._flows), (0, {}))

    def test_denials_are_bounded(self) -> None:
        """Of what was dropped only the last kinds are told."""
        for port in range(100, 300):
            self.assertFalse(self.heard(tcp(A4, B4, 999, port)))
        denied = self.policing.status()["denied"]
        self.assertEqual((len(denied), denied[-1]), (32, {"direction": "in", "peer": "peer", "what": "tcp/299", "frames": 1}))


class ReferenceTests(PolicingCase):
    """Random conversations, frame by frame, against tuples in a set."""

    def test_random(self) -> None:
        """The same verdicts, with and without a default, over changes of the policy."""
        rng = random.Random(5)
        for _ in range(40):
            policy = self.drawn(rng)
            self.begin(policy)
            known: dict[tuple[object, ...], bool] = {}
            for _ in range(150):
                if rng.random() < 0.02:
                    policy = self.drawn(rng)
                    self.policing.change(policy)
                inward = rng.random() < 0.5
                pair = rng.choice([(A4, B4), (A6, B6)])
                source, target = pair if inward else pair[::-1]
                ports = rng.choice([22, 53, 999]), rng.choice([22, 53, 999])
                flags = rng.choice([SYN, SYN | ACK, ACK, ACK, RST | ACK]) if rng.random() < 0.5 else None
                frame = udp(source, target, *ports) if flags is None else tcp(source, target, *ports, flags)
                wanted = self.reference(policy, known, (flags is None, source, target, *ports), inward, flags)
                self.assertEqual(self.policing.admits(self.peer, frame, inward), wanted, (source, target, ports, flags, inward))

    def drawn(self, rng: random.Random) -> Policy:
        """Some of the rules."""
        head, *rules = RULES.split("[[allow]]")
        text = head.replace("deny", rng.choice(["deny", "deny", "deny", "allow"]))
        return parse("[[allow]]".join([text, *rng.sample(rules, rng.randrange(len(rules) + 1))]))

    def reference(
        self, policy: Policy, known: dict[tuple[object, ...], bool], name: tuple[object, ...], inward: bool, flags: int | None
    ) -> bool:
        """`known` has the flows by the tuple of the packet that began them, and whether the peer sent that."""

        def allowed(what: tuple[object, ...], by_peer: bool) -> bool:
            is_udp, source, target, _, port = what
            packet = Packet(17 if is_udp else 6, ip_address(str(source)).packed, ip_address(str(target)).packed, int(str(port)))
            return policy.allow or policy.decide(*((PEER, OWN) if by_peer else (OWN, PEER)), packet) is not None

        is_udp, source, target, sport, dport = name
        turned = (is_udp, target, source, dport, sport)
        for flow in (name, turned):
            if flow in known and not allowed(flow, known[flow]):
                del known[flow]
        opens = flags == SYN
        if name in known or (turned in known and not opens):
            return True
        if allowed(name, inward):
            known.pop(turned, None)
            known[name] = inward
            return True
        if not is_udp and not opens and allowed(turned, not inward):
            known[turned] = not inward
            return True
        return False
