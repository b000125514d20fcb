"""What can be measured: a system starts its two ends on a pair and says which address of B to aim at."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar, Literal

import ipop_tx
from benchmarks.dataplane.underlay import A_ADDRESS, B_ADDRESS, Pair
from ipop_tx.errors import EnvironmentProblem
from ipop_tx.lab import Host, Process, wait_for
from ipop_tx.lab.node import LabNode

Side = Literal["a", "b"]

A_INSIDE = "198.18.0.1"
B_INSIDE = "198.18.0.2"
"""Addresses in the overlays of those systems that let us choose (RFC 2544 leaves 198.18.0.0/15 to benchmarks)."""
NET_INSIDE = "198.18.0.0/24"


class System:
    """One system under test. Subclasses say what they need and how both ends are started."""

    name: ClassVar[str]
    programs: ClassVar[Mapping[str, str]] = MappingProxyType({})
    """Programs that it needs, each with its Debian package."""

    @property
    def version(self) -> str:
        """The version of its Debian package."""
        package = next(iter(self.programs.values()))
        done = subprocess.run(["dpkg-query", "-W", "-f", "${Version}", package], check=False, capture_output=True, text=True)
        return done.stdout.strip() or "unknown"

    def start(self, pair: Pair) -> str:
        """Start both ends; gives the address of B to aim at. Whether it answers already is for the caller to see."""
        raise NotImplementedError


class Raw(System):
    """No overlay: what the machine itself can do."""

    name = "raw"

    @property
    def version(self) -> str:
        """The kernel's."""
        return os.uname().release

    def start(self, pair: Pair) -> str:
        """Nothing to start."""
        return B_ADDRESS


class IpopTx(System):
    """The daemons of this very source tree, joined by an invitation, over their direct path."""

    name = "ipop_tx"

    def __init__(self) -> None:
        self.nodes: list[LabNode] = []
        """A and B of the latest start."""
        self.wrapper: dict[Side, tuple[str, ...]] = {}
        """For either side a command to start the daemon by, if any: the profiler."""
        self.environment: Mapping[str, str] = MappingProxyType({})
        """Variables for both daemons."""

    @property
    def version(self) -> str:
        """The package's."""
        return ipop_tx.__version__

    def start(self, pair: Pair) -> str:
        """B founds a network, A joins it; waits for the direct path."""
        a, b = LabNode(pair.a, "a"), LabNode(pair.b, "b")
        self.nodes = [a, b]
        for node in self.nodes:
            node.environment.update(self.environment)
        b.create("bench")
        b.start(*self.wrapper.get("b", ()))
        target = b.wait_until_up()
        a.join(b.invite("a"))
        a.start(*self.wrapper.get("a", ()))
        a.wait_until_up()
        if not a.reaches(target):
            raise EnvironmentProblem("A and B joined, but do not reach each other", f"see {a.directory}")
        a.wait_for_path(b, lambda path: path.startswith("direct"))
        b.wait_for_path(a, lambda path: path.startswith("direct"))
        return target


class Own(System):
    """A system of the user's: `--peer NAME=COMMAND`.

    The command is run by `sh -c` on B, then on A, as root inside the machine's network namespace, with these variables:

    BENCH_SIDE             a or b; b listens, a calls
    BENCH_ADDRESS          this machine's address
    BENCH_PEER_ADDRESS     the other one's
    BENCH_INSIDE           a free address for this end of the overlay, if it needs one to be chosen; the net is /24
    BENCH_PEER_INSIDE      the same for the other end
    BENCH_DIRECTORY        an empty directory of this end, also the working directory
    BENCH_SHARED           a directory that both ends see, for keys

    Its first line of output is the overlay's address of this end, to be aimed at. It stays in the foreground (or leaves its daemons
    behind) and ends on SIGTERM. Whatever lives in the namespace then counts as the daemon.
    """

    def __init__(self, name: str, command: str) -> None:
        self.name = name  # type: ignore[misc]  # the only system whose name is the user's
        self._command = command

    @property
    def version(self) -> str:
        """Unknown: the command itself."""
        return shlex.split(self._command)[0]

    def start(self, pair: Pair) -> str:
        """B first, then A."""
        shared = pair.b.directory / "shared"
        shared.mkdir()
        target = self._address(self._run(pair, "b", shared))
        self._address(self._run(pair, "a", shared))
        return target

    def _run(self, pair: Pair, side: Side, shared: Path) -> Process:
        own, other = ((A_ADDRESS, A_INSIDE), (B_ADDRESS, B_INSIDE))[:: 1 if side == "a" else -1]
        host = pair.side(side)
        directory = host.directory / "own"
        directory.mkdir()
        environment = {
            **os.environ,
            "BENCH_SIDE": side,
            "BENCH_ADDRESS": own[0],
            "BENCH_PEER_ADDRESS": other[0],
            "BENCH_INSIDE": own[1],
            "BENCH_PEER_INSIDE": other[1],
            "BENCH_DIRECTORY": str(directory),
            "BENCH_SHARED": str(shared),
        }
        return host.start(["sh", "-c", f"cd {shlex.quote(str(directory))} && {self._command}"], f"{self.name}.log", environment)

    def _address(self, process: Process) -> str:
        def look() -> str:
            if process.returncode not in (None, 0):
                raise EnvironmentProblem(f"the command of {self.name} ended with {process.returncode}", process.output[-500:])
            return next((line.strip() for line in process.output.splitlines() if "\n" in process.output and _is_address(line)), "")

        return wait_for(f"an address from the command of {self.name}", 20, look)


def _is_address(line: str) -> bool:
    try:
        ip_address(line.strip())
    except ValueError:
        return False
    return True


def give_address(host: Host, device: str, address: str, mtu: int) -> None:
    """Wait for an interface that a daemon makes, and configure it."""
    wait_for(f"interface {device} on {host.name}", 10, lambda: host.run(["ip", "link", "show", device], check=False).returncode == 0)
    host.run(["ip", "addr", "add", f"{address}/24", "dev", device])
    host.run(["ip", "link", "set", device, "up", "mtu", str(mtu)])
