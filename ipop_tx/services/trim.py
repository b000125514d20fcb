"""Memory that the C library keeps though nobody uses it.

Each handshake takes some 100 kB for a moment and leaves holes in the heap, a megabyte or two in a ring of fifty. glibc gives them back
to the kernel only when it is asked; that takes less than a millisecond.
"""

from __future__ import annotations

import ctypes
from typing import Any

from twisted.application.service import Service
from twisted.internet.task import LoopingCall

EVERY = 60.0
"""Seconds between two times of asking."""

_malloc_trim: Any = getattr(ctypes.CDLL(None), "malloc_trim", None)
"""Only glibc has it."""


class TrimService(Service):
    """Gives unused memory back while it runs."""

    name = "trim"

    def __init__(self, reactor: Any) -> None:
        self._loop = LoopingCall(_trim)
        self._loop.clock = reactor

    def startService(self) -> None:
        """From now on."""
        Service.startService(self)
        self._loop.start(EVERY, now=False)

    def stopService(self) -> None:
        """No more."""
        Service.stopService(self)
        if self._loop.running:
            self._loop.stop()


def _trim() -> None:
    if _malloc_trim is not None:
        _malloc_trim(0)
