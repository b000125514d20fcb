"""What one node keeps of the DHT: its shards, their views, and the acceptor's side of the registers.

Every method answers from what is on disk (or will be, before the answer leaves: the driver commits first) and changes it in
one step; there is nothing here to wait for. The proposer's side is in `coordinator`, the change of views in `views`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import msgspec

from ipop_tx.core.dht.quota import HARD, Room, size_of
from ipop_tx.core.ident import shard_start
from ipop_tx.core.runtime import Runtime
from ipop_tx.errors import StateError
from ipop_tx.interfaces import IReplicaStore
from ipop_tx.values import Ident, Quota
from ipop_tx.wire import messages as m

REPLICAS = 5
"""Members of a view, where the network has that many nodes."""
PAGE_BYTES = 8000
"""Rough size of one part of a hand-over."""
BARE = 256
"""Keys of a shard for which a promise of their own is kept though nothing was ever accepted; beyond that the oldest half share one."""
GRACE = 3600.0
"""Seconds beyond its time to live for which a record, or the mark of a deletion, is kept."""
VIEW_ROW = b""
LEFT_ROW = b"left"
"""The row that says which view of a shard this node gave up last."""
ORDER_ROW = b"order"
"""The row with the authority's last order for a shard."""


@dataclass(slots=True)
class CellState:
    """One register as an acceptor: its promise, what it accepted, and when (on our clock)."""

    promised: m.Ballot = m.NO_BALLOT
    accepted: m.Ballot = m.NO_BALLOT
    record: m.Record | None = None
    since: float = 0.0


@dataclass(slots=True)
class Shard:
    """A part of the key space of which this node keeps a copy, in view `number`."""

    index: int
    number: int
    members: tuple[Ident, ...]
    sealed: m.Ballot = m.NO_BALLOT
    """Promise for the decision on the next view; while it is not `NO_BALLOT`, no register accepts anything."""
    successor_ballot: m.Ballot = m.NO_BALLOT
    successor: tuple[Ident, ...] = ()
    sealed_since: float = 0.0
    opened: float = 0.0
    """When this node got its copy of the view."""
    cells: dict[bytes, CellState] = field(default_factory=dict)
    floor: m.Floor = m.NO_FLOOR
    """At least as high as any promise and any version that was dropped with its cell."""
    bare: dict[bytes, None] = field(default_factory=dict)
    """Keys that have a promise and nothing else, in the order in which they came."""
    room: Room = field(default_factory=lambda: Room(Quota(), 1))

    @property
    def open(self) -> bool:
        """Whether registers may be read and written."""
        return self.sealed == m.NO_BALLOT


class ViewRow(msgspec.Struct, frozen=True, array_like=True):
    """A shard's view as it lies on disk."""

    number: int
    members: tuple[bytes, ...]
    sealed: m.Ballot
    successor_ballot: m.Ballot
    successor: tuple[bytes, ...]
    floor: m.Floor = m.NO_FLOOR


@dataclass(slots=True)
class _Arriving:
    """Parts of a view that is being installed."""

    number: int
    attempt: int
    parts: dict[int, tuple[m.Cell, ...]] = field(default_factory=dict)
    last: int | None = None


def genesis(ident: Ident, shards: int) -> Iterable[tuple[int, bytes, bytes]]:
    """The rows with which a new network's only node begins: view 1 of every shard, with itself as member."""
    view = msgspec.msgpack.encode(ViewRow(1, (ident,), m.NO_BALLOT, m.NO_BALLOT, ()))
    return [(index, VIEW_ROW, view) for index in range(shards)]


class Replicas:
    """All shards of this node, answering the requests of coordinators and of those who change views."""

    def __init__(
        self,
        ident: Ident,
        shards: int,
        store: IReplicaStore,
        runtime: Runtime,
        authentic: Callable[[bytes, m.Record], bool],
        quota: Quota | None = None,
    ) -> None:
        self.ident = ident
        self.count = shards
        self.shards: dict[int, Shard] = {}
        self.known: dict[int, m.Redirect] = {}
        """The newest view that we have heard of, of shards that others keep."""
        self.is_over: Callable[[m.Record | None, int], bool] = is_over
        """When a register may be forgotten; simulations are more impatient."""
        self.suspended = False
        """Set by the driver while the disk takes no writes: nothing is promised that could be forgotten."""
        self._quota = quota or Quota()
        self._store = store
        self._runtime = runtime
        self._authentic = authentic
        self._arriving: dict[tuple[Ident, int], _Arriving] = {}
        self._left: dict[int, int] = {}
        """The last view of each shard that we have given up."""
        self.orders: dict[int, m.Order] = {}
        """The authority's last order for each shard for which it gave one: views before that are over."""
        self._load()

    def start_of(self, index: int) -> Ident:
        """The first ident of a shard."""
        return shard_start(index, self.count)

    # --- disk --------------------------------------------------------------------------------

    def _load(self) -> None:
        cells: list[tuple[int, bytes, bytes]] = []
        try:
            for index, key, value in self._store.load():
                if key == LEFT_ROW:
                    self._left[index] = msgspec.msgpack.decode(value, type=int)
                elif key == ORDER_ROW:
                    self.orders[index] = msgspec.msgpack.decode(value, type=m.Order)
                elif key == VIEW_ROW:
                    row = msgspec.msgpack.decode(value, type=ViewRow)
                    self.shards[index] = self._shard_of(index, row)
                else:
                    cells.append((index, key, value))
            for index, _, value in cells:
                cell = msgspec.msgpack.decode(value, type=m.Cell)
                self._keep(self.shards[index], cell)
            for index, order in self.orders.items():
                self.learn(index, order.number, order.members)
        except (msgspec.MsgspecError, KeyError) as error:
            raise StateError(
                f"the stored registers are damaged ({error})", "restore replicas.db, or remove it to rejoin as an empty replica"
            ) from None

    def _shard_of(self, index: int, row: ViewRow) -> Shard:
        shard = Shard(index, row.number, row.members, row.sealed, row.successor_ballot, row.successor, floor=row.floor)
        shard.room = Room(self._quota, self.count)
        return shard

    def _keep(self, shard: Shard, cell: m.Cell) -> None:
        """Take a cell into memory, from the disk or from another member."""
        state = CellState(cell.promised, cell.accepted, cell.record, self._runtime.now - cell.age_ms / 1000)
        shard.cells[cell.key] = state
        shard.room.add(cell.record)
        if state.accepted == m.NO_BALLOT:
            shard.bare[cell.key] = None

    def _put_view(self, shard: Shard) -> None:
        row = ViewRow(shard.number, shard.members, shard.sealed, shard.successor_ballot, shard.successor, shard.floor)
        self._store.put(shard.index, VIEW_ROW, msgspec.msgpack.encode(row))

    def _put_cell(self, shard: Shard, key: bytes, cell: CellState) -> None:
        self._store.put(shard.index, key, m.encode(self._cell(key, cell)))

    def _cell(self, key: bytes, cell: CellState) -> m.Cell:
        return m.Cell(key, cell.promised, cell.accepted, cell.record, self._age_ms(cell))

    def _age_ms(self, cell: CellState) -> int:
        return max(0, int((self._runtime.now - cell.since) * 1000)) if cell.record is not None else 0

    def drop(self, shard: Shard) -> None:
        """Forget a shard that others keep now; a late installation of what it was is not taken."""
        self._left[shard.index] = shard.number
        self._store.put(shard.index, LEFT_ROW, msgspec.msgpack.encode(shard.number))
        for key in shard.cells:
            self._store.delete(shard.index, key)
        self._store.delete(shard.index, VIEW_ROW)
        del self.shards[shard.index]

    def _drop_cell(self, shard: Shard, key: bytes) -> None:
        """Keep no cell of a key any more; what it promised, the floor must promise already."""
        shard.room.remove(shard.cells.pop(key).record)
        shard.bare.pop(key, None)
        self._store.delete(shard.index, key)

    # --- acceptor ----------------------------------------------------------------------------

    def stale(self, index: int) -> m.Stale:
        """What we know of a shard's view, for somebody who named another."""
        shard, newest = self.shards.get(index), self.newest(index)
        closed = shard is not None and shard.number == newest.number and not shard.open
        return m.Stale(index, newest.number, newest.members, closed)

    def newest(self, index: int) -> m.Redirect:
        """The newest view of a shard that we have or have heard of."""
        shard, known = self.shards.get(index), self.known.get(index)
        if shard is not None and (known is None or known.number <= shard.number):
            return m.Redirect(index, shard.number, shard.members)
        return known or m.Redirect(index, 0, ())

    def superseded(self, shard: Shard) -> bool:
        """Whether we have heard of a later view than the one we have."""
        return self.newest(shard.index).number > shard.number

    def _open(self, index: int, number: int) -> Shard | None:
        shard = self._in_view(index, number)
        return shard if shard is not None and shard.open else None

    def _in_view(self, index: int, number: int) -> Shard | None:
        """Our copy of this very view, unless the authority has declared it over."""
        shard = self.shards.get(index)
        return shard if shard is not None and shard.number == number and not self._is_over(index, number) else None

    def _is_over(self, index: int, number: int) -> bool:
        order = self.orders.get(index)
        return order is not None and number < order.number

    def peek(self, body: m.Peek) -> m.Answer:
        """What we accepted; binds nobody."""
        shard = self._open(body.shard, body.number)
        if shard is None:
            return self.stale(body.shard)
        return self._promise(shard, shard.cells.get(body.key) or CellState())

    def prepare(self, body: m.Prepare) -> m.Answer:
        """Phase 1: promise, unless this ballot or a higher one has our promise. Raises `QuotaExceeded`.

        Not even the same one twice: a proposer that has forgotten its rounds in a restart could put another record under it.
        """
        shard = self._open(body.shard, body.number)
        if shard is None:
            return self.stale(body.shard)
        cell = shard.cells.get(body.key)
        promised = _promised(shard, cell)
        if body.ballot <= promised:
            return m.Refused(promised)
        if body.owner:
            shard.room.check(cell.record if cell else None, cell is not None, body.owner, body.size)
        if cell is None:
            cell = self._new_cell(shard, body.key)
            shard.bare[body.key] = None
        cell.promised = body.ballot
        self._put_cell(shard, body.key, cell)
        if len(shard.bare) > BARE:
            self._fold(shard)
        return self._promise(shard, cell)

    def _promise(self, shard: Shard, cell: CellState) -> m.Promise:
        last = 0 if cell.record is not None else shard.floor.version
        return m.Promise(cell.accepted, cell.record, self._age_ms(cell), last)

    def _new_cell(self, shard: Shard, key: bytes) -> CellState:
        cell = shard.cells[key] = CellState()
        shard.room.add(None)
        return cell

    def _fold(self, shard: Shard) -> None:
        """One promise, the highest, for the older half of the keys that have nothing else. A promise may always be more than it was."""
        older = list(shard.bare)[: len(shard.bare) // 2]
        shard.floor = raised(shard.floor, m.Floor(max(shard.cells[key].promised for key in older), 0))
        for key in older:
            self._drop_cell(shard, key)
        self._put_view(shard)

    def accept(self, body: m.Accept) -> m.Answer:
        """Phase 2: accept, unless a higher ballot has our promise. A record with a bad signature is never accepted.

        Raises `QuotaExceeded` only far beyond the quota: what a majority made room for is taken.
        """
        shard = self._open(body.shard, body.number)
        if shard is None:
            return self.stale(body.shard)
        cell = shard.cells.get(body.key)
        promised = _promised(shard, cell)
        if body.ballot < promised:
            return m.Refused(promised)
        if body.record is not None:
            if not self._authentic(body.key, body.record):
                self._runtime.count("record_forged")
                return m.Failed("BadMessage", "the record's signature is not its owner's", "")
            shard.room.check(cell.record if cell else None, cell is not None, body.record.owner, size_of(body.record), HARD)
        if cell is None:
            cell = self._new_cell(shard, body.key)
        shard.room.remove(cell.record)
        cell.promised = cell.accepted = body.ballot
        cell.record = body.record
        cell.since = self._runtime.now - body.age_ms / 1000
        shard.room.add(cell.record)
        shard.bare.pop(body.key, None)
        self._put_cell(shard, body.key, cell)
        return m.Done()

    def over(self, shard: Shard) -> list[bytes]:
        """The keys whose registers hold nothing any more: deleted or expired a while ago."""
        return [key for key, cell in shard.cells.items() if cell.accepted != m.NO_BALLOT and self.is_over(cell.record, self._age_ms(cell))]

    def forget(self, body: m.Forget) -> m.Answer:
        """Drop a register that is over, for which all members have promised this ballot and nothing since (docs/dht.md)."""
        shard = self._open(body.shard, body.number)
        if shard is None:
            return self.stale(body.shard)
        cell = shard.cells.get(body.key)
        if cell is None:
            return m.Done()
        if cell.promised != body.ballot or not self.is_over(cell.record, self._age_ms(cell)):
            return m.Refused(_promised(shard, cell))
        shard.floor = raised(shard.floor, m.Floor(cell.promised, cell.record.version if cell.record is not None else 0))
        self._drop_cell(shard, body.key)
        self._put_view(shard)
        return m.Done()

    # --- change of view ----------------------------------------------------------------------

    def seal(self, body: m.Seal) -> m.Answer:
        """Stop accepting in this view; promise for the decision on the next."""
        shard = self._in_view(body.shard, body.number)
        if shard is None:
            return self.stale(body.shard)
        if body.ballot < shard.sealed:
            return m.Refused(shard.sealed)
        if shard.open:
            shard.sealed_since = self._runtime.now
        shard.sealed = body.ballot
        self._put_view(shard)
        return m.Sealed(shard.successor_ballot, shard.successor, len(shard.cells))

    def succeed(self, body: m.Succeed) -> m.Answer:
        """Accept a proposal for the next view's members."""
        shard = self._in_view(body.shard, body.number)
        if shard is None:
            return self.stale(body.shard)
        if body.ballot < shard.sealed:
            return m.Refused(shard.sealed)
        shard.sealed = shard.successor_ballot = body.ballot
        shard.successor = body.members
        self._put_view(shard)
        return m.Done()

    def fetch(self, body: m.Fetch) -> m.Answer:
        """A page of what a sealed view holds here."""
        shard = self._in_view(body.shard, body.number)
        if shard is None or shard.open:
            return self.stale(body.shard)
        keys = sorted(key for key in shard.cells if key > body.after)
        cells = page([self._cell(key, shard.cells[key]) for key in keys])
        return m.Page(cells, len(cells) < len(keys), shard.floor)

    def install(self, sender: Ident, body: m.Install) -> m.Answer:
        """Part of a view that begins; with all parts here it is open."""
        shard = self.shards.get(body.shard)
        if shard is not None and shard.number >= body.number:
            return m.Done() if shard.number == body.number else self.stale(body.shard)
        known = body.shard < self.count and self.ident in body.members
        if not known or body.number <= self._left.get(body.shard, 0) or self._is_over(body.shard, body.number):
            return self.stale(body.shard)
        order = self.orders.get(body.shard)
        if order is not None and order.number == body.number and order.members != body.members:
            return self.stale(body.shard)
        arriving = self._arriving.get((sender, body.shard))
        if any(cell.record is not None and not self._authentic(cell.key, cell.record) for cell in body.cells):
            self._runtime.count("record_forged")
            return m.Failed("BadMessage", "a record's signature is not its owner's", "")
        if arriving is None or (arriving.number, arriving.attempt) != (body.number, body.attempt):
            arriving = self._arriving[sender, body.shard] = _Arriving(body.number, body.attempt)
        arriving.parts[body.part] = body.cells
        if body.final:
            arriving.last = body.part
        if arriving.last is not None and len(arriving.parts) > arriving.last:
            del self._arriving[sender, body.shard]
            self._begin(body, arriving)
        return m.Done()

    def _begin(self, body: m.Install, arriving: _Arriving) -> None:
        old = self.shards.get(body.shard)
        shard = self._shard_of(body.shard, ViewRow(body.number, body.members, m.NO_BALLOT, m.NO_BALLOT, (), body.floor))
        shard.opened = self._runtime.now
        for cell in {cell.key: cell for part in arriving.parts.values() for cell in part}.values():
            self._keep(shard, cell)
        for key in old.cells if old else ():
            if key not in shard.cells:
                self._store.delete(body.shard, key)
        self.shards[body.shard] = shard
        if not self.superseded(shard):
            self.known.pop(body.shard, None)
        self._put_view(shard)
        for key, state in shard.cells.items():
            self._put_cell(shard, key, state)

    def copy(self, shard: Shard) -> list[m.Cell]:
        """All cells of a shard, in the order of their keys."""
        return [self._cell(key, shard.cells[key]) for key in sorted(shard.cells)]

    def learn(self, index: int, number: int, members: tuple[Ident, ...]) -> None:
        """Somebody named a view; remember the newest. A copy that it leaves behind stays until a majority has the new one."""
        if members and number > self.newest(index).number:
            self.known[index] = m.Redirect(index, number, members)

    def retire(self, body: m.Retire) -> m.Answer:
        """The next view works; whoever is not in it may forget the shard."""
        shard = self.shards.get(body.shard)
        self.learn(body.shard, body.number + 1, body.members)
        if shard is not None and shard.number <= body.number and self.ident not in body.members:
            self.drop(shard)
        return m.Done()

    # --- views founded anew ------------------------------------------------------------------

    def obey(self, order: m.Order) -> bool:
        """Take an order that the authority has signed; gives whether it is news for any of its shards."""
        fresh = [index for index in order.shards if index < self.count and order.number > self._newest_ordered(index)]
        for index in fresh:
            self.orders[index] = order
            self._store.put(index, ORDER_ROW, m.encode(order))
            self.learn(index, order.number, order.members)
        return bool(fresh)

    def _newest_ordered(self, index: int) -> int:
        order, shard = self.orders.get(index), self.shards.get(index)
        return max(order.number if order else 0, shard.number if shard else 0, self._left.get(index, 0))

    def salvage(self, body: m.Salvage) -> m.Answer:
        """A page of what is left here of a view that an order has ended."""
        order, shard = self.orders.get(body.shard), self.shards.get(body.shard)
        if order is None or order.number != body.number:
            return self.stale(body.shard)
        if shard is None:
            return m.Salvaged(0, (), False, m.NO_FLOOR)
        keys = sorted(key for key in shard.cells if key > body.after)
        cells = page([self._cell(key, shard.cells[key]) for key in keys])
        return m.Salvaged(shard.number, cells, len(cells) < len(keys), shard.floor)


def _promised(shard: Shard, cell: CellState | None) -> m.Ballot:
    """Below which nothing is accepted for a key."""
    return max(cell.promised, shard.floor.promised) if cell is not None else shard.floor.promised


def raised(one: m.Floor, other: m.Floor) -> m.Floor:
    """The floor that keeps what two promise."""
    return m.Floor(max(one.promised, other.promised), max(one.version, other.version))


def is_over(record: m.Record | None, age_ms: int) -> bool:
    """Whether nothing of a register's contents matters any more."""
    return record is None or age_ms > (record.ttl + GRACE) * 1000


def page(cells: list[m.Cell]) -> tuple[m.Cell, ...]:
    """As many cells from the front as fit one part."""
    taken: list[m.Cell] = []
    room = PAGE_BYTES
    for cell in cells[:64]:
        room -= size_of(cell.record)
        if taken and room < 0:
            break
        taken.append(cell)
    return tuple(taken)
