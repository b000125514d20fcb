"""What labs exist on this machine, on disk, so that a killed run's leftovers are found and removed by the next.

`/run/ipop-lab/<lab>-<pid>.json` names the owner (pid and its start time, because pids come again), the namespaces and the
scratch directory. It is written before anything is made. The processes of a lab need no list: they are whoever lives in its namespaces.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ipop_tx.errors import EnvironmentProblem
from ipop_tx.lab import netns
from ipop_tx.lab.waiting import holds_within

PLACE = Path("/run/ipop-lab")
GRACE = 5.0
"""Seconds that a process has to end after SIGTERM."""


def started(pid: int) -> int:
    """When a process began, in clock ticks since boot; 0 when there is none (a zombie counts as none)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 0 if fields[0] in "ZX" else int(fields[19])


@dataclass
class Record:
    """One lab. `kept` outlives its owner on purpose, until somebody asks for `clean`."""

    lab: str
    owner: int
    owner_started: int
    scratch: str
    namespaces: list[str] = field(default_factory=list)
    kept: bool = False

    @property
    def path(self) -> Path:
        """Where it is written."""
        return PLACE / f"{self.lab}-{self.owner}.json"

    @property
    def alive(self) -> bool:
        """Whether its owner still runs."""
        return started(self.owner) == self.owner_started

    def save(self) -> None:
        """Write it whole, then rename."""
        PLACE.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = self.path.with_suffix(f".draft-{os.getpid()}")
        draft.write_text(json.dumps(asdict(self)))
        draft.rename(self.path)

    def destroy(self, grace: float = GRACE) -> None:
        """End its processes, remove its namespaces and files. Doing it twice does no harm."""
        _end(self.namespaces, signal.SIGTERM, grace)
        _end(self.namespaces, signal.SIGKILL, GRACE)
        for namespace in netns.present(self.namespaces):
            netns.call(["ip", "netns", "delete", namespace])
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.path.unlink(missing_ok=True)


def _end(namespaces: list[str], how: signal.Signals, seconds: float) -> None:
    if seconds <= 0:
        return
    for pid in netns.members(namespaces):
        with suppress(ProcessLookupError):
            os.kill(pid, how)
    holds_within(seconds, lambda: not netns.members(namespaces))


def records() -> list[Record]:
    """All labs of this machine, dead ones too. Raises `EnvironmentProblem` for a record that cannot be read."""
    found = []
    for path in sorted(PLACE.glob("*.json")):
        with suppress(FileNotFoundError):  # its owner removed it meanwhile
            try:
                found.append(Record(**json.loads(path.read_text())))
            except (ValueError, TypeError):
                raise EnvironmentProblem(f"{path} is no record of a lab", "remove it, and what 'ip netns list' shows of that lab") from None
    return found


@contextmanager
def _alone() -> Iterator[None]:
    PLACE.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(PLACE / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def clean(kept: bool = False) -> list[Record]:
    """Remove the labs whose owner is dead (those kept on purpose only when asked); gives what was removed."""
    with _alone():
        gone = [record for record in records() if not record.alive and (kept or not record.kept)]
        for record in gone:
            record.destroy(grace=GRACE if record.kept else 0)
    return gone
