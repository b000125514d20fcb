"""How large packets may be inside: the TAP's MTU, TCP's segments, and the ICMP errors that tell a sender of less.

Pure functions on packed frames (docs/architecture.md): ten bytes of offload head, two of ethertype, the IP packet from byte 12.
None of them raises for any bytes; what is malformed is left as it is.

 TCP option: maximum segment size (RFC 9293, 3.7.1)      ICMP: fragmentation needed (RFC 1191)    ICMPv6: packet too big (RFC 4443, 3.2)
 0    1    2        4                                    0   1   2     4    6     8               0   1   2     4         8
 +----+----+--------+                                    +---+---+-----+----+-----+-------        +---+---+-----+---------+-------
 | 2  | 4  |  size  |                                    | 3 | 4 | sum | 0  | MTU | packet        | 2 | 0 | sum |   MTU   | packet
 +----+----+--------+                                    +---+---+-----+----+-----+-------        +---+---+-----+---------+-------
"""

from __future__ import annotations

import struct

from ipop_tx.forwarding.offload import IP_AT, NEEDS_CHECKSUM
from ipop_tx.wire.datagram import OVERHEAD

HEAD = IP_AT
"""Bytes of a packed frame before its IP packet."""
INNER_LEAST, OUTER_MOST = 1280, 9000

_ETHERTYPE_IPV4, _ETHERTYPE_IPV6 = b"\x08\x00", b"\x86\xdd"
_IPV4 = struct.Struct(">BBHHHBBH4s4s")
_IPV6 = struct.Struct(">IHBB16s16s")
_ICMP = struct.Struct(">BBHHH")
_ICMPV6 = struct.Struct(">BBHI")
_PSEUDO = struct.Struct(">16s16sII")
_NO_HEAD = bytes(10)
_TCP, _ICMP_PROTOCOL, _ICMPV6_PROTOCOL = 6, 1, 58
_SYN, _MSS = 2, 2
_DONT_FRAGMENT, _OFFSET = 0x4000, 0x1FFF
_ERRORS4 = frozenset((3, 4, 5, 11, 12))
_MOST4, _MOST6 = 576, 1280
_TTL = 64
_INTERNETWORK_CONTROL = 0xC0
_HOP_BY_HOP, _ROUTING, _FRAGMENT, _DESTINATION = 0, 43, 44, 60
_EXTENSIONS = frozenset((_HOP_BY_HOP, _ROUTING, _FRAGMENT, _DESTINATION))
_REDIRECT6 = 137

Buffer = bytearray | memoryview


def inner_mtu(outer: int, ipv6: bool) -> int:
    """The largest IP packet that goes whole into one datagram on a link of MTU `outer`, when datagrams may have to go over IPv6.

    1428 for Ethernet and IPv4. Never below the 1280 that IPv6 asks for: what does not fit goes in pieces.
    """
    return max(INNER_LEAST, min(outer, OUTER_MOST) - (48 if ipv6 else 28) - OVERHEAD - HEAD)


# --- TCP ------------------------------------------------------------------------------------------


def clamp_mss(packed: Buffer, end: int, mtu: int) -> bool:
    """Lower the segment size that a TCP SYN offers to what an IP packet of `mtu` bytes holds, in place; whether that was necessary.

    `end` is the length of the frame in the buffer. SYNs behind IPv6 extension headers stay as they are.
    """
    tcp, headers = _tcp(packed, min(end, len(packed)))
    option = _mss_option(packed, tcp, min(end, len(packed))) if tcp else 0
    most = mtu - headers
    if not option or most <= 0 or packed[option] << 8 | packed[option + 1] <= most:
        return False
    before = packed[option] << 8 | packed[option + 1]
    packed[option], packed[option + 1] = most >> 8, most & 0xFF
    if not packed[0] & NEEDS_CHECKSUM:
        _mend(packed, tcp + 16, before, most, swapped=bool((option - tcp) & 1))
    return True


def _tcp(packed: Buffer, end: int) -> tuple[int, int]:
    """Where the TCP header of a SYN begins, or 0; and how long the shortest IP and TCP headers of its kind are."""
    if end < HEAD + 40:
        return 0, 0
    if packed[10] == 0x08 and packed[11] == 0x00 and packed[HEAD] >> 4 == 4:
        first = not (packed[HEAD + 6] & 0x1F or packed[HEAD + 7])
        protocol, at, headers = packed[HEAD + 9], HEAD + (packed[HEAD] & 15) * 4, 40
        if not first or at < HEAD + 20:
            return 0, 0
    elif packed[10] == 0x86 and packed[11] == 0xDD and packed[HEAD] >> 4 == 6:
        protocol, at, headers = packed[HEAD + 6], HEAD + 40, 60
    else:
        return 0, 0
    return (at, headers) if protocol == _TCP and at + 20 <= end and packed[at + 13] & _SYN else (0, 0)


def _mss_option(packed: Buffer, tcp: int, end: int) -> int:
    """Where the value of the option stands, or 0."""
    at, stop = tcp + 20, tcp + (packed[tcp + 12] >> 4) * 4
    if stop > end:
        return 0
    while at + 1 < stop and packed[at]:
        if packed[at] == 1:
            at += 1
            continue
        size = packed[at + 1]
        if packed[at] == _MSS:
            return at + 2 if size == 4 and at + 4 <= stop else 0
        if size < 2:
            return 0
        at += size
    return 0


def _mend(packed: Buffer, at: int, before: int, after: int, swapped: bool) -> None:
    """Change a checksum as one changed word asks (RFC 1624, equation 3); `swapped`, if that word straddles two of the sum's words."""
    if swapped:
        before, after = (word >> 8 | (word & 0xFF) << 8 for word in (before, after))
    total = (0xFFFF - (packed[at] << 8 | packed[at + 1])) + (0xFFFF - before) + after
    total = (total & 0xFFFF) + (total >> 16)
    total = 0xFFFF - ((total & 0xFFFF) + (total >> 16))
    packed[at], packed[at + 1] = total >> 8, total & 0xFF


# --- ICMP -----------------------------------------------------------------------------------------


def too_big(packed: bytes | Buffer, end: int, mtu: int) -> bytes | None:
    """The packed frame that tells the sender of a packet to send no more than `mtu` bytes at once; it seems to come from the receiver.

    None where none may be sent (RFC 1122, 3.2.2; RFC 4443, 2.4): to or from a group or nobody, about an ICMP error or a later
    fragment, and where it would be vain: a sender without "don't fragment" expects the network to cut its packets.
    """
    packet = bytes(packed[HEAD : min(end, HEAD + _MOST6)])
    ethertype = bytes(packed[10:HEAD])
    if ethertype == _ETHERTYPE_IPV4 and _may_answer4(packet):
        return _NO_HEAD + ethertype + _fragmentation_needed(packet, mtu)
    if ethertype == _ETHERTYPE_IPV6 and _may_answer6(packet):
        return _NO_HEAD + ethertype + _packet_too_big(packet, mtu)
    return None


def _may_answer4(packet: bytes) -> bool:
    if len(packet) < _IPV4.size:
        return False
    first, _, _, _, fragment, _, protocol, _, source, destination = _IPV4.unpack_from(packet)
    header = (first & 15) * 4
    if first >> 4 != 4 or header < _IPV4.size or len(packet) < header + 8:
        return False
    if not fragment & _DONT_FRAGMENT or fragment & _OFFSET:
        return False
    # The first byte of an address tells "this network", loopback, groups and reserved ones, among them the broadcast.
    if any(address[0] in (0, 127) or address[0] >= 224 for address in (source, destination)):
        return False
    return protocol != _ICMP_PROTOCOL or packet[header] not in _ERRORS4


def _fragmentation_needed(packet: bytes, mtu: int) -> bytes:
    quoted = packet[: _MOST4 - _IPV4.size - _ICMP.size]
    total = _checksum(_ICMP.pack(3, 4, 0, 0, min(mtu, 0xFFFF)) + quoted)
    message = _ICMP.pack(3, 4, total, 0, min(mtu, 0xFFFF)) + quoted
    source, destination = packet[16:20], packet[12:16]
    header = [0x45, _INTERNETWORK_CONTROL, _IPV4.size + len(message), 0, _DONT_FRAGMENT, _TTL, _ICMP_PROTOCOL, 0, source, destination]
    header[7] = _checksum(_IPV4.pack(*header))
    return _IPV4.pack(*header) + message


def _may_answer6(packet: bytes) -> bool:
    if len(packet) < _IPV6.size + 8:
        return False
    first, _, _, _, source, destination = _IPV6.unpack_from(packet)
    if first >> 28 != 6 or any(address[0] == 0xFF or not any(address[:15]) for address in (source, destination)):
        return False
    protocol, at = packet[6], _IPV6.size
    while protocol in _EXTENSIONS:
        if at + 8 > len(packet) or (protocol == _FRAGMENT and int.from_bytes(packet[at + 2 : at + 4], "big") >> 3):
            return False
        size = 8 if protocol == _FRAGMENT else (packet[at + 1] + 1) * 8
        protocol, at = packet[at], at + size
    # What cannot be seen may be an error, whose types are those below 128.
    return protocol != _ICMPV6_PROTOCOL or (at < len(packet) and packet[at] >= 128 and packet[at] != _REDIRECT6)


def _packet_too_big(packet: bytes, mtu: int) -> bytes:
    source, destination = packet[24:40], packet[8:24]
    quoted = packet[: _MOST6 - _IPV6.size - _ICMPV6.size]
    size = _ICMPV6.size + len(quoted)
    total = _checksum(_PSEUDO.pack(source, destination, size, _ICMPV6_PROTOCOL) + _ICMPV6.pack(2, 0, 0, mtu) + quoted)
    header = _IPV6.pack(6 << 28, size, _ICMPV6_PROTOCOL, _TTL, source, destination)
    return header + _ICMPV6.pack(2, 0, total, mtu) + quoted


def _checksum(data: bytes) -> int:
    """The internet checksum (RFC 1071)."""
    # One's complement addition does not care about grouping, so the sum of 16-bit words is the number modulo 65535.
    total = int.from_bytes(data + b"\0" * (len(data) & 1), "big") % 0xFFFF
    return 0xFFFF - total if total else 0
