"""How an invitation becomes a membership: the newcomer's request, the admitter's checks, the certificates in return. Pure."""

from __future__ import annotations

from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import Encoding

from ipop_tx.errors import BadMessage, InvitationRefused, LocalMisuse
from ipop_tx.identity.authority import Admitter, request, requested_key
from ipop_tx.identity.certificates import MALFORMED, to_der
from ipop_tx.identity.invitation import Invitation, InvitationRecord
from ipop_tx.identity.keys import PrivateKey, ident_of, key_of_point, point_of, sign, signed_by
from ipop_tx.identity.trust import Trust
from ipop_tx.values import Ident

_CONTEXT = b"ipop-tx enrolment 1\0"


class Enrolment(NamedTuple):
    """A newcomer's request. `admission_csr` is empty unless it is to admit others too; `signature` is by the invitation's key."""

    csr: bytes
    admission_csr: bytes
    invitation: bytes
    """Compressed point of the invitation's key."""
    signature: bytes
    name: str
    """The name that the newcomer wishes."""


def build_enrol(invitation: Invitation, node_key: PrivateKey, admission_key: PrivateKey | None, name: str) -> Enrolment:
    """The newcomer's request. Raises `LocalMisuse` for a bad name."""
    csr = request(node_key, name).public_bytes(Encoding.DER)
    admission_csr = request(admission_key, name).public_bytes(Encoding.DER) if admission_key else b""
    signature = sign(invitation.key, _signed(csr, admission_csr, name))
    return Enrolment(csr, admission_csr, invitation.public, signature, name)


def check_enrol(enrolment: Enrolment, guest: Ident, record: InvitationRecord, trust: Trust, wall: float) -> None:
    """Check a request on the admitter's side.

    `guest` is the ident that the handshake has proven, `record` what the DHT holds for the invitation.
    Raises `BadMessage` when the request does not hang together, `InvitationRefused` when the invitation does not admit it.
    """
    try:
        key = key_of_point(enrolment.invitation)
    except ValueError:
        raise BadMessage("the request to join names no invitation") from None
    if ident_of(point_of(key), b"") != guest:
        raise BadMessage("the request to join comes from somebody else than the invited")
    if not signed_by(key, _signed(enrolment.csr, enrolment.admission_csr, enrolment.name), enrolment.signature):
        raise BadMessage("the request to join is not signed by the invitation's key")
    if record.public != enrolment.invitation:
        raise InvitationRefused("the record is another invitation's", "ask for a new one")
    record.verify(trust, wall)
    if record.appoints != bool(enrolment.admission_csr):
        raise InvitationRefused("the request to join asks for other rights than the invitation gives", "ask for a new one")


def grant(enrolment: Enrolment, record: InvitationRecord, admitter: Admitter, wall: float) -> tuple[bytes, ...]:
    """The certificates for a checked request, DER: leaf, admission certificate, root, and if it is appointed its admission certificate.

    Raises `BadMessage` for a bad request, `LocalMisuse` when this machine cannot appoint.
    """
    name = record.named(enrolment.name)
    leaf = admitter.admit(_request(enrolment.csr), name, wall, record.rights, admits=record.appoints)
    chain = (to_der(leaf), to_der(admitter.certificate), to_der(admitter.root))
    if not record.appoints:
        return chain
    appointed = requested_key(_request(enrolment.admission_csr))
    if point_of(appointed) == point_of(_leaf_key(leaf)):
        raise BadMessage("the request to join names one key twice")
    return (*chain, to_der(admitter.appoint(appointed, wall, record.limits)))


def _request(der: bytes) -> x509.CertificateSigningRequest:
    try:
        csr = x509.load_der_x509_csr(der)
        requested_key(csr)
    except (*MALFORMED, LocalMisuse):
        raise BadMessage("the request to join carries no good certificate request") from None
    return csr


def _leaf_key(leaf: x509.Certificate) -> EllipticCurvePublicKey:
    key = leaf.public_key()
    assert isinstance(key, EllipticCurvePublicKey)
    return key


def _signed(csr: bytes, admission_csr: bytes, name: str) -> bytes:
    return _CONTEXT + b"".join(len(part).to_bytes(2, "big") + part for part in (csr, admission_csr, name.encode()))
