"""Relayed datagrams of the control plane: the way they take when the same station is named twice."""

from __future__ import annotations

from ipop_tx.core import commands as c
from ipop_tx.core.links.link import Route
from ipop_tx.simulation.network import SimulatedNode
from ipop_tx.values import Endpoint
from ipop_tx.wire import messages as m
from ipop_tx.wire.datagram import CONTROL, RELAY
from ipop_tx.wire.relay import Relayed
from tests.net import NetCase, separate

NONSENSE = b"what nobody understands"


class StationTests(NetCase):
    """One and the other cannot reach each other; the relay reaches both."""

    def setUp(self) -> None:
        self.sim = self.net(1)
        self.relay, self.one, self.other = self.grow(self.sim, 3)
        separate(self.sim, [(self.one, self.other)])
        self.becomes(self.sim, lambda: self.is_relayed(self.one, self.other) and self.is_relayed(self.other, self.one), 60, "a relay")

    def is_relayed(self, one: SimulatedNode, other: SimulatedNode) -> bool:
        """Whether the link goes over a relay."""
        link = one.running.link(other.ident)
        return link is not None and not link.is_direct

    def send(self, *via: SimulatedNode) -> int:
        """A datagram of one for the other with this route, handed to the relay; gives how many arrive."""
        arrived: list[bytes] = []
        receive = self.other.running.links.receive

        def noted(path: Endpoint | Route, datagram: bytes) -> None:
            if isinstance(path, Route):
                arrived.append(datagram)
            receive(path, datagram)

        node = self.one.running
        link, by = node.link(self.other.ident), node.link(self.relay.ident)
        assert link is not None
        assert by is not None
        inner = link.session.protect(CONTROL, m.encode(m.PathChallenge(1)))
        relayed = Relayed(self.other.ident, self.one.ident, inner, via=tuple(station.ident for station in via))
        patched = self.patch(self.other.running.links, "receive", noted)
        node.links.send_datagram(by.active, by.session.protect(RELAY, relayed.encode()))
        self.one.settle()
        self.sim.run(0.3)
        patched.restore()
        return arrived.count(inner)

    def test_named_twice(self) -> None:
        """The relay, or the destination, stands once, twice or thrice in front: the datagram arrives, once."""
        for via in ((), (self.relay,), (self.relay,) * 2, (self.relay,) * 3, (self.relay, self.other, self.other), (self.other,)):
            self.assertEqual(self.send(*via), 1, [station.number for station in via])

    def test_none_is_named_twice(self) -> None:
        """A way to a member that is reached through a relay names no station that it names already."""
        relay = self.one.running.relay
        for via in ((), (self.other.ident,)):
            way = relay.way(Route(self.other.ident, via))
            assert way is not None
            self.assertEqual(way[0], self.relay.ident)
            self.assertLessEqual(way[1].via.count(self.other.ident), 1)
        self.assertEqual(relay.next_hop(self.other.ident, bytes(20)), (self.relay.ident, None))
        self.converse_both()

    def converse_both(self) -> None:
        """Both ways."""
        self.all_done(self.sim, [self.one.submit(c.Ping(self.other.ident)), self.other.submit(c.Ping(self.one.ident))], 3)


class CircleTests(NetCase):
    """Three members reach a fourth one over the ring, and each believes that the next of the three has a path to it."""

    def test_nobody_passes_on_twice(self) -> None:
        """What one of them sends does not go round until its time is up: whoever has had it already is left out, and it arrives."""
        sim = self.net(1)
        machines = self.grow(sim, 5)
        target, three = machines[0], machines[1:4]
        separate(sim, [(one, target) for one in three])
        self.becomes(sim, lambda: all(self.is_relayed(one, target) for one in three), 60, "relays")
        for one, following in zip(three, [*three[1:], three[0]], strict=True):
            link = one.running.link(target.ident)
            assert link is not None
            link.forget_route()
            link.relay, link.first_hop = None, following.ident
        passed: list[bytes] = []
        decode = Relayed.decode

        def noted(payload: bytes) -> Relayed:
            relayed = decode(payload)
            if relayed.datagram == NONSENSE:
                passed.append(payload)
            return relayed

        self.patch(Relayed, "decode", noted)
        three[0].running.relay.originate(Route(target.ident), NONSENSE)
        three[0].settle()
        sim.run(1.0)
        self.assertLessEqual(len(passed), len(machines) - 1, "stations")
        self.assertEqual(target.running.runtime.counters.get("datagram_unknown"), 1, "it has arrived")

    def is_relayed(self, one: SimulatedNode, other: SimulatedNode) -> bool:
        """Whether the link goes over the ring."""
        link = one.running.link(other.ident)
        return link is not None and not link.is_direct
