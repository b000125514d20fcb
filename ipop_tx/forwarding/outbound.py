"""Frames from the kernel to records on the wire. Functions stand in the order in which a frame travels.

Small frames that wait together and go to one peer become one bundle, as long as the width of the path allows. A super-frame becomes one
record, or several when it is longer than the width allows: then the headers are written once more before the payload of each part, over the end of
the part before it, which is sealed already. So nothing is copied but headers, and nothing waits for frames that have not come yet.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from ipop_tx.errors import BadDatagram
from ipop_tx.forwarding.fib import PACKED_HEAD, Adjacency, Fib
from ipop_tx.forwarding.neighbour import is_discovery
from ipop_tx.forwarding.offload import payload_at
from ipop_tx.interfaces import IFramePort, ITransport
from ipop_tx.wire.datagram import BUNDLE, FRAME, HEADER, HEADER_BYTES, MAX_PIECES, RELAY, TAG_BYTES, first_header, headers

BYTES_PER_TURN = 1 << 19
FRAMES_PER_TURN = 256
"""How much one wake-up reads at most, so that timers and datagrams get their turn."""
FRAMES_PER_BUNDLE = 128
RUN_BYTES = 65000
"""Most bytes of a run: what one UDP_SEGMENT send takes, with room for its headers."""

_OFFLOAD_HEAD = 10
_LARGEST = 66000
_PART = struct.Struct("<H")
_MORE = 0x8000
_TCP, _UDP = 6, 17


class Pieces:
    """The buffers of a record cut into pieces of one size: a header, a piece, a header, a piece, ..."""

    def __init__(self, heads: memoryview, sealed: memoryview, piece: int) -> None:
        self.most = min(MAX_PIECES, RUN_BYTES // (piece + HEADER_BYTES))
        """Most pieces that go in one send."""
        self.room = self.most * piece - TAG_BYTES
        """Bytes of plaintext that go in one send."""
        self.buffers = [
            part
            for place in range(self.most)
            for part in (heads[place * HEADER_BYTES :][:HEADER_BYTES], sealed[place * piece :][:piece])
        ]


class Narrow:
    """The buffers of the parts of a super-frame when each is one segment in one datagram: for one length of headers and of segments."""

    def __init__(self, frames: memoryview, sealed: memoryview, at: int, size: int) -> None:
        self.datagram = OVERHEAD_NARROW + at + size
        self.most = min(MAX_PIECES, RUN_BYTES // self.datagram)
        count = _LARGEST // size + 1
        self.plain = [frames[number * size : number * size + at + size] for number in range(count)]
        begins = [number * self.datagram for number in range(self.most)]
        self.begins = begins
        self.nonces = [sealed[begin + 4 : begin + HEADER_BYTES] for begin in begins]
        self.sealed = [sealed[begin + HEADER_BYTES : begin + self.datagram] for begin in begins]


OVERHEAD_NARROW = HEADER_BYTES + TAG_BYTES


class Outbound:
    """Reads frames from the port, seals them, sends them. `exceptional` takes the frames that are not simply for a peer."""

    def __init__(
        self,
        fib: Fib,
        port: IFramePort,
        transport: ITransport,
        exceptional: Callable[[bytes, memoryview], None],
        unreachable: Callable[[Adjacency, bytes], None],
        narrowed: Callable[[Adjacency, memoryview], None],
    ) -> None:
        self._fib = fib
        self._port = port
        self._transport = transport
        self._exceptional = exceptional
        self._unreachable = unreachable
        self._narrowed = narrowed
        self.held = False
        """Whether the port is paused because the transport is full."""
        self._target, self._origin = bytearray(6), bytearray(6)
        self._frames = memoryview(bytearray(2 * _LARGEST))
        self._sealed = memoryview(bytearray(2 * _LARGEST))
        self._inner = memoryview(bytearray(2 * _LARGEST))
        self._heads = memoryview(bytearray(HEADER_BYTES * MAX_PIECES))
        self._nonce = self._heads[4:HEADER_BYTES]
        self._pieces: dict[int, Pieces] = {}
        self._narrow: dict[tuple[int, int], Narrow] = {}

    # --- from the port -----------------------------------------------------------------------

    def frames_waiting(self) -> None:
        """Carry what waits, up to the bounds of one turn."""
        read, by_mac, view = self._port.readv, self._fib.by_mac, self._frames
        target, origin = self._target, self._origin
        end, lengths, peer, room = 0, [], None, 0
        left = BYTES_PER_TURN
        for _ in range(FRAMES_PER_TURN):
            if left <= 0 or self.held:
                break
            size = read((view[end : end + _OFFLOAD_HEAD], target, origin, view[end + _OFFLOAD_HEAD : end + _LARGEST]))
            if not size:
                break
            left -= size
            length = size - 12
            to = by_mac.get(bytes(target))
            if lengths and (to is not peer or end + length + 2 * len(lengths) > room or view[end + 1] or len(lengths) >= FRAMES_PER_BUNDLE):
                kept = bytes(view[end : end + length])
                self._flush(peer, lengths, end)
                view[:length] = kept
                end, lengths = 0, []
            frame = view[end : end + length]
            if to is None or not _is_carried(frame):
                self._exceptional(bytes(target), frame)
                continue
            to.tx_frames += 1
            to.tx_bytes += length
            if not to.reachable:
                self._unreachable(to, bytes(frame))
                continue
            if 0 < to.inner_mtu < self._port.mtu:
                self._narrowed(to, frame)
            if frame[1]:
                self.super_frame(to, length)
                continue
            if not lengths:
                peer, room = to, self._room(to)
            lengths.append(length)
            end += length
        if lengths:
            self._flush(peer, lengths, end)

    def send(self, peer: Adjacency, packed: bytes) -> None:
        """Carry one packed frame that waited, to a peer that is reachable."""
        length = len(packed)
        self._frames[:length] = packed
        if packed[1]:
            self.super_frame(peer, length)
        else:
            self._emit(peer, FRAME, self._frames[:length])

    def _hold(self) -> None:
        """The transport is full: frames wait in the kernel until it is drained."""
        self.held = True
        self._port.pause()

    def drained(self) -> None:
        """The transport takes more."""
        if self.held:
            self.held = False
            self._port.resume()

    def _room(self, peer: Adjacency) -> int:
        """Bytes of frames that a bundle for a peer may hold."""
        hop = peer.hop or peer
        return min(peer.width.pieces * hop.piece, 60000) - TAG_BYTES - len(peer.relay_header) - 4

    def _flush(self, peer: Adjacency | None, lengths: list[int], end: int) -> None:
        assert peer is not None
        frames, count = self._frames, len(lengths)
        if count == 1:
            self._emit(peer, FRAME, frames[:end])
        else:
            struct.pack_into(f"!{count}HH", frames, end, *lengths, count)
            self._emit(peer, BUNDLE, frames[: end + 2 * count + 2])

    # --- super-frames ------------------------------------------------------------------------

    def super_frame(self, peer: Adjacency, length: int) -> None:
        """Seal the super-frame at the beginning of the buffer, in as few records as the width allows."""
        frames = self._frames
        hop = peer.hop or peer
        extra = TAG_BYTES if peer.hop is None else TAG_BYTES + OVERHEAD_NARROW + len(peer.relay_header)
        room = min(peer.width.pieces * hop.piece, self._plan(hop.piece).room) - extra
        if length <= room:
            _PART.pack_into(frames, 2, 0)
            self._emit(peer, FRAME, frames[:length])
            return
        try:
            at = payload_at(frames, length)
        except BadDatagram:
            return
        size = int.from_bytes(frames[4:6], "little")
        each = max(1, (room - at) // size)
        if each == 1 and peer.hop is None and at + size + TAG_BYTES <= peer.piece:
            self._segment_by_segment(peer, at, size, length)
        else:
            self._in_parts(peer, at, size, each, length)

    def _in_parts(self, peer: Adjacency, at: int, size: int, each: int, length: int) -> None:
        frames, before = self._frames, bytearray(self._frames[:at])
        count = -(-(length - at) // size)
        for first in range(0, count, each):
            begin = first * size
            end = min(begin + at + each * size, length)
            _PART.pack_into(before, 2, first | (_MORE if end < length else 0))
            frames[begin : begin + at] = before
            self._emit(peer, FRAME, frames[begin:end])

    def _segment_by_segment(self, peer: Adjacency, at: int, size: int, length: int) -> None:
        """Width 1: every segment is a record of one datagram; many go in one send."""
        channel = peer.channel
        assert channel is not None and peer.endpoint is not None
        plan = self._narrow_plan(at, size)
        frames, sealed, encrypt = self._frames, self._sealed, channel.encrypt
        before = bytearray(frames[:at])
        count = -(-(length - at) // size)
        counter = channel.reserve(count)
        peer.tx_records += count
        peer.tx_pieces += count
        first = 0
        while first < count:
            many = min(plan.most, count - first)
            whole = many if first + many < count or length == at + count * size else many - 1
            for begin, nonce, plain, into in zip(plan.begins[:whole], plan.nonces, plan.plain[first:], plan.sealed, strict=False):
                HEADER.pack_into(sealed, begin, channel.send_index, FRAME, 0, 1, 0, counter)
                _PART.pack_into(before, 2, first | _MORE if first + 1 < count else first)
                plain[:at] = before
                encrypt(nonce, plain, None, into)
                counter += 1
                first += 1
            total = whole * plan.datagram
            if whole < many:  # the last segment of the super-frame is shorter
                plain = frames[first * size : length]
                HEADER.pack_into(sealed, total, channel.send_index, FRAME, 0, 1, 0, counter)
                _PART.pack_into(before, 2, first)
                plain[:at] = before
                end = total + OVERHEAD_NARROW + len(plain)
                encrypt(sealed[total + 4 : total + HEADER_BYTES], plain, None, sealed[total + HEADER_BYTES : end])
                first += 1
                total = end
            if not self._transport.write_run(peer.endpoint, (sealed[:total],), plan.datagram, total):
                self._hold()

    def _narrow_plan(self, at: int, size: int) -> Narrow:
        plan = self._narrow.get((at, size))
        if plan is None:
            if len(self._narrow) >= 8:
                self._narrow.clear()
            plan = self._narrow[at, size] = Narrow(self._frames, self._sealed, at, size)
        return plan

    # --- records -----------------------------------------------------------------------------

    def _emit(self, peer: Adjacency, kind: int, plain: memoryview) -> None:
        """Seal one record for a peer and send it, directly or in a record for its relay."""
        hop = peer.hop
        if hop is None:
            if not self.record(peer, kind, plain):
                self._hold()
            return
        channel, inner, header = peer.channel, self._inner, peer.relay_header
        assert channel is not None
        begin = len(header)
        body, end = begin + HEADER_BYTES, begin + OVERHEAD_NARROW + len(plain)
        inner[:begin] = header
        HEADER.pack_into(inner, begin, channel.send_index, kind, 0, 1, 0, channel.reserve(1))
        channel.encrypt(inner[begin + 4 : body], plain, None, inner[body:end])
        peer.tx_records += 1
        peer.tx_pieces += -(-end // hop.piece)
        if not self.record(hop, RELAY, inner[:end]):
            self._hold()

    def record(self, peer: Adjacency, kind: int, plain: memoryview) -> bool:
        """Seal one record for a peer with an endpoint, cut it into pieces and send them. False when the transport is full."""
        channel, endpoint, piece = peer.channel, peer.endpoint, peer.piece
        if channel is None or endpoint is None:
            return True
        size = len(plain) + TAG_BYTES
        pieces = -(-size // piece)
        plan = self._pieces.get(piece) or self._plan(piece)
        if pieces > MAX_PIECES:
            return True
        peer.tx_records += 1
        peer.tx_pieces += pieces
        self._heads[: HEADER_BYTES * pieces] = headers(first_header(channel.send_index, kind, pieces, channel.reserve(1)), pieces)
        channel.encrypt(self._nonce, plain, None, self._sealed[:size])
        if pieces > plan.most:
            return self._long_record(endpoint, plan, piece, size)
        buffers = plan.buffers[: 2 * pieces]
        buffers[-1] = self._sealed[(pieces - 1) * piece : size]
        return self._transport.write_run(endpoint, buffers, piece + HEADER_BYTES, size + HEADER_BYTES * pieces)

    def _long_record(self, endpoint: object, plan: Pieces, piece: int, size: int) -> bool:
        """A record for which one send is not enough: a relayed one that meets a narrower path on its way."""
        going = True
        pieces = -(-size // piece)
        for first in range(0, pieces, plan.most):
            last = min(first + plan.most, pieces)
            buffers = [
                part
                for place in range(first, last)
                for part in (
                    self._heads[place * HEADER_BYTES :][:HEADER_BYTES],
                    self._sealed[place * piece : min((place + 1) * piece, size)],
                )
            ]
            going = self._transport.write_run(endpoint, buffers, piece + HEADER_BYTES, sum(map(len, buffers))) and going
        return going

    def _plan(self, piece: int) -> Pieces:
        plan = self._pieces.get(piece)
        if plan is None:
            if len(self._pieces) >= 16:
                self._pieces.clear()
            plan = self._pieces[piece] = Pieces(self._heads, self._sealed, piece)
        return plan


def _is_carried(frame: memoryview) -> bool:
    """Whether a packed frame goes to a peer as it is: IP, but no neighbour discovery."""
    if len(frame) < PACKED_HEAD + 20:
        return False
    high, low = frame[10], frame[11]
    if high == 0x08 and low == 0x00:
        return True
    if high != 0x86 or low != 0xDD:
        return False
    return frame[PACKED_HEAD + 6] in (_TCP, _UDP) or not is_discovery(bytes(14) + frame[PACKED_HEAD:])
