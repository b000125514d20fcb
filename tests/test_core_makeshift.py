"""Paths that are makeshifts: taken when no UDP passes, never before, and left again when it does. In virtual time."""

from __future__ import annotations

from typing import Any

from ipop_tx.core import commands as c
from ipop_tx.core.links.link import Link, detour
from ipop_tx.core.ring.bootstrap import MAKESHIFT_AFTER
from ipop_tx.simulation.network import SimulatedNet, SimulatedNode
from ipop_tx.values import Endpoint
from tests.net import NetCase

DATAGRAM = 1472


class TwoWayNet(SimulatedNet):
    """A net in which machines also have TLS: some listen, all can connect, UDP is blocked for some."""

    def __init__(self, seed: int, **options: Any) -> None:
        super().__init__(seed, **options)
        self.blocked: set[int] = set()
        """Machines without UDP."""
        self.listening: set[int] = set()
        self.dialled: list[tuple[float, int, int]] = []
        """When which machine used TLS to which."""
        self.epoch: dict[int, int] = {}
        """Ports change when connections are made anew."""

    def tls(self, machine: SimulatedNode) -> Endpoint:
        """Where a machine listens."""
        return Endpoint("tls", machine.endpoint.host, 443)

    def told(self, machine: SimulatedNode) -> None:
        """A machine learns what it has."""
        own = (machine.endpoint, self.tls(machine)) if machine.number in self.listening else (machine.endpoint,)
        machine.submit(c.Reachable(own, carries=(("udp", 0), ("tls", DATAGRAM))))

    def carry(self, sender: SimulatedNode, endpoint: Endpoint, datagram: bytes, port: int | None = None) -> None:
        other = self.receiver(endpoint, endpoint)[0]
        if endpoint.carrier == "udp":
            if sender.number in self.blocked or (other is not None and other.number in self.blocked):
                return
        elif other is not None:
            self.dialled.append((self.now, sender.number, other.number))
        super().carry(sender, endpoint, datagram, port)

    def source(self, sender: SimulatedNode, endpoint: Endpoint, port: int | None) -> Endpoint:
        if endpoint.scheme == "tls":
            return Endpoint("tls-in", sender.endpoint.host, 50000 + self.epoch.get(sender.number, 0))
        return self.tls(sender) if endpoint.scheme == "tls-in" else super().source(sender, endpoint, port)

    def receiver(self, source: Endpoint, endpoint: Endpoint) -> tuple[SimulatedNode | None, int | None]:
        machine = next((one for one in self.machines.values() if one.endpoint.host == endpoint.host), None)
        if machine is None or endpoint.scheme == "udp":
            return super().receiver(source, endpoint)
        if endpoint.scheme == "tls":
            return (machine if machine.number in self.listening else None), None
        return (machine if endpoint.port == 50000 + self.epoch.get(machine.number, 0) else None), None


def link_of(one: SimulatedNode, other: SimulatedNode) -> Link | None:
    """The link of one to the other."""
    return one.running.link(other.ident)


def kind(one: SimulatedNode, other: SimulatedNode) -> str:
    """`udp`, `tls`, `ring` or `none`."""
    link = link_of(one, other)
    return "none" if link is None else link.active.carrier if isinstance(link.active, Endpoint) else "ring"


class MakeshiftCase(NetCase):
    """A member that listens for TLS, and two others."""

    def two_way(self, blocked: tuple[int, ...] = (), seed: int = 1, listening: tuple[int, ...] = (0,)) -> TwoWayNet:
        net = TwoWayNet(seed)
        self.watch(net)
        net.blocked, net.listening = set(blocked), set(listening)
        self.relay, self.one, self.other = machines = [net.founder(), net.add(), net.add()]
        net.wait(self.relay.start())
        net.told(self.relay)
        for machine in machines[1:]:
            future = machine.start(self.relay)
            net.told(machine)
            machine.running.bootstrap.remember((net.tls(self.relay),))
            net.wait(future)
        net.run(30)
        return net


class ChoiceTests(MakeshiftCase):
    """Which kind of path a link uses."""

    def test_udp_where_it_passes(self) -> None:
        """TLS is not even tried."""
        net = self.two_way()
        net.run(300)
        self.assertEqual({kind(self.one, self.relay), kind(self.other, self.relay), kind(self.one, self.other)}, {"udp"})
        self.assertEqual(net.dialled, [])

    def test_tls_where_it_does_not(self) -> None:
        """One without UDP joins by TLS, after UDP has had its chance; the others reach it by the relay, which needs nothing more."""
        net = self.two_way(blocked=(1,))
        self.assertEqual((kind(self.one, self.relay), kind(self.relay, self.one)), ("tls", "tls"))
        self.assertEqual((kind(self.other, self.relay), kind(self.one, self.other)), ("udp", "ring"))
        self.assertGreaterEqual(net.dialled[0][0], MAKESHIFT_AFTER)
        self.assertEqual({(sender, receiver) for _, sender, receiver in net.dialled}, {(1, 0), (0, 1)})
        self.converse(net, [(self.one, self.other), (self.other, self.one)])
        self.assertIn(self.relay.ident, self.one.running.paths.makeshifts.unanswered)

    def test_both_without_udp(self) -> None:
        net = self.two_way(blocked=(1, 2))
        self.assertEqual((kind(self.one, self.relay), kind(self.other, self.relay), kind(self.one, self.other)), ("tls", "tls", "ring"))
        self.converse(net, [(self.one, self.other), (self.other, self.one)])

    def test_a_peer_that_listens_is_reached_directly(self) -> None:
        """No relay where TLS leads to the peer itself; whichever end can be connected to."""
        for seed in range(4):
            for listening in ((0, 1), (0, 2)):
                net = self.two_way(blocked=(1,), seed=seed, listening=listening)
                net.run(60)
                self.converse(net, [(self.one, self.other), (self.other, self.one)])
                net.run(30)
                self.assertEqual((kind(self.one, self.other), kind(self.other, self.one)), ("tls", "tls"), (seed, listening))

    def test_back_to_udp_within_a_minute(self) -> None:
        """As soon as UDP passes, both ends use it, whichever has the greater ident; and they stay there."""
        for seed in range(6):
            net = self.two_way(blocked=(1,), seed=seed)
            self.assertEqual(kind(self.one, self.relay), "tls")
            net.blocked.clear()
            ends = (self.one, self.relay), (self.relay, self.one)
            self.becomes(net, lambda ends=ends: all(kind(*end) == "udp" for end in ends), 60, "UDP again")
            self.assertNotIn(self.relay.ident, self.one.running.paths.makeshifts.unanswered)
            net.run(120)
            used = len(net.dialled)
            net.run(120)
            self.assertEqual({kind(*end) for end in ends}, {"udp"})
            self.assertEqual(len(net.dialled), used, "TLS is not used any more")

    def test_udp_blocked_later(self) -> None:
        """A link moves to TLS within seconds once UDP stops passing, without being lost."""
        for seed in range(4):
            net = self.two_way(seed=seed)
            net.blocked = {1}
            since = link_of(self.one, self.relay)
            self.becomes(net, lambda: kind(self.one, self.relay) == "tls", 40, "TLS")
            self.assertIs(link_of(self.one, self.relay), since)
            net.run(10)
            self.converse(net, [(self.one, self.other), (self.other, self.one)])

    def test_slower_but_better(self) -> None:
        """UDP is taken also where TLS has the shorter round trip: a makeshift is one whatever it measures."""
        net = self.two_way(blocked=(1,))
        link = link_of(self.one, self.relay)
        assert link is not None
        link.direct[link.active].rtt = 1e-6  # type: ignore[index]  # it is direct
        net.blocked.clear()
        self.becomes(net, lambda: kind(self.one, self.relay) == kind(self.relay, self.one) == "udp", 60, "UDP again")

    def test_flapping(self) -> None:
        """UDP that comes and goes: nothing is lost, and in the end all is well."""
        net = self.two_way()
        for _ in range(5):
            net.blocked = {1}
            net.run(45)
            net.blocked = set()
            net.run(45)
        self.becomes(net, lambda: kind(self.one, self.relay) == kind(self.relay, self.one) == "udp", 60, "UDP again")
        self.converse(net, [(self.one, self.other), (self.other, self.one)])

    def test_no_tls_either(self) -> None:
        """Nobody listens: the one without UDP stays outside, and says so."""
        net = TwoWayNet(1)
        self.watch(net)
        net.blocked = {1}
        relay, one = net.founder(), net.add()
        net.wait(relay.start())
        one.start(relay)
        net.told(one)
        net.run(30)
        self.assertIn("no member answers", one.running.bootstrap.problem)


class ConnectionTests(MakeshiftCase):
    """What the transport tells of its connections."""

    def test_a_connection_that_is_made_anew(self) -> None:
        """The peer comes by another port: the link goes on there within a second or two, also at the end that cannot connect."""
        for seed in range(4):
            net = self.two_way(blocked=(1,), seed=seed)
            link = link_of(self.relay, self.one)
            assert link is not None and isinstance(link.active, Endpoint)
            old = link.active
            net.epoch[1] = 1
            self.relay.submit(c.PathLost(old))
            self.one.submit(c.PathLost(net.tls(self.relay)))
            took = self.becomes(net, lambda link=link, old=old: isinstance(link.active, Endpoint) and link.active != old, 10, "another")
            self.assertLessEqual(took, 1.0)
            self.assertTrue(link.up)
            net.run(60)
            self.assertEqual(kind(self.one, self.relay), "tls")
            self.converse(net, [(self.one, self.other)])
            self.assertNotIn(old, link.direct)

    def test_the_relay_dies(self) -> None:
        """Whoever had only that one by TLS finds it again when it is back."""
        net = self.two_way(blocked=(1,))
        self.relay.crash()
        net.run(40)
        self.assertEqual(kind(self.one, self.relay), "none")
        self.relay.start(self.other)
        net.told(self.relay)
        self.becomes(net, lambda: kind(self.one, self.relay) == "tls", 60, "linked again")

    def test_the_size_of_datagrams(self) -> None:
        """Known from the start, and not searched for."""
        net = self.two_way(blocked=(1,))
        for one, other in ((self.one, self.relay), (self.relay, self.one)):
            link = link_of(one, other)
            assert link is not None
            self.assertEqual(link.mtu, DATAGRAM)
        sizes: list[int] = []
        carry = net.carry
        self.patch(net, "carry", lambda sender, endpoint, datagram: (sizes.append(len(datagram)), carry(sender, endpoint, datagram)))
        for machine in (self.one, self.relay):
            machine.running._note_frames(link_of(machine, self.relay if machine is self.one else self.one))  # type: ignore[arg-type]
        net.run(30)
        self.assertLessEqual(max(sizes), 1300)


class OfferTests(MakeshiftCase):
    """Which endpoints are told to whom."""

    def test_connections_are_not_endpoints(self) -> None:
        """Where somebody came from by TLS is neither observed nor offered, remembered nor knocked at."""
        net = self.two_way(blocked=(1,))
        net.run(60)
        for machine in (self.relay, self.one, self.other):
            node = machine.running
            known = [*node.paths.facts.candidates(), *node.paths.facts.observed(), *node.bootstrap.endpoints]
            self.assertFalse([endpoint for endpoint in known if endpoint.inward])
        self.assertIsNone(self.one.running.paths.admissible("tls-in:192.0.2.9:50000"))

    def test_tls_endpoints_are_never_crowded_out(self) -> None:
        facts = self.two_way().machines[self.relay.endpoint].running.paths.facts
        facts.local = [*(Endpoint("udp", f"192.0.2.{number}", 1) for number in range(20)), Endpoint("tls", "192.0.2.1", 443)]
        offered = facts.candidates()
        self.assertEqual((len(offered), offered[-1].scheme), (8, "tls"))

    def test_a_scheme_that_nobody_here_has(self) -> None:
        paths = self.two_way().machines[self.relay.endpoint].running.paths
        self.assertIsNone(paths.admissible("quic:203.0.113.9:443"))
        self.assertIsNotNone(paths.admissible("tls:203.0.113.9:443"))

    def test_order_of_preference(self) -> None:
        ranks = [detour(Endpoint(scheme, "192.0.2.1", 1)) for scheme in ("udp", "tls", "tls-in", "web", "udp-in")]
        self.assertEqual(ranks, [0, 1, 1, 2, 0])
