"""The forwarding plane: frames from the kernel to the peer that owns the destination, datagrams from peers to the kernel.

It obeys the FIB and decides nothing: what is slow, rare or a decision goes to `IForwardingControl`. The ordinary ways of a packet are
`Outbound` and `Inbound`; here is what is put around them, and what is not ordinary.

Questions for neighbours are answered here, so that no ARP and no neighbour discovery is ever carried. Broadcast and multicast end here.
The overlay is one Ethernet-like segment: TTL and hop limit stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Literal, get_args

from twisted.python.failure import Failure
from zope.interface import implementer

from ipop_tx.errors import BadDatagram, IpopError
from ipop_tx.forwarding import dhcp, neighbour
from ipop_tx.forwarding.counting import Counting
from ipop_tx.forwarding.delivery import Delivery
from ipop_tx.forwarding.fib import PACKED_HEAD, Adjacency, Fib
from ipop_tx.forwarding.inbound import Inbound
from ipop_tx.forwarding.mtu import clamp_mss, too_big
from ipop_tx.forwarding.neighbour import ETHERTYPE_IPV4, ETHERTYPE_IPV6
from ipop_tx.forwarding.offload import GSO_NONE, NEEDS_CHECKSUM, PLAIN, payload_at
from ipop_tx.forwarding.outbound import Outbound
from ipop_tx.forwarding.policing import Policing
from ipop_tx.forwarding.relaying import Relaying
from ipop_tx.forwarding.sealing import Sealing
from ipop_tx.forwarding.source import SourceCheck
from ipop_tx.forwarding.waiting import Room, Waiting
from ipop_tx.interfaces import IDatagramReceiver, IForwardingControl, IFramePort, IFrameReceiver, ITransport, ITransports
from ipop_tx.log import Logger
from ipop_tx.values import Endpoint, Ident
from ipop_tx.wire.address import ipv6_of, mac_of
from ipop_tx.wire.datagram import HEADER_BYTES
from ipop_tx.wire.dhcp import Message

Drop = Literal[
    "out_runt",  # shorter than an Ethernet header
    "out_ethertype",  # neither ARP nor IP
    "out_dhcp",  # a DHCP client asks something malformed, or asks a node that has no guests
    "out_dhcp_server",  # a DHCP server beside us: it serves nobody elsewhere
    "out_multicast",  # broadcast, multicast, router solicitations, MLD
    "out_own_address",  # for our own address or a guest's, or a question about it: whoever has it answers for itself
    "out_neighbour",  # a question for a neighbour that is malformed or not about the overlay
    "out_unresolved",  # nobody owns the address
    "out_unknown_mac",  # no peer has this MAC (any more)
    "out_busy",  # too many look-ups under way, or frames waiting for one link
    "out_unreachable",  # no link to the peer could be made
    "out_policy",  # the network's policy does not allow it
    "in_policy",  # the same, of a peer
    "in_forged",  # a sealed datagram that does not open: forged, replayed or too old
    "in_runt",  # shorter than its headers
    "in_malformed",  # a super-frame or a bundle that does not add up
    "in_ethertype",  # not IP
    "in_neighbour",  # neighbour discovery: a peer could claim the address of another
    "in_dhcp",  # a DHCP server or client elsewhere: each node serves its own guests
    "in_source_address",  # an IP address that is not the sender's
    "in_destination_address",  # an IP address that is neither ours nor a guest's
    "relay_malformed",  # a relayed record with a senseless header
    "relay_ttl",  # a relayed record that has gone too far
    "relay_no_route",  # a relayed record of which nobody knows the next hop
    "in_unverified",  # too many frames or addresses of one peer wait for verification
]
"""Every reason for which a frame or datagram is dropped; the keys of `ForwardingPlane.dropped`."""

WAITING_LOOKUPS = 1024
"""Look-ups of the resolver, and nodes that frames wait for, at a time."""

COMPLAIN_EVERY = 0.1
"""Seconds between two ICMP errors about packets for one peer."""
_ETHERTYPES = (ETHERTYPE_IPV4, ETHERTYPE_IPV6, neighbour.ETHERTYPE_ARP)

TELL_EVERY = 0.25
"""Seconds until a peer is told again that an address is not ours."""


@implementer(IFrameReceiver, IDatagramReceiver)
class ForwardingPlane:
    """Carries the frames of one node, and relays those of others.

    Give it to the port and to the transport as receiver; what is not its own goes on to `control_plane`. Tell it of every change of
    the FIB (`fib_changed`).
    """

    _log = Logger()

    def __init__(
        self,
        ident: Ident,
        fib: Fib,
        port: IFramePort,
        transport: ITransport,
        control: IForwardingControl,
        clock: Callable[[], float],
        control_plane: IDatagramReceiver,
    ) -> None:
        self.fib = fib
        self.dhcp: Callable[[Message], bool] = lambda question: False
        """Asked what a DHCP client on the port asks; whether such clients are served."""
        self.heard: Callable[[bytes, bytes], None] = lambda mac, address: None
        """Hears of MAC and IPv4 address of whoever speaks ARP on the port."""
        self.dropped: dict[str, int] = dict.fromkeys(get_args(Drop), 0)
        self._ident = ident
        self._port = port
        self._control = control
        self._control_plane = control_plane
        self._clock = clock
        self._ipv4: bytes | None = None
        self._ipv6 = ipv6_of(fib.prefix, ident).packed
        self._questions: dict[IPv4Address | IPv6Address, neighbour.Request] = {}
        room = Room()
        self._homeless, self._waiting = Waiting(room, WAITING_LOOKUPS), Waiting(room, WAITING_LOOKUPS)
        """Frames whose MAC's owner is being looked up, by MAC; those for nodes that cannot be reached yet, by ident."""
        self._connecting: set[Ident] = set()
        # Build everything ...
        self.delivery = Delivery(port, fib.mac, self._ipv6, self._drop, lambda *unverified: self._check.unknown(*unverified))
        sealing = Sealing(transport)
        fib.carry_by(transport.carrier if ITransports.providedBy(transport) else lambda endpoint: transport)
        self.outbound = Outbound(fib, port, sealing, self._exceptional, self._unreachable, self._narrowed, self._refuse)
        self.relaying = Relaying(ident, fib, control, sealing, clock, self._drop)
        self.inbound = Inbound(
            fib, self.delivery, partial(self._drop, "in_forged"), self.relaying.received, control, control_plane.datagram_received, clock
        )
        self._check = SourceCheck(fib, control, clock, self.delivery.verified, self._drop)
        # ... then wire everything.
        self.delivery.misdirected = self._misdirected
        self.relaying.nested = self.inbound.nested
        self.outbound.waiting = self._drained
        self.frames_waiting = self.outbound.frames_waiting
        self.run_received = self.inbound.run
        self.drained = self.outbound.drained

    def configure(self, ipv4: IPv4Address | None) -> None:
        """Our own IPv4 address, None while there is none. Frames for any other are dropped, but for those of guests."""
        if self._ipv4 is not None:
            self.serve(self._ipv4, None)
        self._ipv4 = ipv4.packed if ipv4 is not None else None
        if self._ipv4 is not None:
            self.serve(self._ipv4, self.fib.mac)

    def serve(self, ipv4: bytes, mac: bytes | None) -> None:
        """Deliver frames for an IPv4 address (4 bytes) to a MAC on the port; None: no more."""
        self.delivery.ours.pop(ipv4, None)
        if mac is not None:
            self.delivery.ours[ipv4] = mac

    @property
    def policing(self) -> Policing | None:
        """What enforces the network's policy; None while there is none."""
        return self.outbound.policing

    def police(self, policing: Policing | None) -> None:
        """Carry and deliver only what `policing` admits; None: everything."""
        self.outbound.policing = policing
        self.delivery.police(policing)

    @property
    def counting(self) -> Counting | None:
        """What counts flows; None: nothing does."""
        return self.outbound.counting

    def count(self, counting: Counting | None) -> None:
        """Have flows counted, or not any more."""
        self.outbound.counting = counting
        self.delivery.count(counting)

    def _refuse(self, peer: Adjacency, packed: memoryview) -> None:
        self._drop("out_policy")
        if self.outbound.counting is not None:
            self.outbound.counting.refuse(peer, packed)

    def announce(self, address: IPv4Address, owner: Ident) -> None:
        """Have the kernel send what goes to an address to its new owner from now on, if it sends anything there."""
        self._port.writev((PLAIN, neighbour.announcement(address, mac_of(owner))))

    def counters(self) -> dict[str, int]:
        """What was dropped, by reason, and what was relayed; without zeros."""
        found = {**self.dropped, "relayed_records": self.relaying.relayed, "in_incomplete": self.inbound.reassembly.lost}
        found["flows_unlogged"] = self.counting.unlogged if self.counting is not None else 0
        return {name: count for name, count in found.items() if count}

    def fib_changed(self, adjacency: Adjacency) -> None:
        """A peer may be reachable now: send what waits for it. Next hops are asked for anew."""
        self.relaying.forget()
        if adjacency.reachable:
            self._send_waiting(adjacency)

    def burst_ended(self) -> None:
        """The transport has delivered what it had. The kernel may have answered already: look, rather than wait to be told."""
        try:
            self.inbound.burst_ended()
            if not self.outbound.held:
                self.outbound.frames_waiting()
        finally:  # last, since it may wait for the disk; whatever happens, since answers wait for it
            self._control_plane.burst_ended()

    def path_lost(self, endpoint: Endpoint) -> None:
        """A connection of the transport has ended: the control plane decides what follows."""
        self._control_plane.path_lost(endpoint)

    def datagram_received(self, endpoint: Endpoint, datagram: bytes | memoryview) -> None:
        """A datagram that did not come in a run."""
        head = bytearray(datagram[:HEADER_BYTES])
        body = memoryview(bytearray(datagram[HEADER_BYTES:]))
        self.inbound.run(endpoint, head, body, len(datagram), len(datagram))

    # frames for peers that cannot be reached yet

    def _unreachable(self, peer: Adjacency, packed: bytes) -> None:
        self._wait_for(peer.ident, packed)

    def _wait_for(self, ident: Ident, packed: bytes) -> None:
        """A frame is never dropped for want of a link: it waits for one, and only the first few do."""
        if self._waiting.add(ident, packed):
            self._connect(ident)
        else:
            self._drop("out_busy")

    def _connect(self, ident: Ident) -> None:
        if ident not in self._connecting:
            self._connecting.add(ident)
            self._control.connect(ident).addErrback(self._unanswered).addCallback(self._connected, ident)

    def _connected(self, outcome: Any, ident: Ident) -> None:
        """A link is there, or cannot be made. Mostly `fib_changed` has sent the frames already."""
        self._connecting.discard(ident)
        adjacency = self.fib.by_ident.get(ident)
        if adjacency is not None and adjacency.reachable:
            self.fib_changed(adjacency)
        else:
            self._drop("out_unreachable", len(self._waiting.take(ident)))

    def _send_waiting(self, adjacency: Adjacency) -> None:
        """What waits for a peer, as long as the transport takes more; the rest goes when that is drained."""
        while not self.outbound.held and (packed := self._waiting.next(adjacency.ident)) is not None:
            self.outbound.send(adjacency, packed)

    def _drained(self) -> None:
        """The transport takes more: frames that only waited for that."""
        for ident in self._waiting:
            adjacency = self.fib.by_ident.get(ident)
            if adjacency is not None and adjacency.reachable:
                self._send_waiting(adjacency)
            else:  # nobody does it for those that could be reached when the transport was full, and cannot any more
                self._connect(ident)

    def _narrowed(self, peer: Adjacency, packed: memoryview) -> None:
        """A frame for a peer whose path is narrower than our interface: it goes in pieces, and its sender is told to make smaller ones."""
        length, mtu = len(packed), peer.inner_mtu
        clamp_mss(packed, length, mtu)
        if _packet_bytes(packed) > mtu and self._clock() >= peer.complain_at:
            answer = too_big(packed, length, mtu)
            if answer is not None:
                peer.complain_at = self._clock() + COMPLAIN_EVERY
                source = bytes(packed[24:28]) if packed[10:12] == ETHERTYPE_IPV4 else b""
                macs = self.delivery.ours.get(source, self.fib.mac) + peer.mac
                self._port.writev((answer[:10], macs, answer[10:]))

    def _misdirected(self, peer: Adjacency, address: bytes) -> None:
        now = self._clock()
        if now >= peer.told_at:
            peer.told_at = now + TELL_EVERY
            self._control.misdirected(peer.ident, IPv4Address(address))

    # frames that are not simply for a peer

    def _exceptional(self, macs: bytes, packed: memoryview) -> None:
        frame = macs + bytes(packed[10:])
        request, speaker = neighbour.parse(frame), neighbour.heard(frame)
        if speaker is not None:
            self.heard(*speaker)
        if request is not None:
            self._asked(request)
        elif len(frame) < 14:
            self._drop("out_runt")
        elif frame[12:14] == ETHERTYPE_IPV4 and dhcp.is_dhcp(packed):
            self._dhcp(frame, packed)
        elif frame[0] & 1:
            self._drop("out_multicast" if frame[12:14] in _ETHERTYPES else "out_ethertype")
        elif _is_carried(frame):
            self._unknown_mac(frame, bytes(packed))
        else:
            self._drop("out_neighbour" if frame[12:14] in (ETHERTYPE_IPV6, neighbour.ETHERTYPE_ARP) else "out_ethertype")

    def _dhcp(self, frame: bytes, packed: memoryview) -> None:
        question = None if dhcp.is_from_server(packed) else dhcp.parse(frame, not packed[0] & NEEDS_CHECKSUM)
        if question is None or not self.dhcp(question):
            self._drop("out_dhcp_server" if dhcp.is_from_server(packed) else "out_dhcp")

    def _asked(self, request: neighbour.Request) -> None:
        target = request.target
        if target.packed in self.delivery.ours or target.packed == self._ipv6:
            self._drop("out_own_address")
        elif isinstance(target, IPv6Address) and target not in self.fib.prefix:
            self._drop("out_neighbour")
        elif target in self._questions:  # the kernel repeats itself every second: one look-up, one answer
            self._questions[target] = request
        elif len(self._questions) >= WAITING_LOOKUPS:
            self._drop("out_busy")
        else:
            self._questions[target] = request
            self._control.resolve(target).addErrback(self._unanswered).addCallback(partial(self._answer, target))

    def _answer(self, target: IPv4Address | IPv6Address, owner: Ident | None) -> None:
        request = self._questions.pop(target)
        if owner is None:
            self._drop("out_unresolved")
        else:
            self._port.writev((PLAIN, neighbour.answer(request, mac_of(owner))))

    def _unknown_mac(self, frame: bytes, packed: bytes) -> None:
        """The kernel remembers a peer that we have forgotten: find it again rather than lose its packets."""
        mac, target = frame[:6], _destination(frame)
        if target is not None and target.packed in self.delivery.ours:  # a bridge does not know yet where that is, and tries everywhere
            self._drop("out_own_address")
            return
        if target is None or (isinstance(target, IPv6Address) and target not in self.fib.prefix):
            self._drop("out_unknown_mac")
            return
        known = mac in self._homeless
        if not self._homeless.add(mac, packed):
            self._drop("out_busy")
        elif not known:
            self._control.resolve(target).addErrback(self._unanswered).addCallback(partial(self._found, mac))

    def _found(self, mac: bytes, owner: Ident | None) -> None:
        frames = self._homeless.take(mac)
        if owner is None or mac_of(owner) != mac:
            self._drop("out_unknown_mac", len(frames))
            return
        adjacency = self.fib.by_ident.get(owner)
        for packed in frames:
            if adjacency is not None and adjacency.reachable and not self.outbound.held:
                self.outbound.send(adjacency, packed)
            else:
                self._wait_for(owner, packed)

    def _unanswered(self, failure: Failure) -> None:
        """No answer is an answer; only a fault of our own is worth a line."""
        if not isinstance(failure.value, IpopError):
            self._log.failure("resolve_failed", failure)

    def _drop(self, reason: Drop, count: int = 1) -> None:
        self.dropped[reason] += count


def _is_carried(frame: bytes | memoryview) -> bool:
    """Whether the frame is IP traffic of programs: neighbour discovery, also when it is unicast, is answered here."""
    ethertype = frame[12:14]
    if ethertype == ETHERTYPE_IPV4:
        return True
    return bool(ethertype == ETHERTYPE_IPV6 and not neighbour.is_discovery(frame))


def _packet_bytes(packed: memoryview) -> int:
    """Bytes of a frame's IP packet, or of the packets that a super-frame will be cut into."""
    length = len(packed)
    if packed[1] == GSO_NONE:
        return length - PACKED_HEAD
    try:
        return payload_at(packed, length) - PACKED_HEAD + int.from_bytes(packed[4:6], "little")
    except BadDatagram:
        return 0


def _destination(frame: bytes | memoryview) -> IPv4Address | IPv6Address | None:
    if frame[12:14] == ETHERTYPE_IPV4:
        return IPv4Address(bytes(frame[30:34])) if len(frame) >= 34 else None
    return IPv6Address(bytes(frame[38:54])) if len(frame) >= 54 else None
