"""Replicas that are gone for good, two of five at once, under load; and a majority that is away, when nothing may be granted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import combinations
from random import Random
from typing import Any

from ipop_tx.core import commands as c
from ipop_tx.core.dht.records import key_of
from ipop_tx.core.tasks import Future
from ipop_tx.errors import EnvironmentProblem, Unavailable
from ipop_tx.simulation.network import NETWORK
from ipop_tx.simulation.registers import RegisterNet, RegisterNode, grown
from ipop_tx.wire.messages import Record

NODES = 9
PER_SECOND = 100.0
TTL = 10**6


@dataclass
class Writes:
    """What some clients wrote, and were told."""

    net: RegisterNet
    clients: list[RegisterNode]
    rng: Random
    name: str

    def __post_init__(self) -> None:
        self.asked: dict[bytes, Future[Any]] = {}

    def go_on(self, seconds: float) -> None:
        """Create registers, one after the other, each once."""
        for _ in range(int(seconds * PER_SECOND)):
            key = key_of("durable", b"", f"{self.name}/{len(self.asked)}".encode())
            self.asked[key] = self.rng.choice(self.clients).submit(c.Create(key, key, TTL))
            self.net.run(1 / PER_SECOND)

    def acknowledged(self) -> list[bytes]:
        """Those that were answered with success."""
        return [key for key, done in self.asked.items() if done.done and done.error is None]

    def errors(self) -> list[BaseException]:
        """What the others ended with."""
        return [done.error for done in self.asked.values() if done.done and done.error is not None]


def _world(seed: int) -> tuple[RegisterNet, list[RegisterNode], list[RegisterNode]]:
    """A net of one shard; those who keep it, and the others."""
    net = RegisterNet(seed, network=replace(NETWORK, shards=1))
    machines = grown(net, NODES)
    members = net.keepers(0)
    keepers = [machine for ident in members for machine in machines if machine.ident == ident]
    return net, keepers, [machine for machine in machines if machine not in keepers]


def _missing(net: RegisterNet, reader: RegisterNode, keys: list[bytes]) -> tuple[int, int]:
    """How many of these registers are empty or hold something else, and how many cannot be read."""
    reads = {key: reader.submit(c.Get(key)) for key in keys}
    net.run(60.0, lambda: all(read.done for read in reads.values()))
    answered = {key: read.result() for key, read in reads.items() if read.done and read.error is None}
    return sum(not isinstance(record, Record) or record.value != key for key, record in answered.items()), len(keys) - len(answered)


def two_of_five(seed: int, pair: tuple[int, int]) -> dict[str, int]:
    """Two keepers vanish in one moment, under load; what was answered is read at once, and again after the views have changed."""
    net, keepers, others = _world(seed)
    writes = Writes(net, others, Random(f"two/{seed}"), f"{seed}")
    net.loss, net.doubled, net.delayed = 0.02, 0.02, 0.02
    writes.go_on(2.0)
    for at in pair:
        keepers[at].crash()
    at_once = writes.acknowledged()
    lost, unread = _missing(net, others[0], at_once)
    writes.go_on(1.0)
    net.run(60.0)
    later = writes.acknowledged()
    lost_later, unread_later = _missing(net, others[1], later)
    return {
        "acknowledged": len(at_once),
        "acknowledged_after": len(later) - len(at_once),
        "lost": lost + lost_later,
        "unread": unread + unread_later,
        "faults": len(net.faults),
    }


def majority(seed: int, killed: int = 3) -> dict[str, int]:
    """Most keepers are away: nobody gets anything; when they are back all is as it was, and nothing has two owners."""
    net, keepers, others = _world(seed)
    rng = Random(f"majority/{seed}")
    before = Writes(net, others, rng, f"{seed}/before")
    before.go_on(1.0)
    net.run(30.0)
    for keeper in rng.sample(keepers, killed):
        keeper.crash()
    during = Writes(net, [*others, *(keeper for keeper in keepers if keeper.up)], rng, f"{seed}/during")
    during.go_on(0.5)
    taken = before.acknowledged()[:20]
    second = [rng.choice(others).submit(c.Create(key, b"second", TTL)) for key in taken]
    net.run(60.0)
    refused = [error for error in during.errors() if isinstance(error, EnvironmentProblem)]
    granted, told = len(during.acknowledged()), sum(isinstance(error, Unavailable) for error in during.errors())
    doubly = sum(one.error is None for one in second)
    for keeper in keepers:
        if not keeper.up:
            keeper.start(others[0])
    net.run(60.0)
    lost, unread = _missing(net, others[1], before.acknowledged())
    return {
        "asked": len(during.asked),
        "refused": len(refused),
        "refused_with_numbers": told,
        "granted": granted,
        "granted_twice": doubly,
        "lost": lost,
        "unread": unread,
        "faults": len(net.faults),
    }


def measure(seed: int, rounds: int, say: Callable[[str], object]) -> dict[str, Any]:
    """Every pair of keepers, and several majorities, `rounds` times."""
    pairs = [
        two_of_five(seed * 10_000 + 100 * number + at, pair)
        for number in range(rounds)
        for at, pair in enumerate(combinations(range(5), 2))
    ]
    say(f"two of five: {_sum(pairs)}")
    most = [majority(seed * 10_000 + number, 3 + number % 3) for number in range(4 * rounds)]
    say(f"majority: {_sum(most)}")
    return {"any_two_of_five_gone": {"times": len(pairs), **_sum(pairs)}, "majority_away": {"times": len(most), **_sum(most)}}


def _sum(found: list[dict[str, int]]) -> dict[str, int]:
    return {name: sum(one[name] for one in found) for name in found[0]}
