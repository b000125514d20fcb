"""Ordinary traffic between nodes of the lab, measured: pings of all pairs, outages, a file by curl."""

from __future__ import annotations

import hashlib
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Protocol

from ipop_tx.lab.node import LabNode, environment
from ipop_tx.lab.process import Process
from ipop_tx.lab.topology import Host
from ipop_tx.lab.waiting import wait_for

AT_ONCE = 4
"""How many pings run at the same time: enough to be quick, few enough not to measure the crowd."""
INTERVAL = 0.2
"""Seconds between two pings of a watch."""

Address = Callable[[LabNode], str]


class Machine(Protocol):
    """A node or a guest."""

    name: str

    @property
    def host(self) -> Host:
        """Where its programs run."""


@dataclass(frozen=True)
class Overlay:
    """The overlay's addresses of a node, as it told once."""

    ipv4: str
    ipv6: str


def overlay(node: LabNode) -> Overlay:
    """Ask a node for its addresses."""
    own = node.status()["self"]
    return Overlay(str(own["address"]), str(own["ipv6"]))


def unreached(pairs: Iterable[tuple[LabNode, LabNode]], address: Address, seconds: float) -> list[tuple[str, str]]:
    """Those of `pairs` whose first does not reach its second within `seconds`, by name."""
    chosen = list(pairs)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = pool.map(lambda pair: pair[0].reaches(address(pair[1]), seconds), chosen)
        return [(a.name, b.name) for (a, b), good in zip(chosen, answers, strict=True) if not good]


class Watch:
    """Pings between every two nodes, five a second, for `seconds`; tells afterwards how long each pair was without an answer."""

    def __init__(self, nodes: Sequence[LabNode], address: Address, seconds: float) -> None:
        self._began = time.time()
        self._ends = self._began + seconds
        command = ["ping", "-n", "-D", f"-i{INTERVAL}", f"-w{seconds:g}"]
        self._running: list[tuple[str, Process]] = []
        for a, b in combinations(nodes, 2):
            pair = f"{a.name}-{b.name}"
            self._running.append((pair, a.host.start([*command, address(b)], log=f"watch-{pair}.log")))

    def outages(self, since: float) -> dict[str, float]:
        """Wait for the end; the longest silence of each pair after `since` (Unix time), in seconds; about 0 when none is missing."""
        found = {}
        for pair, process in self._running:
            process.wait(max(0.0, self._ends - time.time()) + 20)
            heard = [float(t) for t in re.findall(r"^\[([\d.]+)\] \d+ bytes from", process.output, re.MULTILINE)]
            found[pair] = _longest_silence([since, *(t for t in heard if t > since), self._ends])
        return found


def _longest_silence(times: list[float]) -> float:
    longest = max(b - a for a, b in pairwise(times))
    return round(max(0.0, longest - INTERVAL), 2)


@dataclass(frozen=True)
class Transfer:
    """How a file came over."""

    good: bool
    seconds: float
    megabytes: int

    @property
    def mbit_per_second(self) -> float:
        """Payload only."""
        return round(self.megabytes * 8 * 1.048576 / self.seconds, 1) if self.seconds else 0.0


def fetch(server: Machine, client: Machine, address: str, megabytes: int, port: int = 8080) -> Transfer:
    """Fetch a random file with curl from `server`, who has the overlay's `address`, and compare its SHA-256."""
    source, copy = server.host.directory / "file", client.host.directory / "copy"
    sent = hashlib.sha256()
    with source.open("wb") as file:
        for _ in range(megabytes):
            block = os.urandom(1 << 20)
            sent.update(block)
            file.write(block)
    serving = server.host.start(
        [sys.executable, "-m", "ipop_tx.lab.fileserver", address, str(port), str(source)], "fileserver.log", environment()
    )
    try:
        wait_for(f"a connection from {client.name} to {server.name}", 30, lambda: _accepts(client, address, port), 0.1)
        seconds = _curl(client, f"http://{address}:{port}/file", str(copy))
        with copy.open("rb") as file:
            good = hashlib.file_digest(file, "sha256").digest() == sent.digest()
        return Transfer(good, seconds, megabytes)
    finally:
        serving.stop()
        source.unlink()
        copy.unlink(missing_ok=True)


def _curl(client: Machine, url: str, target: str) -> float:
    """Seconds that the transfer itself took, without the wait for the server's start."""
    argv = ["curl", "-sS", "--max-time", "600", "-o", target, "-w", "%{time_total}", url]
    return float(client.host.run(argv, timeout=620).stdout)


def _accepts(client: Machine, address: str, port: int) -> bool:
    with client.host.socket(socket.SOCK_STREAM) as trial:
        trial.settimeout(5)
        return trial.connect_ex((address, port)) == 0
