"""Ten thousand creates of one register in one moment, from nodes all over a ring that loses a tenth of its messages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

from ipop_tx.core import commands as c
from ipop_tx.core.dht.records import key_of
from ipop_tx.errors import Conflict
from ipop_tx.simulation.network import NETWORK
from ipop_tx.simulation.registers import RegisterNet, long_settled
from ipop_tx.wire.messages import Record

READERS = 100
WAIT = 60.0
"""Seconds; a client gives up after 20."""


def race(seed: int, creates: int = 10_000, nodes: int = 1000, loss: float = 0.1) -> dict[str, Any]:
    """One round."""
    net = RegisterNet(seed, network=replace(NETWORK, shards=32))
    machines = long_settled(net, nodes)
    net.run(5.0)
    net.loss, net.doubled, net.delayed = loss, 0.02, 0.02
    rng, key, begun = Random(f"race/{seed}"), key_of("race", b"", str(seed).encode()), net.now
    pending = [rng.choice(machines).submit(c.Create(key, str(number).encode(), 10**6)) for number in range(creates)]
    open_ones = [len(pending)]
    for one in pending:
        one.then(lambda done: open_ones.__setitem__(0, open_ones[0] - 1))
    net.run(WAIT, lambda: open_ones[0] == 0)
    took = net.now - begun
    net.loss = 0.0
    reads = [machine.submit(c.Get(key)) for machine in rng.sample(machines, min(READERS, nodes))]
    net.run(WAIT, lambda: all(read.done for read in reads))
    won = [one.result().value for one in pending if one.done and one.error is None]
    seen = {read.result().value if read.result() else None for read in reads if read.done and read.error is None}
    conflicts = sum(isinstance(one.error, Conflict) for one in pending)
    return {
        "seed": seed,
        "winners": len(won),
        "values_read": len(seen),
        "one_winner": len(won) <= 1 and len(seen) == 1 and None not in seen and seen >= set(won),
        "conflicts": conflicts,
        "unknown": creates - conflicts - len(won),
        "reads": sum(read.done and isinstance(read.error or read.result(), Record) for read in reads),
        "seconds": round(took, 2),
        "messages": net.messages,
        "faults": len(net.faults),
    }


def measure(seed: int, rounds: int, creates: int, nodes: int, say: Callable[[str], object]) -> dict[str, Any]:
    """Several rounds with different seeds."""
    found = []
    for number in range(rounds):
        found.append(race(seed * 1000 + number, creates, nodes))
        say(f"create race: {found[-1]}")
    return {
        "creates": creates,
        "nodes": nodes,
        "loss": 0.1,
        "rounds": rounds,
        "rounds_with_one_winner": sum(one["one_winner"] for one in found),
        "winners": [one["winners"] for one in found],
        "conflicts": sum(one["conflicts"] for one in found),
        "unknown": sum(one["unknown"] for one in found),
        "seconds_max": max(one["seconds"] for one in found),
        "faults": sum(one["faults"] for one in found),
        "model": "register world",
    }
