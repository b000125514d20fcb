"""The disk under the DHT: SQLite, durable at each commit; and a memory that plays one in simulations."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from zope.interface import implementer

from ipop_tx.errors import EnvironmentProblem, StateError
from ipop_tx.identity.state import give
from ipop_tx.interfaces import IReplicaStore

if TYPE_CHECKING:
    import sqlite3

T = TypeVar("T")

_SCHEMA = """CREATE TABLE IF NOT EXISTS rows (
    shard INTEGER NOT NULL, key BLOB NOT NULL, value BLOB NOT NULL, PRIMARY KEY (shard, key)
) WITHOUT ROWID"""
_DAMAGED = "stop the daemon and move that file away; this node then fetches its replicas from the others"


@implementer(IReplicaStore)
class SqliteReplicaStore:
    """Replicas in one SQLite file (write-ahead log, full synchronisation). Writes wait in memory for the commit."""

    def __init__(self, path: Path) -> None:
        """Open or make the file. Raises `EnvironmentProblem` or `StateError`."""
        import sqlite3

        self._path = path
        self._errors = sqlite3.Error
        self._waiting: dict[tuple[int, bytes], bytes | None] = {}
        self.commits = 0
        self._connect: Callable[[], sqlite3.Connection] = lambda: sqlite3.connect(path, isolation_level=None)
        self.open()

    def open(self) -> None:
        """Open the file, again if it was closed. A connection must not be carried into a process that was forked off."""
        self._database = self._try(self._connect)
        self._try(self._prepare)

    def load(self) -> Iterable[tuple[int, bytes, bytes]]:
        """All rows: (shard, key, value), in order."""
        rows: list[tuple[int, bytes, bytes]] = self._try(
            lambda: self._database.execute("SELECT shard, key, value FROM rows ORDER BY shard, key").fetchall()
        )
        return rows

    def put(self, shard: int, key: bytes, value: bytes) -> None:
        """Write one row."""
        self._waiting[shard, key] = value

    def delete(self, shard: int, key: bytes) -> None:
        """Remove one row, if it is there."""
        self._waiting[shard, key] = None

    def commit(self) -> None:
        """Make all writes since the last commit durable. Costs nothing when there are none; what fails is kept for the next attempt."""
        if self._waiting:
            self._try(self._write)
            self._waiting.clear()
            self.commits += 1

    def close(self) -> None:
        """Close the file; writes that were not committed are lost. Idempotent."""
        self._database.close()

    def _prepare(self) -> None:
        self._path.chmod(0o600)
        give(self._path)  # SQLite makes its other files like this one
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = FULL")
        self._database.execute(_SCHEMA)
        verdict = self._database.execute("PRAGMA quick_check").fetchone()[0]
        if verdict != "ok":
            raise StateError(f"{self._path} is damaged ({verdict})", _DAMAGED)

    def _write(self) -> None:
        gone = [place for place, value in self._waiting.items() if value is None]
        rows = [(shard, key, value) for (shard, key), value in self._waiting.items() if value is not None]
        self._database.execute("BEGIN IMMEDIATE")
        try:
            self._database.executemany("DELETE FROM rows WHERE shard = ? AND key = ?", gone)
            self._database.executemany("INSERT OR REPLACE INTO rows VALUES (?, ?, ?)", rows)
            self._database.execute("COMMIT")
        except self._errors:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            raise

    def _try(self, action: Callable[[], T]) -> T:
        try:
            return action()
        except (self._errors, OSError) as problem:
            raise self._translated(problem) from problem

    def _translated(self, problem: Exception) -> EnvironmentProblem:
        code = getattr(problem, "sqlite_errorname", "")
        if code.startswith("SQLITE_FULL"):
            return EnvironmentProblem(f"{self._path} cannot be written: the disk is full", "free some space on that disk")
        if code.startswith(("SQLITE_READONLY", "SQLITE_PERM", "SQLITE_CANTOPEN")) or isinstance(problem, OSError):
            return EnvironmentProblem(f"{self._path} cannot be written ({problem})", "make that directory writable for the daemon's user")
        if code.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            return StateError(f"{self._path} is in use by another process", "stop the other daemon of this state directory")
        if code.startswith(("SQLITE_NOTADB", "SQLITE_CORRUPT")):
            return StateError(f"{self._path} is damaged ({problem})", _DAMAGED)
        return EnvironmentProblem(f"{self._path} cannot be used ({problem})", "look for what the disk or the system reports")


@implementer(IReplicaStore)
class MemoryReplicaStore:
    """Rows in memory. Give the same store to a node's next life to play a restart: what was not committed is gone then."""

    def __init__(self) -> None:
        self._durable: dict[tuple[int, bytes], bytes] = {}
        self._written: dict[tuple[int, bytes], bytes | None] = {}
        self.commits = 0

    def load(self) -> Iterable[tuple[int, bytes, bytes]]:
        """All durable rows: (shard, key, value), in order. Forgets what was not committed."""
        self._written.clear()
        return [(shard, key, value) for (shard, key), value in sorted(self._durable.items())]

    def put(self, shard: int, key: bytes, value: bytes) -> None:
        """Write one row."""
        self._written[shard, key] = value

    def delete(self, shard: int, key: bytes) -> None:
        """Remove one row, if it is there."""
        self._written[shard, key] = None

    def commit(self) -> None:
        """Make all writes since the last commit durable."""
        if not self._written:
            return
        for place, value in self._written.items():
            if value is None:
                self._durable.pop(place, None)
            else:
                self._durable[place] = value
        self._written.clear()
        self.commits += 1
