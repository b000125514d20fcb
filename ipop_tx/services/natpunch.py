"""NATPunchService: what this machine can be reached under, kept up to date, and attempts at direct paths."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

from twisted.application.service import Service
from zope.interface import implementer

from ipop_tx.core import commands as c
from ipop_tx.core import events as e
from ipop_tx.interfaces import IPuncher, ITransport
from ipop_tx.log import Logger
from ipop_tx.services.chord import ChordProtocol
from ipop_tx.services.steadily import steadily
from ipop_tx.values import Endpoint, Ident

LOOK_EVERY = 5.0
"""Seconds between looks at the machine's own addresses."""


@implementer(IPuncher)
class NATPunchService(Service):
    """Tells the node its endpoints, and tells again when an interface comes, goes or changes."""

    _log = Logger()
    name = "natpunch"

    def __init__(
        self,
        reactor: Any,
        protocol: ChordProtocol,
        transport: ITransport,
        advertise: tuple[Endpoint, ...],
        carries: tuple[tuple[str, int], ...] = (("udp", 0),),
    ) -> None:
        """`carries`: see `Transports.carries`."""
        self._protocol = protocol
        self._carries = carries
        self._transport = transport
        self._advertise = advertise
        self._mapped: tuple[Endpoint, ...] = ()
        self._told: tuple[tuple[Endpoint, ...], tuple[Endpoint, ...]] | None = None
        self._look = steadily(reactor, self.look, "endpoints_look")
        protocol.on(e.Observed, self._observed)

    def startService(self) -> None:
        """Look at once, then every few seconds."""
        Service.startService(self)
        self._look.start(LOOK_EVERY)

    def stopService(self) -> None:
        """Stop looking."""
        Service.stopService(self)
        if self._look.running:
            self._look.stop()

    def look(self) -> None:
        """Compare the machine's endpoints with what was told; on a change every relayed link tries again for a direct path."""
        endpoints = tuple(endpoint for endpoint in self._transport.local_endpoints() if not self._is_inner(endpoint))
        mapped = tuple(dict.fromkeys([*self._advertise, *self._mapped]))
        if (endpoints, mapped) != self._told:
            self._told = endpoints, mapped
            self._log.info("endpoints_changed endpoints={endpoints}", endpoints=" ".join(map(str, dict.fromkeys([*mapped, *endpoints]))))
            self._protocol.submit(c.Reachable(endpoints, mapped, self._carries))

    def mapped(self, endpoints: tuple[Endpoint, ...]) -> None:
        """A router leads these here, or no longer any."""
        self._mapped = endpoints
        if self.running:
            self.look()

    def reconfigure(self, advertise: tuple[Endpoint, ...]) -> None:
        """Offer these endpoints besides."""
        self._advertise = advertise
        if self.running:
            self.look()

    def _is_inner(self, endpoint: Endpoint) -> bool:
        """Whether it is reached through the network itself: a bridge has our overlay address beside others."""
        try:
            address = ip_address(endpoint.host)
        except ValueError:
            return False
        network = self._protocol.node.network
        return address in (network.pool if address.version == 4 else network.prefix)

    def candidates(self) -> list[Endpoint]:
        """Our own endpoints and those that peers saw."""
        return self._protocol.node.paths.facts.candidates()

    def punch(self, ident: Ident) -> None:
        """Try now for a direct path to a linked peer."""
        self._protocol.submit(c.Punch(ident)).addErrback(
            lambda failure: self._log.info("punch_failed reason={reason}", reason=str(failure.value))
        )

    def _observed(self, event: e.Observed) -> None:
        self._log.debug("endpoints_observed endpoints={endpoints}", endpoints=" ".join(map(str, self.candidates())))
