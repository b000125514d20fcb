"""A register world in trouble: clients at all nodes, while nodes crash, come back and leave, and the net is cut. Then the verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from random import Random

from ipop_tx.simulation.clients import TTL, Clients
from ipop_tx.simulation.network import NETWORK
from ipop_tx.simulation.registers import Fate, RegisterNet, RegisterNode, grown
from ipop_tx.wire import messages as m

PAUSES = (0.02, 0.02, 0.2, 2.0, 6.0, 20.0)
"""Seconds for which a node stays off: some are back before anybody has noticed, some after their views have changed."""

FORGET_EVERY = 0.5
"""Seconds between looks for registers to be forgotten, in worlds that forget soon."""
LEFT_ALONE = 60
"""Registers of such a world: so many that each is left alone now and then, for otherwise none can be forgotten."""
FORGET_AFTER_MS = 1000
"""Age at which they forget a deletion, while older writes may still be under way. What has expired they forget as soon as it has."""

SHORT_TTL = 25.0
"""Seconds. An operation takes up to 20: with less, a repeated one could find that its own record has come and gone."""


@dataclass(frozen=True)
class Plan:
    """One world."""

    seed: int
    operations: int = 10_000
    nodes: int = 9
    shards: int = 4
    per_second: float = 40.0
    registers: int = 12
    length: int = 200
    """Operations on one register until a fresh one takes its place."""
    ttl: float = TTL
    """Seconds for which a record lives; with a short one registers expire now and then."""
    forgets: bool = False
    """Whether registers that are over are dropped within seconds, not after an hour."""
    trouble_every: float = 6.0
    """Seconds, in the mean, from one trouble to the next."""
    loss: float = 0.03
    doubled: float = 0.05
    delayed: float = 0.02

    @classmethod
    def drawn(cls, seed: int, operations: int) -> Plan:
        """A world that differs from those of other seeds in size and in how much goes wrong."""
        rng = Random(f"plan/{seed}")
        drawn = cls(
            seed,
            operations,
            nodes=rng.choice((3, 3, 4, 5, 6, 8, 12)),
            shards=rng.choice((1, 2, 4)),
            per_second=rng.choice((15.0, 30.0, 60.0)),
            registers=rng.choice((2, 4, 12)),
            ttl=rng.choice((TTL, SHORT_TTL)),
            trouble_every=rng.uniform(1.0, 4.0),
            loss=rng.choice((0.0, 0.05, 0.2, 0.3)),
            doubled=rng.choice((0.0, 0.05, 0.2)),
            delayed=rng.choice((0.0, 0.02, 0.1)),
        )
        return replace(drawn, forgets=True, registers=LEFT_ALONE) if rng.random() < 0.5 else drawn


@dataclass
class Tally:
    """What happened in one world, or in many. A world in which nothing happened proves nothing."""

    worlds: int = 0
    operations: int = 0
    answered: int = 0
    """For certain; of the others nobody knows whether they took effect."""
    registers: int = 0
    violations: int = 0
    """Registers whose history has no order."""
    undecided: int = 0
    """Registers with which the check came to no end."""
    crashes: int = 0
    crashes_in_commit: int = 0
    """Those of them between a change and its commit, or between the commit and the end of the sending."""
    suspended: int = 0
    """Times that a node slept and went on where it had stopped."""
    leaves: int = 0
    partitions: int = 0
    broken_pairs: int = 0
    """Times at which some pairs of nodes could not reach each other directly."""
    view_changes: int = 0
    dropped: int = 0
    """Registers that were over and are forgotten."""
    messages: int = 0
    lost: int = 0
    doubled: int = 0
    late: int = 0
    simulated_s: float = 0.0
    faults: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Take another one in."""
        for one in fields(self):
            setattr(self, one.name, getattr(self, one.name) + getattr(other, one.name))


def run(plan: Plan) -> Tally:
    """One world, from its founding to the verdict. The same plan gives the same tally."""
    net = RegisterNet(plan.seed, network=replace(NETWORK, shards=plan.shards))
    if plan.forgets:
        net.forget_every, net.is_over = FORGET_EVERY, is_over_soon
    nodes = grown(net, plan.nodes)
    clients = Clients(net, nodes, plan.registers, plan.seed, plan.length, plan.ttl)
    trouble = Trouble(net, nodes, clients, plan)
    net.loss, net.doubled, net.delayed = plan.loss, plan.doubled, plan.delayed
    while clients.operations < plan.operations:
        clients.step()
        net.run(1 / plan.per_second)
        trouble.pass_time()
    trouble.end()
    net.run(60.0)
    tally = trouble.tally
    tally.worlds, tally.operations, tally.answered, tally.registers = 1, clients.operations, clients.answered, len(clients.histories)
    tally.messages, tally.lost, tally.doubled, tally.late = net.messages, net.lost, net.doubles, net.lates
    tally.view_changes = sum(_number(net, index) - 1 for index in range(plan.shards))
    tally.dropped = net.counters.get("registers_dropped", 0)
    tally.simulated_s, tally.faults = net.now, net.faults
    tally.violations, tally.undecided = clients.verdicts()
    return tally


def is_over_soon(record: m.Record | None, age_ms: int) -> bool:
    """As the daemons' `is_over`, but soon."""
    return record is None or age_ms > (record.ttl * 1000 if record.value else FORGET_AFTER_MS)


def _number(net: RegisterNet, index: int) -> int:
    return max((node.replicas.newest(index).number for node in net.machines()), default=1)


class Trouble:
    """What goes wrong, at random moments."""

    def __init__(self, net: RegisterNet, nodes: Sequence[RegisterNode], clients: Clients, plan: Plan) -> None:
        self.tally = Tally()
        self._net, self._nodes, self._clients, self._plan = net, nodes, clients, plan
        self._rng = Random(f"trouble/{plan.seed}")
        self._next = net.now + 5.0
        self._pause: dict[int, float] = {}
        often = [self._crash, self._crash_in_commit, self._cut, self._suspend]
        self._kinds = [*often, *often, self._crash, self._crash_in_commit, self._crash_many, self._break_pairs, self._leave]
        self._whole_at = 0.0
        self._asleep: set[int] = set()
        net.on_crash = self._crashed

    def pass_time(self) -> None:
        """Do what is due."""
        if self._whole_at and self._net.now >= self._whole_at:
            self._heal()
        if self._net.now >= self._next:
            self._next = self._net.now + self._rng.expovariate(1 / self._plan.trouble_every)
            if self._running():
                self._rng.choice(self._kinds)()

    def end(self) -> None:
        """From now on all goes well."""
        self._heal()
        self._net.loss = self._net.doubled = self._net.delayed = 0.0
        for node in self._nodes:
            node.fate = None

    def _running(self) -> list[RegisterNode]:
        return [node for node in self._nodes if node.up]

    # --- kinds of trouble --------------------------------------------------------------------

    def _crash(self) -> None:
        self._rng.choice(self._running()).crash()

    def _crash_many(self) -> None:
        """Several at once, perhaps the majority of a view; they are back soon."""
        for node in self._rng.sample(self._running(), min(len(self._running()) - 1, self._rng.randrange(2, 6))):
            self._pause[node.number] = self._rng.uniform(0.2, 4.0)
            node.crash()

    def _suspend(self) -> None:
        """The machine sleeps as a laptop does, and goes on later where it stopped: with promises in hand that are long overtaken."""
        node = self._rng.choice(self._running())
        node.suspend()
        self._asleep.add(node.number)
        self.tally.suspended += 1
        self._net.at(self._net.now + self._rng.choice(PAUSES), self._wake, node)

    def _wake(self, node: RegisterNode) -> None:
        self._asleep.discard(node.number)
        node.resume()

    def _crash_in_commit(self) -> None:
        """The node's next turn is its last one."""
        self._rng.choice(self._running()).fate = self._rng.choice(list(Fate))
        self.tally.crashes_in_commit += 1

    def _cut(self) -> None:
        self._net.part(self._rng.sample(self._nodes, self._rng.randrange(1, len(self._nodes) // 2 + 1)))
        self._whole_at = self._net.now + self._rng.uniform(1.0, 25.0)
        self.tally.partitions += 1

    def _break_pairs(self) -> None:
        numbers = [node.number for node in self._nodes]
        broken = {frozenset(self._rng.sample(numbers, 2)) for _ in range(len(numbers))}
        self._net.reaches = lambda one, other: frozenset((one.number, other.number)) not in broken
        self._net.recheck()
        self._whole_at = self._net.now + self._rng.uniform(1.0, 25.0)
        self.tally.broken_pairs += 1

    def _heal(self) -> None:
        self._net.part(())
        self._whole_at = 0.0

    def _leave(self) -> None:
        """Hand over, and come back later as a newcomer with an old disk."""
        running = self._running()
        if len(running) < len(self._nodes) - 2:
            return
        node = self._rng.choice(running)
        node.leave()
        self.tally.leaves += 1
        self._net.at(self._net.now + 25.0, self._back, node)

    def _crashed(self, node: RegisterNode) -> None:
        self.tally.crashes += 1
        self._clients.crashed(node)
        pause = self._pause.pop(node.number, None) or self._rng.choice(PAUSES)
        self._net.at(self._net.now + pause, self._back, node)

    def _back(self, node: RegisterNode) -> None:
        """On again, through some that are on; if nobody is, alone with its disk."""
        if node.up or node.number in self._asleep:
            return
        self._clients.crashed(node)
        others = [other for other in self._running() if other is not node]
        node.start(*self._rng.sample(others, min(3, len(others))))
