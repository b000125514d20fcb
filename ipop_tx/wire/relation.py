"""What two members are to each other: a question that every member answers, about the asker and itself only (docs/explain.md)."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from ipop_tx.wire.fields import Body, Count, Ident, NatKind

NO_TAP = 1
"""This node has no interface of the network, on purpose."""
TAP_GONE = 2
TAP_DOWN = 4
ROUTE_ELSEWHERE = 8
"""The kernel sends what goes to the asker's address elsewhere."""
RANGE_OVERLAPS = 16
"""... because another interface has a range that overlaps the network's."""
DISK_FULL = 32
READ_ONLY = 64
ALONE = 128
"""No place on the ring."""
ENDS_LISTEN = 256
"""A program listens at the port asked about; told only to those whom the policy here allows to reach it."""
ENDS_CLOSED = 512
"""None does."""
NO_LEASE = 1024
"""The lease of the node's address could not be had, or kept."""

Port = Annotated[int, Meta(ge=0, le=65535)]
Byte = Annotated[int, Meta(ge=0, le=255)]
Address = Annotated[bytes, Meta(max_length=16)]


class Relate(Body, frozen=True, tag=110):
    """What am I to you, and may I begin this with you? Answered by `Relation`.

    `source` is the asker's overlay address, `target` the other end's, both 4 or 16 bytes, `protocol` that of IP, `kind` the type of ICMP.
    With `source_port` it is about one flow, which the asker has begun.
    """

    source: Address
    target: Address
    protocol: Byte = 0
    port: Port = 0
    kind: Byte = 0
    source_port: Port = 0


class Relation(Body, frozen=True, tag=111):
    """The answer: nothing of others, no name of an interface, no address that the asker has not been told anyway.

    `flags` are those above, `wall` is this node's clock (seconds since the epoch), `lease_s` for how long its address is its own.
    """

    flags: Count
    wall: Count
    address: Annotated[bytes, Meta(max_length=4)]
    lease_s: Count
    settings: Count
    """The version of the network's settings, 0 for none."""
    allowed: bool
    rule: Annotated[str, Meta(max_length=60)]
    """What has decided that, as in the flow log."""
    direct: bool
    """Whether this node's path to the asker is direct."""
    mapping: NatKind
    filtering: NatKind
    came: Count = 0
    """Packets of that flow that came from the asker and were handed to the kernel ..."""
    went: Count = 0
    """... and those that the kernel has sent back."""
    refused: Count = 0
    """... and those from the asker that the policy here has dropped."""


class Reach(Body, frozen=True, tag=112):
    """Does this member answer you? Asked about one that does not answer the asker; answered by `Reached`."""

    ident: Ident


class Reached(Body, frozen=True, tag=113):
    """Whether it has, just now, over a link that there was already; and when the certificate that it has shown then ends (epoch)."""

    answered: bool
    ends: Count = 0
