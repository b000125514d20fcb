"""Field types that messages share, with the limits that decoding enforces."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

Ident = Annotated[bytes, Meta(min_length=20, max_length=20)]
Key = Annotated[bytes, Meta(min_length=20, max_length=20)]
PublicKey = Annotated[bytes, Meta(min_length=32, max_length=32)]
Small = Annotated[bytes, Meta(max_length=128)]
Signatures = Annotated[bytes, Meta(max_length=2048)]
"""Of the authority, by one key or several: each key (compressed SEC 1 point) with its signature (ECDSA, DER), as a MessagePack list."""
Signer = Annotated[bytes, Meta(max_length=2048)]
"""What a signature is checked with: public key and salt, or the certificates of a node whose address is assigned."""
Nonce = Annotated[bytes, Meta(max_length=16)]
Name = Annotated[str, Meta(max_length=63)]
EndpointText = Annotated[str, Meta(max_length=100)]
Count = Annotated[int, Meta(ge=0, le=2**62)]
NatKind = Annotated[int, Meta(ge=0, le=255)]
Members = Annotated[tuple[Ident, ...], Meta(max_length=16)]
Neighbourhood = Annotated[tuple[Ident, ...], Meta(max_length=64)]
Endpoints = Annotated[tuple[EndpointText, ...], Meta(max_length=16)]
Ports = Annotated[tuple[Annotated[int, Meta(ge=1, le=65535)], ...], Meta(max_length=64)]

MAX_VALUE = 1024
"""Largest value of a register, and largest payload of a broadcast, in bytes."""

MAX_PADDING = 9000
"""Most bytes of padding in a path challenge; as much as the largest usual Ethernet frame holds."""


class Body(Struct, frozen=True, array_like=True):
    """What all messages are: a MessagePack array whose first element is the message's number."""
