"""What an admission key may admit: every verifier holds it to its limits, whatever it has signed; and the right that is withdrawn."""

from __future__ import annotations

import os

from cryptography import x509

from ipop_tx.core import commands as c
from ipop_tx.errors import InvitationRefused, LocalMisuse
from ipop_tx.identity import appointed, readmission
from ipop_tx.identity import certificates as certs
from ipop_tx.identity.authority import Admitter, request
from ipop_tx.identity.certificates import Limits, Rights
from ipop_tx.identity.credentials import Credentials
from ipop_tx.identity.decision import Decision
from ipop_tx.identity.invitation import Invitation, InvitationRecord, Wish
from ipop_tx.identity.keys import generate_key
from ipop_tx.identity.trust import Trust
from ipop_tx.wire import messages as m
from tests.net import NetCase, by_authority
from tests.test_core_revocation import revocation
from tests.test_identity_certificates import WALL, FoundedCase, clock

LIMITS = Limits("lab-*", ("lab", "web"), ("192.168.0.0/16", "2001:db8::/32"), False, 1000)
GOOD = ("lab-7", Rights("", ("lab",), ("192.168.7.0/24", "2001:db8:7::/48"), 1000))
BEYOND = (
    ("pc7", Rights(life=1000), "the name pc7"),
    ("lab-7", Rights(groups=("lab", "admins"), life=1000), "a group"),
    ("lab-7", Rights(routes=("10.0.0.0/8",), life=1000), "a route"),
    ("lab-7", Rights(routes=("192.168.0.0/15",), life=1000), "a route"),
    ("lab-7", Rights(routes=("2001:db9::/48",), life=1000), "a route"),
    ("lab-7", Rights("10.128.0.9", life=1000), "an assigned address"),
    ("lab-7", Rights(life=1001), "the length of its life"),
)


class LimitTests(FoundedCase):
    """A deputy."""

    def setUp(self) -> None:
        super().setUp()
        key = generate_key()
        self.deputy = Admitter(key, self.admitter.appoint(key.public_key(), WALL, LIMITS), self.root)

    def forged(self, name: str, rights: Rights, wall: float = WALL) -> list[x509.Certificate]:
        """What the deputy's key signs when nothing holds it back."""
        about = (rights.address, rights.groups, rights.routes, 0, rights.life)
        facts = certs.MemberFacts(self.network.ident, os.urandom(16), name, False, *about)
        leaf = certs.make_member(self.deputy.key, self.deputy.certificate, self.key.public_key(), facts, wall, rights.life)
        return [leaf, self.deputy.certificate, self.root]

    def test_within(self) -> None:
        self.assertEqual(certs.limits_of(self.deputy.certificate), LIMITS)
        self.assertEqual(certs.limits_of(self.admission), certs.UNLIMITED)
        name, rights = GOOD
        leaf = self.deputy.admit(request(self.key, name), name, WALL, rights)
        for chain in ([leaf, self.deputy.certificate, self.root], self.forged(name, rights)):
            self.assertEqual(certs.verify_member(chain, self.root, WALL).routes, rights.routes)

    def test_beyond(self) -> None:
        """The deputy's own machine refuses, and so does everybody else whatever the key has signed, in handshakes and in the DHT."""
        judge = Credentials.load(self.state, clock).signer()
        for name, rights, words in BEYOND:
            admit = lambda name=name, rights=rights: self.deputy.admit(request(self.key, name), name, WALL, rights)  # noqa: E731
            self.assertRefused(admit, f"this machine may not grant {words}", kind=LocalMisuse)
            chain = self.forged(name, rights)
            self.assertRefused(
                lambda chain=chain: certs.verify_member(chain, self.root, WALL), "more than whoever signed it may grant", words
            )
            self.assertIsNone(judge.admitted(certs_credential(chain)))

    def test_renewed_by_a_deputy(self) -> None:
        """Only what it might have admitted."""
        leaf = self.admitter.admit(request(self.key, "pc7"), "pc7", WALL)
        self.assertRefused(lambda: readmission.grant(leaf, self.deputy, WALL), "the name pc7", kind=InvitationRefused)
        leaf = self.admitter.admit(request(self.key, "lab-7"), "lab-7", WALL, GOOD[1])
        chain = readmission.read(readmission.grant(leaf, self.deputy, WALL + 10))
        self.assertEqual(certs.verify_member(chain, self.root, WALL + 10).name, "lab-7")

    def test_its_invitations_and_decisions(self) -> None:
        """Whoever grants what the deputy has signed may have no limits itself: the deputy's count."""
        trust = Trust(self.root, clock)
        for name, rights, words in BEYOND:
            record = InvitationRecord.make(
                Invitation.make(self.root, int(WALL) + 60, ()), Wish(name, rights=rights), self.deputy.key, self.deputy.certificate
            )
            record.verify(trust, WALL)
            refused = lambda record=record, name=name: record.check_limits(name, trust)  # noqa: E731
            self.assertRefused(refused, f"whoever made this invitation may not grant {words}", kind=InvitationRefused)
        decision = Decision.make(bytes(33), True, self.deputy)
        good = [decision.is_good(bytes(33), name, trust, lambda key: True) for name in ("lab-7", "pc7")]
        self.assertEqual(good, [True, False])

    def test_unreadable(self) -> None:
        """Limits that this version cannot read leave nothing within them."""
        certs.limits_of.__globals__["Limits"], kept = dict[str, int], certs.Limits
        self.addCleanup(certs.limits_of.__globals__.__setitem__, "Limits", kept)
        self.assertRefused(lambda: certs.verify_member(self.forged(*GOOD), self.root, WALL), "malformed")

    def test_nonsense(self) -> None:
        for limits in (Limits("A*"), Limits(groups=("A",)), Limits(routes=("x",)), Limits(life=1)):
            self.assertRaises(LocalMisuse, self.admitter.appoint, self.key.public_key(), WALL, limits)

    def test_listed(self) -> None:
        """The authority knows whom it has appointed."""
        self.assertEqual([one.name for one in appointed.read(self.state)], ["first"])
        appointed.note(self.state, "deputy", self.deputy.certificate)
        appointed.note(self.state, "deputy", self.deputy.certificate)
        self.assertEqual([(one.name, one.key) for one in appointed.read(self.state)][1:], [("deputy", self.deputy.digest)])


class WithdrawalTests(NetCase):
    """Nodes that were admitted by keys of their own."""

    def test_since(self) -> None:
        """What it has signed before stays, what it signs afterwards is void; whoever is told later follows; revoking it counts for more."""
        net = self.net(3)
        machines = self.grow(net, 6)
        key = bytes(range(32))
        order = by_authority(m.Revocation(net.network.ident, key, "deputy", 1000, since=1000))
        machines[5].crash()
        net.wait(machines[0].submit(c.Revoke(order)))
        net.wait(machines[5].start(machines[1]))
        net.run(10)
        known = [one.running.revocations for one in machines]
        before, after = (m_peer(key, begun) for begun in (999, 1000))
        for revocations in known:
            self.assertFalse(revocations.may_admit(key))
            self.assertFalse(revocations.is_revoked(key))
            self.assertEqual([revocations.is_out(peer) for peer in (before, after)], [False, True])
        whole = by_authority(m.Revocation(net.network.ident, key, "deputy", 2000))
        net.wait(machines[3].submit(c.Revoke(whole)))
        net.run(5)
        net.wait(machines[2].submit(c.Revoke(order)))
        net.run(5)
        for revocations in known:
            self.assertTrue(revocations.is_revoked(key))
            self.assertTrue(revocations.is_out(before))
        self.assertEqual(len({revocations.digest for revocations in known}), 1)
        self.assertEqual(revocation(machines[0]).since, 0)


def m_peer(admitted_by: bytes, begun: int) -> certs.Peer:
    """Somebody whom that key has admitted."""
    return certs.Peer(bytes(20), "x", admitted_by=admitted_by, begun=begun)


def certs_credential(chain: list[x509.Certificate]) -> bytes:
    """As it is shown in the DHT."""
    from ipop_tx.identity.assignment import credential

    return credential(chain)
