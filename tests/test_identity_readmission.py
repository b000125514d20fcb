"""Certificates that are renewed: what the request proves, who is refused, and what a member shows whose certificate has ended."""

from __future__ import annotations

from typing import Any

from cryptography import x509

from ipop_tx.errors import BadMessage, InvitationRefused, LocalMisuse, PeerRefused
from ipop_tx.identity import certificates as certs
from ipop_tx.identity import readmission
from ipop_tx.identity.authority import Admitter, request
from ipop_tx.identity.credentials import Credentials
from ipop_tx.identity.keys import generate_key, sign
from ipop_tx.identity.readmission import Readmission
from ipop_tx.identity.trust import Trust
from ipop_tx.session.dtls import DtlsSessionFactory
from tests.test_identity_certificates import WALL, FoundedCase
from tests.test_session import Handshake

GRACE = 30 * certs.DAY
LIFE = 1000
ENDS = WALL + LIFE


class ReadmittedCase(FoundedCase):
    """Bob, whose certificates count for a thousand seconds each."""

    def setUp(self) -> None:
        super().setUp()
        rights = certs.Rights("10.128.0.9", ("web",), ("192.168.7.0/24",), LIFE)
        self.leaf = self.admitter.admit(request(self.key, "bob"), "bob", WALL, rights)
        self.chain = [self.leaf, self.admission, self.root]
        self.wall = WALL
        self.asked = readmission.build(self.key, self.chain)

    def check(self, asked: Readmission | None = None, revoked: bytes = b"") -> x509.Certificate:
        leaf, peer = readmission.check(
            asked or self.asked, Trust(self.root, lambda: self.wall), self.wall, GRACE, lambda peer: revoked in (peer.key, peer.admitted_by)
        )
        self.assertEqual(peer.name, "bob")
        return leaf

    def renewed(self, admitter: Admitter | None = None) -> list[x509.Certificate]:
        return readmission.read(readmission.grant(self.check(), admitter or self.admitter, self.wall))


class RequestTests(ReadmittedCase):
    """On the admitting side."""

    def test_the_same_member(self) -> None:
        """It keeps ident, name and rights, and its certificate counts for as long again, by any key that admits."""
        other = generate_key()
        assert self.admitter.authority_key is not None
        second = Admitter(other, certs.make_admission(self.admitter.authority_key, self.root, other.public_key(), WALL), self.root)
        for self.wall in (WALL + 600, ENDS + 1, ENDS + GRACE):
            before = certs.verify_member(self.chain, self.root, WALL)
            after = certs.verify_member(self.renewed(second), self.root, self.wall)
            self.assertEqual((after.ident, after.groups, after.routes), (before.ident, ("web",), ("192.168.7.0/24",)))
            self.assertEqual(after.not_after, int(self.wall) + LIFE)
            self.assertNotEqual(after.admitted_by, before.admitted_by)
            self.assertEqual(certs.facts_of(self.renewed()[0]), certs.facts_of(self.leaf), "an address is assigned no later than it was")

    def test_refused(self) -> None:
        peer = certs.verify_member(self.chain, self.root, WALL)
        for revoked in (peer.key, peer.admitted_by):
            self.assertRefused(lambda revoked=revoked: self.check(revoked=revoked), "was thrown out", kind=InvitationRefused)
        self.wall = ENDS + GRACE + certs.DAY
        self.assertRefused(self.check, "the certificate of bob ended 31.0 days ago, too long to be renewed", kind=InvitationRefused)
        self.wall = WALL
        other, _ = self.other_network()
        foreign = other.admit(request(self.key, "bob"), "bob", WALL)
        asked = readmission.build(self.key, [foreign, other.certificate, other.root])
        self.assertRefused(lambda: self.check(asked), "has not appointed", kind=InvitationRefused)
        for bad, words in (
            (self.asked._replace(signature=sign(generate_key(), b"")), "not signed by its key"),
            (self.asked._replace(certificates=(b"junk", b"")), "carries none"),
            (self.asked._replace(certificates=(self.asked.certificates[1], self.asked.certificates[0])), "is an authority's"),
        ):
            self.assertRefused(lambda bad=bad: self.check(bad), words, kind=(BadMessage, InvitationRefused))  # type: ignore[arg-type]

    def test_no_better(self) -> None:
        """A member whose own right ends first does not shorten anybody's membership."""
        key = generate_key()
        assert self.admitter.authority_key is not None
        brief = certs.make_admission(self.admitter.authority_key, self.root, key.public_key(), WALL, LIFE - 1.0)
        self.assertRefused(lambda: self.renewed(Admitter(key, brief, self.root)), "ends no later", kind=InvitationRefused)
        self.wall = ENDS + 1
        self.assertRefused(lambda: self.renewed(Admitter(key, brief, self.root)), "certificate ended", kind=InvitationRefused)

    def test_damaged_answer(self) -> None:
        self.assertRefused(lambda: readmission.read((b"junk",)), "damaged", kind=LocalMisuse)


class LapsedTests(ReadmittedCase):
    """On the member's side, by real handshakes."""

    def credentials(self, **options: Any) -> Credentials:
        return Credentials(self.key, self.chain, lambda: self.wall)

    def test_lapses_and_comes_back(self) -> None:
        """Once its certificate has ended, both ends are guests to each other; after the renewal they are members."""
        bob, first = self.credentials(), Credentials.load(self.state, lambda: self.wall)
        ours, theirs = DtlsSessionFactory(bob), DtlsSessionFactory(first)
        bob.on_change.append(ours.refresh)
        for self.wall, guest in ((WALL, False), (ENDS + 1, True), (ENDS + 2, False)):
            if self.wall == ENDS + 2:
                bob.renew(self.renewed())
            bob.refresh()
            for ends in ((ours, theirs), (theirs, ours)):
                handshake = Handshake(*ends)
                handshake.run(0.0)
                sessions = (handshake.client, handshake.server)
                self.assertEqual([session.peer.guest for session in sessions], [guest, guest])  # type: ignore[union-attr]
        self.assertEqual(bob.peer.not_after, int(ENDS) + 2 + LIFE)

    def test_loaded_when_it_has_ended(self) -> None:
        self.wall = ENDS + 1e6
        bob = self.credentials()
        self.assertTrue(bob.lapsed)
        self.assertEqual(len(bob.chain), 1)

    def test_only_its_own(self) -> None:
        """Another member's certificate is not taken, nor one that has ended."""
        bob = self.credentials()
        other = self.admitter.admit(request(self.key, "bob"), "bob", WALL)
        self.assertRefused(lambda: bob.renew([other, *self.chain[1:]]), "another member's")
        theirs = self.admitter.admit(request(generate_key(), "eve"), "eve", WALL)
        self.assertRefused(lambda: bob.renew([theirs, *self.chain[1:]]), "another key", kind=PeerRefused)
        self.wall = ENDS + 1
        self.assertRefused(lambda: bob.renew(self.chain), "has ended")
