"""Registers broken on purpose, one rule each. A check that does not find them all has found nothing about the good ones.

The rules are broken here, in the process of the benchmark, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ipop_tx.core.dht import coordinator, dht, views
from ipop_tx.core.dht.coordinator import Coordinator, Outcome
from ipop_tx.core.dht.forgetting import Forgetting
from ipop_tx.core.dht.replica import CellState, Replicas, Shard
from ipop_tx.core.tasks import successes
from ipop_tx.errors import Unavailable
from ipop_tx.identity.store import MemoryReplicaStore
from ipop_tx.simulation import registers
from ipop_tx.wire import messages as m


class Unchecked(Replicas):
    """Accepts under any ballot."""

    def accept(self, body: m.Accept) -> m.Answer:
        """As if nothing had been promised."""
        shard = self.shards.get(body.shard)
        if shard is not None and body.key in shard.cells:
            shard.cells[body.key].promised = m.NO_BALLOT
        return super().accept(body)


class Generous(Replicas):
    """Promises whatever is asked, also below what it has promised."""

    def prepare(self, body: m.Prepare) -> m.Answer:
        """As if nothing had been promised."""
        shard = self.shards.get(body.shard)
        if shard is not None and body.key in shard.cells:
            shard.cells[body.key].promised = m.NO_BALLOT
        return super().prepare(body)


class Forgetful(Replicas):
    """Writes down what it accepts, and not what it promises."""

    def _put_cell(self, shard: Shard, key: bytes, cell: CellState) -> None:
        if cell.promised == cell.accepted:
            super()._put_cell(shard, key, cell)


class Unsealed(Replicas):
    """Goes on accepting in a view that it has sealed."""

    def _open(self, index: int, number: int) -> Shard | None:
        shard = self.shards.get(index)
        return shard if shard is not None and shard.number == number else None


class Numberless(Replicas):
    """Serves whoever names a view that it is not in."""

    def _open(self, index: int, number: int) -> Shard | None:
        shard = self.shards.get(index)
        return shard if shard is not None and shard.open else None


class Hasty(Coordinator):
    """Reads from one replica."""

    async def read(self, key: bytes) -> Outcome:
        """What the first one says."""
        shard = self.shard(key)
        promises = await self._peek(shard, key) if shard is not None else []
        if not promises:
            raise Unavailable(0, 1, 1)
        return False, self._live(promises[:1]), coordinator._last(promises[:1])


class Impatient(Coordinator):
    """Counts a record as gone a second early."""

    def _age(self, promises: list[m.Promise], newest: m.Promise) -> int:
        return super()._age(promises, newest) + (1000 if newest.record is not None else 0)


class Hurried(Forgetting):
    """Forgets what is over once a majority has promised."""

    async def _all(self, shard: Shard, body: m.Peek | m.Prepare) -> list[m.Promise]:
        answers = await successes([self._coordinator.ask_member(member, body) for member in shard.members])
        self._coordinator.learn_rounds(answers)
        promises = [answer for answer in answers if isinstance(answer, m.Promise)]
        return promises if len(promises) >= coordinator.majority(shard.members) else []


class Lazy(MemoryReplicaStore):
    """Lets answers leave before what they rest on is durable: it commits only every sixth time that something is waiting."""

    def __init__(self) -> None:
        super().__init__()
        self._asked = 0

    def commit(self) -> None:
        """Perhaps."""
        self._asked += bool(self._written)
        if self._asked % 6 == 1:
            super().commit()


def _lost_cells(one: m.Cell | None, other: m.Cell) -> m.Cell:
    """Of several copies of a register that are handed over, the oldest."""
    return one if one is not None and one.accepted <= other.accepted else other


def _any_version(body: m.Write) -> Any:
    """A create that goes by emptiness alone, so that an old one may revive what was deleted."""
    change = dht_change_of(body)

    def careless(live: m.Record | None, last: int) -> m.Record | None:
        return body.record if body.expected == 0 and live is None else change(live, last)

    return careless


def _one(members: Sequence[bytes]) -> int:
    return 1


dht_change_of = dht.change_of

Patch = tuple[Any, str, Any]

VARIANTS: dict[str, tuple[Patch, ...]] = {
    "no ballot check in accept": ((registers, "Replicas", Unchecked),),
    "promises below a promise": ((registers, "Replicas", Generous),),
    "promises forgotten at restart": ((registers, "Replicas", Forgetful),),
    "answers before the commit": ((registers, "MemoryReplicaStore", Lazy),),
    "writes without majority": ((coordinator, "majority", _one),),
    "reads without majority": ((registers, "Coordinator", Hasty),),
    "view changed without majority": ((views, "majority", _one),),
    "sealed views go on accepting": ((registers, "Replicas", Unsealed),),
    "view numbers ignored": ((registers, "Replicas", Numberless),),
    "hand-over keeps the oldest copy": ((views, "merge", _lost_cells),),
    "records expire a second early": ((registers, "Coordinator", Impatient),),
    "forgotten without asking all": ((registers, "Forgetting", Hurried),),
    "late creates revive what was deleted": ((dht, "change_of", _any_version),),
}


@contextmanager
def broken(name: str) -> Iterator[None]:
    """While this lasts, the rule of that name is broken."""
    old: list[Patch] = []
    try:
        for where, what, instead in VARIANTS[name]:
            old.append((where, what, getattr(where, what)))
            setattr(where, what, instead)
        yield
    finally:
        for patch in reversed(old):
            setattr(*patch)
