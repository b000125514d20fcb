"""What kind of datagram this is, by its first byte (RFC 7983), and the kinds of sealed payload."""

from __future__ import annotations

from enum import Enum

CONTROL = 1
"""A control message: `ipop_tx.wire.messages`."""
FRAME = 2
"""One Ethernet frame."""
RELAY = 3
"""A datagram for somebody else: `ipop_tx.wire.relay`."""

OVERHEAD = 32
"""Bytes that sealing adds: 16 of header, 16 of tag."""

DATAGRAM_LIMIT = 1200
"""Largest handshake or control datagram in bytes before relaying adds its header; fits the minimum MTU of IPv6."""


class Form(Enum):
    """The families of datagrams that may arrive at one port."""

    HANDSHAKE = "handshake"
    SEALED = "sealed"
    OTHER = "other"


def form_of(datagram: bytes | memoryview) -> Form:
    """Classify a datagram; never raises."""
    if not datagram:
        return Form.OTHER
    first = datagram[0]
    if 128 <= first <= 191:
        return Form.SEALED
    if 20 <= first <= 63:
        return Form.HANDSHAKE
    return Form.OTHER


def receiver_index(datagram: bytes | memoryview) -> int:
    """The receiver index of a sealed datagram; 0, which nobody has, for a short one."""
    return int.from_bytes(datagram[:4], "big") if len(datagram) >= OVERHEAD else 0
