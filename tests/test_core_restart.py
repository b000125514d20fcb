"""A node that dies and comes back at once is linked again at once, whoever began the handshakes."""

from __future__ import annotations

from random import Random

from ipop_tx.core import commands as c
from ipop_tx.core.events import LinkDown
from ipop_tx.core.links.link import Link
from ipop_tx.session.plain import PlainSessionFactory
from ipop_tx.values import Peer
from tests.net import NetCase

_PEER = Peer(bytes(20), "peer")


class RestartTests(NetCase):
    """On the simulated net."""

    def test_restarts_in_a_row(self) -> None:
        """Ten times within a second of its last start: each time the node has a link that carries both ways."""
        for seed in range(3):
            net = self.net(seed)
            founder, other, node = self.grow(net, 3)
            for _ in range(10):
                node.crash()
                net.run(0.2)
                self.all_done(net, [node.start(founder, other)], 3.0)
                self.converse(net, [(node, founder)], 3.0)
                self.converse(net, [(founder, node)], 3.0)

    def test_back_while_it_is_being_given_up(self) -> None:
        """Whenever it comes back while its old path is under test: the handshake counts as an answer, and the link goes on."""
        for delay in range(26):
            net = self.net(delay)
            founder, node = self.grow(net, 2)
            node.crash()
            founder.submit(c.Suspect(node.ident))
            net.run(0.1 * delay)
            downs: list[LinkDown] = []
            net.on_event = lambda machine, event, downs=downs: downs.append(event) if isinstance(event, LinkDown) else None  # type: ignore[misc]
            self.all_done(net, [node.start(founder)], 3.0)
            net.run(5)
            self.converse(net, [(founder, node)], 1.0)
            self.assertLessEqual(len(downs), 1 if delay > 22 else 0, f"back after {0.1 * delay:.1f} s")

    def test_the_trouble_is_over(self) -> None:
        """Who is left of two says that nobody answers, and no longer once the other is back, while it knocks or between two knocks."""
        net = self.net(4)
        founder, other = self.grow(net, 2)
        for away in range(10):
            other.crash()
            net.run(60 + away)
            self.assertIn("no member answers", founder.running.bootstrap.problem)
            self.all_done(net, [other.start(founder)], 5.0)
            self.assertEqual(founder.running.bootstrap.problem, "")
            net.run(20)


class PreferenceTests(NetCase):
    """Which of two sessions of one link is sealed with."""

    def setUp(self) -> None:
        factory = PlainSessionFactory(_PEER, Random(1))
        made = [factory.initiate(0.0) for _ in range(4)]
        for number, session in enumerate(made):
            session.tag = bytes([9 - number]) * 8  # the elder has the greater tag, so it is preferred where two have crossed
            session.initiated = number % 2 == 0
        self.ours, self.theirs, self.ours_again, self.theirs_again = made
        self.link = Link(_PEER, 0.0, True)

    def test_a_restarted_peer(self) -> None:
        """Two handshakes that the peer began: the second one replaces the first, whatever their tags."""
        self.link.add_session(self.theirs, 10.0)
        self.link.confirm(self.theirs, 10.0)
        self.link.add_session(self.theirs_again, 11.0)
        self.assertTrue(self.link.confirm(self.theirs_again, 11.0))
        self.assertIs(self.link.session, self.theirs_again)

    def test_crossed(self) -> None:
        """One of ours and one of theirs at the same moment: the greater tag, which the peer uses too."""
        self.link.add_session(self.ours, 10.0)
        self.link.add_session(self.theirs, 10.1)
        self.assertFalse(self.link.confirm(self.theirs, 10.2))
        self.link.confirm(self.ours, 10.3)
        self.assertFalse(self.link.confirm(self.theirs, 20.0))
        self.assertIs(self.link.session, self.ours)

    def test_a_peer_that_restarted_after_our_handshake(self) -> None:
        """It looks like a crossing, but the peer never uses the preferred one: then neither do we."""
        self.link.add_session(self.ours, 10.0)
        self.link.confirm(self.ours, 10.5)
        self.link.add_session(self.theirs, 11.0)
        self.assertFalse(self.link.confirm(self.theirs, 11.5))
        self.assertTrue(self.link.confirm(self.theirs, 12.5))
        self.assertIs(self.link.session, self.theirs)
