"""Sees relays that answer for themselves and lose, alter or keep the traffic of others.

A relay tells challenges from traffic: it sees kinds and lengths. So that challenges come through proves nothing. What proves it are the
reports of the peer (`m.Opened`), which are sealed end to end: records that were sent and, a while later, not opened. What was altered does
not open either, and what comes too late is not opened yet.

Watched are links that go by a relay, in windows. Two bad ones in turn make the relay doubtful (`c.DoubtRelay`).
"""

from __future__ import annotations

from dataclasses import dataclass

from ipop_tx.forwarding.fib import Adjacency
from ipop_tx.values import Ident

WINDOW = 1.0
"""Seconds of a window at least, beside three round trips."""
LEAST = 3
"""Records of traffic in a window at least."""
LOST = 0.6
"""Share of the traffic that has not been opened, from which on a window is bad."""
BAD = 2
"""Bad windows in turn."""


@dataclass(slots=True)
class _Window:
    """What had been sent and told when it began."""

    way: tuple[int, bytes]
    """The session and the way; another one is judged anew."""
    begun: float
    sealed: int
    opened: int
    bad: int = 0
    traffic: int = 0
    """Records of traffic that were sent before the last report, since the window began ..."""
    before: int = 0
    """... and those of the adjacency's count that were sent before it."""


class RelayWatch:
    """One node's windows, by peer."""

    def __init__(self) -> None:
        self._windows: dict[Ident, _Window] = {}
        self._told: dict[Ident, tuple[int, int, int]] = {}
        """Of which session a peer has told last, the greatest counter that it has opened, and how many records."""

    def reported(self, adjacency: Adjacency, index: int, highest: int, opened: int) -> None:
        """The peer has told; the adjacency's count of records is about to begin anew."""
        self._told[adjacency.ident] = index, highest, opened
        window = self._windows.get(adjacency.ident)
        if window is not None:
            window.traffic += adjacency.tx_records - window.before
            window.before = 0

    def forget(self, ident: Ident) -> None:
        """The link is down."""
        self._windows.pop(ident, None)
        self._told.pop(ident, None)

    def is_bad(self, now: float, adjacency: Adjacency, rtt: float) -> bool:
        """To be asked now and then: whether the relay of a peer loses traffic. True once for each time it is found so."""
        channel = adjacency.channel
        if adjacency.hop is None or channel is None:
            self._windows.pop(adjacency.ident, None)
            return False
        way = channel.send_index, adjacency.relay_header
        index, highest, opened = self._told.get(adjacency.ident, (0, -1, 0))
        if index != way[0]:
            highest, opened = -1, 0
        window = self._windows.get(adjacency.ident)
        if window is None or window.way != way:
            self._windows[adjacency.ident] = _Window(way, now, channel.datagrams_sealed, opened, before=adjacency.tx_records)
            return False
        traffic = window.traffic + adjacency.tx_records - window.before
        if now - window.begun < WINDOW + 3 * rtt or traffic < LEAST:
            return False
        lost = channel.datagrams_sealed - window.sealed - (opened - window.opened)
        bad = window.bad + 1 if highest < window.sealed or lost >= LOST * traffic else 0
        fresh = _Window(way, now, channel.datagrams_sealed, opened, bad % BAD, before=adjacency.tx_records)
        self._windows[adjacency.ident] = fresh
        return bad >= BAD
