"""Relayed traffic: records for others are passed on, those for us opened once more. Next hops come from the control plane."""

from __future__ import annotations

from collections.abc import Callable

from ipop_tx.forwarding.fib import Adjacency, Fib
from ipop_tx.forwarding.inbound import RELAY_ROOM
from ipop_tx.forwarding.sealing import Sealing
from ipop_tx.interfaces import IForwardingControl, ISession
from ipop_tx.values import IDENT_BYTES, Endpoint, Ident
from ipop_tx.wire.datagram import RELAY
from ipop_tx.wire.relay import FIXED_BYTES, MAX_TTL, MAX_VIA, TRAFFIC

REMEMBERED = 1.0
"""Seconds for which a next hop is believed, unless the FIB changes before."""
MOST_REMEMBERED = 1024

# The fixed part of the header (ipop_tx.wire.relay): ttl, back, via, flags, destination, source.
_DESTINATION, _SOURCE = 4, 24


class Relaying:
    """Passes records on. `nested` takes those that are for this node."""

    def __init__(
        self,
        ident: Ident,
        fib: Fib,
        control: IForwardingControl,
        sealing: Sealing,
        clock: Callable[[], float],
        drop: Callable[..., None],
    ) -> None:
        self.nested: Callable[[memoryview], None] = lambda record: None
        self.relayed = 0
        """Records passed on."""
        self._ident = ident
        self._fib = fib
        self._control = control
        self._sealing = sealing
        self._clock = clock
        self._drop = drop
        self._hops: dict[tuple[Ident, Ident], tuple[Adjacency | None, Ident | None, float]] = {}

    def forget(self) -> None:
        """The FIB has changed: ask for next hops anew."""
        self._hops.clear()

    def received(self, endpoint: Endpoint, session: ISession, peer: Adjacency, buffer: memoryview, end: int) -> None:
        """The content of a record of kind RELAY, in `buffer[RELAY_ROOM:end]`. What is no traffic is the control plane's."""
        begin = RELAY_ROOM
        if end - begin < FIXED_BYTES or not buffer[begin + 3] & TRAFFIC:
            self._control.unsealed(endpoint, session, RELAY, bytes(buffer[begin:end]))
            return
        ttl, back, via = buffer[begin], buffer[begin + 1], buffer[begin + 2]
        content = begin + FIXED_BYTES + via * IDENT_BYTES
        if back or via > MAX_VIA or ttl > MAX_TTL or content >= end:
            self._drop("relay_malformed")
            return
        target = bytes(buffer[begin + FIXED_BYTES :][:IDENT_BYTES]) if via else bytes(buffer[begin + _DESTINATION : begin + _SOURCE])
        while via and target == self._ident:  # twice, when somebody has put the next station in front of the route once more
            begin = self._shift(buffer, begin, IDENT_BYTES)
            via -= 1
            buffer[begin + 2] = via
            target = bytes(buffer[begin + FIXED_BYTES :][:IDENT_BYTES]) if via else bytes(buffer[begin + _DESTINATION : begin + _SOURCE])
        if not via and target == self._ident:
            self.nested(buffer[content:end])
        elif ttl <= 1:
            self._drop("relay_ttl")
        else:
            buffer[begin] = ttl - 1
            self._pass(peer, target, buffer, begin, end)

    def _pass(self, peer: Adjacency, target: Ident, buffer: memoryview, begin: int, end: int) -> None:
        hop, detour = self._next(target, peer.ident)
        if hop is None or (detour is not None and buffer[begin + 2] >= MAX_VIA):
            self._drop("relay_no_route")
            return
        if detour is not None:
            begin = self._shift(buffer, begin, -IDENT_BYTES)
            buffer[begin + FIXED_BYTES : begin + FIXED_BYTES + IDENT_BYTES] = detour
            buffer[begin + 2] += 1
        self.relayed += 1
        self._sealing.record(hop, RELAY, buffer[begin:end])

    def _shift(self, buffer: memoryview, begin: int, by: int) -> int:
        """Move the fixed header by some bytes, over the first ident of the route or before it; gives where it begins now."""
        buffer[begin + by : begin + by + FIXED_BYTES] = bytes(buffer[begin : begin + FIXED_BYTES])
        return begin + by

    def _next(self, target: Ident, came_by: Ident) -> tuple[Adjacency | None, Ident | None]:
        adjacency = self._fib.by_ident.get(target)
        if adjacency is not None and adjacency.endpoint is not None and adjacency.channel is not None:
            return adjacency, None
        now = self._clock()
        known = self._hops.get((target, came_by))
        if known is not None and now < known[2]:
            return known[:2]
        answer = self._control.next_hop(target, came_by)
        hop, detour = (self._fib.by_ident.get(answer[0]), answer[1]) if answer is not None else (None, None)
        if hop is not None and (hop.endpoint is None or hop.channel is None):
            hop = None
        if len(self._hops) >= MOST_REMEMBERED:
            self._hops.clear()
        self._hops[target, came_by] = (hop, detour, now + REMEMBERED)
        return hop, detour
