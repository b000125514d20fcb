"""How the programs of this machine come to ask our name server: systemd-resolved where it is in charge, else resolv.conf."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from twisted.internet.defer import Deferred, succeed
from twisted.internet.utils import getProcessOutputAndValue

from ipop_tx.errors import EnvironmentProblem
from ipop_tx.services.resolvconf import ResolvConf

RESOLVED = Path("/run/systemd/resolve")


class HostDns(Protocol):
    """The system's resolver, as far as it concerns us."""

    def upstream(self) -> list[str]:
        """The name servers to which questions for other names are to be passed on; none, if nobody asks us for such."""

    def put(self) -> Deferred[None]:
        """Have our server asked for our names. Fails with `EnvironmentProblem`."""

    def take_back(self) -> Deferred[None]:
        """Leave no trace. Fails with `EnvironmentProblem`."""


class ByFile:
    """By resolv.conf, where our server stands first and passes on what is not ours."""

    def __init__(self, file: ResolvConf, server: str, domain: str) -> None:
        self._file, self._server, self._domain = file, server, domain

    def upstream(self) -> list[str]:
        """Those of the file."""
        return [server for server in self._file.upstream() if server != self._server]

    def put(self) -> Deferred[None]:
        """Called again and again: DHCP clients and the like write that file anew."""
        self._file.put(self._server, self._domain)
        return succeed(None)

    def take_back(self) -> Deferred[None]:
        """Only our lines."""
        self._file.take_back()
        return succeed(None)


class ByResolved:
    """By systemd-resolved, which asks us for our domains only (split DNS) and forgets us with the interface, however the daemon ends."""

    def __init__(self, reactor: Any, interface: str, server: str, domains: Sequence[str], search: bool) -> None:
        self._reactor, self._interface, self._server = reactor, interface, server
        searched, *routed = domains
        self._domains = [searched if search else f"~{searched}", *(f"~{domain}" for domain in routed)]

    def upstream(self) -> list[str]:
        """Nobody asks us for other names."""
        return []

    def put(self) -> Deferred[None]:
        """Server and domains of our interface; it is no way for other names."""
        return Deferred.fromCoroutine(self._put())

    async def _put(self) -> None:
        await self._call("dns", self._interface, self._server)
        await self._call("domain", self._interface, *self._domains)
        await self._call("default-route", self._interface, "false")

    def take_back(self) -> Deferred[None]:
        """What our interface had."""
        return Deferred.fromCoroutine(self._call("revert", self._interface))

    async def _call(self, *words: str) -> None:
        program = shutil.which("resolvectl") or "resolvectl"
        _, err, status = await getProcessOutputAndValue(program, words, env=os.environ, reactor=self._reactor)
        if status:
            said = err.decode(errors="replace").strip().splitlines()
            raise EnvironmentProblem(
                f"resolvectl {' '.join(words[:2])} failed: {said[-1] if said else f'status {status}'}",
                'look whether systemd-resolved runs, or set dns.system = "resolv.conf" or "none"',
            )


def resolved_rules(path: Path) -> bool:
    """Whether systemd-resolved is who answers the programs of this machine: it runs, and resolv.conf leads to it."""
    if not (RESOLVED / "stub-resolv.conf").exists() or shutil.which("resolvectl") is None:
        return False
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return False
    return RESOLVED in Path(os.path.realpath(path)).parents or "nameserver 127.0.0.53" in text
