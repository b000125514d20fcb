"""`python -m benchmarks.dht_real`: registers a second over a ring of real daemons on this machine, as root.

Every node is a `twistd ipop` in a network namespace of its own. All of them create registers, then all of them read what the others
created, over their control sockets, many entries in a request: the daemons' own clients make the load. Every value that is read is
compared. Once with the daemons' disks where they would be, once in memory. docs/performance.md has the keys of the result.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.command import command
from benchmarks.daemons import Ring
from benchmarks.dataplane.measure import cpu_seconds, percentile
from benchmarks.dataplane.report import rounded, table
from ipop_tx.identity.store import SqliteReplicaStore
from ipop_tx.lab import Lab, netns, wait_for
from ipop_tx.lab.node import LabNode

MEMORY = Path("/dev/shm")
BATCH = 64
"""Entries in a request."""
VALUE_BYTES = 100
ALONE = 100
"""Operations of each kind that are done one after the other, to see how long one takes."""
SETTLE = 60.0
"""Seconds that the views may take to follow the ring, before anything is measured."""


@command("dht_real", "interrupted; everything was removed")
def main(argv: Sequence[str] | None) -> int:
    """Run with words of the command line; gives the exit status: 0 only when nothing failed."""
    options = _parser().parse_args(argv)
    found = measure(options.nodes, options.seconds, options.disk)
    print(json.dumps(found) if options.json else text(found), flush=True)
    return 0 if found["ok"] else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.dht_real", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout, instead of a table")
    parser.add_argument("--nodes", type=int, default=10, choices=range(1, 41), metavar="N", help="daemons, up to 40 (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=10, help="how long each kind of operation is measured (default: %(default)g)")
    parser.add_argument("--disk", type=Path, default=Path("/var/tmp"), metavar="DIR", help="a directory on a disk (default: %(default)s)")
    return parser


def say(words: str) -> None:
    """Progress, for whoever waits."""
    print(f"dht_real: {words}", file=sys.stderr, flush=True)


def measure(nodes: int = 10, seconds: float = 10.0, disk: Path = Path("/var/tmp")) -> dict[str, Any]:
    """All of it. Raises `IpopError` when not even the first node comes up."""
    netns.require_root_and(("ip",))
    say("what a commit costs by itself")
    commit = {"disk_ms": rounded(commit_ms(disk)), "tmpfs_ms": rounded(commit_ms(MEMORY))}
    rates = {}
    for name, place in (("disk", disk), ("tmpfs", MEMORY)):
        with Lab("dhtreal", place) as lab:
            say(f"{nodes} nodes, their state in {place} ({filesystem(place)})")
            rates[name] = Load(lab, nodes, name).run(seconds)
    complaints = [f"{name}: {fault}" for name, rate in rates.items() for fault in rate.pop("faults")]
    return {
        "nodes": nodes,
        "cores": len(os.sched_getaffinity(0)),
        "filesystem": filesystem(disk),
        "commit": commit,
        **rates.pop("disk"),
        **rates,
        "complaints": complaints,
        "ok": not complaints,
    }


def commit_ms(place: Path, seconds: float = 1.0) -> float:
    """The median time of one commit of one row, with nothing else going on."""
    with tempfile.TemporaryDirectory(dir=place) as directory:
        store = SqliteReplicaStore(Path(directory) / "replicas.db")
        took: list[float] = []
        end = time.monotonic() + seconds
        while (began := time.monotonic()) < end:
            store.put(1, len(took).to_bytes(20, "big"), bytes(3 * VALUE_BYTES))
            store.commit()
            took.append(time.monotonic() - began)
        store.close()
    return 1000 * statistics.median(took)


def filesystem(place: Path) -> str:
    """The type of the file system that a directory is on."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    where = place.resolve()
    fitting = [(len(mount[1]), number, mount[2]) for number, mount in enumerate(mounts) if where.is_relative_to(mount[1])]
    return max(fitting)[2]


@dataclass
class Phase:
    """What came of many operations of one kind."""

    seconds: float
    done: int
    cpu: float
    commits: int
    faults: list[str]

    @property
    def rate(self) -> float:
        """Operations that succeeded, a second."""
        return self.done / self.seconds

    @property
    def cpu_ms(self) -> float:
        """CPU time of all daemons together for one operation."""
        return 1000 * self.cpu / max(1, self.done)


@dataclass
class Load:
    """One ring and what is asked of it."""

    lab: Lab
    count: int
    name: str
    ring: Ring = field(init=False)
    created: dict[str, str] = field(default_factory=dict)

    def run(self, seconds: float) -> dict[str, Any]:
        """Start the ring, wait until it is at rest, measure."""
        self.ring = Ring(self.lab, self.count)
        self.ring.start(os.cpu_count() or 1)
        self._settle()
        alone = {f"{kind}_ms": self._alone(kind) for kind in ("create", "get")}
        creates = self._phase("creates", seconds, self._create_some)
        gets = self._phase("gets", seconds, self._get_some)
        found = {
            "creates_per_s": rounded(creates.rate),
            "gets_per_s": rounded(gets.rate),
            "commits_per_create": rounded(creates.commits / max(1, creates.done)),
            "create_cpu_ms": rounded(creates.cpu_ms),
            "get_cpu_ms": rounded(gets.cpu_ms),
            **alone,
            "faults": [*self.ring.faults, *self.ring.ended(), *creates.faults, *gets.faults],
        }
        say(f"{self.name}: {found}")
        return found

    def _settle(self) -> None:
        """Until every part of the DHT is kept by as many nodes as it shall be."""
        wanted = min(5, self.count) * self._dht(self.ring.up[0])["of"]
        wait_for("the right number of copies", SETTLE, lambda: sum(self._dht(node)["shards"] for node in self.ring.up) == wanted, every=0.5)

    def _dht(self, node: LabNode) -> dict[str, int]:
        dht: dict[str, int] = node.status()["self"]["dht"]
        return dht

    # --- load --------------------------------------------------------------------------------

    def _phase(self, what: str, seconds: float, some: Callable[[LabNode, Random], tuple[int, list[str]]]) -> Phase:
        """Every node works at it, one request after the other, for so long."""
        say(f"{self.name}: {what} for {seconds:g} s")
        pids = [node.process.pid for node in self.ring.up if node.process is not None]
        cpu, commits, began = cpu_seconds(pids), self._commits(), time.monotonic()
        end = began + seconds

        def work(node: LabNode) -> tuple[int, list[str]]:
            rng, done, faults = Random(f"{what} {node.name}"), 0, list[str]()
            while time.monotonic() < end:
                more, wrong = some(node, rng)
                done += more
                faults += wrong
            return done, faults

        with ThreadPoolExecutor(len(self.ring.up)) as pool:
            outcomes = list(pool.map(work, self.ring.up))
        took = time.monotonic() - began
        faults = [fault for _, wrong in outcomes for fault in wrong]
        more = [f"and {len(faults) - 5} more of {what} that failed"] if len(faults) > 5 else []
        done = sum(good for good, _ in outcomes)
        return Phase(took, done, cpu_seconds(pids) - cpu, self._commits() - commits, [*faults[:5], *more])

    def _commits(self) -> int:
        return sum(node.status()["counters"]["replica_commits"] for node in self.ring.up)

    def _create_some(self, node: LabNode, rng: Random) -> tuple[int, list[str]]:
        fresh = {rng.randbytes(20).hex(): rng.randbytes(VALUE_BYTES // 2).hex() for _ in range(BATCH)}
        answers = self._ask(node, "create", [{"key": key, "text": value} for key, value in fresh.items()])
        good = [answer for answer in answers if "error" not in answer]
        self.created.update((answer["key"], fresh[answer["key"]]) for answer in good)
        return len(good), [f"{answer['key']} was not created: {answer['error']}" for answer in answers if "error" in answer]

    def _get_some(self, node: LabNode, rng: Random) -> tuple[int, list[str]]:
        keys = rng.sample(sorted(self.created), min(BATCH, len(self.created)))
        answers = self._ask(node, "get", [{"key": key} for key in keys])
        wrong = [answer for answer in answers if answer.get("text") != self.created[answer["key"]]]
        return len(answers) - len(wrong), [
            f"{one['key']} was not read as it was written: {one.get('error', 'another value')}" for one in wrong
        ]

    def _alone(self, kind: str) -> dict[str, float]:
        """How long one operation takes while nothing else goes on, by all nodes in turn."""
        took = []
        for number in range(ALONE):
            content = {} if kind == "get" else {"text": f"{number:0{VALUE_BYTES}}"}
            began = time.monotonic()
            self._ask(self.ring.up[number % len(self.ring.up)], kind, [{"key": f"alone-{number}", **content}])
            took.append(1000 * (time.monotonic() - began))
        return {"p50": rounded(percentile(took, 0.5)), "p99": rounded(percentile(took, 0.99))}

    def _ask(self, node: LabNode, what: str, entries: list[dict[str, str]]) -> list[dict[str, Any]]:
        answers: list[dict[str, Any]] = node.request("POST", f"/dht/{what}", {"entries": entries}, timeout=60)["answers"]
        return answers


def text(found: dict[str, Any]) -> str:
    """For people."""
    both = found, found["tmpfs"]
    rows = [
        [key, *(f"{one[key]:g}" for one in both)]
        for key in ("creates_per_s", "gets_per_s", "commits_per_create", "create_cpu_ms", "get_cpu_ms")
    ]
    for key in ("create_ms", "get_ms"):
        rows += [[f"{key} {part}", *(f"{one[key][part]:g}" for one in both)] for part in ("p50", "p99")]
    rows.append(["one commit, ms", f"{found['commit']['disk_ms']:g}", f"{found['commit']['tmpfs_ms']:g}"])
    head = [f"{found['nodes']} daemons on {found['cores']} cores", found["filesystem"], "tmpfs"]
    return "\n\n".join([table([head], rows), *(f"failed: {fault}" for fault in found["complaints"])])


if __name__ == "__main__":
    sys.exit(main())
