"""How the programs of this machine come to ask our name server: systemd-resolved where it is in charge, else resolv.conf."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from twisted.internet.defer import Deferred, succeed
from twisted.internet.utils import getProcessOutputAndValue

from ipop_tx.config.sections import DnsSection
from ipop_tx.errors import EnvironmentProblem
from ipop_tx.services.resolvconf import ResolvConf
from ipop_tx.values import Network

RESOLVED = Path("/run/systemd/resolve")


RESOLVECTL = shutil.which("resolvectl") or "resolvectl"


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
        if os.geteuid() != 0 and await self._is_put():  # root may have told it for us, who may not
            return
        for words in self.words():
            await self._call(*words)

    def words(self) -> Iterator[tuple[str, ...]]:
        """What resolvectl is told."""
        yield "dns", self._interface, self._server
        yield "domain", self._interface, *self._domains
        yield "default-route", self._interface, "false"

    async def _is_put(self) -> bool:
        out, _, status = await getProcessOutputAndValue(RESOLVECTL, ("dns", self._interface), env=os.environ, reactor=self._reactor)
        return not status and self._server in out.decode(errors="replace").split()

    def take_back(self) -> Deferred[None]:
        """What our interface had."""
        return Deferred.fromCoroutine(self._call("revert", self._interface))

    async def _call(self, *words: str) -> None:
        _, err, status = await getProcessOutputAndValue(RESOLVECTL, words, env=os.environ, reactor=self._reactor)
        if status:
            said = err.decode(errors="replace").strip().splitlines()
            raise EnvironmentProblem(
                f"resolvectl {' '.join(words[:2])} failed: {said[-1] if said else f'status {status}'}",
                "look whether systemd-resolved runs; or have root run 'ipop dns tell', as ipop@.service does",
            )


def host_dns(reactor: Any, section: DnsSection, network: Network, interface: str) -> HostDns | None:
    """Who is to be told of the server at `dns.listen`; None for nobody."""
    from ipop_tx.services.dnszone import domain_of, reverse_zones

    assert section.listen is not None
    (host, port), domain = section.listen, domain_of(network)
    system = section.system
    if system == "auto":
        system = "resolved" if resolved_rules(section.resolv_conf) else "resolv.conf"
    if system == "resolved":
        server = host if port == 53 else f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        domains = [domain, *reverse_zones(network)]
        return ByResolved(reactor, interface, server, domains, section.search)
    file = ResolvConf(section.resolv_conf, network.name)
    return ByFile(file, host, domain if section.search else "") if system == "resolv.conf" else None


def resolved_rules(path: Path) -> bool:
    """Whether systemd-resolved is who answers the programs of this machine: it runs, and resolv.conf leads to it."""
    if not (RESOLVED / "stub-resolv.conf").exists() or shutil.which("resolvectl") is None:
        return False
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return False
    return RESOLVED in Path(os.path.realpath(path)).parents or "nameserver 127.0.0.53" in text
