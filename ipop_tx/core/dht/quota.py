"""How much of a shard one member may fill, and all members together, as one replica counts what it keeps itself.

A replica is asked for room before anything is written (`Prepare` names owner and size), so what is refused has not happened anywhere.
What others then complete or hand over is taken without asking, up to twice as much: a replica that refused a record which
a majority took would only lag behind. Nothing that a member sends fills the disk beyond that.
"""

from __future__ import annotations

from ipop_tx.errors import QuotaExceeded
from ipop_tx.values import Ident, Quota, short
from ipop_tx.wire import messages as m

CELL_BYTES = 120
"""What a register takes besides value, signer and signature: its key, two ballots, its owner, a row on disk."""
HARD = 2
"""By how much more than it may ask for is taken of what a majority has agreed to."""


def size_of(record: m.Record | None) -> int:
    """Bytes for which a register counts."""
    return CELL_BYTES + (len(record.value) + len(record.signer) + len(record.signature) if record is not None else 0)


class Room:
    """What the registers of one shard take here, and whether there is more to be had."""

    def __init__(self, quota: Quota, shards: int) -> None:
        """A shard has its part of what the quota allows in the whole DHT."""
        self.registers: dict[Ident, int] = {}
        self.bytes: dict[Ident, int] = {}
        self.total = 0
        self._most_registers = max(1, quota.registers // shards)
        self._most_bytes = quota.bytes // shards
        self._most_total = quota.total // shards

    def add(self, record: m.Record | None) -> None:
        """A register is kept from now on."""
        self._count(record, 1)

    def remove(self, record: m.Record | None) -> None:
        """It is kept no longer."""
        self._count(record, -1)

    def _count(self, record: m.Record | None, by: int) -> None:
        size = by * size_of(record)
        self.total += size
        if record is None:
            return
        self.registers[record.owner] = self.registers.get(record.owner, 0) + by
        self.bytes[record.owner] = self.bytes.get(record.owner, 0) + size
        if not self.registers[record.owner]:
            del self.registers[record.owner], self.bytes[record.owner]

    def check(self, present: m.Record | None, kept: bool, owner: Ident, size: int, factor: int = 1) -> None:
        """Raise `QuotaExceeded` unless `owner` may write `size` bytes over `present` (None, and not `kept`, where nothing is).

        What does not grow is never refused: neither a renewal nor a deletion.
        """
        ours = present is not None and present.owner == owner
        before = size_of(present) if kept else 0
        registers = self.registers.get(owner, 0) + (0 if ours else 1)
        taken = self.bytes.get(owner, 0) + size - (before if ours else 0)
        if not ours and registers > factor * self._most_registers:
            held = f"{short(owner)} has {registers - 1} registers in this part of the DHT, and may have no more"
            raise QuotaExceeded(held, "delete some, or wait until they expire")
        if taken > factor * self._most_bytes and not (ours and size <= before):
            raise QuotaExceeded(f"{short(owner)} fills {taken - size} bytes of this part of the DHT", "delete registers, or write less")
        if self.total + size - before > factor * self._most_total and size > before:
            raise QuotaExceeded(
                f"this part of the DHT is full ({self.total} bytes)", "wait until registers expire, or raise dht.megabytes on all nodes"
            )
