"""Pieces of records that did not arrive in one run, until the record is whole. Bounded in number and age, and none is longer than twice
the longest record.

Pieces are not authenticated one by one: a record is whole or not when all of it is opened. So a forged piece can spoil the record that
it names, and no other; see `ipop_tx.forwarding.width` for what follows. The first of two pieces with one number counts. Pieces of one
record that do not fit together are not all of its sender: that is told once, whether the record gets whole or not.
"""

from __future__ import annotations

from collections.abc import Callable

from ipop_tx.errors import BadDatagram
from ipop_tx.forwarding.sealing import LARGEST
from ipop_tx.wire.datagram import MAX_PIECES

MOST_OF_ONE = 24
"""Unfinished records kept for one receiver index; the oldest makes way."""
MOST = 128
"""Unfinished records kept in all."""
OLDEST = 2.0
"""Seconds after which an unfinished record is given up."""


class _Partial:
    """One unfinished record. Its buffer is as long as its pieces say; the last piece may come before we know where it belongs."""

    __slots__ = ("begun", "body", "buffer", "end", "have", "header", "last", "misfit", "pieces")

    def __init__(self, header: bytes, pieces: int, begun: float) -> None:
        self.header = header
        self.pieces = pieces
        self.begun = begun
        self.misfit = False
        self.body = 0
        self.buffer = bytearray()
        self.have = 0
        self.last = b""
        self.end = 0

    def add(self, piece: int, data: memoryview) -> bool:
        """Take a piece; whether the record is whole now. One that does not fit the others is left out; the first raises `BadDatagram`."""
        if self.have >> piece & 1:
            return False
        if piece == self.pieces - 1:
            self.last = bytes(data)
        elif not self.body:
            self.body = len(data)
            self.buffer = bytearray(self.body * self.pieces)
            self._put(piece, data)
        elif len(data) == self.body:
            self._put(piece, data)
        else:
            return self.unfit()
        self.have |= 1 << piece
        return self.have == (1 << self.pieces) - 1 and self._close()

    def unfit(self) -> bool:
        """Raise `BadDatagram`, once."""
        if self.misfit:
            return False
        self.misfit = True
        raise BadDatagram("pieces that are not of one record")

    def _put(self, piece: int, data: memoryview) -> None:
        self.buffer[piece * self.body : (piece + 1) * self.body] = data

    def _close(self) -> bool:
        if len(self.last) > self.body:
            return self.unfit()
        at = (self.pieces - 1) * self.body
        self.end = at + len(self.last)
        self.buffer[at : self.end] = self.last
        return True


class Reassembly:
    """Unfinished records by receiver index and counter."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.lost = 0
        """Records that were given up."""
        self._clock = clock
        self._partial: dict[tuple[int, int], _Partial] = {}
        self._by_index: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._partial)

    def add(self, index: int, counter: int, header: bytes, piece: int, pieces: int, data: memoryview) -> memoryview | None:
        """Take a piece of a record with `pieces` pieces; `header` is the record's: that of piece 0, 16 bytes.

        Gives the ciphertext when it is whole. `index` must be one of ours: that is what bounds who can make us keep anything.
        Raises `BadDatagram`, once for each record, when pieces do not fit together.
        """
        if not 0 <= piece < pieces <= MAX_PIECES or not data or (pieces - 1) * len(data) > LARGEST:
            return None
        name = (index, counter)
        partial = self._partial.get(name)
        if partial is None:
            self._make_room(index)
            partial = self._partial[name] = _Partial(header, pieces, self._clock())
            self._by_index[index] = self._by_index.get(index, 0) + 1
        elif partial.header != header:
            partial.unfit()
            return None
        if not partial.add(piece, data):
            return None
        self._remove(name)
        return memoryview(partial.buffer)[: partial.end]

    def expire(self) -> None:
        """Give up what has been unfinished for too long. To be called now and then."""
        oldest = self._clock() - OLDEST
        while self._partial:
            name = next(iter(self._partial))
            if self._partial[name].begun >= oldest:
                return
            self._give_up(name)

    def _make_room(self, index: int) -> None:
        self.expire()
        if self._by_index.get(index, 0) >= MOST_OF_ONE:
            self._give_up(next(name for name in self._partial if name[0] == index))
        elif len(self._partial) >= MOST:
            self._give_up(next(iter(self._partial)))

    def _give_up(self, name: tuple[int, int]) -> None:
        self.lost += 1
        self._remove(name)

    def _remove(self, name: tuple[int, int]) -> None:
        del self._partial[name]
        left = self._by_index[name[0]] - 1
        if left:
            self._by_index[name[0]] = left
        else:
            del self._by_index[name[0]]
