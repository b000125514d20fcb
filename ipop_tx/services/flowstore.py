"""The flow log on disk: one SQLite file of bounded length, the newest rows.

Nothing waits for the disk: a power cut may cost the last rows, or, if the file is damaged, all of them; it is a log. What the disk refuses
is not kept.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from pathlib import Path

import msgspec

from ipop_tx.log import Logger
from ipop_tx.values import Ident
from ipop_tx.wire.flows import FlowRow

_log = Logger()

_SCHEMA = """CREATE TABLE IF NOT EXISTS flows (
    peer BLOB, source BLOB, target BLOB, source_port INTEGER, target_port INTEGER, protocol INTEGER, packets INTEGER, bytes INTEGER,
    start INTEGER, "end" INTEGER, accepted INTEGER, rule TEXT
)"""
_INDEXES = ('CREATE INDEX IF NOT EXISTS by_peer ON flows (peer, "end")', 'CREATE INDEX IF NOT EXISTS by_end ON flows ("end")')
"""Each question is answered in the order of one of them, up to its limit."""
_COLUMNS = 'source, target, source_port, target_port, protocol, packets, bytes, start, "end", accepted, rule'
_PRAGMAS = ("journal_mode = WAL", "synchronous = OFF", "cache_size = -512", "journal_size_limit = 1048576")


class FlowStore:
    """Rows in the order in which they were written; at most `most`."""

    def __init__(self, path: Path, most: int) -> None:
        """Opens nothing yet."""
        self.path = path
        self.most = most
        self.problem = ""
        """Why rows are not kept, in a sentence."""
        self._database: sqlite3.Connection | None = None

    def open(self) -> None:
        """Open or make the file; one that is damaged is begun anew."""
        try:
            self._database = self._opened()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                self._failed(error)
                return
            _log.warn("flow_log_damaged file={file} reason={reason}", file=self.path, reason=str(error))
            self._begin_anew()

    def _begin_anew(self) -> None:
        self.close()
        try:
            for name in (self.path, *(self.path.with_name(self.path.name + tail) for tail in ("-wal", "-shm"))):
                name.unlink(missing_ok=True)
            self._database = self._opened()
        except (sqlite3.Error, OSError) as error:
            self._failed(error)

    def _opened(self) -> sqlite3.Connection:
        database = sqlite3.connect(self.path, isolation_level=None)
        try:
            self.path.chmod(0o600)
            for pragma in _PRAGMAS:
                database.execute(f"PRAGMA {pragma}")
            database.execute(_SCHEMA)
            for index in _INDEXES:
                database.execute(index)
            database.execute("SELECT max(rowid) FROM flows").fetchone()
        except BaseException:
            database.close()
            raise
        return database

    def add(self, rows: Iterable[tuple[Ident, FlowRow]]) -> int:
        """Keep rows, and no more than `most` of all; gives how many were not kept."""
        values = [
            (
                peer, one.source, one.target, one.source_port, one.target_port, one.protocol, one.packets, one.bytes, one.start, one.end,
                one.accepted, one.rule,
            )
            for peer, one in rows
        ]  # fmt: skip
        if self._database is None:
            return len(values)
        try:
            self._database.execute("BEGIN IMMEDIATE")
            self._database.executemany(f"INSERT INTO flows VALUES ({', '.join('?' * 12)})", values)
            self._database.execute("DELETE FROM flows WHERE rowid <= (SELECT max(rowid) FROM flows) - ?", (self.most,))
            self._database.execute("COMMIT")
        except sqlite3.Error as error:
            self._refused(error)
            return len(values)
        self.problem = ""
        return 0

    def _refused(self, error: sqlite3.Error) -> None:
        """The disk takes nothing just now, or what is there makes no sense any more."""
        if not isinstance(error, sqlite3.OperationalError):
            self._begin_anew()
            return
        self._failed(error)
        try:
            if self._database is not None and self._database.in_transaction:
                self._database.execute("ROLLBACK")
        except sqlite3.Error:
            self._begin_anew()

    def _failed(self, error: Exception) -> None:
        self.problem = f"flows are not logged: {self.path} cannot be written ({error})"

    def find(self, peer: Ident | None, since: int, most: int) -> list[FlowRow]:
        """The newest rows that ended at `since` (seconds since the epoch) or later, with a member, or with all of them."""
        if self._database is None:
            return []
        where, words = ("peer = ? AND ", (peer,)) if peer is not None else ("", ())
        question = f'SELECT {_COLUMNS} FROM flows WHERE {where}"end" >= ? ORDER BY "end" DESC LIMIT ?'
        try:
            found = self._database.execute(question, (*words, since, most)).fetchall()
            return [msgspec.convert(row, FlowRow, strict=False) for row in found]
        except msgspec.ValidationError:  # somebody else has written there
            self._begin_anew()
            return []
        except sqlite3.Error as error:
            self._refused(error)
            return []

    def close(self) -> None:
        """Close the file. Idempotent."""
        if self._database is not None:
            self._database.close()
            self._database = None
