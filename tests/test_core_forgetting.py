"""Registers that are dropped while clients use them: histories have an order all the same, unless less than all members were asked."""

from __future__ import annotations

from random import Random

from ipop_tx.core import forgetting, node, replica
from ipop_tx.core.coordinator import majority
from ipop_tx.core.replica import Shard
from ipop_tx.core.tasks import quorum
from ipop_tx.wire import messages as m
from tests.net import NetCase
from tests.test_core_linearizable import Clients, LinearizableTests, Trouble

SOON_MS = 25_000
"""For these tests a deletion is forgotten after this time, which is still longer than any write is under way."""


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

    busy = LinearizableTests.busy
    restart_one = LinearizableTests.restart_one
    restart_and_cut = LinearizableTests.restart_and_cut

    def setUp(self) -> None:
        self.patch(forgetting, "EVERY", 1.0)
        for module in (forgetting, replica):
            self.patch(module, "is_over", over_soon)
        self.dropped = 0

    def run_with(self, seed: int, operations: int = 2500) -> Clients:
        """Many registers, so that some are left alone for a while."""
        clients = self.busy(seed, operations, self.trouble, registers=150)
        self.dropped += sum(machine.running.runtime.counters.get("registers_dropped", 0) for machine in clients._machines)
        return clients

    def trouble(self, trouble: Trouble, rng: Random) -> None:
        """Nodes that are away for a moment miss deletions."""
        self.restart_and_cut(trouble, rng)

    def test_order(self) -> None:
        """Restarts and cuts: nothing that was deleted comes back."""
        for seed in range(3):
            clients = self.run_with(seed)
            self.assertEqual(clients.disorder(), [], f"seed {seed}")
            self.assertGreater(clients.answered, 1200)
        self.assertGreater(self.dropped, 100)

    def test_hasty(self) -> None:
        """Dropping what a majority agrees on is found out."""
        self.patch(node, "Forgetting", Hasty)
        self.assertTrue(any(self.run_with(seed).disorder() for seed in range(8)))
