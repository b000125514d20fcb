"""Both kinds of session under one list of demands: handshake, loss, crossing, refusal, sealed datagrams."""

from __future__ import annotations

import datetime as dt
from itertools import pairwise
from random import Random

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.task import deferLater
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface.verify import verifyObject

from ipop_tx.errors import BadDatagram, LocalMisuse, PeerRefused, Unreachable
from ipop_tx.interfaces import ISession, ISessionFactory
from ipop_tx.session.dtls import GIVE_UP_AFTER, MOST_REPEATS, MTU, REPEAT_AFTER, REPEAT_GROWTH, DtlsSession, DtlsSessionFactory
from ipop_tx.session.plain import PlainSession, PlainSessionFactory
from ipop_tx.session.sealed import OVERHEAD
from ipop_tx.values import Peer

SOURCE = b"udp:192.0.2.1:4500"
Session = DtlsSession | PlainSession
Factory = DtlsSessionFactory | PlainSessionFactory


class SelfSigned:
    """Credentials for tests: names are believed, except one."""

    def __init__(self, name: str, refuses: str = "") -> None:
        self.private_key = ec.generate_private_key(ec.SECP256R1())
        self.refuses = refuses
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        now = dt.datetime.now(dt.UTC)
        builder = x509.CertificateBuilder(subject, subject, self.private_key.public_key(), 1, now, now + dt.timedelta(days=1))
        self.chain = [builder.sign(self.private_key, SHA256())]

    def verify(self, chain: list[x509.Certificate]) -> Peer:
        name = str(chain[0].subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value)
        if name == self.refuses:
            raise PeerRefused(f"{name} is not welcome")
        return Peer(name.encode().ljust(20, b"\0"), name)


class Handshake:
    """Two ends and a wire that loses the datagrams whose numbers are in `lost` and changes a byte: `alter` is (number, place, change)."""

    def __init__(
        self,
        client: Factory,
        server: Factory,
        lost: frozenset[int] = frozenset(),
        alter: tuple[int, int, int] = (-1, 0, 0),
        source: bytes | None = SOURCE,
    ) -> None:
        self.client: Session = client.initiate(0.0)
        self.server: Session | None = None
        self.server_factory = server
        self.lost = lost
        self.alter = alter
        self.source = source
        self.number = 0
        self.sizes: list[int] = []

    def run(self, now: float) -> None:
        """Carry datagrams until nobody has anything to send."""
        busy = True
        while busy:
            busy = False
            while (datagram := self.client.poll_transmit()) is not None:
                busy = True
                if self._carried(datagram):
                    self._to_server(now, self._altered(datagram))
            while self.server is not None and (datagram := self.server.poll_transmit()) is not None:
                busy = True
                if self._carried(datagram):
                    self.client.receive(now, self._altered(datagram))

    def established(self) -> bool:
        return self.client.established and self.server is not None and self.server.established

    def ends(self) -> list[Session]:
        return [self.client, self.server] if self.server is not None else [self.client]

    def _carried(self, datagram: bytes) -> bool:
        self.sizes.append(len(datagram))
        self.number += 1
        return self.number - 1 not in self.lost

    def _to_server(self, now: float, datagram: bytes) -> None:
        if self.server is not None:
            self.server.receive(now, datagram)
            return
        self.server, reply = self.server_factory.accept(now, datagram, self.source)
        if reply is not None and self._carried(reply):
            self.client.receive(now, self._altered(reply))

    def _altered(self, datagram: bytes) -> bytes:
        number, place, change = self.alter
        if number != self.number - 1:
            return datagram
        altered = bytearray(datagram)
        altered[place % len(altered)] ^= change
        return bytes(altered)


def drained(session: Session) -> list[bytes]:
    """All that it has to send now."""
    return list(iter(session.poll_transmit, None))


class SessionDemands:
    """What every kind of session must do."""

    def factory(self, name: str, refuses: str = "") -> Factory:
        raise NotImplementedError

    def pair(self) -> tuple[Session, Session]:
        handshake = Handshake(self.factory("ann"), self.factory("bob"))
        handshake.run(0.0)
        assert handshake.established() and handshake.server is not None
        return handshake.client, handshake.server

    def test_interfaces(self) -> None:
        factory = self.factory("ann")
        verifyObject(ISessionFactory, factory)
        verifyObject(ISession, factory.initiate(0.0))

    def test_handshake(self) -> None:
        handshake = Handshake(self.factory("ann"), self.factory("bob"))
        handshake.run(0.0)
        client, server = handshake.client, handshake.server
        self.assertTrue(handshake.established())
        self.assertEqual((client.peer.name, server.peer.name), ("bob", "ann"))
        self.assertEqual((client.initiated, server.initiated), (True, False))
        self.assertEqual((client.opening, client.tag), (server.opening, server.tag))
        self.assertEqual((len(client.opening), len(client.tag)), (32, 8))
        self.assertTrue(all(128 <= end.local_index >> 24 < 192 for end in (client, server)))
        self.assertIsNone(client.poll_timeout())
        server.unprotect(client.protect(1, b""))  # before, the server may have to repeat its last flight
        self.assertIsNone(server.poll_timeout())
        self.assertLessEqual(max(handshake.sizes), MTU)

    def test_opening_is_the_same_in_both_hellos_and_nowhere_else(self) -> None:
        ann, bob = self.factory("ann"), self.factory("bob")
        client = ann.initiate(0.0)
        first = client.poll_transmit()
        none, reply = bob.accept(0.0, first, SOURCE)
        client.receive(0.0, reply)
        second = client.poll_transmit()
        server, no_reply = bob.accept(0.0, second, SOURCE)
        flight = server.poll_transmit()
        self.assertEqual([bob.opening(d) for d in (first, second)], [client.opening] * 2)
        self.assertEqual([bob.opening(d) for d in (reply, flight, b"", b"\x16", first[:33])], [None] * 5)
        self.assertIsNone(none)
        self.assertIsNone(no_reply)
        self.assertLessEqual(len(reply), len(first))

    def test_a_cookie_is_good_for_its_source_only(self) -> None:
        ann, bob = self.factory("ann"), self.factory("bob")
        client = ann.initiate(0.0)
        client.receive(0.0, bob.accept(0.0, client.poll_transmit(), SOURCE)[1])
        with_cookie = client.poll_transmit()
        session, reply = bob.accept(0.0, with_cookie, b"elsewhere")
        self.assertIsNone(session)
        self.assertIsNotNone(reply)
        self.assertIsNotNone(bob.accept(0.0, with_cookie, SOURCE)[0])

    def test_what_members_pass_on_needs_no_cookie(self) -> None:
        """Two datagrams less, one round trip; the ends are as sure of each other as ever; junk is junk."""
        with_cookie, without = (Handshake(self.factory("ann"), self.factory("bob"), source=source) for source in (SOURCE, None))
        for handshake in (with_cookie, without):
            handshake.run(0.0)
            self.assertTrue(handshake.established())
        client, server = without.ends()
        self.assertEqual((client.peer.name, server.peer.name, client.tag), ("bob", "ann", server.tag))
        self.assertEqual(client.opening, server.opening)
        self.assertEqual(len(without.sizes), len(with_cookie.sizes) - 2)
        for junk in (b"", b"\x16", bytes(100)):
            self.assertEqual(self.factory("bob").accept(0.0, junk, None), (None, None))

    def test_junk_is_not_answered(self) -> None:
        bob = self.factory("bob")
        for junk in (b"", b"\x16", b"\x16" * 33, bytes(1200), b"\x16\xfe\xff" + bytes(200), b"\x17" * 80):
            self.assertEqual(bob.accept(0.0, junk, SOURCE), (None, None))

    def test_garbage_during_the_handshake_is_ignored(self) -> None:
        handshake = Handshake(self.factory("ann"), self.factory("bob"))
        for junk in (b"", b"\x16", bytes(100), b"\x17" * 60, b"\x14" * 200):
            handshake.client.receive(0.0, junk)
        handshake.run(0.0)
        self.assertTrue(handshake.established())

    def test_crossing_handshakes_have_two_openings_and_two_tags(self) -> None:
        ann, bob = self.factory("ann"), self.factory("bob")
        there, back = Handshake(ann, bob), Handshake(bob, ann)
        there.run(0.0)
        back.run(0.0)
        self.assertTrue(there.established() and back.established())
        self.assertNotEqual(there.client.opening, back.client.opening)
        self.assertNotEqual(there.client.tag, back.client.tag)

    def test_refusal_by_the_server(self) -> None:
        handshake = Handshake(self.factory("mallory"), self.factory("bob", refuses="mallory"))
        handshake.run(0.0)
        self.assertIsInstance(handshake.server.failure, PeerRefused)
        self.assertIsInstance(handshake.client.failure, PeerRefused)
        self.assertEqual(str(handshake.server.failure), "mallory is not welcome")
        self.assertIn("the peer refused this node's certificate", str(handshake.client.failure))
        self.assertEqual([(end.established, end.peer, end.poll_timeout()) for end in handshake.ends()], [(False, None, None)] * 2)

    def test_refusal_by_the_client(self) -> None:
        handshake = Handshake(self.factory("ann", refuses="mallory"), self.factory("mallory"))
        handshake.run(0.0)
        self.assertEqual(str(handshake.client.failure), "mallory is not welcome")
        self.assertIsInstance(handshake.server.failure, PeerRefused)

    def test_nobody_answers(self) -> None:
        client = self.factory("ann").initiate(0.0)
        now = 0.0
        for _ in range(20):
            if client.failure is None:
                now = max(now, client.poll_timeout())
                client.handle_timeout(10.0 if isinstance(client, DtlsSession) else now)
        self.assertIsInstance(client.failure, Unreachable)
        self.assertIsNone(client.poll_timeout())

    def test_sealed_both_ways(self) -> None:
        client, server = self.pair()
        for sender, receiver in ((client, server), (server, client)):
            for kind, payload in ((1, b""), (2, b"frame" * 300), (3, memoryview(b"relayed"))):
                sealed = sender.protect(kind, payload)
                self.assertEqual(len(sealed), len(payload) + OVERHEAD)
                self.assertEqual(int.from_bytes(sealed[:4], "big"), receiver.local_index)
                self.assertEqual(receiver.unprotect(memoryview(sealed)), (kind, bytes(payload)))
                self.assertRaises(BadDatagram, receiver.unprotect, sealed)
            self.assertEqual(sender.datagrams_sealed, 3)

    def test_a_reflected_datagram_is_refused(self) -> None:
        client, _ = self.pair()
        self.assertRaises(BadDatagram, client.unprotect, client.protect(1, b"mine"))

    def test_every_flipped_bit_is_seen(self) -> None:
        client, server = self.pair()

        @settings(max_examples=100)
        @given(st.binary(max_size=64), st.data())
        def check(payload: bytes, data: st.DataObject) -> None:
            sealed = bytearray(client.protect(1, payload))
            bit = data.draw(st.integers(0, len(sealed) * 8 - 1))
            sealed[bit // 8] ^= 1 << bit % 8
            self.assertRaises(BadDatagram, server.unprotect, bytes(sealed))
            sealed[bit // 8] ^= 1 << bit % 8
            self.assertEqual(server.unprotect(bytes(sealed)), (1, payload))

        check()

    def test_short_datagrams_are_refused(self) -> None:
        client, server = self.pair()
        sealed = client.protect(1, b"")
        for length in range(len(sealed)):
            self.assertRaises(BadDatagram, server.unprotect, sealed[:length])

    def test_sealing_needs_an_established_session(self) -> None:
        fresh = self.factory("ann").initiate(0.0)
        closed, _ = self.pair()
        closed.close()
        for session in (fresh, closed):
            self.assertRaises(LocalMisuse, session.protect, 1, b"")
            self.assertRaises(LocalMisuse, session.unprotect, bytes(40))


class PlainSessionTests(SessionDemands, SynchronousTestCase):
    """The plain session, in virtual time."""

    def factory(self, name: str, refuses: str = "") -> PlainSessionFactory:
        def verify(peer: Peer) -> None:
            if peer.name == refuses:
                raise PeerRefused(f"{peer.name} is not welcome")

        return PlainSessionFactory(Peer(name.encode().ljust(20, b"\0"), name), Random(name), verify)

    def test_any_two_lost_datagrams_are_made_good(self) -> None:
        for first in range(8):
            for second in range(first, 10):
                handshake = Handshake(self.factory("ann"), self.factory("bob"), frozenset((first, second)))
                handshake.run(0.0)
                self.assertFalse(handshake.established(), (first, second))
                while not handshake.established():
                    now = min(t for t in (end.poll_timeout() for end in handshake.ends()) if t is not None)
                    self.assertLess(now, 5.0)
                    for end in handshake.ends():
                        end.handle_timeout(now)
                    handshake.run(now)

    def test_same_seed_same_bytes(self) -> None:
        self.assertEqual(*(self.factory("ann").initiate(0.0).poll_transmit() for _ in range(2)))


class DtlsSessionTests(SessionDemands, TestCase):
    """The DTLS session. Its retransmission runs by the real clock, so all losses wait in one test, side by side."""

    def factory(self, name: str, refuses: str = "") -> DtlsSessionFactory:
        return DtlsSessionFactory(SelfSigned(name, refuses))

    def test_datagrams_begin_as_rfc_7983_says(self) -> None:
        first = self.factory("ann").initiate(0.0).poll_transmit() or b""
        self.assertTrue(20 <= first[0] <= 63)

    def test_a_flight_is_repeated(self) -> None:
        """The same datagrams, later each time, so often and no more; nothing once the handshake is over."""
        client = self.factory("ann").initiate(0.0)
        flight, repeats, now = drained(client), [], 0.0
        while now < GIVE_UP_AFTER - 0.5:
            now = client.poll_timeout() or GIVE_UP_AFTER
            client.handle_timeout(now)
            repeats += [now] if drained(client) == flight else []
        gaps = [later - earlier for earlier, later in pairwise([0.0, *repeats])]
        self.assertEqual(len(repeats), MOST_REPEATS)
        self.assertEqual([round(gap, 6) for gap in gaps], [round(REPEAT_AFTER * REPEAT_GROWTH**count, 6) for count in range(MOST_REPEATS)])
        handshake = Handshake(self.factory("ann"), self.factory("bob"))
        handshake.run(0.0)
        assert handshake.server is not None
        handshake.server.handle_timeout(REPEAT_AFTER)
        self.assertNotEqual(drained(handshake.server), [], "the last flight may be lost")
        handshake.server.unprotect(handshake.client.protect(1, b""))
        self.assertEqual((handshake.server.poll_timeout(), handshake.client.poll_timeout()), (None, None))

    async def test_each_lost_datagram_is_made_good(self) -> None:
        ann, bob = self.factory("ann"), self.factory("bob")
        handshakes = [Handshake(ann, bob, frozenset((lost,))) for lost in range(6)]
        handshakes += [Handshake(ann, bob, frozenset((lost,)), source=None) for lost in range(4)]
        for handshake in handshakes:
            handshake.run(0.0)
        self.assertEqual([handshake.established() for handshake in handshakes], [False] * 10)
        await deferLater(reactor, 1.02)
        for handshake in handshakes:
            for end in handshake.ends():
                end.handle_timeout(1.02)
            handshake.run(1.02)
        self.assertEqual([handshake.established() for handshake in handshakes], [True] * 10)

    def test_altered_handshakes_never_raise(self) -> None:
        ann, bob = self.factory("ann"), self.factory("bob")

        @settings(max_examples=150)
        @given(st.integers(0, 5), st.integers(0, 2**16), st.integers(1, 255))
        def check(number: int, place: int, change: int) -> None:
            handshake = Handshake(ann, bob, alter=(number, place, change))
            handshake.run(0.0)
            for end in handshake.ends():
                self.assertFalse(end.established and end.failure is not None)
                self.assertTrue(end.established or end.failure is not None or end.poll_timeout() is not None)

        check()
