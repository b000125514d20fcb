"""Charters: who speaks for the authority, after its key was rolled over and when several must approve."""

from __future__ import annotations

from typing import Any

import msgspec
from cryptography import x509

from ipop_tx.core.dht.records import RegisterSigner, order_text
from ipop_tx.errors import LocalMisuse, PeerRefused
from ipop_tx.identity import certificates as certs
from ipop_tx.identity.authority import Admitter, request
from ipop_tx.identity.credentials import Credentials
from ipop_tx.identity.keys import PrivateKey, compressed_point_of, generate_key
from ipop_tx.identity.trust import Trust, add_signature, enough, signatures_in
from ipop_tx.services.orders import from_file, signed, to_file, told
from ipop_tx.wire import messages as m
from tests.test_identity_certificates import WALL, FoundedCase

UNTIL = int(WALL) + 1000


def point(key: PrivateKey) -> bytes:
    """As charters name it."""
    return compressed_point_of(key.public_key())


class CharterCase(FoundedCase):
    """A network, its authority's key, the next one, and three approvers."""

    def setUp(self) -> None:
        super().setUp()
        self.wall = WALL
        assert self.admitter.authority_key is not None
        self.old, self.new, self.one, self.two, self.three = self.admitter.authority_key, *(generate_key() for _ in range(4))
        self.next = certs.next_root(self.new, self.root, WALL)
        self.listed = certs.make_admission(self.new, self.next, self.admitter.key.public_key(), WALL)
        self.trust = self.fresh()

    def fresh(self, anchor: x509.Certificate | None = None) -> Trust:
        """A node that has heard of nothing."""
        return Trust(anchor or self.root, lambda: self.wall)

    def charter(self, *pens: PrivateKey, **changes: Any) -> m.Charter:
        """The roll-over, or something else."""
        roots = ((certs.to_der(self.root), UNTIL), (certs.to_der(self.next), 0))
        plain = m.Charter(self.network.ident, 1, roots, (point(self.new),), 1, (certs.to_der(self.listed),), int(WALL))
        charter = msgspec.structs.replace(plain, **changes)
        for pen in pens:
            charter = signed(pen, charter)
        return charter

    def adopts(self, charter: m.Charter, trust: Trust | None = None) -> bool:
        return (trust or self.trust).adopt(charter, order_text(charter))

    def approved(self, *pens: PrivateKey, number: int = 1, threshold: int = 2, **changes: Any) -> m.Charter:
        """Two of three."""
        roots, keys = ((certs.to_der(self.root), 0),), (point(self.one), point(self.two), point(self.three))
        listed = (certs.to_der(self.admission),)
        changed = {"number": number, "roots": roots, "keys": keys, "threshold": threshold, "admissions": listed, **changes}
        return self.charter(*pens, **changed)


class FollowingTests(CharterCase):
    """What is the next charter."""

    def test_rolled_over(self) -> None:
        """Signed by the old key and the new one; then only the new one orders, and a node that is behind takes them one by one."""
        second = self.charter(self.new, number=2)
        self.assertFalse(self.adopts(second))
        self.assertTrue(self.adopts(self.charter(self.old, self.new)))
        self.assertTrue(self.adopts(second))
        self.assertFalse(self.adopts(second), "twice")
        self.assertEqual([self.trust.ordered(b"x", add_signature(b"", key, b"x")) for key in (self.old, self.new)], [False, True])
        self.assertTrue(self.trust.ordered(b"x", add_signature(b"", self.old, b"x"), ever=True))

    def test_not_the_next(self) -> None:
        for bad in (
            self.charter(),
            self.charter(self.old),
            self.charter(self.new),
            self.charter(self.new, self.one),
            self.charter(self.old, self.new, number=2),
            self.charter(self.old, self.new, network=bytes(20)),
            self.charter(self.old, self.new, threshold=2),
            self.charter(self.old, self.new, keys=(point(self.new),) * 2, threshold=2),
            self.charter(self.old, self.new, keys=(bytes(33),)),
            self.charter(self.old, self.new, roots=((b"junk", 0),)),
            self.charter(self.old, self.new, roots=((certs.to_der(self.other_network()[0].root), 0),)),
            self.charter(self.old, self.new, admissions=(b"junk",)),
            msgspec.structs.replace(self.charter(self.old, self.new), time=5),
            msgspec.structs.replace(self.charter(self.old, self.new), signature=b"\x91" * 500),
        ):
            self.assertFalse(self.adopts(bad))
        self.assertEqual(self.trust.signers, ((point(self.old),), 1))

    def test_a_root_signs_for_itself(self) -> None:
        """Nobody brings in a root whose key it does not have."""
        self.assertFalse(self.adopts(self.charter(self.old, keys=(point(self.old),))))
        self.assertTrue(self.adopts(self.charter(self.old, self.new, keys=(point(self.old),))))

    def test_begun_at_a_later_root(self) -> None:
        """Who came in by the new root takes the charter that has brought it in, and goes on from there; no other."""
        late = self.fresh(self.next)
        self.assertEqual(late.network, self.network)
        self.assertFalse(self.adopts(self.approved(self.old, self.one, self.two), late))
        self.assertFalse(self.adopts(self.charter(self.old, number=7), late))
        self.assertTrue(self.adopts(self.charter(self.old, self.new, number=7), late))
        self.assertFalse(self.adopts(self.charter(self.old, self.new, number=7), late))
        self.assertTrue(self.adopts(self.charter(self.new, number=8), late))
        self.assertFalse(late.ordered(b"x", add_signature(b"", self.old, b"x"), ever=True))

    def test_two_of_three(self) -> None:
        """As many as it demands must sign it too, so a mistyped key locks nobody out; a key counts once."""
        for pens in ((self.old,), (self.old, self.one), (self.one, self.two)):
            self.assertFalse(self.adopts(self.approved(*pens)))
        self.assertTrue(self.adopts(self.approved(self.old, self.one, self.three)))
        for pens, good in (
            ((), False),
            ((self.old,), False),
            ((self.one,), False),
            ((self.one, self.one), False),
            ((self.one, self.old), False),
            ((self.two, self.three), True),
            ((self.one, self.two, self.three), True),
        ):
            signature = b""
            for pen in pens:
                signature = add_signature(signature, pen, b"x")
            self.assertEqual(self.trust.ordered(b"x", signature), good)
            self.assertFalse(self.trust.ordered(b"y", signature))
        self.assertFalse(self.adopts(self.approved(self.one, number=2, keys=(point(self.one),), threshold=1)), "one cannot take over")
        self.assertFalse(self.adopts(self.approved(self.old, number=2, keys=(point(self.old),), threshold=1)))
        self.assertTrue(self.adopts(self.approved(self.one, self.two, number=2)))

    def test_signatures(self) -> None:
        self.assertEqual([signatures_in(junk) for junk in (b"", b"junk", b"\xc1", b"\x91\x91\x91")], [{}] * 4)
        self.assertFalse(enough(b"x", b"", (), 0))
        self.assertFalse(enough(b"x", msgspec.msgpack.encode([(bytes(33), b"")]), (bytes(33),), 1))


class ChainTests(CharterCase):
    """Whose certificates count."""

    def test_both_roots(self) -> None:
        """Whom a listed key has admitted counts under either root, and after the old one's end; its own word does until then."""
        other = generate_key()
        unlisted = Admitter(other, certs.make_admission(self.old, self.root, other.public_key(), WALL), self.root)
        leaf = unlisted.admit(request(self.key, "carl"), "carl", WALL)
        admitter = Admitter(self.admitter.key, self.listed, self.next)
        new = [admitter.admit(request(self.key, "dora"), "dora", WALL), self.listed, self.next]
        by_old = [leaf, unlisted.certificate, self.root]
        self.assertRefused(lambda: self.trust.verify(new), "is for another network")
        self.assertTrue(self.adopts(self.charter(self.old, self.new)))
        for self.wall, good in ((WALL, True), (UNTIL + 1.0, False)):
            self.assertEqual([self.trust.verify(chain).name for chain in (self.chain, self.chain[:2], new)], ["bob", "bob", "dora"])
            if good:
                self.assertEqual(self.trust.verify(by_old).name, "carl")
            else:
                self.assertRefused(lambda: self.trust.verify(by_old), "not one that the network's authority lists")
        late = self.fresh(self.next)
        self.assertEqual(late.verify(new).name, "dora")
        self.assertTrue(self.adopts(self.charter(self.old, self.new), late))
        self.assertEqual([late.verify(chain).name for chain in (self.chain, new)], ["bob", "dora"])

    def test_only_whom_it_lists(self) -> None:
        """Where several approve, the root's key alone appoints nobody."""
        self.adopts(self.approved(self.old, self.one, self.two))
        other = generate_key()
        alone = Admitter(other, certs.make_admission(self.old, self.root, other.public_key(), WALL), self.root)
        chain = [alone.admit(request(self.key, "eve"), "eve", WALL), alone.certificate, self.root]
        self.assertRefused(lambda: self.trust.verify(chain), "not one that the network's authority lists")
        self.assertEqual(self.trust.verify(self.chain).name, "bob")
        listed = (certs.to_der(self.admission), certs.to_der(alone.certificate))
        self.assertTrue(self.adopts(self.approved(self.two, self.three, number=2, admissions=listed)))
        self.assertEqual(self.trust.verify(chain).name, "eve")

    def test_nonsense(self) -> None:
        self.adopts(self.charter(self.old, self.new))
        other, _ = self.other_network()
        foreign = [other.admit(request(self.key, "x"), "x", WALL), other.certificate, other.root]
        for chain in ([], self.chain[:1], [*self.chain, self.root], foreign, foreign[:2], [self.leaf, self.leaf, self.root]):
            self.assertRaises(PeerRefused, self.trust.verify, chain)

    def test_credentials(self) -> None:
        """A node's own certificate may be under either root, before and after a restart; so may what it shows in the DHT."""
        credentials = Credentials(self.key, self.chain, lambda: self.wall)
        register = RegisterSigner(self.network, credentials.signer())
        admitter = Admitter(self.admitter.key, self.listed, self.next)
        renewed = [admitter.readmit(self.leaf, WALL + 500), self.listed, self.next]
        self.wall = WALL + 500
        self.assertRefused(lambda: credentials.renew(renewed), "another network")
        self.assertTrue(register.adopts(self.charter(self.old, self.new)))
        credentials.renew(renewed)
        self.wall = UNTIL + 1.0
        again = Credentials(self.key, renewed, lambda: self.wall)
        self.assertEqual(again.peer.ident, credentials.peer.ident)
        signer = again.signer()
        self.assertEqual(signer.admitted(credentials.signer().credential), again.peer)


class OrderFileTests(CharterCase):
    """Orders that are carried about."""

    def test_round(self) -> None:
        orders: list[Any] = [
            self.charter(self.old),
            m.Revocation(self.network.ident, bytes(32), "gone", 5),
            m.Revocation(self.network.ident, bytes(32), "desk", 5, since=5),
            m.Settings(self.network.ident, 5, (("policy", b"x"),)),
            m.Order(self.network.ident, 5, (bytes(20),), (1, 2), bytes(16), 5),
        ]
        content = msgspec.json.decode(msgspec.json.encode(to_file(orders)))
        self.assertEqual(from_file(content), orders)
        words = [
            "makes charter 1",
            "throws out gone",
            "takes the right to admit from desk",
            "settings 5 (sections: policy)",
            "founds view 5",
        ]
        for order, sentence in zip(orders, words, strict=True):
            self.assertIn(sentence, told(order))
        for junk in (None, [], {}, {"ipop_orders": "x"}, {"ipop_orders": ["x"]}, {"ipop_orders": [5]}, {"ipop_orders": ["kQE="]}):
            self.assertIn("no file of orders", str(self.assertRaises(LocalMisuse, from_file, junk)))
