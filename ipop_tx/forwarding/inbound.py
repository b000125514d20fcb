"""Runs of datagrams to frames for the kernel. Functions stand in the order in which a datagram travels.

A run mostly is one record, whole, its ciphertext already in one piece: it is opened with one call. Records that carry parts of one
super-frame and follow on each other are opened one behind the other, each with its headers over the end of the payload before it, which is
put back afterwards: so they join without being copied.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from cryptography.exceptions import InvalidTag

from ipop_tx.errors import BadDatagram
from ipop_tx.forwarding.fib import Adjacency, Fib
from ipop_tx.forwarding.offload import HEAD, PART, payload_at, restore
from ipop_tx.forwarding.reassembly import Reassembly
from ipop_tx.forwarding.sealing import LARGEST, MORE
from ipop_tx.interfaces import IForwardingControl, ISealedChannel, ISession
from ipop_tx.values import Endpoint
from ipop_tx.wire.datagram import (
    BUNDLE,
    COUNTER_AT,
    FRAME,
    HEADER,
    HEADER_BYTES,
    MAX_PIECES,
    OVERHEAD,
    PIECE_AT,
    PIECES_AT,
    RELAY,
    TAG_BYTES,
    headers,
)

RELAY_ROOM = 60
"""Bytes left free before the content of a relayed record, so that its header can grow by three idents."""
_JOINED = 65000
"""Most bytes of a frame that is joined from several records."""


Entry = tuple[ISession, ISealedChannel, Adjacency]
"""Of the FIB: whose records have a receiver index."""


class Deliver(Protocol):
    """Takes opened frames, packed, one after another in a buffer that is free again on return."""

    def frame(self, peer: Adjacency, packed: memoryview) -> None:
        """One frame."""

    def bundle(self, peer: Adjacency, packed: memoryview) -> None:
        """The content of a bundle: several frames, their lengths, their number."""

    def malformed(self) -> None:
        """A frame that its peer has not made well."""


class Inbound:
    """Opens what arrives. Everything that is not traffic of a known peer goes elsewhere."""

    def __init__(
        self,
        fib: Fib,
        deliver: Deliver,
        forged: Callable[[], None],
        relayed: Callable[[Endpoint, ISession, Adjacency, memoryview, int], None],
        control: IForwardingControl,
        elsewhere: Callable[[Endpoint, bytes], None],
        clock: Callable[[], float],
    ) -> None:
        self._fib = fib
        self._deliver = deliver
        self._forged = forged
        self._relayed = relayed
        self._control = control
        self._elsewhere = elsewhere
        self.reassembly = Reassembly(clock)
        self._joined = memoryview(bytearray(2 * LARGEST))
        self._opened = memoryview(bytearray(LARGEST + RELAY_ROOM))
        self._nested = memoryview(bytearray(2 * LARGEST))
        # What is being joined: whose, its headers, where they and the payload end, number of the first segment and of the next, and
        # whether more of the super-frame will come. Its records were opened by `_entry`, and begin with `_prefix` if they are one datagram.
        self._entry: Entry | None = None
        self._prefix = b""
        self._headers = b""
        self._at = self._end = self._first = self._next = 0
        self._more = False

    def run(self, endpoint: Endpoint, heads: bytearray, bodies: memoryview, size: int, total: int) -> None:
        """A run from a transport; see `IDatagramReceiver.run_received`."""
        if self._entry is not None and size == total >= OVERHEAD and self._parts(endpoint, heads, bodies, size, 0, 1, total - HEADER_BYTES):
            return
        if (size == total >= OVERHEAD and heads[6] == 1) or (total > size > OVERHEAD and _is_one_record(heads, size, total)):
            index, kind, piece, pieces, _, counter = HEADER.unpack_from(heads)
            entry = self._fib.by_index.get(index)
            if entry is not None and not piece:
                self._open(endpoint, entry, kind, heads[:HEADER_BYTES], counter, bodies[: total - HEADER_BYTES * pieces], pieces)
                return
        self._mixed_run(endpoint, heads, bodies, size, total)

    def _mixed_run(self, endpoint: Endpoint, heads: bytearray, bodies: memoryview, size: int, total: int) -> None:
        """Any run: several records, pieces of records, datagrams that are not ours."""
        count = -(-total // size) if size else 1
        body, last = size - HEADER_BYTES, total - (count - 1) * size  # the last may not even be as long as a header
        end = (count - 1) * body + max(0, last - HEADER_BYTES)
        place = 0
        while place < count:
            if self._entry is not None:
                place += self._parts(endpoint, heads, bodies, size, place, count, end)
                if place == count:
                    return
            begin, stop = place * body, min((place + 1) * body, end)
            if stop <= begin or not 128 <= heads[place * HEADER_BYTES] <= 191:
                self._other(endpoint, heads, bodies, place, begin, stop, size if place + 1 < count else last)
                place += 1
                continue
            head = place * HEADER_BYTES
            index, kind, piece, pieces, _, counter = HEADER.unpack_from(heads, head)
            entry = self._fib.by_index.get(index)
            if entry is None:
                self._other(endpoint, heads, bodies, place, begin, stop, size if place + 1 < count else last)
            elif piece == 0 and (pieces == 1 or (1 < pieces <= min(count - place, MAX_PIECES) and _is_whole(heads, head, pieces))):
                place += pieces - 1
                stop = min((place + 1) * body, end)
                self._open(endpoint, entry, kind, heads[head : head + HEADER_BYTES], counter, bodies[begin:stop], pieces)
            else:
                self._piece(endpoint, entry, heads[head : head + HEADER_BYTES], piece, pieces, counter, bodies[begin:stop])
            place += 1

    def _other(self, endpoint: Endpoint, heads: bytearray, bodies: memoryview, place: int, begin: int, stop: int, length: int) -> None:
        head = heads[place * HEADER_BYTES :][: min(HEADER_BYTES, length)]
        self._elsewhere(endpoint, bytes(head) + bodies[begin : max(begin, stop)])

    def _piece(self, endpoint: Endpoint, entry: Entry, header: bytearray, piece: int, pieces: int, counter: int, data: memoryview) -> None:
        """A piece of a record whose other pieces are not beside it."""
        session, channel, peer = entry
        if not channel.fresh(counter):
            self._forged()
            return
        header[PIECE_AT] = 0
        try:
            whole = self.reassembly.add(session.local_index, counter, bytes(header), piece, pieces, data)
        except BadDatagram:
            self._failed(peer, pieces)
            return
        if whole is not None:
            self._open(endpoint, entry, header[4], header, counter, whole, pieces)

    # --- records -----------------------------------------------------------------------------

    def nested(self, record: memoryview) -> None:
        """A record for us that came in a relay's record: traffic, or nothing that we believe."""
        if len(record) < OVERHEAD:
            self._forged()
            return
        index, kind, piece, pieces, _, counter = HEADER.unpack_from(record)
        entry = self._fib.by_index.get(index)
        if entry is None or kind not in (FRAME, BUNDLE) or piece or pieces != 1:
            self._forged()
        else:
            self._open(None, entry, kind, bytearray(record[:HEADER_BYTES]), counter, record[HEADER_BYTES:], 1)

    def _open(
        self,
        endpoint: Endpoint | None,
        entry: Entry,
        kind: int,
        header: bytearray,
        counter: int,
        sealed: memoryview,
        pieces: int,
    ) -> None:
        """Open a whole record and hand on what is in it; `endpoint` is None for one that came in a relay's record."""
        session, channel, peer = entry
        length = len(sealed) - TAG_BYTES
        if not 0 <= length <= LARGEST or not channel.fresh(counter):
            self._forged()
            return
        into = self._nested if endpoint is None else self._opened
        try:
            if kind == FRAME:
                joins = self._open_frame(channel, peer, header, sealed, length)
            else:
                at = RELAY_ROOM if kind == RELAY else 0
                channel.decrypt(header[4:], sealed, None, into[at : at + length])
        except InvalidTag:
            self._failed(peer, pieces)
            return
        channel.accept(counter)
        if kind == FRAME:
            self._note(endpoint, session, peer)
            if not joins:
                self._begin(entry, header, length)
        elif kind == BUNDLE:
            self._note(endpoint, session, peer)
            self.burst_ended()
            self._deliver.bundle(peer, into[:length])
        elif kind == RELAY and endpoint is not None:
            self._relayed(endpoint, session, peer, into, RELAY_ROOM + length)
        elif endpoint is not None:
            self._control.unsealed(endpoint, session, kind, bytes(into[:length]))

    def _failed(self, peer: Adjacency, pieces: int) -> None:
        self._forged()
        if pieces > 1:
            peer.failed += 1
            if not peer.heard:
                self._control.opened(peer)

    def _note(self, endpoint: Endpoint | None, session: ISession, peer: Adjacency) -> None:
        if not peer.heard:
            self._control.opened(peer)
        if endpoint is not None and endpoint not in (peer.endpoint, peer.stray):
            peer.stray = endpoint
            self._control.path_seen(session, endpoint)

    # --- joining -----------------------------------------------------------------------------

    def _open_frame(self, channel: ISealedChannel, peer: Adjacency, header: bytearray, sealed: memoryview, length: int) -> bool:
        """Open a frame; True when it goes on where the one before ended. Else it is at the beginning of the buffer. Raises `InvalidTag`."""
        joined, end, entry = self._joined, self._end, self._entry
        if entry is None or not self._more or peer is not entry[2] or length <= self._at or end + length > _JOINED:
            self.burst_ended()
            channel.decrypt(header[4:], sealed, None, joined[:length])
            return False
        begin = end - self._at
        kept = bytes(joined[begin:end])
        try:
            channel.decrypt(header[4:], sealed, None, joined[begin : begin + length])
            found = bytes(joined[begin:end])
            (part,) = PART.unpack_from(found, 2)
            if found[:2] == self._headers[:2] and found[4:] == self._headers[4:] and part & ~MORE == self._next:
                self._went_on(part, length)
                return True
            other = bytes(joined[begin : begin + length])
        finally:
            joined[begin:end] = kept
        self.burst_ended()
        joined[:length] = other
        return False

    def _parts(self, endpoint: Endpoint, heads: bytearray, bodies: memoryview, size: int, place: int, count: int, end: int) -> int:
        """Open the datagrams from `place` on that are the next parts of what is being joined, each a record; gives how many those were.

        This is `_mixed_run`, `_open` and `_open_frame` for nothing but that, which is what a path of width 1 carries mostly. Whatever is
        not exactly as expected is left to them, as if it had not been looked at.
        """
        assert self._entry is not None
        session, channel, peer = self._entry
        prefix, at, filled, following = self._prefix, self._at, self._end, self._next
        if not self._more or not prefix or self._fib.by_index.get(session.local_index) is not self._entry:
            return 0
        joined, decrypt, headers = self._joined, channel.decrypt, bytearray(self._headers)
        body, segment = size - HEADER_BYTES, int.from_bytes(headers[4:6], "little")
        first = counter = channel.highest + 1
        more = True
        for here in range(place, count):
            header = prefix + counter.to_bytes(8, "big")
            sealed = bodies[here * body : min((here + 1) * body, end)]
            length = len(sealed) - TAG_BYTES
            if not more or heads[here * HEADER_BYTES : here * HEADER_BYTES + HEADER_BYTES] != header:
                break
            if length <= at or filled + length > _JOINED:
                break
            begin = filled - at
            kept = bytes(joined[begin:filled])
            try:
                decrypt(header[4:], sealed, None, joined[begin : begin + length])
                found = bytes(joined[begin:filled])
            except InvalidTag:
                break
            finally:
                joined[begin:filled] = kept
            PART.pack_into(headers, 2, following | MORE)
            if found != headers:
                PART.pack_into(headers, 2, following)
                more = False
                if found != headers:
                    break
            following += -(-(length - at) // segment)
            filled = begin + length
            counter += 1
            self._more = more
        if counter > first:
            self._next, self._end = following, filled
            channel.accept_run(first, counter - first)
            self._note(endpoint, session, peer)
        return counter - first

    def _went_on(self, part: int, length: int) -> None:
        size = int.from_bytes(self._headers[4:6], "little")
        self._next += -(-(length - self._at) // size)
        self._end += length - self._at
        self._more = bool(part & MORE)

    def _begin(self, entry: Entry, header: bytearray, length: int) -> None:
        """A frame at the beginning of the buffer: deliver it, or wait for more if it is only a part."""
        joined, peer = self._joined, entry[2]
        part = int.from_bytes(joined[2:4], "little")
        if length < HEAD.size or not joined[1] or not part:
            self._deliver.frame(peer, joined[:length])
            return
        try:
            at = payload_at(joined, length)
        except BadDatagram:
            self._deliver.malformed()
            return
        size = int.from_bytes(joined[4:6], "little")
        self._entry, self._headers, self._at, self._end = entry, bytes(joined[:at]), at, length
        self._prefix = bytes(header[:COUNTER_AT]) if header[PIECES_AT] == 1 else b""
        self._first = part & ~MORE
        self._next = self._first + -(-(length - at) // size)
        self._more = bool(part & MORE)

    def burst_ended(self) -> None:
        """Deliver what is being joined."""
        if self._entry is not None:
            peer, end = self._entry[2], self._end
            self._entry = None
            try:
                restore(self._joined, end, self._first, self._more)
            except BadDatagram:
                self._deliver.malformed()
            else:
                self._deliver.frame(peer, self._joined[:end])


def _is_one_record(heads: bytearray, size: int, total: int) -> bool:
    """Whether a run of several datagrams is all of one record and nothing else."""
    pieces = heads[6]
    return 1 < pieces <= MAX_PIECES and HEADER_BYTES < total - size * (pieces - 1) <= size and _is_whole(heads, 0, pieces)


def _is_whole(heads: bytearray, begin: int, pieces: int) -> bool:
    """Whether all pieces of a record stand beside its first one, in order."""
    block = heads[begin : begin + HEADER_BYTES * pieces]
    return block == headers(block[:HEADER_BYTES], pieces)
