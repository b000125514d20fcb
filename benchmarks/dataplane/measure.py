"""Single measurements between A and B of a pair: iperf3, ping, the daemons' CPU time and memory. The parsers are pure."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.dataplane.underlay import Pair
from ipop_tx.errors import EnvironmentProblem, IpopError
from ipop_tx.lab import Process, netns, wait_for

UNANSWERED_MS = 1000.0
"""What a ping without an answer counts, which is also how long it is waited for."""
DATAGRAM = 100
"""Bytes of payload of the small datagrams."""
_PORT = 5201
_GRACE = 15.0
_TICKS = os.sysconf("SC_CLK_TCK")
_INTERVAL = 0.005


@dataclass(frozen=True)
class Stream:
    """One TCP measurement, as the receiver counted it. `cpu_seconds` is what the daemons of both ends used, user and system."""

    gbps: float
    gigabytes: float
    retransmits: int
    mss: int
    congestion: str = ""
    """TCP's congestion control at the sender."""
    cpu_seconds: float = 0.0

    @property
    def cpu_s_per_gb(self) -> float:
        """Seconds of both daemons per 10^9 bytes of payload."""
        return self.cpu_seconds / self.gigabytes if self.gigabytes else 0.0


def tcp(pair: Pair, target: str, seconds: int, *options: str) -> Stream:
    """iperf3 from A to B for `seconds`. Raises `EnvironmentProblem` when it fails."""
    daemons = pair.pids()
    server = _serve(pair)
    try:
        before = cpu_seconds(daemons)
        text = _client(pair, target, seconds, *_of_tcp(pair), *options)
        used = cpu_seconds(daemons) - before
    finally:
        server.stop()
    found = parse_tcp(text)
    return replace(found, cpu_seconds=used)


def _of_tcp(pair: Pair) -> tuple[str, ...]:
    return ("-C", pair.congestion) if pair.congestion else ()


def small_datagrams(pair: Pair, target: str, seconds: int) -> float:
    """UDP datagrams of 100 bytes that arrive at B in a second while A sends as fast as it can."""
    server = _serve(pair)
    try:
        _client(pair, target, seconds, "-u", "-b", "0", "-l", str(DATAGRAM))
        with suppress(EnvironmentProblem):  # it waits for a farewell that was lost: `parse` tells whether the figures are there
            server.wait(3)
    finally:
        server.stop()
    return parse_udp_server(server.output)


def idle_pings(pair: Pair, target: str, count: int) -> list[float]:
    """Round trips in ms, 200 pings a second, while nothing else goes on."""
    argv = ["ping", "-n", f"-i{_INTERVAL}", f"-c{count}", "-W1", target]
    done = pair.a.run(argv, check=False, timeout=count * _INTERVAL * 10 + _GRACE)
    return parse_pings(done.stdout, count)


def loaded_pings(pair: Pair, target: str, count: int) -> list[float]:
    """The same beside one TCP stream at full speed in the same direction."""
    server = _serve(pair)
    seconds = math.ceil(count * _INTERVAL * 3) + 3
    bulk = pair.a.start(["iperf3", "-c", target, "-t", str(seconds), *_of_tcp(pair)], "bulk.log")
    try:
        wait_for("the first second of the bulk stream", 10, lambda: bulk.returncode is not None or _downloaded(bulk), 0.05)
        found = idle_pings(pair, target, count)
        if bulk.returncode:
            raise EnvironmentProblem("the bulk stream beside the pings ended early", bulk.output.strip()[-200:])
        return found
    finally:
        bulk.stop()
        server.stop()


def _downloaded(bulk: Process) -> bool:
    """iperf3 without a terminal keeps its lines to itself; its CPU time tells that it is sending."""
    return cpu_seconds([bulk.pid]) > 0.02


def _serve(pair: Pair) -> Process:
    """An iperf3 server on B for one test. Its standard output is JSON."""
    server = pair.b.start(["iperf3", "-s", "-1", "-J"], "iperf3-server.log")
    wait_for("an iperf3 server", 5, lambda: _listens(server.pid) or server.returncode is not None, 0.01)
    if server.returncode is not None:
        raise EnvironmentProblem("iperf3 cannot serve", server.output.strip()[-200:])
    return server


def _listens(pid: int) -> bool:
    wanted = f":{_PORT:04X} "
    with suppress(OSError):
        return any(wanted in line and " 0A " in line for name in ("tcp", "tcp6") for line in Path(f"/proc/{pid}/net/{name}").open())
    return False


def _client(pair: Pair, target: str, seconds: int, *options: str) -> str:
    done = pair.a.run(["iperf3", "-J", "-c", target, "-t", str(seconds), *options], check=False, timeout=seconds + _GRACE)
    if done.returncode and not done.stdout:
        raise EnvironmentProblem("iperf3 failed", done.stderr.strip())
    return done.stdout


# parsers


def _iperf3(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        raise EnvironmentProblem("iperf3 wrote no JSON", text.strip()[:200]) from None
    if not isinstance(found, dict) or "error" in found:
        raise EnvironmentProblem("iperf3 failed", str(found.get("error") if isinstance(found, dict) else found))
    return found


def parse_tcp(text: str) -> Stream:
    """What `iperf3 -J -c` tells of TCP, all streams together. Raises `EnvironmentProblem`."""
    found = _iperf3(text)
    try:
        received, sent = found["end"]["sum_received"], found["end"]["sum_sent"]
        mss = int(found["start"].get("tcp_mss_default") or found["start"].get("tcp_mss") or 0)
        congestion = str(found["end"].get("sender_tcp_congestion", ""))
        return Stream(received["bits_per_second"] / 1e9, received["bytes"] / 1e9, int(sent.get("retransmits", 0)), mss, congestion)
    except (KeyError, TypeError):
        raise EnvironmentProblem("iperf3 told nothing of TCP", "version 3.9 or newer is needed") from None


def parse_udp_server(text: str) -> float:
    """Datagrams a second that the server received, of what `iperf3 -s -1 -J` tells. Raises `EnvironmentProblem`."""
    found = _iperf3(text)
    try:
        total = found["end"]["sum"]
        return float((total["packets"] - total["lost_packets"]) / total["seconds"])
    except (KeyError, TypeError, ZeroDivisionError):
        raise EnvironmentProblem("the iperf3 server told nothing of UDP", "version 3.9 or newer is needed") from None


def parse_pings(text: str, sent: int) -> list[float]:
    """Round trips in ms; whatever had no answer counts `UNANSWERED_MS`. Raises `EnvironmentProblem` when none had."""
    answered = [float(value) for value in re.findall(r"time=([\d.]+) ms", text)]
    if not answered:
        raise EnvironmentProblem("no ping was answered")
    return answered + [UNANSWERED_MS] * max(0, sent - len(answered))


def percentile(values: Sequence[float], share: float) -> float:
    """The least value that `share` (0-1) of all do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


# processes


def cpu_seconds(pids: Iterable[int]) -> float:
    """User and system time of processes, all threads; one that has ended counts nothing."""
    ticks = 0
    for pid in pids:
        with suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / _TICKS


def resident_mb(pids: Iterable[int]) -> float:
    """Resident memory of processes, 10^6 bytes."""
    total = 0
    for pid in pids:
        with suppress(OSError):
            found = re.search(r"^VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
            total += int(found[1]) * 1024 if found else 0
    return total / 1e6


def larger_end_mb(pair: Pair) -> float:
    """Resident memory of the daemons on A or on B, whichever is more."""
    return max(resident_mb(netns.members([host.namespace])) for host in (pair.a, pair.b))


def all_of(pair: Pair, target: str, seconds: int, pings: int) -> tuple[dict[str, float], list[str]]:
    """Every figure of one round: (key -> value, what failed in a sentence each). What fails is tried once more."""
    found: dict[str, float] = {}
    faults: list[str] = []

    def one_stream() -> dict[str, float]:
        stream = tcp(pair, target, seconds)
        return {"tcp1_gbps": stream.gbps, "cpu_s_per_gb": stream.cpu_s_per_gb}

    def quantiles(key: str, values: list[float]) -> dict[str, float]:
        return {f"{key}_p50": percentile(values, 0.5), f"{key}_p99": percentile(values, 0.99)}

    steps: dict[str, Callable[[], dict[str, float]]] = {
        "ping idle": lambda: quantiles("ping_idle_ms", idle_pings(pair, target, pings)),
        "TCP one stream": one_stream,
        "TCP four streams": lambda: {"tcp4_gbps": tcp(pair, target, seconds, "-P", "4").gbps},
        "TCP reverse": lambda: {"tcp_reverse_gbps": tcp(pair, target, seconds, "-R").gbps},
        "memory": lambda: {"rss_mb": larger_end_mb(pair)},
        "ping under load": lambda: quantiles("ping_load_ms", loaded_pings(pair, target, pings)),
        "UDP small datagrams": lambda: {"udp100_pps": small_datagrams(pair, target, seconds)},
    }
    for name, step in steps.items():
        for last in (False, True):
            try:
                found |= step()
                break
            except IpopError as error:
                if last:
                    faults.append(f"{name}: {error}")
    return found, faults
