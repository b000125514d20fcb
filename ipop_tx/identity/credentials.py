"""What a node shows in a handshake, and how it judges its peers: a member's credentials and a guest's."""

from __future__ import annotations

import datetime as dt
import hashlib
import time
from collections.abc import Callable
from dataclasses import replace

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from ipop_tx.errors import PeerRefused, StateError
from ipop_tx.identity import certificates as certs
from ipop_tx.identity import state as files
from ipop_tx.identity.assignment import Assignments, credential
from ipop_tx.identity.authority import read_certificates
from ipop_tx.identity.keys import PrivateKey, ident_of, is_p256, point_of, read_key
from ipop_tx.identity.signer import RecordSigner
from ipop_tx.identity.state import StateDirectory
from ipop_tx.identity.trust import Trust
from ipop_tx.values import Network, Peer

GUEST_PURPOSE = x509.ObjectIdentifier("2.25.119022130124685233402547251449948789795")
"""The extended key usage of a guest's certificate, and the only one that it has."""

_JOIN = "join a network first: ipop join TOKEN, or ipop network create NAME"


class Credentials:
    """A member's key and chain. Peers are members of the same network, or guests who prove that they hold an invitation's key.

    Once the certificate has ended the node is a *lapsed* member. It shows what a guest shows, over its own key, and takes everybody for a
    guest: so all that it can do is ask to be admitted again (`renew`).
    """

    def __init__(self, private_key: PrivateKey, chain: list[x509.Certificate], wall: Callable[[], float] = time.time) -> None:
        """Raises `PeerRefused` when the chain is not good and never was, in words about this node's certificate."""
        self._wall = wall
        self.on_change: list[Callable[[], object]] = []
        """Called when this node shows another chain than before."""
        self.is_out: Callable[[Peer], bool] = lambda peer: False
        """Whether a member was thrown out; set once there is somebody to know."""
        self.may_admit: Callable[[bytes], bool] = lambda key: True
        """Whether an admission key, by its digest, has still the right to admit."""
        self.private_key = private_key
        self.member_chain = chain
        self.trust = Trust(chain[-1], wall)
        self.network: Network = self.trust.network
        self.peer: Peer = self._own(chain)
        """This node itself, as its peers see it."""
        self.facts = certs.facts_of(chain[0])
        self.chain = self._shown()
        """What it shows to its peers."""

    def _own(self, chain: list[x509.Certificate]) -> Peer:
        peer = self.trust.verify(chain, "this node's", min(self._wall(), certs.ends_of(chain[0])))
        if peer.public_key != point_of(self.private_key.public_key()):
            raise PeerRefused("this node's certificate is for another key")
        return peer

    @property
    def lapsed(self) -> bool:
        """Whether this node's certificate has ended."""
        return self._wall() > self.peer.not_after

    def _shown(self) -> list[x509.Certificate]:
        return [guest_certificate(self.private_key, self._wall())] if self.lapsed else self.member_chain

    def refresh(self) -> None:
        """Show what is right now: time has passed."""
        self.chain = self._shown()
        for changed in self.on_change:
            changed()

    def renew(self, chain: list[x509.Certificate]) -> None:
        """Use another certificate of the same member from now on. Raises `PeerRefused` when it is none."""
        self.peer, self.member_chain = self.check_own(chain), chain
        self.refresh()

    def check_own(self, chain: list[x509.Certificate]) -> Peer:
        """This member as `chain` shows it. Raises `PeerRefused` unless that could be used from now on."""
        peer = self._own(chain)
        if peer.ident != self.peer.ident or peer.not_after < self._wall():
            raise PeerRefused("the new certificate is another member's, or has ended")
        return peer

    @classmethod
    def load(cls, state: StateDirectory, wall: Callable[[], float] = time.time) -> Credentials:
        """The credentials in `state`. Raises `StateError` naming the file and the mend."""
        path = state.path / files.NODE_CHAIN
        key = read_key(state, files.NODE_KEY, _JOIN)
        chain = read_certificates(state, files.NODE_CHAIN, _JOIN)
        try:
            return cls(key, chain, wall)
        except PeerRefused as refusal:
            mend = refusal.mend or "put back copies of the key and the chain, or join the network anew"
            raise StateError(f"{path} is not good: {refusal.sentence}", mend) from refusal

    def derive(self, purpose: bytes) -> bytes:
        """32 bytes for one purpose: always the same, and nobody knows them who does not know the key."""
        der = self.private_key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
        return hashlib.sha256(purpose + b"\0" + der).digest()

    @property
    def fingerprint(self) -> bytes:
        """Of the root that the network began with."""
        return certs.first_fingerprint(self.root)

    @property
    def fingerprints(self) -> set[bytes]:
        """Those by which members and guests may know the network."""
        return {self.fingerprint, certs.fingerprint(self.root), *(certs.fingerprint(root) for root, _ in self.trust.roots)}

    @property
    def root(self) -> x509.Certificate:
        """Of this node's own certificate."""
        return self.member_chain[-1]

    def signer(self) -> RecordSigner:
        """Signs this node's records."""
        return RecordSigner(self.private_key, self.facts.salt, Assignments(self.trust), credential(self.member_chain))

    def verify(self, chain: list[x509.Certificate]) -> Peer:
        """Who has shown `chain`, leaf first: a member of this network or a guest. Raises `PeerRefused`."""
        if len(chain) == 1 and _is_guest(chain[0]):
            return verify_guest(chain[0], self._wall())
        peer = self.trust.verify(chain)
        if self.is_out(peer):
            raise PeerRefused(f"{peer.name} was thrown out of the network, or whoever admitted it", "its key was revoked by the authority")
        return replace(peer, guest=True) if self.lapsed else peer


class GuestCredentials:
    """What somebody shows who holds only an invitation's key, and how it judges the member that it asks.

    `root` is the network's root once a member has shown it, None before.
    """

    lapsed = False

    def __init__(self, private_key: PrivateKey, fingerprint: bytes, wall: Callable[[], float] = time.time) -> None:
        self._wall = wall
        self.fingerprint = fingerprint
        self.fingerprints = {fingerprint}
        self.private_key = private_key
        self.chain = [guest_certificate(private_key, wall())]
        self.peer: Peer = verify_guest(self.chain[0], wall())
        self.root: x509.Certificate | None = None

    def verify(self, chain: list[x509.Certificate]) -> Peer:
        """The member who has shown `chain` under the root that the invitation names. Raises `PeerRefused`."""
        if certs.fingerprint(chain[-1]) != self.fingerprint:
            sentence = "the peer's certificate is not under the authority that the invitation names"
            raise PeerRefused(sentence, "make sure who gave you the invitation")
        certs.network_of(chain[-1])
        peer = certs.verify_member(chain, chain[-1], self._wall())
        self.root = chain[-1]
        return peer


def guest_certificate(key: PrivateKey, wall: float) -> x509.Certificate:
    """A self-signed certificate over an invitation's key, valid for a day around `wall`: clocks of machines that join may be wrong."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "guest")])
    begin, end = (dt.datetime.fromtimestamp(int(wall + part * certs.DAY), dt.UTC) for part in (-0.5, 0.5))
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), begin, end)
    builder = builder.add_extension(x509.BasicConstraints(False, None), True)
    return builder.add_extension(x509.ExtendedKeyUsage([GUEST_PURPOSE]), True).sign(key, SHA256())


def verify_guest(certificate: x509.Certificate, wall: float) -> Peer:
    """The guest who has shown `certificate`. It proves nothing but a key: whether that is an invitation's, the DHT tells."""
    try:
        certs.check_dates(certificate, wall, "the guest's")
        key = certificate.public_key()
        if not is_p256(key) or not certs.is_issued_by(certificate, certificate):
            raise PeerRefused("the guest's certificate is not signed by a P-256 key of its own")
        point = point_of(key)  # type: ignore[arg-type]  # is_p256 has narrowed it
    except certs.MALFORMED:
        raise PeerRefused("the guest's certificate is malformed") from None
    return Peer(ident_of(point, b""), "guest", guest=True, public_key=point, not_after=int(certificate.not_valid_after_utc.timestamp()))


def _is_guest(certificate: x509.Certificate) -> bool:
    try:
        purposes = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except certs.MALFORMED:
        return False
    return list(purposes) == [GUEST_PURPOSE]
