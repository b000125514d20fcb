"""NAT-PMP (RFC 6886) and PCP (RFC 6887), as much of them as a node needs: mappings of UDP ports, and the gateway's clock.

```
NAT-PMP request    0        1         2           4             6             8             12
                   +--------+---------+-----------+-------------+-------------+--------------+
 external address  | vers 0 |  op 0   |
 map UDP           | vers 0 |  op 1   | reserved  | inner port  | outer port  | lifetime (s) |
                   +--------+---------+-----------+-------------+-------------+--------------+
        response   | vers 0 | 128+op  |  result   |        epoch (s)          | address or ports and lifetime

PCP      0        1         2            4              8                  24
 request | vers 2 |   op    |  reserved  | lifetime (s) | client address   | MAP: nonce (12), protocol (1), reserved (3),
 response| vers 2 | 128+op  | res, result| lifetime (s) | epoch, 12 zeros  |      inner port, outer port, outer address (16)
```

All numbers are big-endian; PCP writes IPv4 addresses as `::ffff:a.b.c.d`. Both speak to port 5351 of the gateway; what it announces
goes to port 5350.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from ipop_tx.errors import BadMessage

SERVER_PORT, CLIENT_PORT = 5351, 5350
ALL_HOSTS = "224.0.0.1"
"""Where a gateway announces that it has restarted."""
NONCE_BYTES = 12
LARGEST_PCP = 1100

PMP, PCP = 0, 2
_ANSWER = 0x80
_PMP_ADDRESS, _PMP_MAP_UDP = 0, 1
_PCP_ANNOUNCE, _PCP_MAP = 0, 1
_UDP = 17

_PMP_HEAD = struct.Struct("!BBHI")
_PMP_REQUEST = struct.Struct("!BBHHHI")
_PMP_PORTS = struct.Struct("!HHI")
_PCP_REQUEST = struct.Struct("!BBHI16s")
_PCP_HEAD = struct.Struct("!BBBBII12x")
_PCP_BODY = struct.Struct("!12sB3xHH16s")

UNSUPPORTED_VERSION = 1
"""The result by which either protocol says that it is the other one's gateway."""
PMP_RESULTS = {
    1: "it does not speak this version",
    2: "it refuses: port mapping is switched off there",
    3: "it has no outer address",
    4: "it is out of resources",
    5: "it does not know this request",
}
PCP_RESULTS = {
    1: "it does not speak this version",
    2: "it refuses: port mapping is switched off there",
    3: "it could not read our request",
    4: "it does not know this request",
    5: "it does not know an option",
    6: "it could not read an option",
    7: "it has no outer address",
    8: "it is out of resources",
    9: "it does not map UDP",
    10: "we have as many mappings as it allows",
    11: "it cannot give the outer port asked for",
    12: "it sees us at another address than our own: there is a NAT before it",
    13: "it allows no mapping for that far end",
}


@dataclass(frozen=True, slots=True)
class OuterAddress:
    """NAT-PMP: the gateway's outer address."""

    result: int
    epoch: int
    address: IPv4Address | IPv6Address | None


@dataclass(frozen=True, slots=True)
class Mapped:
    """A mapping was made, kept, taken away (`lifetime` 0) or refused (`result` not 0). Of PCP only: `nonce` and `address`."""

    version: int
    result: int
    epoch: int
    inner: int
    outer: int
    lifetime: int
    """Seconds; of a refusal by PCP, for how long it will not change."""
    nonce: bytes = b""
    address: IPv4Address | IPv6Address | None = None


@dataclass(frozen=True, slots=True)
class Announced:
    """PCP: the gateway lives; its clock says whether it has forgotten. Also what a gateway says to a version that it does not know."""

    result: int
    epoch: int


Answer = OuterAddress | Mapped | Announced


def pmp_address() -> bytes:
    """Ask for the outer address by NAT-PMP."""
    return bytes((PMP, _PMP_ADDRESS))


def pmp_map(inner: int, outer: int, lifetime: int) -> bytes:
    """Ask for a mapping by NAT-PMP. `lifetime` 0, with `outer` 0, takes it away."""
    return _PMP_REQUEST.pack(PMP, _PMP_MAP_UDP, 0, inner, outer, lifetime)


def pcp_announce(client: IPv4Address) -> bytes:
    """Ask for the gateway's clock by PCP."""
    return _PCP_REQUEST.pack(PCP, _PCP_ANNOUNCE, 0, 0, _mapped(client))


def pcp_map(client: IPv4Address, nonce: bytes, inner: int, outer: int, lifetime: int) -> bytes:
    """Ask for a mapping by PCP, of any outer address. `lifetime` 0 takes it away; the nonce must be that with which it was made."""
    body = _PCP_BODY.pack(nonce, _UDP, inner, outer, _mapped(IPv4Address(0)))
    return _PCP_REQUEST.pack(PCP, _PCP_MAP, 0, lifetime, _mapped(client)) + body


def decode(data: bytes) -> Answer:
    """Read what a gateway sends. Raises `BadMessage` for anything else."""
    if len(data) < _PMP_HEAD.size or not data[1] & _ANSWER:
        raise BadMessage("a gateway's answer is no answer")
    if data[0] == PMP:
        return _pmp(data)
    if data[0] == PCP:
        return _pcp(data)
    raise BadMessage(f"a gateway answers in version {data[0]}")


def _pmp(data: bytes) -> Answer:
    _, op, result, epoch = _PMP_HEAD.unpack_from(data)
    op ^= _ANSWER
    rest = data[_PMP_HEAD.size :]
    if op == _PMP_ADDRESS:
        if not result and len(rest) != 4:
            raise BadMessage("a NAT-PMP answer has another length than an address")
        return OuterAddress(result, epoch, None if result else _usable(IPv4Address(rest)))
    if op != _PMP_MAP_UDP:
        raise BadMessage(f"a NAT-PMP answer to operation {op}")
    if len(rest) == _PMP_PORTS.size:
        inner, outer, lifetime = _PMP_PORTS.unpack(rest)
        return Mapped(PMP, result, epoch, inner, outer, lifetime)
    if result and not rest:  # RFC 6886, section 3.5, wants the fields to be there, and not every gateway puts them
        return Mapped(PMP, result, epoch, 0, 0, 0)
    raise BadMessage("a NAT-PMP answer has another length than a mapping")


def _pcp(data: bytes) -> Answer:
    if len(data) % 4 or not _PCP_HEAD.size <= len(data) <= LARGEST_PCP:
        raise BadMessage("a PCP answer has a length that none has")
    _, op, _, result, lifetime, epoch = _PCP_HEAD.unpack_from(data)
    op ^= _ANSWER
    if op == _PCP_ANNOUNCE or result == UNSUPPORTED_VERSION:
        return Announced(result, epoch)
    if op != _PCP_MAP:
        raise BadMessage(f"a PCP answer to operation {op}")
    if len(data) < _PCP_HEAD.size + _PCP_BODY.size:
        raise BadMessage("a PCP answer ends before its mapping does")
    nonce, protocol, inner, outer, packed = _PCP_BODY.unpack_from(data, _PCP_HEAD.size)
    if protocol != _UDP:
        raise BadMessage(f"a PCP answer about protocol {protocol}")
    address = IPv6Address(packed)
    return Mapped(PCP, result, epoch, inner, outer, lifetime, nonce, None if result else _usable(address.ipv4_mapped or address))


def _usable(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address | None:
    """None for what nobody can be reached at: a gateway without an address says 0.0.0.0."""
    no = address.is_unspecified or address.is_multicast or address.is_loopback or address.is_link_local
    return None if no else address


def _mapped(address: IPv4Address) -> bytes:
    return IPv6Address(f"::ffff:{address}").packed
