"""The device behind a TAP, /dev/net/tun: opening it, and what work the kernel leaves to us (linux/if_tun.h).

What the kernel gives is chosen by `TUNSETOFFLOAD`. What it takes nobody can ask, but it looks at an offload head before it
looks whether the interface is up: so we write it one super-frame of each type while the interface is still down.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
import struct
import sys
from collections.abc import Sequence
from typing import Any

from ipop_tx.errors import BadDatagram, EnvironmentProblem, LocalMisuse, PermissionProblem
from ipop_tx.forwarding import offload
from ipop_tx.transport import native

TUNSETOFFLOAD = 0x400454D0
TUNSETVNETLE = 0x400454DC

_LEVELS = ((0x6F, offload.OFFLOADS), (0x0F, offload.OFFLOADS[:3]), (0x01, offload.OFFLOADS[:1]))
"""TUN_F_CSUM 1, TSO4 2, TSO6 4, TSO_ECN 8, USO4 0x20 and USO6 0x40 (Linux 6.2)."""
_TYPES = {"tso4": offload.GSO_TCPV4, "tso6": offload.GSO_TCPV6, "uso": offload.GSO_UDP_L4}
_LARGEST = 1 << 16
_DEVICE = "/dev/net/tun"
_NAME = re.compile(r"[^\s/:%]{1,15}")


# opening


def opened(name: str) -> tuple[Any, bool]:
    """A new TAP, its descriptor not blocking, and whether its frames have offload heads.

    Raises `LocalMisuse` for a name that no interface can have, `PermissionProblem` without CAP_NET_ADMIN and
    `EnvironmentProblem` for anything else in the way.
    """
    if not _NAME.fullmatch(name) or len(name.encode()) > 15 or name in (".", ".."):
        raise LocalMisuse(f"{name!r} cannot be the name of an interface", "set tap.name to 1-15 characters without spaces, /, : and %")
    if name in {known for _, known in socket.if_nameindex()}:
        raise _taken(name)
    try:
        device, heads = _device(name)
    except OSError as error:
        raise problem(error, name) from error
    os.set_blocking(device.fileno(), False)
    os.set_inheritable(device.fileno(), False)
    return device, heads


def _device(name: str) -> tuple[Any, bool]:
    from pytun import IFF_NO_PI, IFF_TAP, IFF_TUN_EXCL, IFF_VNET_HDR, TunTapDevice

    flags = IFF_TAP | IFF_NO_PI | IFF_TUN_EXCL
    try:
        device = TunTapDevice(name=name, flags=flags | IFF_VNET_HDR)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    else:
        if _has_little_endian_heads(device.fileno()):
            return device, True
        device.close()
    return TunTapDevice(name=name, flags=flags), False


def _has_little_endian_heads(fd: int) -> bool:
    """Heads are in the machine's own order unless the kernel is told, since Linux 4.2."""
    try:
        fcntl.ioctl(fd, TUNSETVNETLE, struct.pack("i", 1))
    except OSError:
        return sys.byteorder == "little"
    return True


def _taken(name: str) -> EnvironmentProblem:
    return EnvironmentProblem(f"an interface named {name} exists already", "set tap.name to another name or remove the interface")


def problem(error: OSError, name: str) -> EnvironmentProblem:
    """What it means that the device could not be opened."""
    match error.errno:
        case errno.EACCES:
            return PermissionProblem(f"{_DEVICE} may not be opened", f"chmod 666 {_DEVICE}: making interfaces takes CAP_NET_ADMIN anyway")
        case errno.EPERM:
            return PermissionProblem(f"the interface {name} may not be made", "run as root or with the capability CAP_NET_ADMIN")
        case errno.ENOENT | errno.ENODEV | errno.ENXIO:
            return EnvironmentProblem(f"{_DEVICE} is missing", "load the kernel module: modprobe tun (in a container: allow the device)")
        case errno.EBUSY | errno.EEXIST:
            return _taken(name)
        case _:
            return EnvironmentProblem(f"the interface {name} cannot be made ({os.strerror(error.errno or 0)})")


# offloads


def set_offloads(fd: int) -> tuple[str, ...]:
    """Ask for as much as this kernel knows; gives the names of `offload.OFFLOADS` of what it now gives us."""
    for bits, names in _LEVELS:
        try:
            fcntl.ioctl(fd, TUNSETOFFLOAD, bits)
        except OSError:
            continue
        return names
    return ()


def refused_types(fd: int) -> frozenset[int]:
    """The GSO types that the kernel does not take from us. Only while the interface is down."""
    return frozenset(kind for kind in _TYPES.values() if _is_refused(fd, kind))


def _is_refused(fd: int, kind: int) -> bool:
    try:
        os.write(fd, _example(kind))
    except OSError as error:
        return error.errno == errno.EINVAL
    return False


def _example(kind: int) -> bytes:
    """A super-frame of two segments from nobody to nobody."""
    protocol, offset, l4 = 6, 16, bytes(12) + b"\x50" + bytes(7)
    if kind == offload.GSO_UDP_L4:
        protocol, offset, l4 = 17, 6, struct.pack(">HHHH", 9, 9, 10, 0)
    if kind == offload.GSO_TCPV6:
        ip = b"\x86\xdd" + struct.pack(">IHBB", 6 << 28, len(l4) + 2, protocol, 1) + bytes(32)
    else:
        ip = b"\x08\x00" + struct.pack(">BBHHHBBH", 0x45, 0, 22 + len(l4), 0, 0, 1, protocol, 0) + bytes(8)
    headers = bytes(12) + ip
    head = offload.HEAD.pack(offload.NEEDS_CHECKSUM, kind, len(headers + l4), 1, len(headers), offset)
    return head + headers + l4 + b"ab"


def in_both_directions(given: tuple[str, ...], refused: frozenset[int]) -> tuple[str, ...]:
    """The names of what the kernel gives and takes."""
    return tuple(name for name in given if _TYPES.get(name) not in refused)


def why_slow(interface: str, offloads: tuple[str, ...]) -> str | None:
    """A sentence when the kernel keeps work to itself that it could leave to others; UDP's segments are a luxury."""
    missing = [name for name in offload.OFFLOADS[:3] if name not in offloads]
    if not missing:
        return None
    return f"the kernel refuses {' and '.join(missing)} offload on {interface}: all works, but transfers are slower and cost more CPU time"


# frames


class Reader:
    """Reads frames into buffers that mostly are the same ones as the last time."""

    def __init__(self) -> None:
        self._buffers: Sequence[bytearray | memoryview] = ()
        self._layout = native.Layout(())

    def readv(self, fd: int, buffers: Sequence[bytearray | memoryview]) -> int:
        """As `os.readv`, but 0 when no frame waits."""
        if buffers is not self._buffers:
            self._buffers, self._layout = buffers, native.Layout(buffers)
        return native.readv(fd, self._layout)


def readv_plain(fd: int, buffers: Sequence[bytearray | memoryview]) -> int:
    """As `os.readv`, but 0 when no frame waits; from a device without offload heads."""
    try:
        return offload.fill(buffers, offload.PLAIN + os.read(fd, _LARGEST))
    except BlockingIOError:
        return 0


def write_cut(fd: int, frame: bytes, heads: bool) -> int:
    """As `os.write`, but cut by ourselves. Raises OSError like it, EINVAL for what cannot be cut."""
    try:
        cut = offload.segment(frame)
    except BadDatagram as error:
        raise OSError(errno.EINVAL, str(error)) from error
    for one in cut:
        os.write(fd, offload.PLAIN + one if heads else one)
    return len(frame)
