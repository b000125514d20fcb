"""Renewal: the keys of a new session from a secret of its parent and an X25519 exchange (RFC 7748) over the parent.

```
 one                                  other
 RENEW: public             ->                       both draw a key of their own for this parent, and no other
                           <-         RENEWED: public

 block = HKDF-SHA256(X25519(own private, other's public), salt = chain secret of the parent, info = label | greater public | lesser public)
```

HKDF is that of RFC 5869. The block is laid out as the one that the DTLS exporter gives, and ends with the chain secret of the new session.
Whoever has the greater public key counts as the side that began, so nothing hangs on who asked: two questions that cross give one session.
The exchange gives secrecy from whoever learns the keys later; the chain secret says that both ends were at the handshake.
"""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ipop_tx.errors import BadMessage

CHAIN_BYTES = 32
BLOCK_BYTES = 32 + 32 + 4 + 4 + 8 + CHAIN_BYTES
"""Key of the side that began, key of the other, index of datagrams towards the other, towards the side that began, tag, chain secret."""
_LABEL = b"ipop-tx-1 renewal"


class Chain:
    """What one session can be followed by. Whoever has called `follow` forgets it: a parent has one child."""

    __slots__ = ("_private", "_secret")

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._private: X25519PrivateKey | None = None

    def offer(self) -> bytes:
        """Our public key, 32 bytes; the same at each call."""
        if self._private is None:
            self._private = X25519PrivateKey.generate()
        return self._private.public_key().public_bytes_raw()

    def follow(self, public: bytes) -> tuple[bool, bytes]:
        """Whether we count as the side that began, and the block of the new session.

        Raises `BadMessage` for a key that is not 32 bytes, is our own, or makes the shared secret zero.
        """
        ours = self.offer()
        assert self._private is not None
        try:
            shared = self._private.exchange(X25519PublicKey.from_public_bytes(public))
        except ValueError:  # a wrong length, or a point of small order
            raise BadMessage("a renewal has a public key that is none") from None
        if public == ours:
            raise BadMessage("a renewal has our own public key")
        info = _LABEL + max(ours, public) + min(ours, public)
        return ours > public, HKDF(SHA256(), BLOCK_BYTES, self._secret, info).derive(shared)
