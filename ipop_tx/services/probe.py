"""One packet of a program's kind, sent through this machine's own kernel: what becomes of it tells of firewalls and services."""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from ipaddress import IPv4Address, IPv6Address
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from ipop_tx.wire.policy import ICMP, ICMPV6, TCP, UDP

PATIENCE = 2.5
"""Seconds until no answer counts as none: TCP has sent its SYN twice by then."""
_LOOK = 0.05
ANSWERED, REFUSED, SILENT, IMPOSSIBLE = "answered", "refused", "silent", "impossible"
_ECHO = {ICMP: 8, ICMPV6: 128}

Address = IPv4Address | IPv6Address


class Outcome(NamedTuple):
    """What became of a probe; `port` is the one that it came from, of ICMP the identifier."""

    what: str
    port: int = 0
    why: str = ""


async def probe(reactor: Any, source: Address, target: Address, protocol: int, port: int) -> Outcome:
    """Connect by TCP, send an empty datagram by UDP, or ping. A connection that is made is ended at once."""
    try:
        with _socket(protocol, target.version) as asked:
            asked.setblocking(False)
            asked.bind((str(source), 0))
            own = asked.getsockname()[1]
            if protocol == TCP:
                return await _connected(reactor, asked, (str(target), port), own)
            return await _answered(reactor, asked, (str(target), port), protocol, own)
    except PermissionError:
        return Outcome(SILENT) if protocol in (TCP, UDP) else Outcome(IMPOSSIBLE, why="this needs root")
    except (OSError, ValueError) as error:
        return Outcome(IMPOSSIBLE, why=str(getattr(error, "strerror", None) or error).lower())


def _socket(protocol: int, version: int) -> socket.socket:
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    if protocol == TCP:
        return socket.socket(family, socket.SOCK_STREAM)
    if protocol == UDP:
        return socket.socket(family, socket.SOCK_DGRAM)
    if protocol in _ECHO:
        return socket.socket(family, socket.SOCK_RAW, protocol)
    raise ValueError("only TCP, UDP and echo requests can be tried")


async def _connected(reactor: Any, asked: socket.socket, target: tuple[str, int], own: int) -> Outcome:
    asked.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # leave no half-closed connection there
    code = asked.connect_ex(target)
    if code == errno.EINPROGRESS:
        await _ready(reactor, asked, select.POLLOUT)
        if not _polled(asked, select.POLLOUT):
            return Outcome(SILENT, own)
        code = asked.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    return _meaning(code, own)


async def _answered(reactor: Any, asked: socket.socket, target: tuple[str, int], protocol: int, own: int) -> Outcome:
    if protocol == UDP:
        asked.connect(target)
        asked.send(b"")
    else:
        own = int.from_bytes(os.urandom(2), "big") | 1
        asked.sendto(_echo(_ECHO[protocol], own), (target[0], 0))
    left = PATIENCE
    while left > 0:
        left = await _ready(reactor, asked, select.POLLIN, left)
        if not _polled(asked, select.POLLIN):
            break
        try:
            data = asked.recv(2048)
        except BlockingIOError:
            continue
        except OSError as error:
            return _meaning(error.errno or 0, own)
        if protocol == UDP or _is_answer(data, protocol, own):
            return Outcome(ANSWERED, own)
    return Outcome(SILENT, own)


def _meaning(code: int, own: int) -> Outcome:
    if not code:
        return Outcome(ANSWERED, own)
    if code == errno.ECONNREFUSED:
        return Outcome(REFUSED, own)
    if code in (errno.ETIMEDOUT, errno.EPERM, errno.EACCES):
        return Outcome(SILENT, own)
    return Outcome(IMPOSSIBLE, own, os.strerror(code).lower())


async def _ready(reactor: Any, asked: socket.socket, event: int, left: float = PATIENCE) -> float:
    """Wait until the socket is ready; gives the seconds that are left."""
    while left > 0 and not _polled(asked, event):
        pause: Deferred[None] = deferLater(reactor, _LOOK, lambda: None)
        await pause
        left -= _LOOK
    return left


def _polled(asked: socket.socket, event: int) -> bool:
    look = select.poll()
    look.register(asked, event)
    return bool(look.poll(0))


def _echo(kind: int, identifier: int) -> bytes:
    """An echo request (RFC 792, RFC 4443); the kernel reckons the checksum of IPv6's."""
    packet = struct.pack("!BBHHH", kind, 0, 0, identifier, 1) + bytes(16)
    total = sum(struct.unpack(f"!{len(packet) // 2}H", packet))
    total = (total & 0xFFFF) + (total >> 16)
    return packet[:2] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + packet[4:]


def _is_answer(data: bytes, protocol: int, identifier: int) -> bool:
    at = (data[0] & 15) * 4 if protocol == ICMP and data else 0  # a raw IPv4 socket shows the IP header too
    answer = 0 if protocol == ICMP else 129
    return len(data) >= at + 8 and data[at] == answer and data[at + 4 : at + 6] == identifier.to_bytes(2, "big")
