"""The last lines of the daemon's log, in memory: `ipop log` shows them wherever the daemon writes."""

from __future__ import annotations

from collections import deque
from typing import Any

from twisted.logger import ILogObserver, formatEventAsClassicLogText, globalLogPublisher
from zope.interface import implementer

from ipop_tx.errors import LocalMisuse

MOST = 1000
"""Lines kept."""
LONGEST = 2000
"""Characters of a line, or of a traceback."""


@implementer(ILogObserver)
class LogTail:
    """Watches the log from `start` on."""

    def __init__(self) -> None:
        self._lines: deque[tuple[int, str]] = deque(maxlen=MOST)
        self._number = 0

    def start(self) -> None:
        """Begin to watch. Twice is once."""
        globalLogPublisher.addObserver(self)

    def stop(self) -> None:
        """Watch no more."""
        globalLogPublisher.removeObserver(self)

    def __call__(self, event: dict[str, Any]) -> None:
        """One event."""
        text = formatEventAsClassicLogText(event)
        if text:
            self._number += 1
            self._lines.append((self._number, text.rstrip("\n")[:LONGEST]))

    def told(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """The lines after a number, the last ones if there are too many; and the number of the last. Raises `LocalMisuse`."""
        after, limit = arguments.get("after", 0), arguments.get("limit", MOST)
        if not isinstance(after, int) or not isinstance(limit, int) or limit < 1:
            raise LocalMisuse("after and limit are whole numbers", f"ask for instance for the last {MOST} lines")
        lines = [text for number, text in self._lines if number > after]
        return {"lines": lines[-limit:], "last": self._number}
