"""What somebody has decided about a machine that waits to be let in, as the register of its key holds it."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

from ipop_tx.errors import PeerRefused
from ipop_tx.identity import certificates as certs
from ipop_tx.identity.authority import Admitter
from ipop_tx.identity.keys import point_of, sign, signed_by
from ipop_tx.identity.trust import Trust
from ipop_tx.values import key_digest

_CONTEXT = b"ipop-tx decision 1\0"


class Decision(msgspec.Struct, frozen=True, array_like=True):
    """Whether a machine is to be let in, signed by an admission key."""

    admitted: bool
    admission: bytes
    """The certificate (DER) of whoever decided."""
    signature: bytes

    @classmethod
    def make(cls, public: bytes, admitted: bool, admitter: Admitter) -> Decision:
        """About the machine whose key has this compressed point."""
        return cls(admitted, certs.to_der(admitter.certificate), sign(admitter.key, _text(public, admitted)))

    @classmethod
    def read(cls, value: bytes) -> Decision | None:
        """A register's value; None for one that makes no sense."""
        try:
            return msgspec.msgpack.decode(value, type=cls)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None

    def encode(self) -> bytes:
        """The register's value."""
        return msgspec.msgpack.encode(self)

    def is_good(self, public: bytes, name: str, trust: Trust, may_admit: Callable[[bytes], bool]) -> bool:
        """Whether somebody has decided this who may admit members of that name."""
        try:
            admission = x509.load_der_x509_certificate(self.admission)
            key = admission.public_key()
            admission, root = trust.above(admission)
            if certs.limits_of(admission).excess(name, certs.Rights(life=0)):
                return False
            certs.verify_admission(admission, root, trust.wall(), "the decider's")
            good = isinstance(key, EllipticCurvePublicKey) and signed_by(key, _text(public, self.admitted), self.signature)
            return good and may_admit(key_digest(point_of(key)))  # type: ignore[arg-type]  # checked in `good`
        except (PeerRefused, *certs.MALFORMED):
            return False


def _text(public: bytes, admitted: bool) -> bytes:
    return _CONTEXT + public + bytes([admitted])
