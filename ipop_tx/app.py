"""The composition root: from a configuration to a running node. Read `Node.__init__` first."""

from __future__ import annotations

import os
import secrets
from ipaddress import IPv4Address
from typing import Any

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred
from zope.interface import implementer

from ipop_tx import __version__
from ipop_tx.config import Config, TlsSection, check_against
from ipop_tx.core import events as e
from ipop_tx.core.dht.replica import genesis
from ipop_tx.core.leases.dhcpterms import Terms
from ipop_tx.core.node import Node as CoreNode
from ipop_tx.errors import IpopError, LocalMisuse, StateError
from ipop_tx.forwarding.mtu import inner_mtu
from ipop_tx.identity import state as files
from ipop_tx.identity.authority import Admitter, create_network
from ipop_tx.identity.credentials import Credentials
from ipop_tx.identity.onion import OnionKey
from ipop_tx.identity.state import StateDirectory
from ipop_tx.identity.store import SqliteReplicaStore
from ipop_tx.interfaces import IStatus
from ipop_tx.log import Logger, set_level
from ipop_tx.services.admission import AdmissionService
from ipop_tx.services.admission_routes import AdmissionRoutes
from ipop_tx.services.authority import AuthorityService
from ipop_tx.services.chord import ChordProtocol, ChordService, boot_seconds
from ipop_tx.services.control import ControlService, Route
from ipop_tx.services.dhcp import DHCPService
from ipop_tx.services.dht import DHTService
from ipop_tx.services.dns import DNSService
from ipop_tx.services.explain import Explain
from ipop_tx.services.explain_pair import explain_pair
from ipop_tx.services.flowlog import FlowLogService
from ipop_tx.services.flowstore import FlowStore
from ipop_tx.services.forwarding import ForwardingService
from ipop_tx.services.guests import GuestService
from ipop_tx.services.leases import LeaseRoutes
from ipop_tx.services.logtail import LogTail
from ipop_tx.services.metrics import MetricsService, exposition
from ipop_tx.services.natcheck import NATCheckService
from ipop_tx.services.natpunch import NATPunchService
from ipop_tx.services.netcheck import netcheck
from ipop_tx.services.overlap import overlapping
from ipop_tx.services.peers import PeerCache
from ipop_tx.services.ping import ping, resolve
from ipop_tx.services.portmap import PortMapService
from ipop_tx.services.pump import Pump
from ipop_tx.services.readmission import ReadmissionService
from ipop_tx.services.recovery import Recovery
from ipop_tx.services.registers import RegisterRoutes
from ipop_tx.services.relation import Relations
from ipop_tx.services.reload import Reloading, Taker
from ipop_tx.services.revocation import Revoking
from ipop_tx.services.settings import PolicyService
from ipop_tx.services.sides import SideService
from ipop_tx.services.status import Status
from ipop_tx.services.tap import TapService
from ipop_tx.services.trim import TrimService
from ipop_tx.session.dtls import DtlsSessionFactory
from ipop_tx.transport.interfaces import largest_mtu
from ipop_tx.transport.plugins import foreign_transports
from ipop_tx.transport.proxy import chooser
from ipop_tx.transport.several import Transports
from ipop_tx.transport.tls import TlsSettings, TlsTransport
from ipop_tx.transport.tor import TorSettings, TorTransport
from ipop_tx.transport.udp import UdpTransport
from ipop_tx.values import Network
from ipop_tx.wire import messages as m
from ipop_tx.wire.address import ipv6_of
from ipop_tx.wire.portmap import NONCE_BYTES


@implementer(IStatus)
class Node(MultiService):
    """One node of a network, to be run by `twistd ipop` or put under any other Twisted application.

    `dht` (`IDHT`, `IResolver`), `ring` (`IBroadcast`), `pool` (`IAddressPool`), `puncher` (`IPuncher`) and `status()` (`IStatus`) are
    what an application asks. Everything that can be wrong with configuration or state is found in the constructor, which touches
    nothing; `startService` binds the port, makes the TAP and looks for the ring.
    Raises `ConfigError`, `StateError`, `EnvironmentProblem`.
    """

    _log = Logger()

    def __init__(self, config: Config, reactor: Any = None) -> None:
        super().__init__()
        if reactor is None:
            from twisted.internet import reactor
        self._reactor = reactor
        self.config = config
        self.ends_process = False
        """Whether `ipop leave` ends the process; else only this service stops."""
        self.state = StateDirectory(config.node.state)
        credentials = Credentials.load(self.state)
        network = credentials.network
        admitter = Admitter.load(self.state) if self.state.exists(files.ADMISSION_CERTIFICATE) else None
        check_against(config, network, overlapping(network.pool, [config.tap.name], config.tap.bridge) if config.tap.enabled else None)
        self.reloading = Reloading(config, self._takers(network), lambda new: check_against(new, network))
        # Build everything ...
        self.log = LogTail()
        self.store = SqliteReplicaStore(self.state.path / files.REPLICAS)
        sessions, signer = DtlsSessionFactory(credentials), credentials.signer()
        core = CoreNode(
            credentials.peer,
            network,
            secrets.SystemRandom(),
            sessions,
            signer,
            self.store,
            flags_of(admitter),
            now=boot_seconds(),
            quota=config.dht.quota,
        )
        self.core = core
        self.store.close()  # twistd forks before it starts us; a database must not be carried along
        self.protocol = ChordProtocol(reactor, core, self.store, boot_seconds)
        pump = Pump(reactor)
        udp = UdpTransport(pump, config.listen.udp.host, config.listen.udp.port, [config.tap.name])
        tls = TlsTransport(pump, credentials, tls_settings(config.listen.tls), [config.tap.name])
        hidden = config.tor.policy == "tor-only"
        credentials.on_change += [sessions.refresh, tls.contexts.refresh, lambda: signer.show(credentials.member_chain)]
        onion = [TorTransport(reactor, credentials, tor_settings(config), OnionKey(self.state))] if config.tor.policy != "no-tor" else []
        credentials.on_change += [tor.contexts.refresh for tor in onion]
        open_ways = [] if hidden else [udp, tls, *foreign_transports(reactor, config.transports)]
        transport = Transports(*open_ways, *onion)
        self.ring = ChordService(self.protocol, transport, lambda: self.peers.endpoints())
        self.peers = PeerCache(reactor, self.protocol, self.state, config.node.bootstrap)
        self.puncher = NATPunchService(reactor, self.protocol, transport, config.listen.advertise, transport.carries())
        self.natcheck = NATCheckService(reactor, self.protocol) if not hidden else None
        self.sides = SideService(reactor, pump, self.protocol, udp) if not hidden else None
        nonce = credentials.derive(b"port mapping")[:NONCE_BYTES]
        portmap = PortMapService(reactor, udp, [config.tap.name], self.puncher.mapped, nonce, network.pool)
        self.portmap = portmap if config.nat.port_mapping and not hidden else None
        self.dht = DHTService(self.protocol)
        bell = config.control.socket.with_name(f"{config.path.stem}.dns")
        self.dns = DNSService(reactor, config.dns, network, config.tap.name, self.dht.resolve, self._own, bell)
        lease = config.lease
        self.pool = DHCPService(self.protocol, network.pool, self.state, lease.address, lease.hours, self._address_changed)
        tap = config.tap
        self.tap = TapService(pump, tap.name, tap_mtu(config), network, core.ident, tap.bridge, tap.shield) if tap.enabled else None
        self.forwarding = ForwardingService(reactor, self.protocol, self.tap, transport)
        self.guests: GuestService | None = None
        if self.tap is not None:
            terms = terms_of(config, network, credentials.peer.name, self.tap)
            self.guests = GuestService(reactor, self.protocol, self.state, terms, self.forwarding.plane, self.tap)
        self.admission = AdmissionService(self.protocol, credentials, admitter, self.puncher.candidates, self.state)
        key = admitter.authority_key if admitter is not None else None
        self.authority = AuthorityService(self.protocol, self.state, credentials.trust, key, self.admission.use)
        pen = lambda: self.authority.key  # noqa: E731
        self.revoking = Revoking(self.protocol, self.state, pen, [tls, *onion])
        credentials.is_out, credentials.may_admit = core.revocations.is_out, core.revocations.may_admit
        may_admit = self.admission.readmit if admitter is not None else None
        self.readmission = ReadmissionService(reactor, self.protocol, credentials, self.state, self.peers.endpoints, may_admit)
        self.protocol.on(e.CharterAdopted, lambda event: self.readmission.look_now())
        self.admission.on_appointed = self._list_appointed
        plane = self.forwarding.plane
        self.policy = PolicyService(self.protocol, plane, self.state, pen)
        flows = FlowStore(self.state.path / files.FLOWS, config.flows.entries) if tap.enabled and config.flows.log else None
        self.flowlog = FlowLogService(reactor, self.protocol, plane, flows, pen)
        self.control = ControlService(config.control.socket, self._routes(), reactor=reactor, group=config.control.group)
        trim = TrimService(reactor)
        self.metrics = MetricsService(reactor, config.metrics.listen, lambda: self._status)
        others = self.dns, self.metrics, self.revoking, self.readmission, self.admission, self.policy, self.flowlog, self.reloading
        self._status = Status(self.protocol, plane, self.tap, udp, transport, self.guests, others, self.policy.summary)
        relations = Relations(self.protocol, plane, self.tap, self.policy, self.state)
        parts = (self.dns, relations, self._status, str(self.state.path), config.listen.udp.port)
        self.explain = Explain(reactor, self.protocol, plane, self.tap, *parts)
        self._recovery = Recovery(self.protocol, pen, self._status.name_of)
        # ... then wire everything. Services start in this order and stop in the reverse one.
        self.ring.receiver = plane
        if self.sides is not None:
            self.sides.receiver, transport.aside = plane, self.sides.carrier
        if self.tap is not None:
            self.tap.receiver, self.tap.made_again = plane, self._tap_made_again
            self.tap.configure(None, ipv6_of(network.prefix, core.ident))
        carrying = self.control, self.tap, self.forwarding, self.ring, self.sides, self.puncher, self.natcheck, self.portmap
        trust = self.admission, self.readmission, self.peers
        rest = self.dht, self.pool, self.guests, *trust, self.dns, self.policy, self.flowlog, self.metrics, trim
        for service in (*carrying, *rest):
            if service is not None:
                service.setServiceParent(self)

    # --- life --------------------------------------------------------------------------------

    def startService(self) -> None:
        """Take the state directory, then start the parts; if one fails, what was started is stopped."""
        self.state.lock()
        self.log.start()
        try:
            self.store.open()
            super().startService()
        except IpopError:
            self.running = 1
            for service in self:
                if service.running:
                    service.stopService()
            self.store.close()
            self.state.unlock()
            raise
        self._log.info("node_started name={name} ident={ident}", name=self.core.peer.name, ident=self.core.ident.hex())

    def stopService(self) -> Deferred[None]:
        """Stop the parts. The lease is kept, so that the node comes back as itself; `leave` gives it up."""
        done: Deferred[None] = Deferred.fromCoroutine(self._stop())
        return done

    async def _stop(self) -> None:
        await super().stopService()
        self.log.stop()
        self.store.close()
        self.state.unlock()

    async def leave(self) -> int:
        """Give the address back, hand over registers, tell the neighbours; gives how many shards could not be handed over."""
        try:
            await self.pool.release()
        except IpopError as error:
            self._log.warn("lease_unreleased reason={reason}", reason=str(error))
        return await self.ring.leave()

    def _address_changed(self, address: IPv4Address | None) -> None:
        if self.tap is not None:
            self.forwarding.plane.configure(address)
            self.tap.configure(address, ipv6_of(self.core.network.prefix, self.core.ident))
        if self.guests is not None:
            self.guests.address_changed(address)

    def _tap_made_again(self) -> None:
        """What was bound to the interface that is gone."""
        if self.guests is not None:
            self.guests.address_changed(self._own()[1])
        self.dns.look()

    def _list_appointed(self) -> None:
        """Under a charter only those count whom it lists."""
        if self.core.charters.number:
            listed = Deferred.fromCoroutine(self.authority.renew())
            listed.addErrback(lambda failure: self._log.failure("appointment_not_listed", failure))

    def _own(self) -> tuple[str, IPv4Address | None, bytes]:
        address = self.core.leases.own.address
        return self.core.peer.name, IPv4Address(address) if address else None, self.core.ident

    # --- what may be asked -------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """Self, peers, health, counters: the contents of `ipop status --json`."""
        return self._status.status()

    def condition(self) -> str:
        """How this node is, in a line."""
        address, links = self._own()[1], sum(link.up for link in self.core.links)
        problems = self._status.health()
        members = "1 member" if links == 1 else f"{links} members"
        return f"{address or 'no address yet'}, linked to {members}" + (f"; {problems[0]}" if problems else "")

    def _routes(self) -> dict[str, Route]:
        return {
            "GET /status": lambda arguments: self.status(),
            "GET /version": lambda arguments: {"version": __version__, "network": self.core.network.name, "name": self.core.peer.name},
            "GET /metrics": lambda arguments: {"text": exposition(self._status).decode()},
            "POST /ping": lambda arguments: Deferred.fromCoroutine(ping(self.protocol, self._status, _text(arguments, "target"))),
            "POST /resolve": lambda arguments: Deferred.fromCoroutine(resolve(self.protocol, _text(arguments, "target"))),
            "POST /log": self.log.told,
            **LeaseRoutes(self.protocol, self.guests).routes(),
            "POST /explain": lambda arguments: Deferred.fromCoroutine(self._explain(arguments)),
            "POST /netcheck": lambda arguments: Deferred.fromCoroutine(self._netcheck()),
            "POST /recover": lambda arguments: Deferred.fromCoroutine(self._recovery.recover(arguments.get("confirm") is True)),
            "GET /revocations": lambda arguments: self.revoking.told(),
            "POST /revoke": lambda arguments: Deferred.fromCoroutine(self._revoke(arguments)),
            "POST /reload": lambda arguments: self.reloading.reload(),
            "POST /withdraw": lambda arguments: Deferred.fromCoroutine(
                self.revoking.withdraw(_text(arguments, "target"), arguments.get("confirm") is True)
            ),
            "POST /leave": lambda arguments: Deferred.fromCoroutine(self._leave_and_exit()),
            **AdmissionRoutes(self.admission, self.policy.change).routes(),
            **self.authority.routes(),
            **self.policy.routes(),
            **self.flowlog.routes(),
            **RegisterRoutes(self.dht, self.core.network, self.core.ident, lambda ident: self._status.name_of(ident)).routes(),
        }

    def _takers(self, network: Network) -> dict[str, Taker]:
        """Who takes what of node.toml while the node runs."""

        def terms(new: Config) -> None:
            if self.guests is not None and self.tap is not None:
                self.guests.reconfigure(terms_of(new, network, self.core.peer.name, self.tap))

        return {
            "log.level": lambda new: set_level(new.log.level),
            "network.name": lambda new: None,  # a guard, and it has been looked at
            "node.bootstrap": lambda new: self.peers.reconfigure(new.node.bootstrap),
            "listen.advertise": lambda new: self.puncher.reconfigure(new.listen.advertise),
            "dhcp": terms,
            "dns": lambda new: Deferred.fromCoroutine(self.dns.reconfigure(new.dns)),
            "metrics": lambda new: Deferred.fromCoroutine(self.metrics.reconfigure(new.metrics.listen)),
        }

    async def _revoke(self, arguments: dict[str, Any]) -> dict[str, Any]:
        target, key = arguments.get("target") or "", arguments.get("key") or ""
        if not isinstance(target, str) or not isinstance(key, str) or bool(target) == bool(key):
            raise LocalMisuse("revoke takes a target or a key, as a text", "name a node, or give a key's digest")
        return await self.revoking.revoke(target, key, arguments.get("confirm") is True)

    async def _explain(self, arguments: dict[str, Any]) -> dict[str, Any]:
        target, service = _text(arguments, "target"), arguments.get("service") or "icmp/echo-request"
        if not isinstance(service, str):
            raise LocalMisuse("service is not a text", "ask for instance about tcp/22")
        source = arguments.get("source") or self.core.peer.name
        if not isinstance(source, str):
            raise LocalMisuse("source is not a text", "name a node, or leave it out")
        if source in (self.core.peer.name, self.core.ident.hex(), str(self._own()[1])):
            return await self.explain.explain(target, service, arguments.get("probe") is True)
        return await explain_pair(self.explain, self.policy, source, target, service)

    async def _netcheck(self) -> dict[str, Any]:
        if self.natcheck is None:
            raise LocalMisuse("this node speaks by Tor only, so its NAT does not matter", "ipop status says how Tor is")
        return await netcheck(self.protocol, self.natcheck, self.portmap)

    async def _leave_and_exit(self) -> dict[str, Any]:
        """Leave, answer, and end the daemon once the answer is out. Under another application only this node stops."""
        kept = await self.leave()
        self._reactor.callLater(0.2, self._reactor.stop if self.ends_process else self.disownServiceParent)
        return {"kept": kept, "of": self.core.replicas.count}


def _text(arguments: dict[str, Any], key: str) -> str:
    value = arguments.get(key)
    if not isinstance(value, str) or not value:
        raise LocalMisuse(f"{key} is missing", "name a node or an address")
    return value


def tap_mtu(config: Config) -> int:
    """The MTU of the TAP: as configured, else as large as this machine's interfaces make sensible."""
    ours = [name for name in (config.tap.name, config.tap.bridge) if name is not None]
    return config.tap.mtu or inner_mtu(largest_mtu(ours), ":" in config.listen.udp.host)


def terms_of(config: Config, network: Network, name: str, tap: TapService) -> Terms:
    """What guests on the TAP are told."""
    dhcp = config.dhcp
    seconds, ttl = dhcp.hours * 3600, config.lease.hours * 3600
    return Terms(network.pool, tap.mac, name, dhcp.guests, seconds, ttl, tap.mtu, dhcp.dns, dhcp.domain or "", dhcp.router, dhcp.routes)


def tls_settings(section: TlsSection) -> TlsSettings:
    """What the configuration says of TLS."""
    return TlsSettings(section.host, section.port, chooser(section.proxy, os.environ), section.rate_mbit * 125000, section.connections)


def tor_settings(config: Config) -> TorSettings:
    """What the configuration says of Tor."""
    tor = config.tor
    return TorSettings(tor.control, tor.password, tor.binary, tor.torrc, config.node.state.absolute() / files.TOR_DATA, tor.port)


def flags_of(admitter: Admitter | None) -> int:
    """What `Hello` says of our rights."""
    if admitter is None:
        return 0
    return m.ADMITS | (m.APPOINTS if admitter.authority_key is not None else 0)


def found_network(state: StateDirectory, name: str, pool: Any, node_name: str) -> Network:
    """Create a network with this machine as its authority, first member and only replica. Raises `StateError`, `LocalMisuse`."""
    network = create_network(state, name, pool, node_name)
    path = state.path / files.REPLICAS
    if path.exists():
        raise StateError(f"{path} belongs to another network", "remove it")
    store = SqliteReplicaStore(path)
    try:
        for row in genesis(Credentials.load(state).peer.ident, network.shards):
            store.put(*row)
        store.commit()
    finally:
        store.close()
    return network
