"""DHCP messages (RFC 2131, RFC 2132): bytes <-> frozen values.

```
 0    1       2      3      4     8      10      12       16       20       24       28       44      108    236      240
 +----+-------+------+------+-----+------+-------+--------+--------+--------+--------+--------+-------+------+--------+---------
 | op | htype | hlen | hops | xid | secs | flags | ciaddr | yiaddr | siaddr | giaddr | chaddr | sname | file | cookie | options
 +----+-------+------+------+-----+------+-------+--------+--------+--------+--------+--------+-------+------+--------+---------
```

An option is a code, a length and that many bytes; one that comes several times is put together (RFC 3396). Options may go on in `file`
and `sname` (option 52).
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from ipop_tx.errors import BadMessage

DISCOVER, OFFER, REQUEST, DECLINE, ACK, NAK, RELEASE, INFORM = range(1, 9)
"""Values of option 53."""
SUBNET_MASK, ROUTER, DNS, HOST_NAME, DOMAIN, MTU = 1, 3, 6, 12, 15, 26
REQUESTED, LEASE_SECONDS, OVERLOAD, KIND, SERVER, TEXT, LARGEST = 50, 51, 52, 53, 54, 56, 57
RENEW_SECONDS, REBIND_SECONDS, CLIENT, ROUTES = 58, 59, 61, 121
"""Codes of options."""
HOLDER_BYTES = 64
"""The longest name of a client; longer client identifiers are hashed."""
NOWHERE = bytes(4)
"""The address of who has none."""

_FIXED = struct.Struct(">BBBB4sHH4s4s4s4s16s")
_SNAME, _FILE, _COOKIE_AT, _OPTIONS = 44, 108, 236, 240
_COOKIE = b"\x63\x82\x53\x63"
_ETHERNET, _MAC_BYTES = 1, 6
_PAD, _END = 0, 255
_BROADCAST_FLAG = 0x8000
_LEAST = 300  # what a BOOTP relay or an old client takes (RFC 1542, 2.1)
_MOST = 1472  # an Ethernet frame's worth
_LENGTHS = {REQUESTED: 4, LEASE_SECONDS: 4, KIND: 1, SERVER: 4, LARGEST: 2}


@dataclass(frozen=True, slots=True)
class Message:
    """One message between an Ethernet client and a server beside it; addresses are 4 bytes, `NOWHERE` where there is none."""

    kind: int
    xid: bytes
    mac: bytes
    """The client's."""
    options: Mapping[int, bytes] = field(default_factory=dict)
    """By code, without the kind."""
    reply: bool = False
    broadcast: bool = False
    """Whether the client can be answered by broadcast only."""
    seconds: int = 0
    """For how long the client has been asking."""
    client: bytes = NOWHERE
    """The address that the client has and uses."""
    yours: bytes = NOWHERE
    """The address that the server gives."""

    @property
    def holder(self) -> bytes:
        """What stands for this client for ever, 2 to 64 bytes: its client identifier, else its MAC address in the form of one."""
        identifier = self.options.get(CLIENT, bytes((_ETHERNET,)) + self.mac)
        return identifier if len(identifier) <= HOLDER_BYTES else b"\0" + hashlib.sha256(identifier).digest()

    @property
    def asked(self) -> bytes | None:
        """The address that the client wishes for, or has."""
        return self.options.get(REQUESTED) or (self.client if self.client != NOWHERE else None)


def decode(data: bytes | memoryview) -> Message:
    """Read a message. Raises `BadMessage` for all that is malformed, is not of Ethernet, or came through a relay agent."""
    data = bytes(data)
    if not _OPTIONS <= len(data) <= _MOST:
        raise BadMessage(f"a DHCP message of {len(data)} bytes")
    op, hardware, length, _, xid, seconds, flags, client, yours, _, relay, mac = _FIXED.unpack_from(data)
    if op not in (1, 2) or (hardware, length) != (_ETHERNET, _MAC_BYTES) or data[_COOKIE_AT:_OPTIONS] != _COOKIE:
        raise BadMessage("no DHCP message of an Ethernet client")
    if relay != NOWHERE:
        raise BadMessage("a DHCP message from a relay agent")
    if mac[0] & 1 or not any(mac[:_MAC_BYTES]):
        raise BadMessage("a DHCP client with the MAC address of a group or of nobody")
    options = _options_of(data)
    kind = options.pop(KIND, b"\0")[0]
    if not DISCOVER <= kind <= INFORM:
        raise BadMessage("a DHCP message of no known kind")
    return Message(kind, xid, mac[:_MAC_BYTES], options, op == 2, bool(flags & _BROADCAST_FLAG), seconds, client, yours)


def encode(message: Message) -> bytes:
    """Write a message; options in the order in which they are given, the kind first."""
    flags = _BROADCAST_FLAG if message.broadcast else 0
    head = (2 if message.reply else 1, _ETHERNET, _MAC_BYTES, 0, message.xid, message.seconds, flags)
    fixed = _FIXED.pack(*head, message.client, message.yours, NOWHERE, NOWHERE, message.mac)
    options = b"".join(_packed(code, value) for code, value in [(KIND, bytes((message.kind,))), *message.options.items()])
    return (fixed.ljust(_COOKIE_AT, b"\0") + _COOKIE + options + bytes((_END,))).ljust(_LEAST, b"\0")


def size_of(options: Mapping[int, bytes]) -> int:
    """How many bytes these options take."""
    return sum(len(_packed(code, value)) for code, value in options.items())


def routes(entries: list[tuple[int, bytes, bytes]]) -> bytes:
    """Option 121 (RFC 3442) of (prefix length, network, gateway): of the network as many bytes as its prefix needs."""
    return b"".join(bytes((length,)) + network[: (length + 7) // 8] + gateway for length, network, gateway in entries)


def _packed(code: int, value: bytes) -> bytes:
    parts = [value[at : at + 255] for at in range(0, len(value), 255)] or [b""]
    return b"".join(bytes((code, len(part))) + part for part in parts)


def _options_of(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    for code, value in _pairs(data[_OPTIONS:]):
        found[code] = found.get(code, b"") + value
    more = int.from_bytes(found.pop(OVERLOAD, b""), "big")
    for bit, area in ((1, data[_FILE:_COOKIE_AT]), (2, data[_SNAME:_FILE])):
        for code, value in _pairs(area) if more & bit else ():
            found[code] = found.get(code, b"") + value
    for code, length in _LENGTHS.items():
        if code in found and len(found[code]) != length:
            raise BadMessage(f"DHCP option {code} of {len(found[code])} bytes")
    if len(found.get(CLIENT, b"xx")) < 2:
        raise BadMessage("a DHCP client identifier of less than two bytes")
    return found


def _pairs(area: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(area) and area[at] != _END:
        if area[at] == _PAD:
            at += 1
            continue
        end = at + 2 + area[at + 1] if at + 1 < len(area) else len(area) + 1
        if end > len(area):
            raise BadMessage(f"DHCP option {area[at]} goes beyond its end")
        yield area[at], area[at + 2 : end]
        at = end
