"""Renewal: both kinds of session under one list of demands, the derivation byte by byte, and the sizes that the imitation imitates."""

from __future__ import annotations

import hashlib
import hmac
from ipaddress import IPv4Network
from random import Random

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from ipop_tx.errors import BadDatagram, BadMessage, LocalMisuse
from ipop_tx.identity.authority import Admitter, create_network, request
from ipop_tx.identity.credentials import Credentials
from ipop_tx.identity.keys import generate_key
from ipop_tx.identity.state import StateDirectory
from ipop_tx.interfaces import ISealedChannel, ISession
from ipop_tx.session.dtls import DtlsSession, DtlsSessionFactory
from ipop_tx.session.plain import PlainSessionFactory
from ipop_tx.session.renewal import BLOCK_BYTES, CHAIN_BYTES, Chain
from ipop_tx.values import Peer
from ipop_tx.wire.datagram import OVERHEAD
from tests.test_forwarding_batch import Pair, reference
from tests.test_session import Factory, Handshake, SelfSigned, Session

WALL = 1_800_000_000.0
SMALL_ORDER = [
    bytes(32),
    bytes([1]) + bytes(31),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    bytes.fromhex("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
    bytes.fromhex("edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
    bytes.fromhex("eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
]
"""All points of Curve25519 that make every shared secret zero."""


def renewed(one: Session, other: Session) -> tuple[Session, Session]:
    """Both ends of the session that follows."""
    ours, theirs = one.offer(), other.offer()
    return one.renew(theirs), other.renew(ours)


class RenewalDemands:
    """What every kind of session must do."""

    def factory(self, name: str) -> Factory:
        raise NotImplementedError

    def setUp(self) -> None:
        handshake = Handshake(self.factory("ann"), self.factory("bob"))
        handshake.run(0.0)
        assert handshake.established() and handshake.server is not None
        self.one, self.other = handshake.client, handshake.server

    def test_a_session_like_any_other(self) -> None:
        parents = self.one, self.other
        children = renewed(*parents)
        for parent, child in zip(parents, children, strict=True):
            verifyObject(ISession, child)
            self.assertEqual((child.established, child.failure, child.peer), (True, None, parent.peer))
            self.assertEqual((child.renewable, parent.renewable, child.datagrams_sealed), (True, False, 0))
            self.assertEqual((child.poll_transmit(), child.poll_timeout(), len(child.tag)), (None, None, 8))
            self.assertTrue(128 <= child.local_index >> 24 < 192)
            child.receive(0.0, b"\x16" * 60)
            child.handle_timeout(0.0)
        one, other = children
        self.assertEqual((one.tag, one.initiated), (other.tag, not other.initiated))
        for sender, receiver in ((one, other), (other, one)):
            sealed = sender.protect(2, b"frame")
            self.assertEqual((len(sealed), int.from_bytes(sealed[8:16], "big")), (5 + OVERHEAD, 0))
            self.assertEqual(receiver.unprotect(sealed), (2, b"frame"))
            self.assertRaises(BadDatagram, receiver.unprotect, sealed)

    def test_who_began_is_the_greater_key(self) -> None:
        """Whoever asked: so it is the same when both asked."""
        sides = set()
        one, other = self.one, self.other
        for _ in range(30):
            greater = one.offer() > other.offer()
            one, other = renewed(one, other)
            self.assertEqual((one.initiated, other.initiated), (greater, not greater))
            sides.add(greater)
        self.assertEqual(sides, {True, False})

    def test_parent_and_child_are_apart(self) -> None:
        """Both open their own; neither opens what the other sealed; so too with all generations."""
        family = [(self.one, self.other)]
        for _ in range(4):
            family.append(renewed(*family[-1]))
        tags = {one.tag for one, _ in family}
        indexes = {end.local_index for ends in family for end in ends}
        self.assertEqual((len(tags), len(indexes)), (5, 10))
        for number, (sender, _) in enumerate(family):
            sealed = sender.protect(1, b"who")
            for place, (_, receiver) in enumerate(family):
                if place != number:
                    aimed = receiver.local_index.to_bytes(4, "big") + sealed[4:]
                    self.assertRaises(BadDatagram, receiver.unprotect, aimed)
            self.assertEqual(family[number][1].unprotect(sealed), (1, b"who"))

    def test_one_child(self) -> None:
        """What it takes is erased: no second child, of the same key or of another, at either end."""
        ours, theirs = self.one.offer(), self.other.offer()
        self.assertEqual((self.one.offer(), self.other.offer()), (ours, theirs))
        renewed(self.one, self.other)
        for end, public in ((self.one, theirs), (self.other, ours), (self.one, b"k" * 32)):
            self.assertRaises(LocalMisuse, end.renew, public)
            self.assertRaises(LocalMisuse, end.offer)

    def test_not_before_nor_after(self) -> None:
        fresh = self.factory("ann").initiate(0.0)
        self.one.close()
        for end in (fresh, self.one):
            self.assertFalse(end.renewable)
            self.assertRaises(LocalMisuse, end.offer)
            self.assertRaises(LocalMisuse, end.renew, b"k" * 32)

    def test_what_is_no_key(self) -> None:
        """It is refused, and the honest renewal is still possible."""
        for public in (b"", b"k" * 31, b"k" * 33, bytes(32), self.one.offer()):
            self.assertRaises(BadMessage, self.one.renew, public)
        self.assertTrue(self.one.renewable)
        one, other = renewed(self.one, self.other)
        self.assertEqual(one.tag, other.tag)

    def test_a_wrong_key(self) -> None:
        """A key that is not the peer's gives a session which nothing opens."""
        ours = self.one.offer()
        one, other = self.one.renew(b"k" * 32), self.other.renew(ours)
        aimed = other.local_index.to_bytes(4, "big") + one.protect(1, b"")[4:]
        self.assertRaises(BadDatagram, other.unprotect, aimed)


class PlainRenewalTests(RenewalDemands, SynchronousTestCase):
    """The imitation."""

    def factory(self, name: str) -> PlainSessionFactory:
        return PlainSessionFactory(Peer(name.encode().ljust(20, b"\0"), name), Random(name))


class DtlsRenewalTests(RenewalDemands, SynchronousTestCase):
    """The real one."""

    def factory(self, name: str) -> DtlsSessionFactory:
        return DtlsSessionFactory(SelfSigned(name))

    def test_channel(self) -> None:
        one, _ = renewed(self.one, self.other)
        verifyObject(ISealedChannel, one.channel)

    def test_erased(self) -> None:
        """Neither the secret nor the private key stays anywhere in the parent."""
        assert isinstance(self.one, DtlsSession)
        chain = self.one._chain
        renewed(self.one, self.other)
        self.assertIsNotNone(chain)
        self.assertNotIn(chain, [getattr(self.one, name, None) for name in vars(self.one)])

    def test_small_order(self) -> None:
        for public in SMALL_ORDER:
            self.assertRaises(BadMessage, self.one.renew, public)
        self.assertTrue(self.one.renewable)

    def test_records_flow(self) -> None:
        """Frames through two forwarding planes while keys change: none lost, none twice, none out of order; then the old keys are dead."""
        assert isinstance(self.one, DtlsSession) and isinstance(self.other, DtlsSession)
        pair = Pair(1, 10, 1400)
        a, b = pair.a, pair.b
        old = self.one, self.other

        def knows(ours: list[Session], theirs: list[Session]) -> None:
            """Frames of before are still on the wire when the FIB is written."""
            width = a.adjacency(b).width.pieces
            b.knows(a, theirs, 1400)  # type: ignore[arg-type]
            a.knows(b, ours, 1400)  # type: ignore[arg-type]
            a.adjacency(b).width.pieces = width
            pair.step("more", 4)

        knows([old[0]], [old[1]])
        for _ in range(5):
            new = renewed(*old)
            knows([old[0]], [old[1], new[1]])  # the other end has been asked
            knows([new[0], old[0]], [old[1], new[1]])  # its answer is there
            pair.net.carry()
            knows([new[0], old[0]], [new[1], old[1]])  # it has heard us with the new keys
            pair.net.carry()
            knows([new[0]], [new[1]])
            pair.net.carry()
            stale = old[0].protect(2, b"frame")
            b.plane.datagram_received(a.endpoint, stale)
            self.assertEqual(b.elsewhere.datagrams.pop(), stale)
            old = new
        self.assertEqual(pair.taken(), reference(pair.given))
        self.assertEqual(b.dropped(), {})


class ChainTests(SynchronousTestCase):
    """The derivation against one written down here."""

    def block(self, secret: bytes, private: X25519PrivateKey, theirs: bytes) -> bytes:
        ours = private.public_key().public_bytes_raw()
        extracted = hmac.digest(secret, private.exchange(X25519PublicKey.from_public_bytes(theirs)), hashlib.sha256)
        info, block, last = b"ipop-tx-1 renewal" + max(ours, theirs) + min(ours, theirs), b"", b""
        for number in range(1, 5):
            last = hmac.digest(extracted, last + info + bytes([number]), hashlib.sha256)
            block += last
        return block[:112]

    @settings(max_examples=50)
    @given(st.binary(min_size=CHAIN_BYTES, max_size=CHAIN_BYTES))
    def test_block(self, secret: bytes) -> None:
        one, private = Chain(secret), X25519PrivateKey.generate()
        theirs = private.public_key().public_bytes_raw()
        ours = one.offer()
        self.assertEqual(one.follow(theirs), (ours > theirs, self.block(secret, private, ours)))
        self.assertEqual(BLOCK_BYTES, 112)

    def test_the_secret_matters(self) -> None:
        """Who listens in on the exchange's private keys but was not at the handshake knows nothing."""
        one, other = Chain(bytes(32)), Chain(bytes(31) + b"\1")
        self.assertNotEqual(one.follow(other.offer())[1], other.follow(one.offer())[1])


class SizeTests(SynchronousTestCase):
    """The imitation's datagrams are as many and about as long as the real ones."""

    def test_handshake(self) -> None:
        state = StateDirectory(self.mktemp())
        create_network(state, "lab", IPv4Network("10.128.0.0/16"), "first", wall=WALL)
        admitter = Admitter.load(state)
        credentials = []
        for name in ("alice-laptop", "bob"):
            key = generate_key()
            leaf = admitter.admit(request(key, name), name, WALL)
            credentials.append(Credentials(key, [leaf, admitter.certificate, admitter.root], lambda: WALL))
        real = Handshake(*(DtlsSessionFactory(one) for one in credentials))
        plain = Handshake(*(PlainSessionFactory(one.peer, Random(1)) for one in credentials))
        for handshake in (real, plain):
            handshake.run(0.0)
            self.assertTrue(handshake.established())
        self.assertEqual(len(plain.sizes), len(real.sizes))
        for size, imitated in zip(real.sizes, plain.sizes, strict=True):
            self.assertLess(abs(size - imitated), 25, (real.sizes, plain.sizes))
