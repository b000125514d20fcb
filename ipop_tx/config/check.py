"""What of node.toml can be checked only once the network is known."""

from __future__ import annotations

import ipaddress

from ipop_tx.config.refusal import refuse
from ipop_tx.config.sections import Config
from ipop_tx.values import Endpoint, Network

IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network


def check_against(config: Config, network: Network, overlap: str | None = None) -> None:
    """Check the configuration against its network.

    `overlap` says what of this machine collides with the pool, if anything does: `eth0 uses 10.128.0.0/24`. Raises `ConfigError`.
    """
    path, wanted = config.path, config.network.name
    if wanted is not None and wanted != network.name:
        refuse(path, "network.name", wanted, f"but {config.node.state} belongs to {network.name}", "correct node.state or network.name")
    named = [("node.bootstrap", e) for e in config.node.bootstrap] + [("listen.advertise", e) for e in config.listen.advertise]
    bound = [("listen.udp", config.listen.udp), ("listen.tls.host", Endpoint("tls", config.listen.tls.host, config.listen.tls.port or 0))]
    for key, endpoint in [*named, *bound]:
        inside = _range_of(endpoint.host, network)
        if inside is not None:
            mend = "name an address that is reached without the overlay"
            refuse(path, key, str(endpoint), f"lies in the range {inside} of the network {network.name} itself", mend)
    lease = config.lease.address
    if lease is not None and (lease not in network.pool or lease in (network.pool[0], network.pool[-1])):
        refuse(path, "lease.address", str(lease), f"is no node's address in {network.pool}, the pool of {network.name}", "wish for another")
    _check_guests(config, network)
    _check_dns(config)
    _check_tor(config)
    if overlap is not None:
        what = f"the pool {network.pool} of the network {network.name} overlaps what this machine has already ({overlap})"
        refuse(path, "node.state", str(config.node.state), what, "make a network with another --pool, or take that range off this machine")


def _check_guests(config: Config, network: Network) -> None:
    """The sections `[dhcp]` and `[tap]` against each other and the network."""
    path, tap, dhcp = config.path, config.tap, config.dhcp
    if tap.bridge is not None and not tap.enabled:
        refuse(path, "tap.bridge", tap.bridge, "but there is no TAP to put into it", "set tap.enabled = true or leave tap.bridge out")
    if tap.bridge == tap.name:
        refuse(path, "tap.bridge", tap.bridge, "is the name of the TAP itself", "name the bridge that your guests are connected to")
    if dhcp.guests and not tap.enabled:
        refuse(path, "dhcp.guests", dhcp.guests, "but guests are served on the TAP, and there is none", "set tap.enabled = true")
    gateways = [("dhcp.router", dhcp.router), *(("dhcp.routes", gateway) for _, gateway in dhcp.routes)]
    for key, gateway in gateways:
        if gateway is not None and gateway not in network.pool:
            what = f"lies outside {network.pool}, so that guests could not reach it"
            refuse(path, key, str(gateway), what, f"name an address of {network.name}")


def _check_dns(config: Config) -> None:
    """The section `[dns]` by itself."""
    dns = config.dns
    if dns.listen is not None and dns.listen[1] != 53 and dns.system == "resolv.conf":
        mend = "listen on port 53, or set dns.system to another one"
        refuse(config.path, "dns.system", dns.system, f"but dns.listen has port {dns.listen[1]}, and that file can name no port", mend)
    if dns.listen is not None and dns.system == "resolved" and not config.tap.enabled:
        refuse(
            config.path, "dns.system", dns.system, "but systemd-resolved knows us by the TAP, and there is none", "set tap.enabled = true"
        )


def _check_tor(config: Config) -> None:
    """With `tor.policy = "tor-only"` nothing may name another way."""
    if config.tor.policy != "tor-only":
        return
    path, why = config.path, 'but tor.policy is "tor-only"'
    for key, endpoints in (("node.bootstrap", config.node.bootstrap), ("listen.advertise", config.listen.advertise)):
        for endpoint in endpoints:
            if endpoint.scheme != "onion":
                refuse(path, key, str(endpoint), why, "name onion: endpoints only; ipop status of a member with Tor shows its own")
    if config.listen.tls.port is not None:
        refuse(path, "listen.tls.port", config.listen.tls.port, why, "leave [listen.tls] out")
    for name in config.transports:
        refuse(path, f"transports.{name}", config.transports[name], why, "leave that section out")


def _range_of(host: str, network: Network) -> IPNetwork | None:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:  # an onion name lies in no range
        return None
    return next((r for r in (network.pool, network.prefix) if address.version == r.version and address in r), None)
