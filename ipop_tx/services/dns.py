"""DNSService: a name server of this node's own, of which the system's resolver knows for as long as it runs."""

from __future__ import annotations

import os
from collections.abc import Callable
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.task import LoopingCall

from ipop_tx.config.sections import DnsSection
from ipop_tx.errors import EnvironmentProblem, IpopError, PermissionProblem
from ipop_tx.log import Logger
from ipop_tx.services.hostdns import ByResolved, HostDns, host_dns
from ipop_tx.services.ports import why_taken
from ipop_tx.services.resolvconf import ResolvConf
from ipop_tx.values import Network

AGAIN = 30.0
"""Seconds between looks whether the system still knows of us."""
SOON = 3.0
"""The same once after it did not: root may be about to tell it for us."""

Own = Callable[[], tuple[str, IPv4Address | None, bytes]]
"""This node's name, address and ident."""

_log = Logger()


class DNSService(Service):
    """Answers at `dns.listen`, and has the system's resolver ask there, until it stops; what a killed daemon left there goes at the start.

    `resolve` is `DHTService.resolve`. Nothing that goes wrong here stops the node: `health` tells it.
    """

    name = "dns"

    def __init__(
        self,
        reactor: Any,
        section: DnsSection,
        network: Network,
        interface: str,
        resolve: Callable[[str], Deferred[Any]],
        own: Own,
        bell: Path | None = None,
    ) -> None:
        """`bell` is a file to be written when somebody else must tell the system, since we are no root: a service manager watches it."""
        self._reactor = reactor
        self._section = section
        self._network = network
        self._resolve, self._own = resolve, own
        self._file = ResolvConf(section.resolv_conf, network.name)
        self._interface = interface
        self._host: HostDns | None = None
        self._ports: list[Any] = []
        self._again = LoopingCall(self._put)
        self._again.clock = reactor
        self._bell = bell
        self._rung = False
        self.problem = ""
        """Why names are not answered, or not asked of us, in a sentence."""

    def startService(self) -> None:
        """Listen, then tell the system."""
        super().startService()
        try:
            left = self._file.take_back()
        except PermissionProblem:  # we are no root: what an earlier life has left there is right for this one, or root tells it anew
            left = False
        except EnvironmentProblem as error:
            left = False
            if self._section.listen is not None:
                self.problem = str(error)
        if left:
            _log.info("dns_restored file={file}", file=self._file.path)
        if self._section.listen is not None and not self.problem:
            self._listen(self._section.listen)

    def _listen(self, at: tuple[str, int]) -> None:
        """Twisted's names are imported here: a node without DNS does without them."""
        from twisted.names.dns import DNSDatagramProtocol

        from ipop_tx.services.dnszone import Server, Zone

        self._host = host_dns(self._reactor, self._section, self._network, self._interface)
        zone = Zone(self._network, self._resolve, self._own, self._reactor)
        upstream = [(server, 53) for server in (self._host.upstream() if self._host else ())]
        server = Server(zone, upstream, self._reactor)
        host, port = at
        try:
            self._ports.append(self._reactor.listenTCP(port, server, interface=host))
            self._ports.append(self._reactor.listenUDP(self._ports[0].getHost().port, DNSDatagramProtocol(server), interface=host))
        except CannotListenError as error:
            self._close()
            self.problem = f"names are not answered: port {port} of {host} cannot be used ({why_taken(error)}): choose another dns.listen"
            return
        _log.info("dns_listening host={host} port={port}", host=host, port=self.port)
        if self._host is not None:
            self._again.start(AGAIN)

    @property
    def port(self) -> int:
        """Where it listens, 0 for nowhere."""
        return int(self._ports[0].getHost().port) if self._ports else 0

    @property
    def host(self) -> str:
        """The address at which it is to be asked."""
        return self._section.listen[0] if self._section.listen is not None else ""

    @property
    def file(self) -> str:
        """Where the C library looks for name servers."""
        return str(self._file.path)

    def is_asked(self) -> bool:
        """Whether the system's resolver knows of us: systemd-resolved has been told, or resolv.conf names us."""
        if isinstance(self._host, ByResolved):
            return True
        try:
            return self._file.names(self.host)
        except EnvironmentProblem:
            return False

    def _put(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self._tell())

    async def _tell(self) -> None:
        assert self._host is not None
        try:
            await self._host.put()
        except IpopError as error:
            if not self.problem:
                _log.warn("dns_not_told reason={reason}", reason=str(error))
            self.problem = f"programs of this machine do not ask us for names: {error}"
            self._rung = not self._rung and self._ring()
        else:
            self.problem, self._rung = "", False
        self._again.interval = SOON if self._rung else AGAIN

    def _ring(self) -> bool:
        """Have root tell for us: gives whether there is hope. Once, then again when it did not help for a while."""
        if self._bell is None or os.geteuid() == 0:
            return False
        try:
            self._bell.write_bytes(b"")
        except OSError:
            return False
        return True

    async def reconfigure(self, section: DnsSection) -> None:
        """Go on with another section."""
        await self.stopService()
        self.problem = ""
        self._section, self._host = section, None
        self._file = ResolvConf(section.resolv_conf, self._network.name)
        if self.parent is None or self.parent.running:  # the node may have been stopped meanwhile
            self.startService()

    def look(self) -> None:
        """See at once whether the system still knows of us: the interface is another one."""
        if self._again.running:
            self._again.reset()
            self._put()

    def health(self) -> list[str]:
        """What does not work, a sentence each."""
        return [self.problem] if self.problem else []

    def stopService(self) -> Deferred[None]:
        """Have the system forget us first, then answer no more."""
        super().stopService()
        done: Deferred[None] = Deferred.fromCoroutine(self._stop())
        return done

    async def _stop(self) -> None:
        if self._again.running:
            self._again.stop()
            assert self._host is not None
            try:
                await self._host.take_back()
            except PermissionProblem:
                _log.debug("dns_left_to_root")
            except IpopError as error:
                _log.warn("dns_not_restored reason={reason}", reason=str(error))
        await self._close()

    def _close(self) -> Deferred[Any]:
        ports, self._ports = self._ports, []
        return gatherResults([maybeDeferred(port.stopListening) for port in ports])
