"""Links that nobody needs are ended, and nothing else is: neither members nor traffic nor anything that hangs on a link."""

from __future__ import annotations

from itertools import permutations

from ipop_tx.core import commands as c
from ipop_tx.core.events import LinkDown
from ipop_tx.core.links.link import LINGER, UNNEEDED, Link, Route
from ipop_tx.core.links.spare import AGAIN, FEWEST, IDLE
from ipop_tx.core.ring.bootstrap import KNOCK_AGAIN, RARELY
from ipop_tx.core.ring.ring import LINKED
from ipop_tx.simulation.network import SimulatedNet, SimulatedNode
from ipop_tx.values import Endpoint
from ipop_tx.wire import messages as m
from ipop_tx.wire.datagram import RELAY
from ipop_tx.wire.relay import Relayed
from tests.net import NetCase, separate

SETTLED = IDLE + 120.0
"""Seconds in which links that are used no more are gone."""


class SpareCase(NetCase):
    """A net that notes why links end."""

    def watch(self, net: SimulatedNet) -> SimulatedNet:
        """Note each end of a link."""
        self.ended: list[tuple[SimulatedNode, LinkDown]] = []
        net.on_event = lambda machine, event: self.ended.append((machine, event)) if isinstance(event, LinkDown) else None
        return super().watch(net)

    def grow_quietly(self, net: SimulatedNet, count: int) -> list[SimulatedNode]:
        """A net that has been left alone until no link is spare any more."""
        machines = self.grow(net, count)
        net.run(2 * SETTLED)
        self.ended.clear()
        return machines

    def strangers(self, machines: list[SimulatedNode]) -> tuple[SimulatedNode, SimulatedNode]:
        """Two who do not need each other, and have no link."""
        for one, other in permutations(machines, 2):
            if not (_needs(one, other) or _needs(other, one) or one.running.link(other.ident)):
                return one, other
        raise AssertionError("everybody needs everybody")

    def linked(self, one: SimulatedNode, other: SimulatedNode) -> bool:
        """Whether both have a link to each other."""
        return one.running.link(other.ident) is not None and other.running.link(one.ident) is not None

    def reasons(self) -> set[str]:
        """Why links have ended."""
        return {event.reason for _, event in self.ended}


def _needs(one: SimulatedNode, other: SimulatedNode) -> bool:
    return any(needs(other.ident) for needs in one.running.spare.needs)


def _link(one: SimulatedNode, other: SimulatedNode) -> Link:
    link = one.running.link(other.ident)
    assert link is not None
    return link


def _traffic(one: SimulatedNode, other: SimulatedNode) -> None:
    """What the forwarding planes tell when a frame has got from one to the other."""
    other.submit(c.Report(one.ident, _link(other, one).session.local_index, 1, 1, 0))


class ManyTests(SpareCase):
    """Everybody has met everybody."""

    def test_a_mesh_thins_out(self) -> None:
        """60 nodes that have all pinged each other: minutes later a few links each, one ring, no death, and everybody is reached."""
        net = self.net(1)
        machines = self.grow(net, 60)
        self.converse(net, permutations(machines, 2), 30)
        self.assertTrue(all(len(machine.running.links.by_ident) >= 58 for machine in machines))
        net.loss = 0.05
        net.run(SETTLED + 60)
        self.whole(net)
        counts = [len(machine.running.links.by_ident) for machine in machines]
        self.assertLess(sum(counts) / len(counts), 18)
        self.assertLess(max(counts), 30)
        for machine in machines:
            ring = machine.running.ring
            self.assertLessEqual({*ring.successors[:LINKED], *ring.fingers, ring.predecessor}, set(machine.running.links.by_ident))
        others = [event.reason for _, event in self.ended if event.reason != UNNEEDED]
        self.assertLess(len(others), len(self.ended) / 100, "three challenges in a row may get lost, but hardly ever do")
        begun = net.datagrams
        net.run(60)
        self.assertLess((net.datagrams - begun) / 60 / len(machines), 5.0)
        net.loss = 0.0
        self.converse(net, permutations(machines, 2), 30)

    def test_a_small_net_stays_meshed(self) -> None:
        """Up to nine members all are neighbours."""
        net = self.net(2)
        machines = self.grow(net, 9)
        net.run(3 * SETTLED)
        self.assertTrue(all(self.linked(*pair) for pair in permutations(machines, 2)))
        self.assertEqual(self.ended, [])

    def test_nothing_is_left_behind(self) -> None:
        """Hundreds of links later a node has no more timers, tasks and entries than before."""
        net = self.net(3)
        machines = self.grow_quietly(net, 24)
        sizes = []
        for _ in range(4):
            self.converse(net, permutations(machines, 2), 30)
            net.run(SETTLED + AGAIN / 2)
            sizes.append([sum(counts) for counts in zip(*(self.hoard(machine) for machine in machines), strict=True)])
        self.assertGreater(len(self.ended), 4 * 24 * 5)
        self.assertEqual(self.reasons(), {UNNEEDED})
        # Twice: whether keys are being renewed just then makes a difference, too.
        for first, second, last in zip(*sizes[:2], sizes[-1], strict=True):
            self.assertLessEqual(last, 1.2 * max(first, second) + 24, sizes)

    def hoard(self, machine: SimulatedNode) -> list[int]:
        """How much a node keeps."""
        node = machine.running
        return [
            len(node.runtime._timers),
            len(node.links.by_ident),
            max(0, len(node.links._by_index) - 2 * len(node.links.by_ident)),  # a session and the one that renews it
            len(node.links._connecting),
            len(node.links._handshakes._by_path),
            len(node.paths._strangers),
            len(node.paths._pending),
            len(node.paths.facts.seen),
            len(node.peer_hellos),
            len(node.rpc._calls),
            len(node.rpc._served),
            len(node.bootstrap.endpoints) + len(node.bootstrap._owners) + len(node.bootstrap._rest),
        ]


class PairTests(SpareCase):
    """One link that is not needed, looked at closely."""

    def setUp(self) -> None:
        self.sim = self.net(4)
        self.machines = self.grow_quietly(self.sim, 16)
        self.one, self.other = self.strangers(self.machines)
        self.meet()

    def meet(self) -> None:
        """They have a link."""
        self.sim.wait(self.one.submit(c.Connect(self.other.ident)))
        self.sim.run(5)
        self.assertTrue(self.linked(self.one, self.other))

    def parts(self, seconds: float = SETTLED) -> None:
        """Their link ends on both sides."""
        pair = (self.one.ident, self.other.ident)
        self.becomes(
            self.sim, lambda: self.one.running.link(pair[1]) is None and self.other.running.link(pair[0]) is None, seconds, "no link"
        )

    def test_it_ends_on_both_sides_and_comes_back(self) -> None:
        """Not before its time, with one reason at both ends; the next who wants it has it within a second."""
        self.sim.run(IDLE - 15)
        self.assertTrue(self.linked(self.one, self.other))
        self.parts()
        self.assertEqual([event.reason for _, event in self.ended], [UNNEEDED] * 2)
        begun = self.sim.now
        self.sim.wait(self.one.submit(c.Connect(self.other.ident)))
        self.assertLess(self.sim.now - begun, 1.0)
        self.converse(self.sim, [(self.one, self.other), (self.other, self.one)], 2)

    def test_traffic_keeps_it(self) -> None:
        """One frame in a minute and a half, one way; without it the link ends."""
        for _ in range(8):
            _traffic(self.one, self.other)
            self.sim.run(0.75 * IDLE)
        self.assertTrue(self.linked(self.one, self.other))
        self.parts()

    def test_questions_keep_it(self) -> None:
        """Those of the DHT do, asked or answered; those of the ring do not."""
        for body, keeps in ((m.WhoKeeps(1), True), (m.GetNeighbours(), False)):
            for _ in range(15):
                if self.linked(self.one, self.other):
                    self.sim.wait(self.one.submit(c.Ask(self.other.ident, body)))
                self.sim.run(IDLE / 4)
            self.assertEqual(self.linked(self.one, self.other), keeps)

    def test_relaying_keeps_it(self) -> None:
        """A link over which others' datagrams are passed on."""
        source = next(x for x in self.machines if x not in (self.one, self.other) and x.running.link(self.one.ident))
        for _ in range(4):
            node = source.running
            relayed = Relayed(self.other.ident, source.ident, bytes(40), via=(self.one.ident,))
            node.links.send_datagram(_link(source, self.one).active, _link(source, self.one).session.protect(RELAY, relayed.encode()))
            source.settle()
            self.sim.run(0.75 * IDLE)
        self.assertTrue(self.linked(self.one, self.other))

    def test_who_needs_it_is_asked_rarely(self) -> None:
        """One end says that it needs the link: it stays, and the question is not repeated for ten minutes."""
        asked: list[float] = []
        spare = self.other.running.spare
        spare.needs.append(lambda ident: ident == self.one.ident)

        def offered(link: Link, body: m.Unneeded) -> m.Answer:
            asked.append(self.sim.now)
            return spare._offered(link, body)

        self.other.running.rpc.serve(m.Unneeded, lambda link, body: offered(link, body) if link.ident == self.one.ident else m.Needed())
        self.sim.run(SETTLED + 2 * AGAIN)
        self.assertTrue(self.linked(self.one, self.other))
        self.assertIn(len(asked), (2, 3))

    def test_both_at_once(self) -> None:
        """Both offer in one moment: each agrees, each ends it, and nobody minds."""
        self.sim.run(IDLE)
        for machine, peer in ((self.one, self.other), (self.other, self.one)):
            machine.running.runtime.now = self.sim.now
            machine.running.runtime.background(machine.running.spare._offer(_link(machine, peer)))
        self.one.settle()
        self.other.settle()
        self.parts(1.0)
        self.assertEqual(self.reasons(), {UNNEEDED})

    def test_the_word_is_lost(self) -> None:
        """One end does not hear that the link has ended: it asks soon, and then it does."""
        self.cut_off_after_done()
        self.parts(6.0)
        self.assertEqual([event.reason for _, event in self.ended], [UNNEEDED] * 2)

    def cut_off_after_done(self) -> None:
        """One ends the link, and what it says of that is lost."""
        self.sim.run(IDLE)
        self.one.running.runtime.now = self.sim.now
        self.one.running.runtime.background(self.one.running.spare._offer(_link(self.one, self.other)))
        self.one.settle()
        self.becomes_at_once(lambda: _link(self.other, self.one).released > 0)
        separate(self.sim, [(self.one, self.other)])
        carry = self.sim.carry
        lost: list[bytes] = []

        def losing(sender: SimulatedNode, endpoint: Endpoint, datagram: bytes) -> None:
            if sender is self.one and endpoint == self.other.endpoint:
                lost.append(datagram)
            else:
                carry(sender, endpoint, datagram)

        separate(self.sim, [])
        self.patch(self.sim, "carry", losing)
        self.becomes_at_once(lambda: self.one.running.link(self.other.ident) is None)
        self.patch(self.sim, "carry", carry)
        self.assertTrue(lost)
        self.assertIsNotNone(self.other.running.link(self.one.ident))

    def becomes_at_once(self, condition: object) -> None:
        """Without waiting longer than it takes."""
        self.assertTrue(self.sim.run(2.0, condition))  # type: ignore[arg-type]

    def test_a_question_just_then(self) -> None:
        """A question on a link that has ended over there is asked anew on another, and carried out once."""
        served: list[m.Ask] = []
        self.one.running.rpc.serve(m.WhoKeeps, lambda link, body: served.append(body) or m.Redirect(1, 0, ()))
        self.cut_off_after_done()
        begun = self.sim.now
        self.sim.wait(self.other.submit(c.Ask(self.one.ident, m.WhoKeeps(1))), 5)
        self.assertLess(self.sim.now - begun, 1.5)
        self.assertEqual(len(served), 1)

    def test_fresh_keys_just_then(self) -> None:
        """One end makes fresh keys while the other ends the link: both come to the same, and it carries."""
        for steps in range(12):
            with self.subTest(steps=steps):
                self.meet()
                for link in (_link(self.one, self.other), _link(self.other, self.one)):
                    link.since = link.used = self.sim.now - IDLE
                one, other = self.one.running, self.other.running
                for node in (one, other):
                    node.runtime.now = self.sim.now
                one.runtime.background(one.spare._offer(_link(self.one, self.other)))
                self.one.settle()
                self.sim.run(0.01 * steps)
                if (link := other.link(self.one.ident)) is not None:
                    other.runtime.now = self.sim.now
                    other.links.rekey(link)
                    self.other.settle()
                self.sim.run(10)
                self.assertEqual(one.link(self.other.ident) is None, other.link(self.one.ident) is None)
                self.converse(self.sim, [(self.one, self.other), (self.other, self.one)], 3)
        self.assertEqual(self.reasons(), {UNNEEDED})

    def test_the_sessions_end(self) -> None:
        """What comes late is answered for a while; then nothing is kept."""
        before = {machine: len(machine.running.links._by_index) for machine in (self.one, self.other)}
        self.parts()
        self.sim.run(LINGER + 1)
        for machine, count in before.items():
            kept = {link for link, _ in machine.running.links._by_index.values()}
            self.assertTrue(all(link.up for link in kept))
            self.assertLess(len(kept), count)

    def test_it_is_no_death(self) -> None:
        """Successors beyond those that are linked stay in the list, their endpoints are not knocked at, what they own stays known."""
        ring = self.one.running.ring
        far = next(ident for ident in ring.successors[LINKED:])
        self.assertIsNone(self.one.running.link(far))
        known = list(ring.successors)
        self.sim.wait(self.one.submit(c.Connect(far)))
        self.sim.run(SETTLED)
        self.assertIsNone(self.one.running.link(far))
        self.assertEqual(ring.successors, known)
        self.assertEqual([e for e in self.one.running.bootstrap._missing() if self.sim.machines[e].ident == far], [])

    def test_a_neighbour_just_then(self) -> None:
        """A link to the predecessor ends all the same: it is a neighbour still, and linked again at once."""
        ring = self.one.running.ring
        before = ring.predecessor
        assert before is not None
        self.one.running.runtime.now = self.sim.now
        self.one.running.links.drop(self.one.running.links.by_ident[before], UNNEEDED)
        self.one.settle()
        self.assertEqual(ring.predecessor, before)
        self.sim.run(3)
        self.assertIsNotNone(self.one.running.link(before))
        self.whole(self.sim)


class RelayedTests(SpareCase):
    """Who is not reached directly."""

    def test_neighbours_over_a_relay(self) -> None:
        """Neighbours that cannot reach each other keep their link, and what it goes by."""
        net = self.net(5)
        ordered = sorted(self.grow(net, 16), key=lambda machine: machine.ident)
        one, other = ordered[3:5]
        separate(net, [(one, other)])
        self.becomes(net, lambda: self.linked(one, other) and not _link(one, other).is_direct, 90, "the ring instead")
        net.run(10)
        self.ended.clear()
        net.run(3 * SETTLED)
        self.whole(net)
        self.assertTrue(self.linked(one, other))
        self.assertIsInstance(_link(one, other).active, Route)
        self.assertEqual([event for machine, event in self.ended if event.reason != UNNEEDED], [])
        self.converse(net, [(one, other), (other, one)], 3)

    def test_traffic_between_strangers_over_a_relay(self) -> None:
        """It keeps their link and the relay's; all of that ends when it ends."""
        net = self.net(6)
        machines = self.grow_quietly(net, 16)
        one, other = self.strangers(machines)
        separate(net, [(one, other)])
        net.wait(one.submit(c.Connect(other.ident)))
        for _ in range(6):
            _traffic(one, other)
            net.run(0.75 * IDLE)
            self.assertTrue(self.linked(one, other))
        self.assertFalse(_link(one, other).is_direct)
        self.becomes(net, lambda: not self.linked(one, other), SETTLED, "no link")


class FewestTests(SpareCase):
    """A node keeps some links whatever is said of them."""

    def test_no_part_needs_any(self) -> None:
        """Where no part of any node needs a link, each keeps the fewest."""
        net = self.net(7)
        machines = self.grow(net, 12)
        for machine in machines:
            machine.running.spare.needs.clear()
            machine.running.ring.leaving = True  # the ring is quiet, so that it does not make new ones
        net.run(3 * SETTLED)
        for machine in machines:
            self.assertGreaterEqual(len(machine.running.links.by_ident), FEWEST)


class KnockTests(SpareCase):
    """Who is knocked for."""

    def setUp(self) -> None:
        self.sim = self.net(8)
        self.machines = self.grow(self.sim, 3)
        self.node = self.machines[2].running
        self.peer = self.machines[1]
        self.knocks: list[Endpoint] = []
        knock = self.node.links.connect_endpoint

        def noted(endpoint: Endpoint) -> object:
            self.knocks.append(endpoint)
            return knock(endpoint)

        self.patch(self.node.links, "connect_endpoint", noted)

    def test_a_member_under_another_endpoint(self) -> None:
        """A member comes back under a new endpoint: its old one is forgotten, and while it is linked no place of its is knocked at."""
        old, new = self.peer.endpoint, Endpoint("udp", "192.0.2.77", 7)
        self.peer.crash()
        self.becomes(self.sim, lambda: self.node.link(self.peer.ident) is None, 30, "noticed")
        self.assertIn(old, self.node.bootstrap.endpoints)
        del self.sim.machines[old]
        self.peer.endpoint = new
        self.sim.machines[new] = self.peer
        self.sim.wait(self.peer.start(self.machines[0]))
        self.sim.run(KNOCK_AGAIN)
        self.assertIsNotNone(self.node.link(self.peer.ident))
        self.knocks.clear()
        self.sim.run(20 * KNOCK_AGAIN)
        self.assertEqual(self.knocks, [])

    def test_configured_and_moved(self) -> None:
        """An endpoint from the configuration is never forgotten, but knocked at rarely while its member is linked under another."""
        bootstrap = self.node.bootstrap
        gone = Endpoint("udp", "192.0.2.99", 9)
        bootstrap.endpoints.insert(0, gone)
        bootstrap._owners[gone] = self.peer.ident
        self.sim.run(2.5 * RARELY)
        self.assertIn(gone, bootstrap.endpoints)
        self.assertIn(self.knocks.count(gone), (1, 2, 3))

    def test_the_dead_are_knocked_for(self) -> None:
        """A member that has vanished is sought where it was."""
        self.peer.crash()
        self.sim.run(10 * KNOCK_AGAIN)
        self.assertGreater(self.knocks.count(self.peer.endpoint), 5)
