"""How wide records may be: how many datagrams may live and die together.

A record of k pieces is lost when one of them is, so with a loss of p for each datagram a share of about k x p of the traffic is lost.
The rule: k x p <= 0.1 %. What p is, the receiver tells: the greatest counter that it has opened and how many records it has opened in
all, both authenticated. From that we know lost records, and each has lost at least one piece.

The estimate forgets: it is a sum over the last `MEMORY` pieces, older ones fading out. It is also careful: it counts one loss that has
not happened yet, so n pieces without any loss prove no more than p < 1 / n. A path of which nothing is known has width 1, and grows with
proof.

When wide records are sent and nothing is reported for a while, not one of them may have been opened: then the width is 1 until
there is a report, which will tell.

Somebody beside the path can inject pieces. That makes a record fail as a whole that would have arrived, so a failure counts as an
attack: the width is 1 at once, for a while, and for twice as long each time it happens again soon after.
"""

from __future__ import annotations

from ipop_tx.wire.datagram import MAX_PIECES

BUDGET = 0.001
"""Share of the traffic that may be lost because records are wide."""
MEMORY = 65536.0
"""Pieces over which the estimate reaches."""
HALF_LIFE = 60.0
"""Seconds after which what was measured counts half, however little was sent since."""
FIRST_HOLD = 10.0
"""Seconds for which the width stays 1 after a record that failed."""
LONGEST_HOLD = 640.0
UNREPORTED = 1.0
"""Seconds after which wide records of which nothing is heard are taken for lost."""


class Width:
    """The width of one direction of one path. Reports may come late, twice or out of order; `now` never goes back."""

    __slots__ = (
        "_at", "_before", "_failed", "_held_until", "_highest", "_hold", "_lost", "_opened", "_pieces", "_session",
        "_unheard", "lost", "most", "pieces",
    )  # fmt: skip

    def __init__(self, most: int = MAX_PIECES) -> None:
        self.most = most
        """Never wider than this."""
        self.pieces = 1
        """The width: most pieces of a record now."""
        self.lost = 0
        """Records known to be lost since the start."""
        self._hold = FIRST_HOLD
        self._held_until = float("-inf")
        self._failed = 0
        self._session, self._highest, self._opened = -1, -1, 0
        self._unheard: tuple[float, int] | None = None
        """Since when we hear nothing of wide records, and how many had been sent by then."""
        self.forget()

    def forget(self, session: int = -1, counter: int = 0) -> None:
        """Another path: nothing is known of it, and reports of records of `session` before `counter` tell nothing of it.

        An attacker beside the old one may be beside this one too, so that is remembered.
        """
        self._before = (session, counter)
        self._pieces = self._lost = 0.0
        self._at = float("-inf")
        self.pieces = 1

    def report(self, now: float, session: int, highest: int, opened: int, failed: int, pieces_each: float) -> float:
        """The peer has opened `opened` records of a session, the latest with counter `highest`; `failed` wide ones did not open.

        `pieces_each` is the mean number of pieces of the records that we sent lately. Gives the share of the records since the last
        report that were lost.
        """
        self._unheard = None
        if session != self._session:
            self._session, self._highest, self._opened = session, -1, 0
            self._failed = min(self._failed, failed)  # a peer that has started again counts anew
        if failed > self._failed:  # also without any news of what was opened: perhaps nothing was
            self._failed = failed
            self._suspect(now)
        span, got = highest - self._highest, opened - self._opened
        if span <= 0:
            return 0.0
        begin = self._highest + 1
        self._highest, self._opened = highest, opened
        if session == self._before[0] and begin < self._before[1]:
            return 0.0
        # Negative when records come that were only late: they were counted as lost before.
        lost = max(-self.lost, min(span - got, span))
        self.lost += lost
        self._learn(now, span * pieces_each, lost)
        self.pieces = self._allowed(now)
        return max(0, lost) / span

    def look(self, now: float, records: int) -> None:
        """To be called now and then: so many records were sent since the last report."""
        if self.pieces == 1 or not records:
            self._unheard = None
        elif self._unheard is None:
            self._unheard = (now, records)
        elif now - self._unheard[0] >= UNREPORTED and records > self._unheard[1]:
            self._unheard = None
            self.pieces = 1

    def _learn(self, now: float, pieces: float, lost: float) -> None:
        keep = 0.5 ** ((now - self._at) / HALF_LIFE) * max(0.0, 1.0 - pieces / MEMORY)
        self._at = now
        self._pieces = min(self._pieces * keep + pieces, MEMORY)
        self._lost = max(0.0, self._lost * keep + lost * min(1.0, MEMORY / max(pieces, 1.0)))

    def _allowed(self, now: float) -> int:
        if now < self._held_until:
            return 1
        return max(1, min(self.most, int(BUDGET * self._pieces / (self._lost + 1.0))))

    def _suspect(self, now: float) -> None:
        again = now < self._held_until + self._hold
        self._hold = min(2 * self._hold, LONGEST_HOLD) if again else FIRST_HOLD
        self._held_until = now + self._hold
        self.pieces = 1
