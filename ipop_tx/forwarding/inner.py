"""What a policy looks at in a packed frame: who speaks to whom by which protocol and ports, behind whatever headers.

A *flow key* is protocol (1 byte), source, target (4 or 16 bytes each), and 4 bytes that the protocol says: the ports, or for ICMP echo the
identifier, the type and a zero; else zeros. The key of the answers has source and target, and what belongs to them, the other way round.

Pure functions on bytes that may come from anybody; they raise nothing.
"""

from __future__ import annotations

from typing import NamedTuple

from ipop_tx.forwarding.offload import IP_AT
from ipop_tx.wire.policy import ICMP, ICMPV6, PORTED, TCP, Packet

Buffer = bytes | bytearray | memoryview

FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10
_FRAGMENT = 44
_EXTENSIONS = (0, 43, 60)  # hop by hop, routing, destination options: of 8 bytes and more, in units of 8
_MOST_EXTENSIONS = 8
_ECHO = {(ICMP, 8): 0, (ICMPV6, 128): 129}
"""Requests, and the type of the answer."""
_ERRORS = frozenset([(ICMP, kind) for kind in (3, 4, 11, 12)] + [(ICMPV6, kind) for kind in (1, 2, 3, 4)])
_LEAST = {TCP: 20, ICMP: 8, ICMPV6: 8}
"""Bytes of the protocol's header that must be in the first fragment: what decides is not to be written over by a later one (RFC 1858)."""


class Fragment(NamedTuple):
    """A fragment that is not the first; `name` is that of its packet, by which the first one was judged."""

    name: bytes


class Inner(NamedTuple):
    """A packet, or the first fragment of one."""

    packet: Packet
    key: bytes
    answers: bytes
    """The key of what answers it; empty when nothing is let in for being an answer."""
    flags: int = 0
    """Of TCP."""
    fragment: bytes = b""
    """The packet's name, when this is its first fragment and others follow."""
    about: bytes = b""
    """Of an ICMP error: the key of the packet that it is about."""

    @property
    def opens(self) -> bool:
        """Whether it wants to begin something new, whatever there was before."""
        return self.packet.protocol != TCP or self.flags & (SYN | ACK) == SYN

    def turned(self) -> Inner:
        """The packet that this one would be the answer to."""
        protocol, source, target, _, kind = self.packet
        port = int.from_bytes(self.key[-4:-2], "big") if protocol in PORTED else None
        return Inner(Packet(protocol, target, source, port, kind), self.answers, self.key, self.flags)


def read(packed: Buffer) -> Inner | Fragment | None:
    """What is in a packed frame; None where it does not add up."""
    version = packed[IP_AT] >> 4 if len(packed) > IP_AT else 0
    return _ipv4(packed, IP_AT) if version == 4 else _ipv6(packed, IP_AT) if version == 6 else None


def _ipv4(data: Buffer, at: int) -> Inner | Fragment | None:
    header = (data[at] & 15) * 4
    if header < 20 or len(data) < at + header:
        return None
    protocol, addresses = data[at + 9], bytes(data[at + 12 : at + 20])
    piece = int.from_bytes(data[at + 6 : at + 8], "big") & 0x3FFF  # more to come, and the offset in units of 8
    name = bytes((protocol,)) + addresses + bytes(data[at + 4 : at + 6]) if piece else b""
    if piece & 0x1FFF:
        return None if protocol == TCP and piece & 0x1FFF == 1 else Fragment(name)  # RFC 3128
    return _transport(data, at + header, protocol, addresses[:4], addresses[4:], name)


def _ipv6(data: Buffer, at: int) -> Inner | Fragment | None:
    if len(data) < at + 40:
        return None
    protocol, source, target = data[at + 6], bytes(data[at + 8 : at + 24]), bytes(data[at + 24 : at + 40])
    at, name = at + 40, b""
    for _ in range(_MOST_EXTENSIONS):
        if protocol not in (*_EXTENSIONS, _FRAGMENT):
            return _transport(data, at, protocol, source, target, name)
        if len(data) < at + 8:
            return None
        if protocol == _FRAGMENT:
            piece = int.from_bytes(data[at + 2 : at + 4], "big")
            name = source + target + bytes(data[at + 4 : at + 8]) if piece & 0xFFF9 else b""
            if piece >> 3:
                return Fragment(name)
            size = 8
        else:
            size = 8 + 8 * data[at + 1]
        protocol, at = data[at], at + size
    return None


def _transport(data: Buffer, at: int, protocol: int, source: bytes, target: bytes, fragment: bytes) -> Inner | None:
    left = len(data) - at
    if left < _LEAST.get(protocol, 8 if protocol in PORTED else 0):
        return None
    tail = back = bytes(4)
    port = kind = None
    flags, answered, about = 0, True, b""
    if protocol in PORTED:
        tail = bytes(data[at : at + 4])
        back, port = tail[2:] + tail[:2], int.from_bytes(tail[2:], "big")
        flags = data[at + 13] if protocol == TCP else 0
    elif protocol in (ICMP, ICMPV6):
        kind = data[at]
        tail, back, answered = _icmp(protocol, kind, bytes(data[at + 4 : at + 6]))
        about = _about(data, at + 8) if (protocol, kind) in _ERRORS else b""
    head = bytes((protocol,))
    answers = head + target + source + back if answered else b""
    return Inner(Packet(protocol, source, target, port, kind), head + source + target + tail, answers, flags, fragment, about)


def _icmp(protocol: int, kind: int, identifier: bytes) -> tuple[bytes, bytes, bool]:
    """The ends of the key and of that of the answers, and whether there are any. Only an echo is answered."""
    answer = _ECHO.get((protocol, kind))
    if answer is not None:
        return identifier + bytes((kind, 0)), identifier + bytes((answer, 0)), True
    tail = identifier + bytes((kind, 0))
    return tail, tail, False


def _about(data: Buffer, at: int) -> bytes:
    """The key of the packet whose beginning an ICMP error carries; empty where it cannot be told."""
    if len(data) < at + 20:
        return b""
    if data[at] >> 4 == 4:
        protocol, source, target, begin = data[at + 9], data[at + 12 : at + 16], data[at + 16 : at + 20], at + (data[at] & 15) * 4
        if int.from_bytes(data[at + 6 : at + 8], "big") & 0x1FFF:
            return b""
    elif len(data) >= at + 40:
        protocol, source, target, begin = data[at + 6], data[at + 8 : at + 24], data[at + 24 : at + 40], at + 40
    else:
        return b""
    tail = bytes(4)
    if protocol in PORTED or protocol in (ICMP, ICMPV6):
        if len(data) < begin + 8:
            return b""
        tail = bytes(data[begin : begin + 4])
        if protocol not in PORTED:
            tail = bytes(data[begin + 4 : begin + 6]) + bytes((data[begin], 0))
    return bytes((protocol,)) + bytes(source) + bytes(target) + tail
