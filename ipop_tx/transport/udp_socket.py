"""The socket under the UDP transport: bound, with large buffers, "don't fragment" and the kernel's offloads; or a sentence why not."""

from __future__ import annotations

import errno
import os
import socket
import struct
from ipaddress import ip_address

from ipop_tx.errors import EnvironmentProblem, PermissionProblem
from ipop_tx.transport.native import UDP_GRO, UDP_SEGMENT

SOCKET_BUFFER = 8 << 20
"""Wanted size of the kernel's buffers, in bytes."""

_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33  # Linux; not in the socket module, as the next ones
_IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE = 10, 23, 3

_MAPPED = "::ffff:"


def version_of(host: str) -> int | None:
    """4 or 6; None for what is no IP address."""
    try:
        return ip_address(host).version
    except ValueError:
        return None


def plain_host(host: str) -> str:
    """An address as peers write it: a dual-stack socket tells IPv4 ones as IPv6."""
    return host.removeprefix(_MAPPED) if "." in host else host


def host_for(family: socket.AddressFamily, host: str) -> str | None:
    """An address as a socket of a family takes it; None for one that it cannot reach."""
    version = version_of(host)
    if version is None or (version == 6 and family != socket.AF_INET6):
        return None
    return _MAPPED + host if family == socket.AF_INET6 and version == 4 else host


def bound_socket(family: socket.AddressFamily, host: str, port: int) -> socket.socket:
    """A socket of a family, bound. Raises `OSError`."""
    made = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(host != "::"))
        prepare(made)
        made.bind((host, port))
    except OSError:
        made.close()
        raise
    return made


def prepare(made: socket.socket) -> None:
    """Whole datagrams only, and large buffers."""
    _never_fragment(made, made.family)
    _enlarge(made, _SO_RCVBUFFORCE, socket.SO_RCVBUF)
    _enlarge(made, _SO_SNDBUFFORCE, socket.SO_SNDBUF)


def _enlarge(made: socket.socket, forced: int, plain: int) -> None:
    try:
        made.setsockopt(socket.SOL_SOCKET, forced, SOCKET_BUFFER)
    except PermissionError:  # without CAP_NET_ADMIN the kernel gives as much as net.core.*mem_max allows
        made.setsockopt(socket.SOL_SOCKET, plain, SOCKET_BUFFER)


def _never_fragment(made: socket.socket, family: socket.AddressFamily) -> None:
    """Set "don't fragment", and leave it to us to find the path's MTU: what the kernel believes of it comes from unauthenticated ICMP."""
    made.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_PROBE)
    if family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE)


def offloads_of(made: socket.socket) -> tuple[tuple[str, ...], list[str]]:
    """What the kernel does with runs, and sentences about what it does not."""
    names, health = [], []
    for name, option, value in (("segment", UDP_SEGMENT, 0), ("gro", UDP_GRO, 1)):
        try:
            made.setsockopt(socket.IPPROTO_UDP, option, value)
        except OSError:
            health.append(f"this kernel has no UDP {name} offload (Linux 5.0 has it): every datagram costs a system call")
        else:
            names.append(name)
    for name, option, limit in (("receive", socket.SO_RCVBUF, "rmem_max"), ("send", socket.SO_SNDBUF, "wmem_max")):
        size = made.getsockopt(socket.SOL_SOCKET, option) // 2  # the kernel doubles it for its own needs
        if size < SOCKET_BUFFER:
            health.append(
                f"the UDP {name} buffer has {size} of {SOCKET_BUFFER} bytes, so fast streams will lose datagrams: "
                f"run with CAP_NET_ADMIN, or set net.core.{limit}={SOCKET_BUFFER}"
            )
    return tuple(names), health


def hop_limit(host: str, hops: int) -> list[tuple[int, int, bytes]]:
    """What `sendmsg` takes beside a datagram to `host` (as a peer writes it), so that it gets no further than so many hops."""
    level, option = (socket.IPPROTO_IPV6, socket.IPV6_HOPLIMIT) if ":" in host else (socket.IPPROTO_IP, socket.IP_TTL)
    return [(level, option, struct.pack("i", hops))]


def problem_of(error: OSError, host: str, port: int) -> EnvironmentProblem:
    """Why a socket cannot be bound, and what mends it."""
    match error.errno:
        case errno.EADDRINUSE:
            return EnvironmentProblem(
                f"UDP port {port} of {host} is taken", f"stop the other program (`ss -lunp sport = {port}` names it) or choose another port"
            )
        case errno.EADDRNOTAVAIL:
            return EnvironmentProblem(f"this machine has no address {host}", "listen on 0.0.0.0 or on an address that `ip addr` shows")
        case errno.EACCES | errno.EPERM:
            return PermissionProblem(f"UDP port {port} of {host} may not be used", "run as root or choose a port from 1024 up")
        case _:
            return EnvironmentProblem(f"UDP port {port} of {host} cannot be opened ({os.strerror(error.errno or 0)})")
