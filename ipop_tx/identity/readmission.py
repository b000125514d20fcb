"""How a member's certificate is renewed, by any member that admits: the request, its check, the certificates in return. Pure.

The key stays and so does what the certificate says, so the member keeps its ident. One that has ended lately will do: whoever proves its
key gets another. Whoever passes a request on, or repeats it, gains nothing: what comes of it serves nobody but the key's holder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from cryptography import x509

from ipop_tx.errors import BadMessage, InvitationRefused, LocalMisuse, PeerRefused
from ipop_tx.identity import certificates as certs
from ipop_tx.identity.authority import Admitter
from ipop_tx.identity.keys import PrivateKey, key_of_point, sign, signed_by
from ipop_tx.identity.trust import Trust
from ipop_tx.values import Peer

_CONTEXT = b"ipop-tx readmission 1\0"
_MEND = "join the network anew"


class Readmission(NamedTuple):
    """A member's request: its certificate and those above it, without the root, in DER; signed by its key."""

    certificates: tuple[bytes, ...]
    signature: bytes


def build(key: PrivateKey, chain: Sequence[x509.Certificate]) -> Readmission:
    """The request of the member that `chain` names."""
    ders = tuple(map(certs.to_der, chain[:-1]))
    return Readmission(ders, sign(key, _CONTEXT + ders[0]))


def check(asked: Readmission, trust: Trust, wall: float, grace: float, is_out: Callable[[Peer], bool]) -> tuple[x509.Certificate, Peer]:
    """The certificate that is to be renewed, and whose it is.

    Raises `BadMessage` for what is no request, `InvitationRefused` for one that is refused: the key was revoked, or the certificate
    has ended more than `grace` seconds ago, or is not good in other respects.
    """
    leaf, peer = owner_of(asked, trust, wall)
    if not signed_by(key_of_point(peer.public_key), _CONTEXT + asked.certificates[0], asked.signature):
        raise BadMessage("the request to renew a certificate is not signed by its key")
    if is_out(peer):
        raise InvitationRefused(
            f"{peer.name} was thrown out of the network, or whoever admitted it", "its key was revoked by the authority"
        )
    if wall > peer.not_after + grace:
        days = f"{(wall - peer.not_after) / certs.DAY:.1f} days"
        raise InvitationRefused(f"the certificate of {peer.name} ended {days} ago, too long to be renewed", _MEND)
    return leaf, peer


def owner_of(asked: Readmission, trust: Trust, wall: float) -> tuple[x509.Certificate, Peer]:
    """Whose certificate it is, by what could be said on its last day. Raises as `check` does."""
    try:
        chain = list(map(x509.load_der_x509_certificate, asked.certificates))
        return chain[0], trust.verify(chain, "the old", min(wall, certs.ends_of(chain[0])))
    except PeerRefused as refusal:
        raise InvitationRefused(refusal.sentence, _MEND) from refusal
    except certs.MALFORMED:
        raise BadMessage("the request to renew a certificate carries none") from None


def grant(leaf: x509.Certificate, admitter: Admitter, wall: float) -> tuple[bytes, ...]:
    """The new chain, DER. Raises `InvitationRefused` when this machine's admission would make it no better."""
    new = admitter.readmit(leaf, wall)
    chain = [new, admitter.certificate, admitter.root]
    try:
        certs.verify_member(chain, admitter.root, wall, "the new")
    except PeerRefused as refusal:
        raise InvitationRefused(refusal.sentence, "another member that admits may do it") from refusal
    if certs.ends_of(new) <= certs.ends_of(leaf):
        raise InvitationRefused("this member's own right to admit ends no later than that certificate", "the authority has to renew it")
    return tuple(map(certs.to_der, chain))


def read(certificates: Sequence[bytes]) -> list[x509.Certificate]:
    """The chain of an answer. Raises `LocalMisuse`."""
    try:
        return [x509.load_der_x509_certificate(der) for der in certificates]
    except ValueError:
        raise LocalMisuse("the admitting member sent damaged certificates", "try again, or through another member") from None
