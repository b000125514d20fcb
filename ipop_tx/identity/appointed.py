"""Whom the authority has appointed to admit members: kept beside its key, since nobody else could list them."""

from __future__ import annotations

import base64
from typing import NamedTuple

from cryptography import x509

from ipop_tx.errors import StateError
from ipop_tx.identity import certificates as certs
from ipop_tx.identity import state as files
from ipop_tx.identity.keys import is_p256, point_of
from ipop_tx.identity.state import StateDirectory
from ipop_tx.values import key_digest


class Appointment(NamedTuple):
    """A node's right to admit."""

    name: str
    """The node's, when it was appointed."""
    certificate: x509.Certificate

    @property
    def key(self) -> bytes:
        """The digest of the admission key."""
        return digest_of(self.certificate)


def digest_of(certificate: x509.Certificate) -> bytes:
    """The digest of a certificate's key. Raises ValueError when that is not on P-256."""
    key = certificate.public_key()
    if not is_p256(key):
        raise ValueError("not a P-256 key")
    return key_digest(point_of(key))  # type: ignore[arg-type]  # is_p256 has narrowed it


def read(state: StateDirectory) -> list[Appointment]:
    """All that this machine has appointed, the last one of each key. Raises `StateError`."""
    stored = state.read_json(files.APPOINTED)
    try:
        return [
            Appointment(name, x509.load_der_x509_certificate(base64.b64decode(der)))
            for name, der in (stored or {"appointed": []})["appointed"]
        ]
    except (TypeError, KeyError, *certs.MALFORMED):
        raise StateError(f"{state.path / files.APPOINTED} makes no sense", "put back a copy of it") from None


def note(state: StateDirectory, name: str, certificate: x509.Certificate) -> None:
    """Keep one more. Raises `StateError`."""
    fresh = Appointment(name, certificate)
    kept = [*(one for one in read(state) if one.key != fresh.key), fresh]
    write(state, kept)


def write(state: StateDirectory, appointments: list[Appointment]) -> None:
    """Keep these. Raises `StateError`."""
    listed = [(one.name, base64.b64encode(certs.to_der(one.certificate)).decode()) for one in appointments]
    state.write_json(files.APPOINTED, {"appointed": listed})
