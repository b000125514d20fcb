"""`python -m benchmarks.profile`: where the microseconds of a segment go, at the sender and at the receiver, as root.

Two real daemons carry one TCP stream while each looks at its own stack a thousand times a second; the daemon's CPU time is shared out
by what was found there. `--exact` runs both under cProfile instead: that counts every call, but slows Python down and C not.
"""

from __future__ import annotations

import argparse
import json
import linecache
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.command import command
from benchmarks.dataplane import measure
from benchmarks.dataplane.report import table
from benchmarks.dataplane.systems import IpopTx, Side
from benchmarks.dataplane.underlay import Pair
from benchmarks.probe import START, STOP
from ipop_tx.errors import EnvironmentProblem
from ipop_tx.lab import Lab, netns, wait_for

CALLS = (
    ("seal", r"\bencrypt"),
    ("unseal", r"\bdecrypt"),
    ("TAP read", r"\breadv\b"),
    ("TAP write", r"\bwritev\b"),
    ("send", r"\bsend(msg|to)\b"),
    ("receive", r"\brecv(msg|from)(_into)?\b"),
)
"""(stage, pattern): calls into C that decide wherever they stand, by the line (sampled) or by the name of what is called (exact)."""

STAGES = (
    ("TAP read", r"^ipop_tx/services/tap", r"read"),
    ("TAP write", r"^ipop_tx/services/tap", r"write|flush|put"),
    ("replay and source checks", r"^ipop_tx/(forwarding/source|session/replay)", r""),
    ("unseal", r"^ipop_tx/session/", r"unprotect|unseal|open|decrypt|fresh|accept"),
    ("seal", r"^ipop_tx/session/", r"protect|seal|encrypt|reserve"),
    ("receive", r"^ipop_tx/transport/", r"read|receive|deliver|endpoint|segment_size|fill|flat"),
    ("send", r"^ipop_tx/transport/", r"write|send|flush|cut|ancillary|wait"),
    ("cutting and joining", r"^ipop_tx/forwarding/(offload|reassembly)", r""),
    ("frames to records", r"^ipop_tx/forwarding/(outbound|width)", r""),
    ("records to frames", r"^ipop_tx/forwarding/(inbound|delivery)", r""),
    ("relaying", r"^ipop_tx/forwarding/relay", r""),
    ("plane", r"^ipop_tx/forwarding/", r""),
    ("control plane", r"^ipop_tx/(?!benchmarks/)", r""),
    ("reactor", r"^twisted/|/selectors\.py$", r""),
)
"""(stage, pattern of the file, pattern of the function). The innermost function on the stack that fits one decides."""
OTHER = "other"
_SHOWN = 18

Place = tuple[str, str, int]
"""File, function, line."""


def stage(places: Sequence[Place]) -> str:
    """The stage of a stack, innermost place first: by the call that stands on its innermost line, else by file and function."""
    called = _called(places[0])
    if called is not None:
        return called
    for file, function, _ in places:
        for name, in_file, in_function in STAGES:
            if re.search(in_file, _short(file)) and re.search(in_function, function, re.IGNORECASE):
                return name
    return OTHER


def _called(place: Place) -> str | None:
    """The stage of a call into C on a line of ours."""
    file, _, line = place
    return stage_of_call(linecache.getline(file, line)) if _is_ours(file) else None


def stage_of_call(text: str) -> str | None:
    """The stage of the call in a line, or of a function's name; None when no call in it decides."""
    code = text.partition("#")[0]
    return next((name for name, pattern in CALLS if re.search(pattern, code)), None)


def is_idle(places: Sequence[Place]) -> bool:
    """Whether the reactor waits for something to do (what that costs itself is spread over the rest)."""
    file, function, line = places[0]
    return function in ("doPoll", "doRead") and "poll(" in linecache.getline(file, line)


@dataclass
class Findings:
    """Seconds of one daemon's CPU time."""

    cpu_seconds: float
    stages: Counter[str] = field(default_factory=Counter)
    lines: Counter[str] = field(default_factory=Counter)
    """By the line (sampled) or function (exact) itself."""
    functions: Counter[str] = field(default_factory=Counter)
    """With all that they call."""
    calls: Counter[str] = field(default_factory=Counter)
    """Only known when exact."""


def sampled(found: dict[str, Any]) -> Findings:
    """What a daemon wrote about its samples."""
    stacks = [([(str(f), str(n), int(line or 0)) for f, n, line in places], int(count)) for places, count in found["stacks"]]
    busy = [(places, count) for places, count in stacks if not is_idle(places)]
    total = sum(count for _, count in busy)
    findings = Findings(float(found["cpu_seconds"]))
    for places, count in busy:
        seconds = findings.cpu_seconds * count / total
        findings.stages[stage(places)] += seconds  # type: ignore[assignment]
        findings.lines[_line(places[0])] += seconds  # type: ignore[assignment]
        for name in {f"{_short(file)} {function}" for file, function, _ in places if _is_ours(file)}:
            findings.functions[name] += seconds  # type: ignore[assignment]
    return findings


def exact(found: dict[str, Any]) -> Findings:
    """What a daemon wrote about its calls: a built-in function counts to the stage of whoever called it."""
    findings = Findings(float(found["cpu_seconds"]))
    for place, calls, own, cumulative, callers in found["calls"]:
        file, function, _ = place
        if "select.epoll" in function:
            continue
        name = f"{_short(file)} {function}"
        findings.lines[name] += own
        if _is_ours(file):
            findings.functions[name] += cumulative
        findings.calls[name] += calls
        called = stage_of_call(function) if file == "~" else None
        for caller, seconds in callers if file == "~" and callers else [(place, own)]:
            findings.stages[called or stage([tuple(caller)])] += seconds
    return findings


def _is_ours(file: str) -> bool:
    return _short(file).startswith("ipop_tx/") and "/benchmarks/" not in file


def _short(file: str) -> str:
    return re.sub(r".*/(ipop_tx|twisted|site-packages)/", r"\1/", file).removeprefix("site-packages/")


def _line(place: Place) -> str:
    file, function, line = place
    return f"{_short(file)}:{line} {function}: {linecache.getline(file, line).strip()[:60]}"


def tables(title: str, findings: Findings, segments: float) -> str:
    """Microseconds per segment: by stage, by line, by function with all that it calls."""

    def rows(counter: Counter[str], shown: int) -> Iterator[list[str]]:
        for name, seconds in counter.most_common(shown):
            calls = findings.calls.get(name)
            often = [] if not findings.calls else ["" if calls is None else f"{calls / segments:.3f}"]
            yield [name, f"{seconds * 1e6 / segments:.3f}", f"{100 * seconds / findings.cpu_seconds:.1f}", *often]

    head = ["us/segment", "% of CPU", *(["calls/segment"] if findings.calls else [])]
    total = f"{title}: {findings.cpu_seconds * 1e6 / segments:.2f} us of CPU per segment"
    return "\n\n".join(
        [
            total,
            table([["stage", *head]], rows(findings.stages, len(STAGES) + 1)),
            table([["itself", *head]], rows(findings.lines, _SHOWN)),
            table([["with what it calls", *head]], rows(findings.functions, _SHOWN)),
        ]
    )


@command("profile")
def main(argv: Sequence[str] | None) -> int:
    """Run with words of the command line; gives the exit status."""
    parser = argparse.ArgumentParser(prog="benchmarks.profile", description=__doc__.partition("\n")[0])
    parser.add_argument("--exact", action="store_true", help="cProfile instead of samples")
    parser.add_argument("--seconds", type=int, default=5, help="length of the stream (default: %(default)s)")
    parser.add_argument("--datagrams", action="store_true", help="100-byte UDP datagrams instead of a TCP stream")
    options = parser.parse_args(argv)
    netns.require_root_and(("ip", "ping"))
    with Lab("profile") as lab:
        print(_run(lab, options))
    return 0


def _run(lab: Lab, options: argparse.Namespace) -> str:
    pair, system = Pair(lab, "ipop"), IpopTx()
    mode = "exact" if options.exact else "sampled"
    files: dict[Side, Path] = {side: pair.side(side).directory / "profile.json" for side in ("a", "b")}
    system.wrapper = {side: (sys.executable, "-m", "benchmarks.probe", mode, str(file)) for side, file in files.items()}
    target = system.start(pair)
    pids = [node.process.pid for node in system.nodes if node.process is not None]
    measure.tcp(pair, target, 1)  # the path, the caches and the MTU settle
    _signal(pids, START)
    if options.datagrams:
        segments = measure.small_datagrams(pair, target, options.seconds) * options.seconds
        speed, what = f"{segments / options.seconds / 1000:.1f} thousand datagrams/s received", "datagrams of 100 bytes"
    else:
        stream = measure.tcp(pair, target, options.seconds)
        segments = stream.gigabytes * 1e9 / (stream.mss or 1400)
        speed, what = f"{stream.gbps:.3f} Gbit/s", f"segments of {stream.mss} bytes"
    _signal(pids, STOP)
    for file in files.values():
        wait_for("the profile of a daemon", 20, file.exists)
    if not segments:
        raise EnvironmentProblem("nothing was carried, so there is nothing to profile")
    read = exact if options.exact else sampled
    parts = [f"{speed} with the profiler on, in {segments:.0f} {what}"]
    for title, side in (("sender", "a"), ("receiver", "b")):
        parts.append(tables(title, read(json.loads(files[side].read_text())), segments))  # type: ignore[index]
    return "\n\n".join(parts)


def _signal(pids: Sequence[int], number: int) -> None:
    for pid in pids:
        os.kill(pid, number)


if __name__ == "__main__":
    sys.exit(main())
