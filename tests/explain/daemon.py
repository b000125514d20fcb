"""`python -m tests.explain.daemon CHANGE PROGRAM ARGS...`: a daemon with a fault of its own, for tests only."""

from __future__ import annotations

import runpy
import sys
import time
from collections.abc import Callable

from ipop_tx.services.dhcp import DHCPService
from ipop_tx.services.readmission import ReadmissionService
from ipop_tx.services.settings import PolicyService

WRONG_BY = 7200.0
LEASE_SECONDS = 6.0


def wrong_clock() -> None:
    """Two hours ahead."""
    true = time.time
    time.time = lambda: true() + WRONG_BY


def brief_lease() -> None:
    """It lasts `LEASE_SECONDS`."""
    start = DHCPService.startService

    def started(service: DHCPService) -> None:
        service._ttl = LEASE_SECONDS
        start(service)

    DHCPService.startService = started  # type: ignore[method-assign,assignment]


def lawless() -> None:
    """The network's policy does not count."""
    PolicyService._enforce = lambda service, settings: None  # type: ignore[method-assign,assignment]


def unrenewed() -> None:
    """It lets its certificate end."""
    ReadmissionService._look = lambda service: None  # type: ignore[method-assign,assignment]


CHANGES: dict[str, Callable[[], None]] = {change.__name__: change for change in (wrong_clock, brief_lease, lawless, unrenewed)}


def main(change: str, program: str, *arguments: str) -> None:
    """Change, then run the program as if it had been called."""
    CHANGES[change]()
    sys.argv = [program, *arguments]
    runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    main(*sys.argv[1:])
