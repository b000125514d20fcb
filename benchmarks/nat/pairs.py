"""One pair: the first packet, its answer, and how long until the path is direct."""

from __future__ import annotations

import time
from dataclasses import dataclass
from threading import Lock

from benchmarks.nat.kinds import Router
from ipop_tx.core.natkind import Reach, meet_openly, role_of
from ipop_tx.errors import Unreachable
from ipop_tx.lab.node import LabNode

PATIENCE = 25.0
"""Seconds for which a direct path is waited for ..."""
PATIENCE_IN_VAIN = 8.0
"""... and where the model says that there can be none."""
FIRST_SECONDS = 10.0
UNDISTURBED = 1.0
"""Seconds for which no other pair begins, at most."""


@dataclass(frozen=True)
class Pair:
    """What came of one pair. Times in ms from the first packet; None where there was none, or where the two were linked before."""

    a: str
    b: str
    feasible: bool
    result: str
    technique: str
    first_answer_ms: float | None
    relay_rtt_ms: float | None
    direct_ms: float | None
    lost: int
    linked_before: bool


def measure(one: LabNode, other: LabNode, a: Router, b: Router, address: str, alone: Lock) -> Pair:
    """Send the first packet from `one`, then one each 0.2 s until the path is direct both ways, or patience ends.

    No other pair begins before the first answer, nor before the path is direct where challenges are enough (`alone`): the cores are few.
    """
    possible = a.meets(b)
    undisturbed = UNDISTURBED if possible and meet_openly(a.reach, b.reach) else 0.0
    patience = PATIENCE if possible else PATIENCE_IN_VAIN
    with alone:
        linked = _path(one, other) not in ("unknown", "idle")
        begun = time.monotonic()
        first = one.ping(address, FIRST_SECONDS)
        second = one.ping(address, 2) if not _direct(one, other) else None
        direct_ms = _wait(one, other, begun, undisturbed)
    if direct_ms is None:
        pings = one.host.start(["ping", "-n", "-i0.2", address], log=f"pair-{a.name}-{b.name}.log")
        try:
            direct_ms = _wait(one, other, begun, patience)
        finally:
            pings.stop()
    path = _path(one, other)
    result = path.split()[0] if direct_ms is not None or not path.startswith("direct udp") else "one-way"
    technique = _technique(a.reach, b.reach, path + _path(other, one)) if direct_ms is not None else "relay"
    first_ms, relay_ms = (first, second) if not linked else (None, None)
    return Pair(a.name, b.name, possible, result, technique, first_ms, relay_ms, None if linked else direct_ms, int(first is None), linked)


def _wait(one: LabNode, other: LabNode, begun: float, patience: float) -> float | None:
    """The milliseconds after which the path was direct both ways; None if it was not."""
    while time.monotonic() - begun < patience:
        if _direct(one, other) and _direct(other, one):
            return round((time.monotonic() - begun) * 1000, 1)
        time.sleep(0.02)
    return None


def _direct(one: LabNode, other: LabNode) -> bool:
    return _path(one, other).startswith("direct udp")


def _path(one: LabNode, other: LabNode) -> str:
    try:
        return one.path_to(other)
    except Unreachable:  # a daemon that has no time to answer
        return "unknown"


def _technique(a: Reach, b: Reach, paths: str) -> str:
    """By what a direct path came about: the model says what it takes, the path whether a socket made for it carries it."""
    if "udp@" in paths:
        steps = bool(a.step), bool(b.step)
        return "both foretold" if all(steps) else "foretold port" if any(steps) else "birthday search"
    if not meet_openly(a, b) and role_of(a, b, True) is not None:
        return "port search"
    steady = a.steady and b.steady
    return "punched" if steady else "one-sided"
