"""A net that is split for longer than its leases live.

Each side gives away what the other held, and after the healing one of two must yield.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from ipaddress import IPv4Network
from random import Random
from typing import Any

from ipop_tx.core.events import LeaseLost
from ipop_tx.simulation.network import NETWORK
from ipop_tx.simulation.registers import RegisterNet, RegisterNode, grown
from ipop_tx.simulation.ringnode import RingNode
from ipop_tx.simulation.scenarios import percentile

TTL = 240.0
"""Seconds. A lease of a day is tried as often when it cannot be renewed."""
PARTED = 1.5 * TTL
TAKING = 60.0
"""Seconds before the healing in which the addresses of the other side are taken."""
FOUND_BY = 30.0
AWAITED = 180.0


@dataclass
class Duplicate:
    """One address with two holders, and who lost it, how many seconds after the healing."""

    address: bytes
    holders: list[RegisterNode]
    losers: list[tuple[int, float]]


@dataclass
class Split:
    """What came of one split."""

    duplicates: list[Duplicate]
    left: int
    """Addresses that have two holders at the end."""
    faults: int


def split(seed: int, nodes: int = 40, minority: int = 12, on_progress: Callable[[str], object] = lambda words: None) -> Split:
    """One split and its healing."""
    net = RegisterNet(seed, network=replace(NETWORK, pool=IPv4Network("10.9.0.0/22"), shards=16))
    machines = grown(net, nodes, 60.0)
    rng = Random(f"split/{seed}")
    holders = rng.sample(machines, nodes // 2)
    for machine in holders:
        machine.leases.own.start(None, None, TTL)
    net.run(30.0 + TTL * rng.random())
    side = rng.sample(machines, minority)
    net.part(side)
    net.run(PARTED - TAKING)
    _take(net, machines, holders, side, rng)
    net.run(TAKING)
    found = _duplicates(machines)
    healed, lost = net.now, list[tuple[int, bytes, float]]()

    def told(node: RingNode, event: object) -> None:
        if isinstance(event, LeaseLost):
            lost.append((node.number, event.address, net.now - healed))

    net.on_event = told
    net.part(())
    net.run(AWAITED)
    for one in found:
        numbers = {holder.number for holder in one.holders}
        one.losers = [(number, after) for number, address, after in lost if address == one.address and number in numbers]
    on_progress(f"split {seed}: {len(found)} duplicates, found after {[round(after, 1) for one in found for _, after in one.losers]} s")
    return Split(found, len(_duplicates(machines)), len(net.faults))


def _take(net: RegisterNet, machines: list[RegisterNode], holders: list[RegisterNode], side: list[RegisterNode], rng: Random) -> None:
    """Those without an address want one that is held on the other side."""
    parts = {machine.number: machine in side for machine in machines}
    held = {machine.leases.own.address: machine for machine in holders if machine.leases.own.address}
    wishes = {apart: [address for address, holder in held.items() if parts[holder.number] != apart] for apart in (False, True)}
    for addresses in wishes.values():
        rng.shuffle(addresses)
    for machine in machines:
        if machine not in holders and wishes[parts[machine.number]]:
            machine.leases.own.start(wishes[parts[machine.number]].pop(), None, TTL)


def _duplicates(machines: list[RegisterNode]) -> list[Duplicate]:
    by_address: dict[bytes, list[RegisterNode]] = {}
    for machine in machines:
        if machine.leases.own.address:
            by_address.setdefault(machine.leases.own.address, []).append(machine)
    return [Duplicate(address, holders, []) for address, holders in by_address.items() if len(holders) > 1]


def measure(seed: int, rounds: int, say: Callable[[str], object]) -> dict[str, Any]:
    """Several splits."""
    splits = [split(seed * 1000 + number, on_progress=say) for number in range(rounds)]
    found = [one for each in splits for one in each.duplicates]
    times = [one.losers[0][1] for one in found if one.losers]
    return {
        "splits": rounds,
        "nodes": 40,
        "parted_s": PARTED,
        "lease_s": TTL,
        "duplicates": len(found),
        "found_in_30_s": sum(after <= FOUND_BY for after in times),
        "one_loser_each": sum(len(one.losers) == 1 for one in found),
        "still_double": sum(one.left for one in splits),
        "found_after_p50_s": round(percentile(times, 0.5), 1),
        "found_after_max_s": round(max(times, default=0.0), 1),
        "faults": sum(one.faults for one in splits),
    }
