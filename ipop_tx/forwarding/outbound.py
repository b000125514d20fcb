"""Frames from the kernel to records. Functions stand in the order in which a frame travels.

Small frames that wait together and go to one peer become one bundle, as long as the width of the path allows. A super-frame becomes
one record, or several when it is longer than that: then its headers are written once more before the payload of each part, over the end of
the part before it, which is sealed already. So nothing is copied but headers, and nothing waits for frames that have not come yet.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from ipop_tx.errors import BadDatagram
from ipop_tx.forwarding.fib import PACKED_HEAD, Adjacency, Fib
from ipop_tx.forwarding.neighbour import is_discovery
from ipop_tx.forwarding.offload import HEAD, PART, payload_at
from ipop_tx.forwarding.sealing import LARGEST, MORE, Sealing
from ipop_tx.interfaces import IFramePort
from ipop_tx.wire.datagram import BUNDLE, FRAME, TAG_BYTES

BYTES_PER_TURN = 1 << 19
FRAMES_PER_TURN = 256
"""How much one wake-up reads at most, so that timers and datagrams get their turn."""
FRAMES_PER_BUNDLE = 128

_MACS = 12
_LEAST = HEAD.size + _MACS + 2  # up to the ethertype
_TCP, _UDP = 6, 17


class Outbound:
    """Reads frames from the port and has them sealed.

    `exceptional` takes the frames that are not simply for a peer (both MACs, packed frame), `unreachable` those for a peer that
    cannot be reached yet; `narrowed` sees frames for a peer whose path is narrower than the port, and may change them.
    """

    def __init__(
        self,
        fib: Fib,
        port: IFramePort,
        sealing: Sealing,
        exceptional: Callable[[bytes, memoryview], None],
        unreachable: Callable[[Adjacency, bytes], None],
        narrowed: Callable[[Adjacency, memoryview], None],
    ) -> None:
        self.held = False
        """Whether the port is paused because the transport is full."""
        self._fib = fib
        self._port = port
        self._sealing = sealing
        self._exceptional = exceptional
        self._unreachable = unreachable
        self._narrowed = narrowed
        self._target, self._origin = bytearray(6), bytearray(6)
        self._frames = memoryview(bytearray(2 * LARGEST))

    def frames_waiting(self) -> None:
        """Carry what waits, up to the bounds of one turn."""
        read, by_mac, frames, widest = self._port.readv, self._fib.by_mac, self._frames, self._port.mtu
        target, origin = self._target, self._origin
        lengths: list[int] = []
        peer: Adjacency | None = None
        end, room, left = 0, 0, BYTES_PER_TURN
        for _ in range(FRAMES_PER_TURN):
            if left <= 0 or self.held:
                break
            size = read((frames[end : end + HEAD.size], target, origin, frames[end + HEAD.size : end + LARGEST]))
            if size < _LEAST:
                if not size:
                    break
                self._exceptional(bytes(target + origin), frames[end:end])
                continue
            left -= size
            length = size - _MACS
            to = by_mac.get(bytes(target))
            alone = to is None or not to.reachable or frames[end + 1]
            if lengths and (alone or to is not peer or end + length > room - 2 * len(lengths) or len(lengths) == FRAMES_PER_BUNDLE):
                kept = bytes(frames[end : end + length])
                self._bundle(peer, lengths, end)
                frames[:length] = kept
                end, lengths = 0, []
            frame = frames[end : end + length]
            if to is None or not _is_carried(frame):
                self._exceptional(bytes(target + origin), frame)
                continue
            to.tx_frames += 1
            to.tx_bytes += length
            if 0 < to.inner_mtu < widest:
                self._narrowed(to, frame)
            if not alone:
                if not lengths:
                    peer, room = to, self._sealing.room(to) - 4
                lengths.append(length)
                end += length
            elif to.reachable:
                self._super_frame(to, length)
            else:
                self._unreachable(to, bytes(frame))
        if lengths:
            self._bundle(peer, lengths, end)

    def _bundle(self, peer: Adjacency | None, lengths: list[int], end: int) -> None:
        assert peer is not None
        frames, count = self._frames, len(lengths)
        if count == 1:
            self._seal(peer, FRAME, frames[:end])
        else:
            struct.pack_into(f"!{count}HH", frames, end, *lengths, count)
            self._seal(peer, BUNDLE, frames[: end + 2 * count + 2])

    def _super_frame(self, peer: Adjacency, length: int) -> None:
        """Seal the super-frame at the beginning of the buffer, in as few records as the width allows."""
        frames = self._frames
        room = self._sealing.room(peer)
        if length <= room:
            PART.pack_into(frames, 2, 0)
            self._seal(peer, FRAME, frames[:length])
            return
        try:
            at = payload_at(frames, length)
        except BadDatagram:  # the kernel does not make such frames
            return
        size = int.from_bytes(frames[4:6], "little")
        each = max(1, (room - at) // size)
        if each == 1 and peer.hop is None and at + size + TAG_BYTES <= peer.piece:
            self._go_on(self._sealing.segments(peer, frames, at, size, length))
        else:
            self._in_parts(peer, at, size, each, length)

    def _in_parts(self, peer: Adjacency, at: int, size: int, each: int, length: int) -> None:
        """`each` segments of `size` bytes to a record."""
        frames, before = self._frames, bytearray(self._frames[:at])
        for first in range(0, -(-(length - at) // size), each):
            begin = first * size
            end = min(begin + at + each * size, length)
            PART.pack_into(before, 2, first | (MORE if end < length else 0))
            frames[begin : begin + at] = before
            self._seal(peer, FRAME, frames[begin:end])

    def send(self, peer: Adjacency, packed: bytes) -> None:
        """Carry one packed frame that waited, to a peer that is reachable."""
        length = len(packed)
        self._frames[:length] = packed
        if packed[1]:
            self._super_frame(peer, length)
        else:
            self._seal(peer, FRAME, self._frames[:length])

    def _seal(self, peer: Adjacency, kind: int, plain: memoryview) -> None:
        self._go_on(self._sealing.traffic(peer, kind, plain))

    def _go_on(self, takes_more: bool) -> None:
        """When the transport is full, frames wait in the kernel until it is drained."""
        if not takes_more and not self.held:
            self.held = True
            self._port.pause()

    def drained(self) -> None:
        """The transport takes more."""
        if self.held:
            self.held = False
            self._port.resume()


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
