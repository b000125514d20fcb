"""A real node on a host of the lab: its files, the `ipop` commands, the `twistd ipop` process, its control socket."""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import re
import shutil
import socket
import struct
import sys
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import ipop_tx
from ipop_tx.errors import EnvironmentProblem, Unreachable
from ipop_tx.lab.process import Process
from ipop_tx.lab.topology import Host
from ipop_tx.lab.waiting import holds_within, wait_for

TAP = "ipop0"
_SIOCGIFADDR = 0x8915  # netdevice(7)


class LabNode:
    """One node. Nothing runs until `create` or `join`, then `start`."""

    def __init__(self, host: Host, name: str | None = None, port: int = 4500) -> None:
        self.host = host
        self.name = name or host.name
        self.directory = host.directory / f"node-{self.name}"
        self.directory.mkdir()
        self.state = self.directory / "state"
        self.socket = self.directory / "control.sock"
        self.config = self.directory / "node.toml"
        self.process: Process | None = None
        self.keys: dict[str, dict[str, Any]] = {
            "node": {"state": str(self.state)},
            "listen": {"udp": f"0.0.0.0:{port}"},
            "tap": {"name": TAP},
            "control": {"socket": str(self.socket)},
            "log": {"level": "info"},
        }
        """What `start` writes to node.toml; change it before."""
        self.environment: dict[str, str] = {}
        """Variables for the daemon beside those of this process; change it before."""

    def ipop(self, *words: str, check: bool = True, timeout: float = 30.0) -> tuple[int, str, str]:
        """Run an `ipop` command on the host: (exit status, stdout, stderr). Raises `EnvironmentProblem` when `check` is on and it fails."""
        done = self.host.run([*program("ipop"), *words], check=check, timeout=timeout, environment=environment())
        return done.returncode, done.stdout, done.stderr

    def create(self, network: str, pool: str = "10.128.0.0/16") -> None:
        """Found a network here."""
        self.ipop("network", "create", network, "--pool", pool, "--state", str(self.state), "--name", self.name)

    def invite(self, name: str, *options: str, expires: str = "1h") -> str:
        """An invitation for the node `name`, one line."""
        return self.ipop("invite", "--expires", expires, "--name", name, *options, "--socket", str(self.socket))[1].strip()

    def join(self, token: str) -> None:
        """Take an invitation up: ask for a certificate, and learn whom to ask first."""
        self.ipop("join", token, *self._join_options())
        self.keys["node"]["bootstrap"] = tomllib.loads(self.config.read_text())["node"].get("bootstrap", [])

    def enter(self, inviter: LabNode, *options: str, seconds: float = 30.0) -> str:
        """Join with an invitation by `inviter` (`options` are those of `ipop invite`), start, wait until up; gives the address."""
        self.join(inviter.invite(self.name, *options))
        self.start()
        return self.wait_until_up(seconds)

    def refused_join(self, token: str) -> Refusal:
        """Try an invitation that is expected to be refused."""
        status, out, err = self.ipop("join", token, *self._join_options(), check=False)
        return Refusal(status, out + err)

    def _join_options(self) -> tuple[str, ...]:
        return ("--state", str(self.state), "--name", self.name, "--config", str(self.config))

    def start(self, *wrapper: str) -> Process:
        """Write node.toml and start the daemon, without waiting for it; `wrapper` is a command to start it by, for instance setpriv."""
        self.config.write_text(to_toml(self.keys))
        argv = [*wrapper, *program("twistd"), "-n", f"--pidfile={self.directory / 'twistd.pid'}", "ipop", "--config", str(self.config)]
        self.process = self.host.start(argv, log=f"{self.name}.log", environment={**environment(), **self.environment})
        return self.process

    def refuse(self, *wrapper: str, seconds: float = 15.0) -> Refusal:
        """Start a daemon that is expected to refuse; gives what it said. Raises `EnvironmentProblem` when it goes on."""
        process = self.start(*wrapper)
        return Refusal(process.wait(seconds), process.output)

    def address_on_tap(self) -> str | None:
        """The IPv4 address of the TAP interface, or of the bridge that it is in, as the kernel has it; None without one."""
        tap = self.keys["tap"]
        request = struct.pack("16s16x", str(tap.get("bridge", tap["name"])).encode())
        with self.host.socket() as probe:
            try:
                return str(IPv4Address(fcntl.ioctl(probe, _SIOCGIFADDR, request)[20:24]))
            except OSError:  # no such interface, or no address on it
                return None

    def wait_until_up(self, seconds: float = 30.0) -> str:
        """Wait for an address on the TAP; gives it. Raises `EnvironmentProblem` with the log's end when the daemon ends instead."""
        address = wait_for(f"an address on {self.name}", seconds, self._address_or_end, every=0.005)
        if not address[0].isdigit():
            raise EnvironmentProblem(f"the daemon of {self.name} ended", address)
        wait_for(f"a control socket of {self.name}", seconds, self.socket.exists)
        return address

    def _address_or_end(self) -> str | None:
        if self.process is not None and self.process.returncode is not None:
            return f"exit status {self.process.returncode}; {self.process.output[-2000:]}"
        return self.address_on_tap()

    def request(self, method: str, path: str, body: object = None, timeout: float = 15.0) -> Any:
        """Ask the daemon over its control socket: the JSON of the answer. Raises `Unreachable` when it does not answer."""
        connection = _UnixConnection(str(self.socket), timeout)
        try:
            content = None if body is None else json.dumps(body)
            connection.request(method, path, content, {"Content-Type": "application/json"} if content else {})
            answer = connection.getresponse()
            text = answer.read().decode()
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable(f"the daemon of {self.name} does not answer", str(error)) from None
        finally:
            connection.close()
        if answer.status >= 400:
            raise EnvironmentProblem(f"{method} {path} on {self.name} gave {answer.status}", text)
        return json.loads(text)

    def status(self) -> dict[str, Any]:
        """What `ipop status --json` shows."""
        answer: dict[str, Any] = self.request("GET", "/status")
        return answer

    @property
    def address(self) -> str:
        """The overlay's IPv4 address."""
        return str(self.status()["self"]["address"])

    @property
    def ipv6(self) -> str:
        """The overlay's IPv6 address."""
        return str(self.status()["self"]["ipv6"])

    def path_to(self, other: LabNode) -> str:
        """How traffic to `other` goes now: `direct udp:...`, `relay via NAME`, `idle`; `unknown` when there is no such peer."""
        peers = self.status()["peers"]
        return next((str(peer["path"]) for peer in peers if peer["name"] == other.name), "unknown")

    def ping(self, address: str, seconds: float = 5.0) -> float | None:
        """One real ping to an IPv4 or IPv6 address: the round trip in ms, None when no answer came in time."""
        done = self.host.run(["ping", "-n", "-c1", f"-W{seconds:g}", address], check=False, timeout=seconds + 20)
        found = re.search(r"time=([\d.]+) ms", done.stdout)
        return float(found[1]) if found else None

    def reaches(self, address: str, seconds: float = 20.0) -> bool:
        """Whether a ping is answered, asking again for up to `seconds`."""
        return holds_within(seconds, lambda: self.ping(address, 1) is not None)

    def wait_for_path(self, other: LabNode, wanted: Callable[[str], bool], seconds: float = 30.0) -> str:
        """Wait until the path to `other` is as wanted; gives it."""
        wait_for(f"the wanted path from {self.name} to {other.name}", seconds, lambda: wanted(self.path_to(other)), every=0.1)
        return self.path_to(other)

    def kill9(self) -> None:
        """End the daemon as a power failure would."""
        if self.process is not None:
            self.process.kill9()

    def stop(self) -> int:
        """Ask the daemon to end; gives its exit status."""
        return self.process.stop() if self.process is not None else 0


@dataclass(frozen=True)
class Refusal:
    """What a user sees of a program that refuses: its exit status and all that it wrote."""

    status: int
    text: str

    @property
    def sentences(self) -> list[str]:
        """What `ipop` said, without the log lines around it."""
        return [line.removeprefix("ipop: ") for line in self.text.splitlines() if line.startswith("ipop: ")]


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("ipop", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def program(name: str) -> Sequence[str]:
    """A program of the same installation as this Python."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found:
        return [found]
    if name == "ipop":
        return [sys.executable, "-m", "ipop_tx.cli.main"]
    raise EnvironmentProblem(f"there is no {name} beside {sys.executable}", "install the package with pip")


def environment() -> dict[str, str]:
    """This process's environment, in which this very ipop_tx is found, installed or not."""
    root = str(Path(ipop_tx.__file__).parents[1])
    inherited = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": f"{root}:{inherited}" if inherited else root, "PYTHONUNBUFFERED": "1"}


def to_toml(sections: dict[str, dict[str, Any]]) -> str:
    """Sections of strings, numbers, truth values and lists of strings as TOML (JSON writes all of these alike)."""
    return "\n".join(f"[{name}]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in keys.items()) for name, keys in sections.items())
