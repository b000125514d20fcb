"""Addresses and state of one network interface, through pyroute2 and /proc/sys."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from pathlib import Path
from typing import Any

from ipop_tx.errors import EnvironmentProblem, PermissionProblem
from ipop_tx.log import Logger

_log = Logger()

IPV6_LEAST_MTU = 1280
QUEUE_LENGTH = 1000
"""Frames that the kernel keeps for us at least, before it drops some."""
_IFA_F_NODAD = 0x02
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

    def steps(netlink: Any, index: int) -> None:
        netlink.link("set", index=index, address=":".join(f"{byte:02x}" for byte in mac), mtu=mtu)
        _ease(netlink, index, interface, gso_max)
        netlink.link("set", index=index, state="up")

    _run(interface, steps)


def _ease(netlink: Any, index: int, interface: str, gso_max: int) -> None:
    """What makes a link faster, but is not worth a failure. The kernel sets the limit for IPv4 along with this one."""
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        netlink.link("set", index=index, gso_max_size=gso_max)
        length = netlink.link("get", index=index)[0].get_attr("IFLA_TXQLEN")
        if length is not None and length < QUEUE_LENGTH:
            netlink.link("set", index=index, txqlen=QUEUE_LENGTH)
    except NetlinkError as error:
        _log.debug("link_not_eased interface={interface} error={error}", interface=interface, error=str(error))


def change_addresses(interface: str, add: list[IPv4Interface | IPv6Interface], remove: list[IPv4Interface | IPv6Interface]) -> None:
    """Remove, then add: the kernel would take a second IPv4 address of one range away together with the first."""

    def steps(netlink: Any, index: int) -> None:
        for one in remove:
            _tolerating(errno.EADDRNOTAVAIL, netlink.addr, "del", index, one)
        for one in add:
            flags = {"flags": _IFA_F_NODAD} if one.version == 6 else {}
            _tolerating(errno.EEXIST, netlink.addr, "add", index, one, **flags)

    _run(interface, steps)


def _tolerating(number: int, call: Callable[..., Any], command: str, index: int, one: IPv4Interface | IPv6Interface, **more: Any) -> None:
    from pyroute2.netlink.exceptions import NetlinkError

    address: IPv4Address | IPv6Address = one.ip
    try:
        call(command, index=index, address=str(address), prefixlen=one.network.prefixlen, **more)
    except NetlinkError as error:
        if error.code != number:
            raise


def _run(interface: str, steps: Callable[[Any, int], None]) -> None:
    """Do `steps` with a netlink socket and the interface's index, in a thread of their own, and wait: a few milliseconds.

    pyroute2 runs an asyncio loop inside, which a thread whose reactor is itself an asyncio loop does not allow.
    """
    from pyroute2.iproute.linux import IPRoute

    failures: list[Exception] = []

    def work() -> None:
        try:
            with IPRoute() as netlink:
                steps(netlink, netlink.link_lookup(ifname=interface)[0])
        except Exception as error:  # noqa: BLE001 - raised again below, in the thread that waits
            failures.append(error)

    thread = threading.Thread(target=work, name=f"netlink-{interface}")
    thread.start()
    thread.join()
    if failures:
        raise _problem(interface, failures[0]) from failures[0]


def _problem(interface: str, error: Exception) -> Exception:
    from pyroute2.netlink.exceptions import NetlinkError

    if isinstance(error, IndexError):
        return EnvironmentProblem(f"the interface {interface} is gone", "somebody removed it; start again")
    if not isinstance(error, NetlinkError):
        return error
    if error.code == errno.EPERM:
        return PermissionProblem(f"{interface} may not be configured", "run as root or with the capability CAP_NET_ADMIN")
    return EnvironmentProblem(f"the kernel refused to configure {interface} ({os.strerror(error.code)})")
