"""X.509 certificates of a network: the authority's root, admission certificates, members; what they say and how they are checked."""

from __future__ import annotations

import datetime as dt
import hashlib
import ipaddress
from collections.abc import Sequence
from typing import Annotated

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ipop_tx.errors import PeerRefused
from ipop_tx.identity.keys import SALT_BYTES, PrivateKey, PublicKey, ident_of, is_p256, point_of
from ipop_tx.values import IDENT_BYTES, Ident, Network, Peer, key_digest

DAY = 86400.0
ROOT_LIFETIME = 3652 * DAY
ADMISSION_LIFETIME = 730 * DAY
MEMBER_LIFETIME = 365 * DAY
BACKDATED = 300.0
"""Seconds by which a certificate begins before it was made: clocks differ."""

FINGERPRINT_BYTES = 16

MOST_GROUPS = 16
"""Groups that one member may be in: its certificate goes with every handshake."""

MOST_ROUTES = 16
"""Networks to which one member may lead."""

NAME = "[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?"
"""Names of networks and nodes: what also serves as a DNS label (RFC 1123), at most 40 characters."""

MALFORMED = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.ExtensionNotFound,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
    msgspec.MsgspecError,
    RecursionError,
)
"""What reading a stranger's certificate can raise; the last one when what it carries is nested a thousand times."""

Name = Annotated[str, msgspec.Meta(pattern=rf"^{NAME}\Z")]

# Under 2.25 anybody may use a UUID of their own (ITU-T X.667).
NETWORK_FACTS = x509.ObjectIdentifier("2.25.139662140762106287524435516930007065004")
LIMITS = x509.ObjectIdentifier("2.25.119480664842509830105924858926076362002")
MEMBER_FACTS = x509.ObjectIdentifier("2.25.327477033070718787990073215180939234507")


class NetworkFacts(msgspec.Struct, frozen=True, array_like=True):
    """What the authority's certificate says of its network."""

    name: Name
    pool: str
    prefix: str
    shards: int
    ident: Annotated[bytes, msgspec.Meta(max_length=IDENT_BYTES)] = b""
    """The network's, in a root that has replaced another one; else it follows from the root's key."""
    first: Annotated[bytes, msgspec.Meta(max_length=FINGERPRINT_BYTES)] = b""
    """The fingerprint of the network's first root, in one that has replaced it."""


class MemberFacts(msgspec.Struct, frozen=True, array_like=True):
    """What a member's certificate says of the member, besides its key."""

    network: Annotated[bytes, msgspec.Meta(min_length=IDENT_BYTES, max_length=IDENT_BYTES)]
    salt: Annotated[bytes, msgspec.Meta(min_length=SALT_BYTES, max_length=SALT_BYTES)]
    name: Name
    admits: bool = False
    address: str = ""
    """An IPv4 address that the authority has assigned, or nothing: then the node takes a lease."""
    groups: Annotated[tuple[Name, ...], msgspec.Meta(max_length=MOST_GROUPS)] = ()
    routes: Annotated[tuple[str, ...], msgspec.Meta(max_length=MOST_ROUTES)] = ()
    """IP networks beyond this one to which the member may lead."""
    assigned_at: int = 0
    """When the address was assigned, in seconds since the Unix epoch: a later certificate for the same member does not make it later."""
    life: int = int(MEMBER_LIFETIME)
    """Seconds for which its certificates are to count, each."""


class Rights(msgspec.Struct, frozen=True, array_like=True):
    """What a newcomer is given beside its name."""

    address: str = ""
    """An IPv4 address to assign, or nothing: then it takes a lease."""
    groups: tuple[str, ...] = ()
    routes: tuple[str, ...] = ()
    life: int = int(MEMBER_LIFETIME)
    """Seconds for which its certificate counts."""


ORDINARY = Rights()


class Limits(msgspec.Struct, frozen=True, array_like=True):
    """What an admission key may admit; every verifier holds it to that. It never appoints others."""

    names: str = ""
    """The one name that members may have, or a pattern with one `*`; empty: any."""
    groups: tuple[str, ...] | None = None
    """The groups that it may put members into; None: any."""
    routes: tuple[str, ...] | None = None
    """Members may lead into these IP networks; None: anywhere."""
    addresses: bool = True
    """Whether it may assign addresses."""
    life: int = 0
    """Seconds that its certificates may count at most; 0: no bound but its own end."""

    def excess(self, name: str, rights: Rights) -> str:
        """What of a member's name and rights is beyond these limits, in words; empty if nothing is."""
        if self.names and not fits(self.names, name):
            return f"the name {name}"
        if self.groups is not None and not set(rights.groups) <= set(self.groups):
            return "a group"
        if self.routes is not None and not all(_leads_into(route, self.routes) for route in rights.routes):
            return "a route"
        if rights.address and not self.addresses:
            return "an assigned address"
        return "the length of its life" if self.life and rights.life > self.life else ""


UNLIMITED = Limits()


def fits(pattern: str, name: str) -> bool:
    """Whether a name is of a pattern with one `*`, or the very name."""
    before, star, after = pattern.partition("*")
    return name == pattern if not star else name.startswith(before) and name.endswith(after) and len(name) > len(before) + len(after)


def _leads_into(route: str, networks: tuple[str, ...]) -> bool:
    one = ipaddress.ip_network(route)
    return any(one.version == (other := ipaddress.ip_network(text)).version and one.subnet_of(other) for text in networks)  # type: ignore[arg-type]


def network_ident(key: PublicKey) -> bytes:
    """SHA-256 of the authority's public point, cut to 20 bytes."""
    return hashlib.sha256(point_of(key)).digest()[:IDENT_BYTES]


def fingerprint(certificate: x509.Certificate) -> bytes:
    """What an invitation says of the authority's certificate: SHA-256 of its DER, cut to 16 bytes."""
    return certificate.fingerprint(SHA256())[:FINGERPRINT_BYTES]


def network_of(root: x509.Certificate) -> Network:
    """The facts that an authority's certificate carries. Raises `PeerRefused` when it carries none."""
    try:
        facts = msgspec.msgpack.decode(_extension(root, NETWORK_FACTS), type=NetworkFacts)
        pool, prefix = ipaddress.IPv4Network(facts.pool), ipaddress.IPv6Network(facts.prefix)
        return Network(facts.name, facts.ident or network_ident(_public(root)), pool, prefix, facts.shards)
    except MALFORMED:
        raise PeerRefused("the root certificate is not that of a network's authority") from None


def is_later_root(root: x509.Certificate) -> bool:
    """Whether a network's root has replaced another one."""
    return bool(msgspec.msgpack.decode(_extension(root, NETWORK_FACTS), type=NetworkFacts).ident)


def first_fingerprint(root: x509.Certificate) -> bytes:
    """The fingerprint of the root that the network began with: it stays what it was when roots are replaced."""
    return msgspec.msgpack.decode(_extension(root, NETWORK_FACTS), type=NetworkFacts).first or fingerprint(root)


def next_root(key: PrivateKey, root: x509.Certificate, wall: float) -> x509.Certificate:
    """A root certificate for another key of the same authority."""
    facts = msgspec.msgpack.decode(_extension(root, NETWORK_FACTS), type=NetworkFacts)
    return make_root(key, msgspec.structs.replace(facts, ident=network_of(root).ident, first=first_fingerprint(root)), wall)


def facts_of(leaf: x509.Certificate) -> MemberFacts:
    """What a member's certificate says. Raises ValueError when it is none."""
    return msgspec.msgpack.decode(_extension(leaf, MEMBER_FACTS), type=MemberFacts)


def limits_of(admission: x509.Certificate) -> Limits:
    """To what an admission key is limited. Raises ValueError when that cannot be read: then nothing is within it."""
    if not any(extension.oid == LIMITS for extension in admission.extensions):
        return UNLIMITED
    return msgspec.msgpack.decode(_extension(admission, LIMITS), type=Limits)


def to_pem(chain: Sequence[x509.Certificate]) -> bytes:
    """Certificates one after the other."""
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in chain)


def to_der(certificate: x509.Certificate) -> bytes:
    """One certificate's bytes on the wire."""
    return certificate.public_bytes(Encoding.DER)


def make_root(key: PrivateKey, facts: NetworkFacts, wall: float, lifetime: float = ROOT_LIFETIME) -> x509.Certificate:
    """The self-signed certificate of a network's authority, with the network's facts."""
    builder = _builder(_name(f"{facts.name} authority"), _name(f"{facts.name} authority"), key.public_key(), wall, wall + lifetime)
    builder = _as_authority(builder, key.public_key(), path_length=1)
    return builder.add_extension(x509.UnrecognizedExtension(NETWORK_FACTS, msgspec.msgpack.encode(facts)), False).sign(key, SHA256())


def make_admission(
    root_key: PrivateKey,
    root: x509.Certificate,
    public: PublicKey,
    wall: float,
    lifetime: float = ADMISSION_LIFETIME,
    limits: Limits = UNLIMITED,
) -> x509.Certificate:
    """The certificate by which the authority appoints the holder of `public` to admit members, within `limits`."""
    subject = _name(f"{network_of(root).name} admission {network_ident(public)[:4].hex()}")
    builder = _builder(subject, root.subject, public, wall, min(wall + lifetime, ends_of(root)))
    builder = _as_authority(builder, public, path_length=0)
    if limits != UNLIMITED:
        builder = builder.add_extension(x509.UnrecognizedExtension(LIMITS, msgspec.msgpack.encode(limits)), False)
    return builder.add_extension(_issued_by(root_key.public_key()), False).sign(root_key, SHA256())


def make_member(
    admission_key: PrivateKey,
    admission: x509.Certificate,
    public: PublicKey,
    facts: MemberFacts,
    wall: float,
    lifetime: float = MEMBER_LIFETIME,
) -> x509.Certificate:
    """A member's certificate over its key."""
    ident = ident_of(point_of(public), facts.salt)
    builder = _builder(_name(facts.name), admission.subject, public, wall, min(wall + lifetime, ends_of(admission)))
    builder = builder.add_extension(x509.BasicConstraints(False, None), True)
    builder = builder.add_extension(_usage(digital_signature=True), True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]), False)
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(ident_uri(ident))]), False)
    builder = builder.add_extension(_issued_by(admission_key.public_key()), False)
    builder = builder.add_extension(x509.UnrecognizedExtension(MEMBER_FACTS, msgspec.msgpack.encode(facts)), False)
    return builder.sign(admission_key, SHA256())


def ident_uri(ident: Ident) -> str:
    """An ident as the subject alternative name of its certificate."""
    return f"ipop:n{ident.hex()}"


def verify_member(chain: Sequence[x509.Certificate], root: x509.Certificate, wall: float, whose: str = "the peer's") -> Peer:
    """Who is proven by `chain` (leaf, admission certificate, root) under the network's `root`, `wall` seconds after the epoch.

    Raises `PeerRefused` with the one reason that was found first, in the words of `whose` certificate it is.
    """
    try:
        leaf, admission = _shape(chain, root, whose)
        _signatures(leaf, admission, root, whose)
        for certificate, what in ((leaf, whose), (admission, f"the admission behind {whose}"), (root, "the network's root")):
            check_dates(certificate, wall, what)
        verify_admission_usage(admission, whose)
        _member_usage(leaf, whose)
        return _peer(leaf, admission, root, whose)
    except MALFORMED:
        raise PeerRefused(f"{whose} certificate is malformed") from None


def check_dates(certificate: x509.Certificate, wall: float, what: str) -> None:
    """Raise `PeerRefused` unless `certificate` is valid at `wall`."""
    if wall < certificate.not_valid_before_utc.timestamp():
        raise PeerRefused(f"{what} certificate begins only at {_date(certificate.not_valid_before_utc)}", "compare the machines' clocks")
    if wall > ends_of(certificate):
        raise PeerRefused(f"{what} certificate ended at {_date(certificate.not_valid_after_utc)}", "it has to be admitted anew")


def ends_of(certificate: x509.Certificate) -> float:
    """When a certificate ends, in seconds since the Unix epoch."""
    return certificate.not_valid_after_utc.timestamp()


def issued_at(certificate: x509.Certificate) -> float:
    """When a certificate was made, in seconds since the Unix epoch."""
    return certificate.not_valid_before_utc.timestamp() + BACKDATED


def is_issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Whether name and signature say so."""
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, *MALFORMED):
        return False
    return True


def verify_admission(admission: x509.Certificate, root: x509.Certificate, wall: float, whose: str) -> None:
    """Raise `PeerRefused` unless the authority has appointed the key of `admission`, for a time that includes `wall`."""
    if not is_issued_by(admission, root):
        raise PeerRefused(f"{whose} key is not one that the network's authority has appointed")
    verify_admission_usage(admission, whose)
    check_dates(admission, wall, whose)


def verify_admission_usage(admission: x509.Certificate, whose: str) -> None:
    """Raise `PeerRefused` unless `admission` may sign members, and nothing below them."""
    constraints = admission.extensions.get_extension_for_class(x509.BasicConstraints).value
    usage = admission.extensions.get_extension_for_class(x509.KeyUsage).value
    if not constraints.ca or not usage.key_cert_sign:
        raise PeerRefused(f"{whose} certificate is signed by a key that may not admit members")
    if constraints.path_length != 0:
        raise PeerRefused(f"{whose} certificate is signed by a key whose certificate does not bound the chain")


def _shape(chain: Sequence[x509.Certificate], root: x509.Certificate, whose: str) -> tuple[x509.Certificate, x509.Certificate]:
    if not chain:
        raise PeerRefused(f"{whose} certificate is missing")
    if chain[0].extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
        raise PeerRefused(f"{whose} certificate is an authority's, which no node may use as its own")
    if len(chain) < 3:
        raise PeerRefused(f"{whose} certificate comes without the certificates that admitted it")
    if len(chain) > 3:
        raise PeerRefused(f"{whose} certificate comes with more certificates than a member has")
    if chain[2] != root:
        raise PeerRefused(f"{whose} certificate is for another network", f"this one is {network_of(root).name!r}")
    return chain[0], chain[1]


def _signatures(leaf: x509.Certificate, admission: x509.Certificate, root: x509.Certificate, whose: str) -> None:
    if not is_issued_by(root, root):
        raise PeerRefused("the network's root certificate is not signed by itself")
    if not is_issued_by(admission, root):
        raise PeerRefused(f"{whose} certificate was admitted by a key that the network's authority has not appointed")
    if not is_issued_by(leaf, admission):
        raise PeerRefused(f"{whose} certificate is not signed by the admission key that it names")


def _member_usage(leaf: x509.Certificate, whose: str) -> None:
    usage = leaf.extensions.get_extension_for_class(x509.KeyUsage).value
    purposes = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    if not usage.digital_signature or usage.key_cert_sign:
        raise PeerRefused(f"{whose} certificate is not meant for signing handshakes")
    if not {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH} <= set(purposes):
        raise PeerRefused(f"{whose} certificate is not meant for both ends of a link")


def _peer(leaf: x509.Certificate, admission: x509.Certificate, root: x509.Certificate, whose: str) -> Peer:
    facts, point = facts_of(leaf), point_of(_public(leaf))
    if facts.network != network_of(root).ident:
        raise PeerRefused(f"{whose} certificate names another network than the one that signed it")
    ident = ident_of(point, facts.salt)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    if list(names) != [x509.UniformResourceIdentifier(ident_uri(ident))]:
        raise PeerRefused(f"{whose} certificate names another ident than its key and salt give")
    rights = Rights(facts.address, facts.groups, facts.routes, int(ends_of(leaf) - issued_at(leaf)))
    if excess := limits_of(admission).excess(facts.name, rights):
        raise PeerRefused(f"{whose} certificate says more than whoever signed it may grant: {excess}")
    admitted_by, ends, begun = key_digest(point_of(_public(admission))), int(ends_of(leaf)), int(issued_at(leaf))
    return Peer(ident, facts.name, False, facts.admits, point, ends, facts.groups, admitted_by, facts.routes, begun)


def _public(certificate: x509.Certificate) -> EllipticCurvePublicKey:
    key = certificate.public_key()
    if not is_p256(key):
        raise ValueError("not a P-256 key")
    assert isinstance(key, EllipticCurvePublicKey)
    return key


def _extension(certificate: x509.Certificate, oid: x509.ObjectIdentifier) -> bytes:
    try:
        value = certificate.extensions.get_extension_for_oid(oid).value
    except x509.ExtensionNotFound:
        raise ValueError("the extension is missing") from None
    assert isinstance(value, x509.UnrecognizedExtension)
    return value.value


def _builder(subject: x509.Name, issuer: x509.Name, public: PublicKey, wall: float, end: float) -> x509.CertificateBuilder:
    begin = dt.datetime.fromtimestamp(int(wall - BACKDATED), dt.UTC)
    return x509.CertificateBuilder(issuer, subject, public, x509.random_serial_number(), begin, dt.datetime.fromtimestamp(int(end), dt.UTC))


def _as_authority(builder: x509.CertificateBuilder, public: PublicKey, path_length: int) -> x509.CertificateBuilder:
    builder = builder.add_extension(x509.BasicConstraints(True, path_length), True)
    builder = builder.add_extension(_usage(key_cert_sign=True), True)
    return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(public), False)


def _issued_by(public: PublicKey) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(public)


def _usage(digital_signature: bool = False, key_cert_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(digital_signature, False, False, False, False, key_cert_sign, False, False, False)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _date(moment: dt.datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"
