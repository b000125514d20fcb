"""The keys of node.toml: what each means, and how it is read.

A new key is a field of its section, a line in `READERS`, and one in conf/node.toml; one that a running node takes stands in `LIVE` too.
"""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Any

import msgspec

from ipop_tx.config import readers
from ipop_tx.values import Endpoint, Proxy, Quota

DEFAULT_PATH = Path("/etc/ipop/node.toml")
DEFAULT_SOCKET = Path("/run/ipop/control.sock")


class NodeSection(msgspec.Struct, frozen=True):
    """`[node]`: who this node is and whom it asks first."""

    state: Path
    """Directory of key, certificate, lease and replicas; written by `ipop network create` and `ipop join`."""
    bootstrap: tuple[Endpoint, ...] = ()


class TlsSection(msgspec.Struct, frozen=True):
    """`[listen.tls]`: TLS over TCP, for peers to whom no UDP passes."""

    host: str = "0.0.0.0"
    port: int | None = None
    """Where to listen, 0 for any free port; None, which is how it is without the key, not to listen."""
    proxy: Proxy | bool | None = None
    """For connections that this node makes. None for the one that the environment names, False for none at all."""
    rate_mbit: float = 0.0
    """Mbit/s that are taken from each member; 0: as many as come."""
    connections: int = 256
    """Most connections of others at a time."""


class ListenSection(msgspec.Struct, frozen=True):
    """`[listen]`: where other nodes reach this one."""

    udp: Endpoint = Endpoint("udp", "0.0.0.0", 4500)
    """Host and port to bind; port 0 lets the system choose."""
    advertise: tuple[Endpoint, ...] = ()
    tls: TlsSection = TlsSection()


class TapSection(msgspec.Struct, frozen=True):
    """`[tap]`: the network interface that programs see."""

    enabled: bool = True
    name: str = "ipop0"
    mtu: int | None = None
    """Largest IP packet, in bytes; None, in the file "auto", for as large as fits this machine's interfaces."""
    bridge: str | None = None
    """An existing bridge to put the interface into; then that has the node's addresses."""
    shield: bool = True
    """Whether those addresses are answered there only, and not on the machine's other interfaces."""


class LeaseSection(msgspec.Struct, frozen=True):
    """`[lease]`: the IPv4 address of this node."""

    address: ipaddress.IPv4Address | None = None
    """A wish; None takes the one held before, or the first free one."""
    hours: float = 24


class DhcpSection(msgspec.Struct, frozen=True):
    """`[dhcp]`: the guests behind this node: what speaks DHCP on the TAP or on its bridge."""

    guests: int = 0
    """How many are served."""
    hours: float = 1
    """For how long a guest may use its address without asking again."""
    dns: tuple[ipaddress.IPv4Address, ...] = ()
    domain: str | None = None
    router: ipaddress.IPv4Address | None = None
    routes: tuple[tuple[ipaddress.IPv4Network, ipaddress.IPv4Address], ...] = ()
    """Networks, and the address by which each is reached."""


class DhtSection(msgspec.Struct, frozen=True):
    """`[dht]`: what this node keeps of the DHT, were it to keep all of it; it keeps its shards' part."""

    member_registers: int = Quota().registers
    """Registers that one member may have."""
    member_megabytes: int = Quota().bytes >> 20
    """What one member may fill."""
    megabytes: int = Quota().total >> 20
    """What all members together may fill."""

    @property
    def quota(self) -> Quota:
        """The same in bytes."""
        return Quota(self.member_registers, self.member_megabytes << 20, self.megabytes << 20)


class NatSection(msgspec.Struct, frozen=True):
    """`[nat]`: the router before this node."""

    port_mapping: bool = True
    """Whether to ask it to lead our UDP port here: PCP, NAT-PMP, UPnP-IGD."""


class TorSection(msgspec.Struct, frozen=True):
    """`[tor]`: whether and how Tor is used."""

    policy: str = "no-tor"
    """One of `readers.TOR_POLICIES`."""
    control: str | None = None
    """The control port of a tor that runs, `unix:PATH` or `HOST:PORT`; None: the node starts one."""
    password: str = ""
    binary: str = "tor"
    torrc: Path | None = None
    """More lines for the tor that the node starts."""
    port: int = 4500
    """Of the onion service."""


class DnsSection(msgspec.Struct, frozen=True):
    """`[dns]`: names of the network for the programs of this machine."""

    listen: tuple[str, int] | None = None
    """Address and port of this machine at which names are answered; None, which is how it is without the key, for none."""
    system: str = "auto"
    """Which resolver of the system is told of it, one of `readers.RESOLVERS`."""
    search: bool = True
    """Whether a name of one word is looked for in the network too."""
    resolv_conf: Path = Path("/etc/resolv.conf")


class MetricsSection(msgspec.Struct, frozen=True):
    """`[metrics]`: what the daemon counts, for Prometheus."""

    listen: tuple[str, int] | None = None
    """Address and port of this machine at which `GET /metrics` is answered; None for none."""


class FlowsSection(msgspec.Struct, frozen=True):
    """`[flows]`: the log of what has passed between this node and others."""

    log: bool = True
    entries: int = 100000
    """Rows that are kept on disk, the newest; about 100 bytes each."""


class DaemonSection(msgspec.Struct, frozen=True):
    """`[daemon]`: what the daemon is to its machine."""

    user: str | None = None
    """Whom a daemon that root starts becomes; None: it stays root, with few capabilities."""


class ControlSection(msgspec.Struct, frozen=True):
    """`[control]`: how `ipop` talks to the daemon."""

    socket: Path = DEFAULT_SOCKET
    group: str | None = None
    """Whose members may read beside root and the daemon's user; None: nobody."""


class LogSection(msgspec.Struct, frozen=True):
    """`[log]`: what the daemon writes about itself."""

    level: str = "info"


class NetworkSection(msgspec.Struct, frozen=True):
    """`[network]`: a guard against starting with the state of another network."""

    name: str | None = None


class Config(msgspec.Struct, frozen=True):
    """All of node.toml, checked. `path` is the file it came from, for messages."""

    path: Path
    node: NodeSection
    listen: ListenSection = ListenSection()
    tap: TapSection = TapSection()
    lease: LeaseSection = LeaseSection()
    dhcp: DhcpSection = DhcpSection()
    dht: DhtSection = DhtSection()
    nat: NatSection = NatSection()
    tor: TorSection = TorSection()
    dns: DnsSection = DnsSection()
    metrics: MetricsSection = MetricsSection()
    flows: FlowsSection = FlowsSection()
    daemon: DaemonSection = DaemonSection()
    control: ControlSection = ControlSection()
    log: LogSection = LogSection()
    network: NetworkSection = NetworkSection()
    transports: dict[str, dict[str, Any]] = {}
    """The tables `[transports.NAME]`, for the transports of other packages: what they mean, only these know."""


SECTIONS: dict[str, type[msgspec.Struct]] = {
    "node": NodeSection,
    "listen": ListenSection,
    "listen.tls": TlsSection,
    "tap": TapSection,
    "lease": LeaseSection,
    "dhcp": DhcpSection,
    "dht": DhtSection,
    "nat": NatSection,
    "tor": TorSection,
    "dns": DnsSection,
    "metrics": MetricsSection,
    "flows": FlowsSection,
    "daemon": DaemonSection,
    "control": ControlSection,
    "log": LogSection,
    "network": NetworkSection,
}

LIVE = frozenset({"node.bootstrap", "listen.advertise", "dhcp", "dns", "metrics", "log.level", "network.name"})
"""Keys, and sections with all their keys, that a running node takes (`ipop reload`); all others wait for a restart."""

READERS: dict[str, readers.Reader] = {
    "node.state": readers.path,
    "node.bootstrap": readers.endpoints,
    "listen.udp": readers.bind_address,
    "listen.advertise": readers.endpoints,
    "listen.tls.host": readers.host,
    "listen.tls.port": readers.whole(0, 65535),
    "listen.tls.proxy": readers.proxy,
    "listen.tls.rate_mbit": readers.rate,
    "listen.tls.connections": readers.whole(1, 10000),
    "tap.enabled": readers.flag,
    "tap.name": readers.interface_name,
    "tap.mtu": readers.mtu,
    "tap.bridge": readers.interface_name,
    "tap.shield": readers.flag,
    "lease.address": readers.address,
    "lease.hours": readers.hours,
    "dhcp.guests": readers.whole(0, 1000),
    "dhcp.hours": readers.hours,
    "dhcp.dns": readers.name_servers,
    "dhcp.domain": readers.domain,
    "dhcp.router": readers.address,
    "dhcp.routes": readers.routes,
    "dht.member_registers": readers.whole(1, 2**30),
    "dht.member_megabytes": readers.whole(1, 2**30),
    "dht.megabytes": readers.whole(1, 2**30),
    "nat.port_mapping": readers.flag,
    "tor.policy": readers.one_of(*readers.TOR_POLICIES),
    "tor.control": readers.tor_control,
    "tor.password": readers.text,
    "tor.binary": readers.text,
    "tor.torrc": readers.path,
    "tor.port": readers.whole(1, 65535),
    "dns.listen": readers.own_port,
    "dns.system": readers.one_of(*readers.RESOLVERS),
    "dns.search": readers.flag,
    "dns.resolv_conf": readers.path,
    "metrics.listen": readers.own_port,
    "flows.log": readers.flag,
    "flows.entries": readers.whole(1, 10**8),
    "daemon.user": readers.text,
    "control.socket": readers.socket_path,
    "control.group": readers.text,
    "log.level": readers.one_of(*readers.LOG_LEVELS),
    "network.name": readers.text,
}
