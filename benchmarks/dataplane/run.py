"""One run: start every system, measure all of them round by round, then under delay and loss."""

from __future__ import annotations

import math
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.dataplane import measure, relayed
from benchmarks.dataplane.report import Lossy, Report, Results
from benchmarks.dataplane.systems import System
from benchmarks.dataplane.underlay import Pair
from ipop_tx.errors import EnvironmentProblem, IpopError
from ipop_tx.lab import Lab
from ipop_tx.lab.waiting import holds_within

PATIENCE = 40.0
"""Seconds that a system has until B answers."""
LOSSY_PEERS = ("openvpn", "wireguard-go")
"""Those that are also measured under delay and loss, beside raw and ours."""
NOISE = 0.15
"""The share of the machine's time that others may use before we say so."""


@dataclass(frozen=True)
class Plan:
    """How much is measured. `lossy` are conditions: (added round trip in ms, percent lost in either direction)."""

    rounds: int
    seconds: int
    pings: int
    lossy: tuple[tuple[int, float], ...]
    lossy_rounds: int
    lossy_seconds: int
    relayed_rounds: int
    """0: not at all."""
    congestion: str
    """TCP's congestion control in what is measured."""


@dataclass(frozen=True)
class Running:
    """A system whose two ends reach each other."""

    system: System
    pair: Pair
    target: str


def say(text: str) -> None:
    """Progress, for whoever waits."""
    print(f"dataplane: {text}", file=sys.stderr, flush=True)


def run(lab: Lab, systems: Sequence[System], plan: Plan, left_out: Mapping[str, str]) -> Report:
    """The whole run, in `lab`. What cannot be measured is left out and named; raises only when the lab itself fails."""
    report = Report(_machine(plan.congestion), plan.rounds, plan.seconds, left_out=dict(left_out))
    running = _start_all(lab, systems, report.left_out, plan)
    report.systems = {one.system.name: Results(one.system.version) for one in running}
    for number in range(plan.rounds):
        for one in _turned(running, number):
            began = time.monotonic()
            found, faults = measure.all_of(one.pair, one.target, plan.seconds, plan.pings)
            report.systems[one.system.name].rounds.append(found)
            report.systems[one.system.name].faults += faults
            _say_round(number, one.system.name, found, faults, time.monotonic() - began)
    _run_relayed(lab, running, plan, report)
    for one in running:
        one.pair.stop()
    _run_lossy(lab, [one.system for one in running if one.system.name in ("raw", "ipop_tx", *LOSSY_PEERS)], plan, report)
    report.machine["load_after"] = os.getloadavg()[0]
    return report


def _start_all(lab: Lab, systems: Sequence[System], left_out: dict[str, str], plan: Plan, rtt_ms: int = 0) -> list[Running]:
    suffix = f"-{rtt_ms}ms" if rtt_ms else ""
    running = []
    for system in systems:
        try:
            running.append(_start(system, Pair(lab, system.name + suffix, rtt_ms, plan.congestion)))
        except (IpopError, OSError, RuntimeError) as error:
            left_out[system.name + suffix] = str(error)
            say(f"{system.name}{suffix} is left out: {error}")
    return running


def _start(system: System, pair: Pair) -> Running:
    began = time.monotonic()
    try:
        target = system.start(pair)
        if not holds_within(PATIENCE, lambda: not pair.a.run(["ping", "-n", "-c1", "-W1", target], check=False).returncode):
            raise EnvironmentProblem(f"B does not answer on {target} within {PATIENCE:g} s", _last_words(pair))
    except BaseException:
        pair.stop()
        raise
    say(f"{pair.label} {system.version} is up after {time.monotonic() - began:.1f} s")
    return Running(system, pair, target)


def _last_words(pair: Pair) -> str:
    return " | ".join(process.output.strip()[-200:] for process in pair.lab.processes if process.log.parent == pair.a.directory)


def _turned(running: Sequence[Running], number: int) -> list[Running]:
    """Another one begins each round, so that nobody always runs on a warm or a cold machine."""
    start = number % len(running) if running else 0
    return [*running[start:], *running[:start]]


def _say_round(number: int, name: str, found: Mapping[str, float], faults: Sequence[str], seconds: float) -> None:
    figures = ", ".join(f"{key} {value:.4g}" for key, value in found.items())
    say(f"round {number + 1}: {name}: {figures} ({seconds:.0f} s)")
    for fault in faults:
        say(f"round {number + 1}: {name}: {fault}")


def _run_relayed(lab: Lab, running: Sequence[Running], plan: Plan, report: Report) -> None:
    """Ours over a relay, beside ours over the direct path that is up already."""
    for one in running:
        if one.system.name == "ipop_tx" and plan.relayed_rounds:
            found = relayed.compare(lab, one.pair, one.target, plan.relayed_rounds, plan.seconds, say)
            report.relayed = found.as_json()
            report.systems["ipop_tx"].faults += [f"relayed: {fault}" for fault in found.faults]


def _run_lossy(lab: Lab, systems: Sequence[System], plan: Plan, report: Report) -> None:
    for rtt in dict.fromkeys(rtt for rtt, _ in plan.lossy):
        running = _start_all(lab, systems, report.left_out, plan, rtt)
        for loss in [loss for its_rtt, loss in plan.lossy if its_rtt == rtt]:
            report.lossy += _one_condition(running, rtt, loss, plan)
        for one in running:
            one.pair.stop()


def _one_condition(running: Sequence[Running], rtt: int, loss: float, plan: Plan) -> list[Lossy]:
    found: dict[str, list[float]] = {one.system.name: [] for one in running}
    for one in running:
        one.pair.lose(loss)
    for number in range(plan.lossy_rounds):
        for one in _turned(running, number):
            try:
                found[one.system.name].append(measure.tcp(one.pair, one.target, plan.lossy_seconds).gbps * 1000)
            except IpopError as error:
                say(f"{one.system.name} at {rtt} ms and {loss:g} % loss: {error}")
    for name, values in found.items():
        say(f"{rtt} ms, {loss:g} % loss: {name}: {', '.join(f'{value:.1f}' for value in values)} Mbit/s")
    return [Lossy(name, rtt, loss, tuple(values)) for name, values in found.items()]


def _machine(congestion: str) -> dict[str, Any]:
    busy = _busy(1.0)
    if busy > NOISE:
        say(f"others use {busy:.0%} of this machine: the figures will be worse than they could be")
    return {
        "kernel": platform.release(),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "processor": _processor(),
        "congestion": congestion,
        "busy_before": round(busy, 3),
        "load_before": os.getloadavg()[0],
    }


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def _busy(seconds: float) -> float:
    """The share of all cores' time that somebody used."""
    before = _times()
    time.sleep(seconds)
    after = _times()
    total = sum(after) - sum(before)
    idle = (after[3] + after[4]) - (before[3] + before[4])
    return 1 - idle / total if total else math.nan


def _times() -> list[int]:
    return [int(value) for value in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
