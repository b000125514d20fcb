"""What the authority and admitting members do: found a network, appoint, admit, and sign requests that were carried by hand."""

from __future__ import annotations

import ipaddress
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from ipop_tx.errors import LocalMisuse, PeerRefused, StateError
from ipop_tx.identity import appointed
from ipop_tx.identity import certificates as certs
from ipop_tx.identity import state as files
from ipop_tx.identity.keys import SALT_BYTES, PrivateKey, PublicKey, ensure_key, generate_key, is_p256, point_of, read_key, write_key
from ipop_tx.identity.state import StateDirectory
from ipop_tx.values import Network, key_digest

LONGEST_PATTERN = 31
LEAST_LIFE = 10
"""Seconds for which a certificate must count."""


@dataclass(frozen=True, slots=True)
class Admitter:
    """What a machine needs to admit members; with the authority's key also to appoint others who admit."""

    key: PrivateKey
    certificate: x509.Certificate
    root: x509.Certificate
    authority_key: PrivateKey | None = None

    @classmethod
    def load(cls, state: StateDirectory) -> Admitter:
        """The admitter whose files are in `state`. Raises `StateError` when this machine may not admit, or files are damaged."""
        mend = "this machine may not admit members; ask one that may"
        key = read_key(state, files.ADMISSION_KEY, mend)
        chain = read_certificates(state, files.ADMISSION_CERTIFICATE, mend)
        if len(chain) != 2 or point_of(key.public_key()) != _point(chain[0]):
            raise StateError(f"{state.path / files.ADMISSION_CERTIFICATE} does not fit {files.ADMISSION_KEY}", "put back copies of both")
        authority_key = read_key(state, files.AUTHORITY_KEY) if state.exists(files.AUTHORITY_KEY) else None
        return cls(key, chain[0], chain[1], authority_key)

    @property
    def digest(self) -> bytes:
        """Of the admission key."""
        return key_digest(point_of(self.key.public_key()))

    def admit(
        self,
        csr: x509.CertificateSigningRequest,
        name: str,
        wall: float,
        rights: certs.Rights = certs.ORDINARY,
        *,
        admits: bool = False,
    ) -> x509.Certificate:
        """A member's certificate for the key that `csr` proves to hold. Raises `LocalMisuse` for a request that is not good."""
        self.check(rights, name)
        network = certs.network_of(self.root).ident
        assigned_at = int(wall) if rights.address else 0
        salt, about = os.urandom(SALT_BYTES), (rights.address, rights.groups, rights.routes, assigned_at, rights.life)
        facts = certs.MemberFacts(network, salt, checked_name(name), admits, *about)
        return certs.make_member(self.key, self.certificate, requested_key(csr), facts, wall, rights.life)

    def readmit(self, leaf: x509.Certificate, wall: float) -> x509.Certificate:
        """A certificate that says the same as `leaf`, of the same member, and counts from now."""
        facts = certs.facts_of(leaf)
        return certs.make_member(self.key, self.certificate, p256(leaf), facts, wall, facts.life)

    def check(self, rights: certs.Rights, name: str = "") -> None:
        """Raise `LocalMisuse` unless these are rights that a member can have, of this name if there is one, and by this machine's key."""
        limits = certs.limits_of(self.certificate)
        if excess := (limits if name else msgspec.structs.replace(limits, names="")).excess(name, rights):
            raise LocalMisuse(f"this machine may not grant {excess}", "ipop admission limits shows what it may; ask another that admits")
        if rights.address:
            self._check_address(rights.address)
        checked_groups(rights.groups)
        checked_routes(rights.routes)
        if not LEAST_LIFE <= rights.life <= certs.ADMISSION_LIFETIME:
            raise LocalMisuse(f"a certificate cannot count for {rights.life} seconds", f"give {LEAST_LIFE} seconds to two years")

    def _check_address(self, address: str) -> None:
        pool = certs.network_of(self.root).pool
        try:
            good = ipaddress.IPv4Address(address) in pool and ipaddress.IPv4Address(address) not in (pool[0], pool[-1])
        except ValueError:
            good = False
        if not good:
            raise LocalMisuse(f"{address!r} is no address of the network's pool", f"assign one of {pool}")

    def appoint(self, public: PublicKey, wall: float, limits: certs.Limits = certs.UNLIMITED) -> x509.Certificate:
        """An admission certificate for `public`, to admit within `limits`. Raises `LocalMisuse` where the authority's key is not."""
        if self.authority_key is None:
            raise LocalMisuse("only the machine that keeps the authority's key can appoint others to admit", "make the invitation there")
        checked_limits(limits)
        return certs.make_admission(self.authority_key, self.root, public, wall, limits=limits)


def create_network(
    state: StateDirectory, name: str, pool: ipaddress.IPv4Network, node_name: str, shards: int = 32, wall: float | None = None
) -> Network:
    """Found a network: the authority, this machine's appointment and its membership, all into `state`.

    Raises `LocalMisuse` for a bad name or pool, `StateError` when `state` belongs to a network already.
    """
    wall = time.time() if wall is None else wall
    checked_name(name), checked_name(node_name)
    if pool.prefixlen > 28:
        raise LocalMisuse(f"the pool {pool} has too few addresses", "give a /28 or a wider one, for instance 10.128.0.0/16")
    for file in (files.AUTHORITY_KEY, files.NODE_CHAIN):
        if state.exists(file):
            raise StateError(f"{state.path / file} exists: this machine belongs to a network already", "give another state directory")
    authority_key, admission_key = generate_key(), generate_key()
    prefix = ipaddress.IPv6Network((b"\xfd" + certs.network_ident(authority_key.public_key())[:5] + bytes(10), 48))
    root = certs.make_root(authority_key, certs.NetworkFacts(name, str(pool), str(prefix), shards), wall)
    admission = certs.make_admission(authority_key, root, admission_key.public_key(), wall)
    write_key(state, files.AUTHORITY_KEY, authority_key)
    state.write(files.AUTHORITY_CERTIFICATE, certs.to_pem([root]))
    write_key(state, files.ADMISSION_KEY, admission_key)
    state.write(files.ADMISSION_CERTIFICATE, certs.to_pem([admission, root]))
    appointed.note(state, node_name, admission)
    csr = request(ensure_key(state, files.NODE_KEY), node_name)
    leaf = Admitter(admission_key, admission, root).admit(csr, node_name, wall, admits=True)
    state.write(files.NODE_CHAIN, certs.to_pem([leaf, admission, root]))
    return certs.network_of(root)


def request(key: PrivateKey, name: str) -> x509.CertificateSigningRequest:
    """A certificate request (PKCS #10): the name is a wish, the key is proven."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, checked_name(name))])
    return x509.CertificateSigningRequestBuilder(subject).sign(key, SHA256())


def requested_key(csr: x509.CertificateSigningRequest) -> PublicKey:
    """The key of a request that is signed by that key. Raises `LocalMisuse`."""
    try:
        key = csr.public_key()
        good = is_p256(key) and csr.is_signature_valid
    except ValueError:
        good = False
    if not good:
        raise LocalMisuse("the certificate request is not signed by a P-256 key of its own", "make it with ipop")
    return key  # type: ignore[return-value]  # is_p256 has narrowed it


def make_request(state: StateDirectory, name: str) -> bytes:
    """A request for this machine to be carried to an admitting one (PEM). Makes the node's key if there is none."""
    return request(ensure_key(state, files.NODE_KEY), name).public_bytes(Encoding.PEM)


def sign_request(
    state: StateDirectory, csr: bytes, name: str = "", wall: float | None = None, rights: certs.Rights = certs.ORDINARY
) -> bytes:
    """Admit the maker of a request (PEM) under `name`, or under the name that it asks for; gives the chain to carry back (PEM)."""
    admitter = Admitter.load(state)
    try:
        parsed = x509.load_pem_x509_csr(csr)
        wish = str(parsed.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)
    except (ValueError, IndexError):
        raise LocalMisuse("this is no certificate request", "give the file that `ipop request` wrote") from None
    leaf = admitter.admit(parsed, name or wish, time.time() if wall is None else wall, rights)
    return certs.to_pem([leaf, admitter.certificate, admitter.root])


def install_chain(state: StateDirectory, pem: bytes, fingerprint: bytes | None = None, wall: float | None = None) -> Network:
    """Make this machine the member that `pem` (leaf, admission certificate, root) says.

    `fingerprint` is what the user was told of the authority (`certificates.fingerprint`); without one, the caller has asked the user.
    Raises `LocalMisuse` when key, authority or chain do not fit.
    """
    try:
        chain = x509.load_pem_x509_certificates(pem)
    except ValueError:
        raise LocalMisuse("this is no certificate chain", "give the file that the admitting machine wrote") from None
    install(state, chain, fingerprint, wall)
    return certs.network_of(chain[-1])


def install(state: StateDirectory, chain: list[x509.Certificate], fingerprint: bytes | None = None, wall: float | None = None) -> None:
    """Check a chain against this node's key and the authority's fingerprint, then keep it. Raises `LocalMisuse`."""
    key = read_key(state, files.NODE_KEY, "make a request here first")
    root = chain[-1]
    _check_authority(root, fingerprint)
    try:
        certs.network_of(root)
        peer = certs.verify_member(chain, root, time.time() if wall is None else wall, "the new")
    except PeerRefused as refusal:
        raise LocalMisuse(refusal.sentence, refusal.mend) from refusal
    if peer.public_key != point_of(key.public_key()):
        raise LocalMisuse("the certificate is for another machine's key", "give the chain that answers this machine's own request")
    state.write(files.NODE_CHAIN, certs.to_pem(chain))


def install_enrolled(state: StateDirectory, certificates: Sequence[bytes], fingerprint: bytes, wall: float | None = None) -> Network:
    """Keep what an admitting member has granted (`enrolment.grant`): DER of leaf, admission certificate, root, and maybe an appointment.

    The keys must stand in `state` already. Raises `LocalMisuse` when the grant does not fit them or the invitation's `fingerprint`.
    """
    try:
        chain = [x509.load_der_x509_certificate(der) for der in certificates]
    except ValueError:
        raise LocalMisuse("the admitting member sent damaged certificates", "try again, or through another member") from None
    if len(chain) not in (3, 4):
        raise LocalMisuse("the admitting member sent too few or too many certificates", "try again, or through another member")
    root, appointment = chain[2], chain[3:]
    _check_authority(root, fingerprint)
    if appointment:
        own = point_of(read_key(state, files.ADMISSION_KEY).public_key())
        if not certs.is_issued_by(appointment[0], root) or _point(appointment[0]) != own:
            raise LocalMisuse("the appointment is not for this machine's key", "try again, or through another member")
        state.write(files.ADMISSION_CERTIFICATE, certs.to_pem([appointment[0], root]))
    install(state, chain[:3], fingerprint, wall)
    return certs.network_of(root)


def read_certificates(state: StateDirectory, name: str, mend: str = "") -> list[x509.Certificate]:
    """The certificates of one PEM file. Raises `StateError`, with `mend` if it is missing."""
    pem = state.read(name, mend)
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError:
        raise StateError(f"{state.path / name} is damaged", "put back a copy of it, or join the network anew") from None


def checked_name(name: str) -> str:
    """`name`, if it may be one of a network or node. Raises `LocalMisuse`."""
    if not re.fullmatch(certs.NAME, name):
        raise LocalMisuse(f"{name!r} cannot be a name", "use up to 40 of a-z, 0-9 and -, not beginning or ending with -")
    return name


def checked_pattern(name: str) -> str:
    """`name`, if it may be one of a node, or a pattern of such names: with one `*` for any part. Raises `LocalMisuse`."""
    before, star, after = name.partition("*")
    if star and (len(name) > LONGEST_PATTERN or "*" in after):
        raise LocalMisuse(f"{name!r} cannot be a pattern of names", "use one * and up to 30 other letters, as in lab-*")
    return name if checked_name(f"{before}x{after}" if star else name) else ""


def checked_limits(limits: certs.Limits) -> certs.Limits:
    """`limits`, if an admission key may be bound to them. Raises `LocalMisuse`."""
    if limits.names:
        checked_pattern(limits.names)
    checked_groups(limits.groups or ())
    checked_routes(limits.routes or ())
    if limits.life and limits.life < LEAST_LIFE:
        raise LocalMisuse(f"a certificate cannot count for {limits.life} seconds", f"give {LEAST_LIFE} seconds or more")
    return limits


def checked_groups(groups: tuple[str, ...]) -> tuple[str, ...]:
    """`groups`, if a member may be in them. Raises `LocalMisuse`."""
    if len(groups) > certs.MOST_GROUPS:
        raise LocalMisuse(f"{len(groups)} groups are too many for one member", f"give at most {certs.MOST_GROUPS}")
    for group in groups:
        checked_name(group)
    return groups


def checked_routes(routes: tuple[str, ...]) -> tuple[str, ...]:
    """`routes`, if a member may lead there. Raises `LocalMisuse`."""
    if len(routes) > certs.MOST_ROUTES:
        raise LocalMisuse(f"{len(routes)} routes are too many for one member", f"give at most {certs.MOST_ROUTES}")
    for route in routes:
        try:
            ipaddress.ip_network(route)
        except ValueError:
            raise LocalMisuse(f"{route!r} is no IP network", "write a route as 192.168.7.0/24 or 2001:db8:7::/48") from None
    return routes


def _check_authority(root: x509.Certificate, fingerprint: bytes | None) -> None:
    if fingerprint is not None and certs.fingerprint(root) != fingerprint:
        raise LocalMisuse(f"the chain is under another authority ({certs.fingerprint(root).hex()})", f"expected {fingerprint.hex()}")


def p256(certificate: x509.Certificate) -> PublicKey:
    """The key of a certificate of this machine's. Raises `StateError`."""
    key = certificate.public_key()
    if not is_p256(key):
        raise StateError("a certificate of this machine has no P-256 key", "put back a copy of it, or join the network anew")
    return key  # type: ignore[return-value]  # is_p256 has narrowed it


def _point(certificate: x509.Certificate) -> bytes:
    return point_of(p256(certificate))
