"""The router that leads out of here: whom to ask for a port mapping."""

from __future__ import annotations

import socket
from collections.abc import Container
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import NamedTuple

from ipop_tx.transport import rtnetlink
from ipop_tx.transport.interfaces import interface_addresses, outward
from ipop_tx.transport.rtnetlink import attributes_of

_RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY = 4, 5, 6
_MAIN_TABLE, _UNICAST = 254, 1


class Gateway(NamedTuple):
    """The next hop of a default route, and our own address towards it."""

    interface: str
    address: IPv4Address
    client: IPv4Address


def default_gateway(ignore: Container[str] = (), inner: IPv4Network | None = None) -> Gateway | None:
    """The gateway of the best IPv4 default route that does not lead into an overlay, over an interface in `ignore`, or to one in `inner`.

    Raises `OSError` when the kernel refuses, which Linux does not do.
    """
    routes = sorted(filter(None, map(_default, rtnetlink.dump(rtnetlink.RTM_GETROUTE, rtnetlink.RTM_NEWROUTE, _request()))))
    names = _outward_names() if routes else {}
    for _, index, address in routes:
        name = names.get(index)
        if inner is not None and address in inner:
            continue
        client = _client(name, address) if name is not None and name not in ignore else None
        if name is not None and client is not None:
            return Gateway(name, address, client)
    return None


def _request() -> bytes:
    return rtnetlink.ROUTE.pack(socket.AF_INET, 0, 0, 0, 0, 0, 0, 0, 0)


def _default(body: bytes) -> tuple[int, int, IPv4Address] | None:
    """Priority, interface and next hop of a message that is about a default route."""
    family, length, _, _, table, _, _, kind, _ = rtnetlink.ROUTE.unpack_from(body)
    found = attributes_of(body[rtnetlink.ROUTE.size :])
    if family != socket.AF_INET or length or table != _MAIN_TABLE or kind != _UNICAST or not {_RTA_OIF, _RTA_GATEWAY} <= found.keys():
        return None
    (index,) = rtnetlink.NUMBER.unpack_from(found[_RTA_OIF])
    (priority,) = rtnetlink.NUMBER.unpack_from(found.get(_RTA_PRIORITY, bytes(4)))
    return priority, index, IPv4Address(found[_RTA_GATEWAY][:4])


def _outward_names() -> dict[int, str]:
    """The interfaces that lead out, by index."""
    names = {}
    for body in rtnetlink.dump(rtnetlink.RTM_GETLINK, rtnetlink.RTM_NEWLINK, rtnetlink.LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0)):
        found = outward(body)
        if found is not None:
            names[rtnetlink.LINK.unpack_from(body)[2]] = found[0]
    return names


def _client(interface: str, gateway: IPv4Address) -> IPv4Address | None:
    """Our address on an interface: in the gateway's own subnet, if any is."""
    own = [one.address for one in interface_addresses() if one.interface == interface and isinstance(one.address, IPv4Interface)]
    own.sort(key=lambda one: gateway not in one.network)
    return own[0].ip if own else None
