"""P-256 keys: making, writing and reading them, and the ident that follows from a public key and a salt."""

from __future__ import annotations

import hashlib
from functools import lru_cache

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from ipop_tx.errors import StateError
from ipop_tx.identity.state import StateDirectory
from ipop_tx.values import IDENT_BYTES, Ident

SALT_BYTES = 16
COMPRESSED_BYTES = 33

PrivateKey = ec.EllipticCurvePrivateKey
PublicKey = ec.EllipticCurvePublicKey
_CURVE = ec.SECP256R1()
_ECDSA = ec.ECDSA(SHA256())


def generate_key() -> PrivateKey:
    """A new P-256 key."""
    return ec.generate_private_key(_CURVE)


def point_of(key: PublicKey) -> bytes:
    """The uncompressed SEC 1 point, 65 bytes."""
    return key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


def compressed_point_of(key: PublicKey) -> bytes:
    """The compressed SEC 1 point, 33 bytes."""
    return key.public_bytes(Encoding.X962, PublicFormat.CompressedPoint)


@lru_cache(maxsize=512)
def key_of_point(point: bytes) -> PublicKey:
    """The key of a SEC 1 point of either form. Raises ValueError for bytes that are none."""
    return ec.EllipticCurvePublicKey.from_encoded_point(_CURVE, point)


def is_p256(key: object) -> bool:
    """Whether `key` is a public key on P-256."""
    return isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1)


def ident_of(public_point: bytes, salt: bytes) -> Ident:
    """The place on the ring of the node with this key (uncompressed point, 65 bytes). Nobody chooses: the salt is the authority's."""
    return hashlib.sha256(public_point + salt).digest()[:IDENT_BYTES]


def sign(key: PrivateKey, data: bytes) -> bytes:
    """An ECDSA signature over SHA-256, in DER."""
    return key.sign(data, _ECDSA)


def signed_by(key: PublicKey, data: bytes, signature: bytes) -> bool:
    """Whether `signature` is by `key`."""
    try:
        key.verify(signature, data, _ECDSA)
    except InvalidSignature:
        return False
    return True


def write_key(state: StateDirectory, name: str, key: PrivateKey) -> None:
    """Keep a key in the state directory (PKCS #8, PEM, 0600)."""
    state.write(name, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def read_key(state: StateDirectory, name: str, mend: str = "") -> PrivateKey:
    """A key from the state directory. Raises `StateError`, with `mend` if there is none."""
    pem = state.read(name, mend)
    try:
        key = load_pem_private_key(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not is_p256(key.public_key()):
        raise StateError(f"{state.path / name} is damaged: it holds no P-256 key", "put back a copy of it, or join the network anew")
    return key


def ensure_key(state: StateDirectory, name: str) -> PrivateKey:
    """The key of that name, made now if there is none yet; an existing one is never replaced."""
    if not state.exists(name):
        write_key(state, name, generate_key())
    return read_key(state, name)
