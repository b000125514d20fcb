"""The one place where the lab waits for something to become true."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from ipop_tx.errors import Unreachable

T = TypeVar("T")

EVERY = 0.02
"""Seconds between two looks."""


def wait_for(what: str, seconds: float, look: Callable[[], T | None], every: float = EVERY) -> T:
    """Look until the answer is true-ish and give it. Raises `Unreachable` naming `what` after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (answer := look()):
        if time.monotonic() >= deadline:
            raise Unreachable(f"{what} did not happen within {seconds:g} s", f"the last look gave {answer!r}")
        time.sleep(every)
    return answer


def holds_within(seconds: float, look: Callable[[], object], every: float = EVERY) -> bool:
    """Whether `look` becomes true-ish within `seconds`."""
    try:
        wait_for("a condition", seconds, look, every)
    except Unreachable:
        return False
    return True
