"""The header of a relayed datagram (payload of sealed kind 3).

```
0     1       2     3          4             24        44                       n
+-----+-------+-----+----------+-------------+---------+----------------+-------+----------+
| ttl | agent | via | reserved | destination | source  | agent (0 or 1) | via.. | datagram |
+-----+-------+-----+----------+-------------+---------+----------------+-------+----------+
       counts of 20-byte idents
```
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace

from ipop_tx.errors import BadMessage
from ipop_tx.values import IDENT_BYTES, Ident

MAX_TTL = 32
MAX_VIA = 4
_FIXED = struct.Struct("!BBBx20s20s")


@dataclass(frozen=True, slots=True)
class Relayed:
    """A datagram on its way from `source` to `destination` over the ring."""

    destination: Ident
    source: Ident
    datagram: bytes
    ttl: int = MAX_TTL
    agent: Ident | None = None
    """The member through which `source` is reached while it has no place on the ring."""
    via: tuple[Ident, ...] = ()
    """Members to pass first, in order (loose source route)."""

    def encode(self) -> bytes:
        """The payload's bytes."""
        agent = self.agent or b""
        head = _FIXED.pack(self.ttl, 1 if agent else 0, len(self.via), self.destination, self.source)
        return b"".join((head, agent, *self.via, self.datagram))

    @classmethod
    def decode(cls, payload: bytes) -> Relayed:
        """Read a payload. Raises `BadMessage` when it is short or its counts are out of range."""
        if len(payload) < _FIXED.size:
            raise BadMessage("a relayed datagram is shorter than its header")
        ttl, agents, hops, destination, source = _FIXED.unpack_from(payload)
        start = _FIXED.size + IDENT_BYTES * (agents + hops)
        if agents > 1 or hops > MAX_VIA or ttl > MAX_TTL or len(payload) <= start:
            raise BadMessage("a relayed datagram's header is out of range")
        idents = [payload[at : at + IDENT_BYTES] for at in range(_FIXED.size, start, IDENT_BYTES)]
        agent = idents.pop(0) if agents else None
        return cls(destination, source, payload[start:], ttl, agent, tuple(idents))

    def next(self, via: tuple[Ident, ...]) -> Relayed:
        """The same datagram one hop on, with what is left of the route."""
        return replace(self, ttl=self.ttl - 1, via=via)
