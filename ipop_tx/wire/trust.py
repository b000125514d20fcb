"""Messages about who is trusted no more, and who is to be a member, or to stay one."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from ipop_tx.wire.fields import Body, Count, Endpoints, Ident, Name, Signatures, Small

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
    signature: Signatures = b""
    """By the authority, over all the rest."""
    since: Count = 0
    """If not 0, the key may admit no more: what it has signed before this time, in seconds since the Unix epoch, stays good."""


class Revoked(Body, frozen=True, tag=91):
    """Revocations, told or asked for. As a request answered by `Done`; as an answer to `WhichRevoked` in the order of their keys."""

    orders: Annotated[tuple[Revocation, ...], Meta(max_length=PAGE)]
    more: bool = False


class WhichRevoked(Body, frozen=True, tag=92):
    """The revocations of keys after `after`. Answered by `Revoked`."""

    after: Annotated[bytes, Meta(max_length=32)] = b""


class Charter(Body, frozen=True, tag=97):
    """What the authority is from now on."""

    network: Ident
    number: Annotated[int, Meta(ge=1, le=2**62)]
    """One more than that of the charter before; 1 for the first."""
    roots: Annotated[tuple[tuple[Certificate, Count], ...], Meta(min_length=1, max_length=4)]
    """The authority's certificates (DER), and until when each counts (seconds since the Unix epoch); 0 for the one in use."""
    keys: Annotated[tuple[Annotated[bytes, Meta(min_length=33, max_length=33)], ...], Meta(min_length=1, max_length=16)]
    """Who signs orders (compressed SEC 1 points) ..."""
    threshold: Annotated[int, Meta(ge=1, le=16)]
    """... and how many of them must."""
    admissions: Annotated[tuple[Certificate, ...], Meta(max_length=64)]
    """The admission certificates (DER) that count."""
    time: Count
    signature: Signatures = b""
    """As the charter before demands, and as this one does; by each new root too. Over all the rest."""


class WhichCharters(Body, frozen=True, tag=98):
    """The charters after the one with this number. Answered by `Charters`."""

    after: Count


class Charters(Body, frozen=True, tag=99):
    """Charters in their order, told or asked for. As a request answered by `Done`."""

    charters: Annotated[tuple[Charter, ...], Meta(max_length=4)]
    more: bool = False


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

    certificates: Annotated[tuple[Certificate, ...], Meta(min_length=2, max_length=2)]
    signature: Small


class Readmitted(Body, frozen=True, tag=75):
    """The new chain (DER)."""

    certificates: Annotated[tuple[Certificate, ...], Meta(max_length=8)]
