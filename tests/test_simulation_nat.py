"""Hole punching succeeds exactly where the rules of the two NATs say that it can; everywhere else the ring relays."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import combinations_with_replacement, product
from typing import Any

import msgspec
from twisted.trial.unittest import TestCase

from ipop_tx.core import commands as c
from ipop_tx.core.links.facts import CANDIDATES
from ipop_tx.core.links.links import Links
from ipop_tx.core.links.why import why_relayed
from ipop_tx.core.nat.search import PROBES, SOCKETS
from ipop_tx.core.natkind import Kind as NatKind
from ipop_tx.core.natkind import Reach, feasible
from ipop_tx.errors import IpopError
from ipop_tx.simulation.nat import Depends, Nat, NattedNet, Ports
from ipop_tx.simulation.network import SimulatedNode
from ipop_tx.values import Endpoint
from ipop_tx.wire import messages as m
from tests.net import NetCase
from tests.test_core_paths import link_of

NOTHING, ADDRESS, ENDPOINT = Depends
ONE, OTHER_PORT, OTHER = (Endpoint("udp", *place) for place in (("192.0.2.1", 1), ("192.0.2.1", 2), ("192.0.2.2", 1)))

Kind = tuple[Depends, Depends]
KINDS: dict[str, Kind] = {
    "full cone": (NOTHING, NOTHING),
    "restricted": (NOTHING, ADDRESS),
    "port-restricted": (NOTHING, ENDPOINT),
    "symmetric": (ENDPOINT, ENDPOINT),
    "symmetric, open": (ENDPOINT, NOTHING),
}


MAPPINGS = {
    "kept": (NOTHING, Ports.KEPT),
    "changed": (NOTHING, Ports.RANDOM),
    "by address": (ADDRESS, Ports.RANDOM),
    "in order": (ENDPOINT, Ports.IN_ORDER),
    "random": (ENDPOINT, Ports.RANDOM),
}
Router = tuple[Depends, Depends, Ports, bool]
ROUTERS: list[Router] = [(mapping, filtering, ports, False) for (mapping, ports), filtering in product(MAPPINGS.values(), Depends)]
LINUX: Router = (NOTHING, ENDPOINT, Ports.KEPT, True)
NAMES = {
    NOTHING: NatKind.ENDPOINT_INDEPENDENT,
    ADDRESS: NatKind.ADDRESS_DEPENDENT,
    ENDPOINT: NatKind.ADDRESS_AND_PORT_DEPENDENT,
}


def reach_of(router: Router) -> Reach:
    """What a router makes of a node."""
    mapping, filtering, ports, brittle = router
    return Reach(NAMES[mapping], NAMES[filtering], int(mapping is not NOTHING and ports is Ports.IN_ORDER), brittle)


def stricter(one: Router, other: Router) -> Router:
    """What two in a row amount to."""
    order = list(Depends)
    mapping = max(one[0], other[0], key=order.index)
    return mapping, max(one[1], other[1], key=order.index), one[2] if mapping is one[0] else other[2], False


class NatTests(TestCase):
    """The model."""

    def test_mapping(self) -> None:
        """The outer port depends on what the mapping says, and on nothing else."""
        for mapping, distinct in ((NOTHING, 1), (ADDRESS, 2), (ENDPOINT, 3)):
            nat = Nat("198.51.100.1", mapping, NOTHING)
            self.assertEqual(len({nat.outward(remote) for remote in (ONE, OTHER_PORT, OTHER, ONE)}), distinct)

    def test_filtering(self) -> None:
        """Who may answer depends on whom one has sent to."""
        for filtering, admitted in ((NOTHING, [True, True, True]), (ADDRESS, [True, True, False]), (ENDPOINT, [True, False, False])):
            nat = Nat("198.51.100.1", NOTHING, filtering)
            self.assertIsNone(nat.admits(ONE, 20001))
            port = nat.outward(ONE).port
            self.assertEqual([nat.admits(remote, port) is not None for remote in (ONE, OTHER_PORT, OTHER)], admitted)
            self.assertIsNone(nat.admits(ONE, port + 1))


class PunchTests(NetCase):
    """Two nodes behind NATs, and two public ones."""

    def pair(
        self, seed: int, one: tuple[Any, ...], other: tuple[Any, ...], *beyond: Router
    ) -> tuple[NattedNet, SimulatedNode, SimulatedNode]:
        """A net with these two in it, linked; the first one is behind those `beyond` too."""
        net = NattedNet(seed)
        self.watch(net)
        machines = [net.founder(), *(net.add() for _ in range(3))]
        net.behind(machines[2], *one)
        for router in beyond:
            net.behind(machines[2], *router)
        net.behind(machines[3], *other)
        net.wait(machines[0].start())
        for machine in machines[1:]:
            net.wait(machine.start(machines[0]))
        net.run(20)
        self.whole(net)
        return net, machines[2], machines[3]

    @contextmanager
    def never_opened(self) -> Iterator[None]:
        """A time in which nobody opens its NAT before it lets the peer come."""
        patched = self.patch(Links, "open_towards", lambda links, link, endpoint, hops: None)
        yield
        patched.restore()

    def check_both(self, net: NattedNet, *machines: SimulatedNode) -> None:
        """Both know their NATs."""
        self.all_done(net, [machine.submit(c.CheckNat()) for machine in machines])

    def is_direct(self, one: SimulatedNode, other: SimulatedNode) -> bool:
        """Whether both ends use a direct path."""
        links = one.running.link(other.ident), other.running.link(one.ident)
        return all(link is not None and link.is_direct for link in links)

    def becomes_what_it_can(self, net: NattedNet, first: SimulatedNode, second: SimulatedNode, possible: bool, what: str) -> float:
        """Direct within 20 s, if that is possible, and for good; frames pass both ways in any case. Gives how long it took."""
        ends = [(first, second), (second, first)]
        self.converse(net, ends)
        self.check_both(net, first, second)
        begun = net.now
        net.run(20.0, lambda: self.is_direct(first, second))
        took = net.now - begun
        self.assertEqual(self.is_direct(first, second), possible, what)
        net.run(60)
        self.assertEqual(self.is_direct(first, second), possible, f"{what}, a minute later")
        self.converse(net, ends)
        return took

    def test_all_pairs(self) -> None:
        """Each of the 136 pairs of 16 routers becomes direct exactly if the predicate says that it can."""
        for seed, (one, other) in enumerate(combinations_with_replacement([*ROUTERS, LINUX], 2)):
            net, first, second = self.pair(seed, one, other)
            self.becomes_what_it_can(net, first, second, feasible(reach_of(one), reach_of(other)), f"{one} and {other}")
            for machine in (first, second):
                self.assertLessEqual(len(machine.sides), 2, f"{one} and {other}: sockets that are left")

    def test_double_nat(self) -> None:
        """Of two routers in a row the stricter counts."""
        for seed, (home, carrier) in enumerate([(ROUTERS[0], ROUTERS[14]), (ROUTERS[2], ROUTERS[4]), (ROUTERS[9], ROUTERS[2])]):
            both = reach_of(stricter(home, carrier))
            for other in (ROUTERS[2], ROUTERS[13], ROUTERS[14]):
                net, first, second = self.pair(seed, home, other, carrier)
                self.becomes_what_it_can(net, first, second, feasible(both, reach_of(other)), f"{home} behind {carrier}, and {other}")

    def aimed(self, router: Router) -> tuple[int, SimulatedNode]:
        """Datagrams to a third party that a peer names as its NAT, while a node behind `router` looks for a way to it; and that node."""
        net, caster, liar = self.pair(3, router, ROUTERS[2])
        victim = Endpoint("udp", "192.88.99.1", 53)
        offer, carry, hits = liar.running.paths.offer, net.carry, [0]

        def carried(sender: Any, endpoint: Endpoint, *rest: Any) -> None:
            hits[0] += endpoint.host == victim.host
            carry(sender, endpoint, *rest)

        liar.running.paths.offer = lambda: msgspec.structs.replace(offer(), outer=str(victim))  # type: ignore[method-assign]
        net.carry = carried  # type: ignore[method-assign]
        self.converse(net, [(caster, liar), (liar, caster)])
        self.check_both(net, caster, liar)
        net.run(90.0)
        return hits[0], caster

    def test_nobody_is_aimed_at(self) -> None:
        """Nothing is cast at who is named falsely, whether the ports would be foretold or not, since nobody sees the peer there."""
        for router in (ROUTERS[11], ROUTERS[14]):
            hits, caster = self.aimed(router)
            self.assertEqual(hits, 0)
            self.assertGreater(caster.running.runtime.counters.get("search_refused", 0), 0)

    def test_what_comes_too_early(self) -> None:
        """Two brittle routers at which something came in unasked before anything was known: fresh ports do what the old ones cannot."""
        with self.never_opened():
            net, first, second = self.pair(5, LINUX, LINUX)
            self.assertFalse(self.is_direct(first, second))
        self.becomes_what_it_can(net, first, second, True, "spoilt ports")
        for machine, peer in ((first, second), (second, first)):
            link = machine.running.link(peer.ident)
            assert link is not None and isinstance(link.active, Endpoint)
            self.assertTrue(link.active.side, "the path goes by a fresh socket")
            self.assertEqual(machine.running.nat.search.technique(link), "fresh ports")
            self.assertLessEqual(len(machine.sides), 1)

    def test_brittle_beyond(self) -> None:
        """A brittle router of two in a row is opened too, once it is known how many there are."""
        for seed, other in enumerate((LINUX, ROUTERS[2], ROUTERS[8], ROUTERS[14])):
            net, first, second = self.pair(seed, ROUTERS[2], other, LINUX)
            self.check_both(net, first, second)
            self.assertEqual(first.running.paths.facts.hops, 3)
            self.becomes_what_it_can(net, first, second, True, f"two in a row, the outer one brittle, and {other}")

    def test_words(self) -> None:
        """What is said of a search: that it runs, that it found nothing and when the next begins; and afterwards how a path was found."""
        net, first, second = self.pair(3, ROUTERS[2], ROUTERS[14])
        self.converse(net, [(first, second)])
        prober, caster = link_of(first, second), link_of(second, first)
        lost: list[bytes] = []
        carry = net.carry

        def lose(sender: SimulatedNode, endpoint: Endpoint, datagram: bytes, port: int | None = None) -> None:
            between = sender in (first, second) and endpoint.host.startswith("198.51.") and endpoint.host != hosts[sender]
            lost.append(datagram) if between else carry(sender, endpoint, datagram, port)

        hosts = {machine: Endpoint.parse(machine.running.paths.offer().outer).host for machine in (first, second)}
        self.patch(net, "carry", lose)
        self.check_both(net, first, second)
        net.run(2)
        for machine, link in ((first, prober), (second, caster)):
            self.assertEqual(machine.running.nat.search.state(link), "looking for the right port with the peer")
        net.run(20)
        state = second.running.nat.search.state(caster) or ""
        self.assertRegex(state, r"^1 search for a port found nothing; the next in \d+ s$")
        self.assertEqual(why_relayed(caster, second.running.paths, net.now, second.running.nat.search.state), state)
        self.assertIsNone(second.running.nat.search.technique(caster))
        self.assertGreater(len(lost), PROBES)
        self.patch(net, "carry", carry)
        net.run(100, lambda: self.is_direct(first, second))
        net.run(5)
        for machine, link in ((first, prober), (second, caster)):
            self.assertEqual(machine.running.nat.search.technique(link), "a search among all ports")

    def test_search_is_bounded(self) -> None:
        """What a search costs: no more sockets and challenges than said; the pair that nothing can help is let alone."""
        net, first, second = self.pair(3, ROUTERS[2], ROUTERS[14])
        before = net.datagrams
        self.becomes_what_it_can(net, first, second, True, "birthday")
        self.assertLess(net.datagrams - before, PROBES + 3 * SOCKETS + 1500)
        net, first, second = self.pair(3, ROUTERS[14], ROUTERS[14])
        self.becomes_what_it_can(net, first, second, False, "two symmetric ones")
        self.assertEqual(first.running.runtime.counters.get("searches", 0) + second.running.runtime.counters.get("searches", 0), 0)

    def test_search_is_not_for_others(self) -> None:
        """Who names an address at which nobody sees it, or no witness, gets no datagram sent there."""
        net, first, second = self.pair(3, ROUTERS[2], ROUTERS[14])
        self.converse(net, [(first, second)])
        self.check_both(net, first, second)
        net.run(0.05)
        witness = net.running()[0].ident
        sent: list[str] = []
        carry = net.carry

        def note(sender: SimulatedNode, endpoint: Endpoint, datagram: bytes, port: int | None = None) -> None:
            sent.append(endpoint.host)
            carry(sender, endpoint, datagram, port)

        self.patch(net, "carry", note)
        for outer, witnesses in (("udp:203.0.113.9:9", (witness,)), ("udp:198.51.100.2:9", ()), ("udp:203.0.113.9:9", ())):
            asked = second.submit(c.Ask(first.ident, m.Search(outer, (4500,), witnesses)))
            net.run(5, lambda asked=asked: asked.done)  # type: ignore[misc]
            self.assertIsInstance(asked.error, IpopError)
        self.assertNotIn("203.0.113.9", sent)

    def test_no_storm(self) -> None:
        """Two NATs that map each far endpoint anew make each challenge come from an unknown endpoint: that does not go on for ever."""
        net, first, second = self.pair(1, KINDS["symmetric, open"], KINDS["symmetric, open"])
        self.converse(net, [(first, second), (second, first)])
        before = net.datagrams
        net.run(60)
        self.assertLess((net.datagrams - before) / 60, 15, "datagrams a second")
        for machine in (first, second):
            self.assertLessEqual(max(len(link.direct) for link in machine.running.links), CANDIDATES)

    def test_doubt_ends(self) -> None:
        """Two ends of a relayed link that doubt it at the same moment convince themselves once, and are quiet again."""
        net, one, other = self.pair(1, KINDS["symmetric"], KINDS["symmetric"])
        net.run(30)
        for machine, peer in ((one, other), (other, one), (one, other)):
            machine.submit(c.Suspect(peer.ident))
            net.run(0.2)
        before = net.datagrams
        net.run(60)
        self.assertLess(net.datagrams - before, 60 * 4 * 4, "datagrams of four idle nodes in a minute")

    def test_observed(self) -> None:
        """A node behind a NAT learns how others see it and offers that."""
        first = self.pair(1, KINDS["port-restricted"], KINDS["port-restricted"])[1]
        self.assertIn("udp:198.51.100.1:20001", first.running.paths.offer().candidates)
