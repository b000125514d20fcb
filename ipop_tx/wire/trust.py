"""Messages about who is trusted no more."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from ipop_tx.wire.fields import Body, Count, Ident, Name, Small

Digest = Annotated[bytes, Meta(min_length=32, max_length=32)]

PAGE = 16
"""Revocations in one answer."""


class Revocation(Body, frozen=True, tag=90):
    """The authority trusts a key no more, be it a member's or one that admits members. For ever: there is no way back."""

    network: Ident
    key: Digest
    """SHA-256 of the public key (compressed SEC 1 point)."""
    name: Name
    """Whose it was, for people."""
    time: Count
    """Seconds since the Unix epoch at which it was given."""
    signature: Small = b""
    """By the authority's key, over all the rest."""


class Revoked(Body, frozen=True, tag=91):
    """Revocations, told or asked for. As a request answered by `Done`; as an answer to `WhichRevoked` in the order of their keys."""

    orders: Annotated[tuple[Revocation, ...], Meta(max_length=PAGE)]
    more: bool = False


class WhichRevoked(Body, frozen=True, tag=92):
    """The revocations of keys after `after`. Answered by `Revoked`."""

    after: Annotated[bytes, Meta(max_length=32)] = b""
