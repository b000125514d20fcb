"""A bucket of tokens: how much of something there may be at once, and for long."""

from __future__ import annotations


class Bucket:
    """`most` tokens, refilled at `rate` a second."""

    __slots__ = ("_left", "_most", "_rate", "_since")

    def __init__(self, most: float, rate: float) -> None:
        self._most = self._left = most
        self._rate = rate
        self._since = 0.0

    def take(self, now: float) -> bool:
        """Take one token, if there is one."""
        self._refill(now)
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True

    def full(self, now: float) -> bool:
        """Whether nothing is known of it that a new one would not know too."""
        self._refill(now)
        return self._left >= self._most

    def _refill(self, now: float) -> None:
        self._left = min(self._most, self._left + (now - self._since) * self._rate)
        self._since = now
