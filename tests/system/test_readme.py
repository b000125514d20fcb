"""The README's section on two machines, carried out word for word in two namespaces."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from twisted.trial import unittest

from ipop_tx.errors import EnvironmentProblem, IpopError
from ipop_tx.lab import Host, Lab, Process, wait_for
from ipop_tx.lab.node import environment, program
from tests.system import why_not

README = Path(__file__).parents[2] / "README.md"
_BLOCK = re.compile(r"^```sh (?P<machine>one|two)(?P<stays> daemon)?\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_ADDRESS = re.compile(r"203\.0\.113\.\d+")

# A machine's own /etc, /var/lib and /run, seen by its programs only; the real ones are left alone.
_FURNISH = """
mount -t tmpfs none "$1" && mkdir "$1/upper" "$1/work" &&
mount -t overlay none -o "lowerdir=/etc,upperdir=$1/upper,workdir=$1/work" /etc &&
mount -t tmpfs none /var/lib && mount -t tmpfs none /run && echo furnished && exec sleep infinity
"""


class Block(NamedTuple):
    """A fenced block of the README: where it is to be typed, and whether it stays in the foreground."""

    machine: str
    stays: bool
    text: str


def blocks() -> list[Block]:
    """The commands of the README, in order."""
    return [Block(found["machine"], bool(found["stays"]), found["text"]) for found in _BLOCK.finditer(README.read_text())]


class Machine:
    """A host of the lab with files of its own."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.home = host.directory / "home"
        self.home.mkdir()
        (host.directory / "files").mkdir()
        self._init = host.start(["bash", "-c", _FURNISH, "bash", str(host.directory / "files")], log="init.log")
        wait_for("own files", 10, self._furnished)

    def _furnished(self) -> bool:
        if self._init.returncode is not None:
            raise EnvironmentProblem("the machine's own /etc could not be mounted", self._init.output)
        return "furnished" in self._init.output

    def inside(self, script: str) -> list[str]:
        """The command that runs a script with the machine's own files, in its home."""
        place = ["nsenter", f"--target={self._init.pid}", "--mount", f"--wdns={self.home}"]
        return [*place, "bash", "-e", "-c", script]

    def type(self, script: str) -> str:
        """Run a block to its end; gives its stdout. Raises `EnvironmentProblem` when a command in it fails."""
        return self.host.run(self.inside(script), environment=_environment()).stdout

    def leave_running(self, script: str) -> Process:
        """Run a block that does not end."""
        return self.host.start(self.inside(f"exec {script}"), log="daemon.log", environment=_environment())


def _environment() -> dict[str, str]:
    """As after the README's installation: `ipop` and `twistd` are found."""
    there = {str(Path(program(name)[0]).parent) for name in ("ipop", "twistd")}
    return {**environment(), "PATH": os.pathsep.join([*sorted(there), os.environ["PATH"]])}


class ReadmeTests(unittest.SynchronousTestCase):
    """What a newcomer types works."""

    skip = why_not("nsenter", "mount")

    def test_two_machines(self) -> None:
        """Every block of the section is typed where it says; the last one is a ping that is answered."""
        todo = blocks()
        self.assertEqual({block.machine for block in todo}, {"one", "two"})
        self.assertIn("ping", todo[-1].text)
        with Lab("readme") as lab:
            machines = {name: Machine(lab.public_host(name)) for name in ("one", "two")}
            self.assertEqual(set(_ADDRESS.findall(README.read_text())), {machines["one"].host.address})
            said = "\n".join(self._type_all(machines, todo))
        self.assertIn("3 received", said)
        self.assertIn("10.128.0.2", said)

    def _type_all(self, machines: dict[str, Machine], todo: list[Block]) -> Iterator[str]:
        token = ""
        for block in todo:
            machine, script = machines[block.machine], block.text.replace("TOKEN", token)
            if block.stays:
                daemon = machine.leave_running(script)
                wait_for(f"an address on {block.machine}", 30, partial(_is_up, machine, daemon), 0.2)
                continue
            out = machine.type(script)
            if "ipop invite" in block.text:
                token = out.strip()
            yield out


def _is_up(machine: Machine, daemon: Process) -> bool:
    """Whether the daemon has its address, which is when a newcomer sees `lease_gained` in its log."""
    if daemon.returncode is not None:
        raise EnvironmentProblem("the daemon ended", daemon.output[-2000:])
    try:
        return "lease_gained" in daemon.output and bool(machine.type("ipop status"))
    except IpopError:
        return False


class ReadmeTextTests(unittest.SynchronousTestCase):
    """What needs no root."""

    def test_links_lead_somewhere(self) -> None:
        """Every relative link of README and docs names a file that exists."""
        for page in (README, *(README.parent / "docs").glob("*.md")):
            for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
                self.assertTrue((page.parent / target).exists(), f"{page.name} links to {target}")
