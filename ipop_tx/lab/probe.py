"""Measures how a NAT maps and filters, with real sockets, as STUN does (RFC 5780) but without its messages."""

from __future__ import annotations

import socket
from contextlib import ExitStack

from ipop_tx.errors import EnvironmentProblem
from ipop_tx.lab.nat import Filtering, Mapping
from ipop_tx.lab.topology import Host

PATIENCE = 5.0
"""Seconds to wait for what must come."""
GRACE = 0.25
"""Seconds to wait for what should not come, after something that was sent later has come."""

Address = tuple[str, int]


def classify(inner: Host, one: Host, other: Host, patience: float = PATIENCE) -> tuple[Mapping, Filtering]:
    """What the NAT before `inner` does, seen from two public hosts. Raises `EnvironmentProblem` when no datagram gets through."""
    with ExitStack() as stack:
        probe = _Probe(inner, one, other, stack, patience)
        return probe.mapping(), probe.filtering()


class _Probe:
    """Three outer sockets: two ports of one host, one port of another."""

    def __init__(self, inner: Host, one: Host, other: Host, stack: ExitStack, patience: float) -> None:
        self._patience = patience
        self._stack = stack
        self._inner = inner
        self._first, self._other_port, self._other_host = (self._open(host) for host in (one, one, other))

    def _open(self, host: Host) -> socket.socket:
        made = self._stack.enter_context(host.socket())
        made.bind((host.address, 0))
        made.settimeout(self._patience)
        return made

    def mapping(self) -> Mapping:
        inside = self._open(self._inner)
        port = inside.getsockname()[1]
        first, second, third = (_outer(inside, s)[1] for s in (self._first, self._other_port, self._other_host))
        if first == second == third:
            return Mapping.PORT_KEPT if first == port else Mapping.PORT_CHANGED
        if first == second:
            return Mapping.ADDRESS_DEPENDENT
        return Mapping.SEQUENTIAL if (second - first, third - second) == (1, 1) else Mapping.RANDOM

    def filtering(self) -> Filtering:
        inside = self._open(self._inner)
        outer = _outer(inside, self._first)
        for sender in (self._other_host, self._other_port, self._first):  # the last one is let in by every NAT
            sender.sendto(b"in", outer)
        heard = _listen(inside, self._first.getsockname(), 3)
        if self._other_host.getsockname() in heard:
            return Filtering.ENDPOINT_INDEPENDENT
        return Filtering.ADDRESS_DEPENDENT if self._other_port.getsockname() in heard else Filtering.PORT_DEPENDENT


def _outer(inside: socket.socket, target: socket.socket) -> Address:
    inside.sendto(b"out", target.getsockname())
    try:
        address: Address = target.recvfrom(16)[1]
    except TimeoutError:
        raise EnvironmentProblem("a datagram did not leave the site", "look at the router's rules") from None
    return address


def _listen(inside: socket.socket, last: Address, most: int) -> set[Address]:
    """The senders of all that comes in, until `last` was heard and a little longer, or until there are `most`."""
    heard: set[Address] = set()
    while len(heard) < most:
        try:
            heard.add(inside.recvfrom(16)[1])
        except TimeoutError:
            if last not in heard:
                raise EnvironmentProblem("no answer came into the site", "look at the router's rules") from None
            return heard
        if last in heard:
            inside.settimeout(GRACE)
    return heard
