"""The row `newcomer`: what the README says, typed on two bare machines."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

from ipop_tx.lab import Lab
from tests.ops.case import MACHINES, ROOT, check, package, row
from tests.ops.machine import BARE, Machine

MOST_COMMANDS, MOST_SECONDS = 8, 300.0
_BLOCK = re.compile(r"^```sh (?P<where>one|two|both) package\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


def commands() -> Iterator[tuple[str, str]]:
    """The README's, in order, each with the machine on which it is typed."""
    for found in _BLOCK.finditer((ROOT / "README.md").read_text()):
        for where in ("one", "two") if found["where"] == "both" else (found["where"],):
            for line in found["text"].splitlines():
                yield where, line


@row("newcomer")
def newcomer_row(lab: Lab) -> str:
    """From two bare Debians to a ping, with the package at hand."""
    todo = list(commands())
    check(f"{len(todo)} commands", 0 < len(todo) <= MOST_COMMANDS)
    deb, nameserver = package(), re.search(r"(?m)^nameserver (\S+)", Path("/etc/resolv.conf").read_text())
    machines = {}
    for name in ("one", "two"):
        machines[name] = Machine(lab.public_host(name), nameserver[1] if nameserver else "", BARE)
        MACHINES.append(machines[name])
        machines[name].boot()
        machines[name].copy(deb)
    begun, token, said = time.monotonic(), "", ""
    for where, line in todo:
        # Packages come from the internet, of which the lab knows nothing.
        said = machines[where].run(line.replace("TOKEN", token), timeout=MOST_SECONDS, outside=line.startswith("apt-get"))
        if "ipop invite" in line:
            token = said.strip()
    took = time.monotonic() - begun
    check(said, "3 received" in said)
    check(f"{took:.0f} s", took <= MOST_SECONDS)
    return f"{len(todo)} commands, {took:.0f} s with the package at hand, of which Debian's Python is downloaded on both"
