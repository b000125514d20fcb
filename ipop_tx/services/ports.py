"""Ports of this machine that could not be had."""

from __future__ import annotations

import os

from twisted.internet.error import CannotListenError


def why_taken(error: CannotListenError | OSError) -> str:
    """The system's words for it."""
    reason = getattr(error, "socketError", error)
    return os.strerror(getattr(reason, "errno", None) or 0)
