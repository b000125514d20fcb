"""PortMapService: asks the router before us to lead our UDP port here, by PCP, NAT-PMP or UPnP-IGD, whichever it speaks."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network, ip_address
from random import Random
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import DatagramProtocol
from twisted.python.failure import Failure

from ipop_tx.errors import EnvironmentProblem
from ipop_tx.interfaces import ITransport
from ipop_tx.log import Logger
from ipop_tx.services.portmapper import AGAIN, Phase, PortMapper
from ipop_tx.services.steadily import steadily
from ipop_tx.services.upnp import Upnp, UpnpMapping
from ipop_tx.transport.gateway import Gateway, default_gateway
from ipop_tx.values import Endpoint
from ipop_tx.wire import portmap as w

LOOK_EVERY = 10.0
"""Seconds between looks at the default route."""
STOPPING = 3.0
"""Seconds that a router has to take a UPnP mapping away when the node stops."""


class _Conversation(DatagramProtocol):
    """With one gateway. The socket is not connected: an error that ICMP brings back would make the reactor close it."""

    noisy = False

    def __init__(self, gateway: Gateway, received: Callable[[bytes], object]) -> None:
        self._server = str(gateway.address), w.SERVER_PORT
        self._received = received

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        if addr == self._server:
            self._received(datagram)

    def send(self, datagram: bytes) -> None:
        """To the gateway; what cannot be sent is lost."""
        if self.transport is not None:
            try:
                self.transport.write(datagram, self._server)
            except OSError:
                return


class _Announcements(DatagramProtocol):
    """What gateways say to everybody when they have restarted."""

    noisy = False

    def __init__(self, heard: Callable[[str, bytes], object]) -> None:
        self._heard = heard

    def datagramReceived(self, datagram: bytes, addr: tuple[str, int]) -> None:
        self._heard(addr[0], datagram)


class PortMapService(Service):
    """One mapping for the port of `transport`, for as long as the service runs. `changed` is told the endpoints that lead here by it.

    Gateways over interfaces in `ignore`, and those inside of the overlay's own `pool`, are not asked. `nonce` (12 bytes) is nobody else's,
    and the same after a restart, so that what is left after a `kill -9` can be taken up again.
    """

    _log = Logger()
    name = "portmap"

    def __init__(
        self,
        reactor: Any,
        transport: ITransport,
        ignore: list[str],
        changed: Callable[[tuple[Endpoint, ...]], object],
        nonce: bytes,
        pool: IPv4Network,
        gateway: Callable[[list[str], IPv4Network], Gateway | None] = default_gateway,
    ) -> None:
        self._reactor = reactor
        self._transport = transport
        self._ignore = ignore
        self._changed = changed
        self._nonce = nonce
        self._pool = pool
        self._find = gateway
        self._look = steadily(reactor, self.look, "portmap_look")
        self._place: tuple[Gateway, int] | None = None
        self._mapper: PortMapper | None = None
        self._ports: list[Any] = []
        self._upnp: Upnp | None = None
        self._upnp_due = 0.0
        self._upnp_speaks = False
        self._upnp_mapping: UpnpMapping | None = None
        self._told: tuple[Endpoint, ...] = ()

    # --- life --------------------------------------------------------------------------------

    def startService(self) -> None:
        """Look for a gateway at once, then every few seconds."""
        Service.startService(self)
        self._look.start(LOOK_EVERY)

    def stopService(self) -> Deferred[Any]:
        """Give the mapping back."""
        Service.stopService(self)
        if self._look.running:
            self._look.stop()
        return self._leave()

    def look(self) -> None:
        """See whether there is another gateway, and whether it is time to ask by UPnP."""
        gateway = self._find(self._ignore, self._pool)
        port = getattr(self._transport, "port", 0)
        place = (gateway, port) if gateway is not None and port and _wants_mapping(gateway.client) and self._is_ours(gateway) else None
        if place != self._place:
            self._leave()
            self._place = place
            if place is not None:
                self._enter(*place)
        mapper = self._mapper
        if mapper is not None and mapper.phase in (Phase.SILENT, Phase.REFUSED) and self._reactor.seconds() >= self._upnp_due:
            self._map_by_upnp()
        elif mapper is not None and mapper.phase is Phase.MAPPED and self._upnp is not None and self._upnp_mapping is not None:
            self._upnp.unmap(self._upnp_mapping.port).addErrback(lambda failure: None)
            self._upnp_mapping = None
            self._tell()

    def _is_ours(self, gateway: Gateway) -> bool:
        """Whether the transport can be reached at the address that we have towards the gateway."""
        return str(gateway.client) in {endpoint.host for endpoint in self._transport.local_endpoints()}

    def _enter(self, gateway: Gateway, port: int) -> None:
        conversation = _Conversation(gateway, lambda data: self._mapper.received(data) if self._mapper else None)
        try:
            self._ports.append(self._reactor.listenUDP(0, conversation, interface=str(gateway.client)))
        except CannotListenError as error:
            self._log.warn("portmap_failed reason={reason}", reason=str(error))
            return
        try:
            heard = _Announcements(self._announced)
            self._ports.append(self._reactor.listenMulticast(w.CLIENT_PORT, heard, interface=w.ALL_HOSTS, listenMultiple=True))
        except CannotListenError:
            self._log.debug("portmap_deaf port={port}", port=w.CLIENT_PORT)
        rng = Random(secrets.randbits(64))
        self._upnp, self._upnp_due = Upnp(self._reactor, gateway.client), 0.0
        self._mapper = PortMapper(self._reactor, rng, self._nonce, gateway.client, port, conversation.send, self._tell)
        self._mapper.start()

    def _leave(self) -> Deferred[Any]:
        mapper, upnp, mapping = self._mapper, self._upnp, self._upnp_mapping
        self._mapper = self._upnp = self._upnp_mapping = self._place = None
        self._upnp_speaks = False
        if mapper is not None:
            mapper.stop()
        closing = [port.stopListening() for port in self._ports]
        self._ports = []
        if upnp is not None and mapping is not None:
            unmapped = upnp.unmap(mapping.port).addTimeout(STOPPING, self._reactor)
            closing.append(unmapped.addErrback(lambda failure: None))
        self._tell()
        return DeferredList([one for one in closing if one is not None])

    def _announced(self, host: str, data: bytes) -> None:
        if self._mapper is not None and self._place is not None and host == str(self._place[0].address):
            self._mapper.received(data, announced=True)

    # --- UPnP --------------------------------------------------------------------------------

    def _map_by_upnp(self) -> None:
        """Only where the gateway speaks nothing better: it is slow and says nothing of restarts."""
        upnp, place = self._upnp, self._place
        self._upnp_due = self._reactor.seconds() + AGAIN
        if upnp is None or place is None or not upnp.available:
            return

        def mapped(mapping: UpnpMapping) -> None:
            if self._upnp is not upnp:  # we have left meanwhile
                upnp.unmap(mapping.port).addErrback(lambda failure: None)
                return
            self._upnp_speaks, self._upnp_mapping = True, mapping
            self._upnp_due = self._reactor.seconds() + (min(mapping.lifetime / 2, AGAIN) if mapping.lifetime else AGAIN)
            self._tell()

        def refused(failure: Failure) -> None:
            failure.trap(EnvironmentProblem)
            if self._upnp is upnp and self._upnp_mapping is not None:  # the router may have restarted: search for it anew, soon
                self._upnp_mapping, self._upnp_due = None, self._reactor.seconds() + LOOK_EVERY
                self._tell()
            self._log.debug("upnp_failed reason={reason}", reason=str(failure.value))

        upnp.map(place[1]).addCallbacks(mapped, refused).addErrback(lambda failure: self._log.failure("upnp_broken", failure))

    # --- what is told ------------------------------------------------------------------------

    def endpoints(self) -> tuple[Endpoint, ...]:
        """Those that lead here by a mapping."""
        found = []
        if self._mapper is not None and self._mapper.outer is not None:
            found.append(Endpoint("udp", *self._mapper.outer))
        if self._upnp_mapping is not None and _is_address(self._upnp_mapping.host):
            found.append(Endpoint("udp", self._upnp_mapping.host, self._upnp_mapping.port))
        return tuple(dict.fromkeys(found))

    def _tell(self) -> None:
        endpoints = self.endpoints()
        if endpoints != self._told:
            self._told = endpoints
            self._log.info("port_mapped endpoints={endpoints}", endpoints=" ".join(map(str, endpoints)))
            self._changed(endpoints)

    async def report(self) -> dict[str, Any]:
        """Which protocols the gateway speaks, what it maps, and what it says when it does not. Looks for UPnP anew."""
        upnp = self._upnp
        if upnp is not None and upnp.available:
            found: bool = await upnp.search().addErrback(lambda failure: False)
            self._upnp_speaks = found if self._upnp is upnp else self._upnp_speaks
        mapper, place = self._mapper, self._place
        return {
            "enabled": True,
            "gateway": str(place[0].address) if place else None,
            "protocols": sorted(mapper.speaks if mapper else ()) + (["UPnP-IGD"] if self._upnp_speaks else []),
            "endpoints": [str(endpoint) for endpoint in self.endpoints()],
            "problem": mapper.problem if mapper else "",
        }


def _wants_mapping(client: IPv4Address) -> bool:
    """An address that the whole internet can reach has no NAT before it."""
    return not client.is_global and not client.is_loopback


def _is_address(text: str) -> bool:
    try:
        return not ip_address(text).is_unspecified
    except ValueError:
        return False
