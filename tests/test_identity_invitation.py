"""Invitations from the one line to the membership, with a sentence for each way in which they fail."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import msgspec
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ipop_tx.errors import BadMessage, InvitationRefused, IpopError, LocalMisuse
from ipop_tx.identity import certificates as certs
from ipop_tx.identity import state as files
from ipop_tx.identity.authority import Admitter, create_network, install_enrolled, request
from ipop_tx.identity.credentials import Credentials, GuestCredentials
from ipop_tx.identity.enrolment import Enrolment, build_enrol, check_enrol, grant
from ipop_tx.identity.invitation import PREFIX, Invitation, InvitationRecord, Wish
from ipop_tx.identity.keys import ensure_key, generate_key, sign
from ipop_tx.identity.state import StateDirectory
from ipop_tx.identity.trust import Trust
from ipop_tx.values import Endpoint
from tests.test_identity_certificates import POOL, WALL, FoundedCase, clock

SOON = int(WALL) + 3600
V4, V6 = Endpoint("udp", "198.51.100.7", 4500), Endpoint("udp", "2001:db8::7", 4501)

endpoints = st.one_of(
    st.builds(Endpoint, st.just("udp"), st.ip_addresses().map(str), st.integers(1, 65535)),
    st.builds(Endpoint, st.sampled_from(["tls", "onion"]), st.just("a" * 56 + ".onion"), st.integers(1, 65535)),
)


class TokenTests(SynchronousTestCase):
    """The one line."""

    invitation = Invitation("lab", b"f" * 16, b"s" * 16, SOON, (V4,))

    @given(
        st.builds(
            Invitation,
            st.from_regex(r"[a-z0-9]{1,40}", fullmatch=True),
            st.binary(min_size=16, max_size=16),
            st.binary(min_size=16, max_size=16),
            st.integers(0, 2**32 - 1),
            st.lists(endpoints, max_size=4).map(tuple),
        )
    )
    def test_round_trip(self, invitation: Invitation) -> None:
        self.assertEqual(Invitation.parse(str(invitation)), invitation)

    def test_bytes(self) -> None:
        raw = base64.urlsafe_b64decode(str(self.invitation)[len(PREFIX) :] + "==")
        self.assertEqual(raw[:-3], b"s" * 16 + b"f" * 16 + SOON.to_bytes(4, "big") + b"\3lab" + bytes.fromhex("04 c6336407 1194"))
        self.assertLessEqual(len(str(self.invitation)), 76)

    def test_the_key_is_fixed(self) -> None:
        self.assertEqual(self.invitation.public.hex(), "02c5ee447cf8b453a0ff3be8187e8b6a67ecb8ad2cc2030ce37078dd51753fce81")

    def test_pasted_with_line_breaks(self) -> None:
        token = str(self.invitation)
        self.assertEqual(Invitation.parse(f"  {token[:30]}\n  {token[30:]}\r\n"), self.invitation)

    def test_every_mistyped_character_is_found(self) -> None:
        token = str(self.invitation)
        for at in range(len(PREFIX), len(token)):
            for letter in "Ab0-":
                if letter != token[at]:
                    mistyped = token[:at] + letter + token[at + 1 :]
                    # The last character carries bits that no byte holds.
                    if base64.urlsafe_b64decode(mistyped[6:] + "==") != base64.urlsafe_b64decode(token[6:] + "=="):
                        self.assertRaises(InvitationRefused, Invitation.parse, mistyped)

    def test_refusals(self) -> None:
        token = str(self.invitation)
        for text, words in (
            ("", "this is not an invitation: an invitation is one line that begins with ipop1-"),
            ("hello", "this is not an invitation"),
            (token[:-1], "this invitation is mistyped or incomplete: copy the whole line again"),
            (token + "A", "mistyped or incomplete"),
            (token.replace("ipop1-", "ipop1-\u00e4"), "mistyped or incomplete"),
            (PREFIX, "mistyped or incomplete"),
        ):
            self.assertIn(words, str(self.assertRaises(InvitationRefused, Invitation.parse, text)))

    @given(st.binary(max_size=80))
    def test_a_right_checksum_over_junk_is_refused_or_read(self, body: bytes) -> None:
        import hashlib

        token = PREFIX + base64.urlsafe_b64encode(body + hashlib.sha256(body).digest()[:3]).decode().rstrip("=")
        try:
            self.assertEqual(len(Invitation.parse(token).secret), 16)
        except InvitationRefused as refusal:
            self.assertIn("does not know", str(refusal))

    def test_expiry(self) -> None:
        self.invitation.check_expiry(SOON - 1)
        for late, words in ((0, "a moment"), (1, "1 second"), (59, "59 seconds"), (300, "5 minutes"), (7200, "2 hours"), (90000, "1 day")):
            error = self.assertRaises(InvitationRefused, self.invitation.check_expiry, SOON + late)
            self.assertEqual(str(error), f"this invitation expired {words} ago: ask for a new one")


RIGHTS: tuple[dict[str, Any], ...] = (
    {"address": "10.128.0.9"},
    {"groups": ("admins",)},
    {"routes": ("192.168.0.0/24",)},
    {"life": 3600},
)


class InvitedCase(FoundedCase):
    """An invitation to `lab` and its record."""

    def setUp(self) -> None:
        super().setUp()
        self.trust = Trust(self.root, clock)
        self.invitation = Invitation.make(self.root, SOON, (V4, V6) * 3)
        self.record = self.make_record()
        self.guest = GuestCredentials(self.invitation.key, self.invitation.fingerprint, clock)

    def make_record(self, name: str = "", appoints: bool = False, **rights: Any) -> InvitationRecord:
        return InvitationRecord.make(self.invitation, Wish(name, appoints, certs.Rights(**rights)), self.admitter.key, self.admission)

    def assertRefused(self, call: Callable[[], object], *words: str, kind: type[Exception] = InvitationRefused) -> None:
        super().assertRefused(call, *words, kind=kind)


class RecordTests(InvitedCase):
    """What the DHT holds of an invitation."""

    def test_good(self) -> None:
        value = self.make_record("x" * 40, True, address="10.128.123.234").encode()
        self.assertLessEqual(len(value), 1024)
        record = InvitationRecord.decode(value)
        record.verify(self.trust, WALL)
        self.assertEqual((record.public, record.name, record.expires, record.appoints), (self.invitation.public, "x" * 40, SOON, True))
        self.assertEqual(record.rights.address, "10.128.123.234")

    def test_at_most_four_endpoints(self) -> None:
        self.assertEqual(self.invitation.endpoints, (V4, V6, V4, V6))

    def test_expired(self) -> None:
        self.assertRefused(lambda: self.record.verify(self.trust, SOON + 300), "this invitation expired 5 minutes ago: ask for a new one")

    def test_altered(self) -> None:
        other = Invitation.make(self.root, SOON, ()).public
        for change in (
            {"name": "eve"},
            {"expires": SOON + 1},
            {"appoints": True},
            {"public": other},
            {"signature": b""},
            {"uses": 2},
            {"approval": True},
            *({"rights": certs.Rights(**right)} for right in RIGHTS),
        ):
            for record in (self.record, self.make_record(address="10.128.0.8")):
                altered = msgspec.structs.replace(record, **change)
                self.assertRefused(lambda altered=altered: altered.verify(self.trust, WALL), "not signed by a member that may admit")
        taken = msgspec.structs.replace(self.make_record(address="10.128.0.8"), rights=certs.Rights())
        self.assertRefused(lambda: taken.verify(self.trust, WALL), "not signed by a member that may admit")

    def test_signed_by_others(self) -> None:
        other, _ = self.other_network()
        foreign = InvitationRecord.make(self.invitation, Wish(), other.key, other.certificate)
        self.assertRefused(lambda: foreign.verify(self.trust, WALL), "not signed by a member that may admit")
        member = InvitationRecord.make(self.invitation, Wish(), self.key, self.leaf)
        self.assertRefused(lambda: member.verify(self.trust, WALL), "this invitation is not valid: the inviter's certificate")
        junk = msgspec.structs.replace(self.record, admission=b"junk")
        self.assertRefused(lambda: junk.verify(self.trust, WALL), "not signed by a member that may admit")

    def test_inviter_expired(self) -> None:
        self.assertRefused(lambda: self.record.verify(self.trust, WALL + 3 * certs.MEMBER_LIFETIME), "the inviter's certificate ended")

    @given(st.binary(max_size=100))
    def test_junk(self, value: bytes) -> None:
        self.assertRaises(InvitationRefused, InvitationRecord.decode, value)


class EnrolmentTests(InvitedCase):
    """From the invitation to the files of a member."""

    def setUp(self) -> None:
        super().setUp()
        self.newcomer = StateDirectory(self.mktemp())
        self.node_key = ensure_key(self.newcomer, files.NODE_KEY)
        self.enrolment = build_enrol(self.invitation, self.node_key, None, "carol")

    def check(self, enrolment: Enrolment, record: InvitationRecord | None = None, guest: bytes | None = None) -> None:
        check_enrol(enrolment, guest or self.guest.peer.ident, record or self.record, self.trust, WALL)

    def test_member(self) -> None:
        self.check(self.enrolment)
        granted = grant(self.enrolment, self.record, self.admitter, WALL)
        self.assertEqual(install_enrolled(self.newcomer, granted, self.invitation.fingerprint, WALL), self.network)
        peer = Credentials.load(self.newcomer, clock).peer
        self.assertEqual((peer.name, peer.admits), ("carol", False))
        self.assertFalse(self.newcomer.exists(files.ADMISSION_CERTIFICATE))

    def test_the_record_may_fix_the_name(self) -> None:
        granted = grant(self.enrolment, self.make_record("dora"), self.admitter, WALL)
        install_enrolled(self.newcomer, granted, self.invitation.fingerprint, WALL)
        self.assertEqual(Credentials.load(self.newcomer, clock).peer.name, "dora")

    def test_appointed(self) -> None:
        record = self.make_record(appoints=True)
        enrolment = build_enrol(self.invitation, self.node_key, ensure_key(self.newcomer, files.ADMISSION_KEY), "carol")
        self.check(enrolment, record)
        install_enrolled(self.newcomer, grant(enrolment, record, self.admitter, WALL), self.invitation.fingerprint, WALL)
        carol = Admitter.load(self.newcomer)
        self.assertIsNone(carol.authority_key)
        self.assertTrue(Credentials.load(self.newcomer, clock).peer.admits)
        leaf = carol.admit(request(self.key, "dora"), "dora", WALL)
        self.assertEqual(certs.verify_member([leaf, carol.certificate, self.root], self.root, WALL).name, "dora")
        self.assertRefused(lambda: carol.appoint(self.key.public_key(), WALL), "the authority's key can appoint", kind=LocalMisuse)

    def test_requests_that_do_not_hang_together(self) -> None:
        other = Invitation.make(self.root, SOON, ())
        for change, words in (
            ({"name": "eve"}, "not signed by the invitation's key"),
            ({"csr": build_enrol(self.invitation, generate_key(), None, "carol").csr}, "not signed by the invitation's key"),
            ({"signature": sign(self.node_key, b"")}, "not signed by the invitation's key"),
            ({"invitation": other.public}, "from somebody else than the invited"),
            ({"invitation": b"junk"}, "names no invitation"),
        ):
            enrolment = self.enrolment._replace(**change)
            self.assertRefused(lambda enrolment=enrolment: self.check(enrolment), words, kind=BadMessage)
        self.assertRefused(lambda: self.check(self.enrolment, guest=bytes(20)), "somebody else than the invited", kind=BadMessage)

    def test_rights_beyond_the_invitation(self) -> None:
        appointed = build_enrol(self.invitation, self.node_key, generate_key(), "carol")
        self.assertRefused(lambda: self.check(appointed), "asks for other rights")
        self.assertRefused(lambda: self.check(self.enrolment, self.make_record(appoints=True)), "asks for other rights")
        record = InvitationRecord.make(Invitation.make(self.root, SOON, ()), Wish(), self.admitter.key, self.admission)
        self.assertRefused(lambda: self.check(self.enrolment, record), "another invitation's")

    def test_assigned_address(self) -> None:
        """It stands in the certificate that the newcomer gets."""
        granted = grant(self.enrolment, self.make_record(address="10.128.0.8"), self.admitter, WALL)
        self.assertEqual(certs.facts_of(x509.load_der_x509_certificate(granted[0])).address, "10.128.0.8")

    def test_groups(self) -> None:
        """They stand in the certificate that the newcomer gets, and nobody else can put them there."""
        record = self.make_record(groups=("admins", "web"))
        granted = grant(self.enrolment, InvitationRecord.decode(record.encode()), self.admitter, WALL)
        chain = [x509.load_der_x509_certificate(der) for der in granted]
        self.assertEqual(certs.verify_member(chain, self.root, WALL).groups, ("admins", "web"))
        for groups in (("admins",), ()):
            altered = msgspec.structs.replace(record, rights=certs.Rights(groups=groups))
            self.assertRefused(lambda altered=altered: altered.verify(self.trust, WALL), "not signed by a member that may admit")

    def test_one_key_for_both_is_refused(self) -> None:
        record = self.make_record(appoints=True)
        enrolment = build_enrol(self.invitation, self.node_key, self.node_key, "carol")
        self.assertRefused(lambda: grant(enrolment, record, self.admitter, WALL), "names one key twice", kind=BadMessage)

    def test_bad_requests(self) -> None:
        for enrolment in (self.enrolment._replace(csr=b"junk"), self.enrolment._replace(csr=b"")):
            call: Callable[[], object] = lambda e=enrolment: grant(e, self.record, self.admitter, WALL)  # noqa: E731
            self.assertRefused(call, "no good certificate request", kind=BadMessage)
        wish = self.enrolment._replace(name="No Name")
        self.assertRefused(lambda: grant(wish, self.record, self.admitter, WALL), "cannot be a name", kind=LocalMisuse)

    def test_grants_that_do_not_fit(self) -> None:
        granted = grant(self.enrolment, self.record, self.admitter, WALL)
        ensure_key(self.newcomer, files.ADMISSION_KEY)
        state = StateDirectory(self.mktemp())
        create_network(state, "lab", POOL, "mallory", wall=WALL)
        mallory = grant(self.enrolment, self.record, Admitter.load(state), WALL)
        for certificates, words in (
            ((), "too few or too many"),
            (granted[:2], "too few or too many"),
            ((b"junk", *granted[1:]), "damaged"),
            (mallory, "under another authority"),
            ((*granted, granted[1]), "the appointment is not for this machine's key"),
            (grant(build_enrol(self.invitation, self.key, None, "eve"), self.record, self.admitter, WALL), "another machine's key"),
        ):
            install: Callable[[], object] = lambda c=certificates: install_enrolled(self.newcomer, c, self.invitation.fingerprint, WALL)  # noqa: E731
            self.assertRefused(install, words, kind=IpopError)
        left = [self.newcomer.exists(name) for name in (files.NODE_CHAIN, files.ADMISSION_CERTIFICATE)]
        self.assertEqual(left, [False, False])
