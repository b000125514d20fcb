"""Messages about the flow log: what has passed between two members (docs/flows.md)."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from ipop_tx.wire.fields import Body, Count, Ident, Signatures

MOST_ROWS = 256
"""In one answer."""
FRESH = 300
"""Seconds for which the authority's word counts that somebody may ask."""

Address = Annotated[bytes, Meta(max_length=16)]
Port = Annotated[int, Meta(ge=0, le=65535)]


class AskFlows(Body, frozen=True, tag=114):
    """Which flows of the last `seconds` do you know of? Answered by `FlowsTold`, the newest first.

    Without `about` those with the asker. With it those with that member, which only the authority may have told to somebody: it signs all
    the rest, `asker` and `time` (seconds since the epoch) among it.
    """

    network: Ident
    asker: Ident
    seconds: Count
    about: Annotated[bytes, Meta(max_length=20)] = b""
    time: Count = 0
    signature: Signatures = b""


class FlowRow(Struct, frozen=True, array_like=True):
    """One direction of one flow, as it passed the member that tells it; `start` and `end` in seconds since the epoch."""

    source: Address
    target: Address
    source_port: Port
    target_port: Port
    protocol: Annotated[int, Meta(ge=0, le=255)]
    packets: Count
    bytes: Count
    start: Count
    end: Count
    accepted: bool
    rule: Annotated[str, Meta(max_length=60)]
    """What has decided; empty where there is no policy."""


class FlowsTold(Body, frozen=True, tag=115):
    """These; `more` when there are others that are older."""

    rows: Annotated[tuple[FlowRow, ...], Meta(max_length=MOST_ROWS)]
    more: bool
