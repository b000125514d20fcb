"""Runs of datagrams on a stream of bytes, and off it.

```
 0        2       4
 +--------+-------+-----------------------------------------------
 | total  | size  |  `total` bytes: datagrams of `size` bytes each, of which the last may be shorter
 +--------+-------+-----------------------------------------------
```

Both numbers are big-endian. A single datagram is a run of one: both numbers are its length. A run is what the data plane seals with
one call and hands over with one call, so it also crosses the stream as one: a header for each datagram would be work for each segment.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache

from ipop_tx.errors import BadDatagram
from ipop_tx.interfaces import IDatagramReceiver
from ipop_tx.transport.native import Layout
from ipop_tx.values import Endpoint
from ipop_tx.wire.datagram import HEADER_BYTES, MAX_PIECES, RUN_BYTES

HEAD = struct.Struct("!HH")
LARGEST = HEAD.size + RUN_BYTES
"""Bytes of the longest frame."""


def framed(buffers: Sequence[bytes | memoryview], size: int, total: int) -> bytes:
    """The frame of a run; see `ITransport.write_run`."""
    head = HEAD.pack(total, min(size, total))
    if len(buffers) == 1:
        return b"".join((head, buffers[0][:total]))
    if isinstance(buffers, Layout):  # it is as long as the longest run, and knows what a shorter one fills
        count, left = buffers.filled(size, total)
        if left > 0:
            return b"".join([head, *buffers[: count - 1], buffers[count - 1][:left]])
    return b"".join([head, b"".join(buffers)[:total]])


def unframed(data: memoryview) -> tuple[list[tuple[int, memoryview]], int]:
    """The runs at the beginning of `data`, each with the size of its datagrams, and how many bytes they take.

    An unfinished frame may follow. The runs are views of `data`. Raises `BadDatagram` at what is no frame.
    """
    found, at, end = [], 0, len(data)
    while end - at >= HEAD.size:
        total, size = HEAD.unpack_from(data, at)
        if not 0 < size <= total <= RUN_BYTES or -(-total // size) > MAX_PIECES:
            raise BadDatagram("a frame of a stream makes no sense")
        stop = at + HEAD.size + total
        if stop > end:
            break
        found.append((size, data[at + HEAD.size : stop]))
        at = stop
    return found, at


def deliver(receiver: IDatagramReceiver, endpoint: Endpoint, size: int, run: memoryview) -> None:
    """Hand a run to a receiver: heads side by side, bodies side by side."""
    total = len(run)
    if size == total or size <= HEADER_BYTES:
        for at in range(0, total, size):
            receiver.datagram_received(endpoint, run[at : at + size])
        return
    whole = total // size
    parts: tuple[bytes | memoryview, ...] = _cutter(size, whole).unpack_from(run)
    if whole * size < total:
        parts += (run[whole * size :][:HEADER_BYTES], run[whole * size + HEADER_BYTES :])
    heads, bodies = bytearray().join(parts[::2]), bytearray().join(parts[1::2])
    receiver.run_received(endpoint, heads, memoryview(bodies), size, total)


@lru_cache(maxsize=256)
def _cutter(size: int, count: int) -> struct.Struct:
    """Takes datagrams apart in one call: head, body, head, body, ..."""
    return struct.Struct(f"{HEADER_BYTES}s{size - HEADER_BYTES}s" * count)
