"""Addresses and state of one network interface, through rtnetlink and /proc/sys."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Interface, IPv6Interface
from pathlib import Path

from ipop_tx.errors import EnvironmentProblem, PermissionProblem
from ipop_tx.log import Logger
from ipop_tx.transport import rtnetlink

_log = Logger()

IPV6_LEAST_MTU = 1280
QUEUE_LENGTH = 1000
"""Frames that the kernel keeps for us at least, before it drops some."""
_IFA_F_NODAD, _IFA_ADDRESS, _IFA_LOCAL = 0x02, 1, 2
_IFLA_MASTER, _IFLA_LINKINFO, _IFLA_INFO_KIND = 10, 18, 1
_IFLA_ADDRESS, _IFLA_MTU, _IFLA_TXQLEN, _IFLA_GSO_MAX_SIZE, _IFF_UP = 1, 4, 13, 41, 1
_SETTINGS = {
    "accept_ra": "0",
    "router_solicitations": "0",
    "autoconf": "0",
    "accept_redirects": "0",
    "addr_gen_mode": "1",  # none: we give the link-local address ourselves
}


def ipv6_settings(interface: str) -> Path:
    """The directory of the kernel's IPv6 settings of an interface; it does not exist where the kernel has no IPv6 for it."""
    return Path("/proc/sys/net/ipv6/conf") / interface


def why_no_ipv6(interface: str, mtu: int) -> str | None:
    """A sentence when IPv6 cannot work on `interface`, None when it can."""
    if mtu < IPV6_LEAST_MTU:
        return f"IPv6 needs an MTU of {IPV6_LEAST_MTU} and {interface} has {mtu}: only IPv4 addresses of the network work here"
    switch = ipv6_settings(interface) / "disable_ipv6"
    try:
        off = switch.read_text().strip() != "0"
    except OSError:
        return "this kernel has no IPv6: only IPv4 addresses of the network work here"
    return f"IPv6 is switched off on {interface} ({switch} is 1): only IPv4 addresses of the network work here" if off else None


def quieten_ipv6(interface: str) -> str | None:
    """Keep the kernel from configuring the interface itself. Gives a sentence when the settings cannot be written."""
    for name, value in _SETTINGS.items():
        setting = ipv6_settings(interface) / name
        try:
            setting.write_text(value)
        except OSError as error:
            if setting.exists():
                return f"{setting} cannot be set to {value} ({os.strerror(error.errno or 0)}): the kernel may add addresses to {interface}"
    return None


def set_up(interface: str, mac: bytes, mtu: int, gso_max: int) -> None:
    """Give a link its MAC address and MTU, ask for super-frames of no more than `gso_max` bytes, and bring it up."""
    with _told(interface) as index:
        _set_link(index, {_IFLA_ADDRESS: mac, _IFLA_MTU: rtnetlink.NUMBER.pack(mtu)})
        _ease(index, interface, gso_max)
        _set_link(index, {}, _IFF_UP)


def bridge_index(bridge: str) -> int:
    """The index of a bridge. Raises `EnvironmentProblem` when there is none of that name."""
    mend = f"make it (ip link add {bridge} type bridge; ip link set {bridge} up), or leave tap.bridge out"
    try:
        index = socket.if_nametoindex(bridge)
    except OSError:
        raise EnvironmentProblem(f"tap.bridge names {bridge}, and there is no such interface", mend) from None
    _, attributes = _link(index)
    kind = rtnetlink.attributes_of(attributes.get(_IFLA_LINKINFO, b"")).get(_IFLA_INFO_KIND, b"")
    if kind.rstrip(b"\0") != b"bridge":
        raise EnvironmentProblem(f"tap.bridge names {bridge}, which is no bridge", "name a bridge, or leave tap.bridge out")
    return index


def enter_bridge(interface: str, bridge: str) -> None:
    """Make an interface a port of a bridge."""
    with _told(interface) as index:
        _set_link(index, {_IFLA_MASTER: rtnetlink.NUMBER.pack(bridge_index(bridge))})


def why_bridge_fails(bridge: str, mtu: int) -> str | None:
    """A sentence when a bridge keeps a port of that MTU from working; None when all is well."""
    try:
        flags, attributes = _link(socket.if_nametoindex(bridge))
    except OSError:
        return f"the bridge {bridge} is gone: make it again and restart the daemon"
    if not flags & _IFF_UP:
        return f"the bridge {bridge} is down: ip link set {bridge} up"
    (own,) = rtnetlink.NUMBER.unpack(attributes[_IFLA_MTU])
    if own > mtu:
        return f"the bridge {bridge} has an MTU of {own}, and packets of more than {mtu} bytes get lost: ip link set {bridge} mtu {mtu}"
    return None


def _link(index: int) -> tuple[int, dict[int, bytes]]:
    """The flags and attributes of a link."""
    [link] = rtnetlink.ask(rtnetlink.RTM_GETLINK, rtnetlink.LINK.pack(0, 0, index, 0, 0))
    return rtnetlink.LINK.unpack_from(link)[3], rtnetlink.attributes_of(link[rtnetlink.LINK.size :])


def _ease(index: int, interface: str, gso_max: int) -> None:
    """What makes a link faster, but is not worth a failure. The kernel sets the limit for IPv4 along with this one."""
    try:
        _set_link(index, {_IFLA_GSO_MAX_SIZE: rtnetlink.NUMBER.pack(gso_max)})
        length = _link(index)[1].get(_IFLA_TXQLEN)
        if length is not None and rtnetlink.NUMBER.unpack(length)[0] < QUEUE_LENGTH:
            _set_link(index, {_IFLA_TXQLEN: rtnetlink.NUMBER.pack(QUEUE_LENGTH)})
    except OSError as error:
        _log.debug("link_not_eased interface={interface} error={error}", interface=interface, error=str(error))


def _set_link(index: int, attributes: dict[int, bytes], flag: int = 0) -> None:
    rtnetlink.ask(rtnetlink.RTM_SETLINK, rtnetlink.LINK.pack(0, 0, index, flag, flag), attributes)


def change_addresses(interface: str, add: list[IPv4Interface | IPv6Interface], remove: list[IPv4Interface | IPv6Interface]) -> None:
    """Remove, then add: the kernel would take a second IPv4 address of one range away together with the first."""
    with _told(interface) as index:
        for one in remove:
            _address(rtnetlink.RTM_DELADDR, index, one, errno.EADDRNOTAVAIL)
        for one in add:
            _address(rtnetlink.RTM_NEWADDR, index, one, errno.EEXIST)


def _address(what: int, index: int, one: IPv4Interface | IPv6Interface, tolerated: int) -> None:
    adds = what == rtnetlink.RTM_NEWADDR
    family, flags = (socket.AF_INET6, _IFA_F_NODAD if adds else 0) if one.version == 6 else (socket.AF_INET, 0)
    packed = one.ip.packed
    head = rtnetlink.ADDRESS.pack(family, one.network.prefixlen, flags, 0, index)
    try:
        rtnetlink.ask(what, head, {_IFA_LOCAL: packed, _IFA_ADDRESS: packed}, rtnetlink.CREATE if adds else 0)
    except OSError as error:
        if error.errno != tolerated:
            raise


@contextmanager
def _told(interface: str) -> Iterator[int]:
    """The interface's index; what the kernel refuses meanwhile becomes a sentence."""
    try:
        index = socket.if_nametoindex(interface)
    except OSError:
        raise EnvironmentProblem(f"the interface {interface} is gone", "somebody removed it; start again") from None
    try:
        yield index
    except PermissionError as error:
        raise PermissionProblem(f"{interface} may not be configured", "run as root or with the capability CAP_NET_ADMIN") from error
    except OSError as error:
        raise EnvironmentProblem(f"the kernel refused to configure {interface} ({os.strerror(error.errno or 0)})") from error
