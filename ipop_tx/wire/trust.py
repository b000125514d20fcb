"""Messages about who is trusted no more, and who is to be a member, or to stay one."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from ipop_tx.wire.fields import Body, Count, Endpoints, Ident, Name, Small

Digest = Annotated[bytes, Meta(min_length=32, max_length=32)]

Certificate = Annotated[bytes, Meta(max_length=2048)]
"""DER."""

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
    since: Count = 0
    """If not 0, the key may admit no more: what it has signed before this time, in seconds since the Unix epoch, stays good."""


class Revoked(Body, frozen=True, tag=91):
    """Revocations, told or asked for. As a request answered by `Done`; as an answer to `WhichRevoked` in the order of their keys."""

    orders: Annotated[tuple[Revocation, ...], Meta(max_length=PAGE)]
    more: bool = False


class WhichRevoked(Body, frozen=True, tag=92):
    """The revocations of keys after `after`. Answered by `Revoked`."""

    after: Annotated[bytes, Meta(max_length=32)] = b""


# --- admission ------------------------------------------------------------------------------------


class Enrol(Body, frozen=True, tag=70):
    """A guest's request: certificate requests (DER) for its node key and, if it is appointed, its admission key.

    Signed by the invitation's key. Answered by `Enrolled`.
    """

    invitation: Small
    csr: Annotated[bytes, Meta(max_length=2048)]
    admission_csr: Annotated[bytes, Meta(max_length=2048)]
    signature: Small
    name: Name
    guest: Ident
    """Hash of the invitation's key, as the receiving member saw it proven in the handshake."""


class Enrolled(Body, frozen=True, tag=71):
    """The certificates (DER; member's chain, then the admission certificate if appointed) and endpoints of members."""

    certificates: Annotated[tuple[bytes, ...], Meta(max_length=8)]
    endpoints: Endpoints


class Readmit(Body, frozen=True, tag=74):
    """Renew a member's certificate (DER, with those above it but the root), which may have ended lately. Answered by `Readmitted`.

    Signed by the certificate's key. Asked by the member itself, over a link or as a guest who shows its own key; or passed on for it.
    """

    certificates: Annotated[tuple[Certificate, ...], Meta(min_length=2, max_length=3)]
    signature: Small


class Readmitted(Body, frozen=True, tag=75):
    """The new chain (DER)."""

    certificates: Annotated[tuple[Certificate, ...], Meta(max_length=8)]
