"""Messages about the settings of the network: one document, signed by the authority, of which the newest version counts."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from ipop_tx.wire.fields import Body, Count, Ident, Name, Signatures

MOST_BYTES = 32768
"""Of one section: control messages have at most 64 fragments."""


class Settings(Body, frozen=True, tag=95):
    """The settings of the network. Sections that a node does not know it keeps and passes on."""

    network: Ident
    version: Count
    """The greater one replaces the lesser; the time when it was made, in seconds since the Unix epoch, unless that has been used."""
    sections: Annotated[tuple[tuple[Name, Annotated[bytes, Meta(max_length=MOST_BYTES)]], ...], Meta(max_length=8)]
    signature: Signatures = b""
    """By the authority, over all the rest."""


class Newest(Body, frozen=True, tag=96):
    """The settings that I have: version (0 if none) and the first bytes of their hash.

    Answered by `Settings` if yours are newer, else by `Newest`, yours.
    """

    version: Count
    digest: Annotated[bytes, Meta(max_length=8)] = b""
