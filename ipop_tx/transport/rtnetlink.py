"""rtnetlink(7), as much of it as a node needs. A library that knows all of it would be a sixth of the daemon's memory.

```
 0        4      6       8          12     16
 +--------+------+-------+----------+------+------------------------+-----------
 | length | type | flags | sequence | port | ifinfomsg or ifaddrmsg | attributes: length (2), type (2), value, padding to 4
 +--------+------+-------+----------+------+------------------------+-----------
```

All numbers are in the machine's own order.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator, Mapping

LINK = struct.Struct("=BxHiII")
"""ifinfomsg: family, type, index, flags, which flags to change."""
ADDRESS = struct.Struct("=BBBBI")
"""ifaddrmsg: family, prefix length, flags, scope, index."""
ROUTE = struct.Struct("=BBBBBBBBI")
"""rtmsg: family, length of destination and source prefix, tos, table, protocol, scope, type, flags."""
NUMBER = struct.Struct("=I")
"""The value of most attributes."""
RTM_NEWLINK, RTM_GETLINK, RTM_SETLINK, RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR, RTM_NEWROUTE, RTM_GETROUTE = 16, 18, 19, 20, 21, 22, 24, 26
CREATE = 0x600
"""Flags: make what must not exist yet."""

_NLMSG = struct.Struct("=IHHII")
_RTATTR = struct.Struct("=HH")
_ERROR = struct.Struct("=i")
_REQUEST, _ACK, _DUMP = 0x001, 0x004, 0x300
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_LARGEST = 1 << 16


def dump(question: int, answer: int, body: bytes) -> Iterator[bytes]:
    """The bodies of all messages of type `answer` that the kernel has to say to `question`. Raises `OSError`."""
    return (found for kind, found in _asked(question, _DUMP, body) if kind == answer)


def ask(question: int, body: bytes, attributes: Mapping[int, bytes] | None = None, flags: int = 0) -> list[bytes]:
    """Have one thing done or told; gives the bodies of the answer, if it has any. Raises `OSError` when the kernel refuses."""
    told = b"".join(packed(kind, value) for kind, value in (attributes or {}).items())
    return [found for _, found in _asked(question, _ACK | flags, body + told)]


def _asked(question: int, flags: int, body: bytes) -> Iterator[tuple[int, bytes]]:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as netlink:
        netlink.send(_NLMSG.pack(_NLMSG.size + len(body), question, _REQUEST | flags, 1, 0) + body)
        while True:
            for kind, found in messages_of(netlink.recv(_LARGEST)):
                if kind == _NLMSG_DONE:
                    return
                if kind == _NLMSG_ERROR:
                    _check(found)
                    return
                yield kind, found


def _check(body: bytes) -> None:
    """An error of 0 is the acknowledgement."""
    number = -_ERROR.unpack_from(body)[0]
    if number:
        raise OSError(number, os.strerror(number))


def messages_of(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and body of each netlink message in what was received at once."""
    while len(data) >= _NLMSG.size:
        length, kind, *_ = _NLMSG.unpack_from(data)
        yield kind, data[_NLMSG.size : length]
        data = data[_aligned(length) :]


def attributes_of(data: bytes) -> dict[int, bytes]:
    """Attributes by type, padding included where the value has any."""
    found = {}
    while len(data) >= _RTATTR.size:
        length, kind = _RTATTR.unpack_from(data)
        found[kind] = data[_RTATTR.size : length]
        data = data[_aligned(length) :]
    return found


def packed(kind: int, value: bytes) -> bytes:
    """An attribute."""
    length = _RTATTR.size + len(value)
    return _RTATTR.pack(length, kind) + value + bytes(_aligned(length) - length)


def _aligned(length: int) -> int:
    return max(4, length + 3 & ~3)
