"""Clients of registers at the nodes of a simulated net, who write down what they asked and what they were told."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from random import Random
from typing import Any, Protocol

from ipop_tx.core import commands as c
from ipop_tx.core.dht.records import key_of
from ipop_tx.core.tasks import Future
from ipop_tx.errors import Conflict
from ipop_tx.simulation.history import Operation, Undecided, linearizable
from ipop_tx.values import Ident
from ipop_tx.wire.messages import Record

TTL = 10**6
"""Seconds; no register expires meanwhile."""


class Net(Protocol):
    """What has a time."""

    now: float


class Machine(Protocol):
    """What takes operations while it is on."""

    number: int
    ident: Ident

    @property
    def up(self) -> bool:
        """Whether it is on."""

    def submit(self, command: object) -> Future[Any]:
        """Ask for an operation."""


class Clients:
    """One client at each machine for each register, with one operation at a time.

    `registers` are in use at once. After `length` operations a fresh one takes the place of one: histories stay short enough to be checked.
    """

    def __init__(self, net: Net, machines: Sequence[Machine], registers: int, seed: int, length: int = 10**9, ttl: float = TTL) -> None:
        self.histories: dict[bytes, list[Operation]] = {}
        self.unanswered = 0
        """Operations that ended in an error which does not tell whether they took effect."""
        self._net = net
        self._machines = machines
        self._length, self._ttl = length, ttl
        self._tending = 0.7 if ttl >= TTL else 0.15
        """How often a client that holds a register writes it again or gives it up; seldom, where records are to expire."""
        self._rng = Random(f"clients/{seed}")
        self._busy: set[tuple[bytes, int]] = set()
        self._known: dict[tuple[bytes, int], int] = {}
        self._count = 0
        self._keys = [self._fresh() for _ in range(registers)]

    def _fresh(self) -> bytes:
        key = key_of("test", b"", str(len(self.histories)).encode())
        self.histories[key] = []
        return key

    def step(self) -> None:
        """One more operation, somewhere."""
        machine, at = self._rng.choice(self._machines), self._rng.randrange(len(self._keys))
        key = self._keys[at]
        place = (key, machine.number)
        if not machine.up or place in self._busy:
            return
        self._busy.add(place)
        self._count += 1
        operation = Operation(self._command(place), machine.ident, self._net.now)
        self.histories[key].append(operation)
        if len(self.histories[key]) >= self._length:
            self._keys[at] = self._fresh()
        machine.submit(operation.command).then(lambda done: self._answered(place, operation, done))

    def _command(self, place: tuple[bytes, int]) -> c.Get | c.Create | c.CompareAndSet | c.Delete:
        key, value, version = place[0], str(self._count).encode(), self._known.get(place)
        if version is not None and self._rng.random() < self._tending:
            return c.Delete(key, version) if self._rng.random() < 0.4 else c.CompareAndSet(key, version, value, self._ttl)
        return c.Get(key) if self._rng.random() < 0.5 else c.Create(key, value, self._ttl)

    def _answered(self, place: tuple[bytes, int], operation: Operation, done: Future[Any]) -> None:
        self._busy.discard(place)
        operation.settled(self._net.now, done.error, None if done.error else done.result())
        self.unanswered += done.error is not None and not isinstance(done.error, Conflict)
        record = None if done.error else done.result()
        if isinstance(record, Record) and record.owner == operation.client:
            self._known[place] = record.version
        else:
            self._known.pop(place, None)

    def crashed(self, machine: Machine) -> None:
        """What a machine's clients were waiting for will never be answered."""
        self._busy = {place for place in self._busy if place[1] != machine.number}

    def disorder(self) -> list[bytes]:
        """The registers whose history has no order."""
        return [key for key, history in self.histories.items() if not linearizable(history)]

    def verdicts(self) -> tuple[int, int]:
        """How many registers have a history without an order, and of how many the search could not tell."""
        return verdicts(self.histories.values())

    @property
    def operations(self) -> int:
        """How many there were."""
        return sum(map(len, self.histories.values()))

    @property
    def answered(self) -> int:
        """How many operations were answered for certain."""
        return sum(operation.known for history in self.histories.values() for operation in history)


def verdicts(histories: Iterable[list[Operation]]) -> tuple[int, int]:
    """How many histories have no order, and of how many the search could not tell."""
    wrong = undecided = 0
    for history in histories:
        try:
            wrong += not linearizable(history)
        except Undecided:
            undecided += 1
    return wrong, undecided
