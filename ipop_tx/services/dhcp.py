"""DHCPService: this node's address, leased in the DHT, kept on disk, put on the TAP."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from zope.interface import implementer

from ipop_tx.core import commands as c
from ipop_tx.core import events as e
from ipop_tx.errors import IpopError
from ipop_tx.identity import state as files
from ipop_tx.identity.state import StateDirectory
from ipop_tx.interfaces import IAddressPool
from ipop_tx.log import Logger
from ipop_tx.services.chord import ChordProtocol
from ipop_tx.values import short


@implementer(IAddressPool)
class DHCPService(Service):
    """Claims an address as soon as the node is on the ring, renews it at half its life, tells `address_changed`."""

    _log = Logger()
    name = "dhcp"

    def __init__(
        self,
        protocol: ChordProtocol,
        pool: IPv4Network,
        state: StateDirectory,
        wish: IPv4Address | None,
        hours: float,
        address_changed: Callable[[IPv4Address | None], object],
    ) -> None:
        self.network = pool
        self._protocol = protocol
        self._state = state
        self._wish = wish
        self._ttl = hours * 3600
        self._address_changed = address_changed
        protocol.on(e.LeaseGained, self._gained)
        protocol.on(e.LeaseLost, self._lost)
        protocol.on(e.LeaseContested, self._contested)

    def startService(self) -> None:
        """Begin to ask for an address: the one on disk first."""
        Service.startService(self)
        held = self._held()
        self._protocol.submit(c.KeepLease(held.packed if held else None, self._wish.packed if self._wish else None, self._ttl))

    def _held(self) -> IPv4Address | None:
        stored = self._state.read_json(files.LEASE)
        return IPv4Address(stored["address"]) if isinstance(stored, dict) and stored.get("address") else None

    def claim(self, wish: IPv4Address | None = None) -> Deferred[IPv4Address]:
        """Lease an address now."""
        return self._protocol.submit(c.ClaimLease(wish.packed if wish else None)).addCallback(IPv4Address)

    def renew(self) -> Deferred[IPv4Address]:
        """Extend the lease now."""
        return self._protocol.submit(c.RenewLease()).addCallback(IPv4Address)

    def release(self) -> Deferred[None]:
        """Give the address back."""
        return self._protocol.submit(c.ReleaseLease())

    def _gained(self, event: e.LeaseGained) -> None:
        if event.holder:
            return
        address = IPv4Address(event.address)
        self._log.info("lease_gained address={address}", address=str(address))
        self._remember(str(address))
        self._address_changed(address)

    def _lost(self, event: e.LeaseLost) -> None:
        if event.holder:
            return
        self._log.warn("lease_lost address={address} reason={reason}", address=str(IPv4Address(event.address)), reason=event.reason)
        self._remember("")
        self._address_changed(None)

    def _contested(self, event: e.LeaseContested) -> None:
        self._log.warn("lease_contested address={address} ident={ident}", address=str(IPv4Address(event.address)), ident=short(event.ident))

    def _remember(self, address: str) -> None:
        """The lease is safe in the DHT; without the file the node only asks in another order next time."""
        try:
            self._state.write_json(files.LEASE, {"address": address})
        except IpopError as error:
            self._log.error("lease_unsaved reason={reason}", reason=str(error))
