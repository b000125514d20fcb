"""`python -m benchmarks.flows`: what counting flows costs a TCP stream, as root.

One pair of daemons without a policy, one stream; both are told to count flows, or not to, in turns of a second, so that whatever else the
machine does falls on both alike. CPU time is the kernel's, in nanoseconds, bytes are those that the receiver's interface got.
"""

from __future__ import annotations

import argparse
import json
import runpy
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.command import command
from benchmarks.dataplane import packages
from benchmarks.dataplane.report import median
from benchmarks.dataplane.systems import IpopTx
from benchmarks.dataplane.underlay import Pair
from ipop_tx.errors import EnvironmentProblem
from ipop_tx.lab import Lab, netns, wait_for
from ipop_tx.lab.node import TAP, LabNode

SWITCHED = "--switched-daemon"
SETTLING = 3.0
"""Seconds of the stream before the first turn."""


class Turn(NamedTuple):
    """A while of the stream: CPU seconds of both daemons, bytes that arrived, how long."""

    cpu: float
    bytes: int
    seconds: float

    @property
    def cpu_s_per_gb(self) -> float:
        """CPU seconds by 10^9 bytes."""
        return self.cpu / self.bytes * 1e9

    @property
    def gbps(self) -> float:
        """10^9 bits a second."""
        return self.bytes * 8 / self.seconds / 1e9


@command("flows")
def main(argv: Sequence[str] | None) -> int:
    """Run with words of the command line; gives the exit status."""
    options = _parser().parse_args(argv)
    netns.require_root_and(())
    packages.require(packages.TOOLS)
    with Lab("flows") as lab:
        pair = Pair(lab, "flows", 0)
        system = IpopTx()
        system.wrapper = dict.fromkeys(("a", "b"), (sys.executable, "-m", "benchmarks.flows", SWITCHED))
        try:
            target = system.start(pair)
            report = _measured(pair, system.nodes, target, options.rounds, options.seconds)
        finally:
            pair.stop()
    print(json.dumps(report) if options.json else "\n".join(f"{name}  {value}" for name, value in report.items()), flush=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.flows", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a turn (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=40, help="how many pairs of turns (default: %(default)s)")
    return parser


def _measured(pair: Pair, nodes: Sequence[LabNode], target: str, rounds: int, seconds: float) -> dict[str, float | None]:
    found: dict[bool, list[Turn]] = {False: [], True: []}
    length = int(SETTLING + 2 * rounds * (seconds + 0.5)) + 60
    server = pair.b.start(["iperf3", "-s", "-1", "--forceflush"], "iperf3-server.log")
    wait_for("an iperf3 server", 10, lambda: "listening" in server.output)
    client = pair.a.start(["iperf3", "-c", target, "-t", str(length)], "iperf3.log")
    try:
        time.sleep(SETTLING)
        for number in range(rounds):
            for counts in list(found)[:: -1 if number % 2 else 1]:
                found[counts].append(_turn(nodes, counts, seconds))
            if client.returncode is not None:
                raise EnvironmentProblem("iperf3 ended too soon", client.output.strip()[-200:])
    finally:
        client.stop()
        server.stop()
    return summary(found[False], found[True])


def _turn(nodes: Sequence[LabNode], counts: bool, seconds: float) -> Turn:
    for node in nodes:
        node.request("POST", "/count", {"on": counts})
    pids = [node.process.pid for node in nodes if node.process is not None]
    begun, cpu, arrived = time.monotonic(), _cpu(pids), _arrived(pids[1])
    time.sleep(seconds)
    return Turn(_cpu(pids) - cpu, _arrived(pids[1]) - arrived, time.monotonic() - begun)


def _cpu(pids: Sequence[int]) -> float:
    """Seconds that all threads of these processes have run."""
    files = [file for pid in pids for file in Path(f"/proc/{pid}/task").glob("*/schedstat")]
    return sum(int(file.read_text().split()[0]) for file in files) / 1e9


def _arrived(pid: int) -> int:
    """Bytes that the interface of a daemon has given to its kernel."""
    lines = Path(f"/proc/{pid}/net/dev").read_text().splitlines()
    return int(next(line for line in lines if line.strip().startswith(f"{TAP}:")).partition(":")[2].split()[0])


def summary(without: Sequence[Turn], counted: Sequence[Turn]) -> dict[str, float | None]:
    """Medians, and the median ratios of turns that followed each other: of throughput, and of CPU seconds for a gigabyte."""
    pairs = [(one, other) for one, other in zip(without, counted, strict=True) if one.bytes and other.bytes]
    return {
        "turns": len(pairs),
        "gbps_without": median([one.gbps for one, _ in pairs]),
        "gbps_counted": median([other.gbps for _, other in pairs]),
        "throughput_ratio": median([other.gbps / one.gbps for one, other in pairs]),
        "cpu_s_per_gb_without": median([one.cpu_s_per_gb for one, _ in pairs]),
        "cpu_s_per_gb_counted": median([other.cpu_s_per_gb for _, other in pairs]),
        "cpu_ratio": median([other.cpu_s_per_gb / one.cpu_s_per_gb for one, other in pairs]),
    }


def switched_daemon(program: str, *arguments: str) -> None:
    """Run twistd in this very process, with a request more on the control socket that switches the counting."""
    from ipop_tx import app
    from ipop_tx.services.control import Route

    routes = app.Node._routes

    def with_switch(node: app.Node) -> dict[str, Route]:
        def switch(arguments: dict[str, object]) -> dict[str, bool]:
            plane = node.forwarding.plane
            plane.count(counting if arguments["on"] else None)
            return {"on": plane.counting is not None}

        counting = node.flowlog.counting
        return {**routes(node), "POST /count": switch}

    app.Node._routes = with_switch  # type: ignore[method-assign,assignment]
    sys.argv = [program, *arguments]
    runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    if sys.argv[1:2] == [SWITCHED]:
        switched_daemon(*sys.argv[2:])
    else:
        sys.exit(main())
