"""The flows of a soak between A and B: the programs of `benchmarks.payload` at both ends, and what they told, put together."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from benchmarks.payload import BLOCK, PATIENCE
from benchmarks.upheaval import Change, excused
from ipop_tx.errors import EnvironmentProblem, IpopError
from ipop_tx.lab import Host, Process, wait_for
from ipop_tx.lab.node import environment
from ipop_tx.lab.waiting import holds_within

_TCP_PORT, _UDP_PORT = 7100, 7200
_SETTLE = 2.0
"""Seconds after the last datagram was sent in which it may still come."""

_GRACE = 15.0
"""Seconds that a program has to end by itself beyond its own patience."""

_WAITING = ("0A", "07")
"""What /proc/net shows of a TCP socket that listens, and of one of UDP."""


@dataclass(frozen=True)
class Lost:
    """Datagrams that did not come, by when they were sent."""

    around_changes: int
    otherwise: int


@dataclass
class Told:
    """What the programs told at their ends: (sender, receiver) of every flow."""

    seconds: float
    streams: list[tuple[dict[str, Any], dict[str, Any]]] = field(default_factory=list)
    datagrams: list[tuple[dict[str, Any], dict[str, Any]]] = field(default_factory=list)

    def problems(self) -> list[str]:
        """Flows that broke, a sentence each."""
        found = [one["problem"] for pair in (*self.streams, *self.datagrams) for one in pair if one.get("problem")]
        for sent, received in self.streams:
            if "blocks" not in sent or "blocks" not in received:
                continue  # told above
            if sent["blocks"] != received["blocks"] or received["rest"]:
                found.append(f"of a stream of {sent['blocks']} blocks {received['blocks']} came")
            elif not sent["blocks"]:
                found.append("a stream carried nothing")
        return found

    def tcp(self) -> dict[str, Any]:
        """All streams together."""
        size = sum(received.get("blocks", 0) for _, received in self.streams) * BLOCK
        return {
            "streams": len(self.streams),
            "gigabytes": round(size / 1e9, 3),
            "gbps": round(size * 8 / 1e9 / self.seconds, 4),
            "altered": sum(received.get("altered", 0) for _, received in self.streams),
        }

    def udp(self, changes: Sequence[Change]) -> dict[str, Any]:
        """Both directions together."""
        lost = self.lost(changes)
        counts = {key: sum(received.get(key, 0) for _, received in self.datagrams) for key in _COUNTED}
        sent = {key: sum(one.get(key, 0) for one, _ in self.datagrams) for key in ("sent", "refused")}
        return {**sent, **counts, "lost_around_changes": lost.around_changes, "lost_otherwise": lost.otherwise}

    def lost(self, changes: Sequence[Change]) -> Lost:
        """Of both directions."""
        around = otherwise = 0
        for sent, received in self.datagrams:
            for _, count, earliest, latest in _gaps(sent, received):
                if excused(changes, earliest, latest):
                    around += count
                else:
                    otherwise += count
        return Lost(around, otherwise)


_COUNTED = ("received", "altered", "duplicated", "reordered")


def _gaps(sent: dict[str, Any], received: dict[str, Any]) -> list[tuple[int, int, float, float]]:
    """Every gap with times that are known; what is missing at the end is one more."""
    if "sent" not in sent or "highest" not in received:
        return []  # a problem is told instead
    ended: float = sent["ended"]
    gaps = [(number, count, earliest or sent["began"], latest or ended) for number, count, earliest, latest in received["gaps"]]
    missing = sent["sent"] - received["highest"] - 1
    if missing:
        gaps.append((received["highest"] + 1, missing, ended - 0.5 if received["highest"] >= 0 else sent["began"], ended))
    return gaps


class Flows:
    """Started on construction; `end` waits until they are over."""

    def __init__(self, a: Host, b: Host, addresses: tuple[str, str], streams: int, rate: float, seconds: float) -> None:
        self._seconds = seconds
        self._streams: list[tuple[Process, Process]] = []
        self._datagrams: list[tuple[Process, Process]] = []
        ways = ((a, b, addresses[1]), (b, a, addresses[0]))
        for number, (source, target, address) in enumerate(ways):
            for which in range(streams):
                port = str(_TCP_PORT + which)
                seed = f"{2 * which + number}"
                receiver = _program(target, f"tcp-{which}-in.log", "tcp-receive", port, seed)
                wait_for("a receiver of TCP", 10, lambda r=receiver, p=port: _bound(r, "tcp", int(p)))  # type: ignore[misc]
                sender = _program(source, f"tcp-{which}-out.log", "tcp-send", address, port, seed, f"{seconds:g}")
                self._streams.append((sender, receiver))
            receiver = _program(target, "udp-in.log", "udp-receive", str(_UDP_PORT))
            wait_for("a receiver of UDP", 10, lambda r=receiver: _bound(r, "udp", _UDP_PORT))  # type: ignore[misc]
            sender = _program(source, "udp-out.log", "udp-send", address, str(_UDP_PORT), f"{seconds:g}", f"{rate:g}")
            self._datagrams.append((sender, receiver))

    def end(self) -> Told:
        """What all of them told; one that does not end is ended, and a problem."""
        until = time.monotonic() + PATIENCE + _GRACE
        for sender, _ in self._datagrams:
            _wait(sender, until)
        time.sleep(_SETTLE)
        for _, receiver in self._datagrams:
            receiver.stop()
        for pair in self._streams:
            for process in pair:
                _wait(process, until)
        return Told(
            self._seconds,
            [(_told(sender), _told(receiver)) for sender, receiver in self._streams],
            [(_told(sender), _told(receiver)) for sender, receiver in self._datagrams],
        )


def _wait(process: Process, until: float) -> None:
    if not holds_within(max(0.0, until - time.monotonic()), lambda: process.returncode is not None, 0.1):
        process.stop()


def _program(host: Host, log: str, *words: str) -> Process:
    return host.start([sys.executable, "-m", "benchmarks.payload", *words], log, environment())


def _bound(process: Process, protocol: str, port: int) -> bool:
    if process.returncode is not None:
        raise EnvironmentProblem("a receiver ended early", process.output[-300:])
    with open(f"/proc/{process.pid}/net/{protocol}") as lines:
        sockets = [line.split() for line in lines]
    return any(local.endswith(f":{port:04X}") and state in _WAITING for _, local, _, state, *_ in sockets)


def _told(process: Process) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(process.output.splitlines()[-1])
    except (ValueError, IndexError):
        words = " ".join(process.argv[process.argv.index("benchmarks.payload") + 1 :])
        return {"problem": f"{words} told nothing: {process.output[-300:]}"}
    return found


class Steady:
    """A TCP stream of a steady rate (`benchmarks.steady`) from one machine to another, through the overlay."""

    def __init__(self, sender: Host, address: str, receiver: Host, port: int) -> None:
        """`address` is the sender's, in the overlay."""
        program = [sys.executable, "-m", "benchmarks.steady"]
        self._sender = sender.start([*program, "send", address, str(port)], "send.log", environment())
        wait_for("the sender", 20, lambda: f":{port}" in sender.run(["ss", "-ltn"]).stdout, 0.1)
        self._receiver = receiver.start([*program, "receive", address, str(port)], "receive.log", environment())

    def end(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """End it in good order; what the sender and the receiver tell. Raises `EnvironmentProblem` if the connection has broken."""
        self._sender.send(signal.SIGTERM)
        with suppress(IpopError):
            self._receiver.wait(60)
            self._sender.wait(30)
        ends = self._sender, self._receiver
        try:
            sent, received = (json.loads(end.output.splitlines()[-1]) for end in ends)
        except (IndexError, ValueError):
            raise EnvironmentProblem("the TCP connection did not live", " ".join(end.output[-300:] for end in ends)) from None
        return sent, received
