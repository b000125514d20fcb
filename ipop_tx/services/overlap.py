"""Whether the network's pool collides with an address range that this host already uses."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from ipop_tx.transport.interfaces import interface_addresses

_ROUTES = Path("/proc/net/route")
_WIDEST = 8
"""Prefix length below which a route is no range that anybody lives in, but a default route or half of one."""


def overlapping(pool: IPv4Network, ignore: Collection[str] = (), bridge: str | None = None) -> str | None:
    """Name a route or interface of this host whose range overlaps `pool`, leaving out the interfaces in `ignore`.

    `bridge` may have the pool itself: an address of ours that a kill has left there.
    For instance `eth0 uses 10.128.0.0/24`; None when there is none.
    """
    for interface, network in (*_addressed(), *_routed()):
        if interface not in ignore and (interface, network) != (bridge, pool) and network.prefixlen >= _WIDEST and network.overlaps(pool):
            return f"{interface} uses {network}"
    return None


def _addressed() -> Iterator[tuple[str, IPv4Network]]:
    for interface, address in interface_addresses():
        if address.version == 4:
            yield interface, address.network


def _routed() -> Iterator[tuple[str, IPv4Network]]:
    """The main table. Columns: interface, destination, gateway, flags, ref, use, metric, mask, ...; addresses in host order."""
    try:
        lines = _ROUTES.read_text().splitlines()[1:]
    except OSError:  # no /proc: then the addresses of the interfaces must do
        return
    for line in lines:
        interface, destination, *rest = line.split()
        yield interface, IPv4Network((_address(destination), str(_address(rest[5]))))


def _address(digits: str) -> IPv4Address:
    return IPv4Address(int(digits, 16).to_bytes(4, sys.byteorder))
