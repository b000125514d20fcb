"""Brings the programs that a benchmark runs, by apt-get where it is Debian and we are root."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from ipop_tx.errors import EnvironmentProblem

TOOLS = {"iperf3": "iperf3", "ping": "iputils-ping", "ip": "iproute2", "nft": "nftables", "ethtool": "ethtool"}
_POLICY = Path("/usr/sbin/policy-rc.d")


def missing(programs: Mapping[str, str]) -> list[str]:
    """The packages of those programs that are not there."""
    return sorted({package for program, package in programs.items() if shutil.which(program) is None})


def obtain(programs: Mapping[str, str]) -> list[str]:
    """Install what is missing; the packages that could not be had. No daemon of theirs is started."""
    wanted = missing(programs)
    if not wanted or os.geteuid() != 0 or shutil.which("apt-get") is None:
        return wanted
    print(f"dataplane: installing {' '.join(wanted)}", file=sys.stderr)
    with _no_daemons():
        if not _install(wanted):
            _apt(["update"])
            for package in wanted:  # one by one: one that does not exist must not cost the others
                _install([package])
    return missing(programs)


def require(programs: Mapping[str, str]) -> None:
    """Install what is missing. Raises `EnvironmentProblem` naming what could not be had."""
    left = obtain(programs)
    if left:
        raise EnvironmentProblem(f"programs of {', '.join(left)} are missing", f"apt-get install {' '.join(left)}")


def _install(packages: Sequence[str]) -> bool:
    return _apt(["install", "--no-install-recommends", *packages])


def _apt(words: Sequence[str]) -> bool:
    argv = ["apt-get", "-y", "-qq", "-o", "DPkg::Lock::Timeout=120", *words]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(argv, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment)
    if done.returncode:
        print(f"dataplane: apt-get {' '.join(words)}: {done.stderr.strip()[-300:]}", file=sys.stderr)
    return done.returncode == 0


@contextmanager
def _no_daemons() -> Iterator[None]:
    """Debian asks policy-rc.d whether a package may start its daemon. One that the machine has already decides itself."""
    if _POLICY.exists():
        yield
        return
    _POLICY.write_text("#!/bin/sh\nexit 101\n")
    _POLICY.chmod(0o755)
    try:
        yield
    finally:
        _POLICY.unlink()
