"""A node finds out what its NAT does, with other members' help alone; and nobody can make use of that help against others."""

from __future__ import annotations

from itertools import product
from typing import Any

from twisted.trial.unittest import TestCase

from ipop_tx.core import commands as c
from ipop_tx.core.links.facts import Facts
from ipop_tx.core.links.link import Link
from ipop_tx.core.links.links import Links
from ipop_tx.core.links.paths import KEEPALIVE, MOST_KEEPALIVE
from ipop_tx.core.nat.help import AT_ONCE
from ipop_tx.core.nat.lifetime import IDLE
from ipop_tx.core.nat.rules import filtering_of, mapping_of, step_of
from ipop_tx.core.natkind import Kind, Lifetime, NatFacts, Reach, feasible, why_infeasible
from ipop_tx.errors import IpopError
from ipop_tx.simulation.nat import Depends, Nat, NattedNet, Ports
from ipop_tx.simulation.network import SimulatedNode
from ipop_tx.values import Endpoint
from ipop_tx.wire import messages as m
from tests.net import NetCase
from tests.test_core_paths import link_of

KIND = {
    Depends.NOTHING: Kind.ENDPOINT_INDEPENDENT,
    Depends.ADDRESS: Kind.ADDRESS_DEPENDENT,
    Depends.ENDPOINT: Kind.ADDRESS_AND_PORT_DEPENDENT,
}


class NatCase(NetCase):
    """Some public members, and one node of which we want to know the NAT."""

    def grown(self, publics: int = 3, seed: int = 1, **nat: Any) -> tuple[NattedNet, SimulatedNode, Nat | None]:
        """A net of so many public members and a node, behind a NAT if one is described; all linked."""
        net = NattedNet(seed)
        self.watch(net)
        machines = [net.founder(), *(net.add() for _ in range(publics - 1))]
        node = net.add()
        made = None
        if nat:
            made = net.behind(
                node,
                nat.get("mapping", Depends.NOTHING),
                nat.get("filtering", Depends.ENDPOINT),
                nat.get("ports", Ports.IN_ORDER),
                nat.get("brittle", False),
            )
            made.lifetime, made.hairpin = nat.get("lifetime", float("inf")), nat.get("hairpin", False)
        net.wait(machines[0].start())
        for machine in (*machines[1:], node):
            net.wait(machine.start(machines[0]))
        net.run(40)
        return net, node, made

    def assert_kind(self, reach: Reach, mapping: Depends, filtering: Depends) -> None:
        """Mapping and filtering are named so."""
        self.assertEqual((reach.mapping, reach.filtering), (KIND[mapping], KIND[filtering]))

    def check(self, net: NattedNet, node: SimulatedNode) -> NatFacts:
        """What a check finds."""
        found = net.wait(node.submit(c.CheckNat()), 20)
        self.assertIsInstance(found, NatFacts)
        self.assertEqual(node.sides, {}, "sockets that were left open")
        return found  # type: ignore[no-any-return]


class ClassificationTests(NatCase):
    """Every kind of NAT is known for what it is."""

    def test_every_mapping_with_every_filtering_and_every_way_to_choose_ports(self) -> None:
        """All 27, named exactly and without doubt."""
        for seed, (mapping, filtering, ports) in enumerate(product(Depends, Depends, Ports)):
            net, node, _ = self.grown(seed=seed, mapping=mapping, filtering=filtering, ports=ports)
            found = self.check(net, node)
            step = 1 if mapping is not Depends.NOTHING and ports is Ports.IN_ORDER else 0
            self.assertEqual(found.reach, Reach(KIND[mapping], KIND[filtering], step), f"{mapping}, {filtering}, {ports}")
            self.assertTrue(found.mapping_sure and found.filtering_sure)
            self.assertEqual(found.helpers, 3)
            if mapping is Depends.NOTHING:
                self.assertEqual(found.port_kept, ports is Ports.KEPT)
                self.assertEqual(len(found.outer), 1)

    def test_brittle(self) -> None:
        """A router that gives away the port of a datagram that it keeps out is known for that, whichever ports it has; others are not."""
        for ports, filtering, brittle in product(Ports, (Depends.ADDRESS, Depends.ENDPOINT), (True, False)):
            net, node, _ = self.grown(filtering=filtering, ports=ports, brittle=brittle)
            found = self.check(net, node)
            self.assertEqual(found.reach, Reach(Kind.ENDPOINT_INDEPENDENT, KIND[filtering], brittle=brittle))

    def test_hops(self) -> None:
        """How far a datagram must get to open what stands before the node: one router, two in a row; where everybody gets in, none."""
        for seed, routers in enumerate(([Depends.ENDPOINT], [Depends.ADDRESS], [Depends.NOTHING], [Depends.NOTHING, Depends.ENDPOINT])):
            net, node, _ = self.grown(seed=seed, filtering=routers[0])
            for beyond in routers[1:]:
                net.behind(node, Depends.NOTHING, beyond)
                net.run(60)
            found = self.check(net, node)
            self.assertEqual(found.hops, 0 if routers == [Depends.NOTHING] else 1 + len(routers), routers)
            self.assertEqual(node.running.paths.facts.opening_hops(), found.hops or 2)

    def test_a_member_that_does_not_answer(self) -> None:
        """The nearest member opens a second port and answers no probe, for a NAT is in its way: the filter is known all the same."""
        for filtering in Depends:
            net, node, _ = self.grown(filtering=filtering)
            nearest = net.running()[1]
            nearest.place = node.place
            for _ in range(20):
                net.wait(node.submit(c.Ping(nearest.ident)))
            self.assertIs(node.running.nat.check.helpers()[0].link, link_of(node, nearest))
            self.patch(nearest.running.nat.help, "probed", lambda *probe: None)
            found = self.check(net, node)
            self.assert_kind(found.reach, Depends.NOTHING, filtering)
            self.assertTrue(found.filtering_sure)

    def test_no_nat(self) -> None:
        """A public machine has neither."""
        net, node, _ = self.grown()
        found = self.check(net, node)
        self.assertEqual(found.reach, Reach(Kind.NONE, Kind.ENDPOINT_INDEPENDENT))
        self.assertEqual((found.port_kept, found.hairpin), (None, None))

    def test_hairpin(self) -> None:
        """Known where it is, and where it is not; a filter for known endpoints does not hide it."""
        for filtering, hairpin in product(Depends, (True, False)):
            net, node, _ = self.grown(filtering=filtering, hairpin=hairpin)
            self.assertIs(self.check(net, node).hairpin, hairpin)

    def test_with_loss(self) -> None:
        """A tenth of all datagrams lost changes nothing."""
        for seed, (mapping, filtering) in enumerate(product(Depends, Depends)):
            net, node, _ = self.grown(seed=seed, mapping=mapping, filtering=filtering)
            net.loss = 0.1
            self.assert_kind(self.check(net, node).reach, mapping, filtering)

    def test_a_port_that_counts_from_the_beginning_again(self) -> None:
        """Numbers that begin anew in the middle of a check are numbers all the same."""
        net, node, nat = self.grown(mapping=Depends.ENDPOINT, ports=Ports.IN_ORDER)
        assert nat is not None
        outward, before = nat.outward, set(nat._inner)

        def wrapping(remote: Endpoint, port: int = 4500, now: float = 0.0) -> Endpoint:
            if len(set(nat._inner) - before) == 3:
                nat._next = 1024
            return outward(remote, port, now)

        self.patch(nat, "outward", wrapping)
        self.assertEqual(self.check(net, node).reach.step, 1)


class FewMembersTests(NatCase):
    """What fewer helpers can tell, and what they leave open."""

    def test_two_members(self) -> None:
        """Two are enough for all but a member that lies."""
        for mapping, filtering in product(Depends, Depends):
            net, node, _ = self.grown(2, mapping=mapping, filtering=filtering)
            found = self.check(net, node)
            self.assert_kind(found.reach, mapping, filtering)
            self.assertTrue(found.mapping_sure and found.filtering_sure)

    def test_one_member(self) -> None:
        """One sees from one address: what it cannot tell is not said for sure, and is never milder than the truth for the filter."""
        for mapping, filtering in product(Depends, Depends):
            net, node, _ = self.grown(1, mapping=mapping, filtering=filtering)
            found = self.check(net, node)
            self.assertEqual(found.mapping_sure, mapping is Depends.ENDPOINT)
            self.assertEqual(found.filtering_sure, filtering is Depends.ENDPOINT)
            self.assertGreaterEqual(found.reach.filtering, KIND[filtering])

    def test_nobody(self) -> None:
        """Alone, nothing is known."""
        net = NattedNet(1)
        alone = net.founder()
        net.wait(alone.start())
        found = self.check(net, alone)
        self.assertEqual((found.reach, found.helpers), (Reach(), 0))

    def test_other_transports_only(self) -> None:
        """Members that are reached by other transports, and by UDP none: UDP is blocked, and peers hear that."""
        net, node, _ = self.grown(mapping=Depends.NOTHING)
        for link in node.running.links:
            link.active = Endpoint("tls", "203.0.113.9", 443)
        future = node.running.nat.check_now()
        self.assertEqual(future.result().reach, Reach(Kind.BLOCKED, Kind.BLOCKED))
        self.assertEqual(node.running.hello().mapping, Kind.BLOCKED)
        self.assertEqual(net.faults, [])

    def test_members_without_a_second_port(self) -> None:
        """Where no member can be reached at a second port, a mapping that differs is taken for the stricter, and doubted."""
        net, node, _ = self.grown(mapping=Depends.ADDRESS, filtering=Depends.NOTHING)
        own = {machine.endpoint for machine in net.machines.values()}
        receiver = net.receiver

        def firewalled(source: Endpoint, endpoint: Endpoint) -> tuple[SimulatedNode | None, int | None]:
            return (None, 0) if endpoint.host.startswith("192.0.") and endpoint not in own else receiver(source, endpoint)

        self.patch(net, "receiver", firewalled)
        found = self.check(net, node)
        self.assert_kind(found.reach, Depends.ENDPOINT, Depends.NOTHING)
        self.assertEqual((found.mapping_sure, found.filtering_sure), (False, True))

    def test_one_of_three_lies(self) -> None:
        """Who tells of an endpoint that nobody else sees is left out."""
        net, node, _ = self.grown(mapping=Depends.NOTHING, filtering=Depends.NOTHING)
        liar = next(machine for machine in net.machines.values() if machine is not node)
        liar.running.nat.help.probed = lambda link, path, message: liar.running.links.send_message(  # type: ignore[method-assign]
            link, m.Probed(message.nonce, "udp:203.0.113.66:6666"), path
        )
        self.assertEqual(self.check(net, node).reach.mapping, Kind.ENDPOINT_INDEPENDENT)

    def test_knocks_from_the_wrong_place(self) -> None:
        """Members that knock from the port that was sent to, when asked for another one, do not make the filter look milder."""
        net, node, _ = self.grown(mapping=Depends.NOTHING, filtering=Depends.ENDPOINT)
        for machine in net.running():
            links = machine.running.links

            def lie(link: Link, body: m.Knock, links: Links = links) -> m.Done:
                links.send_message(link, m.Probed(body.nonce, body.endpoint), Endpoint.parse(body.endpoint))
                return m.Done()

            machine.running.rpc.serve(m.Knock, lie)
        self.assertEqual(self.check(net, node).reach, Reach(Kind.ENDPOINT_INDEPENDENT, Kind.ADDRESS_AND_PORT_DEPENDENT))

    def test_helpers_that_vanish(self) -> None:
        """All members crash in the middle: the check ends, and says little."""
        net, node, _ = self.grown(mapping=Depends.NOTHING)
        future = node.submit(c.CheckNat())
        net.run(0.05)
        for machine in net.running():
            if machine is not node:
                machine.crash()
        net.run(40, lambda: future.done)
        self.assertTrue(future.done)
        self.assertEqual(node.sides, {})

    def test_two_at_once(self) -> None:
        """Who asks during a check gets its result."""
        net, node, _ = self.grown(mapping=Depends.NOTHING)
        one, other = node.submit(c.CheckNat()), node.submit(c.CheckNat())
        net.wait(one)
        self.assertTrue(other.done)
        self.assertIs(one.result(), other.result())


class LifetimeTests(NatCase):
    """How long a mapping lives."""

    def test_lifetimes(self) -> None:
        """Lifetimes of 10, 30, 60 and 120 s are found between two of the lengths tried, and keep-alives fit them."""
        for lifetime, filtering in product((10.0, 30.0, 60.0, 120.0), (Depends.ENDPOINT, Depends.NOTHING)):
            net, node, nat = self.grown(filtering=filtering)
            assert nat is not None
            nat.lifetime = lifetime
            self.check(net, node)
            found = net.wait(node.submit(c.LearnLifetime()), 240)
            self.assertLessEqual(found.alive, lifetime)
            self.assertGreater(found.dead, lifetime - 0.5)
            self.assertEqual(IDLE.index(found.dead), IDLE.index(found.alive) + 1)
            keepalive = node.running.paths.keepalive
            self.assertLessEqual(1.2 * keepalive, lifetime)
            self.assertGreaterEqual(keepalive, min(MOST_KEEPALIVE, 0.55 * lifetime))
            self.assertEqual(node.sides, {})

    def test_for_ever(self) -> None:
        """What does not expire in three minutes is good enough."""
        net, node, _ = self.grown()
        self.check(net, node)
        self.assertEqual(net.wait(node.submit(c.LearnLifetime()), 1), Lifetime(IDLE[-1]))
        net, node, _ = self.grown(mapping=Depends.NOTHING)
        self.check(net, node)
        self.assertEqual(net.wait(node.submit(c.LearnLifetime()), 240), Lifetime(IDLE[-1], None))
        self.assertEqual(node.running.paths.keepalive, MOST_KEEPALIVE)

    def test_helper_goes(self) -> None:
        """A member that leaves in the middle does not make a mapping look dead."""
        net, node, _ = self.grown(mapping=Depends.NOTHING)
        self.check(net, node)
        future = node.submit(c.LearnLifetime())
        net.run(30)
        for machine in net.running():
            if machine is not node:
                machine.crash()
        net.run(300, lambda: future.done)
        self.assertTrue(future.done)
        self.assertIsNone(future.result().dead)
        self.assertEqual(node.running.paths.keepalive, KEEPALIVE)

    def test_short_lifetimes_are_survived(self) -> None:
        """Behind a NAT that forgets after 10 s idle direct paths are mapped anew again and again, and no more once that is known."""
        net, node, nat = self.grown(6, mapping=Depends.ENDPOINT)
        assert nat is not None
        nat.lifetime = 10.0
        for machine in net.running():
            machine.running.paths.watched = lambda ident: False  # neighbours on the ring would talk more often anyway
        self.assertGreater(self.mappings_in(net, nat, 240), 10)
        self.check(net, node)
        net.wait(node.submit(c.LearnLifetime()), 240)
        net.run(60)
        self.assertTrue(any(link.is_direct for link in node.running.links))
        self.assertEqual(self.mappings_in(net, nat, 240), 0)

    def mappings_in(self, net: NattedNet, nat: Nat, seconds: float) -> int:
        """How many mappings a NAT makes in that time."""
        before = nat._next
        net.run(seconds)
        return nat._next - before


class HelpTests(NatCase):
    """What members do for each other, and what they refuse."""

    def setUp(self) -> None:
        self.sim, self.node, _ = self.grown()
        self.helper = next(machine for machine in self.sim.machines.values() if machine is not self.node)
        self.sent: list[Endpoint] = []
        carry = self.sim.carry

        def note(sender: SimulatedNode, endpoint: Endpoint, datagram: bytes, port: int | None = None) -> None:
            if sender is self.helper:
                self.sent.append(endpoint)
            carry(sender, endpoint, datagram, port)

        self.patch(self.sim, "carry", note)

    def ask(self, body: m.Ask) -> Any:
        """Ask the helper something."""
        node = self.node.running
        node.runtime.now = self.sim.now
        future = node.rpc.on_link(link_of(self.node, self.helper), body)
        self.node.settle()
        return self.sim.wait(future)

    def test_no_third_party(self) -> None:
        """Nobody but the asker can be knocked at: other addresses, other members, nonsense are refused, and nothing is sent there."""
        other = next(machine for machine in self.sim.machines.values() if machine not in (self.node, self.helper))
        for endpoint in (
            "udp:203.0.113.9:53",
            str(other.endpoint),
            "udp:[2001:db8::1]:4500",
            "tls:" + str(self.node.endpoint)[4:],
            "x",
            "",
        ):
            self.assertRaises(IpopError, self.ask, m.Knock(1, endpoint, False))
        self.assertNotIn("203.0.113.9", {endpoint.host for endpoint in self.sent})

    def test_a_forged_source(self) -> None:
        """A member that sends a probe as if it came from somebody else makes nothing go there."""
        link = link_of(self.node, self.helper)
        forged = link.session.protect(1, m.encode(m.Probe(7)))
        self.helper.receive(Endpoint("udp", "203.0.113.9", 53), forged)
        self.sim.run(2)
        self.assertNotIn("203.0.113.9", {endpoint.host for endpoint in self.sent})
        self.assertEqual(self.helper.running.runtime.counters["nat_help_refused"], 1)

    def test_no_second_port_unasked(self) -> None:
        """There is none before one is asked for, and none a minute later."""
        knock = m.Knock(1, str(self.node.endpoint), True)
        self.assertRaises(IpopError, self.ask, knock)
        self.assertGreater(self.ask(m.Assist()).port, 0)
        self.ask(knock)
        self.sim.run(61)
        self.assertEqual(self.helper.sides, {})
        self.assertRaises(IpopError, self.ask, knock)

    def test_limits(self) -> None:
        """Who asks for very much gets a bucket of it; a new link does not refill it."""
        refused = 0
        for _ in range(3 * AT_ONCE):
            try:
                self.ask(m.Knock(1, str(self.node.endpoint._replace(port=9)), False))
            except IpopError:
                refused += 1
        knocked = sum(endpoint.port == 9 for endpoint in self.sent)
        self.assertLess(knocked, 2.5 * AT_ONCE)
        self.assertEqual(knocked + refused, 3 * AT_ONCE)

    def test_garbage_aside(self) -> None:
        """Nothing that comes in by a second port does more than a probe."""
        port = self.ask(m.Assist()).port
        (number,) = self.helper.sides
        link = link_of(self.node, self.helper)
        direct = dict(link_of(self.helper, self.node).direct)
        messages = m.PathChallenge(1), m.Close("x"), m.Probed(1, "x"), m.PathResponse(1, "x"), m.Request(1, m.Leaving(None, ()))
        for payload in (*map(m.encode, messages), b"", b"\xc1"):
            self.helper.receive_aside(self.node.endpoint._replace(port=5), link.session.protect(1, payload), port)
        for datagram in (b"", b"\x80", bytes(2000), bytes([150]) * 60, bytes([22]) * 60):
            self.helper.receive_aside(self.node.endpoint, datagram, port)
        self.sim.run(2)
        self.assertEqual([endpoint for endpoint in self.sent if endpoint.port == 5], [])
        self.assertIsNotNone(self.helper.running.link(self.node.ident))
        self.assertEqual(set(link_of(self.helper, self.node).direct), set(direct))
        self.assertIn(number, self.helper.sides)

    def test_a_check_makes_no_paths(self) -> None:
        """The sockets of a check do not become endpoints of a link."""
        before = {link.ident: set(link.direct) for link in self.node.running.links}
        self.check(self.sim, self.node)
        for machine in self.sim.machines.values():
            link = machine.running.link(self.node.ident)
            if link is not None:
                self.assertEqual({endpoint.port for endpoint in link.direct}, {4500})
        self.assertEqual({link.ident: set(link.direct) for link in self.node.running.links}, before)


class RulesTests(TestCase):
    """What observations tell, one by one."""

    A, A2, B, C = (Endpoint("udp", host, port) for host, port in (("192.0.2.1", 1), ("192.0.2.1", 2), ("192.0.2.2", 1), ("192.0.2.3", 1)))

    def kind(self, **seen: int) -> tuple[Kind, bool]:
        """Mapping, and whether that is sure, of what is seen at the ports of one outer address."""
        found = mapping_of({getattr(self, name): Endpoint("udp", "198.51.100.1", port) for name, port in seen.items()}, set())
        return found.reach.mapping, found.mapping_sure

    def test_mapping(self) -> None:
        """Each way in which four far endpoints can see a socket."""
        self.assertEqual(self.kind(), (Kind.UNKNOWN, False))
        self.assertEqual(self.kind(A=7), (Kind.ENDPOINT_INDEPENDENT, False))
        self.assertEqual(self.kind(A=7, A2=7), (Kind.ENDPOINT_INDEPENDENT, False))
        self.assertEqual(self.kind(A=7, B=7), (Kind.ENDPOINT_INDEPENDENT, True))
        self.assertEqual(self.kind(A=7, A2=7, B=8), (Kind.ADDRESS_DEPENDENT, True))
        self.assertEqual(self.kind(A=7, A2=8), (Kind.ADDRESS_AND_PORT_DEPENDENT, True))
        self.assertEqual(self.kind(A=7, B=8), (Kind.ADDRESS_AND_PORT_DEPENDENT, False))
        self.assertEqual(self.kind(A=7, A2=7, B=7, C=9), (Kind.ENDPOINT_INDEPENDENT, True))

    def test_steps(self) -> None:
        """Ports that grow by little are numbered, also past the end of the range; others are not."""
        for ports, step in (
            ([5, 6, 7], 1),
            ([5, 7, 9, 11], 2),
            ([40062, 40063, 40000, 40001], 1),
            ([5, 6, 9, 10], 1),
            ([5, 4, 3], 0),
            ([5, 500, 9000], 0),
            ([5, 5, 5], 0),
            ([5], 0),
            ([], 0),
        ):
            self.assertEqual(step_of([Endpoint("udp", "198.51.100.1", port) for port in ports]), step, ports)

    def test_filtering(self) -> None:
        """Knocks from elsewhere, and from another port of the one sent to: let in, kept out, or not to be had."""
        for others, second, expected in (
            ([True, False], None, (Kind.ENDPOINT_INDEPENDENT, True)),
            ([False], True, (Kind.ADDRESS_DEPENDENT, True)),
            ([], True, (Kind.ADDRESS_DEPENDENT, False)),
            ([None], True, (Kind.ADDRESS_DEPENDENT, False)),
            ([False], False, (Kind.ADDRESS_AND_PORT_DEPENDENT, True)),
            ([], False, (Kind.ADDRESS_AND_PORT_DEPENDENT, True)),
            ([False], None, (Kind.ADDRESS_AND_PORT_DEPENDENT, False)),
            ([None], None, (Kind.UNKNOWN, False)),
        ):
            self.assertEqual(filtering_of(others, second), expected, (others, second))

    def test_witnesses(self) -> None:
        """Peers at one address are one witness, however many."""
        one, other = Endpoint("udp", "198.51.100.1", 7), Endpoint("udp", "198.51.100.2", 7)
        facts = Facts(seen={bytes([n]): (one, "192.0.2.1") for n in range(9)} | {bytes([n]): (other, f"192.0.2.{n}") for n in (20, 21)})
        self.assertEqual(facts.observed(), {other: 2, one: 1})
        self.assertEqual(facts.candidates(), [other, one])
        self.assertEqual(facts.seen_by(bytes([20])), other)
        facts.forget(bytes([20]))
        self.assertEqual(facts.observed(), {one: 1, other: 1})


class PredicateTests(NatCase):
    """Which pairs can be direct, and what is said of the others."""

    def test_reasons(self) -> None:
        """Each pair is either feasible or has a reason, the same way round for both ends."""
        kinds = [Reach(mapping, filtering) for mapping in KIND.values() for filtering in KIND.values()]
        kinds += [Reach(Kind.NONE, filtering) for filtering in KIND.values()] + [Reach(Kind.BLOCKED, Kind.BLOCKED)]
        for ours, theirs in product(kinds, kinds):
            self.assertEqual(feasible(ours, theirs), feasible(theirs, ours))
            if not feasible(ours, theirs):
                self.assertRegex(why_infeasible(ours, theirs), r"^(both behind|UDP is blocked|an address-)")
        symmetric = Reach(Kind.ADDRESS_AND_PORT_DEPENDENT, Kind.ADDRESS_AND_PORT_DEPENDENT)
        self.assertEqual(why_infeasible(symmetric, symmetric), "both behind address-and-port-dependent mappings")

    def test_numbers_of_later_versions(self) -> None:
        """What we do not know yet is unknown."""
        self.assertIs(Kind.of(200), Kind.UNKNOWN)
        self.assertIs(Kind.of(4), Kind.ADDRESS_AND_PORT_DEPENDENT)
