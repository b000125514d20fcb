"""Frames from the kernel to records. Functions stand in the order in which a frame travels.

Small frames that wait together and go to one peer become one bundle, as long as the width of the path allows. A super-frame becomes
one record, or several when it is longer than that: then its headers are written once more before the payload of each part, over the end of
the part before it, which is sealed already. So nothing is copied but headers, and nothing waits for frames that have not come yet.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from ipop_tx.errors import BadDatagram
from ipop_tx.forwarding.counting import Counting
from ipop_tx.forwarding.dhcp import PORTS, SERVER_PORT, is_dhcp
from ipop_tx.forwarding.fib import PACKED_HEAD, Adjacency, Fib
from ipop_tx.forwarding.neighbour import is_discovery
from ipop_tx.forwarding.offload import HEAD, PART, payload_at
from ipop_tx.forwarding.policing import Policing
from ipop_tx.forwarding.sealing import LARGEST, MORE, Sealing
from ipop_tx.interfaces import IFramePort
from ipop_tx.wire.datagram import BUNDLE, FRAME, TAG_BYTES

BYTES_PER_TURN = 1 << 19
FRAMES_PER_TURN = 256
"""How much one wake-up reads at most, so that timers and datagrams get their turn."""
FRAMES_PER_BUNDLE = 128

_MACS = 12
_LEAST = HEAD.size + _MACS + 2  # up to the ethertype
_IPV6 = b"\x86\xdd"
_IPV4 = b"\x08\x00"
_TCP, _UDP = 6, 17
_PLAIN = 0x45  # version and header length of most IPv4 packets


class Outbound:
    """Reads frames from the port and has them sealed.

    `exceptional` takes the frames that are not simply for a peer (both MACs, packed frame), `unreachable` those for a peer that
    cannot be reached yet; `narrowed` sees frames for a peer whose path is narrower than the port, and may change them; `refused` counts
    those that the policy does not allow.
    """

    def __init__(
        self,
        fib: Fib,
        port: IFramePort,
        sealing: Sealing,
        exceptional: Callable[[bytes, memoryview], None],
        unreachable: Callable[[Adjacency, bytes], None],
        narrowed: Callable[[Adjacency, memoryview], None],
        refused: Callable[[Adjacency, memoryview], None],
    ) -> None:
        self.held = False
        """Whether the port is paused because the transport is full."""
        self.waiting: Callable[[], None] = lambda: None
        """Sends what has waited longer than the frames in the port; it is called before that is resumed."""
        self.policing: Policing | None = None
        """Says which frames may leave; None: all."""
        self.counting: Counting | None = None
        """Counts what leaves, where a flow log is wanted."""
        self._refused = refused
        self._fib = fib
        self._port = port
        self._sealing = sealing
        self._exceptional = exceptional
        self._unreachable = unreachable
        self._narrowed = narrowed
        self._target, self._origin = bytearray(6), bytearray(6)
        self._frame = memoryview(bytearray(2 * LARGEST))
        self._buffers = (self._frame[: HEAD.size], self._target, self._origin, self._frame[HEAD.size : LARGEST])
        # The bundle that is being filled: whose, its frames, their lengths, where they end.
        self._peer: Adjacency | None = None
        self._bundle = memoryview(bytearray(2 * LARGEST))
        self._lengths: list[int] = []
        self._end = 0

    def frames_waiting(self) -> None:
        """Carry what waits, up to the bounds of one turn."""
        read, buffers, by_mac, target = self._port.readv, self._buffers, self._fib.by_mac, self._target
        left = BYTES_PER_TURN
        for _ in range(FRAMES_PER_TURN):
            if left <= 0 or self.held:
                break
            size = read(buffers)
            if size < _LEAST:
                if not size:
                    break
                self._exceptional(bytes(target + self._origin), self._frame[:0])
                continue
            left -= size
            self._carry(by_mac.get(bytes(target)), size - _MACS)
        if self._lengths:
            self._flush()

    def _carry(self, peer: Adjacency | None, length: int) -> None:
        """The frame in the buffer, for a peer if the FIB knows one. Frames of one peer never overtake each other."""
        frame, whole, counting, tally = self._frame[:length], self._frame, self.counting, None
        if counting is not None and peer is not None:
            sent = peer.tallies.sent_tcp if whole[21] == _TCP else peer.tallies.sent
            tally = sent.get(bytes(whole[24:36] if whole[12] == _PLAIN else whole[18:56]))
        # What is not UDP, or from and to other ports than DHCP's, is told here; behind IPv4 options, and for certain, by `_is_carried`.
        # What has a tally has been looked at before.
        if peer is not None and (
            tally is not None
            or (
                frame[10:12] == _IPV4
                and (whole[21] != _UDP or (whole[35] not in PORTS and whole[33] != SERVER_PORT and whole[12] == _PLAIN))
            )
            or _is_carried(frame)
        ):
            if self.policing is not None and not self.policing.admits(peer, frame, False):
                self._refused(peer, frame)
                return
            peer.tx_frames += 1
            peer.tx_bytes += length
            if counting is not None:
                if tally is None:
                    tally = counting.begin(peer, frame, False)
                if whole[1]:
                    if not tally.segment:
                        tally.segment = whole[4] | whole[5] << 8
                    tally.supers += 1
                    tally.large += length
                else:
                    tally.frames += 1
                    tally.bytes += length
            if 0 < peer.inner_mtu < self._port.mtu:
                self._narrowed(peer, frame)
            if peer.reachable and not frame[1]:
                self._add(peer, frame, length)
            else:
                self._alone(peer, frame, length)
        else:
            if self._lengths:
                self._flush()
            self._exceptional(bytes(self._target + self._origin), frame)

    def _alone(self, peer: Adjacency, frame: memoryview, length: int) -> None:
        """What is in no bundle: a super-frame, or a frame that has to wait."""
        if self._lengths:
            self._flush()
        if peer.reachable:
            self._super_frame(peer, length)
        else:
            self._unreachable(peer, bytes(frame))

    def _add(self, peer: Adjacency, frame: memoryview, length: int) -> None:
        """Put an ordinary frame into the bundle; what is in the way of that is sealed first."""
        count = len(self._lengths)
        if count and (peer is not self._peer or self._end + length > peer.room - 4 - 2 * count or count == FRAMES_PER_BUNDLE):
            self._flush()
        self._peer = peer
        self._bundle[self._end : self._end + length] = frame
        self._lengths.append(length)
        self._end += length

    def _flush(self) -> None:
        """Seal the bundle; one frame needs no list of lengths."""
        peer, lengths, end, bundle = self._peer, self._lengths, self._end, self._bundle
        assert peer is not None
        count = len(lengths)
        self._lengths, self._end = [], 0
        if count == 1:
            self._seal(peer, FRAME, bundle[:end])
        else:
            struct.pack_into(f"!{count}HH", bundle, end, *lengths, count)
            self._seal(peer, BUNDLE, bundle[: end + 2 * count + 2])

    def _super_frame(self, peer: Adjacency, length: int) -> None:
        """Seal the super-frame in the buffer, in as few records as the width allows."""
        frame = self._frame
        if length <= peer.room:
            PART.pack_into(frame, 2, 0)
            self._seal(peer, FRAME, frame[:length])
            return
        try:
            at = payload_at(frame, length)
        except BadDatagram:  # the kernel does not make such frames
            return
        size = int.from_bytes(frame[4:6], "little")
        each = max(1, (peer.room - at) // size)
        if each == 1 and peer.hop is None and at + size + TAG_BYTES <= peer.piece:
            self._go_on(self._sealing.segments(peer, frame, at, size, length))
        else:
            self._in_parts(peer, at, size, each, length)

    def _in_parts(self, peer: Adjacency, at: int, size: int, each: int, length: int) -> None:
        """`each` segments of `size` bytes to a record."""
        frame, before = self._frame, bytearray(self._frame[:at])
        for first in range(0, -(-(length - at) // size), each):
            begin = first * size
            end = min(begin + at + each * size, length)
            PART.pack_into(before, 2, first | (MORE if end < length else 0))
            frame[begin : begin + at] = before
            self._seal(peer, FRAME, frame[begin:end])

    def send(self, peer: Adjacency, packed: bytes) -> None:
        """Carry one packed frame that waited, to a peer that is reachable. Not while a bundle is being filled."""
        if self.policing is not None and not self.policing.admits(peer, packed, False):
            self._refused(peer, memoryview(packed))
            return
        length = len(packed)
        self._frame[:length] = packed
        if packed[1]:
            self._super_frame(peer, length)
        else:
            self._seal(peer, FRAME, self._frame[:length])

    def _seal(self, peer: Adjacency, kind: int, plain: memoryview) -> None:
        self._go_on(self._sealing.traffic(peer, kind, plain) if peer.hop is not None else self._sealing.record(peer, kind, plain))

    def _go_on(self, takes_more: bool) -> None:
        """When the transport is full, frames wait in the kernel until it is drained."""
        if not takes_more and not self.held:
            self.held = True
            self._port.pause()

    def drained(self) -> None:
        """The transport takes more."""
        if self.held:
            self.held = False
            self.waiting()
            if not self.held:
                self._port.resume()


def _is_carried(frame: memoryview) -> bool:
    """Whether a packed frame goes to a peer as it is: IP, but neither neighbour discovery nor DHCP."""
    if frame[10:12] == _IPV4:
        return not is_dhcp(frame)
    if len(frame) < PACKED_HEAD + 40 or frame[10:12] != _IPV6:
        return False
    return frame[PACKED_HEAD + 6] in (_TCP, _UDP) or not is_discovery(bytes(14) + frame[PACKED_HEAD:])
