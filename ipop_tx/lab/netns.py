"""Network namespaces: make, remove, step into, and find the processes that live in them."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from ipop_tx.errors import EnvironmentProblem, PermissionProblem

NAMED = Path("/run/netns")
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)

PACKAGES = {
    "ip": "iproute2",
    "nft": "nftables",
    "conntrack": "conntrack",
    "ping": "iputils-ping",
    "curl": "curl",
    "udhcpc": "udhcpc",
    "dhclient": "isc-dhcp-client",
}
"""The programs that the lab runs, and the Debian package of each."""


def require_root_and(programs: Iterable[str] = ("ip", "nft", "conntrack")) -> None:
    """Raise `PermissionProblem` or `EnvironmentProblem`, in one sentence, unless the lab can work here."""
    if os.geteuid() != 0:
        raise PermissionProblem("only root may make network namespaces", "run it again with sudo")
    missing = sorted({PACKAGES[program] for program in programs if shutil.which(program) is None})
    if missing:
        raise EnvironmentProblem(f"programs of {', '.join(missing)} are missing", f"apt-get install {' '.join(missing)}")


def call(argv: Sequence[str], text: str | None = None) -> str:
    """Run a short-lived program of the system with `text` on its input; gives its output. Raises `EnvironmentProblem`."""
    done = subprocess.run(argv, check=False, input=text, capture_output=True, text=True, timeout=30)
    if done.returncode:
        raise EnvironmentProblem(f"{' '.join(argv)!r} failed: {done.stderr.strip() or done.returncode}")
    return done.stdout


def configure(namespace: str, *commands: str) -> None:
    """Give `ip` commands, one a string, inside a namespace, all in one process."""
    call(["ip", "-n", namespace, "-batch", "-"], "\n".join(commands) + "\n")


@contextmanager
def inside(namespace: str) -> Iterator[None]:
    """The calling thread in `namespace`: a socket that is opened here stays there for life."""
    with open("/proc/thread-self/ns/net") as home, open(NAMED / namespace) as away:
        _enter(away.fileno())
        try:
            yield
        finally:
            _enter(home.fileno())


def _enter(descriptor: int) -> None:
    if _libc.setns(descriptor, _CLONE_NEWNET):
        code = ctypes.get_errno()
        raise EnvironmentProblem(f"cannot enter a network namespace: {os.strerror(code)}")


def set_kernel(namespace: str, key: str, value: int) -> None:
    """Write a `net.*` kernel setting of a namespace; one that this kernel does not have is left out."""
    with inside(namespace), suppress(FileNotFoundError):
        Path("/proc/sys/net", *key.split(".")).write_text(f"{value}\n")


def present(namespaces: Iterable[str]) -> list[str]:
    """Those of `namespaces` that exist."""
    return [namespace for namespace in namespaces if (NAMED / namespace).exists()]


def members(namespaces: Iterable[str]) -> list[int]:
    """The pids of all processes, but this one, that live in any of `namespaces`."""
    wanted = {(NAMED / namespace).stat().st_ino for namespace in present(namespaces)}
    pids = [int(entry) for entry in os.listdir("/proc") if entry.isdigit()] if wanted else []
    return [pid for pid in pids if pid != os.getpid() and _place(pid) in wanted]


def lives_in(pid: int, namespace: str) -> bool:
    """Whether a process has entered `namespace`."""
    return _place(pid) == (NAMED / namespace).stat().st_ino


def _place(pid: int) -> int:
    """What tells a process's network namespace from others; 0 when the process is gone."""
    try:
        return os.stat(f"/proc/{pid}/ns/net").st_ino
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return 0
