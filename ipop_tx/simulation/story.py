"""One run of the link model from a plan: what `ipop simulate` and `make bench-ring` do."""

from __future__ import annotations

import gc
import resource
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from ipop_tx.core.ring.ring import STABILISE
from ipop_tx.errors import LocalMisuse
from ipop_tx.simulation import scenarios as s
from ipop_tx.simulation.linkmodel import RingNet
from ipop_tx.simulation.ringnode import RingNode

HEALING = 3 * STABILISE
"""Seconds between a mass failure and the look-ups that judge the repair: three rounds of stabilisation."""
MOST_PATIENCE = 3600.0
"""Seconds for which a ring is awaited to become one again."""
LOOKUPS_TAKE = 20.0

Progress = Callable[[str, float], object]
"""Told what goes on, and how much of the simulated time has passed, 0..1."""


@dataclass(frozen=True)
class Plan:
    """What is to happen. Times in simulated minutes, shares in 0..1."""

    nodes: int = 1000
    seed: int = 1
    minutes: float = 10.0
    """How long the ring is watched, idle or under churn."""
    lookups: int = 5000
    joining: bool = False
    """Begin with nodes who join one after another, instead of a settled ring."""
    flood: bool = False
    """Begin with one node, through which all others join in one moment."""
    session: float | None = None
    """Mean session under churn; without it nobody comes or goes."""
    leave: float = 0.0
    """Share of sessions that end with a goodbye."""
    loss: float = 0.0
    strangers: float = 0.0
    """Share of pairs that cannot reach each other directly."""
    kill: float = 0.0
    """Share of nodes that crash in one moment, at the end."""
    asleep: float = 0.0
    """Share of nodes whose machines are suspended in one moment, at the end, for `parted` minutes, and then go on as before."""
    parts: int = 1
    """Into so many parts the net falls, at the end, for `parted` minutes."""
    parted: float = 60.0
    rtt_ms: Sequence[Sequence[float]] | None = None
    """Round trips between places, as a square; node n stands at place n modulo its size. Without it nodes stand on a plane 100 ms wide."""
    width_ms: float = 100.0

    def __post_init__(self) -> None:
        if not 1 <= self.nodes <= 2_000_000:
            raise LocalMisuse(f"a ring of {self.nodes} nodes cannot be simulated", "give a number from 1 to 2000000")
        for name in ("leave", "loss", "strangers", "kill", "asleep"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise LocalMisuse(f"{name} is a share, {getattr(self, name)} is none", "give a number from 0 up to but without 1")
        if self.session is not None and self.session <= 0:
            raise LocalMisuse("sessions of no length", "give their mean in minutes")


def read_rtt(path: Path) -> list[list[float]]:
    """Round trips in milliseconds from a text file: one row a line, numbers parted by commas or blanks. Raises `LocalMisuse`."""
    try:
        rows = [[float(word) for word in line.replace(",", " ").split()] for line in path.read_text().splitlines() if line.strip()]
    except (OSError, ValueError) as problem:
        raise LocalMisuse(
            f"{path} is no table of round trips: {problem}", "one row a line, milliseconds parted by commas or blanks"
        ) from None
    if not rows or any(len(row) != len(rows) for row in rows):
        raise LocalMisuse(f"{path} is not square", "as many numbers in each line as there are lines")
    if any(not 0 <= value < 60_000 for row in rows for value in row):
        raise LocalMisuse(f"{path} holds a round trip below 0 or above a minute", "give milliseconds")
    return rows


@dataclass
class Story:
    """A plan while it is carried out. `report` is what comes out, fit for JSON; `samples` is what the pictures are made of."""

    plan: Plan
    on_progress: Progress = lambda what, share: None
    report: dict[str, Any] = field(default_factory=dict)
    samples: dict[str, list[float]] = field(default_factory=dict)

    def run(self) -> dict[str, Any]:
        """Do it all."""
        plan = self.plan
        before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        self.net = net = RingNet(plan.seed, plan.loss, plan.width_ms / 1000, self._delay())
        if plan.strangers:
            s.strangers(net, plan.strangers)
        self._begin()
        gc.freeze()
        gc.set_threshold(100_000, 50, 100)  # next to nothing here is garbage that only the collector finds
        self.report |= {"nodes": plan.nodes, "seed": plan.seed, "links_mean": round(self._links_mean(), 1)}
        load = self._churn() if plan.session else self._idle()
        self._note_lookups(load, self.report)
        if plan.kill:
            self._kill()
        if plan.asleep:
            self._sleep()
        if plan.parts > 1:
            self._part()
        self.report |= {
            "one_ring": s.misplaced(net) == 0,
            "simulated_s": round(net.now),
            "events": net.events,
            "kb_per_node": round((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb) / len(net.nodes), 1),
            "faults": net.faults[:3],
        }
        return self.report

    # --- chapters ----------------------------------------------------------------------------

    def _begin(self) -> None:
        plan, net = self.plan, self.net
        if plan.flood:
            self._flood()
        elif plan.joining:
            s.joining(net, plan.nodes, on_progress=lambda now: self._tell("joining", now / 107))
            net.run(60.0)
        else:
            self.on_progress("building the ring", 0.0)
            s.settled(net, plan.nodes)

    def _flood(self) -> None:
        net = self.net
        first = net.add()
        first.start()
        net.run(1.0)
        for _ in range(self.plan.nodes - 1):
            net.add().start(first)
        begun = net.now
        while s.misplaced(net) and net.now - begun < MOST_PATIENCE:
            net.run(0.25)
            self._tell("all join at once", (net.now - begun) / 10)
        self.report["flood_whole_s"] = round(net.now - begun, 2)

    def _idle(self) -> s.LookupFigures:
        seconds = 60.0 * self.plan.minutes
        begun = self.net.now
        idle = s.idle_bytes(self.net, seconds, lambda now: self._tell("idle", (now - begun) / seconds))
        self.report |= {
            "bytes_per_s_per_node": round(idle.total),
            "bytes_per_s": {"messages": round(idle.messages), "keepalive": round(idle.keepalive)},
        }
        return self._lookups("look-ups", self.plan.lookups, LOOKUPS_TAKE)

    def _churn(self) -> s.LookupFigures:
        assert self.plan.session is not None
        churn = s.Churn(self.net, 60.0 * self.plan.session, self.plan.leave)
        churn.begin()
        before = self.net.bytes_sent
        load = self._lookups("churn", self.plan.lookups, 60.0 * self.plan.minutes)
        churn.stop()
        spent = (self.net.bytes_sent - before) / self.plan.nodes / (60.0 * self.plan.minutes)
        self.report |= {
            "session_min": self.plan.session,
            "sessions_ended": churn.ended,
            "bytes_per_s_per_node": round(spent + self.net.keepalive_bytes_per_s() / max(1, len(self.net.up()))),
        }
        return load

    def _kill(self) -> None:
        s.kill(self.net, self.plan.kill)
        begun = self.net.now
        self.net.run(HEALING)
        figures: dict[str, Any] = {"killed": self.plan.kill, "misplaced_after_30_s": s.misplaced(self.net)}
        self._note_lookups(self._lookups("after the kill", min(self.plan.lookups, 2000), 2.0), figures)
        figures["whole_s"] = self._until_whole(begun)
        self.report["kill"] = figures

    def _sleep(self) -> None:
        plan, net = self.plan, self.net
        sleepers = s.suspend(net, plan.asleep)
        self._wait_parted("some are asleep")
        figures: dict[str, Any] = {"share": plan.asleep, "minutes": plan.parted, "whole_without": s.misplaced(net) == 0}
        woken = net.now
        for sleeper in sleepers:
            sleeper.resume()
        figures["whole_s"] = self._until_whole(woken)
        self._note_lookups(self._lookups("after waking", min(plan.lookups, 2000), 10.0), figures)
        self.report["asleep"] = figures

    def _wait_parted(self, what: str) -> None:
        begun, seconds = self.net.now, 60 * self.plan.parted
        while self.net.now - begun < seconds:
            self.net.run(30.0)
            self._tell(what, (self.net.now - begun) / seconds)

    def _part(self) -> None:
        plan, net = self.plan, self.net
        s.part(net, plan.parts)
        self._wait_parted(f"{plan.parts} parts")
        s.part(net, 1)
        healed = net.now
        figures: dict[str, Any] = {"parts": plan.parts, "parted_min": plan.parted, "whole_s": self._until_whole(healed)}
        self._note_lookups(self._lookups("after the merge", min(plan.lookups, 2000), 10.0), figures)
        self.report["partition"] = figures

    # --- helpers -----------------------------------------------------------------------------

    def _tell(self, what: str, share: float) -> None:
        self.on_progress(what, min(1.0, share))

    def _delay(self) -> Callable[[RingNode, RingNode], float] | None:
        rows = self.plan.rtt_ms
        if rows is None:
            return None
        return lambda one, other: max(0.00025, rows[one.number % len(rows)][other.number % len(rows)] / 2000)

    def _links_mean(self) -> float:
        return fmean(len(node.links.by_ident) for node in self.net.up())

    def _lookups(self, what: str, count: int, seconds: float) -> s.LookupFigures:
        begun = self.net.now
        return s.LookupLoad(self.net, self.plan.seed).run(count, seconds, lambda now: self._tell(what, (now - begun) / seconds))

    def _note_lookups(self, load: s.LookupFigures, into: dict[str, Any]) -> None:
        into |= {
            "lookups": load.asked,
            "lookup_success": round(load.success, 6),
            "lookups_wrong": load.wrong,
            "lookups_failed": load.failed,
            **s.way_figures(load.hops, load.stretch),
            "lookup_ms_p50": round(1000 * s.percentile(load.latency, 0.5), 1),
        }
        self.samples = self.samples or {
            "hops": [float(value) for value in load.hops],
            "latency": load.latency,
            "direct": load.direct,
        }

    def _until_whole(self, begun: float) -> float | None:
        while s.misplaced(self.net):
            if self.net.now - begun > MOST_PATIENCE:
                return None
            self.net.run(STABILISE / 2)
            self._tell("until the ring is one", (self.net.now - begun) / MOST_PATIENCE)
        return round(self.net.now - begun, 1)
