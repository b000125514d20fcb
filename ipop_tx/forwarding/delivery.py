"""The last steps of a frame: does it belong to its sender and to us? Then the kernel gets it."""

from __future__ import annotations

import struct
from collections.abc import Callable

from ipop_tx.errors import BadDatagram
from ipop_tx.forwarding.counting import Counting
from ipop_tx.forwarding.dhcp import PORTS, SERVER_PORT, is_dhcp
from ipop_tx.forwarding.fib import PACKED_HEAD, Adjacency, Tally
from ipop_tx.forwarding.mtu import clamp_mss
from ipop_tx.forwarding.neighbour import ETHERTYPE_IPV4, ETHERTYPE_IPV6, is_discovery
from ipop_tx.forwarding.offload import PART, Joined, join_datagrams, payload_at
from ipop_tx.forwarding.policing import Policing
from ipop_tx.interfaces import IFramePort

_COUNT = struct.Struct("!H")
_TCP, _UDP = 6, 17
_PLAIN = 0x45  # version and header length of most IPv4 packets
_IPV4_LEAST, _IPV6_LEAST, _PORTS_END = PACKED_HEAD + 20, PACKED_HEAD + 40, PACKED_HEAD + 24


class Delivery:
    """Checks packed frames once each, however many segments they have, and writes them to the port."""

    def __init__(
        self,
        port: IFramePort,
        mac: bytes,
        ipv6: bytes,
        drop: Callable[..., None],
        unverified: Callable[[Adjacency, bytes, bytes], None],
    ) -> None:
        """`unverified` takes frames of an IPv4 source that is not known to be the peer's: (peer, address, packed frame)."""
        self.ours: dict[bytes, bytes] = {}
        """Our own IPv4 address and those of the guests behind us, and the MAC of each."""
        self.mac = mac
        """Our own."""
        self.misdirected: Callable[[Adjacency, bytes], None] = lambda peer, address: None
        """Hears of frames for an IPv4 address that is not ours."""
        self._admitted = self._addressed
        """Gives the MACs, destination and source, with which a frame goes to the kernel; None for one that does not."""
        self._policing: Policing | None = None
        self._counting: Counting | None = None
        self._unchecked = self._addressed
        self._head = b""
        """The beginning of the frame that is looked at, from the ethertype on."""
        self._tally: Tally | None = None
        """That of the frame before, where frames are counted."""
        self._port = port
        self._ipv6 = ipv6
        self._drop = drop
        self._unverified = unverified

    def frame(self, peer: Adjacency, packed: memoryview) -> None:
        """One frame of a peer."""
        peer.rx_frames += 1
        peer.rx_bytes += len(packed)
        macs = self._admitted(peer, packed)
        if macs is not None:
            self._write(peer, macs, packed)

    def bundle(self, peer: Adjacency, packed: memoryview) -> None:
        """Several frames, then their lengths, then their number."""
        lengths = _lengths(packed)
        if lengths is None:
            self.malformed()
            return
        count, at, place, many = len(lengths), 0, 0, 0
        peer.rx_frames += count
        peer.rx_bytes += len(packed)
        while place < count:
            length = lengths[place]
            if not many:  # counted once for each stretch of equal lengths, which may be as long as a peer likes
                many = 1
                while place + many < count and lengths[place + many] == length:
                    many += 1
            frame, taken = packed[at : at + length], 1
            macs = self._admitted(peer, frame)
            if macs is not None:  # once: it may wait from here on
                joined = join_datagrams(packed, at, length, many) if many > 1 and "uso" in self._port.offloads else None
                if joined is None:
                    self._write(peer, macs, frame)
                else:
                    taken = self._datagrams(macs, packed, at, length, joined)
                    if self._tally is not None:
                        self._tally.frames += taken - 1
                        self._tally.bytes += (taken - 1) * length
            place += taken
            many -= taken
            at += taken * length

    def malformed(self) -> None:
        """A frame that its peer has not made well."""
        self._drop("in_malformed")

    def verified(self, peer: Adjacency, packed: bytes) -> None:
        """A frame that waited for its source address to be verified."""
        view = memoryview(bytearray(packed))
        macs = self._admitted(peer, view)
        if macs is not None:
            self._write(peer, macs, view)

    def _datagrams(self, macs: bytes, packed: memoryview, at: int, length: int, joined: Joined) -> int:
        """Write datagrams of one flow and of one length as one; gives how many those were."""
        begin = at + joined.payload
        payloads = [packed[start : start + length - joined.payload] for start in range(begin, begin + joined.frames * length, length)]
        self._port.writev([joined.headers[:10], macs, joined.headers[10:], *payloads])
        return joined.frames

    def police(self, policing: Policing | None) -> None:
        """From now on the kernel gets what `policing` admits; None: whatever is for us."""
        self._policing = policing
        self._choose()

    def count(self, counting: Counting | None) -> None:
        """From now on count what comes, or do not."""
        self._counting = counting
        self._choose()

    def _choose(self) -> None:
        admitted = self._addressed if self._policing is None else self._allowed
        self._unchecked, self._admitted = admitted, admitted if self._counting is None else self._counted

    def _counted(self, peer: Adjacency, packed: memoryview) -> bytes | None:
        macs = self._unchecked(peer, packed)
        if macs is None or self._counting is None:
            return macs
        head = self._head
        if head[2] == _PLAIN:
            tally = (peer.tallies.heard_tcp if head[11] == _TCP else peer.tallies.heard).get(head[14:26])
        else:
            tally = (peer.tallies.heard_tcp if packed[21] == _TCP else peer.tallies.heard).get(bytes(packed[18:56]))
        if tally is None:
            tally = self._counting.begin(peer, packed, True)
        if packed[1]:
            if not tally.segment:
                tally.segment = packed[4] | packed[5] << 8
            tally.supers += 1
            tally.large += len(packed)
        else:
            tally.frames += 1
            tally.bytes += len(packed)
        self._tally = tally
        return macs

    def _allowed(self, peer: Adjacency, packed: memoryview) -> bytes | None:
        macs = self._addressed(peer, packed)
        if macs is None or self._policing is None or self._policing.admits(peer, packed, True):
            return macs
        if self._policing is not None and self._counting is not None:
            self._counting.refuse(peer, packed)
        self._drop("in_policy")
        return None

    def _addressed(self, peer: Adjacency, packed: memoryview) -> bytes | None:
        """Check that a frame is its sender's and for us."""
        # From the ethertype to the destination of IPv4, and the ports if no options are between.
        head = self._head = bytes(packed[10:_PORTS_END])
        ethertype = head[:2]
        if len(head) < _IPV4_LEAST - 10:
            self._drop("in_runt")
        elif ethertype == ETHERTYPE_IPV4:
            mac = self.ours.get(head[18:22])
            if head[2] >> 4 != 4:
                self._drop("in_runt")
            elif mac is None:
                self._drop("in_destination_address")
                self.misdirected(peer, head[18:22])
            elif (
                head[11] == _UDP
                and (len(head) < 26 or head[25] in PORTS or head[23] == SERVER_PORT or head[2] != _PLAIN)
                and is_dhcp(packed)
            ):
                self._drop("in_dhcp")
            elif head[14:18] in peer.addresses:
                return peer.macs if mac is self.mac else mac + peer.mac
            else:
                self._unverified(peer, head[14:18], bytes(packed))
        elif ethertype == ETHERTYPE_IPV6 and len(packed) >= _IPV6_LEAST:
            return self._admitted_ipv6(peer, packed)
        else:
            self._drop("in_ethertype")
        return None

    def _admitted_ipv6(self, peer: Adjacency, packed: memoryview) -> bytes | None:
        if packed[12] >> 4 != 6:
            self._drop("in_runt")
        elif packed[18] not in (_TCP, _UDP) and is_discovery(bytes(14) + packed[PACKED_HEAD:]):
            self._drop("in_neighbour")
        elif packed[20:36] != peer.ipv6:
            self._drop("in_source_address")
        elif packed[36:52] != self._ipv6:
            self._drop("in_destination_address")
        else:
            return peer.macs
        return None

    def _write(self, peer: Adjacency, macs: bytes, packed: memoryview) -> None:
        if 0 < peer.inner_mtu < self._port.mtu:
            clamp_mss(packed, len(packed), peer.inner_mtu)
        headers = 0
        if packed[1]:
            try:
                headers = payload_at(packed, len(packed)) + 2
            except BadDatagram:
                self.malformed()
                return
        PART.pack_into(packed, 2, headers)
        self._port.writev((packed[:10], macs, packed[10:]))


def _lengths(packed: memoryview) -> tuple[int, ...] | None:
    """The lengths of a bundle's frames; None when they are not those of this bundle."""
    end = len(packed) - 2
    if end < 0:
        return None
    (count,) = _COUNT.unpack_from(packed, end)
    begin = end - 2 * count
    if begin < 0 or not count:
        return None
    lengths = struct.unpack_from(f"!{count}H", packed, begin)
    return lengths if sum(lengths) == begin else None
