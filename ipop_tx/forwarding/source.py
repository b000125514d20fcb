"""Whether an inner IPv4 source address belongs to the peer that uses it: asked once, remembered, bounded."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from ipaddress import IPv4Address
from typing import Literal, Protocol

from twisted.python.failure import Failure

from ipop_tx.errors import IpopError
from ipop_tx.forwarding.fib import Adjacency, Fib
from ipop_tx.interfaces import IForwardingControl
from ipop_tx.log import Logger
from ipop_tx.values import short

WAITING_FRAMES = 64
WAITING_BYTES = 1 << 18
"""Most that is kept for one (peer, address) while it is verified."""
DOUBTFUL_ADDRESSES = 64
"""Addresses of one peer that are being verified or are refused: bounds how many look-ups a peer can cause."""
REFUSED_FOR = 10.0
"""Seconds for which a refusal stands."""
UNKNOWN_FOR = 1.0
"""Seconds until we ask again when the look-up failed."""


class Dropped(Protocol):
    """Counts frames that are dropped."""

    def __call__(self, reason: Literal["in_source_address", "in_unverified"], count: int = 1) -> None: ...


class SourceCheck:
    """Holds the frames of unverified addresses; its state is in the adjacency and dies with it."""

    _log = Logger()

    def __init__(
        self,
        fib: Fib,
        control: IForwardingControl,
        clock: Callable[[], float],
        deliver: Callable[[Adjacency, bytes], None],
        dropped: Dropped,
    ) -> None:
        self._fib = fib
        self._control = control
        self._clock = clock
        self._deliver = deliver
        self._dropped = dropped

    def unknown(self, adjacency: Adjacency, address: bytes, frame: bytes) -> None:
        """A frame whose source `address` (4 bytes) is not among the adjacency's addresses."""
        waiting = adjacency.asked.get(address)
        if self._is_refused(adjacency, address):
            self._dropped("in_source_address")
        elif waiting is not None:
            self._wait(waiting, frame)
        elif self._is_crowded(adjacency):
            self._dropped("in_unverified")
        else:
            adjacency.asked[address] = [frame]
            verdict = self._control.owns(adjacency.ident, IPv4Address(address))
            verdict.addErrback(partial(self._unverifiable, adjacency)).addCallback(partial(self._settled, adjacency, address))

    def _wait(self, waiting: list[bytes], frame: bytes) -> None:
        if len(waiting) < WAITING_FRAMES and sum(map(len, waiting)) + len(frame) <= WAITING_BYTES:
            waiting.append(frame)
        else:
            self._dropped("in_unverified")

    def _is_refused(self, adjacency: Adjacency, address: bytes) -> bool:
        until = adjacency.refused.get(address)
        return until is not None and self._clock() < until

    def _is_crowded(self, adjacency: Adjacency) -> bool:
        if len(adjacency.asked) + len(adjacency.refused) < DOUBTFUL_ADDRESSES:
            return False
        now = self._clock()
        adjacency.refused = {address: until for address, until in adjacency.refused.items() if now < until}
        return len(adjacency.asked) + len(adjacency.refused) >= DOUBTFUL_ADDRESSES

    def _unverifiable(self, adjacency: Adjacency, failure: Failure) -> None:
        if not isinstance(failure.value, IpopError):
            self._log.failure("owns_failed ident={ident}", failure, ident=short(adjacency.ident))

    def _settled(self, adjacency: Adjacency, address: bytes, owned: bool | None) -> None:
        frames = adjacency.asked.pop(address)
        if owned and adjacency.indexes:  # else it has been forgotten meanwhile
            adjacency.refused.pop(address, None)
            adjacency.addresses.add(address)
            for frame in frames:
                self._deliver(adjacency, frame)
        else:
            adjacency.refused[address] = self._clock() + (UNKNOWN_FOR if owned is None else REFUSED_FOR)
            self._dropped("in_source_address", len(frames))
