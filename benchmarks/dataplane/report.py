"""From the figures of all rounds to medians, spread, the JSON line and the table."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.dataplane import ratios

KEYS = ("tcp1_gbps", "tcp4_gbps", "tcp_reverse_gbps", "cpu_s_per_gb", "udp100_pps", "rss_mb")
PINGS = ("ping_idle_ms", "ping_load_ms")
QUANTILES = ("p50", "p99")

Number = float | None


def rounded(value: float, digits: int = 4) -> float:
    """So many digits that count, no more after the point than that."""
    if not value:
        return 0.0
    return round(value, max(0, digits - 1 - math.floor(math.log10(abs(value)))))


def median(values: Sequence[float]) -> Number:
    """None without values."""
    return rounded(statistics.median(values)) if values else None


def extremes(values: Sequence[float]) -> list[float] | None:
    """The least and the greatest; None without values."""
    return [rounded(min(values)), rounded(max(values))] if values else None


@dataclass
class Results:
    """What one system gave, round by round."""

    version: str
    rounds: list[dict[str, float]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def values(self, key: str) -> list[float]:
        """All rounds in which this was measured."""
        return [found[key] for found in self.rounds if key in found]

    def medians(self) -> dict[str, Any]:
        """The entry of `systems`."""
        entry: dict[str, Any] = {"version": self.version, **{key: median(self.values(key)) for key in KEYS}}
        return entry | {ping: {q: median(self.values(f"{ping}_{q}")) for q in QUANTILES} for ping in PINGS}

    def spread(self) -> dict[str, list[float] | None]:
        """The entry of `spread`: [least, greatest] of every key."""
        return {key: extremes(self.values(key)) for key in (*KEYS, *(f"{ping}_{q}" for ping in PINGS for q in QUANTILES))}


@dataclass(frozen=True)
class Lossy:
    """One system under one condition."""

    system: str
    rtt_ms: int
    loss_percent: float
    mbps: tuple[float, ...]

    def as_json(self) -> dict[str, Any]:
        """The entry of `lossy`."""
        return {
            "system": self.system,
            "rtt_ms": self.rtt_ms,
            "loss_percent": self.loss_percent,
            "goodput_mbps": median(self.mbps),
            "spread": extremes(self.mbps),
        }


@dataclass
class Report:
    """One run."""

    machine: dict[str, Any]
    rounds: int
    seconds: int
    systems: dict[str, Results] = field(default_factory=dict)
    lossy: list[Lossy] = field(default_factory=list)
    relayed: dict[str, Any] | None = None
    """What `relayed.Relayed` tells; None when that was not measured."""
    left_out: dict[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """All that `--json` prints."""
        found = {
            "systems": {name: results.medians() for name, results in self.systems.items()},
            "lossy": [entry.as_json() for entry in self.lossy],
            "relayed": self.relayed,
        }
        return {
            **found,
            "ratios": ratios.ratios(found),
            "spread": {name: results.spread() for name, results in self.systems.items()},
            "faults": {name: results.faults for name, results in self.systems.items() if results.faults},
            "left_out": self.left_out,
            "machine": self.machine,
            "rounds": self.rounds,
            "seconds": self.seconds,
        }

    def as_json(self) -> str:
        """One line."""
        return json.dumps(self.as_dict())

    def as_text(self) -> str:
        """Tables in Markdown, and what was left out."""
        parts = [table(_HEAD, (_row(name, results.medians()) for name, results in self.systems.items()))]
        if self.lossy:
            parts.append(_lossy_table(self.lossy))
        if self.relayed:
            parts.append(table(_RELAYED_HEAD, [["ipop_tx", *(_figure(self.relayed[key]) for key in _RELAYED)]]))
        if len(self.systems) > 1 or self.relayed:
            parts.append(table((["ratio of medians, ours to theirs", "found", "wanted"],), ratios.rows(self.as_dict()["ratios"])))
        parts += [f"left out: {name}: {why}" for name, why in self.left_out.items()]
        parts += [f"failed: {name}: {fault}" for name, results in self.systems.items() for fault in results.faults]
        return "\n\n".join(parts)


_HEAD = (
    ["system", "TCP 1", "TCP 4", "reverse", "CPU", "100 B", "ping idle p50", "p99", "ping loaded p50", "p99", "memory"],
    ["", "Gbit/s", "Gbit/s", "Gbit/s", "s/GB", "k/s", "ms", "ms", "ms", "ms", "MB"],
)

_RELAYED = ("direct_gbps", "relay_gbps", "ratio", "cpu_s_per_gb")
_RELAYED_HEAD = (["over a third node", "direct", "relayed", "ratio", "CPU of all three"], ["", "Gbit/s", "Gbit/s", "", "s/GB"])


def _row(name: str, entry: Mapping[str, Any]) -> list[str]:
    pps = entry["udp100_pps"]
    figures = [entry[key] for key in ("tcp1_gbps", "tcp4_gbps", "tcp_reverse_gbps", "cpu_s_per_gb")]
    figures += [None if pps is None else pps / 1000, *(entry[ping][q] for ping in PINGS for q in QUANTILES), entry["rss_mb"]]
    return [f"{name} {entry['version']}", *map(_figure, figures)]


def _figure(value: Number) -> str:
    return "-" if value is None else f"{rounded(value, 3):g}"


def _lossy_table(lossy: Sequence[Lossy]) -> str:
    names = list(dict.fromkeys(entry.system for entry in lossy))
    conditions = dict.fromkeys((entry.rtt_ms, entry.loss_percent) for entry in lossy)
    found = {(entry.system, entry.rtt_ms, entry.loss_percent): median(entry.mbps) for entry in lossy}
    rows = ([f"{rtt} ms, {loss:g} % lost", *(_figure(found.get((name, rtt, loss))) for name in names)] for rtt, loss in conditions)
    return table((["TCP one stream, Mbit/s", *names],), rows)


def table(head: Sequence[Sequence[str]], rows: Iterable[Sequence[str]]) -> str:
    """Markdown, with columns that line up; lines of `head` after the first are ordinary rows."""
    lines = [*head, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]

    def row(cells: Sequence[str]) -> str:
        return (
            "| "
            + " | ".join(cell.rjust(width) if i else cell.ljust(width) for i, (cell, width) in enumerate(zip(cells, widths, strict=True)))
            + " |"
        )

    rule = "|" + "|".join("-" * (width + 1) + (":" if i else "-") for i, width in enumerate(widths)) + "|"
    return "\n".join([row(lines[0]), rule, *map(row, lines[1:])])
