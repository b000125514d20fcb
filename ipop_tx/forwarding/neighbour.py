"""Answers to the kernel's question "who has this address?": ARP (RFC 826) and IPv6 neighbour discovery (RFC 4861).

Pure functions on bytes. `parse` never raises and recognises only well-formed requests; what it gives, `answer` can answer.

 Ethernet + ARP                                Ethernet + IPv6 + neighbour solicitation
 0   6   12  14   16   18 19 20 22 28 32 38    0   6   12  14              54   55   56  58       62     78
 +---+---+---+----+----+--+--+--+--+--+--+--+  +---+---+---+---------------+----+----+---+--------+------+---------+
 |dst|src|806|hw 1|800 |6 |4 |op|sm|sa|tm|ta|  |dst|src|86D|IPv6 header   |135 |code|sum|reserved|target|options..|
 +---+---+---+----+----+--+--+--+--+--+--+--+  +---+---+---+---------------+----+----+---+--------+------+---------+
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

ETHERTYPE_ARP = b"\x08\x06"
ETHERTYPE_IPV4 = b"\x08\x00"
ETHERTYPE_IPV6 = b"\x86\xdd"

_ARP = struct.Struct(">HHBBH6s4s6s4s")
_ARP_FORM = (1, 0x0800, 6, 4)
_ARP_REQUEST, _ARP_REPLY = 1, 2
_BROADCAST = b"\xff" * 6

_IPV6 = struct.Struct(">IHBB16s16s")
_ND = struct.Struct(">BBHI16s")
_ICMPV6 = 58
_NS, _NA = 135, 136
_ND_FIRST, _ND_LAST = 133, 137  # router solicitation ... redirect
_EXTENSIONS = frozenset((0, 43, 44, 51, 60, 135, 139, 140))
_FRAGMENT, _AUTHENTICATION = 44, 51
_HOP_LIMIT = 255  # RFC 4861: proves that no router forwarded it
_SOLICITED, _OVERRIDE = 1 << 30, 1 << 29
_SOURCE_LINK_ADDRESS, _TARGET_LINK_ADDRESS = 1, 2
_UNSPECIFIED = bytes(16)
_ALL_NODES = IPv6Address("ff02::1").packed
_SOLICITED_NODE = IPv6Address("ff02::1:ff00:0").packed[:13]
_PSEUDO = struct.Struct(">16s16sII")


class Request(NamedTuple):
    """One well-formed request. `asker_ip` is 4 or 16 bytes; unspecified when the asker only probes for a duplicate."""

    target: IPv4Address | IPv6Address
    asker_mac: bytes
    asker_ip: bytes


def parse(frame: bytes | memoryview) -> Request | None:
    """The request that an Ethernet frame carries, or None. Never raises."""
    ethertype = bytes(frame[12:14])
    if ethertype == ETHERTYPE_ARP:
        return _parse_arp(frame)
    if ethertype == ETHERTYPE_IPV6:
        return _parse_solicitation(frame)
    return None


def heard(frame: bytes | memoryview) -> tuple[bytes, bytes] | None:
    """MAC and IPv4 address of who sends an ARP frame, or None. Never raises."""
    if frame[12:14] != ETHERTYPE_ARP or len(frame) < 14 + _ARP.size:
        return None
    *form, _, mac, address, _, _ = _ARP.unpack_from(frame, 14)
    return (mac, address) if tuple(form) == _ARP_FORM else None


def probe(asker: bytes, mac: bytes, address: bytes) -> bytes:
    """The frame that asks `mac` whether it has an IPv4 address, without claiming one for the asker (RFC 5227, 1.1)."""
    return mac + asker + ETHERTYPE_ARP + _ARP.pack(*_ARP_FORM, _ARP_REQUEST, asker, bytes(4), bytes(6), address)


def answer(request: Request, mac: bytes) -> bytes:
    """The frame that tells the asker that `mac` has the address."""
    if isinstance(request.target, IPv4Address):
        body = _ARP.pack(*_ARP_FORM, _ARP_REPLY, mac, request.target.packed, request.asker_mac, request.asker_ip)
        return request.asker_mac + mac + ETHERTYPE_ARP + body
    return _advertisement(request, mac)


def announcement(address: IPv4Address, mac: bytes) -> bytes:
    """The frame that tells whoever knows `address` already that `mac` has it now (gratuitous ARP, RFC 5227, 3)."""
    body = _ARP.pack(*_ARP_FORM, _ARP_REQUEST, mac, address.packed, bytes(6), address.packed)
    return _BROADCAST + mac + ETHERTYPE_ARP + body


def is_discovery(frame: bytes | memoryview) -> bool:
    """Whether an IPv6 frame carries neighbour discovery, also behind extension headers (RFC 8200, 4). Never raises."""
    if len(frame) < 55:
        return False
    kind, at = frame[20], 54
    while kind in _EXTENSIONS and at + 4 < len(frame):
        units = frame[at + 1]
        if kind == _FRAGMENT and int.from_bytes(frame[at + 2 : at + 4], "big") >> 3:
            return False  # the type was in the first fragment
        size = 8 if kind == _FRAGMENT else (units + 2) * 4 if kind == _AUTHENTICATION else (units + 1) * 8
        kind, at = frame[at], at + size
    return kind == _ICMPV6 and at < len(frame) and _ND_FIRST <= frame[at] <= _ND_LAST


def checksum(source: bytes, destination: bytes, message: bytes) -> int:
    """The ICMPv6 checksum (RFC 4443, 2.3) over `message`: 0 when the message already carries the right one."""
    data = _PSEUDO.pack(source, destination, len(message), _ICMPV6) + message + b"\0" * (len(message) & 1)
    # One's complement addition does not care about grouping, so the sum of 16-bit words is the number modulo 65535.
    total = int.from_bytes(data, "big") % 0xFFFF
    return 0xFFFF - total if total else 0


def _parse_arp(frame: bytes | memoryview) -> Request | None:
    if len(frame) < 14 + _ARP.size:
        return None
    *form, operation, asker_mac, asker_ip, _, target = _ARP.unpack_from(frame, 14)
    if tuple(form) != _ARP_FORM or operation != _ARP_REQUEST or asker_mac[0] & 1:
        return None
    if target == asker_ip:  # a gratuitous announcement asks nothing
        return None
    return Request(IPv4Address(target), asker_mac, asker_ip)


def _parse_solicitation(frame: bytes | memoryview) -> Request | None:
    if len(frame) < 14 + _IPV6.size + _ND.size:
        return None
    first, length, protocol, hops, source, destination = _IPV6.unpack_from(frame, 14)
    message = bytes(frame[54 : 54 + length])
    if first >> 28 != 6 or protocol != _ICMPV6 or hops != _HOP_LIMIT or not _ND.size <= length == len(message):
        return None
    kind, code, _, _, target = _ND.unpack_from(message)
    if kind != _NS or code or target[0] == 0xFF or source[0] == 0xFF or checksum(source, destination, message):
        return None
    options = _options(message[_ND.size :])
    probe = source == _UNSPECIFIED
    if options is None or (probe and (_SOURCE_LINK_ADDRESS in options or destination[:13] != _SOLICITED_NODE)):
        return None
    # The kernel's own MAC is in the Ethernet header; the option can only repeat it.
    asker_mac = bytes(frame[6:12])
    return None if asker_mac[0] & 1 else Request(IPv6Address(target), asker_mac, source)


def _options(data: bytes) -> set[int] | None:
    """The types of the options, or None when one of them has a bad length."""
    types = set()
    while data:
        size = data[1] * 8 if len(data) > 1 else 0
        if not 0 < size <= len(data):
            return None
        types.add(data[0])
        data = data[size:]
    return types


def _advertisement(request: Request, mac: bytes) -> bytes:
    probe = request.asker_ip == _UNSPECIFIED
    target = request.target.packed
    destination = _ALL_NODES if probe else request.asker_ip
    flags = _OVERRIDE if probe else _SOLICITED | _OVERRIDE
    option = bytes((_TARGET_LINK_ADDRESS, 1)) + mac
    total = checksum(target, destination, _ND.pack(_NA, 0, 0, flags, target) + option)
    message = _ND.pack(_NA, 0, total, flags, target) + option
    header = _IPV6.pack(6 << 28, len(message), _ICMPV6, _HOP_LIMIT, target, destination)
    outer = b"\x33\x33" + _ALL_NODES[12:] if probe else request.asker_mac
    return outer + mac + ETHERTYPE_IPV6 + header + message
