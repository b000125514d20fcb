"""The forwarding plane: frames from the kernel to the peer that owns the destination, datagrams from peers to the kernel.

It obeys the FIB and decides nothing: what is slow, rare or a decision goes to `IForwardingControl`. Functions stand in the
order in which a packet travels, first out, then in.

Out: known MAC -> seal -> send. Questions for neighbours are answered here, so that no ARP and no neighbour discovery is ever
carried. Broadcast and multicast end here. In: receiver index -> open -> source check -> kernel. The overlay is one
Ethernet-like segment: TTL and hop limit stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from typing import Literal, get_args

from twisted.python.failure import Failure
from zope.interface import implementer

from ipop_tx.errors import BadDatagram, IpopError
from ipop_tx.forwarding import neighbour, source
from ipop_tx.forwarding.fib import Adjacency, Fib
from ipop_tx.forwarding.neighbour import ETHERTYPE_IPV4, ETHERTYPE_IPV6
from ipop_tx.interfaces import IForwardingControl, IFramePort, IFrameReceiver, ISession, ITransport
from ipop_tx.log import Logger
from ipop_tx.values import Endpoint, Ident
from ipop_tx.wire.address import ipv6_of, mac_of
from ipop_tx.wire.datagram import FRAME, OVERHEAD

Drop = Literal[
    "out_runt",  # shorter than an Ethernet header
    "out_ethertype",  # neither ARP nor IP
    "out_dhcp",  # a DHCP client asks; nobody answers it yet
    "out_multicast",  # broadcast, multicast, router solicitations, MLD
    "out_own_address",  # a duplicate address probe for our own address: silence is the right answer
    "out_neighbour",  # a question for a neighbour that is malformed or not about the overlay
    "out_unresolved",  # nobody owns the address
    "out_unknown_mac",  # no peer has this MAC (any more)
    "out_busy",  # too many look-ups under way
    "in_forged",  # a sealed datagram that does not open: forged, replayed or too old
    "in_stranger",  # a frame from an ident that is no adjacency
    "in_runt",  # shorter than its headers
    "in_source_mac",  # a MAC that is not the sender's
    "in_destination_mac",  # a MAC that is not ours
    "in_ethertype",  # not IP
    "in_neighbour",  # neighbour discovery: a peer could claim the address of another
    "in_source_address",  # an IP address that is not the sender's
    "in_destination_address",  # an IP address that is not ours
    "in_unverified",  # too many frames or addresses of one peer wait for verification
]
"""Every reason for which a frame or datagram is dropped; the keys of `ForwardingPlane.dropped`."""

WAITING_FRAMES = 64
"""Frames kept for one MAC whose owner is being looked up."""
WAITING_LOOKUPS = 1024
"""Look-ups of the resolver under way at a time."""

_DHCP_SERVER_PORT = b"\x00\x43"


@implementer(IFrameReceiver)
class ForwardingPlane:
    """Carries the frames of one node.

    Give it to the port as receiver; hand it every datagram first (`receive`), and `deliver` what came in another way.
    """

    _log = Logger()

    def __init__(
        self, ident: Ident, fib: Fib, port: IFramePort, transport: ITransport, control: IForwardingControl, clock: Callable[[], float]
    ) -> None:
        self.fib = fib
        self.dropped: dict[str, int] = dict.fromkeys(get_args(Drop), 0)
        self._port = port
        self._transport = transport
        self._control = control
        self._clock = clock
        self._mac = mac_of(ident)
        self._ipv4: bytes | None = None
        self._ipv6 = ipv6_of(fib.prefix, ident).packed
        self._questions: dict[IPv4Address | IPv6Address, neighbour.Request] = {}
        self._homeless: dict[bytes, list[bytes]] = {}
        self._check = source.SourceCheck(fib, control, clock, self._deliver_ipv4, self._drop)

    def configure(self, ipv4: IPv4Address | None) -> None:
        """Our own IPv4 address, None while there is none. Frames for any other are dropped."""
        self._ipv4 = ipv4.packed if ipv4 is not None else None

    # out

    def frame_received(self, frame: bytes | memoryview) -> None:
        """A frame from the kernel."""
        adjacency = self.fib.by_mac.get(bytes(frame[:6]))
        if adjacency is not None and _is_carried(frame):
            self._send(adjacency, frame)
        else:
            self._exceptional(frame)

    def _send(self, adjacency: Adjacency, frame: bytes | memoryview) -> None:
        adjacency.tx_frames += 1
        adjacency.tx_bytes += len(frame)
        session, endpoint = adjacency.session, adjacency.endpoint
        if session is None or endpoint is None:
            self._control.send_frame(adjacency.ident, bytes(frame))
        else:
            self._transport.write(endpoint, session.protect(FRAME, frame))

    def _exceptional(self, frame: bytes | memoryview) -> None:
        request = neighbour.parse(frame)
        if request is not None:
            self._asked(request)
        elif len(frame) < 14:
            self._drop("out_runt")
        elif frame[0] & 1:
            self._drop(_why_not_multicast(frame))
        elif _is_carried(frame):
            self._unknown_mac(frame)
        else:
            self._drop("out_neighbour" if frame[12:14] in (ETHERTYPE_IPV6, neighbour.ETHERTYPE_ARP) else "out_ethertype")

    def _asked(self, request: neighbour.Request) -> None:
        target = request.target
        if target.packed in (self._ipv4, self._ipv6):
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
            self._port.write(neighbour.answer(request, mac_of(owner)))

    def _unknown_mac(self, frame: bytes | memoryview) -> None:
        """The kernel remembers a peer that we have forgotten: find it again rather than lose its packets."""
        mac, target = bytes(frame[:6]), _destination(frame)
        if target is None or (isinstance(target, IPv6Address) and target not in self.fib.prefix):
            self._drop("out_unknown_mac")
        elif mac in self._homeless:
            self._wait(self._homeless[mac], frame)
        elif len(self._homeless) >= WAITING_LOOKUPS:
            self._drop("out_busy")
        else:
            self._homeless[mac] = [bytes(frame)]
            self._control.resolve(target).addErrback(self._unanswered).addCallback(partial(self._found, mac))

    def _wait(self, frames: list[bytes], frame: bytes | memoryview) -> None:
        if len(frames) < WAITING_FRAMES:
            frames.append(bytes(frame))
        else:
            self._drop("out_busy")

    def _found(self, mac: bytes, owner: Ident | None) -> None:
        frames = self._homeless.pop(mac)
        if owner is None or mac_of(owner) != mac:
            self._drop("out_unknown_mac", len(frames))
            return
        adjacency = self.fib.by_ident.get(owner)
        for frame in frames:
            if adjacency is not None:
                self._send(adjacency, frame)
            else:
                self._control.send_frame(owner, frame)

    def _unanswered(self, failure: Failure) -> None:
        """No answer is an answer; only a fault of our own is worth a line."""
        if not isinstance(failure.value, IpopError):
            self._log.failure("resolve_failed", failure)

    # in

    def receive(self, endpoint: Endpoint, datagram: bytes | memoryview) -> bool:
        """A datagram from `endpoint`. True when it was ours: sealed, with a receiver index of the FIB."""
        if len(datagram) < OVERHEAD or not 128 <= datagram[0] <= 191:
            return False
        entry = self.fib.by_index.get(int.from_bytes(datagram[:4], "big"))
        if entry is None:
            return False
        session, adjacency = entry
        try:
            kind, payload = session.unprotect(datagram)
        except BadDatagram:
            self._drop("in_forged")
            return True
        if kind != FRAME:
            self._control.unsealed(endpoint, session, kind, payload)
            return True
        if endpoint != adjacency.endpoint:
            self._strayed(adjacency, session, endpoint)
        self._received(adjacency, payload)
        return True

    def deliver(self, ident: Ident, frame: bytes) -> None:
        """A frame that `ident` sent by another way than a datagram of its own; checked like any other."""
        adjacency = self.fib.by_ident.get(ident)
        if adjacency is None:
            self._drop("in_stranger")
        else:
            self._received(adjacency, frame)

    def _strayed(self, adjacency: Adjacency, session: ISession, endpoint: Endpoint) -> None:
        if endpoint != adjacency.stray:
            adjacency.stray = endpoint
            self._control.path_seen(session, endpoint)

    def _received(self, adjacency: Adjacency, frame: bytes) -> None:
        adjacency.rx_frames += 1
        adjacency.rx_bytes += len(frame)
        adjacency.rx_last = self._clock()
        if len(frame) < 34:
            self._drop("in_runt")
        elif frame[6:12] != adjacency.mac:
            self._drop("in_source_mac")
        elif frame[:6] != self._mac:
            self._drop("in_destination_mac")
        elif frame[12:14] == ETHERTYPE_IPV4:
            self._deliver_ipv4(adjacency, frame)
        elif frame[12:14] == ETHERTYPE_IPV6:
            self._deliver_ipv6(adjacency, frame)
        else:
            self._drop("in_ethertype")

    def _deliver_ipv4(self, adjacency: Adjacency, frame: bytes) -> None:
        if frame[14] >> 4 != 4:
            self._drop("in_runt")
        elif frame[30:34] != self._ipv4:
            self._drop("in_destination_address")
        elif frame[26:30] in adjacency.addresses:
            self._port.write(frame)
        else:
            self._check.unknown(adjacency, frame[26:30], frame)

    def _deliver_ipv6(self, adjacency: Adjacency, frame: bytes) -> None:
        if len(frame) < 54 or frame[14] >> 4 != 6:
            self._drop("in_runt")
        elif neighbour.is_discovery(frame):
            self._drop("in_neighbour")
        elif frame[22:38] != adjacency.ipv6:
            self._drop("in_source_address")
        elif frame[38:54] != self._ipv6:
            self._drop("in_destination_address")
        else:
            self._port.write(frame)

    def _drop(self, reason: Drop, count: int = 1) -> None:
        self.dropped[reason] += count


def _is_carried(frame: bytes | memoryview) -> bool:
    """Whether the frame is IP traffic of programs: neighbour discovery, also when it is unicast, is answered here."""
    ethertype = frame[12:14]
    if ethertype == ETHERTYPE_IPV4:
        return True
    return bool(ethertype == ETHERTYPE_IPV6 and not neighbour.is_discovery(frame))


def _why_not_multicast(frame: bytes | memoryview) -> Drop:
    ethertype = bytes(frame[12:14])
    if ethertype == ETHERTYPE_IPV4:
        start = 14 + (frame[14] & 15) * 4 if len(frame) > 14 else 14
        return "out_dhcp" if frame[23:24] == b"\x11" and frame[start + 2 : start + 4] == _DHCP_SERVER_PORT else "out_multicast"
    if ethertype in (ETHERTYPE_IPV6, neighbour.ETHERTYPE_ARP):
        return "out_multicast"
    return "out_ethertype"


def _destination(frame: bytes | memoryview) -> IPv4Address | IPv6Address | None:
    if frame[12:14] == ETHERTYPE_IPV4:
        return IPv4Address(bytes(frame[30:34])) if len(frame) >= 34 else None
    return IPv6Address(bytes(frame[38:54])) if len(frame) >= 54 else None
