"""How often members may ask what costs this node some work."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from ipop_tx.errors import LocalMisuse
from ipop_tx.values import Ident

PER = 10.0
"""Seconds for which a question counts."""


class Limit:
    """So many questions of one member, and of all together."""

    def __init__(self, clock: Callable[[], float], of_one: int = 20, of_all: int = 200) -> None:
        self._clock = clock
        self._of_one = of_one
        self._of_all = of_all
        self._asked: deque[tuple[float, Ident]] = deque()

    def check(self, asker: Ident) -> None:
        """Count a question. Raises `LocalMisuse` for one too many, which does not count."""
        now = self._clock()
        while self._asked and now - self._asked[0][0] >= PER:
            self._asked.popleft()
        if len(self._asked) >= self._of_all or sum(ident == asker for _, ident in self._asked) >= self._of_one:
            raise LocalMisuse("too many questions at once", f"wait {PER:.0f} seconds")
        self._asked.append((now, asker))
