"""The forwarding table: whom a destination MAC or a receiver index means. Only the control plane writes it."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Network

from ipop_tx.interfaces import ISession
from ipop_tx.log import Logger
from ipop_tx.values import Endpoint, Ident, short
from ipop_tx.wire.address import ipv6_of, mac_of


class Adjacency:
    """One peer as the forwarding plane sees it. `endpoint` or `session` is None while there is no direct path."""

    __slots__ = (
        "addresses", "asked", "endpoint", "ident", "indexes", "ipv6", "mac", "name", "refused", "rx_bytes", "rx_frames", "rx_last",
        "session", "stray", "tx_bytes", "tx_frames",
    )  # fmt: skip

    def __init__(self, ident: Ident, ipv6: bytes) -> None:
        self.ident = ident
        self.mac = mac_of(ident)
        self.ipv6 = ipv6
        """The one IPv6 address (16 bytes) from which this peer may send."""
        self.name = ""
        self.session: ISession | None = None
        self.indexes: tuple[int, ...] = ()
        """Our receiver indexes that mean this peer."""
        self.endpoint: Endpoint | None = None
        self.stray: Endpoint | None = None
        """The last endpoint reported by `IForwardingControl.path_seen`, so that it is reported once."""
        self.addresses: set[bytes] = set()
        """IPv4 addresses (4 bytes) that are verifiably leased to this peer."""
        self.asked: dict[bytes, list[bytes]] = {}
        """IPv4 address -> frames that wait for its verification."""
        self.refused: dict[bytes, float] = {}
        """IPv4 address -> until when it is known not to be this peer's."""
        self.tx_frames = self.tx_bytes = self.rx_frames = self.rx_bytes = 0
        self.rx_last = float("-inf")
        """When the last frame of this peer was opened (the plane's clock)."""


class Fib:
    """Adjacencies by ident, by MAC and by receiver index. Readers use the three dicts directly; nobody else writes them."""

    _log = Logger()

    def __init__(self, prefix: IPv6Network) -> None:
        self.prefix = prefix
        self.by_ident: dict[Ident, Adjacency] = {}
        self.by_mac: dict[bytes, Adjacency] = {}
        self.by_index: dict[int, tuple[ISession, Adjacency]] = {}

    def update(self, ident: Ident, sessions: Sequence[ISession], endpoint: Endpoint | None, name: str = "") -> Adjacency | None:
        """Say what is now true of a peer: its established sessions (the first one seals, all open) and its direct path.

        Counters and verified addresses stay. Gives None, and logs, when another peer already has the same MAC: 46 bits
        agree by accident once in a hundred million networks of a thousand nodes, and never by a peer's choice.
        """
        adjacency = self.by_ident.get(ident) or self._add(ident)
        if adjacency is None:
            return None
        adjacency.name = name or adjacency.name
        adjacency.session = sessions[0] if sessions else None
        if adjacency.endpoint != endpoint:
            adjacency.endpoint, adjacency.stray = endpoint, None
        self._index(adjacency, sessions)
        return adjacency

    def remove(self, ident: Ident) -> None:
        """Forget a peer; unknown idents are fine."""
        adjacency = self.by_ident.pop(ident, None)
        if adjacency is not None:
            del self.by_mac[adjacency.mac]
            self._index(adjacency, ())

    def disown(self, ident: Ident, address: IPv4Address) -> None:
        """Stop believing that `address` is leased to `ident`: the next frame from it asks again."""
        adjacency = self.by_ident.get(ident)
        if adjacency is not None:
            adjacency.addresses.discard(address.packed)

    def _add(self, ident: Ident) -> Adjacency | None:
        adjacency = Adjacency(ident, ipv6_of(self.prefix, ident).packed)
        holder = self.by_mac.setdefault(adjacency.mac, adjacency)
        if holder is not adjacency:
            self._log.error("mac_collision ident={ident} holder={holder}", ident=short(ident), holder=short(holder.ident))
            return None
        self.by_ident[ident] = adjacency
        return adjacency

    def _index(self, adjacency: Adjacency, sessions: Sequence[ISession]) -> None:
        for index in adjacency.indexes:
            del self.by_index[index]
        free = [session for session in sessions if session.local_index not in self.by_index]
        for session in free:
            self.by_index[session.local_index] = (session, adjacency)
        adjacency.indexes = tuple({session.local_index: None for session in free})
        if len(free) < len(sessions):
            self._log.error("index_collision ident={ident}", ident=short(adjacency.ident))
