"""`ipop explain` without a network: its table of verdicts, what it looks at on this machine, and what a member may learn by asking."""

from __future__ import annotations

import io
import re
import socket
import string
from ipaddress import IPv4Network, IPv6Network, ip_address
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
from rich.console import Console
from twisted.internet.defer import Deferred, succeed
from twisted.trial.unittest import SynchronousTestCase, TestCase

from ipop_tx.cli.explain import show, without_daemon
from ipop_tx.core import commands as c
from ipop_tx.core import events as e
from ipop_tx.core.dht.records import lease_key
from ipop_tx.core.leases.lease import LeaseValue
from ipop_tx.core.leases.resolver import Owner
from ipop_tx.core.tasks import Future
from ipop_tx.errors import EnvironmentProblem, LocalMisuse
from ipop_tx.services import machine
from ipop_tx.services.limit import Limit
from ipop_tx.services.probe import ANSWERED, IMPOSSIBLE, REFUSED, probe
from ipop_tx.services.relation import Relations
from ipop_tx.services.verdicts import CODES, STEPS, cause, explanation, step
from ipop_tx.services.whom import Explanation, Finder, Whom
from ipop_tx.values import Network
from ipop_tx.wire import messages as m
from ipop_tx.wire import relation as r
from ipop_tx.wire.policy import TCP, UDP, parse

DOCS = Path(__file__).parent.parent / "docs" / "explain.md"
MEMBER, OTHER = b"m" * 20, b"o" * 20
POLICY = 'default = "deny"\n[[allow]]\nname = "ssh"\nprotocol = "tcp"\nports = 22\n'


class VerdictTests(SynchronousTestCase):
    """The table, and what comes first."""

    def test_docs(self) -> None:
        """docs/explain.md lists each code with its step, verdict and sentence."""
        listed = re.findall(r"(?m)^\| `([a-z-]+)` \| ([a-z]+) \| ([a-z]+)(?:, ([a-z]+))? \| (.*) \|$", DOCS.read_text())
        self.assertEqual(listed, [(code, v.step, v.verdict, v.effect, v.sentence) for code, v in CODES.items()])

    def test_table(self) -> None:
        """Each step exists; a fault says what to do; nothing else has an effect."""
        for code, about in CODES.items():
            self.assertIn(about.step, STEPS, code)
            self.assertEqual(about.verdict == "fault", bool(about.effect), code)
            if about.verdict == "fault" and code != "dns-broken":
                self.assertRegex(about.sentence, "[:,(]", code)

    def test_sentences(self) -> None:
        """Each is filled by the words that it names."""
        for code, about in CODES.items():
            words = {name: "x" for _, name, _, _ in string.Formatter().parse(about.sentence) if name}
            self.assertNotIn("{", step(code, **words).sentence)

    def test_first(self) -> None:
        """What stops comes before what harms; what is missing here for another reason comes last."""
        full, down, lost = step("disk-full", path="/x"), step("tap-down", tap="t"), step("node-down", mend="start it")
        self.assertEqual(cause([full, down]), down)
        self.assertEqual(cause([full]), full)
        self.assertEqual(cause([lost, step("certificate-expired-here", date="today")]).code, "certificate-expired-here")  # type: ignore[union-attr]
        self.assertIsNone(cause([step("policy-none")]))
        told = explanation([down, full])
        self.assertEqual([one["step"] for one in told["steps"]], ["state", "tap"])
        self.assertEqual((told["verdict"], told["cause"]["effect"]), ("fault", "stops"))

    def test_80_columns(self) -> None:
        """However long a sentence is."""
        found = {"target": "x", **explanation([step("pool-overlaps", interface="eth0", range="10.128.0.0/16"), step("policy-none")])}
        out = io.StringIO()
        show(found, Console(file=out, width=80, highlight=False))
        self.assertTrue(all(len(line) <= 80 for line in out.getvalue().splitlines()), out.getvalue())
        self.assertIn("first: eth0 uses", out.getvalue())
        self.assertNotIn("\x1b", out.getvalue())

    def test_without_daemon(self) -> None:
        """A missing configuration is the mend."""
        found = without_daemon(Path(self.mktemp()), EnvironmentProblem("no daemon answers", "start it"))
        self.assertEqual(found["cause"]["code"], "node-down")
        self.assertIn("no such file", found["cause"]["sentence"])


class WhomTests(SynchronousTestCase):
    """Who is meant, where registers and links say different things."""

    def found(self, target: str, owner: Any, records: dict[bytes, Any], orders: tuple[Any, ...] = ()) -> tuple[Whom, list[str]]:
        """What is made of a target; `records` are certificates by key, `owner` what the resolver says."""
        network = Network("lab", bytes(20), IPv4Network("10.128.0.0/16"), IPv6Network("fd00::/48"))
        link = SimpleNamespace(ident=MEMBER, peer=SimpleNamespace(name="bare", guest=False))
        node: Any = SimpleNamespace(
            ident=b"n" * 20, network=network, links=[link], peer_hellos={MEMBER: SimpleNamespace(address=b"")},
            revocations=SimpleNamespace(by_key={one.key: one for one in orders}),
            dht=SimpleNamespace(signer=SimpleNamespace(is_void=lambda record: False)),
        )  # fmt: skip

        def submit(command: object) -> Deferred[Any]:
            return succeed(
                owner
                if isinstance(command, c.Resolve)
                else records.get(getattr(command, "key", b""), m.Certificate(1, (), m.NO_BALLOT, None, b"", ()))
            )

        protocol: Any = SimpleNamespace(node=node, submit=submit)
        whom, told = Whom(target), Explanation()
        dns: Any = SimpleNamespace(problem="", port=0)
        self.successResultOf(Deferred.fromCoroutine(Finder(protocol, dns).find(whom, told)))
        return whom, [one.code for one in told.steps]

    def test_nobody(self) -> None:
        """A peer without an address is not taken for whoever has none."""
        whom, codes = self.found("servre", None, {})
        self.assertEqual((whom.ident, codes), (None, ["dns-off", "name-unknown"]))
        self.assertEqual(self.found("10.128.0.9", None, {})[1], ["address-unowned"])
        self.assertEqual(self.found("bare", None, {})[0].ident, MEMBER)

    def test_name_of_one_that_was_thrown_out(self) -> None:
        """Gone with its owner; not with another one who has it now."""
        order = m.Revocation(bytes(20), bytes(32), "server", 1_800_000_000)
        self.assertEqual(self.found("server", None, {}, (order,))[0].revoked, "2027-01-15")
        address = ip_address("10.128.0.9").packed
        lease = m.Record(OTHER, 1, 60, msgspec.msgpack.encode(LeaseValue(address, "server")), b"", b"")
        live = m.Certificate(1, (), m.NO_BALLOT, lease, b"", (m.Voice(b"", 1000, 0, b""),))
        network = Network("lab", bytes(20), IPv4Network("10.128.0.0/16"), IPv6Network("fd00::/48"))
        whom, codes = self.found("server", Owner(OTHER, "server", address), {lease_key(network, address): live}, (order,))
        self.assertEqual((whom.revoked, whom.lease, whom.ident, codes), ("", "held", OTHER, ["dns-off", "name-found"]))


class MachineTests(TestCase):
    """Looks at this machine, by its loopback."""

    def test_interface(self) -> None:
        """One that is not there, or has no name that could be."""
        for name in ("ipop-none", "x" * 40):
            self.assertEqual(machine.interface_flag(name), r.TAP_GONE)

    def test_route(self) -> None:
        """The loopback has 127.0.0.0/8."""
        self.assertEqual(machine.way_to(ip_address("127.0.0.9")), ("lo", "127.0.0.0/8"))

    def test_disk(self) -> None:
        """A directory that can be written, one that is read-only for all, one that is not there."""
        self.assertEqual(machine.disk_flag(Path(".")), 0)
        self.assertEqual(machine.disk_flag(Path("/proc/nowhere")), r.READ_ONLY)

    def test_listens(self) -> None:
        """TCP and UDP, at one address or at all, in either family."""
        for family, protocol, kind, host, own in (
            (socket.AF_INET, TCP, socket.SOCK_STREAM, "127.0.0.1", bytes((127, 0, 0, 1))),
            (socket.AF_INET, UDP, socket.SOCK_DGRAM, "0.0.0.0", bytes((127, 0, 0, 1))),
            (socket.AF_INET6, TCP, socket.SOCK_STREAM, "::", bytes((127, 0, 0, 1))),
            (socket.AF_INET6, UDP, socket.SOCK_DGRAM, "::1", bytes(15) + b"\1"),
        ):
            with socket.socket(family, kind) as door:
                door.bind((host, 0))
                if kind == socket.SOCK_STREAM:
                    self.assertFalse(machine.listens(protocol, door.getsockname()[1], (own,)))
                    door.listen()
                self.assertTrue(machine.listens(protocol, door.getsockname()[1], (own,)), host)
                self.assertEqual(machine.listens(protocol, door.getsockname()[1], (bytes((192, 0, 2, 1)),)), host in ("0.0.0.0", "::"))
        self.assertIsNone(machine.listens(47, 0, ()))

    def test_probe(self) -> None:
        """Somebody listens; nobody does; nothing that could be tried."""
        from twisted.internet import reactor

        here = ip_address("127.0.0.1")

        async def both() -> None:
            with socket.create_server(("127.0.0.1", 0)) as door:
                port = door.getsockname()[1]
                self.assertEqual((await probe(reactor, here, here, TCP, port)).what, ANSWERED)
            self.assertEqual((await probe(reactor, here, here, TCP, port)).what, REFUSED)
            self.assertEqual((await probe(reactor, here, here, UDP, port)).what, REFUSED)
            self.assertEqual((await probe(reactor, here, here, 47, 0)).what, IMPOSSIBLE)
            self.assertEqual((await probe(reactor, here, ip_address("::1"), TCP, port)).what, IMPOSSIBLE)

        done: Deferred[None] = Deferred.fromCoroutine(both())
        return done  # type: ignore[return-value]


class RelationTests(SynchronousTestCase):
    """What a member gets to know."""

    def setUp(self) -> None:
        self.own = ip_address("10.128.0.2").packed
        own = SimpleNamespace(address=self.own, until=100.0, problem="")
        network = Network("lab", bytes(20), IPv4Network("10.128.0.0/16"), IPv6Network("fd00::/48"))
        facts = SimpleNamespace(reach=SimpleNamespace(mapping=2, filtering=4))
        self.link = SimpleNamespace(peer=SimpleNamespace(name="member", groups=()), is_direct=True)
        node: Any = SimpleNamespace(
            peer=SimpleNamespace(name="own", groups=()), ident=b"n" * 20, network=network, leases=SimpleNamespace(own=own), peer_hellos={},
            runtime=SimpleNamespace(now=40.0), settings=SimpleNamespace(newest=m.Newest(7, b"")), ring=SimpleNamespace(joined=True),
            paths=SimpleNamespace(facts=facts), link=lambda ident: self.link if ident == MEMBER else None,
        )  # fmt: skip
        self.now = 0.0
        self.heard: Any = None
        protocol: Any = SimpleNamespace(node=node, disk_problem="", clock=lambda: self.now, on=self._on)
        plane: Any = SimpleNamespace(fib=SimpleNamespace(by_ident={}), policing=None, counting=None)
        self.policy: Any = SimpleNamespace(policy=None)
        self.relations = Relations(protocol, plane, None, self.policy, SimpleNamespace(path=Path(".")), lambda: 1000.0)  # type: ignore[arg-type]

    def _on(self, kind: type, listener: Any) -> None:
        self.heard = listener

    def ask(self, question: m.Relate, ident: bytes = MEMBER) -> Any:
        """As if it came from a member; None when nothing was answered."""
        reply: Future[Any] = Future()
        self.heard(e.RelationAsked(ident, question, reply))
        return reply.result() if reply.done else None

    def question(self, port: int) -> m.Relate:
        """About TCP, from 10.128.0.1."""
        return m.Relate(ip_address("10.128.0.1").packed, self.own, TCP, port)

    def test_answer(self) -> None:
        """Address, clock, lease, versions."""
        told = self.ask(self.question(22))
        self.assertEqual((told.address, told.wall, told.lease_s, told.settings, told.allowed), (self.own, 1000, 60, 7, True))
        self.assertTrue(told.flags & r.NO_TAP)

    def test_listening_is_for_those_who_may(self) -> None:
        """Whom the policy keeps out learns nothing of the port, be it open or closed."""
        self.assertTrue(self.ask(self.question(9)).flags & r.ENDS_CLOSED)
        self.policy.policy = parse(POLICY)
        told = self.ask(self.question(9))
        self.assertEqual((told.allowed, told.rule, told.flags & (r.ENDS_CLOSED | r.ENDS_LISTEN)), (False, "default", 0))
        told = self.ask(self.question(22))
        self.assertEqual((told.allowed, told.rule), (True, "ssh"))
        self.assertTrue(told.flags & (r.ENDS_CLOSED | r.ENDS_LISTEN))

    def test_other_addresses(self) -> None:
        """Who listens at addresses that are not this node's is not told, nor anything about lengths that no address has."""
        self.assertFalse(self.ask(m.Relate(self.own, bytes((127, 0, 0, 1)), TCP, 22)).flags & (r.ENDS_CLOSED | r.ENDS_LISTEN))
        self.policy.policy = parse(POLICY.replace("[[allow]]", '[[allow]]\nfrom = "10.128.0.0/24"'))
        self.assertIsInstance(self.ask(m.Relate(bytes(5), self.own, TCP, 22)), m.Failed)
        self.assertFalse(self.ask(m.Relate(b"", b"")).allowed)
        self.assertFalse(self.ask(m.Relate(bytes(4), bytes(16), TCP, 22)).allowed)

    def test_bounded(self) -> None:
        """So many in ten seconds, of each asker; strangers get nothing."""
        self.assertIsNone(self.ask(self.question(22), OTHER))
        answers = [self.ask(self.question(22)) for _ in range(25)]
        self.assertEqual([isinstance(one, m.Relation) for one in answers], [True] * 20 + [False] * 5)
        self.now += 11.0
        self.assertIsInstance(self.ask(self.question(22)), m.Relation)

    def test_limit(self) -> None:
        """Many askers together may not ask much either; what was refused does not count."""
        limit = Limit(lambda: self.now, of_one=2, of_all=3)
        for asker in (MEMBER, MEMBER, OTHER):
            limit.check(asker)
        for asker in (MEMBER, OTHER, b"x" * 20):
            self.assertRaises(LocalMisuse, limit.check, asker)
        self.now += 10.0
        limit.check(MEMBER)
