"""A thousand nodes that want an address of a /22 in the same moment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Network
from typing import Any

from ipop_tx.core import commands as c
from ipop_tx.core.dht.records import lease_key
from ipop_tx.core.events import LeaseGained
from ipop_tx.simulation.network import NETWORK
from ipop_tx.simulation.registers import RegisterNet, RegisterNode, long_settled
from ipop_tx.simulation.ringnode import RingNode
from ipop_tx.simulation.scenarios import percentile

POOL = "10.9.0.0/22"
DAY = 86400.0
PATIENCE = 120.0
P99 = 5.0
"""Seconds in which ninety-nine in a hundred are to have an address."""


def storm(seed: int, nodes: int = 1000, pool: str = POOL, loss: float = 0.0) -> dict[str, Any]:
    """One storm, in a ring that stands."""
    net = RegisterNet(seed, network=replace(NETWORK, pool=IPv4Network(pool), shards=32))
    machines = long_settled(net, nodes)
    net.run(5.0)
    net.loss = loss
    begun, before, took = net.now, net.messages, dict[int, float]()

    def told(node: RingNode, event: object) -> None:
        if isinstance(event, LeaseGained):
            took[node.number] = net.now - begun

    net.on_event = told
    for machine in machines:
        machine.leases.own.start(None, None, DAY)
    net.run(PATIENCE, lambda: len(took) == nodes)
    messages = net.messages - before
    net.loss = 0.0
    holders = Counter(machine.leases.own.address for machine in machines if machine.leases.own.address)
    times = sorted(took.values())
    return {
        "seed": seed,
        "nodes": nodes,
        "addresses": net.network.pool.num_addresses - 2,
        "loss": loss,
        "served": len(took),
        "duplicates": sum(count - 1 for count in holders.values()),
        "confirmed": _confirmed(net, machines),
        "p50_s": round(percentile(times, 0.5), 2),
        "p99_s": round(percentile(times, 0.99), 2),
        "max_s": round(max(times, default=0.0), 2),
        "messages_per_node": round(messages / nodes),
        "faults": len(net.faults),
    }


def _confirmed(net: RegisterNet, machines: list[RegisterNode]) -> int:
    """How many leases another node reads as their holder's."""
    asked = []
    for machine in machines:
        if machine.leases.own.address:
            key = lease_key(net.network, machine.leases.own.address)
            asked.append((machine, net.rng.choice(machines).submit(c.Get(key))))
    net.run(60.0, lambda: all(read.done for _, read in asked))
    found = [(machine, read.result()) for machine, read in asked if read.done and read.error is None]
    return sum(record is not None and record.owner == machine.ident for machine, record in found)


def measure(seed: int, nodes: int, pool: str, say: Callable[[str], object]) -> dict[str, Any]:
    """Storms without and with loss."""
    storms = []
    for number, loss in enumerate((0.0, 0.0, 0.02, 0.1)):
        storms.append(storm(seed * 1000 + number, nodes, pool, loss))
        say(f"lease storm: {storms[-1]}")
    return {
        "nodes": nodes,
        "duplicates": sum(one["duplicates"] for one in storms),
        "served": min(one["served"] for one in storms),
        "p99_s": max(one["p99_s"] for one in storms if one["loss"] == 0.0),
        "storms": storms,
        "faults": sum(one["faults"] for one in storms),
    }
