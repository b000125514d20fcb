"""What must hold of a ring, checked over all its nodes at once (after Zave 2017)."""

from __future__ import annotations

from ipop_tx.core.ident import clockwise, strictly_within
from ipop_tx.simulation.network import SimulatedNet
from ipop_tx.values import IDENT_BITS, Ident, short


def members(net: SimulatedNet) -> dict[Ident, list[Ident]]:
    """The successor lists of all nodes that have a place, entries that are down struck out."""
    up = {machine.ident for machine in net.running() if machine.running.ring.joined}
    return {
        machine.ident: [ident for ident in machine.running.ring.successors if ident in up]
        for machine in net.running()
        if machine.ident in up
    }


def ring_faults(net: SimulatedNet) -> list[str]:
    """What is wrong with the ring: empty when it is one ordered ring with every member on it."""
    lists = members(net)
    if len(lists) < 2:
        return []
    faults = [f"{short(ident)} has no living successor" for ident, successors in lists.items() if not successors]
    if faults:
        return faults
    ordered = sorted(lists)
    for at, ident in enumerate(ordered):
        expected = ordered[(at + 1) % len(ordered)]
        if lists[ident][0] != expected:
            faults.append(f"{short(ident)} is followed by {short(lists[ident][0])}, not by {short(expected)}")
    return faults


def order_faults(net: SimulatedNet) -> list[str]:
    """Successor lists that are not in ring order or pass their own node."""
    faults = []
    for ident, successors in members(net).items():
        for one, other in zip([ident, *successors], successors, strict=False):
            if one != ident and not strictly_within(one, other, ident):
                faults.append(f"the list of {short(ident)} is out of order")
                break
    return faults


def shape_faults(lists: dict[Ident, list[Ident]]) -> list[str]:
    """Zave's invariant, from the living successors of each member on the ring: at any moment, also while nodes come and go.

    *At least one ring, at most one ring, ordered ring, connected appendages*: whoever follows first living successors from any member
    comes to one and the same cycle, and that goes round the idents once. A member without any living successor is a ring of one.
    """
    if len(lists) < 2:
        return []
    onward = {ident: successors[0] if successors else ident for ident, successors in lists.items()}
    coloured: dict[Ident, Ident] = {}
    cycles: list[list[Ident]] = []
    for start in sorted(onward):
        walked, at = [], start
        while at not in coloured:
            coloured[at] = start
            walked.append(at)
            at = onward[at]
        if coloured[at] == start:
            cycles.append(walked[walked.index(at) :])
    faults = [] if len(cycles) == 1 else [f"{len(cycles)} rings"]
    for cycle in cycles:
        turn = sum(clockwise(one, onward[one]) or 1 << IDENT_BITS for one in cycle)
        if turn != 1 << IDENT_BITS:
            faults.append(f"a ring of {len(cycle)} goes round {turn / (1 << IDENT_BITS):.0f} times")
    return faults
