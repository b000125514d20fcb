"""What a daemon holds, looked at again and again: resident memory and file descriptors. And what the kernel threw away around it."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from benchmarks.dataplane.measure import resident_mb
from ipop_tx.lab import Host
from ipop_tx.lab.node import TAP

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
