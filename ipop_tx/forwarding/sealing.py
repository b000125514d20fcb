"""Records to datagrams: sealed, cut into pieces, sent directly or by way of a relay.

Nothing is allocated for a segment but small numbers: all buffers, and their slices for one size of pieces, are made once.
"""

from __future__ import annotations

from ipop_tx.forwarding.fib import Adjacency
from ipop_tx.forwarding.offload import PART
from ipop_tx.interfaces import ITransport
from ipop_tx.values import Endpoint
from ipop_tx.wire.datagram import FRAME, HEADER, HEADER_BYTES, MAX_PIECES, OVERHEAD, RELAY, RUN_BYTES, TAG_BYTES, headers

LARGEST = 66000
"""Bytes of the longest record: a frame of 64 KiB and what relaying adds."""
PLANS = 16
"""Sizes for which buffers are kept."""
MORE = 0x8000
"""Bit of a packed frame's `part`: more of the super-frame comes in other records."""


class Pieces:
    """The buffers of a record cut into pieces of one size: a header, a piece, a header, a piece, ..."""

    def __init__(self, transport: ITransport, heads: memoryview, sealed: memoryview, piece: int) -> None:
        self.most = min(MAX_PIECES, RUN_BYTES // (piece + HEADER_BYTES))
        """Most pieces that go in one send."""
        self.buffers = transport.layout(
            [part for place in range(self.most) for part in (heads[place * HEADER_BYTES :][:HEADER_BYTES], sealed[place * piece :][:piece])]
        )


class Narrow:
    """The buffers of the parts of a super-frame when each is one segment in one datagram: for one length of headers and of segments."""

    def __init__(self, sealed: memoryview, at: int, size: int) -> None:
        self.datagram = OVERHEAD + at + size
        self.most = min(MAX_PIECES, RUN_BYTES // self.datagram)
        self.begins = [place * self.datagram for place in range(self.most)]
        self.nonces = [sealed[begin + 4 : begin + HEADER_BYTES] for begin in self.begins]
        self.sealed = [sealed[begin + HEADER_BYTES : begin + self.datagram] for begin in self.begins]


class Sealing:
    """Seals for peers. Every method says whether the transport takes more; False: nothing is lost, but wait for `drained`."""

    def __init__(self, transport: ITransport) -> None:
        self._transport = transport
        self._sealed = memoryview(bytearray(2 * LARGEST))
        self._flat = transport.layout([self._sealed])
        self._nested = memoryview(bytearray(2 * LARGEST))
        self._heads = memoryview(bytearray(HEADER_BYTES * MAX_PIECES))
        self._nonce = self._heads[4:HEADER_BYTES]
        self._pieces: dict[int, Pieces] = {}
        self._narrow: dict[tuple[int, int], Narrow] = {}

    def traffic(self, peer: Adjacency, kind: int, plain: memoryview) -> bool:
        """Seal one record for a peer that is reachable; if there is no direct path, once more for the relay."""
        hop, channel = peer.hop, peer.channel
        if hop is None or channel is None:
            return self.record(peer, kind, plain)
        nested, header = self._nested, peer.relay_header
        begin = len(header)
        end = begin + OVERHEAD + len(plain)
        nested[:begin] = header
        HEADER.pack_into(nested, begin, channel.send_index, kind, 0, 1, 0, channel.reserve(1))
        channel.encrypt(nested[begin + 4 : begin + HEADER_BYTES], plain, None, nested[begin + HEADER_BYTES : end])
        peer.tx_records += 1
        peer.tx_pieces += -(-end // hop.piece)
        return self.record(hop, RELAY, nested[:end])

    def record(self, peer: Adjacency, kind: int, plain: memoryview) -> bool:
        """Seal one record for a peer with a direct path, cut it into pieces and send them."""
        channel, endpoint, piece = peer.channel, peer.endpoint, peer.piece
        size = len(plain) + TAG_BYTES
        pieces = -(-size // piece)
        if channel is None or endpoint is None or pieces > MAX_PIECES:
            return True
        peer.tx_records += 1
        peer.tx_pieces += pieces
        header = HEADER.pack(channel.send_index, kind, 0, pieces, 0, channel.reserve(1))
        self._heads[: HEADER_BYTES * pieces] = headers(header, pieces)
        channel.encrypt(self._nonce, plain, None, self._sealed[:size])
        plan = self._pieces.get(piece) or self._plan(piece)
        if pieces > plan.most:
            return self._long_record(peer.carrier, endpoint, plan, piece, size)
        return peer.carrier.write_run(endpoint, plan.buffers, piece + HEADER_BYTES, size + HEADER_BYTES * pieces)

    def _long_record(self, carrier: ITransport, endpoint: Endpoint, plan: Pieces, piece: int, size: int) -> bool:
        """A record for which one send is not enough: a relayed one that meets a narrower path on its way."""
        going, pieces = True, -(-size // piece)
        for first in range(0, pieces, plan.most):
            buffers = []
            for place in range(first, min(first + plan.most, pieces)):
                buffers.append(self._heads[place * HEADER_BYTES :][:HEADER_BYTES])
                buffers.append(self._sealed[place * piece : min((place + 1) * piece, size)])
            going = carrier.write_run(endpoint, buffers, piece + HEADER_BYTES, sum(map(len, buffers))) and going
        return going

    def _plan(self, piece: int) -> Pieces:
        if len(self._pieces) >= PLANS:
            self._pieces.clear()
        return self._pieces.setdefault(piece, Pieces(self._transport, self._heads, self._sealed, piece))

    def segments(self, peer: Adjacency, frames: memoryview, at: int, size: int, length: int) -> bool:
        """The super-frame `frames[:length]` at width 1: each segment of `size` bytes is a record in one datagram; many go in one send.

        The frame's payload begins at `at`. Its buffer is written to: see `ipop_tx.forwarding.outbound`.
        """
        channel, endpoint = peer.channel, peer.endpoint
        assert channel is not None and endpoint is not None
        plan, sealed = self._narrow.get((at, size)) or self._narrow_plan(at, size), self._sealed
        before, count = bytearray(frames[:at]), -(-(length - at) // size)
        index, encrypt, counter = channel.send_index, channel.encrypt, channel.reserve(count)
        peer.tx_records += count
        peer.tx_pieces += count
        going, first = True, 0
        while first < count:
            total = 0
            for begin, nonce, into in zip(plan.begins, plan.nonces, plan.sealed, strict=True):
                HEADER.pack_into(sealed, begin, index, FRAME, 0, 1, 0, counter + first)
                plain = frames[first * size : first * size + at + size]
                if (first + 1) * size + at >= length:  # the last segment may be shorter
                    plain = frames[first * size : length]
                    into = into[: len(plain) + TAG_BYTES]
                    PART.pack_into(before, 2, first)
                else:
                    PART.pack_into(before, 2, first | MORE)
                plain[:at] = before
                encrypt(nonce, plain, None, into)
                first += 1
                total = begin + HEADER_BYTES + len(into)
                if first == count:
                    break
            going = peer.carrier.write_run(endpoint, self._flat, plan.datagram, total) and going
        return going

    def _narrow_plan(self, at: int, size: int) -> Narrow:
        if len(self._narrow) >= PLANS:
            self._narrow.clear()
        return self._narrow.setdefault((at, size), Narrow(self._sealed, at, size))
