"""nf_tables over netlink, as much of it as a few rules need (linux/netfilter/nf_tables.h).

A change is one *batch*, which the kernel takes as a whole or not at all:

```
 begin | message, message, ... | end        a message: netlink header | family (1), version (1), resource (2) | attributes
```

Numbers in headers are in the machine's own order, those in attributes big-endian. A table whose flag says `OWNER` belongs to the socket
that made it: nobody else can change it, and the kernel removes it with the socket, however its process ends (Linux 5.12).
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress

from ipop_tx.transport.rtnetlink import messages_of, packed

INET, ARP = 1, 3
"""Families of tables."""
IPV4, IPV6 = 2, 10
"""What `nfproto` of a packet in a table of family `INET` is."""
OWNER = 2
LOCAL_IN, ARP_IN = 1, 0
"""Hooks: packets for this machine itself."""

_NETFILTER, _SUBSYSTEM = 12, 10
_NLMSG, _NFGEN, _ERROR = struct.Struct("=IHHII"), struct.Struct("!BBH"), struct.Struct("=i")
_BEGIN, _END, _NLMSG_ERROR = 16, 17, 2
_REQUEST, _ACK, _CREATE, _APPEND = 0x001, 0x004, 0x400, 0x800
_NEW_TABLE, _DELETE_TABLE, _NEW_CHAIN, _NEW_RULE, _DELETE_RULE = 0, 2, 3, 6, 8
_NESTED = 0x8000
_CHAIN = b"input\0"
_EARLY = -300
"""Before tracking of connections, which need not know of what is dropped."""
_IIFNAME, _NFPROTO = 6, 15

Message = tuple[int, int, int, bytes]
"""Type, flags, family, attributes."""


class Batches:
    """A socket to nf_tables; what it owns is gone when it is closed. Raises `OSError`."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETFILTER)

    def commit(self, messages: Sequence[Message]) -> None:
        """Have all of it done. Raises `OSError` with the kernel's first complaint, and then nothing was done."""
        framed = [(_BEGIN, 0, 0, b""), *((_SUBSYSTEM << 8 | kind, flags | _ACK, family, rest) for kind, flags, family, rest in messages)]
        self._socket.send(b"".join(_framed(*one) for one in [*framed, (_END, 0, 0, b"")]))
        refused = [number for number in self._answers() if number]
        if refused:
            raise OSError(refused[0], os.strerror(refused[0]))

    def _answers(self) -> Iterator[int]:
        """The error of each message, 0 for none: they are there, since all was done within the call."""
        with suppress(BlockingIOError):
            while True:
                for kind, body in messages_of(self._socket.recv(1 << 16, socket.MSG_DONTWAIT)):
                    if kind == _NLMSG_ERROR:
                        yield -_ERROR.unpack_from(body)[0]

    def close(self) -> None:
        """Idempotent."""
        self._socket.close()


def table(family: int, name: str, flags: int) -> Message:
    """Make a table."""
    return _NEW_TABLE, _CREATE, family, packed(1, _text(name)) + packed(2, _number(flags))


def no_table(family: int, name: str) -> list[Message]:
    """Remove a table, if it is there."""
    return [(_NEW_TABLE, _CREATE, family, packed(1, _text(name))), (_DELETE_TABLE, 0, family, packed(1, _text(name)))]


def chain(family: int, name: str, hook: int) -> Message:
    """The only chain of a table, at a hook."""
    place = _nested(4, packed(1, _number(hook)), packed(2, _number(_EARLY & 0xFFFFFFFF)))
    return _NEW_CHAIN, _CREATE, family, packed(1, _text(name)) + packed(3, _CHAIN) + place + packed(7, b"filter\0")


def no_rules(family: int, name: str) -> Message:
    """Empty that chain."""
    return _DELETE_RULE, 0, family, packed(1, _text(name)) + packed(2, _CHAIN)


def drop(family: int, name: str, *matches: bytes) -> Message:
    """A rule in that chain: drop what all of `matches` fit."""
    verdict = _expression("immediate", packed(1, _number(0)), _nested(2, _nested(2, packed(1, _number(0)))))
    rule = _nested(4, *matches, verdict)
    return _NEW_RULE, _CREATE | _APPEND, family, packed(1, _text(name)) + packed(2, _CHAIN) + rule


def came_by_none_of(interfaces: Sequence[str]) -> bytes:
    """The packet came by another interface."""
    return _meta(_IIFNAME) + b"".join(_compared(1, name.encode().ljust(16, b"\0")) for name in interfaces)


def of_protocol(number: int) -> bytes:
    """It is IPv4 or IPv6."""
    return _meta(_NFPROTO) + _compared(0, bytes([number]))


def has(offset: int, value: bytes) -> bytes:
    """It has this, so far behind the begin of its network header."""
    place = packed(1, _number(1)), packed(2, _number(1)), packed(3, _number(offset)), packed(4, _number(len(value)))
    return _expression("payload", *place) + _compared(0, value)


def _meta(key: int) -> bytes:
    return _expression("meta", packed(1, _number(1)), packed(2, _number(key)))


def _compared(how: int, value: bytes) -> bytes:
    """Register 1 with a value: 0 equal, 1 not equal."""
    return _expression("cmp", packed(1, _number(1)), packed(2, _number(how)), _nested(3, packed(1, value)))


def _expression(name: str, *attributes: bytes) -> bytes:
    return _nested(1, packed(1, _text(name)), _nested(2, *attributes))


def _nested(kind: int, *attributes: bytes) -> bytes:
    return packed(kind | _NESTED, b"".join(attributes))


def _framed(kind: int, flags: int, family: int, attributes: bytes) -> bytes:
    body = _NFGEN.pack(family, 0, _SUBSYSTEM if kind in (_BEGIN, _END) else 0) + attributes
    return _NLMSG.pack(_NLMSG.size + len(body), kind, _REQUEST | flags, kind, 0) + body


def _text(text: str) -> bytes:
    return text.encode() + b"\0"


def _number(number: int) -> bytes:
    return number.to_bytes(4, "big")
