"""Frames that carry DHCP: told from others, read, made. None of it is ever carried between nodes.

Pure functions on bytes. `is_dhcp` sees packed frames (docs/architecture.md), the others whole ones:

```
 0      6      12   14             26       30       34     36     38     40     42
 +------+------+----+--------------+--------+--------+------+------+------+------+---------
 | dst  | src  | 800| IPv4 header  | source | target | from | to   | size | sum  | message     without IPv4 options
 +------+------+----+--------------+--------+--------+------+------+------+------+---------
```
"""

from __future__ import annotations

import struct

from ipop_tx.errors import BadMessage
from ipop_tx.forwarding.offload import IP_AT
from ipop_tx.wire import dhcp

PORTS = b"\x43\x44"
"""The low bytes of the ports: 67, where servers listen, and 68, where clients do. The high bytes are 0."""
SERVER_PORT, CLIENT_PORT = PORTS
EVERYBODY = b"\xff" * 6

_ETHERTYPE = b"\x08\x00"
_IPV4 = struct.Struct(">BBHHHBBH4s4s")
_UDP = struct.Struct(">HHHH")
_PSEUDO = struct.Struct(">4s4sBBH")
_IP, _UDP_PROTOCOL, _FRAGMENT, _TTL = 14, 17, 0x3FFF, 64
_ALL = b"\xff" * 4


def is_dhcp(packed: bytes | bytearray | memoryview) -> bool:
    """Whether a packed IPv4 frame is UDP to a server or client of DHCP, or from a server's port."""
    if len(packed) < IP_AT + 24 or packed[IP_AT + 9] != _UDP_PROTOCOL or packed[IP_AT + 6] & 0x1F or packed[IP_AT + 7]:
        return False  # too short for ports, another protocol, or a fragment that is not the first
    at = IP_AT + (packed[IP_AT] & 15) * 4
    if len(packed) < at + 4:
        return False
    origin, target = packed[at] << 8 | packed[at + 1], packed[at + 2] << 8 | packed[at + 3]
    return target in (SERVER_PORT, CLIENT_PORT) or origin == SERVER_PORT


def is_from_server(packed: bytes | bytearray | memoryview) -> bool:
    """Of a frame that `is_dhcp`: whether it is a server's, not a client's."""
    at = IP_AT + (packed[IP_AT] & 15) * 4
    return packed[at + 2] << 8 | packed[at + 3] != SERVER_PORT or packed[at] << 8 | packed[at + 1] == SERVER_PORT


def parse(frame: bytes, summed: bool) -> dhcp.Message | None:
    """The question of a client that an Ethernet frame carries, or None. Never raises.

    `summed` is False for a frame whose UDP checksum the kernel has left to others.
    """
    if len(frame) < _IP + 28 or frame[12:14] != _ETHERTYPE:
        return None
    first, _, total, _, fragment, _, protocol, _, source, target = _IPV4.unpack_from(frame, _IP)
    begin = _IP + (first & 15) * 4
    if first >> 4 != 4 or begin < _IP + 20 or protocol != _UDP_PROTOCOL or fragment & _FRAGMENT or total > len(frame) - _IP:
        return None
    datagram = frame[begin : _IP + total]
    if len(datagram) < _UDP.size or _sum(frame[_IP:begin]) != 0xFFFF:
        return None
    _, port, length, check = _UDP.unpack_from(datagram)
    if port != SERVER_PORT or not _UDP.size <= length <= len(datagram):
        return None
    datagram = datagram[:length]
    if summed and check and _sum(_PSEUDO.pack(source, target, 0, _UDP_PROTOCOL, length) + datagram) != 0xFFFF:
        return None
    return read(datagram[_UDP.size :])


def read(datagram: bytes) -> dhcp.Message | None:
    """The question of a client in a UDP datagram, or None. Never raises."""
    try:
        message = dhcp.decode(datagram)
    except BadMessage:
        return None
    return None if message.reply else message


def frame(answer: dhcp.Message, our_mac: bytes, ours: bytes) -> bytes:
    """The Ethernet frame of a server's answer, from our MAC and address, to where RFC 2131, 4.1 wants it."""
    mac, address = answer.mac, answer.client if answer.client != dhcp.NOWHERE else answer.yours
    if answer.kind == dhcp.NAK or (answer.broadcast and answer.client == dhcp.NOWHERE):
        mac, address = EVERYBODY, _ALL
    body = dhcp.encode(answer)
    length = _UDP.size + len(body)
    udp = _UDP.pack(SERVER_PORT, CLIENT_PORT, length, 0)
    check = 0xFFFF - _sum(_PSEUDO.pack(ours, address, 0, _UDP_PROTOCOL, length) + udp + body)
    header = _IPV4.pack(0x45, 0, _IPV4.size + length, 0, 0, _TTL, _UDP_PROTOCOL, 0, ours, address)
    header = header[:10] + (0xFFFF - _sum(header)).to_bytes(2, "big") + header[12:]
    return mac + our_mac + _ETHERTYPE + header + _UDP.pack(SERVER_PORT, CLIENT_PORT, length, check or 0xFFFF) + body


def _sum(data: bytes) -> int:
    """The one's complement sum of 16-bit words (RFC 1071); 0xFFFF over what contains a right checksum."""
    total = int.from_bytes(data + b"\0" * (len(data) & 1), "big") % 0xFFFF
    return total or (0xFFFF if any(data) else 0)
