"""Certificates: what verify_member lets in, and one sentence for each thing that is wrong; then the same through a real handshake."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from ipop_tx.core.dht.records import RegisterSigner, lease_key
from ipop_tx.errors import LocalMisuse, PeerRefused, StateError
from ipop_tx.identity import certificates as certs
from ipop_tx.identity import signer as signer_module
from ipop_tx.identity import state as files
from ipop_tx.identity.assignment import Assignments
from ipop_tx.identity.authority import Admitter, create_network, install_chain, make_request, request, sign_request
from ipop_tx.identity.credentials import Credentials, GuestCredentials, guest_certificate, verify_guest
from ipop_tx.identity.keys import generate_key, ident_of, point_of, write_key
from ipop_tx.identity.signer import RecordSigner
from ipop_tx.identity.state import StateDirectory
from ipop_tx.identity.trust import Trust
from ipop_tx.interfaces import IRecordSigner
from ipop_tx.session.dtls import DtlsSessionFactory
from ipop_tx.values import Peer, key_digest
from tests.test_session import Handshake

WALL = 1_800_000_000.0
POOL = IPv4Network("10.128.0.0/16")


def clock() -> float:
    return WALL


class FoundedCase(SynchronousTestCase):
    """A network `lab` founded at WALL by the node `first`."""

    def setUp(self) -> None:
        self.state = StateDirectory(self.mktemp())
        self.network = create_network(self.state, "lab", POOL, "first", wall=WALL)
        self.admitter = Admitter.load(self.state)
        self.root, self.admission = self.admitter.root, self.admitter.certificate
        self.key = generate_key()
        self.leaf = self.admitter.admit(request(self.key, "bob"), "bob", WALL)
        self.chain = [self.leaf, self.admission, self.root]

    def other_network(self) -> tuple[Admitter, Credentials]:
        state = StateDirectory(self.mktemp())
        create_network(state, "other", POOL, "mallory", wall=WALL)
        return Admitter.load(state), Credentials.load(state, clock)

    def assertRefused(self, call: Callable[[], object], *words: str, kind: type[Exception] = PeerRefused) -> None:
        error = self.assertRaises(kind, call)
        for word in words:
            self.assertIn(word, str(error))


class NetworkTests(FoundedCase):
    """The facts in the root."""

    def test_facts(self) -> None:
        public = self.root.public_key()
        assert isinstance(public, ec.EllipticCurvePublicKey)
        ident = certs.network_ident(public)
        self.assertEqual(certs.network_of(self.root), self.network)
        self.assertEqual((self.network.name, self.network.pool, self.network.shards, self.network.ident), ("lab", POOL, 32, ident))
        self.assertEqual(self.network.prefix.prefixlen, 48)
        self.assertEqual(self.network.prefix.network_address.packed[:6], b"\xfd" + ident[:5])
        self.assertTrue(self.network.prefix.subnet_of(IPv6Network("fc00::/7")))

    def test_not_a_root(self) -> None:
        self.assertRefused(lambda: certs.network_of(self.leaf), "not that of a network's authority")

    def test_a_state_is_founded_once(self) -> None:
        before = {file.name: file.read_bytes() for file in Path(self.state.path).iterdir()}
        self.assertRefused(lambda: create_network(self.state, "lab", POOL, "first"), "belongs to a network already", kind=StateError)
        self.assertEqual({file.name: file.read_bytes() for file in Path(self.state.path).iterdir()}, before)

    def test_names_and_pools(self) -> None:
        for name in ("", "Lab", "a b", "-lab", "lab-", "x" * 41, "l\u00e4b"):
            self.assertRefused(lambda name=name: create_network(self.state, name, POOL, "first"), "cannot be a name", kind=LocalMisuse)
        self.assertRefused(lambda: create_network(self.state, "lab", IPv4Network("10.0.0.0/30"), "n"), "too few", kind=LocalMisuse)


class VerifyMemberTests(FoundedCase):
    """Every check has a sentence of its own."""

    def verify(self, chain: list[x509.Certificate], wall: float = WALL) -> Peer:
        return certs.verify_member(chain, self.root, wall)

    def rebuilt(self, drop: type[x509.ExtensionType] | None = None, add: x509.ExtensionType | None = None) -> list[x509.Certificate]:
        """The chain with one extension of the leaf removed or replaced, signed properly."""
        old = self.leaf
        builder = x509.CertificateBuilder(
            old.issuer, old.subject, self.key.public_key(), 7, old.not_valid_before_utc, old.not_valid_after_utc
        )
        for extension in old.extensions:
            if drop is None or not isinstance(extension.value, drop):
                builder = builder.add_extension(extension.value, extension.critical)
        builder = builder.add_extension(add, False) if add is not None else builder
        return [builder.sign(self.admitter.key, SHA256()), self.admission, self.root]

    def test_member(self) -> None:
        peer = self.verify(self.chain)
        point = point_of(self.key.public_key())
        ident = ident_of(point, certs.facts_of(self.leaf).salt)
        ends, admitted_by = int(WALL + certs.MEMBER_LIFETIME), key_digest(point_of(self.admitter.key.public_key()))
        self.assertEqual(peer, Peer(ident, "bob", public_key=point, not_after=ends, admitted_by=admitted_by, begun=int(WALL)))
        self.assertEqual(self.verify(Credentials.load(self.state, clock).chain).admits, True)

    def test_revoked(self) -> None:
        """By its key, whatever the certificate looks like: signed anew for the same key, or by an admission key that was revoked."""
        credentials = Credentials.load(self.state, clock)
        peer = credentials.verify(self.chain)
        for revoked in (peer.key, peer.admitted_by):
            credentials.is_out = lambda peer, revoked=revoked: revoked in (peer.key, peer.admitted_by)  # type: ignore[misc]
            for chain in (self.chain, self.rebuilt()):
                self.assertRefused(lambda chain=chain: credentials.verify(chain), "thrown out", "revoked by the authority")
        credentials.is_out = lambda peer: peer.key == bytes(32)
        self.assertEqual(credentials.verify(self.chain), peer)

    def test_rebuilt_chain_is_good(self) -> None:
        self.assertEqual(self.verify(self.rebuilt()).name, "bob")

    def test_dates(self) -> None:
        year = certs.MEMBER_LIFETIME
        self.verify(self.chain, WALL - certs.BACKDATED)
        self.verify(self.chain, WALL + year)
        early = WALL - certs.BACKDATED - 1
        self.assertRefused(lambda: self.verify(self.chain, early), "the peer's certificate begins only at 2027", "clocks")
        self.assertRefused(lambda: self.verify(self.chain, WALL + year + 1), "the peer's certificate ended at 2028", "admitted anew")

    def test_admission_expired(self) -> None:
        # A leaf never outlives its admission by our hand; a stolen admission key could make one that does.
        facts = certs.facts_of(self.leaf)
        brief = certs.make_admission(self._authority_key(), self.root, self.admitter.key.public_key(), WALL, 60.0)
        chain = [certs.make_member(self.admitter.key, self.admission, self.key.public_key(), facts, WALL), brief, self.root]
        self.assertRefused(lambda: self.verify(chain, WALL + 61), "the admission behind the peer's certificate ended")

    def test_a_leaf_ends_with_its_admission(self) -> None:
        brief = certs.make_admission(self._authority_key(), self.root, self.admitter.key.public_key(), WALL, 60.0)
        leaf = certs.make_member(self.admitter.key, brief, self.key.public_key(), certs.facts_of(self.leaf), WALL)
        self.assertEqual(leaf.not_valid_after_utc, brief.not_valid_after_utc)

    def test_other_network(self) -> None:
        _, mallory = self.other_network()
        self.assertRefused(lambda: self.verify(mallory.chain), "is for another network", "'lab'")

    def test_other_admission_under_our_root(self) -> None:
        admitter, mallory = self.other_network()
        chain = [mallory.chain[0], admitter.certificate, self.root]
        self.assertRefused(lambda: self.verify(chain), "a key that the network's authority has not appointed")

    def test_leaf_by_another_key(self) -> None:
        forged = certs.make_member(generate_key(), self.admission, self.key.public_key(), certs.facts_of(self.leaf), WALL)
        self.assertRefused(lambda: self.verify([forged, *self.chain[1:]]), "not signed by the admission key that it names")

    def test_length_and_kind_of_chain(self) -> None:
        self.assertRefused(lambda: self.verify([]), "is missing")
        self.assertRefused(lambda: self.verify([self.root]), "an authority's, which no node may use")
        self.assertRefused(lambda: self.verify([self.admission, self.root]), "an authority's, which no node may use")
        self.assertRefused(lambda: self.verify([self.admission, self.admission, self.root]), "an authority's, which no node may use")
        self.assertRefused(lambda: self.verify(self.chain[:2]), "without the certificates that admitted it")
        self.assertRefused(lambda: self.verify([*self.chain, self.leaf]), "more certificates than a member has")

    def test_a_member_cannot_admit(self) -> None:
        facts = certs.facts_of(self.leaf)
        below = certs.make_member(self.key, self.leaf, generate_key().public_key(), facts, WALL)
        self.assertRaises(PeerRefused, self.verify, [below, self.leaf, self.root])

    def test_an_admission_must_be_one(self) -> None:
        for extension, words in (
            (x509.BasicConstraints(True, 1), "does not bound the chain"),
            (x509.BasicConstraints(True, None), "does not bound the chain"),
            (x509.BasicConstraints(False, None), "may not admit members"),
        ):
            odd = self._odd_admission(extension)
            leaf = certs.make_member(self.admitter.key, odd, self.key.public_key(), certs.facts_of(self.leaf), WALL)
            self.assertRefused(lambda leaf=leaf, odd=odd: self.verify([leaf, odd, self.root]), words)

    def test_usage(self) -> None:
        signs_certificates = x509.KeyUsage(True, False, False, False, False, True, False, False, False)
        no_signature = x509.KeyUsage(False, False, False, False, True, False, False, False, False)
        for usage in (signs_certificates, no_signature):
            chain = self.rebuilt(x509.KeyUsage, usage)
            self.assertRefused(lambda chain=chain: self.verify(chain), "not meant for signing handshakes")
        chain = self.rebuilt(x509.ExtendedKeyUsage, x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]))
        self.assertRefused(lambda: self.verify(chain), "not meant for both ends of a link")

    def test_ident(self) -> None:
        other = x509.UniformResourceIdentifier(certs.ident_uri(bytes(20)))
        own = x509.UniformResourceIdentifier(certs.ident_uri(self.verify(self.chain).ident))
        for names in ([other], [own, other], [x509.DNSName("bob")]):
            chain = self.rebuilt(x509.SubjectAlternativeName, x509.SubjectAlternativeName(names))
            self.assertRefused(lambda chain=chain: self.verify(chain), "another ident than its key and salt give")

    def test_network_in_the_facts(self) -> None:
        facts = certs.MemberFacts(bytes(20), bytes(16), "bob")
        leaf = certs.make_member(self.admitter.key, self.admission, self.key.public_key(), facts, WALL)
        self.assertRefused(lambda: self.verify([leaf, *self.chain[1:]]), "names another network")

    def test_missing_and_malformed_extensions(self) -> None:
        for kind in (x509.KeyUsage, x509.ExtendedKeyUsage, x509.SubjectAlternativeName, x509.UnrecognizedExtension, x509.BasicConstraints):
            chain = self.rebuilt(kind)
            self.assertRefused(lambda chain=chain: self.verify(chain), "the peer's certificate is malformed")
        chain = self.rebuilt(x509.UnrecognizedExtension, x509.UnrecognizedExtension(certs.MEMBER_FACTS, b"\xc1"))
        self.assertRefused(lambda: self.verify(chain), "malformed")

    def test_names_are_fit_to_be_shown(self) -> None:
        for name in ("Bob", "b\x1b[2J", "", "bob\n", "x" * 41):
            facts = msgspec.structs.replace(certs.facts_of(self.leaf), name=name)
            chain = self.rebuilt(x509.UnrecognizedExtension, x509.UnrecognizedExtension(certs.MEMBER_FACTS, msgspec.msgpack.encode(facts)))
            self.assertRefused(lambda chain=chain: self.verify(chain), "malformed")

    def test_other_kinds_of_keys(self) -> None:
        for key in (rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP384R1())):
            csr = x509.CertificateSigningRequestBuilder(x509.Name([])).sign(key, SHA256())
            self.assertRefused(lambda csr=csr: self.admitter.admit(csr, "bob", WALL), "a P-256 key of its own", kind=LocalMisuse)

    def _authority_key(self) -> ec.EllipticCurvePrivateKey:
        assert self.admitter.authority_key is not None
        return self.admitter.authority_key

    def _odd_admission(self, constraints: x509.BasicConstraints) -> x509.Certificate:
        old = self.admission
        builder = x509.CertificateBuilder(
            old.issuer, old.subject, self.admitter.key.public_key(), 7, old.not_valid_before_utc, old.not_valid_after_utc
        )
        usage = x509.KeyUsage(False, False, False, False, False, True, False, False, False)
        return builder.add_extension(constraints, True).add_extension(usage, True).sign(self._authority_key(), SHA256())


class OfflineSigningTests(FoundedCase):
    """Request, sign, install: carried by hand."""

    def test_round_trip(self) -> None:
        state = StateDirectory(self.mktemp())
        pem = sign_request(self.state, make_request(state, "carol"), wall=WALL)
        network = install_chain(state, pem, certs.fingerprint(self.root), wall=WALL)
        self.assertEqual(network, self.network)
        self.assertEqual(Credentials.load(state, clock).peer.name, "carol")
        self.assertEqual(sorted(file.name for file in state.path.iterdir()), ["node.crt", "node.key"])

    def test_the_admitter_may_choose_the_name(self) -> None:
        state = StateDirectory(self.mktemp())
        install_chain(state, sign_request(self.state, make_request(state, "carol"), "dora", WALL), wall=WALL)
        self.assertEqual(Credentials.load(state, clock).peer.name, "dora")

    def test_refusals(self) -> None:
        state, third = StateDirectory(self.mktemp()), StateDirectory(self.mktemp())
        pem = sign_request(self.state, make_request(state, "carol"), wall=WALL)
        make_request(third, "eve")
        for call, words in (
            (lambda: install_chain(third, pem, wall=WALL), "for another machine's key"),
            (lambda: install_chain(state, pem, bytes(16), WALL), "under another authority"),
            (lambda: install_chain(state, b"junk", wall=WALL), "no certificate chain"),
            (lambda: install_chain(state, pem, wall=WALL + 2 * certs.MEMBER_LIFETIME), "the new certificate ended"),
            (lambda: sign_request(self.state, b"junk"), "no certificate request"),
            (lambda: self.admitter.admit(request(self.key, "x"), "x", WALL, certs.Rights("10.1.0.1")), "no address of the network's pool"),
            (lambda: self.admitter.admit(request(self.key, "x"), "x", WALL, certs.Rights(groups=("Web",))), "cannot be a name"),
            (lambda: self.admitter.admit(request(self.key, "x"), "x", WALL, certs.Rights(groups=("a",) * 17)), "too many for one member"),
        ):
            self.assertRefused(call, words, kind=LocalMisuse)
        self.assertRefused(lambda: sign_request(state, pem), "may not admit", kind=StateError)
        self.assertEqual([name for name in (files.NODE_CHAIN,) if state.exists(name) or third.exists(name)], [])

    def test_a_request_signed_by_another_key_is_refused(self) -> None:
        der = bytearray(request(self.key, "bob").public_bytes(certs.Encoding.DER))
        der[der.index(b"bob")] ^= 1
        self.assertRefused(lambda: self.admitter.admit(x509.load_der_x509_csr(bytes(der)), "b", WALL), "not signed", kind=LocalMisuse)


class CredentialsTests(FoundedCase):
    """Loading, and what is said of files that do not fit."""

    def test_derived(self) -> None:
        """Secrets of a node: the same each time, others for other purposes and other nodes."""
        mine, again = (Credentials.load(self.state, clock) for _ in range(2))
        self.assertEqual(mine.derive(b"one"), again.derive(b"one"))
        others = {mine.derive(b"one"), mine.derive(b"two"), self.other_network()[1].derive(b"one")}
        self.assertEqual(sorted(map(len, others)), [32, 32, 32])

    def test_loading_refusals(self) -> None:
        words = ("node.crt is not good: this node's certificate begins only at", "compare the machines' clocks")
        self.assertRefused(lambda: Credentials.load(self.state, lambda: WALL - 2 * certs.BACKDATED), *words, kind=StateError)
        write_key(self.state, files.NODE_KEY, generate_key())
        self.assertRefused(lambda: Credentials.load(self.state, clock), "certificate is for another key", kind=StateError)
        self.state.write(files.NODE_CHAIN, b"junk")
        self.assertRefused(lambda: Credentials.load(self.state, clock), "node.crt is damaged", kind=StateError)
        empty = StateDirectory(self.mktemp())
        self.assertRefused(lambda: Credentials.load(empty), "node.key is missing", "ipop join TOKEN", kind=StateError)

    def test_signer(self) -> None:
        credentials = Credentials.load(self.state, clock)
        signer, other = credentials.signer(), RecordSigner(generate_key(), bytes(16))
        verifyObject(IRecordSigner, signer)
        self.assertEqual((signer.ident, len(signer.signer)), (credentials.peer.ident, 49))
        signature = signer.sign(b"lease")
        self.assertEqual(other.verify(signer.signer, b"lease", signature), credentials.peer.ident)
        self.assertIsNone(other.verify(signer.signer, b"Lease", signature))
        self.assertIsNone(other.verify(other.signer, b"lease", signature))
        self.assertIsNone(other.verify(signer.signer[:-1], b"lease", signature))
        self.assertIsNone(other.verify(b"\x09" * 49, b"lease", signature))
        self.assertNotEqual(other.verify(signer.signer[:-1] + bytes([signer.signer[-1] ^ 1]), b"lease", signature), credentials.peer.ident)

    def test_a_signature_met_before(self) -> None:
        """It is not checked again; nothing beside it passes for it, and nothing bad is remembered as good."""
        signer, other = RecordSigner(generate_key(), bytes(16)), RecordSigner(generate_key(), bytes(16))
        signed = [(data, signer.sign(data)) for data in (b"a", b"b")]
        for _ in range(2):
            for data, signature in signed:
                self.assertEqual(other.verify(signer.signer, data, signature), signer.ident)
                self.assertIsNone(other.verify(other.signer, data, signature))
                self.assertIsNone(other.verify(signer.signer, data + signature[:1], signature[1:]))
            self.assertIsNone(other.verify(signer.signer, b"a", signed[1][1]))
        self.assertEqual(len(other._good), 2)
        self.patch(signer_module, "REMEMBERED", 1)
        self.assertEqual(other.verify(other.signer, b"c", other.sign(b"c")), other.ident)
        self.assertEqual(len(other._good), 2)


class AssignmentTests(FoundedCase):
    """Addresses that the authority has assigned, and the proof of that in a record."""

    address = IPv4Address("10.128.3.4").packed

    def setUp(self) -> None:
        super().setUp()
        self.wall = WALL

    def credentials(self, admitter: Admitter, address: str = "10.128.3.4") -> Credentials:
        """A member with an assigned address."""
        leaf = admitter.admit(request(self.key, "bob"), "bob", WALL, certs.Rights(address))
        return Credentials(self.key, [leaf, admitter.certificate, admitter.root], clock)

    def judge(self, proof: bytes) -> tuple[bytes, int]:
        """What another member of the network makes of a proof."""
        return Assignments(Trust(self.root, lambda: self.wall)).of(proof)

    def test_proof(self) -> None:
        """It proves address and ident, fits a record, and serves to check the owner's signature."""
        signer = self.credentials(self.admitter).signer()
        verifyObject(IRecordSigner, signer)
        self.assertEqual((signer.assigned, self.judge(signer.credential)), (self.address, (self.address, int(WALL))))
        self.assertLessEqual(len(signer.credential), 2048)
        other = Credentials.load(self.state, clock).signer()
        self.assertEqual(other.verify(signer.credential, b"lease", signer.sign(b"lease")), signer.ident)
        self.assertIsNone(other.verify(signer.credential, b"lease", other.sign(b"lease")))
        self.assertEqual(other.assignment(signer.credential)[0], self.address)
        self.assertEqual((other.assigned, other.assignment(other.signer)), (b"", (b"", 0)))

    def test_admitted(self) -> None:
        """A credential is a member's under its own root, until it ends; then one that was good is checked again within the hour."""
        signer = self.credentials(self.admitter).signer()
        judge = Assignments(Trust(self.root, lambda: self.wall))
        member = judge.admitted(signer.credential)
        self.assertEqual(member and member.key, signer.key(signer.signer))
        self.assertEqual([judge.admitted(junk) for junk in (b"", signer.signer, signer.credential[:-1])], [None] * 3)
        self.wall += certs.MEMBER_LIFETIME + 1
        self.assertIsNone(judge.admitted(signer.credential))

    def test_record(self) -> None:
        """Only the lease of that very address shows the proof, and only that is overridden."""
        mine = RegisterSigner(self.network, self.credentials(self.admitter).signer())
        other = RegisterSigner(self.network, Credentials.load(self.state, clock).signer())
        key, elsewhere = lease_key(self.network, self.address), lease_key(self.network, bytes(4))
        theirs = other.record(key, 1, 60, b"x")
        record = mine.record(key, 2, 60, b"x")
        self.assertTrue(other.authentic(key, record))
        self.assertEqual((other.overrides(key, record, theirs), other.overrides(key, theirs, record)), (True, False))
        self.assertEqual((mine.takes_over(key, theirs), other.takes_over(key, record)), (True, False))
        self.assertEqual(len(mine.record(elsewhere, 1, 60, b"x").signer), 49)
        moved = mine.record(elsewhere, 2, 60, b"x")
        forged = msgspec.structs.replace(moved, signer=record.signer)
        self.assertFalse(other.authentic(elsewhere, forged), "the proof is under the signature")
        self.assertEqual((other.overrides(elsewhere, forged, theirs), mine.takes_over(elsewhere, theirs)), (False, False))

    def test_end(self) -> None:
        """A certificate that has ended proves nothing, but the signature on what was written stays good."""
        signer = self.credentials(self.admitter).signer()
        signature = signer.sign(b"lease")
        self.wall = WALL + certs.MEMBER_LIFETIME + 1
        self.assertEqual(self.judge(signer.credential), (b"", 0))
        self.assertEqual(RecordSigner(generate_key(), bytes(16)).verify(signer.credential, b"lease", signature), signer.ident)

    def test_no_proof(self) -> None:
        """Certificates of others, of another network, without an address, damaged ones, and junk."""
        mallory, _ = self.other_network()
        good = self.credentials(self.admitter).signer().credential
        leaf = msgspec.msgpack.decode(good)[0]
        for proof in (
            self.credentials(mallory).signer().credential,
            msgspec.msgpack.encode((leaf, certs.to_der(mallory.certificate))),
            msgspec.msgpack.encode((certs.to_der(self.leaf), certs.to_der(self.admission))),
            msgspec.msgpack.encode((certs.to_der(self.admission), certs.to_der(self.root))),
            good[:-1],
            good[:100] + bytes([good[100] ^ 1]) + good[101:],
            b"",
            b"\xff" * 60,
            msgspec.msgpack.encode((1, 2)),
            msgspec.msgpack.encode((b"", b"")),
        ):
            self.assertEqual(self.judge(proof), (b"", 0))
            RecordSigner(generate_key(), bytes(16)).verify(proof, b"lease", b"signature")

    def test_signed_by_hand(self) -> None:
        """`ipop sign --address` assigns one of the pool, and nothing else."""
        state = StateDirectory(self.mktemp())
        install_chain(
            state, sign_request(self.state, make_request(state, "carol"), wall=WALL, rights=certs.Rights("10.128.3.4")), wall=WALL
        )
        self.assertEqual(Credentials.load(state, clock).signer().assigned, self.address)
        for address in ("10.129.0.1", "10.128.0.0", "10.128.255.255", "fd00::1", "junk"):
            call = lambda address=address: sign_request(self.state, make_request(state, "carol"), wall=WALL, rights=certs.Rights(address))  # noqa: E731
            self.assertRefused(call, "is no address of the network's pool", "assign one of 10.128.0.0/16", kind=LocalMisuse)

    def test_groups_by_hand(self) -> None:
        """`ipop sign --group` puts the member in groups."""
        state = StateDirectory(self.mktemp())
        install_chain(
            state, sign_request(self.state, make_request(state, "carol"), wall=WALL, rights=certs.Rights(groups=("web",))), wall=WALL
        )
        self.assertEqual(Credentials.load(state, clock).peer.groups, ("web",))


class HandshakeTests(FoundedCase):
    """The decisions above, through DTLS."""

    def handshake(self, client: Credentials | GuestCredentials, server: Credentials) -> Handshake:
        handshake = Handshake(DtlsSessionFactory(client), DtlsSessionFactory(server))
        handshake.run(0.0)
        return handshake

    def bob(self, wall: Callable[[], float] = clock) -> Credentials:
        return Credentials(self.key, self.chain, wall)

    def test_members(self) -> None:
        first = Credentials.load(self.state, clock)
        handshake = self.handshake(self.bob(), first)
        self.assertTrue(handshake.established())
        self.assertEqual((handshake.client.peer, handshake.ends()[1].peer), (first.peer, self.bob().peer))
        self.assertLessEqual(max(handshake.sizes), 1200)

    def test_wrong_network(self) -> None:
        _, mallory = self.other_network()
        handshake = self.handshake(mallory, self.bob())
        self.assertRefusal(handshake.client.failure, "is for another network")
        self.assertEqual([end.established for end in handshake.ends()], [False] * 2)

    def test_expired(self) -> None:
        first = Credentials.load(self.state, clock)
        first.trust.wall = lambda: WALL + 1.5 * certs.MEMBER_LIFETIME
        handshake = self.handshake(self.bob(), first)
        self.assertRefusal(handshake.ends()[1].failure, "the peer's certificate ended")
        self.assertRefusal(handshake.client.failure, "the peer refused this node's certificate")

    def test_guest(self) -> None:
        guest = GuestCredentials(generate_key(), certs.fingerprint(self.root), clock)
        handshake = self.handshake(guest, self.bob())
        self.assertTrue(handshake.established())
        point, peer = point_of(guest.private_key.public_key()), guest.peer
        self.assertEqual(handshake.ends()[1].peer, peer)
        self.assertEqual((peer.guest, peer.public_key, peer.ident), (True, point, ident_of(point, b"")))
        self.assertEqual((handshake.client.peer, guest.root), (self.bob().peer, self.root))

    def test_guest_at_the_wrong_network(self) -> None:
        guest = GuestCredentials(generate_key(), bytes(16), clock)
        self.assertRefusal(self.handshake(guest, self.bob()).client.failure, "not under the authority that the invitation names")
        self.assertIsNone(guest.root)

    def test_guests_are_judged(self) -> None:
        key = generate_key()
        certificate = guest_certificate(key, WALL)
        self.assertRefused(lambda: verify_guest(certificate, WALL + certs.DAY), "the guest's certificate ended")
        forged = self._guest_signed_by(generate_key(), key.public_key())
        self.assertRefused(lambda: self.bob().verify([forged]), "not signed by a P-256 key of its own")
        self.assertRefused(lambda: self.bob().verify([certificate, self.admission, self.root]), "not signed by the admission key")

    def test_a_self_signed_certificate_without_the_purpose_is_no_guest(self) -> None:
        self.assertRefused(lambda: self.bob().verify([self.leaf]), "without the certificates that admitted it")

    def assertRefusal(self, failure: object, words: str) -> None:
        self.assertIsInstance(failure, PeerRefused)
        self.assertIn(words, str(failure))

    def _guest_signed_by(self, signer: ec.EllipticCurvePrivateKey, public: ec.EllipticCurvePublicKey) -> x509.Certificate:
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "guest")])
        begin = dt.datetime.fromtimestamp(WALL - 60, dt.UTC)
        builder = x509.CertificateBuilder(name, name, public, 7, begin, begin + dt.timedelta(hours=1))
        for extension in guest_certificate(signer, WALL).extensions:
            builder = builder.add_extension(extension.value, extension.critical)
        return builder.sign(signer, SHA256())
