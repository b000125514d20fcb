"""Hole punching succeeds exactly where the rules of the two NATs say that it can; everywhere else the ring relays."""

from __future__ import annotations

from itertools import combinations_with_replacement

from twisted.trial.unittest import TestCase

from ipop_tx.core import commands as c
from ipop_tx.core.links.paths import CANDIDATES
from ipop_tx.simulation.nat import Depends, Nat, NattedNet
from ipop_tx.simulation.network import SimulatedNode
from ipop_tx.values import Endpoint
from tests.net import NetCase

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


def gets_through(sender: Kind, receiver: Kind) -> bool:
    """Whether a challenge to the port that others see of the receiver comes in and its answer back, once both have sent to each other."""
    let_in = receiver[1] is NOTHING or (receiver[0] is NOTHING and (receiver[1] is ADDRESS or sender[0] is NOTHING))
    return let_in and (sender[1] is not ENDPOINT or receiver[0] is NOTHING)


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

    def pair(self, seed: int, one: Kind, other: Kind) -> tuple[NattedNet, SimulatedNode, SimulatedNode]:
        """A net with these two in it, linked."""
        net = NattedNet(seed)
        self.watch(net)
        machines = [net.founder(), *(net.add() for _ in range(3))]
        net.behind(machines[2], *one)
        net.behind(machines[3], *other)
        net.wait(machines[0].start())
        for machine in machines[1:]:
            net.wait(machine.start(machines[0]))
        net.run(60)
        self.whole(net)
        return net, machines[2], machines[3]

    def test_all_pairs(self) -> None:
        """Each pair of kinds becomes direct exactly if one side can let the other in; frames pass both ways in any case."""
        for seed, (one, other) in enumerate(combinations_with_replacement(KINDS, 2)):
            net, first, second = self.pair(seed, KINDS[one], KINDS[other])
            self.converse(net, [(first, second), (second, first)])
            net.run(90)
            possible = gets_through(KINDS[one], KINDS[other]) or gets_through(KINDS[other], KINDS[one])
            for machine, peer in ((first, second), (second, first)):
                link = machine.running.link(peer.ident)
                self.assertIsNotNone(link)
                self.assertEqual(link is not None and link.is_direct, possible, f"{one} and {other}")
            self.converse(net, [(first, second), (second, first)])

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
