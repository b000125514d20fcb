"""Reads node.toml into frozen values, or says in one line which file, key and value is wrong and what mends it."""

from __future__ import annotations

import ipaddress
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from ipop_tx import readers
from ipop_tx.errors import ConfigError, LocalMisuse
from ipop_tx.readers import Reader as _Reader
from ipop_tx.readers import Wrong as _Wrong
from ipop_tx.readers import kind as _kind
from ipop_tx.readers import text as _text
from ipop_tx.values import Endpoint, Network, Proxy, Quota

DEFAULT_PATH = Path("/etc/ipop/node.toml")
DEFAULT_SOCKET = Path("/run/ipop/control.sock")

IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

LOG_LEVELS = ("debug", "info", "warn", "error", "critical")
MTU_LEAST, MTU_MOST = 1280, 9000  # IPv6 asks for 1280 (RFC 8200, section 5)
GUESTS_MOST = 1000
LISTED_MOST = 8  # what a DHCP message that every client takes has room for
_SOCKET_PATH_BYTES = 107  # sun_path holds 108 with its closing zero: unix(7)
_INTERFACE_NAME_BYTES = 15  # IFNAMSIZ holds 16 with its closing zero: netdevice(7)


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


class ControlSection(msgspec.Struct, frozen=True):
    """`[control]`: how `ipop` talks to the daemon."""

    socket: Path = DEFAULT_SOCKET


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
    control: ControlSection = ControlSection()
    log: LogSection = LogSection()
    network: NetworkSection = NetworkSection()
    transports: dict[str, dict[str, Any]] = {}
    """The tables `[transports.NAME]`, for the transports of other packages: what they mean, only these know."""


_SECTIONS: dict[str, type[msgspec.Struct]] = {
    "node": NodeSection,
    "listen": ListenSection,
    "listen.tls": TlsSection,
    "tap": TapSection,
    "lease": LeaseSection,
    "dhcp": DhcpSection,
    "dht": DhtSection,
    "nat": NatSection,
    "control": ControlSection,
    "log": LogSection,
    "network": NetworkSection,
}


def _flag(value: Any, _: Path) -> bool:
    if not isinstance(value, bool):
        raise _Wrong(f"is {_kind(value)}, not a truth value", "write true or false, without quotes")
    return value


def _path(value: Any, base: Path) -> Path:
    return base / Path(_text(value, base)).expanduser()


def _socket_path(value: Any, base: Path) -> Path:
    path = _path(value, base)
    if len(os.fsencode(path)) > _SOCKET_PATH_BYTES:
        raise _Wrong(f"is longer than the {_SOCKET_PATH_BYTES} bytes that a unix socket's path may have", "choose a shorter path")
    return path


def _endpoint(value: Any, base: Path) -> Endpoint:
    try:
        return Endpoint.parse(_text(value, base))
    except LocalMisuse as error:
        raise _Wrong("is not an endpoint", error.mend) from None


def _endpoints(value: Any, base: Path) -> tuple[Endpoint, ...]:
    mend = 'write ["udp:198.51.100.7:4500"]'
    if not isinstance(value, list):
        raise _Wrong(f"is {_kind(value)}, not a list of endpoints", mend)
    found: list[Endpoint] = []
    for item in value:
        try:
            endpoint = _endpoint(item, base)
        except _Wrong as wrong:
            raise _Wrong(f"{_shown(item)} {wrong.args[0]}", wrong.args[1]) from None
        if endpoint in found:
            raise _Wrong(f"names {endpoint} twice", "name each endpoint once")
        found.append(endpoint)
    return tuple(found)


def _bind_address(value: Any, base: Path) -> Endpoint:
    host, _, port = _text(value, base).rpartition(":")
    mend = 'write "0.0.0.0:4500" or "[::]:4500"'
    bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if bracketed else host
    try:
        good = (ipaddress.ip_address(host).version == 6) == bracketed
    except ValueError:
        good = False
    if not good or not (port.isascii() and port.isdigit()):
        raise _Wrong("is not an IP address and a port", mend)
    if int(port) > 65535:
        raise _Wrong(f"has the port {port}", "choose one from 0 (any) to 65535")
    return Endpoint("udp", host, int(port))


def _interface_name(value: Any, base: Path) -> str:
    name = _text(value, base)
    bad = name in (".", "..") or any(c in "/:%" or c.isspace() for c in name)
    if bad or len(name.encode()) > _INTERFACE_NAME_BYTES:
        raise _Wrong("cannot be an interface's name", f"use 1 to {_INTERFACE_NAME_BYTES} letters and digits")
    return name


def _mtu(value: Any, _: Path) -> int | None:
    if value == "auto":
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise _Wrong(f"is {_kind(value)}, not a whole number", 'write a number of bytes, without quotes, or "auto"')
    if not MTU_LEAST <= value <= MTU_MOST:
        raise _Wrong("is out of range", f"choose {MTU_LEAST} to {MTU_MOST} bytes")
    return value


def _hours(value: Any, _: Path) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _Wrong(f"is {_kind(value)}, not a number", "write a number of hours, without quotes")
    if not 0.01 <= value <= 8760:
        raise _Wrong("is out of range", "choose 0.01 to 8760 hours")
    return float(value)


def _guests(value: Any, _: Path) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise _Wrong(f"is {_kind(value)}, not a whole number", "write how many guests this node serves, without quotes")
    if not 0 <= value <= GUESTS_MOST:
        raise _Wrong("is out of range", f"choose 0 to {GUESTS_MOST}")
    return value


def _name_servers(value: Any, base: Path) -> tuple[ipaddress.IPv4Address, ...]:
    mend = f'write up to {LISTED_MOST} IPv4 addresses: ["10.128.0.7"]'
    if not isinstance(value, list) or len(value) > LISTED_MOST:
        raise _Wrong(f"is {_kind(value)}, not a list of addresses" if not isinstance(value, list) else "is too long", mend)
    try:
        return tuple(ipaddress.IPv4Address(_text(item, base)) for item in value)
    except ipaddress.AddressValueError:
        raise _Wrong("has something that is not an IPv4 address", mend) from None


def _domain(value: Any, base: Path) -> str:
    name = _text(value, base)
    labels = name.split(".")
    if len(name) > 63 or not all(re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?", label) for label in labels):
        raise _Wrong("is not a domain", 'write up to 63 letters, digits, - and dots, as "lab.example"')
    return name


def _routes(value: Any, base: Path) -> tuple[tuple[ipaddress.IPv4Network, ipaddress.IPv4Address], ...]:
    mend = f'write up to {LISTED_MOST} of the form "192.168.7.0/24 via 10.128.0.9"'
    if not isinstance(value, list) or len(value) > LISTED_MOST:
        raise _Wrong(f"is {_kind(value)}, not a list of routes" if not isinstance(value, list) else "is too long", mend)
    try:
        parts = [_text(item, base).split(" via ") for item in value]
        return tuple((ipaddress.IPv4Network(network), ipaddress.IPv4Address(gateway)) for network, gateway in parts)
    except ValueError:
        raise _Wrong("has something that is not a route", mend) from None


def _amount(value: Any, _: Path) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise _Wrong(f"is {_kind(value)}, not a whole number", "write a number, without quotes")
    if not 1 <= value <= 2**30:
        raise _Wrong("is out of range", "choose 1 or more")
    return value


def _address(value: Any, base: Path) -> ipaddress.IPv4Address:
    try:
        return ipaddress.IPv4Address(_text(value, base))
    except ipaddress.AddressValueError:
        raise _Wrong("is not an IPv4 address", 'write one of the network\'s pool, as "10.128.0.7", or leave the key out') from None


def _level(value: Any, base: Path) -> str:
    if _text(value, base) not in LOG_LEVELS:
        raise _Wrong("is not a level", f"choose one of {', '.join(LOG_LEVELS)}")
    return str(value)


_READERS: dict[str, _Reader] = {
    "node.state": _path,
    "node.bootstrap": _endpoints,
    "listen.udp": _bind_address,
    "listen.advertise": _endpoints,
    "listen.tls.host": readers.host,
    "listen.tls.port": readers.whole(0, 65535),
    "listen.tls.proxy": readers.proxy,
    "listen.tls.rate_mbit": readers.rate,
    "listen.tls.connections": readers.whole(1, 10000),
    "tap.enabled": _flag,
    "tap.name": _interface_name,
    "tap.mtu": _mtu,
    "tap.bridge": _interface_name,
    "lease.address": _address,
    "lease.hours": _hours,
    "dhcp.guests": _guests,
    "dhcp.hours": _hours,
    "dhcp.dns": _name_servers,
    "dhcp.domain": _domain,
    "dhcp.router": _address,
    "dhcp.routes": _routes,
    "dht.member_registers": _amount,
    "dht.member_megabytes": _amount,
    "dht.megabytes": _amount,
    "nat.port_mapping": _flag,
    "control.socket": _socket_path,
    "log.level": _level,
    "network.name": _text,
}


def load_config(path: str | Path) -> Config:
    """Read and check a node.toml. Relative paths in it start from its directory.

    Raises `ConfigError`, whose text is one line: file, key, value, what is wrong, the mend.
    """
    path = Path(path)
    try:
        text = path.read_bytes().decode()
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file", "name the node's file with --config; conf/node.toml is a model") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}", "check its kind and permissions") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text (byte {error.start})", "save it as UTF-8") from None
    return parse_config(text, path)


def parse_config(text: str, path: Path) -> Config:
    """Check the text of a node.toml; `path` is what messages name and what relative paths start from."""
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: is not TOML: {error}", "correct that line") from None
    foreign = tree.pop("transports", {})
    for name, value in tree.items():
        if name not in _SECTIONS or "." in name:
            _unknown(path, name, value, [*_SECTIONS, "transports"])
    base = path.absolute().parent
    sections = {name: _section(path, base, name, tree[name]) for name in _SECTIONS if name in tree and name != "node"}
    transports = _transports(path, foreign)
    return Config(path=path, node=_section(path, base, "node", tree.get("node", {})), transports=transports, **sections)


def _transports(path: Path, tables: Any) -> dict[str, dict[str, Any]]:
    """The tables of foreign transports: that they are tables, and not of our own transports, is all that can be said here."""
    if not isinstance(tables, dict):
        _refuse(path, "transports", tables, "is no section", "write [transports.NAME] on a line of its own and its keys below")
    for name, table in tables.items():
        if name in ("udp", "tls"):
            _refuse(path, f"transports.{name}", table, "is no foreign transport", f"configure it as listen.{name}")
        if not (name.isascii() and name.isalnum() and name.islower()):
            _refuse(path, f"transports.{name}", table, "cannot be the scheme of endpoints", "use lower-case letters and digits")
        if not isinstance(table, dict):
            _refuse(path, f"transports.{name}", table, "is no section", f"write [transports.{name}] on a line of its own")
    return tables


def _section(path: Path, base: Path, name: str, table: Mapping[str, Any]) -> Any:
    if not isinstance(table, dict):
        _refuse(path, name, table, "is no section", f"write [{name}] on a line of its own and its keys below")
    kind = _SECTIONS[name]
    values: dict[str, Any] = {}
    for key, value in table.items():
        full = f"{name}.{key}"
        if full in _SECTIONS:
            values[key] = _section(path, base, full, value)
            continue
        if key not in kind.__struct_fields__:
            _unknown(path, full, value, [f"{name}.{known}" for known in kind.__struct_fields__])
        try:
            values[key] = _READERS[full](value, base)
        except _Wrong as wrong:
            _refuse(path, full, value, *wrong.args)
    if name == "node" and "state" not in values:
        raise ConfigError(f"{path}: node.state is missing", 'name the directory of the node\'s keys: [node] state = "/var/lib/ipop"')
    return kind(**values)


def check_against(config: Config, network: Network, overlap: str | None = None) -> None:
    """Check what can be checked only once the network is known.

    `overlap` says what of this machine collides with the pool, if anything does: `eth0 uses 10.128.0.0/24`. Raises `ConfigError`.
    """
    path, wanted = config.path, config.network.name
    if wanted is not None and wanted != network.name:
        _refuse(path, "network.name", wanted, f"but {config.node.state} belongs to {network.name}", "correct node.state or network.name")
    named = [("node.bootstrap", e) for e in config.node.bootstrap] + [("listen.advertise", e) for e in config.listen.advertise]
    bound = [("listen.udp", config.listen.udp), ("listen.tls.host", Endpoint("tls", config.listen.tls.host, config.listen.tls.port or 0))]
    for key, endpoint in [*named, *bound]:
        inside = _range_of(endpoint.host, network)
        if inside is not None:
            mend = "name an address that is reached without the overlay"
            _refuse(path, key, str(endpoint), f"lies in the range {inside} of the network {network.name} itself", mend)
    lease = config.lease.address
    if lease is not None and (lease not in network.pool or lease in (network.pool[0], network.pool[-1])):
        _refuse(
            path, "lease.address", str(lease), f"is no node's address in {network.pool}, the pool of {network.name}", "wish for another"
        )
    _check_guests(config, network)
    if overlap is not None:
        what = f"the pool {network.pool} of the network {network.name} overlaps what this machine has already ({overlap})"
        _refuse(path, "node.state", str(config.node.state), what, "make a network with another --pool, or take that range off this machine")


def _check_guests(config: Config, network: Network) -> None:
    """The sections `[dhcp]` and `[tap]` against each other and the network."""
    path, tap, dhcp = config.path, config.tap, config.dhcp
    if tap.bridge is not None and not tap.enabled:
        _refuse(path, "tap.bridge", tap.bridge, "but there is no TAP to put into it", "set tap.enabled = true or leave tap.bridge out")
    if tap.bridge == tap.name:
        _refuse(path, "tap.bridge", tap.bridge, "is the name of the TAP itself", "name the bridge that your guests are connected to")
    if dhcp.guests and not tap.enabled:
        _refuse(path, "dhcp.guests", dhcp.guests, "but guests are served on the TAP, and there is none", "set tap.enabled = true")
    gateways = [("dhcp.router", dhcp.router), *(("dhcp.routes", gateway) for _, gateway in dhcp.routes)]
    for key, gateway in gateways:
        if gateway is not None and gateway not in network.pool:
            what = f"lies outside {network.pool}, so that guests could not reach it"
            _refuse(path, key, str(gateway), what, f"name an address of {network.name}")


def _range_of(host: str, network: Network) -> IPNetwork | None:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:  # an onion name lies in no range
        return None
    return next((r for r in (network.pool, network.prefix) if address.version == r.version and address in r), None)


def _unknown(path: Path, key: str, value: Any, known: Iterable[str]) -> NoReturn:
    import difflib

    names = list(known)
    elsewhere = [other for other in _READERS if other.endswith("." + key.rpartition(".")[2])]
    near = elsewhere or difflib.get_close_matches(key, names, n=1)
    mend = f"did you mean {near[0]}?" if near else f"known are {', '.join(names)}"
    _refuse(path, key, value, "there is no such key", mend)


def _refuse(path: Path, key: str, value: Any, wrong: str, mend: str) -> NoReturn:
    raise ConfigError(f"{path}: {key} = {_shown(value)}: {wrong}", mend)


def _shown(value: Any) -> str:
    """A value as TOML would write it, on one line of bearable length."""
    import json

    text = json.dumps(value, ensure_ascii=False, default=str)
    if not text.isprintable():  # U+2028 and the like would break the line
        text = json.dumps(value, default=str)
    text = re.sub(r"://[^/\s]*@", "://...@", text)  # a password
    return text if len(text) <= 80 else text[:77] + "..."
