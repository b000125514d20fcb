r"""What kind of datagram this is, by its first byte (RFC 7983), and the header of sealed ones.

A sealed *record* travels in one or more *pieces*, datagrams of one length of which the last may be shorter. Each has this header:

```
0               4      5       6        7       8                  16
+---------------+------+-------+--------+-------+-------------------+-------------------
| receiver index| kind | piece | pieces | flags |  counter          | piece of the record
+---------------+------+-------+--------+-------+-------------------+-------------------
  10xxxxxx ...   \__ bytes 4-15 of piece 0 are the AEAD nonce ______/
```
"""

from __future__ import annotations

import struct
from enum import Enum

CONTROL = 1
"""A control message: `ipop_tx.wire.messages`."""
FRAME = 2
"""One packed frame: `ipop_tx.forwarding.offload`."""
RELAY = 3
"""A datagram for somebody else: `ipop_tx.wire.relay`."""
BUNDLE = 4
"""Several packed frames, then their lengths (2 bytes each), then their number (2 bytes)."""

HEADER = struct.Struct("!IBBBBQ")
"""Receiver index, kind, number of this piece, number of pieces, flags (0), counter."""
HEADER_BYTES = 16
TAG_BYTES = 16
OVERHEAD = HEADER_BYTES + TAG_BYTES
"""Bytes that sealing adds to a payload in one piece."""

MAX_PIECES = 64
"""Most pieces of a record."""

RUN_BYTES = 65000
"""Most bytes that a transport sends at once: what one UDP_SEGMENT send takes, with room for its headers."""

DATAGRAM_LIMIT = 1200
"""Largest handshake or control datagram in bytes before relaying adds its header; fits the minimum MTU of IPv6."""

PIECE_AT, PIECES_AT, COUNTER_AT = 5, 6, 8
"""Where a header has the number of its piece, that of all pieces, and the counter, which is the last."""
_NUMBERS = [bytes(range(pieces)) for pieces in range(MAX_PIECES + 1)]


def headers(first: bytes | bytearray, pieces: int) -> bytearray:
    """The headers of all pieces of a record side by side, from that of piece 0: they differ in the number only."""
    block = bytearray(first * pieces)
    block[PIECE_AT::HEADER_BYTES] = _NUMBERS[pieces]
    return block


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
