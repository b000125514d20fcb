"""The forwarding table: whom a destination MAC or a receiver index means. Only the control plane writes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from ipaddress import IPv4Address, IPv6Network

from ipop_tx.forwarding.flows import Flows
from ipop_tx.forwarding.offload import IP_AT
from ipop_tx.forwarding.width import Width
from ipop_tx.interfaces import ISealedChannel, ISession, ITransport
from ipop_tx.log import Logger
from ipop_tx.values import Endpoint, Ident, short
from ipop_tx.wire.address import ipv6_of, mac_of
from ipop_tx.wire.datagram import HEADER_BYTES, MAX_PIECES, OVERHEAD, RUN_BYTES, TAG_BYTES

BASE_MTU = 1200
"""Bytes of a datagram that every path carries: what is assumed until more is known."""
PACKED_HEAD = IP_AT
"""Bytes before the IP packet in a packed frame."""
_TCP = 6
_IPV4_KEY = 13
"""Bytes of a flow key of IPv4."""


class Tally:
    """What one direction of a flow has carried. The planes add to it themselves: `frames` and their `bytes`, or `supers` and `large`."""

    __slots__ = ("began", "bytes", "frames", "key", "large", "protocol", "rule", "seen", "seen_frames", "segment", "supers", "told")

    def __init__(self, key: bytes, protocol: int, now: float, rule: str) -> None:
        self.key = key
        """See `inner`: of this direction."""
        self.protocol = protocol
        self.rule = rule
        """Of the policy."""
        self.frames = self.bytes = 0
        """Packed frames of one packet each."""
        self.supers = self.large = self.segment = 0
        """Super-frames and their bytes, and of how many bytes the payloads are that they are cut into."""
        self.told = 0, 0
        """Packets and their bytes that the log has already."""
        self.began = self.seen = now
        self.seen_frames = 0

    @property
    def _header(self) -> int:
        """Bytes of IP's and the protocol's header: with the usual options of TCP."""
        return (20 if len(self.key) == _IPV4_KEY else 40) + (32 if self.protocol == _TCP else 8)

    @property
    def packets(self) -> int:
        """So far; a super-frame counts as those that it will be cut into."""
        payload = self.large - self.supers * (PACKED_HEAD + self._header)
        return self.frames + max(self.supers, -(-payload // self.segment) if self.segment else 0)

    @property
    def packet_bytes(self) -> int:
        """Of these packets, headers of each among them."""
        cut = self.packets - self.frames
        return self.bytes + self.large - PACKED_HEAD * (self.frames + self.supers) + (cut - self.supers) * self._header

    def looked_at(self, now: float) -> bool:
        """Note when frames were seen last, to within the time between two looks; False where there were none since the log was told."""
        frames = self.frames + self.supers
        if frames != self.seen_frames:
            self.seen, self.seen_frames = now, frames
        return self.packets > self.told[0]


class Tallies:
    """Those of one peer: by direction, TCP apart from the others; `others` by flow key, for what is looked up the slow way."""

    __slots__ = ("heard", "heard_tcp", "others", "places", "sent", "sent_tcp")

    def __init__(self) -> None:
        self.sent: dict[bytes, Tally] = {}
        self.sent_tcp: dict[bytes, Tally] = {}
        self.heard: dict[bytes, Tally] = {}
        self.heard_tcp: dict[bytes, Tally] = {}
        self.others: dict[bytes, Tally] = {}
        self.places = self.sent, self.sent_tcp, self.heard, self.heard_tcp, self.others

    def place(self, byte: int, inward: bool) -> dict[bytes, Tally]:
        """Where a frame is looked for, by its byte 21: that is the protocol of IPv4, and of IPv6 some byte of the source."""
        if byte == _TCP:
            return self.heard_tcp if inward else self.sent_tcp
        return self.heard if inward else self.sent

    def all(self) -> Iterator[tuple[bytes, Tally]]:
        """Each, with what it is found by."""
        for place in self.places:
            yield from place.items()


NO_TALLIES = Tallies()
"""Of all peers of which nothing was counted yet; it stays empty."""


class Adjacency:
    """One peer as the forwarding plane sees it: its session, and the way there.

    The way is `endpoint`, or else `hop`, the adjacency of a relay with an endpoint; neither while there is none.
    """

    __slots__ = (
        "_each", "_less", "_most", "addresses", "asked", "carrier", "channel", "complain_at", "endpoint", "failed", "flows", "groups",
        "heard", "hop", "ident", "indexes", "inner_mtu", "ipv6", "mac", "macs", "name", "piece", "reachable", "refused", "relay_header",
        "reports", "rx_bytes", "rx_frames", "session", "stray", "tallies", "told_at", "tx_bytes", "tx_frames", "tx_pieces", "tx_records",
        "width",
    )  # fmt: skip

    def __init__(self, ident: Ident, ipv6: bytes, our_mac: bytes, widest: int = MAX_PIECES) -> None:
        self.ident = ident
        self.mac = mac_of(ident)
        self.macs = our_mac + self.mac
        """Destination and source of the frames that it sends us."""
        self.ipv6 = ipv6
        """The one IPv6 address (16 bytes) from which this peer may send."""
        self.name = ""
        self.groups: tuple[str, ...] = ()
        """Which the policy knows; its certificate says them."""
        self.flows: Flows | None = None
        """What the policy has allowed with this peer; None until it is asked."""
        self.tallies = NO_TALLIES
        """What passes, where that is counted; `Counting` sets the ones that outlive the link."""
        self.session: ISession | None = None
        self.channel: ISealedChannel | None = None
        """That of `session`: what we seal with."""
        self.indexes: tuple[int, ...] = ()
        """Our receiver indexes that mean this peer."""
        self.endpoint: Endpoint | None = None
        self.carrier: ITransport
        """The transport that carries datagrams to `endpoint`; set together with it."""
        self.piece = BASE_MTU - HEADER_BYTES
        """Bytes of a record that one datagram to `endpoint` carries."""
        self.hop: Adjacency | None = None
        self.relay_header = b""
        """What stands before a record that goes by way of `hop`."""
        self.width = Width(widest)
        self.reachable = False
        """Whether frames can leave for this peer now."""
        self._most = self._each = self._less = 0
        self.inner_mtu = 0
        """Largest IP packet that reaches the peer in one datagram; 0 while that is not known or will soon change."""
        self.complain_at = float("-inf")
        """When the kernel may be told again that its packets for this peer are too large."""
        self.told_at = float("-inf")
        """When the peer may be told again that it sends us frames for an address that is not ours."""
        self.stray: Endpoint | None = None
        """The last endpoint reported by `IForwardingControl.path_seen`, so that it is reported once."""
        self.addresses: set[bytes] = set()
        """IPv4 addresses (4 bytes) that are verifiably leased to this peer."""
        self.asked: dict[bytes, list[bytes]] = {}
        """IPv4 address -> frames that wait for its verification."""
        self.refused: dict[bytes, float] = {}
        """IPv4 address -> until when it is known not to be this peer's."""
        self.tx_frames = self.tx_bytes = self.rx_frames = self.rx_bytes = 0
        self.tx_records = self.tx_pieces = 0
        self.reports = 0
        """How often the peer has told what it opened."""
        self.failed = 0
        """Records in several pieces that did not open."""
        self.heard = False
        """Whether records were opened since the peer was last told."""

    @property
    def room(self) -> int:
        """Bytes of plaintext that a record for this peer may have, by the width of its path and by what one send takes."""
        return min(self.width.pieces, self._most) * self._each - self._less

    def measure(self) -> None:
        """Reckon anew what follows from session and way, after a change of them."""
        hop = self if self.endpoint is not None else self.hop
        self.reachable = self.channel is not None and hop is not None and hop.channel is not None and hop.endpoint is not None
        if hop is not None:
            self._each = hop.piece
            self._most = min(MAX_PIECES, RUN_BYTES // (hop.piece + HEADER_BYTES))
            self._less = TAG_BYTES if hop is self else TAG_BYTES + OVERHEAD + len(self.relay_header)


class Fib:
    """Adjacencies by ident, by MAC and by receiver index. Readers use the three dicts directly; nobody else writes them."""

    _log = Logger()

    def __init__(self, ident: Ident, prefix: IPv6Network, widest: int = MAX_PIECES) -> None:
        """The table of node `ident`, whose records have at most `widest` pieces."""
        self.mac = mac_of(ident)
        self.widest = widest
        self.prefix = prefix
        self.by_ident: dict[Ident, Adjacency] = {}
        self.by_mac: dict[bytes, Adjacency] = {}
        self.by_index: dict[int, tuple[ISession, ISealedChannel, Adjacency]] = {}
        self._carrier: Callable[[Endpoint], ITransport] | None = None

    def carry_by(self, carrier: Callable[[Endpoint], ITransport]) -> None:
        """From now on ask `carrier` which transport carries to an endpoint: once for each path, never for a datagram."""
        self._carrier = carrier

    def update(
        self,
        ident: Ident,
        sessions: Sequence[ISession],
        endpoint: Endpoint | None,
        name: str = "",
        mtu: int = BASE_MTU,
        hop: Ident | None = None,
        relay_header: bytes = b"",
        sealing: bool = True,
        groups: tuple[str, ...] = (),
    ) -> Adjacency | None:
        """Say what is now true of a peer: its established sessions (the first one seals, all open), its direct path or the relay to it.

        Without `sealing` frames for it wait: it may not have its keys yet.

        `mtu` is the longest datagram, in bytes, that the direct path carries. Counters and verified addresses stay. Gives None, and logs,
        when another peer already has the same MAC: 46 bits agree by accident once in a hundred million networks of a thousand nodes,
        and never by a peer's choice.
        """
        adjacency = self.by_ident.get(ident) or self._add(ident)
        if adjacency is None:
            return None
        if (adjacency.name, adjacency.groups) != (name or adjacency.name, groups):
            adjacency.name, adjacency.groups, adjacency.flows = name or adjacency.name, groups, None
        before = adjacency.channel
        adjacency.session = sessions[0] if sessions and sealing else None
        adjacency.channel = sessions[0].channel if sessions and sealing else None
        relay = self.by_ident.get(hop) if hop is not None and endpoint is None else None
        if (adjacency.endpoint, adjacency.hop) != (endpoint, relay):
            adjacency.endpoint, adjacency.hop, adjacency.stray = endpoint, relay, None
            if endpoint is not None and self._carrier is not None:
                adjacency.carrier = self._carrier(endpoint)
            self._path_changed(adjacency)
        elif (before is None and adjacency.channel is not None) or (relay is not None and adjacency.relay_header != relay_header):
            self._path_changed(adjacency)
        adjacency.piece = mtu - HEADER_BYTES
        adjacency.inner_mtu = mtu - OVERHEAD - PACKED_HEAD if endpoint is not None else 0
        adjacency.relay_header = relay_header
        self._measure(adjacency)
        self._index(adjacency, sessions)
        return adjacency

    def remove(self, ident: Ident) -> None:
        """Forget a peer; unknown idents are fine."""
        adjacency = self.part(ident)
        if adjacency is not None:
            self.bury(adjacency)

    def part(self, ident: Ident) -> Adjacency | None:
        """Send a peer nothing more, but go on opening what it has sent already, until `bury`."""
        adjacency = self.by_ident.pop(ident, None)
        if adjacency is not None:
            del self.by_mac[adjacency.mac]
            adjacency.session = adjacency.channel = adjacency.endpoint = adjacency.hop = None
            self._measure(adjacency)
        return adjacency

    def bury(self, adjacency: Adjacency) -> None:
        """Open nothing more of a peer that we have parted from."""
        self._index(adjacency, ())

    def _measure(self, adjacency: Adjacency) -> None:
        """Of this peer, and of those that are reached through it."""
        adjacency.measure()
        for other in self.by_ident.values():
            if other.hop is adjacency:
                other.measure()

    def disown(self, ident: Ident, address: IPv4Address) -> None:
        """Stop believing that `address` is leased to `ident`: the next frame from it asks again."""
        adjacency = self.by_ident.get(ident)
        if adjacency is not None:
            adjacency.addresses.discard(address.packed)

    def _add(self, ident: Ident) -> Adjacency | None:
        adjacency = Adjacency(ident, ipv6_of(self.prefix, ident).packed, self.mac, self.widest)
        holder = self.by_mac.setdefault(adjacency.mac, adjacency)
        if holder is not adjacency:
            self._log.error("mac_collision ident={ident} holder={holder}", ident=short(ident), holder=short(holder.ident))
            return None
        self.by_ident[ident] = adjacency
        return adjacency

    def _path_changed(self, adjacency: Adjacency) -> None:
        """Nothing is known of the way to a peer, nor of that to others by way of it."""
        for one in self.by_ident.values():
            if one is adjacency or one.hop is adjacency:
                if one.channel is not None:
                    one.width.forget(one.channel.send_index, one.channel.reserve(0))
                else:
                    one.width.forget()

    def _index(self, adjacency: Adjacency, sessions: Sequence[ISession]) -> None:
        for index in adjacency.indexes:
            del self.by_index[index]
        free = [session for session in sessions if session.local_index not in self.by_index]
        for session in free:
            assert session.channel is not None
            self.by_index[session.local_index] = (session, session.channel, adjacency)
        adjacency.indexes = tuple({session.local_index: None for session in free})
        if len(free) < len(sessions):
            self._log.error("index_collision ident={ident}", ident=short(adjacency.ident))
