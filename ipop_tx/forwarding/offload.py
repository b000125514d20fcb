"""What the kernel leaves to whoever comes last: cutting super-frames into segments and completing checksums.

A frame crosses a port behind an *offload head*, the `virtio_net_hdr` of virtio 1.0 (5.1.6): little-endian, while all that follows
is big-endian. `checksum start` counts from the first byte of the Ethernet header, `checksum offset` from there.

 0       1          2        4          6                8                 10
 +-------+----------+--------+----------+----------------+-----------------+-----------------------------
 | flags | GSO type | length | GSO size | checksum start | checksum offset | frame
 +-------+----------+--------+----------+----------------+-----------------+-----------------------------
                     of all headers  of a segment's payload

A *super-frame* has a GSO type: one set of headers before the payload of many segments. With `NEEDS_CHECKSUM` the field of the
TCP or UDP checksum holds the *partial* one: the folded sum of the pseudo-header, not complemented.

In *port layout* the frame is an Ethernet frame. In *packed layout*, as it travels between nodes, its two MAC addresses are left out,
so the ethertype is at byte 10 and the IP packet at byte 12; nothing else changes, the checksum start neither.

Pure functions on bytes that may come from anybody: on arbitrary bytes they raise nothing but `BadDatagram`.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from ipop_tx.errors import BadDatagram

HEAD = struct.Struct("<BBHHHH")
"""Flags, GSO type, length of all headers, GSO size, checksum start, checksum offset."""
PART = struct.Struct("<H")
"""At byte 2: the length of all headers in port layout, the part of the super-frame in packed layout (docs/architecture.md)."""
PLAIN = bytes(HEAD.size)
"""The head of an ordinary frame whose checksums are complete."""

NEEDS_CHECKSUM = 1
GSO_NONE = 0
GSO_TCPV4 = 1
GSO_UDP = 3
"""Fragmentation of one large datagram; old, and refused here."""
GSO_TCPV6 = 4
GSO_UDP_L4 = 5
GSO_ECN = 0x80
"""A bit beside the TCP types: the first segment has CWR set."""

OFFLOADS = ("checksum", "tso4", "tso6", "uso")
"""Names of the work that a kernel may leave to the other end of a port: checksums, segments of TCP over IPv4, over IPv6, of UDP."""
GSO_MAX = 62000
"""Bytes of the largest super-frame asked of the kernel: it fits, sealed, into one `UDP_SEGMENT` send of 64 KiB."""
SEGMENTS = 1024
"""Into so many `segment` cuts at most: a TCP segment of 62 bytes is smaller than any that an honest kernel makes."""

IP_AT = 12
"""Where the IP packet begins in packed layout."""

JOINED_FRAMES = 64
JOINED_BYTES = 60000
"""Of payload; the whole must stay below the 65535 bytes that an IP packet can have."""

_TCP, _UDP = 6, 17
_PROTOCOLS = {
    (GSO_TCPV4, 0x0800, 4): _TCP,
    (GSO_TCPV4 | GSO_ECN, 0x0800, 4): _TCP,
    (GSO_TCPV6, 0x86DD, 6): _TCP,
    (GSO_TCPV6 | GSO_ECN, 0x86DD, 6): _TCP,
    (GSO_UDP_L4, 0x0800, 4): _UDP,
    (GSO_UDP_L4, 0x86DD, 6): _UDP,
}
"""By GSO type, ethertype and version."""
_CHECKSUM_OFFSET = {_TCP: 16, _UDP: 6}
_EXTENSIONS = frozenset((0, 43, 60))  # hop by hop, routing, destination options: all in units of eight bytes
_LEAST = IP_AT + 20 + 8  # bytes before any payload
_FIN, _PSH, _CWR = 0x01, 0x08, 0x80
_FRAGMENT, _NOT_DF = 0x3FFF, 0xBFFF
_MACS = 12

_ETHERTYPE_FIRST = struct.Struct(">HB")  # at 10, with the first byte of IP
_FRAGMENT_PROTOCOL = struct.Struct(">HxB")  # IPv4, at 18
_LENGTH_CHECKSUM = struct.Struct(">HH")  # UDP, at 4 of its header
_SHORT, _TWO_SHORTS, _LONG = struct.Struct(">H"), struct.Struct(">HH"), struct.Struct(">I")
_LITTLE_SHORT = struct.Struct("<H")

Buffer = bytes | bytearray | memoryview


class Joined(NamedTuple):
    """How to write several datagrams as one super-frame: `headers`, then `frame[payload:]` of each of the first `frames` frames.

    `headers` are in packed layout: the MAC addresses go in at byte 10.
    """

    headers: bytes
    payload: int
    frames: int


# out


def payload_at(packed: Buffer, end: int) -> int:
    """Where the payload begins in the super-frame `packed[:end]`, in packed layout. Raises `BadDatagram` when it is none."""
    return _measured(packed, end)[2]


def _measured(packed: Buffer, end: int) -> tuple[int, int, int, int]:
    """A super-frame's protocol, offset of its TCP or UDP header, offset of its payload, GSO size. Raises `BadDatagram`."""
    if not _LEAST < end <= len(packed):
        raise BadDatagram("a super-frame is shorter than its headers")
    flags, kind, _, size, start, offset = HEAD.unpack_from(packed)
    ethertype, first = _ETHERTYPE_FIRST.unpack_from(packed, 10)
    protocol = _PROTOCOLS.get((kind, ethertype, first >> 4))
    if protocol is None:
        raise BadDatagram(f"offload type {kind} does not go with ethertype {ethertype:#06x}")
    if not flags & NEEDS_CHECKSUM or not size or offset != _CHECKSUM_OFFSET[protocol]:
        raise BadDatagram("a super-frame with a senseless offload head")
    l4 = start - 2
    if ethertype == 0x0800:
        fragment, following = _FRAGMENT_PROTOCOL.unpack_from(packed, 18)
        if following != protocol or fragment & _FRAGMENT or first & 15 < 5 or l4 != IP_AT + (first & 15) * 4:
            raise BadDatagram("a super-frame with a senseless IPv4 header")
    elif l4 != IP_AT + 40 or packed[18] != protocol:
        _walk_extensions(packed, end, l4, protocol)
    payload = l4 + (8 if protocol == _UDP else _tcp_length(packed, end, l4))
    if payload >= end:
        raise BadDatagram("a super-frame without payload")
    return protocol, l4, payload, size


def _tcp_length(packed: Buffer, end: int, l4: int) -> int:
    length = (packed[l4 + 12] >> 4) * 4 if l4 + 12 < end else 0
    if length < 20:
        raise BadDatagram("a super-frame with a senseless TCP header")
    return length


def _walk_extensions(packed: Buffer, end: int, l4: int, protocol: int) -> None:
    """Raise `BadDatagram` unless the IPv6 extension headers lead to `protocol` at `l4`."""
    kind, at = packed[18], IP_AT + 40
    while at < l4 and at + 1 < end and kind in _EXTENSIONS:
        kind, at = packed[at], at + (packed[at + 1] + 1) * 8
    if at != l4 or kind != protocol:
        raise BadDatagram("a super-frame with senseless IPv6 headers")


# in


def restore(packed: bytearray | memoryview, end: int, first: int, more: bool) -> None:
    """Make a part of a super-frame stand alone, in place, exactly as the kernel's own segmentation would.

    `packed[:end]` holds the super-frame's headers and, of its payload, only some segments, from number `first` on; `more` of them
    follow elsewhere. A part of one segment becomes an ordinary frame. Nothing is altered when it raises `BadDatagram`: for
    what is no super-frame, and when the lengths do not add up.
    """
    protocol, l4, payload, size = _measured(packed, end)
    is_ipv4 = packed[IP_AT] >> 4 == 4
    (length,) = _SHORT.unpack_from(packed, 14 if is_ipv4 else 16)
    missing = length - (end - IP_AT if is_ipv4 else end - IP_AT - 40)
    before, here = first * size, end - payload
    after = missing - before
    if first < 0 or (after <= 0 or here % size if more else after):
        raise BadDatagram("the parts of a super-frame do not add up")
    if missing:
        if is_ipv4:
            _shorten_ipv4(packed, length - missing, first)
        else:
            _SHORT.pack_into(packed, 16, length - missing)
        _shorten_l4(packed, protocol, l4, end - l4, missing)
        if protocol == _TCP:
            _shift_tcp(packed, l4, before, more)
    if here <= size:
        packed[1] = GSO_NONE
        _LITTLE_SHORT.pack_into(packed, 4, 0)
    _LITTLE_SHORT.pack_into(packed, 2, payload + 2)


def _shorten_ipv4(packed: bytearray | memoryview, length: int, first: int) -> None:
    (identification,) = _SHORT.unpack_from(packed, 16)
    _TWO_SHORTS.pack_into(packed, 14, length, (identification + first) & 0xFFFF)
    _SHORT.pack_into(packed, 22, 0)
    total = int.from_bytes(packed[IP_AT : IP_AT + (packed[IP_AT] & 15) * 4], "big") % 0xFFFF
    _SHORT.pack_into(packed, 22, _complement(total))


def _shorten_l4(packed: bytearray | memoryview, protocol: int, l4: int, length: int, missing: int) -> None:
    """The partial checksum counts the length, so it shrinks by as much."""
    at = l4 + _CHECKSUM_OFFSET[protocol]
    (partial,) = _SHORT.unpack_from(packed, at)
    _SHORT.pack_into(packed, at, _partial(partial - missing))
    if protocol == _UDP:
        _SHORT.pack_into(packed, l4 + 4, length)


def _shift_tcp(packed: bytearray | memoryview, l4: int, before: int, more: bool) -> None:
    """Sequence number and flags of the part that has `before` bytes of payload before it."""
    if before:
        (sequence,) = _LONG.unpack_from(packed, l4 + 4)
        _LONG.pack_into(packed, l4 + 4, (sequence + before) & 0xFFFFFFFF)
        packed[l4 + 13] &= ~_CWR
    if more:
        packed[l4 + 13] &= ~(_FIN | _PSH)


def _partial(total: int) -> int:
    """Folded. Never 0, the other zero of one's complement: in UDP that would mean "no checksum"."""
    return total % 0xFFFF or 0xFFFF


def _complement(total: int) -> int:
    """The checksum for a sum modulo 65535; a sum of 0 stands for 0xFFFF, since no header consists of zeros."""
    return 0xFFFF - total if total else 0


# joining


def join_datagrams(buffer: Buffer, start: int, size: int, count: int) -> Joined | None:
    """Join UDP datagrams of one flow: of `count` packed frames of `size` bytes each, one after another from `start`, the first few.

    None when there are no two that the kernel's own segmentation would give back as they are. Only the identification
    may come back another, where "don't fragment" is set and it means nothing (RFC 6864, 4.1). Never raises.
    """
    count = min(count, (len(buffer) - start) // size) if size > _LEAST and start >= 0 else 0
    if count < 2 or buffer[start] != NEEDS_CHECKSUM or buffer[start + 1] != GSO_NONE:
        return None
    head = bytes(buffer[start : start + 60])
    if head[10:13] == b"\x08\x00\x45":
        return _join_ipv4(buffer, start, size, count, head[:40])
    if head[10:12] == b"\x86\xdd" and head[12] >> 4 == 6 and size > 60:
        return _join_ipv6(buffer, start, size, count, head)
    return None


def _join_ipv4(buffer: Buffer, start: int, size: int, count: int, head: bytes) -> Joined | None:
    fragment, protocol = _FRAGMENT_PROTOCOL.unpack_from(head, 18)
    (length,) = _SHORT.unpack_from(head, 14)
    total = int.from_bytes(head[IP_AT:32], "big") % 0xFFFF
    if protocol != _UDP or fragment & _NOT_DF or length != size - IP_AT or total or not _is_datagram(head, 32, size):
        return None
    count = _run_ipv4(buffer, start, size, _bounded(count, size - 40), not fragment)
    if count < 2:
        return None
    joined = _joined(head, 32, size, count)
    _SHORT.pack_into(joined, 14, size - IP_AT + (count - 1) * (size - 40))
    _SHORT.pack_into(joined, 22, 0)
    _SHORT.pack_into(joined, 22, _complement(int.from_bytes(joined[IP_AT:32], "big") % 0xFFFF))
    return Joined(bytes(joined), 40, count)


def _run_ipv4(buffer: Buffer, start: int, size: int, count: int, counting: bool) -> int:
    """How many frames have the headers of the first but for identifications, which count up when `counting`."""
    rows = _rows("16sH4sH16s", size).iter_unpack(memoryview(buffer)[start : start + count * size])
    before, expected, between, checksum, after = next(rows)
    total = expected + checksum
    for number, (one, identification, two, checksum, three) in enumerate(rows, 1):
        if three != after or one != before or two != between:
            return number
        if identification + checksum != total and (identification + checksum - total) % 0xFFFF:
            return number  # its header checksum is wrong, and would be mended
        if counting and identification != (expected + number) & 0xFFFF:
            return number
    return count


def _join_ipv6(buffer: Buffer, start: int, size: int, count: int, head: bytes) -> Joined | None:
    (length,) = _SHORT.unpack_from(head, 16)
    if head[18] != _UDP or length != size - 52 or not _is_datagram(head, 52, size):
        return None
    count = _bounded(count, size - 60)
    rows = _rows("60s", size).iter_unpack(memoryview(buffer)[start : start + count * size])
    count = next((number for number, (one,) in enumerate(rows) if one != head), count)
    if count < 2:
        return None
    joined = _joined(head, 52, size, count)
    _SHORT.pack_into(joined, 16, 8 + count * (size - 60))
    return Joined(bytes(joined), 60, count)


@lru_cache(64)
def _rows(headers: str, size: int) -> struct.Struct:
    """One frame of a bundle: its headers, then the payload that nobody looks at."""
    return struct.Struct(f">{headers}{size - struct.calcsize('>' + headers)}x")


def _is_datagram(head: bytes, l4: int, size: int) -> bool:
    """Whether the offload head and the UDP header agree with a frame of `size` bytes."""
    _, _, _, _, start, offset = HEAD.unpack_from(head)
    (length,) = _SHORT.unpack_from(head, l4 + 4)
    return bool(start == l4 + 2 and offset == _CHECKSUM_OFFSET[_UDP] and length == size - l4)


def _bounded(count: int, payload: int) -> int:
    return min(count, JOINED_FRAMES, JOINED_BYTES // payload)


def _joined(head: bytes, l4: int, size: int, count: int) -> bytearray:
    """The offload head and the UDP header of the whole; what is of IP is still that of one frame."""
    joined, payload = bytearray(head), size - l4 - 8
    HEAD.pack_into(joined, 0, NEEDS_CHECKSUM, GSO_UDP_L4, l4 + 10, payload, l4 + 2, _CHECKSUM_OFFSET[_UDP])
    length, partial = _LENGTH_CHECKSUM.unpack_from(head, l4 + 4)
    more = (count - 1) * payload
    _LENGTH_CHECKSUM.pack_into(joined, l4 + 4, length + more, _partial(partial + more))
    return joined


# cutting


def segment(frame: Buffer) -> list[bytes]:
    """Do the kernel's work: a frame in port layout becomes Ethernet frames without offload head and with complete checksums.

    Raises `BadDatagram` when that cannot be done.
    """
    if len(frame) < HEAD.size + 14:
        raise BadDatagram("a frame is shorter than its header")
    if frame[1] == GSO_NONE:
        return [_completed(bytes(frame[: HEAD.size]), bytearray(frame[HEAD.size :]))]
    macs = bytes(frame[HEAD.size : HEAD.size + _MACS])
    packed = bytes(frame[: HEAD.size]) + bytes(frame[HEAD.size + _MACS :])
    _, _, payload, size = _measured(packed, len(packed))
    if len(packed) - payload > SEGMENTS * size:
        raise BadDatagram("a super-frame of too many segments")
    frames = []
    for number, at in enumerate(range(payload, len(packed), size)):
        part = bytearray(packed[:payload] + packed[at : at + size])
        restore(part, len(part), number, at + size < len(packed))
        frames.append(_completed(bytes(part[: HEAD.size]), macs + part[HEAD.size :]))
    return frames


def type_of(frame: Buffer) -> int:
    """The GSO type in an offload head, without the ECN bit."""
    return frame[1] & ~GSO_ECN if len(frame) > 1 else GSO_NONE


def fill(buffers: Sequence[bytearray | memoryview], data: bytes) -> int:
    """Put `data` into the buffers one after another, as readv does. Gives the number of bytes for which there was room."""
    at = 0
    for buffer in buffers:
        part = data[at : at + len(buffer)]
        buffer[: len(part)] = part
        at += len(part)
    return at


def _completed(head: bytes, frame: bytearray | bytes) -> bytes:
    """An Ethernet frame with its checksum, if `head` says that it is needed."""
    flags, _, _, _, start, offset = HEAD.unpack(head)
    if not flags & NEEDS_CHECKSUM:
        return bytes(frame)
    at = start + offset
    if at + 2 > len(frame):
        raise BadDatagram("a frame ends before its checksum")
    # One's complement addition does not care about grouping, so the sum of 16-bit words is the number modulo 65535.
    covered = bytes(frame[start:]) + b"\0" * ((len(frame) - start) & 1)
    checksum = _complement(int.from_bytes(covered, "big") % 0xFFFF)
    if offset == _CHECKSUM_OFFSET[_UDP]:
        checksum = checksum or 0xFFFF  # RFC 768: 0 means "no checksum"
    return bytes(frame[:at]) + _SHORT.pack(checksum) + bytes(frame[at + 2 :])
