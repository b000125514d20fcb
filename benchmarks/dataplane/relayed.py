"""The path over a relay: A and B reach a third machine but not each other, so the daemon there carries all of their traffic.

```
   A --- 10.61.1.0/24 ---+
                       router --- 10.61.3.0/24 --- R        UDP between A and B is dropped
   B --- 10.61.2.0/24 ---+
```
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from benchmarks.dataplane import measure
from benchmarks.dataplane.ratios import quotient
from benchmarks.dataplane.report import extremes, median
from benchmarks.dataplane.underlay import Pair, Triangle
from ipop_tx.errors import EnvironmentProblem, IpopError
from ipop_tx.lab import Lab
from ipop_tx.lab.node import LabNode

Say = Callable[[str], None]


@dataclass
class Relayed:
    """Streams over the direct path and over the relay, in turns. `cpu` is of all three daemons, for the relayed ones."""

    direct: list[float] = field(default_factory=list)
    relay: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """The entry `relayed`."""
        direct, relay = median(self.direct), median(self.relay)
        return {
            "direct_gbps": direct,
            "relay_gbps": relay,
            "ratio": quotient(relay, direct),
            "cpu_s_per_gb": median(self.cpu),
            "spread": {"direct_gbps": extremes(self.direct), "relay_gbps": extremes(self.relay)},
        }


class Parted:
    """Three nodes: R founds the network, A and B join it. Parted, they reach each other only by R."""

    def __init__(self, triangle: Triangle) -> None:
        self.triangle = triangle
        self.a, self.b, self.r = LabNode(triangle.a, "a"), LabNode(triangle.b, "b"), LabNode(triangle.r, "r")

    def start(self, part: bool = True) -> str:
        """Start all, A parted from B or not; gives the address of B to aim at. Raises `IpopError`."""
        self.triangle.part(part)
        self.r.create("bench")
        self.r.start()
        self.r.wait_until_up()
        target = self.b.enter(self.r)
        self.a.enter(self.r)
        if not self.a.reaches(target):
            raise EnvironmentProblem("A and B joined, but do not reach each other", f"see {self.a.directory}")
        if part:
            self.require_relay()
        return target

    def require_relay(self) -> None:
        """Raises `EnvironmentProblem` unless both ends say that their path goes over R."""
        for here, there in ((self.a, self.b), (self.b, self.a)):
            path = here.path_to(there)
            if not path.startswith("relay"):
                raise EnvironmentProblem(f"the path from {here.name} to {there.name} is {path!r}, not over R")


def compare(lab: Lab, direct: Pair, target: str, rounds: int, seconds: int, say: Say) -> Relayed:
    """Measure both ways in turns; `direct` is a pair whose daemons run. What fails is in `faults`."""
    found = Relayed()
    triangle = Triangle(lab, "relayed", congestion=direct.congestion)
    try:
        parted = Parted(triangle)
        over_relay = parted.start()
        for number in range(rounds):
            steps = [partial(_direct, found, direct, target, seconds), partial(_relayed, found, parted, over_relay, seconds)]
            for step in steps[:: -1 if number % 2 else 1]:
                step()
        say(f"relayed: {found.as_json()}")
    except IpopError as error:
        found.faults.append(str(error))
        say(f"relayed: {error}")
    finally:
        triangle.stop()
    return found


def _direct(found: Relayed, pair: Pair, target: str, seconds: int) -> None:
    found.direct.append(measure.tcp(pair, target, seconds).gbps)


def _relayed(found: Relayed, parted: Parted, target: str, seconds: int) -> None:
    stream = measure.tcp(parted.triangle, target, seconds)
    parted.require_relay()
    found.relay.append(stream.gbps)
    found.cpu.append(stream.cpu_s_per_gb)
