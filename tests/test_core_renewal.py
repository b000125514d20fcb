"""Keys of a link are renewed in band, whoever asks, whatever gets lost, on any path; and by a handshake where that is not enough."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

from cryptography import x509

from ipop_tx.core import commands as c
from ipop_tx.core.events import LinkChanged, LinkDown, LinkUp
from ipop_tx.core.leases.renewals import SOONEST
from ipop_tx.core.links.link import KEY_LIFE, Keyed, Link, Route
from ipop_tx.core.links.links import REAUTHENTICATE, REKEY_AFTER
from ipop_tx.errors import BadMessage, LocalMisuse
from ipop_tx.services.forwarding import sessions_of
from ipop_tx.session.dtls import DtlsSessionFactory
from ipop_tx.session.plain import PlainSessionFactory
from ipop_tx.simulation import network
from ipop_tx.simulation.network import SimulatedNode
from ipop_tx.values import Endpoint, Peer
from ipop_tx.wire import messages as m
from ipop_tx.wire.datagram import CONTROL, OVERHEAD, Form, form_of
from tests.net import NetCase, separate
from tests.test_core_paths import PathCase, link_of
from tests.test_session import SelfSigned


class RenewalCase(PathCase):
    """Three nodes. A shadow of each one's FIB follows its events, as the forwarding plane does, and is right whenever something is sent."""

    def setUp(self) -> None:
        super().setUp()
        self.handshake_bytes = 0
        self.changes: list[SimulatedNode] = []
        self.down: list[str] = []
        self.fib: dict[tuple[int, bytes], list[Any]] = {
            (machine.number, link.ident): sessions_of(link) for machine in self.sim.running() for link in machine.running.links
        }
        self.sim.on_event = self.event
        carry = self.sim.carry

        def watched(sender: SimulatedNode, endpoint: Endpoint, datagram: bytes) -> None:
            for link in sender.running.links:
                self.assertEqual(self.fib[sender.number, link.ident], sessions_of(link), "the FIB is behind")
            if form_of(datagram) is Form.HANDSHAKE:
                self.handshake_bytes += len(datagram)
            carry(sender, endpoint, datagram)

        self.sim.carry = watched  # type: ignore[method-assign]

    def event(self, machine: SimulatedNode, event: object) -> None:
        if isinstance(event, LinkUp | LinkChanged):
            self.changes.append(machine)
            link = machine.running.link(event.ident)
            if link is not None:
                self.fib[machine.number, event.ident] = sessions_of(link)
        elif isinstance(event, LinkDown):
            self.down.append(event.reason)

    def newest(self) -> tuple[Keyed, Keyed]:
        """The newest sessions of both ends."""
        return link_of(self.one, self.other).sessions[0], link_of(self.other, self.one).sessions[0]

    def rekey(self, *machines: SimulatedNode) -> None:
        """Some of both ends find in this moment that it is time."""
        for machine in machines:
            peer = self.other if machine is self.one else self.one
            machine.running.runtime.now = self.sim.now
            machine.running.links.rekey(link_of(machine, peer))
        for machine in machines:
            machine.settle()

    def agreed(self, renewed: bool) -> None:
        """Both ends have the same newest session, of the kind expected; both seal with it, once they have spoken."""
        self.converse(self.sim, [(self.one, self.other), (self.other, self.one)], 2)
        one, other = self.newest()
        self.assertEqual((one.session.tag, one.renewed, other.renewed), (other.session.tag, renewed, renewed))
        self.assertNotEqual(one.session.initiated, other.session.initiated)
        self.assertEqual((link_of(self.one, self.other).session, link_of(self.other, self.one).session), (one.session, other.session))

    def counters(self, machine: SimulatedNode) -> dict[str, int]:
        return machine.running.runtime.counters

    def intercept(self, machine: SimulatedNode, lost: Callable[[m.Message], object]) -> list[m.Message]:
        """Messages that a machine sends in vain."""
        links = machine.running.links
        send, vain = links.send_message, []

        def sent(link: Link, message: m.Message, *rest: Any, **more: Any) -> None:
            if lost(message):
                vain.append(message)
            else:
                send(link, message, *rest, **more)

        links.send_message = sent  # type: ignore[method-assign]
        return vain

    def handshakes(self) -> list[float]:
        """When the two make a session by a handshake, from now on."""
        made: list[float] = []
        handshakes = self.one.running.links._handshakes
        established = handshakes._established

        def adopted(handshake: Any) -> Link:
            link = established(handshake)
            if link.ident == self.other.ident:
                made.append(self.sim.now)
            return link

        handshakes._established = adopted
        return made


def is_renewal(message: m.Message) -> bool:
    return isinstance(message, m.Request | m.Reply) and isinstance(message.body, m.Renew | m.Renewed)


class RenewTests(RenewalCase):
    """What happens when nothing is in the way."""

    def test_in_time(self) -> None:
        """After two minutes, with no handshake, and again and again."""
        first = self.newest()[0].session.tag
        self.sim.run(REKEY_AFTER + 15)
        self.agreed(True)
        self.assertNotEqual(self.newest()[0].session.tag, first)
        self.sim.run(5 * REKEY_AFTER)
        self.agreed(True)
        self.assertEqual((self.handshake_bytes, self.down), (0, []))

    def test_both_planes(self) -> None:
        """Both ends are told of the new session, and once more when it takes over."""
        self.rekey(self.one)
        self.sim.run(1)
        self.agreed(True)
        self.assertTrue(self.changes.count(self.one) >= 1 and self.changes.count(self.other) >= 2)

    def test_bytes(self) -> None:
        """One question, one answer."""
        sizes: list[int] = []
        for machine in (self.one, self.other):
            self.intercept(machine, lambda message: is_renewal(message) and sizes.append(len(m.encode(message)) + OVERHEAD))
        self.rekey(self.one)
        self.sim.run(3)
        self.agreed(True)
        self.assertEqual(sizes, [89, 79])

    def test_secrets_are_erased(self) -> None:
        parents = self.newest()
        self.rekey(self.one)
        self.sim.run(1)
        self.assertEqual([parent.session.renewable for parent in parents], [False, False])
        self.assertEqual([end.session.renewable for end in self.newest()], [True, True])

    def test_crossing(self) -> None:
        """Both ask in the same moment, some times over: one session comes of it each time, and whoever has the greater key began it."""
        for _ in range(5):
            self.sim.run(SOONEST)
            offers = [end.session.offer() for end in self.newest()]
            before = self.counters(self.one).get("renewal_failed", 0), self.counters(self.other).get("renewal_failed", 0)
            count = self.sessions()[0]
            self.rekey(self.one, self.other)
            self.sim.run(1)
            self.agreed(True)
            one, other = self.newest()
            self.assertEqual((one.session.initiated, other.session.initiated), (offers[0] > offers[1], offers[1] > offers[0]))
            self.assertEqual((one.confirmed, other.confirmed), (True, True))
            self.assertEqual(self.sessions()[0], min(count + 1, 3))
            after = self.counters(self.one).get("renewal_failed", 0), self.counters(self.other).get("renewal_failed", 0)
            self.assertEqual(before, after)
        self.assertEqual(self.handshake_bytes, 0)

    def test_crossing_with_a_handshake(self) -> None:
        """The handshake counts for more, at both ends."""
        for asks, greets in ((self.one, self.other), (self.other, self.one)):
            self.rekey(asks)
            peer = link_of(greets, asks)
            greets.running.links._handshakes.begin(peer.active, peer.ident)
            greets.settle()
            self.sim.run(3)
            self.agreed(False)
            self.sim.run(REKEY_AFTER + 20)
            self.agreed(True)

    def test_relayed(self) -> None:
        """A link over the ring is renewed over the ring."""
        separate(self.sim, [(self.one, self.other)])
        self.drop_link()
        self.all_done(self.sim, [self.one.submit(c.Connect(self.other.ident))], 5)
        checked = self.handshakes()
        self.sim.run(3 * REKEY_AFTER)
        self.assertTrue(all(isinstance(link.active, Route) for link in (link_of(self.one, self.other), link_of(self.other, self.one))))
        self.agreed(True)
        self.assertEqual((checked, set(self.down)), ([], {"for a test"}))


class DtlsRenewTests(RenewTests):
    """The same with the real sessions."""

    def setUp(self) -> None:
        peers: dict[str, Peer] = {}

        class Certified(SelfSigned):
            """Shows a member's name, and knows who bears one."""

            def verify(self, chain: list[x509.Certificate]) -> Peer:
                return peers[super().verify(chain).name]

        def factory(peer: Peer, rng: Random) -> DtlsSessionFactory:
            peers[peer.name] = peer
            return DtlsSessionFactory(Certified(peer.name))

        self.patch(network, "PlainSessionFactory", factory)
        super().setUp()


class TroubleTests(RenewalCase):
    """What gets lost, refused, forged."""

    def test_lost_request(self) -> None:
        vain = self.intercept(self.one, lambda message: is_renewal(message) and len(vain) < 3)
        self.rekey(self.one)
        self.sim.run(5)
        self.assertEqual(len(vain), 3)
        self.agreed(True)

    def test_lost_answers(self) -> None:
        """The same answer is repeated, and the new session is made once."""
        vain = self.intercept(self.other, lambda message: is_renewal(message) and len(vain) < 3)
        count = self.sessions()[1]
        self.rekey(self.one)
        self.sim.run(5)
        self.assertEqual((len(vain), len(set(vain)), self.sessions()[1]), (3, 1, min(count + 1, 3)))
        self.agreed(True)
        self.assertEqual(self.handshake_bytes, 0)

    def test_no_answer_at_all(self) -> None:
        """Then there is a handshake. The session that the other end had made dies unused."""
        vain = self.intercept(self.other, is_renewal)
        self.rekey(self.one)
        self.sim.run(10)
        self.assertGreater(len(vain), 3)
        self.agreed(False)
        self.assertEqual((self.counters(self.one)["renewal_failed"], self.down), (1, []))
        self.sim.run(KEY_LIFE)
        self.assertLessEqual(max(self.sessions()[:2]), 2)
        self.assertEqual(self.down, [])

    def test_an_older_peer(self) -> None:
        """It does not answer at all, and is as well off as before."""
        for machine in (self.one, self.other):
            machine.running.rpc._handlers.pop(m.Renew)
        self.sim.run(4 * REKEY_AFTER)
        self.agreed(False)
        self.assertEqual(self.down, [])

    def test_loss(self) -> None:
        """With a fourth of all datagrams lost, both asking or one: in the end both ends agree, and the link has not been down."""
        for number in range(15):
            self.sim.loss = 0.25
            self.rekey(*((self.one,), (self.other,), (self.one, self.other))[number % 3])
            self.sim.run(8)
            self.sim.loss = 0.0
            self.sim.run(15)
            self.converse(self.sim, [(self.one, self.other), (self.other, self.one)], 5)
            self.assertTrue(self.sessions()[2])

    def test_too_soon(self) -> None:
        """A peer in a hurry makes a handshake."""
        self.rekey(self.one)
        self.sim.run(1)
        self.agreed(True)
        self.rekey(self.one)
        self.sim.run(3)
        self.agreed(False)

    def test_no_key(self) -> None:
        """A point of small order, our own key, or another session's name: an error, and no change."""
        link, parent = link_of(self.other, self.one), self.newest()[1]
        before = list(link.sessions)
        ask = [
            (m.Renew(parent.session.tag, bytes(32)), BadMessage),
            (m.Renew(parent.session.tag, parent.session.offer()), BadMessage),
            (m.Renew(bytes(8), b"k" * 32), LocalMisuse),
        ]
        for body, error in ask:
            future = self.one.submit(c.Ask(self.other.ident, body))
            self.sim.run(2, lambda future=future: future.done)  # type: ignore[misc]
            self.assertIsInstance(future.error, error)
        self.assertEqual((link.sessions, parent.session.renewable), (before, True))
        self.rekey(self.one)
        self.sim.run(1)
        self.agreed(True)

    def test_an_answer_that_is_no_key(self) -> None:
        """The one who asked makes a handshake."""
        self.other.running.rpc.serve(m.Renew, lambda link, body: m.Renewed(bytes(32)))
        self.rekey(self.one)
        self.sim.run(3)
        self.agreed(False)

    def test_replay(self) -> None:
        """All that was said before and during a renewal, said again, does nothing."""
        heard: list[bytes] = []
        receive = self.other.receive
        self.other.receive = lambda source, datagram: (heard.append(datagram), receive(source, datagram))  # type: ignore[assignment, func-returns-value]
        self.sim.run(5)
        self.rekey(self.one)
        self.sim.run(1)
        self.agreed(True)
        sessions = list(link_of(self.other, self.one).sessions)
        forged = self.counters(self.other).get("datagram_forged", 0)
        sealed = [datagram for datagram in heard if form_of(datagram) is Form.SEALED]
        for datagram in sealed:
            receive(self.one.endpoint, datagram)
        self.assertEqual(self.counters(self.other)["datagram_forged"] - forged, len(sealed))
        self.assertEqual(link_of(self.other, self.one).sessions, sessions)
        self.sim.run(5)
        self.agreed(True)

    def test_index_taken(self) -> None:
        """At either end: the new session is not used, and a handshake makes another."""
        for asks, refuses in ((self.one, self.one), (self.one, self.other)):
            parent = self.newest()[refuses is self.other].session
            renew = parent.renew

            def collides(public: bytes, renew: Any = renew, index: int = parent.local_index) -> Any:
                session = renew(public)
                session.local_index = index
                return session

            parent.renew = collides  # type: ignore[method-assign]
            self.rekey(asks)
            self.sim.run(3)
            self.agreed(False)
            links = refuses.running.links
            sessions = [keyed.session for link in links for keyed in link.sessions]
            self.assertEqual([links._by_index[session.local_index][1] for session in sessions], sessions)
            self.sim.run(20)

    def test_guest(self) -> None:
        """Who shows an invitation only gets no second session, however it asks."""
        guest = self.sim.add()
        guest.peer = replace(guest.peer, guest=True)
        guest.start()
        future = guest.running.links.connect_endpoint(self.relay.endpoint)
        guest.settle()
        link = self.sim.wait(future)
        [here] = self.relay.running.links.guests
        before = self.counters(self.relay).get("request_refused", 0)
        guest.running.runtime.now = self.sim.now
        guest.running.links.rekey(link)
        guest.settle()
        self.sim.run(4)
        self.assertGreater(self.counters(self.relay)["request_refused"], before)
        self.assertEqual((len(here.sessions), here.sessions[0].renewed), (1, False))
        self.sim.run(70)
        self.assertFalse(here.up)


class AgeTests(RenewalCase):
    """When keys and certificates are too old."""

    def test_old_keys(self) -> None:
        """What they sealed is opened until three minutes after their birth, and not one moment longer."""
        parent = self.newest()[0]
        self.sim.run(parent.born + REKEY_AFTER + 15 - self.sim.now)
        self.agreed(True)
        self.assertIsNot(self.newest()[0], parent)
        late = [parent.session.protect(CONTROL, m.encode(m.PathChallenge(number))) for number in (1, 2)]
        for datagram, moment, counter in ((late[0], KEY_LIFE - 1, 0), (late[1], KEY_LIFE + 1, 1)):
            self.sim.run(parent.born + moment - self.sim.now)
            before = self.counters(self.other).get("index_unknown", 0)
            self.other.receive(self.one.endpoint, datagram)
            self.assertEqual(self.counters(self.other).get("index_unknown", 0) - before, counter)
        self.assertFalse(parent.session.established)

    def test_keys_that_nobody_renewed(self) -> None:
        """They end the link."""
        for machine in (self.one, self.other):
            machine.running.links.rekey = lambda link: None  # type: ignore[method-assign]
        self.sim.run(KEY_LIFE, lambda: bool(self.down))
        self.assertIn("its keys are too old", self.down[0])

    def test_an_hour(self) -> None:
        """Certificates are checked anew once an hour, give or take a fifth; between that everything is renewed."""
        checked = self.handshakes()
        begun = min(end.born for end in self.newest())
        for _ in range(25):
            self.sim.run(REAUTHENTICATE / 10)
            self.converse(self.sim, [(self.one, self.other), (self.other, self.one)], 2)
        self.assertIn(len(checked), (2, 3))
        gaps = [later - earlier for earlier, later in zip([begun, *checked], checked, strict=False)]
        self.assertTrue(all(0.8 * REAUTHENTICATE <= gap <= 1.2 * REAUTHENTICATE + REKEY_AFTER + 20 for gap in gaps), gaps)
        self.assertEqual(self.down, [])
        # All three links, 9000 s: every two minutes, not more than three handshakes for each.
        self.assertLess(self.handshake_bytes, 10 * 4000)

    def test_refused_when_the_certificates_are_old(self) -> None:
        """By the end that is asked, so that somebody with stolen keys cannot go on with them: a handshake follows."""
        self.newest()[1].renew_until = self.sim.now
        self.rekey(self.one)
        self.sim.run(3)
        self.agreed(False)

    def test_stolen_keys_end_with_the_handshake(self) -> None:
        """After a handshake nothing can be renewed of what was before, even in the name of the peer."""
        stolen = self.newest()[0].session
        self.newest()[1].renew_until = self.sim.now
        self.rekey(self.other)
        self.sim.run(3)
        self.agreed(False)
        sessions = list(link_of(self.other, self.one).sessions)
        self.assertTrue(stolen.renewable)
        future = self.one.submit(c.Ask(self.other.ident, m.Renew(stolen.tag, stolen.offer())))
        self.sim.run(2, lambda: future.done)
        self.assertIsInstance(future.error, LocalMisuse)
        self.assertEqual(link_of(self.other, self.one).sessions, sessions)

    def test_the_age_is_inherited(self) -> None:
        until = self.newest()[0].renew_until
        self.sim.run(4 * REKEY_AFTER)
        self.assertTrue(self.newest()[0].renewed)
        self.assertEqual(self.newest()[0].renew_until, until)


class OrderTests(NetCase):
    """Which of the sessions of a link comes first."""

    def setUp(self) -> None:
        factory = PlainSessionFactory(Peer(bytes(20), "peer"), Random(1))
        self.first, self.second, self.renewal = (factory.initiate(0.0) for _ in range(3))
        self.link = Link(Peer(bytes(20), "peer"), 0.0, True)
        self.link.add_session(self.first, 0.0, 3600.0)
        self.parent = self.link.sessions[0]

    def order(self) -> list[Any]:
        return [keyed.session for keyed in self.link.sessions]

    def test_renewal(self) -> None:
        """First, but not sealed with before the peer has it."""
        child = self.link.follow(self.parent, self.renewal, 120.0)
        self.assertEqual(self.order(), [self.renewal, self.first])
        self.assertEqual((child.renew_until, self.parent.child, self.link.session), (3600.0, child, self.first))
        self.assertTrue(self.link.confirm(self.renewal, 121.0))

    def test_with_a_handshake(self) -> None:
        """Whichever came first, and whatever the tags."""
        for tag in (bytes(8), b"\xff" * 8):
            for handshake_first in (True, False):
                self.setUp()
                self.second.initiated, self.second.tag, self.renewal.tag = False, tag, b"\x80" * 8
                for handshake in (handshake_first, not handshake_first):
                    if handshake:
                        self.link.add_session(self.second, 120.0, 7200.0)
                    else:
                        self.link.follow(self.parent, self.renewal, 120.0)
                self.assertEqual(self.order(), [self.second, self.renewal, self.first])
