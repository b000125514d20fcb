"""`python -m benchmarks.flood`: what a flood leaves of a daemon's traffic, and whether newcomers get in, beside other VPNs, as root.

For each system three machines at one router: a TCP stream goes from A to B through the overlay while B's port is flooded, with junk or with
first flights of its own handshake, from one source or from a different one each time; then C, whom B knows, tries to get in. The same flood
at a port of B where nobody listens shows what it costs the machine alone.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any, ClassVar

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from benchmarks import barrage
from benchmarks.command import command
from benchmarks.dataplane import measure, packages, peers
from benchmarks.dataplane.report import table
from benchmarks.dataplane.systems import give_address
from benchmarks.dataplane.underlay import B_ADDRESS, Triangle
from ipop_tx.errors import EnvironmentProblem, IpopError
from ipop_tx.lab import Host, Lab, netns, wait_for
from ipop_tx.lab.node import LabNode, environment
from ipop_tx.lab.process import Process

NEWCOMER = 20.0
"""Seconds that C has to get in."""
DISCARD = 9
"""A port where nobody listens, and that answers nothing."""
DISCARDED = f"""
table ip discarded {{
 chain incoming {{ type filter hook input priority 0;
  udp dport {DISCARD} drop
 }}
}}
"""
C_INSIDE, NET = "198.18.0.3", "198.18.0.0"


class Flooded:
    """A system whose B is flooded: `start` brings A and B up and gives the address of B to aim at; C is ready, and off."""

    name: ClassVar[str]
    programs: ClassVar[dict[str, str]] = {}
    port: ClassVar[int]
    kind: ClassVar[str]
    """Of `benchmarks.barrage`."""
    key = ""

    def __init__(self, triangle: Triangle) -> None:
        self.triangle = triangle

    def start(self) -> str:
        """Both ends."""
        raise NotImplementedError

    def enter(self) -> Process:
        """Start C."""
        raise NotImplementedError


class IpopTx(Flooded):
    """This very source tree."""

    name, port, kind = "ipop_tx", 4500, "dtls"

    def start(self) -> str:
        """B founds the network; C has been a member before."""
        a, b, self.c = (LabNode(host, name) for host, name in zip(self.triangle.hosts(), "abc", strict=False))
        b.create("bench")
        b.start()
        target = b.wait_until_up()
        for node in (a, self.c):
            node.enter(b)
        self.c.kill9()
        a.wait_for_path(b, lambda path: path.startswith("direct"))
        return target

    def enter(self) -> Process:
        """A member that was killed comes back."""
        return self.c.start()


class OpenVpn(Flooded):
    """A server with certificates, UDP, otherwise with its defaults."""

    name, port, kind = "openvpn", 1194, "openvpn"
    programs: ClassVar[dict[str, str]] = {"openvpn": "openvpn"}

    def start(self) -> str:
        """B serves."""
        a, b, c = self.triangle.a, self.triangle.b, self.triangle.r
        prints = {name: peers.certificate(host.directory, name) for name, host in (("a", a), ("b", b), ("c", c))}
        known = b.directory / "known"
        known.write_text(f"<peer-fingerprint>\n{prints['a']}\n{prints['c']}\n</peer-fingerprint>\n")
        self.server_print = prints["b"]
        serves = f"--mode server --tls-server --dh none --topology subnet --server {NET} 255.255.255.0"
        self._run(b, f"--config {known} {serves} --local {B_ADDRESS} --port {self.port}")
        wait_for("OpenVPN's server", 10, lambda: b.run(["ip", "addr", "show", "tun0"], check=False).returncode == 0)
        self._run(a, self._client())
        return "198.18.0.1"

    def _client(self) -> str:
        return f"--client --remote {B_ADDRESS} {self.port} --nobind --peer-fingerprint {self.server_print} --connect-retry 1"

    def _run(self, host: Host, words: str) -> Process:
        common = "--dev tun0 --dev-type tun --keepalive 10 60 --verb 1 --disable-dco --proto udp --data-ciphers AES-256-GCM"
        files = ["--cert", str(host.directory / "own.crt"), "--key", str(host.directory / "own.key")]
        return host.start(["openvpn", *words.split(), *common.split(), *files], "openvpn.log")

    def enter(self) -> Process:
        """A second client."""
        return self._run(self.triangle.r, self._client())


class WireguardGo(Flooded):
    """wireguard-go; whoever floods it knows its public key."""

    name, port, kind = "wireguard-go", 51820, "wireguard"
    programs: ClassVar[dict[str, str]] = {"wireguard-go": "wireguard-go"}

    def start(self) -> str:
        """A and B; B knows C too."""
        self.hosts = dict(zip("abc", (self.triangle.a, self.triangle.b, self.triangle.r), strict=True))
        self.keys = {name: X25519PrivateKey.generate() for name in self.hosts}
        self.key = self._public("b")
        self._run("b", [("a", "198.18.0.1/32", ""), ("c", f"{C_INSIDE}/32", "")], "198.18.0.2")
        self._run("a", [("b", "198.18.0.2/32", f"{B_ADDRESS}:{self.port}")], "198.18.0.1")
        return "198.18.0.2"

    def _public(self, name: str) -> str:
        return self.keys[name].public_key().public_bytes_raw().hex()

    def _run(self, name: str, knows: Sequence[tuple[str, str, str]], inside: str) -> Process:
        host, place = self.hosts[name], self.hosts[name].directory / "wireguard"
        place.mkdir(exist_ok=True)
        socket = place / "wg0.sock"
        socket.unlink(missing_ok=True)
        there = f"mkdir -p /run/wireguard && mount --bind {place} /run/wireguard && exec wireguard-go -f wg0"
        process = host.start(["sh", "-c", there], "wireguard.log")
        wait_for(f"the control socket of wireguard-go on {name}", 10, socket.exists)
        lines = [f"private_key={self.keys[name].private_bytes_raw().hex()}", f"listen_port={self.port}"]
        for other, net, endpoint in knows:
            lines += [f"public_key={self._public(other)}", f"allowed_ip={net}", *([f"endpoint={endpoint}"] if endpoint else [])]
        peers.wireguard_set(socket, lines)
        give_address(host, "wg0", inside, 1420)
        return process

    def enter(self) -> Process:
        """C."""
        return self._run("c", [("b", "198.18.0.2/32", f"{B_ADDRESS}:{self.port}")], C_INSIDE)


SYSTEMS: tuple[type[Flooded], ...] = (IpopTx, OpenVpn, WireguardGo)


@dataclass(frozen=True)
class Flood:
    """One kind of flood."""

    kind: str
    """`junk` or `hellos`."""
    spread: str
    rate: int
    """Datagrams a second."""

    def __str__(self) -> str:
        return f"{self.rate} {self.kind} a second from {'one source' if self.spread == 'one' else 'many sources'}"


@command("flood", "interrupted; everything was removed")
def main(argv: Sequence[str] | None) -> int:
    """Run with words of the command line; gives the exit status: 0 when ours carried on under every flood."""
    options = _parser().parse_args(argv)
    netns.require_root_and(())
    chosen = [system for system in SYSTEMS if system.name in options.systems]
    packages.require({**packages.TOOLS, **{program: package for system in chosen for program, package in system.programs.items()}})
    floods = [Flood(kind, spread, rate) for rate in options.rates for kind in ("junk", "hellos") for spread in ("one", "many")]
    entries: list[dict[str, Any]] = []
    with Lab("flood") as lab:
        for system in chosen:
            entries += _all_of(lab, system, floods, options.seconds, options.rounds)
    print(json.dumps({"floods": entries}) if options.json else _text(entries), flush=True)
    return 0 if all(one["ratio"] >= 0.8 and one["newcomer_s"] is not None for one in entries if one["system"] == IpopTx.name) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make bench-flood", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout, instead of a table")
    parser.add_argument("--systems", nargs="+", choices=[system.name for system in SYSTEMS], default=[system.name for system in SYSTEMS])
    parser.add_argument(
        "--rates", type=int, nargs="+", default=[2_000, 20_000], metavar="N", help="datagrams a second (default: %(default)s)"
    )
    parser.add_argument("--seconds", type=int, default=4, help="length of a stream (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured (default: %(default)s)")
    return parser


def say(words: str) -> None:
    """Progress, for whoever waits."""
    print(f"flood: {words}", file=sys.stderr, flush=True)


def _all_of(lab: Lab, kind: type[Flooded], floods: Sequence[Flood], seconds: int, rounds: int) -> list[dict[str, Any]]:
    triangle = Triangle(lab, kind.name.replace("_", ""))
    system = kind(triangle)
    try:
        triangle.router.run(["ip", "route", "add", "blackhole", barrage.SOURCES])
        triangle.b.run(["nft", "-f", "-"], text=DISCARDED)
        target = system.start()
        wait_for(f"an answer through {kind.name}", 30, lambda: triangle.a.run(["ping", "-c1", "-W1", target], check=False).returncode == 0)
        measure.tcp(triangle, target, 2)  # paths, caches and widths settle
        return [_one(system, target, flood, seconds, rounds) for flood in floods]
    finally:
        triangle.stop()


def _one(system: Flooded, target: str, flood: Flood, seconds: int, rounds: int) -> dict[str, Any]:
    triangle = system.triangle
    gbps: dict[str, list[float]] = {"quiet": [], "beside": [], "flooded": []}
    at, sent = measure.resident_mb(netns.members([triangle.b.namespace])), 0.0
    for _ in range(rounds):
        gbps["quiet"].append(_stream(triangle, target, seconds))
        with _flooding(system, flood, DISCARD):
            gbps["beside"].append(_stream(triangle, target, seconds))
        with _flooding(system, flood, system.port) as rates:
            gbps["flooded"].append(_stream(triangle, target, seconds))
        sent += rates[0] / rounds
    with _flooding(system, flood, system.port):
        entered = _newcomer(system, target)
    grown = measure.resident_mb(netns.members([triangle.b.namespace])) - at
    quiet, beside, flooded = (median(values) for values in gbps.values())
    found = {
        "system": system.name,
        "kind": flood.kind,
        "sources": flood.spread,
        "per_second": round(sent),
        "gbps": {name: round(median(values), 3) for name, values in gbps.items()},
        "ratio": round(flooded / quiet, 3) if quiet else 0.0,
        "ratio_beside": round(flooded / beside, 3) if beside else 0.0,
        "newcomer_s": entered,
        "grown_mb": round(grown, 1),
    }
    say(json.dumps(found))
    return found


def _stream(triangle: Triangle, target: str, seconds: int) -> float:
    try:
        return measure.tcp(triangle, target, seconds).gbps
    except EnvironmentProblem as problem:  # nothing comes through
        say(f"no stream: {problem}")
        return 0.0


@contextmanager
def _flooding(system: Flooded, flood: Flood, port: int) -> Iterator[list[float]]:
    """Gives a list in which, afterwards, is how many datagrams a second were sent."""
    kind = "junk" if flood.kind == "junk" else system.kind
    words = [kind, B_ADDRESS, str(port), str(flood.rate), flood.spread, *([system.key] if system.key else [])]
    flooder = system.triangle.router.start(
        [sys.executable, "-m", "benchmarks.barrage", *words], f"barrage-{time.monotonic_ns()}.log", environment()
    )
    rates: list[float] = []
    try:
        wait_for("the flood", 20, lambda: "ready" in flooder.output, 0.05)
        yield rates
    finally:
        flooder.send(signal.SIGTERM)
        flooder.wait(10)
        rates += [float(line) for line in flooder.output.splitlines()[1:2]]


def _newcomer(system: Flooded, target: str) -> float | None:
    """Seconds until B answers C; None if it does not in time."""
    begun = time.monotonic()
    process: Process | None = None
    try:
        process = system.enter()
        while time.monotonic() - begun < NEWCOMER:
            if system.triangle.r.run(["ping", "-n", "-c1", "-W0.3", target], check=False).returncode == 0:
                return round(time.monotonic() - begun, 2)
            time.sleep(0.05)
    except IpopError as error:
        say(f"the newcomer: {error}")
    finally:
        if process is not None:
            process.kill9()
    return None


def _text(entries: Sequence[dict[str, Any]]) -> str:
    head = ["system", "flood", "sources", "per s", "quiet", "beside", "flooded", "kept", "newcomer s", "grown MB"]
    rows = [
        [
            *(one[key] for key in ("system", "kind", "sources")),
            str(one["per_second"]),
            *(f"{value:.2f}" for value in one["gbps"].values()),
            f"{one['ratio']:.2f}",
            "never" if one["newcomer_s"] is None else f"{one['newcomer_s']:g}",
            f"{one['grown_mb']:g}",
        ]
        for one in entries
    ]
    return table([head], rows)


if __name__ == "__main__":
    sys.exit(main())
