"""What this machine does with packets of the network, as far as an unprivileged look tells: interface, route, disk, who listens."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import NamedTuple

from ipop_tx.transport import rtnetlink
from ipop_tx.transport.interfaces import interface_addresses
from ipop_tx.wire import relation as r
from ipop_tx.wire.policy import TCP, UDP

ROOM = 1 << 20
"""Bytes that must be free on the disk of the state, for it to count as not full."""

_RTA_DST, _RTA_OIF = 1, 4
_IFF_UP = 1
_LISTEN, _CLOSED = 10, 7
"""States of a socket that waits, of TCP and UDP (proc_net_tcp(5))."""


class Way(NamedTuple):
    """Where the kernel sends packets for an address: the interface, or why nowhere; and what range of it that belongs to, if any."""

    interface: str | None
    overlapping: str
    """That of another interface that has an address in the same range, written out; empty for a mere route."""


def interface_flag(name: str) -> int:
    """0 when the interface is there and up; else `relation.TAP_GONE` or `TAP_DOWN`."""
    try:
        index = socket.if_nametoindex(name)
        [link] = rtnetlink.ask(rtnetlink.RTM_GETLINK, rtnetlink.LINK.pack(0, 0, index, 0, 0))
    except (OSError, ValueError):
        return r.TAP_GONE
    return 0 if rtnetlink.LINK.unpack_from(link)[3] & _IFF_UP else r.TAP_DOWN


def way_to(address: IPv4Address | IPv6Address) -> Way:
    """Ask the kernel for its route."""
    family, bits = (socket.AF_INET, 32) if address.version == 4 else (socket.AF_INET6, 128)
    question = rtnetlink.ROUTE.pack(family, bits, 0, 0, 0, 0, 0, 0, 0)
    try:
        [route] = rtnetlink.ask(rtnetlink.RTM_GETROUTE, question, {_RTA_DST: address.packed})
        found = rtnetlink.attributes_of(route[rtnetlink.ROUTE.size :])
        interface = socket.if_indextoname(rtnetlink.NUMBER.unpack_from(found[_RTA_OIF])[0])
    except (OSError, ValueError, KeyError):
        return Way(None, "")
    ranges = (one.address.network for one in interface_addresses() if one.interface == interface)
    return Way(interface, next((str(one) for one in ranges if address in one), ""))


def disk_flag(path: Path) -> int:
    """0 when there is room for files in a directory, and they may be written; else `relation.DISK_FULL` or `READ_ONLY`."""
    try:
        found = os.statvfs(path)
    except OSError:
        return r.READ_ONLY
    if found.f_flag & os.ST_RDONLY:
        return r.READ_ONLY
    return r.DISK_FULL if found.f_bavail * found.f_frsize < ROOM else 0


def listens(protocol: int, port: int, addresses: tuple[bytes, ...]) -> bool | None:
    """Whether a program waits at a port of one of our addresses (4 or 16 bytes); None where that cannot be known."""
    name, waiting = {TCP: ("tcp", _LISTEN), UDP: ("udp", _CLOSED)}.get(protocol, ("", 0))
    if not name or not port:
        return None
    wanted = {_hex(address) for address in addresses} | {_hex(bytes(len(address))) for address in addresses} | {_hex(bytes(16))}
    try:
        return any((address in wanted and number == port) for file in (name, f"{name}6") for address, number in _waiting(file, waiting))
    except (OSError, ValueError, IndexError):
        return None


def _waiting(name: str, waiting: int) -> Iterator[tuple[str, int]]:
    """Addresses and ports of the sockets that wait. The kernel tells those of TCP first, and a busy machine has many others behind them."""
    file = Path("/proc/net") / name
    if not file.exists():
        return
    with file.open() as lines:
        next(lines, "")
        for line in lines:
            words = line.split()
            if int(words[3], 16) == waiting:
                address, _, number = words[1].partition(":")
                yield address, int(number, 16)
            elif waiting == _LISTEN:
                return


def _hex(address: bytes) -> str:
    """As in /proc/net/tcp: each four bytes as a number of the machine's own order."""
    words = (address[at : at + 4] for at in range(0, len(address), 4))
    return "".join(f"{int.from_bytes(word, 'little' if _LITTLE else 'big'):08X}" for word in words)


_LITTLE = socket.htons(1) != 1
