"""The header of a relayed datagram (payload of sealed kind 3).

```
0     1      2     3          4             24        44                n
+-----+------+-----+----------+-------------+---------+-------+---------+----------+
| ttl | back | via |  flags   | destination | source  | back ..| via .. | datagram |
+-----+------+-----+----------+-------------+---------+-------+---------+----------+
       counts of 20-byte idents
```
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace

from ipop_tx.errors import BadMessage
from ipop_tx.values import IDENT_BYTES, Ident

MAX_TTL = 32
MAX_VIA = 8
MAX_BACK = 6
TRAFFIC = 1
"""Flag: a record of a forwarding plane, which forwarding planes pass on; it notes no way back."""
_FIXED = struct.Struct("!BBBx20s20s")
FIXED_BYTES = _FIXED.size


@dataclass(frozen=True, slots=True)
class Relayed:
    """A datagram on its way from `source` to `destination` over the ring."""

    destination: Ident
    source: Ident
    datagram: bytes
    ttl: int = MAX_TTL
    back: tuple[Ident, ...] = ()
    """The members that passed it on, the last one first: the way back to `source`. Only small datagrams note it."""
    via: tuple[Ident, ...] = ()
    """Members to pass first, in order (loose source route)."""

    def encode(self) -> bytes:
        """The payload's bytes."""
        head = _FIXED.pack(self.ttl, len(self.back), len(self.via), self.destination, self.source)
        return b"".join((head, *self.back, *self.via, self.datagram))

    @classmethod
    def decode(cls, payload: bytes) -> Relayed:
        """Read a payload. Raises `BadMessage` when it is short or its counts are out of range."""
        if len(payload) < _FIXED.size:
            raise BadMessage("a relayed datagram is shorter than its header")
        ttl, back, via, destination, source = _FIXED.unpack_from(payload)
        start = _FIXED.size + IDENT_BYTES * (back + via)
        if back > MAX_BACK or via > MAX_VIA or ttl > MAX_TTL or len(payload) <= start:
            raise BadMessage("a relayed datagram's header is out of range")
        idents = tuple(payload[at : at + IDENT_BYTES] for at in range(_FIXED.size, start, IDENT_BYTES))
        return cls(destination, source, payload[start:], ttl, idents[:back], idents[back:])

    def traffic_header(self) -> bytes:
        """What stands before a record of the forwarding plane that takes this way."""
        head = _FIXED.pack(self.ttl, 0, len(self.via), self.destination, self.source)
        return b"".join((head[:3], bytes((TRAFFIC,)), head[4:], *self.via))

    def next(self, via: tuple[Ident, ...], back: tuple[Ident, ...]) -> Relayed:
        """The same datagram one hop on, with what is left of the route and the way back so far."""
        return replace(self, ttl=self.ttl - 1, via=via, back=back)
