"""A daemon that watches itself: `python -m benchmarks.probe sampled|exact FILE PROGRAM WORDS...` runs a Python program under a profiler.

It begins on the signal `START` and writes FILE on `STOP`. `benchmarks.profile` starts the daemons by it.
"""

from __future__ import annotations

import cProfile
import json
import pstats
import runpy
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Protocol

START: int = signal.SIGRTMIN
STOP: int = signal.SIGRTMIN + 1
_EVERY = 0.001


class Profiler(Protocol):
    """Either kind."""

    def start(self) -> None:
        """From now on."""

    def stop(self) -> dict[str, Any]:
        """What was found since the start, for JSON."""


class Sampler:
    """Looks at the main thread's stack at even intervals of real time.

    The interpreter runs signal handlers right after a call into C returns, in the frame that made it:
    so a slow system call counts for its own line.
    """

    def __init__(self) -> None:
        self._stacks: Counter[tuple[tuple[CodeType, int], ...]] = Counter()
        self._cpu = 0.0

    def start(self) -> None:
        """Begin to look."""
        self._cpu = time.process_time()
        signal.signal(signal.SIGALRM, self._look)
        signal.setitimer(signal.ITIMER_REAL, _EVERY, _EVERY)

    def stop(self) -> dict[str, Any]:
        """`stacks`: [[[file, function, line], ...] innermost first, count] each."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        used = time.process_time() - self._cpu
        stacks = [([(code.co_filename, code.co_name, line) for code, line in stack], count) for stack, count in self._stacks.items()]
        return {"cpu_seconds": used, "stacks": stacks}

    def _look(self, number: int, frame: FrameType | None) -> None:
        stack: list[tuple[CodeType, int]] = []
        while frame is not None:
            # Only the innermost line matters; without the others' there are far fewer different stacks.
            stack.append((frame.f_code, frame.f_lineno if not stack else 0))
            frame = frame.f_back
        self._stacks[tuple(stack)] += 1


class Tracer:
    """Counts every call."""

    def __init__(self) -> None:
        self._profile = cProfile.Profile()
        self._cpu = 0.0

    def start(self) -> None:
        """Begin to count."""
        self._cpu = time.process_time()
        self._profile.enable()

    def stop(self) -> dict[str, Any]:
        """`calls`: [place, number, own seconds, cumulative seconds, [caller's place, own seconds] ...] each."""
        self._profile.disable()
        used = time.process_time() - self._cpu
        found: dict[Any, Any] = pstats.Stats(self._profile).stats  # type: ignore[attr-defined]
        return {"cpu_seconds": used, "calls": [self._row(place, *figures) for place, figures in found.items()]}

    def _row(self, place: Any, primitive: int, calls: int, own: float, cumulative: float, callers: dict[Any, Any]) -> list[Any]:
        def name(key: Any) -> list[Any]:
            return [key[0], key[2], key[1]]

        return [name(place), calls, own, cumulative, [[name(caller), figures[2]] for caller, figures in callers.items()]]


def main(argv: Sequence[str]) -> None:
    """Run the program in this process."""
    mode, file, *program = argv
    profiler: Profiler = Sampler() if mode == "sampled" else Tracer()

    def write(number: int, frame: FrameType | None) -> None:
        draft = Path(f"{file}.draft")
        draft.write_text(json.dumps(profiler.stop()))
        draft.rename(file)

    signal.signal(START, lambda number, frame: profiler.start())
    signal.signal(STOP, write)
    sys.argv = program
    runpy.run_path(program[0], run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
