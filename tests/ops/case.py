"""What the rows share: how one is registered, the package, machines that have it."""

from __future__ import annotations

import functools
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ipop_tx.lab import Lab, wait_for
from ipop_tx.lab.waiting import holds_within
from tests.ops.machine import Machine

ROOT = Path(__file__).parents[2]
ROWS: dict[str, Callable[[Lab], str]] = {}


def row(name: str) -> Callable[[Callable[[Lab], str]], Callable[[Lab], str]]:
    """Register a row."""

    def register(function: Callable[[Lab], str]) -> Callable[[Lab], str]:
        ROWS[name] = function
        return function

    return register


def check(what: str, holds: object) -> None:
    """Raises `AssertionError` that says what did not hold."""
    if not holds:
        raise AssertionError(what)


@functools.cache
def package() -> Path:
    """The package of this tree, built once in a run."""
    built = subprocess.run([ROOT / "tools/deb"], check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT).stdout.split()[-1]
    return ROOT / built


def status(machine: Machine, config: str = "node") -> dict[str, Any]:
    """What `ipop status --json` shows there."""
    found: dict[str, Any] = json.loads(machine.run(f"ipop status --json --config /etc/ipop/{config}.toml"))
    return found


def up(machine: Machine, config: str = "node") -> str:
    """Wait for an address; gives it."""

    def address() -> str | None:
        code, out, _ = machine.try_(f"ipop status --json --config /etc/ipop/{config}.toml")
        return json.loads(out)["self"]["address"] if code == 0 else None

    return str(wait_for(f"an address of {machine.host.name}", 60, address, 0.2))


def reaches(machine: Machine, address: str) -> bool:
    """Whether a ping is answered within 20 s."""
    return holds_within(20, lambda: machine.try_(f"ping -n -c1 -W1 {address}")[0] == 0)


def founded(lab: Lab, name: str = "one", nameserver: str = "", more: str = "") -> Machine:
    """A machine with the package, the first node of `home`, which runs and starts at each boot. `more` is added to node.toml."""
    machine = Machine(lab.public_host(name), nameserver)
    MACHINES.append(machine)
    machine.boot()
    machine.run(f"dpkg -i {machine.copy(package())}")
    machine.run(f"ipop network create home --name {name}")
    if more:
        machine.run(f"cat >>/etc/ipop/node.toml <<'END'\n{more}\nEND")
    machine.run("systemctl enable --now ipop@node")
    up(machine)
    return machine


MACHINES: list[Machine] = []
"""Those of the row that runs, to be switched off after it."""


def joined(lab: Lab, one: Machine, name: str = "two") -> Machine:
    """Another machine, which has joined."""
    machine = Machine(lab.public_host(name))
    MACHINES.append(machine)
    machine.boot()
    machine.run(f"dpkg -i {machine.copy(package())}")
    token = one.run(f"ipop invite --name {name}").strip()
    machine.run(f"ipop join {token}")
    machine.run("systemctl enable --now ipop@node")
    up(machine)
    return machine


def identity(machine: Machine) -> tuple[str, str]:
    """Who it is."""
    address = up(machine)
    return status(machine)["self"]["ident"], address


def set_for_unit(machine: Machine, line: str) -> None:
    """Change the unit until the next boot."""
    place = "/run/systemd/system/ipop@.service.d"
    machine.run(f"mkdir -p {place}; printf '[Service]\\n{line}\\n' >{place}/ops.conf; systemctl daemon-reload")
