"""What the command lines of all benchmarks share."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import wraps

from ipop_tx.errors import IpopError

Main = Callable[[Sequence[str] | None], int]


def command(name: str, interrupted: str = "") -> Callable[[Main], Callable[..., int]]:
    """A benchmark that runs with words of the command line, those of this process if none are given; gives the exit status.

    An `IpopError` is said in its sentence, after `name`, and gives its own status; an interrupt gives 130 and says `interrupted`.
    """

    def framed(work: Main) -> Callable[..., int]:
        @wraps(work)
        def main(argv: Sequence[str] | None = None) -> int:
            try:
                return work(argv)
            except IpopError as error:
                print(f"{name}: {error}", file=sys.stderr)
                return error.exit_status
            except KeyboardInterrupt:
                if interrupted:
                    print(f"{name}: {interrupted}", file=sys.stderr)
                return 130

        return main

    return framed
