"""Tells a person what happens, step by step: on a terminal with colour and a spinner, else as plain lines."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


class Story:
    """Numbered steps on stdout, or on stderr when stdout belongs to the machine-readable result."""

    def __init__(self, to_stderr: bool = False) -> None:
        from rich.console import Console

        self._stream = sys.stderr if to_stderr else sys.stdout
        self._tty = self._stream.isatty()
        self._console: Console = Console(file=self._stream, highlight=False, soft_wrap=True)
        self._steps = 0
        self._began = time.monotonic()

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """A step with its title; while it lasts a terminal shows a spinner."""
        self._steps += 1
        self._console.print(f"\n[bold]{self._steps}. {title}[/bold]  [dim]{time.monotonic() - self._began:.0f} s[/dim]")
        if not self._tty:
            yield
            return
        with self._console.status("working"):
            yield

    def say(self, text: str) -> None:
        """One line of what was found."""
        self._console.print(f"   {text}", markup=False)

    def table(self, titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Rows under titles, aligned."""
        widths = [max(len(row[i]) for row in [titles, *rows]) for i in range(len(titles))]
        for row in (titles, *rows):
            self.say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
