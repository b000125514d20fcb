"""Registers that are over, deleted or expired long ago, are dropped by all members of their view together.

One member alone must not: another may have missed the deletion, and what that one still holds would come to light again. So *all* members
promise one ballot first (none may be missing), which bars every older write; if then none of them holds anything but the same
record that is over, each may drop it whenever it hears so, as long as nobody has proposed anything since. See docs/dht.md.
"""

from __future__ import annotations

from ipop_tx.core.dht.coordinator import Coordinator
from ipop_tx.core.dht.replica import Replicas, Shard
from ipop_tx.core.runtime import Runtime
from ipop_tx.core.tasks import successes
from ipop_tx.wire import messages as m

EVERY = 300.0
"""Seconds between looks for registers that are over."""
AT_ONCE = 256
"""Most registers of a shard that are dropped in one look."""


class Forgetting:
    """Drops what is over in the shards of which this node is the first member."""

    def __init__(self, replicas: Replicas, coordinator: Coordinator, runtime: Runtime, every: float | None = None) -> None:
        self._replicas = replicas
        self._coordinator = coordinator
        self._runtime = runtime
        self._every = every or EVERY
        runtime.background(self._look_for_ever())

    async def _look_for_ever(self) -> None:
        while True:
            await self._runtime.sleep(self._every)
            for index in sorted(self._replicas.shards):
                await self._look(index)

    async def _look(self, index: int) -> None:
        shard = self._replicas.shards.get(index)
        if shard is None or shard.members[0] != self._replicas.ident:
            return
        for key in self._replicas.over(shard)[:AT_ONCE]:
            if self._coordinator.shard(key) is not shard or not await self._forget(shard, key):
                return

    async def _forget(self, shard: Shard, key: bytes) -> bool:
        """Try to drop one register everywhere; False when a member is missing, so that the others can wait."""
        if not await self._all(shard, m.Peek(shard.index, shard.number, key)):
            return False
        ballot = self._coordinator.ballot()
        promises = await self._all(shard, m.Prepare(shard.index, shard.number, key, ballot))
        if promises and len({promise.accepted for promise in promises} - {m.NO_BALLOT}) > 1:
            await self._coordinator.complete(shard, key)
        elif promises and all(self._replicas.is_over(promise.record, promise.age_ms) for promise in promises):
            forget = m.Forget(shard.index, shard.number, key, ballot)
            dropped = await successes([self._coordinator.ask_member(member, forget) for member in shard.members])
            self._runtime.count("registers_dropped", any(isinstance(answer, m.Done) for answer in dropped))
        return True

    async def _all(self, shard: Shard, body: m.Peek | m.Prepare) -> list[m.Promise]:
        """The promises of all members; none when one of them gives none."""
        answers = await successes([self._coordinator.ask_member(member, body) for member in shard.members])
        self._coordinator.learn_rounds(answers)
        promises = [answer for answer in answers if isinstance(answer, m.Promise)]
        return promises if len(promises) == len(shard.members) else []
