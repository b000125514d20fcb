"""Where a run of datagrams is received: heads side by side, bodies side by side."""

from __future__ import annotations

from ipop_tx.transport.native import Layout
from ipop_tx.wire.datagram import HEADER_BYTES

USUAL_SIZE = 1472
"""Bytes of a datagram that fills a link of MTU 1500 over IPv4."""
LEAST_SIZE = 512
"""Runs of shorter datagrams are not worth a `Scatter` of their own."""
MOST_SIZES = 16

_LARGEST = 65535
_SLACK = 32


class Scatter:
    """Buffers for a run of datagrams of `size` bytes.

    The kernel fills them in order, head, body, head, body: so it does the sorting, while it copies anyway.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        count = _LARGEST // size + 1
        body = size - HEADER_BYTES
        self.heads = bytearray(HEADER_BYTES * count)
        self.bodies = memoryview(bytearray(body * count + _SLACK))
        heads = memoryview(self.heads)
        self.buffers = Layout(
            [part for place in range(count) for part in (heads[place * HEADER_BYTES :][:HEADER_BYTES], self.bodies[place * body :][:body])]
        )

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
