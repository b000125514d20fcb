"""Throwaway network namespaces for tests that open real interfaces inside this very process."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

_CLONE_NEWNET = 0x40000000
_serial = count(1)


def why_no_namespaces() -> str | None:
    """The reason for which this process cannot make namespaces and interfaces, for a skip."""
    if os.geteuid() != 0:
        return "needs root: makes network namespaces and interfaces"
    return None if Path("/dev/net/tun").exists() else "needs /dev/net/tun"


class Namespace:
    """One namespace with nothing but a loopback; removed by `remove`, which a test gives to `addCleanup`."""

    def __init__(self) -> None:
        self.name = f"ipop-tapt-{os.getpid()}-{next(_serial)}"
        subprocess.run(["ip", "netns", "add", self.name], check=True)
        self.run("ip", "link", "set", "lo", "up")

    def remove(self) -> None:
        subprocess.run(["ip", "netns", "del", self.name], check=True)

    def command(self, *words: str) -> list[str]:
        return ["ip", "netns", "exec", self.name, *words]

    def run(self, *words: str) -> str:
        return subprocess.run(self.command(*words), check=True, capture_output=True, text=True).stdout

    @contextmanager
    def entered(self) -> Iterator[None]:
        """What this thread opens inside belongs to the namespace, also afterwards."""
        with open("/proc/thread-self/ns/net", "rb") as home, open(f"/run/netns/{self.name}", "rb") as away:
            _setns(away.fileno())
            try:
                yield
            finally:
                _setns(home.fileno())

    def call(self, function: Any, *arguments: Any) -> Any:
        """Call a function inside."""
        with self.entered():
            return function(*arguments)


def _setns(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")
