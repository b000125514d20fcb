"""Programs that run inside a host of the lab."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from ipop_tx.errors import EnvironmentProblem


class Process:
    """A program in the background, its output in the file `log`. It has a session of its own, so Ctrl-C does not reach it."""

    def __init__(self, argv: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> None:
        self.argv = list(argv)
        self.log = log
        with log.open("ab") as out:
            self._before = out.tell()
            self._child = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True, env=environment
            )

    @property
    def pid(self) -> int:
        """`ip netns exec` replaces itself, so this is the program's own pid."""
        return self._child.pid

    @property
    def returncode(self) -> int | None:
        """How it ended; None while it runs."""
        return self._child.poll()

    @property
    def output(self) -> str:
        """All that it has written so far, without what others wrote to the same log before."""
        return self.log.read_bytes()[self._before :].decode(errors="replace")

    def wait(self, seconds: float) -> int:
        """Wait for its end. Raises `EnvironmentProblem` when it goes on."""
        try:
            return self._child.wait(seconds)
        except subprocess.TimeoutExpired:
            raise EnvironmentProblem(f"{self.log.stem} still runs after {seconds:g} s", f"see {self.log}") from None

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._child.send_signal(number)

    def kill9(self) -> None:
        """End it as a power failure would."""
        self._child.kill()
        self._child.wait()

    def interrupt(self, seconds: float = 10.0) -> int:
        """End it as Ctrl-C does, upon which some programs sum up; gives its exit status. Raises `EnvironmentProblem` when it goes on."""
        if self._child.poll() is None:
            self._child.send_signal(signal.SIGINT)
        return self.wait(seconds)

    def stop(self, seconds: float = 10.0) -> int:
        """Ask it to end (SIGTERM), and insist (SIGKILL) after `seconds`; gives its exit status. Does no harm to a dead one."""
        if self._child.poll() is None:
            self._child.send_signal(signal.SIGTERM)
        try:
            return self._child.wait(seconds)
        except subprocess.TimeoutExpired:
            self._child.kill()
            return self._child.wait()
