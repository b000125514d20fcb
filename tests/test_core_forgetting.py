"""Registers that are dropped while clients use them: histories have an order all the same, unless less than all members were asked."""

from __future__ import annotations

from random import Random

from ipop_tx.core import node
from ipop_tx.core.dht import forgetting, replica
from ipop_tx.core.dht.coordinator import majority
from ipop_tx.core.dht.replica import Shard
from ipop_tx.core.tasks import quorum
from ipop_tx.wire import messages as m
from tests import test_core_linearizable as base
from tests.net import NetCase

SOON_MS = 1_000
"""For these tests a deletion is forgotten after this time, while writes from before it may still be under way."""


def over_soon(record: m.Record | None, age_ms: int) -> bool:
    """As `is_over`, but sooner, and for deletions only."""
    return record is None or (not record.value and age_ms > SOON_MS)


class Hasty(forgetting.Forgetting):
    """Content with a majority of the members."""

    async def _all(self, shard: Shard, body: m.Peek | m.Prepare) -> list[m.Promise]:
        answers = await quorum([self._coordinator.ask_member(member, body) for member in shard.members], lambda answers: False)
        self._coordinator.learn_rounds(answers)
        promises = [answer for answer in answers if isinstance(answer, m.Promise)]
        return promises if len(promises) >= majority(shard.members) else []


class ForgettingTests(NetCase):
    """Whole nodes."""

    busy = base.LinearizableTests.busy
    restart_one = base.LinearizableTests.restart_one

    def setUp(self) -> None:
        self.patch(forgetting, "EVERY", 0.5)
        self.patch(replica, "is_over", over_soon)
        self.dropped = 0

    def run_with(self, seed: int, operations: int = 2500) -> base.Clients:
        """Many registers, so that some are left alone for a while."""
        clients = self.busy(seed, operations, self.trouble, registers=60)
        self.dropped += sum(machine.running.runtime.counters.get("registers_dropped", 0) for machine in clients._machines)
        return clients

    def trouble(self, trouble: base.Trouble, rng: Random) -> None:
        """Nodes that are away for a moment miss deletions."""
        if rng.random() < 0.3:
            self.restart_one(trouble, rng)
        trouble.cut(rng.randrange(1, 3), rng.uniform(5.0, 9.0))

    def test_order(self) -> None:
        """Restarts and cuts: nothing that was deleted comes back."""
        for seed in range(5):
            clients = self.run_with(seed)
            self.assertEqual(clients.disorder(), [], f"seed {seed}")
            self.assertGreater(clients.answered, 1200)
        self.assertGreater(self.dropped, 60)

    def test_hasty(self) -> None:
        """Dropping what a majority agrees on is found out."""
        self.patch(node, "Forgetting", Hasty)
        self.assertTrue(any(self.run_with(seed).disorder() for seed in range(43, 73)))  # the first shows it, as things are
