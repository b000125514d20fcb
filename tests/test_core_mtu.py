"""The MTU of direct paths: found, followed up and down, per direction and path, with bounded traffic, the same for the same seed."""

from __future__ import annotations

from collections import Counter
from random import Random

from twisted.trial.unittest import SynchronousTestCase

from ipop_tx.core import commands as c
from ipop_tx.core.events import LinkChanged
from ipop_tx.core.links.link import BASE, DirectPath, Link, PathKey, Route
from ipop_tx.core.links.mtu import IDLE, PRECISION, RAISE, TRIES, WATCH, PathMtu, padded, sizes
from ipop_tx.core.runtime import Runtime
from ipop_tx.core.tasks import Future
from ipop_tx.simulation.network import SimulatedNode
from ipop_tx.values import Endpoint, Peer
from ipop_tx.wire import messages as m
from ipop_tx.wire.datagram import OVERHEAD
from tests.net import NetCase, separate
from tests.test_core_paths import link_of

SEARCH = 60.0
"""Seconds within which every search is over, also one that halves."""


class SizeTests(SynchronousTestCase):
    """What is sent."""

    def test_exact(self) -> None:
        """A padded challenge has exactly the size wanted, whatever the length of its token."""
        for token in (0, 127, 128, 255, 256, 65535, 65536, 2**32 - 1, 2**32, 2**62):
            for size in (400, BASE, 1252, 1472, 8973):
                message = padded(token, size)
                self.assertEqual(len(m.encode(message)) + OVERHEAD, size)
                self.assertEqual(m.decode(m.encode(message)), message)

    def test_usual(self) -> None:
        """Largest first, less the headers of the endpoint's family."""
        self.assertEqual(sizes(Endpoint("udp", "192.0.2.1", 1)), [8973, 8972, 1472, 1464, 1452, 1392, 1372, 1352, 1252])
        self.assertEqual(sizes(Endpoint("udp", "2001:db8::1", 1))[:3], [8953, 8952, 1452])


class WhoTests(SynchronousTestCase):
    """Who is probed."""

    def probed(self, rtt: float = 0.05, guest: bool = False, scheme: str = "udp", relayed: bool = False, frames: float = 0.0) -> list[int]:
        """The sizes of the datagrams that a link's path gets at once."""
        link = Link(Peer(bytes(20), "peer", guest=guest), 0.0, True)
        endpoint = Endpoint(scheme, "192.0.2.1", 1)
        link.direct[endpoint] = DirectPath(rtt, 0.0)
        link.active = Route(link.ident) if relayed else endpoint
        link.frames = frames
        sent: list[int] = []

        def challenge(link: Link, path: PathKey, wait: float, size: int) -> Future[float]:
            sent.append(size)
            return Future()

        made = PathMtu(Runtime(Random(1)), challenge)
        made.tend(link)
        made.tend(link)
        made.doubt(link)
        return sent

    def test_who(self) -> None:
        """Members on a direct path on which they answered and that carries frames, once."""
        self.assertEqual(self.probed(), sizes(Endpoint("udp", "192.0.2.1", 1)))
        self.assertEqual(self.probed(rtt=0.0) + self.probed(guest=True) + self.probed(scheme="tls") + self.probed(relayed=True), [])
        self.assertEqual(self.probed(frames=-IDLE), [])


class MtuCase(NetCase):
    """Two nodes and what is between them; frames go over their link all the time."""

    def setUp(self) -> None:
        self.patch(PathMtu, "_busy", lambda mtu, link: True)

    def pair(self, mtu: int, seed: int = 1, loss: float = 0.0) -> None:
        """Founder and newcomer; every datagram longer than `mtu` vanishes between them."""
        self.sim = self.net(seed)
        self.sim.mtu = lambda sender, receiver: mtu
        self.one, self.other = self.sim.founder(), self.sim.add()
        self.sim.wait(self.one.start())
        self.sim.wait(self.other.start(self.one))
        self.sim.loss = loss

    def narrow(self, mtu: int) -> None:
        """From now on nothing longer passes, either way."""
        self.sim.mtu = lambda sender, receiver: mtu

    def mtus(self) -> tuple[int, int]:
        """What each end thinks."""
        return link_of(self.one, self.other).mtu, link_of(self.other, self.one).mtu

    def becomes_mtu(self, least: int, most: int, seconds: float) -> float:
        """Both ends have an MTU between these within `seconds`."""
        return self.becomes(
            self.sim, lambda: all(least <= mtu <= most for mtu in self.mtus()), seconds, f"{least} to {most}, not {self.mtus()}"
        )


class SearchTests(MtuCase):
    """How an MTU is found."""

    def test_usual_sizes(self) -> None:
        """The usual ones are found at once, exactly, and stay."""
        for mtu in (1472, 8973, 8972, 1452, 1252):
            self.pair(mtu)
            self.becomes_mtu(mtu, mtu, 1)
            self.sim.run(SEARCH)
            self.assertLessEqual(max(self.mtus()) - mtu, 0)

    def test_odd_sizes(self) -> None:
        """Others are found by halving; none above Ethernet's."""
        for mtu in (1391, 1200, 1217, 1471):
            self.pair(mtu)
            self.becomes_mtu(mtu - PRECISION, mtu, SEARCH)
        self.pair(4000)
        self.sim.run(SEARCH)
        self.assertEqual(self.mtus(), (1472, 1472))

    def test_unlimited(self) -> None:
        """Nothing larger than the largest usual size is tried."""
        self.pair(65507)
        self.becomes_mtu(8973, 8973, 1)

    def test_directions(self) -> None:
        """Each direction has its own."""
        self.pair(1472)
        self.sim.mtu = lambda sender, receiver: 8973 if sender is self.one else 1391
        self.sim.run(RAISE + WATCH + SEARCH)
        there, back = self.mtus()
        self.assertEqual(there, 8973)
        self.assertTrue(1391 - PRECISION <= back <= 1391, back)

    def test_loss(self) -> None:
        """With 30 % lost each way no MTU is ever too large, and on average it is little too small."""
        found: list[int] = []
        for seed in range(8):
            self.pair(1464, seed, loss=0.3)
            for _ in range(20):
                self.sim.run(15)
                links = [machine.running.link(peer.ident) for machine, peer in ((self.one, self.other), (self.other, self.one))]
                found += [link.mtu for link in links if link is not None]
        self.assertLessEqual(max(found), 1464)
        self.assertGreater(sum(found) / len(found), 1400)

    def test_deterministic(self) -> None:
        """The same seed gives the same datagrams."""
        runs = []
        for _ in range(2):
            self.pair(1391, 5, loss=0.2)
            self.sim.run(300)
            runs.append((self.sim.datagrams, self.sim.bytes, self.mtus()))
        self.assertEqual(runs[0], runs[1])


class FollowTests(MtuCase):
    """How a change is noticed."""

    def doubt(self) -> None:
        """Both drivers see large datagrams vanish."""
        self.one.submit(c.DoubtMtu(self.other.ident))
        self.other.submit(c.DoubtMtu(self.one.ident))

    def test_black_hole(self) -> None:
        """After a doubt the MTU is true again within five seconds, and rises once the path is wider."""
        self.pair(1472)
        self.sim.run(SEARCH)
        self.narrow(1391)
        self.doubt()
        self.becomes_mtu(1372, 1391, 5)
        self.sim.run(SEARCH)
        self.narrow(1472)
        self.becomes_mtu(1472, 1472, RAISE + 2 * WATCH)

    def test_far(self) -> None:
        """Also where the way there and back takes long."""
        self.pair(1472)
        self.sim.width_s = 0.6
        self.one.place, self.other.place = (0.0, 0.0), (0.8, 0.6)
        self.sim.run(900)
        self.assertGreater(link_of(self.one, self.other).rtt, 0.4)
        self.narrow(1300)
        self.doubt()
        self.becomes_mtu(1252, 1300, 5)

    def test_suspicion(self) -> None:
        """A member that seems silent is asked both: whether it is there, and whether large datagrams get there."""
        self.pair(1472)
        self.sim.run(SEARCH)
        self.narrow(BASE)
        self.one.submit(c.Suspect(self.other.ident))
        self.becomes(self.sim, lambda: self.mtus()[0] == BASE, 5, "the least MTU")

    def test_idle(self) -> None:
        """An idle path's MTU stays true."""
        self.pair(1472)
        self.sim.run(SEARCH)
        self.narrow(1300)
        self.becomes_mtu(1252, 1300, 1.2 * WATCH + 5)

    def test_doubt_without_reason(self) -> None:
        """A doubt changes nothing where all passes, nor where nothing does, nor for who has no link."""
        self.pair(1472)
        self.sim.run(SEARCH)
        self.doubt()
        self.sim.run(5)
        self.assertEqual(self.mtus(), (1472, 1472))
        self.one.submit(c.DoubtMtu(bytes(20)))
        separate(self.sim, [(self.one, self.other)])
        self.doubt()
        link = link_of(self.one, self.other)
        self.sim.run(4)
        self.assertNotIn("mtu_fallen", self.one.running.runtime.counters)
        self.becomes(self.sim, lambda: not link.up, 60, "no link")

    def test_told(self) -> None:
        """The driver hears of each change, and of nothing else."""
        self.pair(1391)
        told: list[int] = []
        self.sim.on_event = lambda machine, event: (
            told.append(link_of(machine, self.other).mtu) if machine is self.one and isinstance(event, LinkChanged) else None
        )
        self.sim.run(SEARCH)
        self.narrow(1300)
        self.doubt()
        self.sim.run(5)
        self.assertEqual(told, [*sorted(told[: told.index(BASE)]), BASE, 1252])
        self.assertEqual(len(told), len(set(told)))


class PathChangeTests(MtuCase):
    """Which path's MTU a link has."""

    def test_paths(self) -> None:
        """A relayed path has the least one; back on the direct path the link has what that carries now."""
        net = self.net(1)
        _, one, other = self.grow(net, 3)
        net.mtu = lambda sender, receiver: 1472
        link = link_of(one, other)
        self.assertEqual(link.mtu, 8973)
        separate(net, [(one, other)])
        self.becomes(net, lambda: not link_of(one, other).is_direct, 60, "the ring instead")
        self.assertEqual(link_of(one, other).mtu, BASE)
        separate(net, [])
        self.becomes(net, lambda: link_of(one, other).mtu == 1472, 150, "the MTU of the direct path")

    def test_roaming(self) -> None:
        """A peer that moves behind something narrower is never sent more than that carries there."""
        net = self.net(1)
        _, one, other = self.grow(net, 3)
        moved = Endpoint("udp", "192.0.2.200", 4500)
        net.machines[moved] = other
        del net.machines[other.endpoint]
        other.endpoint = moved
        net.mtu = lambda sender, receiver: 1372
        self.becomes(net, lambda: link_of(one, other).active == moved, 60, "the new endpoint")
        self.assertLessEqual(link_of(one, other).mtu, 1372)
        self.becomes(net, lambda: link_of(one, other).mtu == 1372, 5, "its MTU")

    def test_unproven(self) -> None:
        """An endpoint that never answered gets no large datagram, whatever a peer says of it."""
        net = self.net(1)
        _, one, other = self.grow(net, 3)
        stranger = Endpoint("udp", "203.0.113.9", 9)
        sent: list[int] = []
        carry = net.carry

        def note(sender: SimulatedNode, endpoint: Endpoint, datagram: bytes) -> None:
            if endpoint == stranger:
                sent.append(len(datagram))
            carry(sender, endpoint, datagram)

        self.patch(net, "carry", note)
        one.submit(c.PathSeen(other.ident, stranger))
        separate(net, [(one, other)])
        self.becomes(net, lambda: not link_of(one, other).is_direct, 60, "the ring instead")
        one.running.paths.offered(link_of(one, other), m.Offer((str(stranger),)))
        one.settle()
        net.run(5)
        self.assertGreater(len(sent), 3)
        self.assertLess(max(sent), 100)


class IdleTests(NetCase):
    """Links without frames."""

    def test_only_while_frames_go(self) -> None:
        """No large datagram before the first frame; the search when a link is wanted for frames; none any more a while after the last."""
        net = self.net(1)
        one, other = net.founder(), net.add()
        net.wait(one.start())
        net.wait(other.start(one))
        net.run(300)
        self.assertEqual((link_of(one, other).mtu, link_of(other, one).mtu), (BASE, BASE))
        net.wait(one.submit(c.Connect(other.ident)))
        net.run(5)
        self.assertGreater(link_of(one, other).mtu, BASE)
        self.assertEqual(link_of(other, one).mtu, BASE, "that direction has carried nothing")
        net.run(IDLE + 2 * WATCH)
        before = net.bytes
        net.run(600)
        self.assertLess((net.bytes - before) / 600, 200)


class CostTests(MtuCase):
    """What it costs."""

    def large(self, mtu: int, interface: int, seconds: float) -> Counter[int]:
        """How many datagrams of which size one node sends in `seconds`: only large ones, and only those that its interface lets out."""
        self.pair(mtu)
        sent: Counter[int] = Counter()
        carry = self.sim.carry

        def note(sender: SimulatedNode, endpoint: Endpoint, datagram: bytes) -> None:
            if sender is self.one and BASE <= len(datagram) <= interface:
                sent[len(datagram)] += 1
            carry(sender, endpoint, datagram)

        self.patch(self.sim, "carry", note)
        self.sim.run(seconds)
        return sent

    def test_search(self) -> None:
        """A search sends each size at most a few times, and ends."""
        sent = self.large(1391, 9000, RAISE / 2)
        self.assertLessEqual(max(count for size, count in sent.items() if size > 1391), TRIES)
        self.assertLess(sum(size * count for size, count in sent.items()), 100_000)

    def test_idle(self) -> None:
        """A silent link costs 45 bytes a second behind Ethernet, 280 with jumbo frames, 140 where these go out and get lost."""
        for mtu, interface, most in ((1472, 1472, 45.0), (8973, 8973, 280.0), (1472, 8973, 140.0)):
            sent = self.large(mtu, interface, 2 * 3600)
            rate = sum((size + 28) * count for size, count in sent.items()) / (2 * 3600)
            self.assertLess(rate, most)
            self.assertGreater(rate, most / 2)
