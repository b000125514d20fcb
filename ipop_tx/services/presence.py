"""Whether a guest is still beside us: it answers when it is asked by ARP, as every machine does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.task import deferLater

from ipop_tx.forwarding.neighbour import probe
from ipop_tx.forwarding.offload import PLAIN
from ipop_tx.forwarding.plane import ForwardingPlane

PROBES, EVERY = 4, 0.25
"""Questions, and seconds between them."""


class Presence:
    """Asks guests on the port."""

    def __init__(self, reactor: Any, plane: ForwardingPlane, write: Callable[[Sequence[bytes]], object], our_mac: bytes) -> None:
        self._reactor = reactor
        self._write = write
        self._mac = our_mac
        self._awaited: set[tuple[bytes, bytes]] = set()
        plane.heard = lambda mac, address: self._awaited.discard((mac, address))

    async def is_here(self, mac: bytes, address: bytes) -> bool:
        """Whether whoever has `mac` says within a second that it has the IPv4 address."""
        self._awaited.add((mac, address))
        for _ in range(PROBES):
            self._write((PLAIN, probe(self._mac, mac, address)))
            await deferLater(self._reactor, EVERY)
            if (mac, address) not in self._awaited:
                return True
        self._awaited.discard((mac, address))
        return False
