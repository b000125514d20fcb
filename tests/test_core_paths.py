"""Links and their paths: handshakes that cross, get lost or meet the wrong one; requests; paths that die, improve, move, or are lies."""

from __future__ import annotations

from itertools import permutations
from typing import Any

from ipop_tx.core import commands as c
from ipop_tx.core.links.handshakes import PATIENCE
from ipop_tx.core.links.link import Link, Route
from ipop_tx.core.tasks import Future
from ipop_tx.errors import Conflict, IpopError, LocalMisuse, PeerRefused, Unreachable
from ipop_tx.simulation.network import SimulatedNode
from ipop_tx.values import Endpoint
from ipop_tx.wire import messages as m
from tests.net import NetCase, separate


def link_of(one: SimulatedNode, other: SimulatedNode) -> Link:
    """The link of one to the other, which must be up."""
    link = one.running.link(other.ident)
    assert link is not None, f"n{one.number} has no link to n{other.number}"
    return link


class PathCase(NetCase):
    """A founder and two others who cannot reach each other at first, so that their link goes over the ring."""

    def setUp(self) -> None:
        self.sim = self.net(1)
        self.relay, self.one, self.other = self.grow(self.sim, 3)

    def drop_link(self) -> None:
        """One and the other have no link, and do not make one by themselves."""
        for machine, peer in ((self.one, self.other), (self.other, self.one)):
            link = machine.running.link(peer.ident)
            if link is not None:
                machine.running.links.drop(link, "for a test", tell=False)
            machine.settle()

    def sessions(self) -> tuple[int, int, bool]:
        """How many sessions each end has, and whether both seal with the same."""
        one, other = link_of(self.one, self.other), link_of(self.other, self.one)
        return len(one.sessions), len(other.sessions), one.session.tag == other.session.tag


class HandshakeTests(PathCase):
    """How links come up."""

    def crossing(self, over_ring: bool) -> None:
        """Both begin in the same moment."""
        self.drop_link()
        links = []
        for machine, peer in ((self.one, self.other), (self.other, self.one)):
            node = machine.running
            node.runtime.now = self.sim.now
            links.append(node.links.connect(peer.ident) if over_ring else node.links.connect_endpoint(peer.endpoint))
            machine.settle()
        found = self.all_done(self.sim, links, 5)
        self.assertEqual([link.ident for link in found], [self.other.ident, self.one.ident])
        self.sim.run(3)
        self.converse(self.sim, [(self.one, self.other), (self.other, self.one)], 2)
        self.assertTrue(self.sessions()[2])

    def test_crossing(self) -> None:
        """On a direct path and over the ring: one link, and once both have spoken they seal with the same session."""
        self.crossing(over_ring=False)
        self.crossing(over_ring=True)

    def test_lost_flights(self) -> None:
        """A third of the flights lost: the handshake takes longer, and is done."""
        for seed in range(5):
            net = self.net(seed)
            machines = [net.founder(), net.add()]
            net.wait(machines[0].start())
            net.loss = 0.3
            net.wait(machines[1].start(machines[0]), 90)

    def test_nobody_there(self) -> None:
        """A handshake with nobody ends in a sentence."""
        future = self.one.running.links.connect_endpoint(Endpoint("udp", "203.0.113.9", 4500))
        self.one.settle()
        self.sim.run(PATIENCE + 1)
        self.assertIsInstance(future.error, Unreachable)

    def test_itself(self) -> None:
        """A node that names its own ident, or knocks on its own endpoint, makes no link."""
        self.assertIsInstance(self.one.submit(c.Connect(self.one.ident)).error, LocalMisuse)
        future = self.one.running.links.connect_endpoint(self.one.endpoint)
        self.one.settle()
        self.sim.run(PATIENCE + 5)
        self.assertIsInstance(future.error, IpopError)
        self.assertIsNone(self.one.running.link(self.one.ident))

    def test_somebody_else(self) -> None:
        """Whoever answers for another is refused."""
        handshakes = self.one.running.links._handshakes
        self.drop_link()
        future = handshakes.begin(self.other.endpoint, self.relay.ident)
        self.one.settle()
        self.sim.run(15, lambda: future.done)
        self.assertIsInstance(future.error, PeerRefused)
        self.assertIn("somebody else answered", str(future.error))

    def test_rekey(self) -> None:
        """After minutes both ends have fresh keys, few old ones, and have lost no frame."""
        before = link_of(self.one, self.other).session.tag
        for _ in range(30):
            self.sim.run(10)
            self.converse(self.sim, [(self.one, self.other), (self.other, self.one)], 2)
        sessions = self.sessions()
        self.assertNotEqual(link_of(self.one, self.other).session.tag, before)
        self.assertLessEqual(max(sessions[:2]), 3)

    def test_garbage(self) -> None:
        """Datagrams of every first byte, long and short, change nothing."""
        for first in range(256):
            for size in (0, 3, 40, 1200):
                self.one.receive(self.other.endpoint, bytes([first]) + bytes(size))
        self.one.receive(self.other.endpoint, b"")
        self.converse(self.sim, [(self.one, self.other), (self.other, self.one)], 2)


class RequestTests(PathCase):
    """Requests are repeated until answered and carried out once."""

    def ask(self, handler: Any, loss: float = 0.0) -> tuple[list[int], Future[Any]]:
        """One asks the other something that `handler` answers; how often it was called, and the answer."""
        calls: list[int] = []

        def counted(link: Link, body: m.Ask) -> Any:
            calls.append(1)
            return handler(link, body)

        self.other.running.rpc.serve(m.Retire, counted)
        self.sim.loss = loss
        future = self.one.submit(c.Ask(self.other.ident, m.Retire(3, 1, ())))
        self.sim.run(60, lambda: future.done)
        self.sim.loss = 0.0
        return calls, future

    def test_once(self) -> None:
        """However many are lost, what is answered was carried out once."""
        answered = 0
        for _ in range(40):
            calls, future = self.ask(lambda link, body: m.Redirect(3, 1, ()), 0.4)
            self.assertLessEqual(len(calls), 1)
            answered += future.error is None
            self.sim.run(20)
        self.assertGreater(answered, 25)

    def test_slow(self) -> None:
        """An answer that takes its time is waited for: a repetition is told that it is worked on."""
        calls, future = self.ask(lambda link, body: self.later(7.0))
        self.assertEqual((len(calls), future.result()), (1, m.Done()))

    async def later(self, seconds: float) -> m.Answer:
        """Answer after a while."""
        await self.other.running.runtime.sleep(seconds)
        return m.Done()

    def test_errors(self) -> None:
        """An error of ours arrives as what it is."""

        def refuse(link: Link, body: m.Ask) -> m.Answer:
            raise Conflict("it is taken", "take another")

        error = self.ask(refuse)[1].error
        self.assertIsInstance(error, Conflict)
        self.assertEqual(str(error), "it is taken: take another")

    def test_dead(self) -> None:
        """A node that has died is unreachable after a few seconds, and its link is gone soon after."""
        self.other.crash()
        begun = self.sim.now
        future = self.one.submit(c.Ask(self.other.ident, m.Retire(3, 1, ())))
        self.sim.run(60, lambda: future.done)
        self.assertIsInstance(future.error, Unreachable)
        self.assertLess(self.sim.now - begun, 10)
        self.becomes(self.sim, lambda: self.one.running.link(self.other.ident) is None, 15, "no link to the dead")


class PathTests(PathCase):
    """Which path a link uses."""

    def is_direct(self) -> bool:
        """Whether both ends use a direct path."""
        return link_of(self.one, self.other).is_direct and link_of(self.other, self.one).is_direct

    def test_fall_back_and_upgrade(self) -> None:
        """A direct path that dies gives way to the ring within seconds; frames go on; when it works again it is taken again."""
        self.converse(self.sim, [(self.one, self.other)])
        self.assertTrue(self.is_direct())
        separate(self.sim, [(self.one, self.other)])
        self.becomes(
            self.sim,
            lambda: not link_of(self.one, self.other).is_direct and not link_of(self.other, self.one).is_direct,
            60,
            "the ring instead",
        )
        self.converse(self.sim, [(self.one, self.other), (self.other, self.one)])
        separate(self.sim, [])
        self.becomes(self.sim, self.is_direct, 150, "direct again")

    def test_one_way(self) -> None:
        """A path that carries only one way is no path."""
        self.sim.reachable = lambda sender, receiver: (sender, receiver) != (self.one, self.other)
        ends = (self.one, self.other), (self.other, self.one)
        self.becomes(self.sim, lambda: not any(link_of(*end).is_direct for end in ends), 60, "the ring instead")
        self.converse(self.sim, ends)

    def test_inadmissible(self) -> None:
        """Endpoints of the overlay itself, multicast, loopback, other schemes and nonsense never get a datagram."""
        bad = ("udp:10.128.0.7:4500", "udp:[fd12:3456:789a::1]:4500", "udp:224.0.0.1:4500", "udp:0.0.0.0:4500", "udp:127.0.0.1:4500")
        bad += ("tls:203.0.113.7:443", "udp:203.0.113.7", "nonsense", str(self.one.endpoint), "udp:169.254.0.1:1")
        separate(self.sim, [(self.one, self.other)])
        self.becomes(self.sim, lambda: not link_of(self.one, self.other).is_direct, 60, "the ring instead")
        sent: list[str] = []
        carry = self.sim.carry

        def note(sender: SimulatedNode, endpoint: Endpoint, datagram: bytes) -> None:
            sent.append(str(endpoint))
            carry(sender, endpoint, datagram)

        self.patch(self.sim, "carry", note)
        for candidates in (bad[:5], bad[5:], ("udp:203.0.113.8:9",)):
            self.one.running.paths.offered(link_of(self.one, self.other), m.Offer(tuple(candidates)))
            self.one.settle()
            self.sim.run(5)
        self.assertEqual(set(sent) & set(bad) - {str(self.one.endpoint)}, set())
        self.assertIn("udp:203.0.113.8:9", sent)

    def test_replayed_elsewhere(self) -> None:
        """Whoever sends a copy of a datagram, or holds one back and sends it first, from an endpoint of its own moves no path."""
        attacker = Endpoint("udp", "203.0.113.66", 6)
        receive = SimulatedNode.receive

        def doubled(machine: SimulatedNode, source: Endpoint, datagram: bytes) -> None:
            if machine is self.other and source == self.one.endpoint:
                receive(machine, attacker, datagram)
            receive(machine, source, datagram)

        self.patch(SimulatedNode, "receive", doubled)
        for _ in range(10):
            # No pings: their answers go the way that the questions came, and here the attacker is always first.
            self.all_done(self.sim, [x.submit(c.Ask(y.ident, m.GetNeighbours())) for x, y in permutations((self.one, self.other))], 5)
            self.sim.run(5)
        link = link_of(self.other, self.one)
        self.assertNotEqual(link.active, attacker)
        self.assertNotIn(attacker, link.direct)

    def test_roaming(self) -> None:
        """A node that appears at another endpoint is answered there once it has met a challenge, not before."""
        moved = Endpoint("udp", "192.0.2.200", 4500)
        old = self.other.endpoint
        self.sim.machines[moved] = self.other
        del self.sim.machines[old]
        self.other.endpoint = moved
        self.assertEqual(link_of(self.one, self.other).active, old)
        self.becomes(self.sim, lambda: link_of(self.one, self.other).active == moved, 60, "the new endpoint")
        self.converse(self.sim, [(self.one, self.other), (self.other, self.one)], 5)

    def test_observed(self) -> None:
        """Peers tell a node how they see it; nobody offers more than a few endpoints."""
        self.sim.run(30)
        facts = self.one.running.paths.facts
        self.assertEqual(set(facts.observed()), {self.one.endpoint})
        facts.local = [Endpoint("udp", f"192.0.2.{number}", 1) for number in range(20)]
        self.assertEqual(len(self.one.running.paths.offer().candidates), 8)

    def test_ping(self) -> None:
        """A ping takes as long as the way there and back."""
        (x, y), (u, v) = self.one.place, self.other.place
        way = 2 * (0.001 + 0.05 * ((x - u) ** 2 + (y - v) ** 2) ** 0.5)
        self.assertAlmostEqual(self.sim.wait(self.one.submit(c.Ping(self.other.ident))), way, 6)
        self.assertFalse(isinstance(link_of(self.one, self.other).active, Route))
