"""`python -m benchmarks.endurance`: real daemons for hours, that come and go, are killed and parted, under changing policies, as root.

Some stay all the time: their memory and descriptors must stay flat. All chat with each other in datagrams that name their receiver
(`benchmarks.chatter`), two keep a TCP connection, registers are written; and no datagram may come altered, twice, to anybody else, or
through a policy that forbids it. docs/performance.md has the keys of the result.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.chatter import GATED, OPEN, Said, triples
from benchmarks.command import command
from benchmarks.dataplane.report import table
from benchmarks.samples import Sample, growth, look
from benchmarks.streams import Steady
from benchmarks.witness import Addresses, Writer, keep_logs, whole_within
from ipop_tx.errors import EnvironmentProblem, IpopError
from ipop_tx.lab import Lab, Nat, netns
from ipop_tx.lab.node import LabNode, environment
from ipop_tx.lab.process import Process

LIMIT = 10.0
"""Percent that memory or descriptors of a daemon that stays may grow."""
KINDS = (Nat.PORT_RESTRICTED, Nat.SYMMETRIC, None, None, None)
"""Behind what members stand, one after the other."""
PAUSE = (15.0, 40.0)
"""Seconds between two events."""
DOWN, CUT = (0.0, 30.0), (20.0, 60.0)
"""Seconds that a daemon is down, and that the internet is cut in two."""
BACK = 60.0
"""Seconds that a daemon has to come back, and the ring to be whole again."""
SETTLES = 15.0
"""Seconds after an event in which datagrams may be lost, or a new policy not be everywhere."""
CUT_RULES = """table ip cut
delete table ip cut
table ip cut {{
 set one {{ type ipv4_addr; elements = {{ {one} }} }}
 chain forward {{ type filter hook forward priority 0; policy accept;
  ip saddr @one ip daddr != @one drop
  ip saddr != @one ip daddr @one drop
 }}
}}
"""
MENDED = "table ip cut\ndelete table ip cut\n"
RULE = '[[allow]]\nname = "{name}"\nprotocol = "{protocol}"\nports = [{ports}]\n'
STREAM = 7010
_TRACE = re.compile(r"Traceback \(most recent call last\)|Unhandled [Ee]rror")


def policy(gated: bool) -> str:
    """One that lets everything through but, if so wanted, the gated port."""
    ports = f"{OPEN}" if gated else f"{OPEN}, {GATED}"
    return (
        'default = "deny"\n' + RULE.format(name="udp", protocol="udp", ports=ports) + RULE.format(name="tcp", protocol="tcp", ports=STREAM)
    )


@command("endurance", "interrupted; everything was removed")
def main(argv: Sequence[str] | None) -> int:
    """Run with words of the command line; gives the exit status: 0 only when there is nothing to complain about."""
    options = _parser().parse_args(argv)
    netns.require_root_and(("ip", "nft", "conntrack", "ss"))
    with Lab("endurance", options.disk) as lab:
        found = Endurance(lab, options.nodes, Random(options.seed)).run(options.minutes * 60)
        if found["complaints"] and options.logs:
            keep_logs(lab, options.logs)
    print(json.dumps(found) if options.json else text(found), flush=True)
    return 0 if found["good"] else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make bench-endurance", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout, instead of tables")
    parser.add_argument("--nodes", type=int, default=20, choices=range(6, 61), metavar="N", help="daemons, 6 to 60 (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=120, help="how long, once all have joined (default: %(default)g)")
    parser.add_argument("--seed", type=int, default=1, help="chooses events and moments (default: %(default)s)")
    parser.add_argument("--disk", type=Path, default=Path("/var/tmp"), metavar="DIR", help="a directory on a disk (default: %(default)s)")
    parser.add_argument("--logs", type=Path, metavar="DIR", help="where to put the daemons' logs if there is a complaint")
    return parser


def say(words: str) -> None:
    """Progress, for whoever waits."""
    print(f"endurance: {time.strftime('%H:%M:%S')} {words}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Event:
    """Something that was done to the network; times of the monotonic clock."""

    kind: str
    began: float
    ended: float


@dataclass
class Endurance:
    """The network and what befalls it."""

    lab: Lab
    count: int
    rng: Random
    events: list[Event] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    gated: list[tuple[float, float]] = field(default_factory=list)
    """From when to when the gated port was forbidden."""
    down: set[str] = field(default_factory=set)
    _closed: float | None = None

    def run(self, seconds: float) -> dict[str, Any]:
        """All of it. Raises `IpopError` when not even the network comes up."""
        self._begin()
        start = time.monotonic()
        held: dict[str, list[Sample]] = {node.name: [] for node in self.stay}
        with ThreadPoolExecutor(1) as beside:
            looking = beside.submit(self._look, held, start, seconds)
            while (left := start + seconds - time.monotonic()) > 2 * BACK:
                time.sleep(min(self.rng.uniform(*PAUSE), left))
                self._once(self.rng.choices((self.kill, self.leave, self.part, self.change), (4, 2, 2, 2))[0])
            time.sleep(max(0.0, start + seconds - time.monotonic()))
            looking.result()
        return self._end(seconds, held)

    # --- beginning ---------------------------------------------------------------------------

    def _begin(self) -> None:
        self.nodes = [self._placed(number) for number in range(self.count)]
        founder, *others = self.nodes
        founder.create("long")
        founder.start()
        founder.wait_until_up()
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda node: node.enter(founder, seconds=BACK), others))
        say(f"all {self.count} have joined")
        self.addresses = {node.name: node.address for node in self.nodes}
        self.stay, self.go = self.nodes[: self.count * 2 // 5], self.nodes[self.count * 2 // 5 :]
        self.change()
        self.chatters = [self._chatter(number) for number in range(self.count)]
        sender, receiver = self.stay[1], self.stay[-1]
        self.stream = Steady(sender.host, self.addresses[sender.name], receiver.host, STREAM)
        self.watched = Addresses(self.nodes, self.addresses, every=0.5)
        self.writer = Writer(self.running, Random(self.rng.random()), every=5.0)
        self.watched.start()
        self.writer.start()

    def _placed(self, number: int) -> LabNode:
        nat = KINDS[(number - 1) % len(KINDS)] if number else None  # the founder is public
        return LabNode(self.lab.public_host(f"n{number}") if nat is None else self.lab.site(f"s{number}", nat).host(f"n{number}"))

    def _chatter(self, number: int) -> Process:
        words = [str(self.lab.scratch), str(number), *self.addresses.values()]
        return self.nodes[number].host.start([sys.executable, "-m", "benchmarks.chatter", *words], "chatter.log", environment())

    def running(self) -> list[LabNode]:
        """Daemons that are up, as far as we know."""
        return [node for node in self.nodes if node.name not in self.down]

    def _look(self, held: dict[str, list[Sample]], start: float, seconds: float) -> None:
        while (at := time.monotonic() - start) < seconds:
            for node in self.stay:
                held[node.name].append(look(node.process.pid if node.process else 0, at))
            time.sleep(min(10.0, seconds / 20))

    # --- events ------------------------------------------------------------------------------

    def _once(self, event: Callable[[], None]) -> None:
        began = time.monotonic()
        try:
            event()
        except IpopError as error:
            self.complaints.append(f"{event.__name__}: {error}")
        self.events.append(Event(event.__name__, began, time.monotonic()))
        say(f"{len(self.events)}: {event.__name__}, {time.monotonic() - began:.1f} s; {len(self.complaints)} complaints")

    def kill(self) -> None:
        """One or two daemons die, and are started again."""
        self._away(self.rng.sample(self.go, self.rng.randint(1, 2)), LabNode.kill9)

    def leave(self) -> None:
        """One to three daemons take their leave, and come back."""
        self._away(self.rng.sample(self.go, self.rng.randint(1, 3)), self._left)

    def _left(self, node: LabNode) -> None:
        status = node.stop()
        if status not in (0, -signal.SIGTERM):  # twistd ends by the signal that it got, once all is put away
            self.complaints.append(f"{node.name} ended with status {status} when asked to stop")

    def _away(self, nodes: Sequence[LabNode], end: Callable[[LabNode], object]) -> None:
        self.down |= {node.name for node in nodes}
        for node in nodes:
            end(node)
        for node in nodes:
            time.sleep(self.rng.uniform(*DOWN) / len(nodes))
            node.start()
        for node in nodes:
            address = node.wait_until_up(BACK)
            if address != self.addresses[node.name]:
                self.complaints.append(f"{node.name} came back as {address}, not as {self.addresses[node.name]}")
        self.down -= {node.name for node in nodes}

    def part(self) -> None:
        """The internet is cut in two for a while."""
        one = self.rng.sample(self.nodes, self.rng.randint(2, self.count // 2))
        outer = {node.host.public or node.host.site.outer_address for node in one}  # type: ignore[attr-defined]
        self.lab.core.run(["nft", "-f", "-"], text=CUT_RULES.format(one=", ".join(sorted(outer))))
        try:
            time.sleep(self.rng.uniform(*CUT))
        finally:
            self.lab.core.run(["nft", "-f", "-"], text=MENDED)
        if fault := whole_within(BACK, self.running, 0.5):
            self.complaints.append(f"the ring is not whole {BACK:g} s after a partition: {fault}")

    def change(self) -> None:
        """The gated port is forbidden, or allowed again."""
        closing = self._closed is None
        path = self.lab.scratch / "policy.toml"
        path.write_text(policy(closing))
        before = time.monotonic()
        self.nodes[0].ipop("policy", "set", str(path), "--socket", str(self.nodes[0].socket))
        if closing:
            self._closed = time.monotonic() + SETTLES
        elif self._closed is not None:
            self.gated.append((self._closed, before))
            self._closed = None

    # --- end ---------------------------------------------------------------------------------

    def _end(self, seconds: float, held: dict[str, list[Sample]]) -> dict[str, Any]:
        if self._closed is not None:
            self.gated.append((self._closed, time.monotonic()))
        self.writer.stop()
        self.watched.stop()
        for chatter in self.chatters:
            chatter.stop()
        stream = self._stream_ended()
        lost = self.writer.lost(self.nodes[0])
        said = [Said.load(self.lab.scratch, str(number)) for number in range(self.count)]
        grown = {name: growth(samples) for name, samples in held.items()}
        traces = {node.name: len(_TRACE.findall(_log(node))) for node in self.nodes}
        chat = self._chat(said)
        self.complaints += [*self.watched.faults, *self.writer.faults, *lost[:10], *stream.pop("complaints")]
        self.complaints += [wrong for one in said for wrong in one.wrong][:20]
        self.complaints += [f"{chat['through_policy']} datagrams came though the policy forbade them"] if chat["through_policy"] else []
        self.complaints += [f"the log of {name} has {count} tracebacks" for name, count in traces.items() if count]
        self.complaints += [
            f"the daemon on {node.name} has ended" for node in self.nodes if node.process is None or node.process.returncode is not None
        ]
        for name, one in grown.items():
            if one.percent >= LIMIT or one.descriptors_percent >= LIMIT:
                self.complaints.append(
                    f"the daemon on {name} grew by {one.percent:.1f} %, its descriptors by {one.descriptors_percent:.1f} %"
                )
        return {
            "nodes": self.count,
            "seconds": round(seconds),
            "events": dict(Counter(event.kind for event in self.events)),
            "chat": chat,
            "stream": stream,
            "acknowledged": len(self.writer.created) + len(self.writer.counted),
            "lost": len(lost),
            "duplicates": self.watched.duplicates,
            "tracebacks": sum(traces.values()),
            "held": {name: one.as_json() for name, one in grown.items()},
            "complaints": self.complaints,
            "good": not self.complaints,
        }

    def _stream_ended(self) -> dict[str, Any]:
        try:
            sent, received = self.stream.end()
        except EnvironmentProblem as problem:
            return {"complaints": [str(problem)]}
        same = sent["sha256"] == received["sha256"]
        told = {"bytes": received["bytes"], "checksum_same": same, "longest_wait_s": received["longest_wait_s"]}
        return {**told, "complaints": [] if same else ["the TCP connection delivered something else than was sent"]}

    def _chat(self, said: Sequence[Said]) -> dict[str, Any]:
        """What became of the datagrams: those between members that stay and that were sent while all was calm are told apart."""
        sent = {(sender, to, port, at) for sender, one in enumerate(said) for to, port, at in triples(one.sent)}
        got = {(sender, to, port, at) for to, one in enumerate(said) for sender, port, at in triples(one.received)}
        stay = range(len(self.stay))
        calm = {one for one in sent if one[0] in stay and one[1] in stay and one[2] == OPEN and self._calm(one[3] / 1e9)}
        through = sum(1 for _, _, port, at in got if port == GATED and any(since <= at / 1e9 <= until for since, until in self.gated))
        return {
            "sent": len(sent),
            "received": len(got),
            "invented": len(got - sent),
            "wrong": sum(len(one.wrong) for one in said),
            "through_policy": through,
            "sent_in_calm": len(calm),
            "lost_in_calm": len(calm - got),
        }

    def _calm(self, at: float) -> bool:
        return not any(event.began - 1 <= at <= event.ended + SETTLES for event in self.events)


def _log(node: LabNode) -> str:
    path = node.host.directory / f"{node.name}.log"
    return path.read_text(errors="replace") if path.exists() else ""


def text(found: dict[str, Any]) -> str:
    """For people."""
    rows = [[key, str(value)] for key, value in found.items() if key not in ("held", "complaints", "good")]
    held = [
        [name, *(f"{one[key]:g}" for key in ("first_mb", "last_mb", "growth_percent", "last_descriptors"))]
        for name, one in found["held"].items()
    ]
    return "\n\n".join(
        [
            table([["of the whole run", ""]], rows),
            table([["daemon", "MB at first", "at last", "growth %", "descriptors"]], held),
            *(f"complaint: {complaint}" for complaint in found["complaints"]),
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
