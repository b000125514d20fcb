"""The addresses and MTUs of this machine's network interfaces, by one rtnetlink dump each."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import sys
from collections.abc import Container, Iterator
from ipaddress import IPv4Interface, IPv6Interface, ip_interface
from typing import NamedTuple

from ipop_tx.transport import rtnetlink
from ipop_tx.transport.rtnetlink import attributes_of

_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS = 1, 2, 8
_UNUSABLE = 0x08 | 0x20 | 0x40  # DAD failed, deprecated, tentative
_SIOCGIFFLAGS, _IFF_UP, _IFF_LOOPBACK = 0x8913, 1, 8
_IFLA_IFNAME, _IFLA_MTU, _IFLA_LINKINFO, _IFLA_INFO_KIND = 3, 4, 18, 1
_ARPHRD_NONE = 65534  # what has no link layer: tun, WireGuard
_OVERLAYS = (b"tun\0", b"wireguard\0")  # tun is TAP too
ETHERNET_MTU = 1500


class InterfaceAddress(NamedTuple):
    """One address of one interface that is up."""

    interface: str
    address: IPv4Interface | IPv6Interface


def interface_addresses() -> list[InterfaceAddress]:
    """All usable addresses of the interfaces that are up, in the kernel's order, loopback and link-local ones too.

    Raises `OSError` when the kernel refuses, which Linux does not do.
    """
    names: dict[int, str | None] = {}
    found = []
    for index, address in _addresses():
        if index not in names:
            names[index] = _name_if_up(index)
        name = names[index]
        if name is not None:
            found.append(InterfaceAddress(name, address))
    return found


def own_hosts(ipv6: bool, ignore: Container[str] = ()) -> list[str]:
    """The addresses, written out, under which others may reach this machine; those that the internet can reach first.

    Without `ipv6` only IPv4. Interfaces whose names are in `ignore` do not count, nor do loopback and link-local addresses.
    """
    versions = (4, 6) if ipv6 else (4,)
    addresses = [
        one.ip
        for name, one in interface_addresses()
        if name not in ignore and one.version in versions and not one.is_loopback and not (one.version == 6 and one.is_link_local)
    ]
    addresses.sort(key=lambda one: (not one.is_global, one.version))
    return list(dict.fromkeys(map(str, addresses)))


def largest_mtu(ignore: Container[str] = ()) -> int:
    """The largest MTU of the interfaces that are up and lead out; Ethernet's if there are none.

    Loopback leads nowhere, and what looks like the interface of an overlay leads back here; nor do those count whose names are in
    `ignore`. Raises `OSError` when the kernel refuses, which Linux does not do.
    """
    request = rtnetlink.LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
    links = (outward(body) for body in rtnetlink.dump(rtnetlink.RTM_GETLINK, rtnetlink.RTM_NEWLINK, request))
    return max((mtu for name, mtu in filter(None, links) if name not in ignore), default=ETHERNET_MTU)


def outward(body: bytes) -> tuple[str, int] | None:
    """Name and MTU of an interface that may lead out."""
    _, kind, _, flags, _ = rtnetlink.LINK.unpack_from(body)
    attributes = attributes_of(body[rtnetlink.LINK.size :])
    if not flags & _IFF_UP or flags & _IFF_LOOPBACK or kind == _ARPHRD_NONE or _IFLA_MTU not in attributes:
        return None
    if attributes_of(attributes.get(_IFLA_LINKINFO, b"")).get(_IFLA_INFO_KIND) in _OVERLAYS:
        return None
    name = attributes.get(_IFLA_IFNAME, b"").rstrip(b"\0")
    return os.fsdecode(name), int.from_bytes(attributes[_IFLA_MTU], sys.byteorder)


def _addresses() -> Iterator[tuple[int, IPv4Interface | IPv6Interface]]:
    request = rtnetlink.ADDRESS.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
    for body in rtnetlink.dump(rtnetlink.RTM_GETADDR, rtnetlink.RTM_NEWADDR, request):
        yield from _usable(body)


def _usable(body: bytes) -> Iterator[tuple[int, IPv4Interface | IPv6Interface]]:
    family, prefix, flags, _, index = rtnetlink.ADDRESS.unpack_from(body)
    attributes = attributes_of(body[rtnetlink.ADDRESS.size :])
    # On a point-to-point link IFA_ADDRESS is the other end; IFA_LOCAL, where present, is always ours.
    packed = attributes.get(_IFA_LOCAL) or attributes.get(_IFA_ADDRESS)
    flags = int.from_bytes(attributes.get(_IFA_FLAGS, bytes((flags,))), sys.byteorder)
    if packed and family in (socket.AF_INET, socket.AF_INET6) and not flags & _UNUSABLE:
        yield index, ip_interface((packed, prefix))


def _name_if_up(index: int) -> str | None:
    try:
        name = socket.if_indextoname(index)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            answer = fcntl.ioctl(any_socket, _SIOCGIFFLAGS, struct.pack("16sH14x", name.encode(), 0))
    except OSError:  # it vanished between the dump and the question
        return None
    return name if struct.unpack_from("16xH", answer)[0] & _IFF_UP else None
