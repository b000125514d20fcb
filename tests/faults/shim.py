"""A daemon whose clocks and disk are in the hands of a test: `shim.c`, preloaded."""

from __future__ import annotations

import mmap
import shutil
import struct
import subprocess
from pathlib import Path

from ipop_tx.errors import EnvironmentProblem
from ipop_tx.lab.node import LabNode

_SOURCE = Path(__file__).with_name("shim.c")
_FIELDS = ("wall_s", "boot_s", "sync_error", "write_error", "kill_at", "operations")


def why_not() -> str | None:
    """Why there can be none here."""
    return None if shutil.which("gcc") else "there is no gcc"


class Shim:
    """Put under a node before it starts; `set` changes what its present and its next lives meet."""

    def __init__(self, node: LabNode) -> None:
        """Raises `EnvironmentProblem` when it cannot be compiled."""
        library, control = node.directory / "shim.so", node.directory / "faults"
        done = subprocess.run(
            ["gcc", "-shared", "-fPIC", "-O1", "-o", str(library), str(_SOURCE), "-ldl"], check=False, capture_output=True, text=True
        )
        if done.returncode:
            raise EnvironmentProblem("the shim does not compile", done.stderr)
        control.write_bytes(bytes(8 * len(_FIELDS)))
        with open(control, "r+b") as file:
            self._control = mmap.mmap(file.fileno(), 0)
        node.environment.update(LD_PRELOAD=str(library), IPOP_FAULTS=str(control))

    def set(self, **values: int) -> None:
        """Give fields of `struct control` values."""
        for name, value in values.items():
            struct.pack_into("q", self._control, 8 * _FIELDS.index(name), value)

    @property
    def operations(self) -> int:
        """Changes of files so far."""
        value: int = struct.unpack_from("q", self._control, 8 * _FIELDS.index("operations"))[0]
        return value
