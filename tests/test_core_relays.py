"""Relays of pairs without a direct path: which is chosen, and which takes over; direct paths that were lost; nodes that were suspended."""

from __future__ import annotations

from math import hypot

from ipop_tx.core import commands as c
from ipop_tx.core.links.link import Link
from ipop_tx.core.links.relays import MEASURED, MUCH_SHORTER
from ipop_tx.simulation.network import SimulatedNode
from tests.net import NetCase, separate


def delay(one: SimulatedNode, other: SimulatedNode) -> float:
    """Seconds there and back, but for what the machines themselves take."""
    (x, y), (u, v) = one.place, other.place
    return one.net.width_s * hypot(x - u, y - v)


class ChoiceCase(NetCase):
    """Five members; two of them cannot reach each other."""

    def setUp(self) -> None:
        self.sim = self.net(4)
        self.nodes = self.grow(self.sim, 5)
        self.one, self.other = self.nodes[3:]
        separate(self.sim, [(self.one, self.other)])
        self.begun = self.sim.now
        self.becomes(self.sim, lambda: self.link().relay is not None and self.link(back=True).relay is not None, 60, "a chosen relay")

    def link(self, back: bool = False) -> Link:
        """The link of one to the other, or the other way."""
        one, other = (self.other, self.one) if back else (self.one, self.other)
        link = one.running.link(other.ident)
        assert link is not None
        return link

    def frames(self, seconds: float) -> None:
        """Frames go over the link, as far as the core can tell."""
        for _ in range(int(seconds)):
            for one, other in ((self.one, self.other), (self.other, self.one)):
                one.submit(c.Connect(other.ident))
            self.sim.run(1.0)

    def way(self, relay: SimulatedNode) -> float:
        """Seconds from one end over a relay to the other end and back."""
        return delay(self.one, relay) + delay(relay, self.other)

    def relay(self, back: bool = False) -> SimulatedNode:
        """The chosen one."""
        return next(node for node in self.nodes if node.ident == self.link(back).relay)


class ChoiceTests(ChoiceCase):
    """Which relay is chosen."""

    def test_the_shortest(self) -> None:
        """By the measured round trip, at both ends; the others are known too."""
        self.frames(30)
        for back in (False, True):
            link = self.link(back)
            chosen = self.relay(back)
            self.assertLess(MUCH_SHORTER * self.way(chosen) - 0.005, min(map(self.way, self.nodes[:3])))
            self.assertEqual(len(link.relays), MEASURED)
            self.assertEqual((link.active, link.first_hop), (link.route, chosen.ident))
            self.assertLess(abs(link.rtt - self.way(chosen)), 0.006)

    def test_no_flapping(self) -> None:
        """Two minutes of frames, and one relay."""
        self.frames(10)
        before = self.link().relay
        for _ in range(12):
            self.frames(10)
            self.assertEqual(self.link().relay, before)

    def test_a_shorter_one_turns_up(self) -> None:
        """The chosen relay moves far away: another one is taken, within three measurements."""
        self.frames(10)
        chosen = self.relay()
        chosen.place = (chosen.place[0] + 2.0, chosen.place[1])
        self.frames(16)
        self.assertNotEqual(self.relay(), chosen)

    def killed(self, suspect: bool = True) -> float:
        """The chosen relay dies while frames go; seconds until another one is used, seen from one end."""
        self.frames(10)
        dead = self.relay()
        dead.crash()
        begun = self.sim.now
        if suspect:
            self.sim.run(0.8)  # `ForwardingService.SILENCE`, and a look
            self.one.submit(c.Suspect(self.other.ident))
        self.sim.run(40, lambda: self.link().relay not in (dead.ident, None))
        took = self.sim.now - begun
        self.assertFalse(self.link().is_direct)
        self.assertNotIn(dead.ident, (self.link().relay, *self.link().relays))
        self.all_done(self.sim, [self.one.submit(c.Ping(self.other.ident))], 2.5)
        return took

    def test_the_relay_dies_under_traffic(self) -> None:
        self.assertLess(self.killed(), 2.5)

    def test_the_relay_dies_unnoticed(self) -> None:
        """Without traffic the keep-alives find it."""
        self.assertLess(self.killed(suspect=False), 35)

    def test_all_relays_die(self) -> None:
        """The link ends as soon as nobody is left, and not before."""
        self.frames(10)
        for node in self.nodes[:3]:
            node.crash()
        self.one.submit(c.Suspect(self.other.ident))
        self.sim.run(20)
        self.assertIsNone(self.one.running.link(self.other.ident))

    def test_the_peer_dies(self) -> None:
        """Spare relays do not keep the dead alive."""
        self.frames(10)
        self.other.crash()
        self.one.submit(c.Suspect(self.other.ident))
        self.sim.run(6.5)
        self.assertIsNone(self.one.running.link(self.other.ident))

    def test_direct_again(self) -> None:
        """A direct path ends the choice."""
        self.sim.reachable = lambda sender, receiver: True
        self.becomes(self.sim, lambda: self.link().is_direct and self.link(back=True).is_direct, 90, "a direct path")
        self.sim.run(6)
        self.assertEqual((self.link().relay, self.link().relays), (None, {}))


class LostTests(NetCase):
    """A direct path is lost for some seconds."""

    def test_back_soon(self) -> None:
        """It is direct again within seconds of that the way is free, not only at the next regular attempt."""
        sim = self.net(2)
        nodes = self.grow(sim, 5)
        one, other = nodes[3:]
        sim.run(20)
        for away in (2.0, 4.0, 8.0):
            separate(sim, [(one, other)])
            one.submit(c.Suspect(other.ident))
            other.submit(c.Suspect(one.ident))
            sim.run(away + 2.5)
            link = one.running.link(other.ident)
            assert link is not None
            self.assertFalse(link.is_direct)
            sim.reachable = lambda sender, receiver: True
            took = self.becomes(sim, lambda link=link: link.is_direct, 60, "a direct path")
            self.assertLess(took, max(3.0, 1.2 * away + 2.5))
            sim.run(30)


class WakeTests(NetCase):
    """A machine is suspended for long enough that all others give it up."""

    def test_back_at_once(self) -> None:
        """Within a second of its waking everybody converses with it, though it does not know that it has been away."""
        sim = self.net(3)
        nodes = self.grow(sim, 5)
        sleeper, others = nodes[2], [*nodes[:2], *nodes[3:]]
        node = sleeper.running
        sleeper.crash()
        sim.run(40)
        self.assertTrue(all(other.running.link(sleeper.ident) is None for other in others))
        self.assertEqual(len(node.links.by_ident), 4)
        sleeper.node = node
        node.handle_timeout(sim.now)
        sleeper.settle()
        sim.run(1.0)
        self.assertTrue(all(other.running.link(sleeper.ident) for other in others))
        self.converse(sim, [(sleeper, other) for other in others] + [(other, sleeper) for other in others], 2)
        self.heals(sim, 20)
