"""The log: Twisted's, with a threshold of our own and fixed names of events and fields.

One event, one line; a line begins with the event's name. Fields: `peer` and `ident` (idents), `name` (of a node or interface),
`path`, `endpoints`, `address` (overlay), `reason` (a sentence), `source`, `expires`, `appoints`, `interface`, `error`, `shards` (how
many), `view` (its number), `members` (idents).
"""

from __future__ import annotations

from typing import Any

import twisted.logger
from twisted.logger import LogLevel


class Logger(twisted.logger.Logger):
    """A logger that keeps quiet below the threshold, which all of them share."""

    threshold = LogLevel.info

    def emit(self, level: Any, format: str | None = None, **fields: Any) -> None:  # noqa: A002 - Twisted's name for it
        """Log an event, if it is grave enough."""
        if level >= Logger.threshold:
            super().emit(level, format, **fields)


def set_level(name: str) -> None:
    """Log only what is at least as grave as `name`: debug, info, warn, error or critical."""
    Logger.threshold = LogLevel.levelWithName(name)
