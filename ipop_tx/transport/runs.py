"""Runs of datagrams as the kernel takes and gives them: UDP_SEGMENT and UDP_GRO (udp(7)), and the buffers between."""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Sequence

from ipop_tx.wire.datagram import HEADER_BYTES

UDP_SEGMENT, UDP_GRO = 103, 104
"""Socket options of level IPPROTO_UDP and types of ancillary data (linux/udp.h); not in the socket module."""

USUAL_SIZE = 1472
"""Bytes of a datagram that fills a link of MTU 1500 over IPv4."""
LEAST_SIZE = 512
"""Runs of shorter datagrams are not worth a `Scatter` of their own."""
MOST_SIZES = 16

ANCILLARY_BYTES = socket.CMSG_SPACE(4)
_SIZE = struct.Struct("=H")
_LARGEST = 65535
_SLACK = 32


class Scatter:
    """Where `recvmsg_into` puts a run of datagrams of `size` bytes: heads side by side, bodies side by side.

    The kernel fills `buffers` in order, head, body, head, body: so it does the sorting, while it copies anyway.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        count = _LARGEST // size + 1
        body = size - HEADER_BYTES
        self.heads = bytearray(HEADER_BYTES * count)
        self.bodies = memoryview(bytearray(body * count + _SLACK))
        heads = memoryview(self.heads)
        self.buffers = [
            part for place in range(count) for part in (heads[place * HEADER_BYTES :][:HEADER_BYTES], self.bodies[place * body :][:body])
        ]

    def flat(self, total: int) -> bytes:
        """The first `total` bytes as they came."""
        filled = -(-total // self.size) * 2
        return b"".join(self.buffers[:filled])[:total]

    def fill(self, run: bytes) -> None:
        """Put a run here as if it had been received here."""
        at = 0
        for buffer in self.buffers:
            part = run[at : at + len(buffer)]
            buffer[: len(part)] = part
            at += len(buffer)
            if at >= len(run):
                return


def segment_size(ancillary: Sequence[tuple[int, int, bytes]], total: int) -> int:
    """The size of the datagrams of a run that was received: `total` when the kernel joined none."""
    for level, kind, data in ancillary:
        if level == socket.IPPROTO_UDP and kind == UDP_GRO:
            return int.from_bytes(data, sys.byteorder)
    return total


def segment_ancillary(size: int) -> list[tuple[int, int, bytes]]:
    """Tells `sendmsg` to cut a run into datagrams of `size` bytes."""
    return [(socket.IPPROTO_UDP, UDP_SEGMENT, _SIZE.pack(size))]
