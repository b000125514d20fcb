"""What a daemon holds and sends, looked at again and again. And what the kernel threw away around it."""

from __future__ import annotations

import json
import os
import re
import statistics
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.dataplane.measure import resident_mb
from ipop_tx.errors import EnvironmentProblem
from ipop_tx.lab import Host
from ipop_tx.lab.node import TAP

ETHERNET = 14
"""Bytes of its header."""
SPAN = 60.0
"""Seconds of samples at either end that are compared, and of warm-up before; a quarter of the run if that is less."""


@dataclass(frozen=True)
class Sample:
    """One look; `at` in seconds since the beginning."""

    at: float
    mb: float
    descriptors: int


def look(pid: int, at: float) -> Sample:
    """At a process; one that is gone holds nothing."""
    descriptors = 0
    with suppress(OSError):
        descriptors = len(os.listdir(f"/proc/{pid}/fd"))
    return Sample(at, resident_mb([pid]), descriptors)


@dataclass(frozen=True)
class Growth:
    """Medians of the first samples after the warm-up and of the last ones."""

    first_mb: float
    last_mb: float
    first_descriptors: float
    last_descriptors: float

    @property
    def percent(self) -> float:
        """Of the memory."""
        return 100 * (self.last_mb / self.first_mb - 1) if self.first_mb else 0.0

    @property
    def descriptors_percent(self) -> float:
        """Of the descriptors."""
        return 100 * (self.last_descriptors / self.first_descriptors - 1) if self.first_descriptors else 0.0

    def as_json(self) -> dict[str, Any]:
        """The entry of `held`."""
        return {
            "first_mb": round(self.first_mb, 2),
            "last_mb": round(self.last_mb, 2),
            "growth_percent": round(self.percent, 2),
            "first_descriptors": self.first_descriptors,
            "last_descriptors": self.last_descriptors,
        }


def growth(samples: Sequence[Sample]) -> Growth:
    """Of one process, from samples in order of time; there must be some."""
    whole = samples[-1].at - samples[0].at
    span = min(SPAN, whole / 4)
    begins, ends = samples[0].at + span, samples[-1].at
    first = [sample for sample in samples if begins <= sample.at <= begins + span] or samples[:1]
    last = [sample for sample in samples if sample.at >= ends - span]

    memory = [statistics.median(sample.mb for sample in part) for part in (first, last)]
    descriptors = [statistics.median(sample.descriptors for sample in part) for part in (first, last)]
    return Growth(*memory, *descriptors)


def kernel_drops(host: Host) -> dict[str, int]:
    """What the kernel has dropped on a machine since its daemon began: at the TAP, and at the sockets of UDP."""
    taps = json.loads(host.run(["ip", "-j", "-s", "link", "show", "dev", TAP]).stdout)
    queues = json.loads(host.run(["tc", "-j", "-s", "qdisc", "show", "dev", TAP], check=False).stdout or "[]")
    lines = [line.split() for line in host.run(["cat", "/proc/net/snmp"]).stdout.splitlines() if line.startswith("Udp:")]
    udp = dict(zip(lines[0], lines[1], strict=True))
    return {
        "tap": taps[0]["stats64"]["tx"]["dropped"] + sum(queue.get("drops", 0) for queue in queues),
        "udp_receive": int(udp["RcvbufErrors"]),
        "udp_send": int(udp["SndbufErrors"]),
    }


def memory_mb(pid: int) -> tuple[float, float]:
    """(resident, proportional) memory of a process, 10^6 bytes: the second shares what several processes map. Zeros when it is gone."""
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0.0, 0.0
    sizes = dict(re.findall(r"^(\w+):\s+(\d+) kB$", rollup, re.MULTILINE))
    return int(sizes["Rss"]) * 1024 / 1e6, int(sizes["Pss"]) * 1024 / 1e6


def sent(pid: int, device: str = "eth0") -> int:
    """Bytes of all packets, IP header included and Ethernet's left out, that left by a device of the network namespace of a process."""
    for line in Path(f"/proc/{pid}/net/dev").read_text().splitlines():
        name, _, figures = line.partition(":")
        if name.strip() == device:
            columns = figures.split()
            return int(columns[8]) - ETHERNET * int(columns[9])
    raise EnvironmentProblem(f"process {pid} has no interface {device}")
