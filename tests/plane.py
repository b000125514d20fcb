"""Around forwarding planes in tests: sessions that seal cheaply or really, a control plane that is a table, a wire that a test holds."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any
from zlib import crc32

from cryptography.exceptions import InvalidTag
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from zope.interface import implementer

from ipop_tx.errors import BadDatagram
from ipop_tx.forwarding.fib import BASE_MTU, Adjacency, Fib
from ipop_tx.forwarding.memory import FramePair
from ipop_tx.forwarding.plane import ForwardingPlane
from ipop_tx.interfaces import IDatagramReceiver, IForwardingControl, ISealedChannel, ISession, ITransport
from ipop_tx.session.replay import ReplayWindow
from ipop_tx.session.sealed import Algorithm, SealedChannel
from ipop_tx.values import Endpoint, Ident, Network
from ipop_tx.wire.address import ipv6_of, mac_of
from ipop_tx.wire.datagram import HEADER, HEADER_BYTES, OVERHEAD, TAG_BYTES
from ipop_tx.wire.relay import Relayed

NETWORK = Network("lab", bytes(20), IPv4Network("10.128.0.0/16"), IPv6Network("fd12:3456:789a::/48"))

Buffer = bytes | bytearray | memoryview

# --- sessions ---------------------------------------------------------------------------------------


@implementer(ISealedChannel)
class ClearChannel:
    """Seals nothing: the plaintext stays readable, and the "tag" is a checksum of nonce and data, which a test can forge."""

    def __init__(self, send_index: int) -> None:
        self.send_index = send_index
        self.datagrams_opened = self.datagrams_sealed = 0
        self._window = ReplayWindow()

    @staticmethod
    def tag(nonce: Buffer, data: Buffer) -> bytes:
        return crc32(data, crc32(nonce)).to_bytes(4, "big") * 4

    @property
    def highest(self) -> int:
        return self._window.highest

    def reserve(self, count: int) -> int:
        self.datagrams_sealed += count
        return self.datagrams_sealed - count

    def encrypt(self, nonce: Buffer, data: Buffer, associated: None, into: Any) -> int:
        if len(nonce) != 12 or len(into) != len(data) + TAG_BYTES:
            raise ValueError("as the real one")
        into[:] = bytes(data) + self.tag(nonce, data)
        return len(into)

    def decrypt(self, nonce: Buffer, data: Buffer, associated: None, into: Any) -> int:
        if len(nonce) != 12 or len(into) != len(data) - TAG_BYTES:
            raise ValueError("as the real one")
        plain, tag = bytes(data[:-TAG_BYTES]), bytes(data[-TAG_BYTES:])
        into[:] = plain if tag == self.tag(nonce, plain) else b"\xdd" * len(into)
        if tag != self.tag(nonce, plain):
            raise InvalidTag
        return len(into)

    def fresh(self, counter: int) -> bool:
        return self._window.fresh(counter)

    def accept(self, counter: int) -> None:
        self._window.accept(counter)
        self.datagrams_opened += 1

    def accept_run(self, first: int, count: int) -> None:
        assert first == self.highest + 1
        for counter in range(first, first + count):
            self.accept(counter)


@implementer(ISession)
class ClearSession:
    """An established session around a channel: a `ClearChannel`, or the one that is given."""

    established = True
    failure = None
    initiated = True
    opening = bytes(32)
    peer = None
    renewable = False
    tag = bytes(8)

    def __init__(self, local_index: int, remote_index: int, channel: Any = None) -> None:
        self.local_index = local_index
        self.channel = channel or ClearChannel(remote_index)

    def protect(self, kind: int, payload: bytes | memoryview, counter: int | None = None) -> bytes:
        """Seal one record in one piece, with a counter of the test's choice if it likes."""
        channel = self.channel
        header = HEADER.pack(channel.send_index, kind, 0, 1, 0, channel.reserve(1) if counter is None else counter)
        sealed = bytearray(len(payload) + TAG_BYTES)
        channel.encrypt(header[4:], payload, None, memoryview(sealed))
        return header + bytes(sealed)

    def unprotect(self, datagram: bytes | memoryview) -> tuple[int, bytes]:
        _, kind, _, _, _, counter = HEADER.unpack_from(datagram)
        opened = bytearray(len(datagram) - OVERHEAD)
        try:
            self.channel.decrypt(datagram[4:HEADER_BYTES], datagram[HEADER_BYTES:], None, memoryview(opened))
        except InvalidTag:
            raise BadDatagram("forged") from None
        self.channel.accept(counter)
        return kind, bytes(opened)

    def receive(self, now: float, datagram: bytes | memoryview) -> None:
        raise AssertionError("no handshake here")

    def handle_timeout(self, now: float) -> None:
        raise AssertionError("no handshake here")

    def poll_transmit(self) -> None:
        return None

    def poll_timeout(self) -> None:
        return None

    def offer(self) -> bytes:
        raise AssertionError("no renewal here")

    def renew(self, public: bytes) -> ClearSession:
        raise AssertionError("no renewal here")

    def close(self) -> None:
        return None


def clear_pair(one: int, other: int) -> tuple[ClearSession, ClearSession]:
    """Both ends of a session; the arguments are their receiver indexes."""
    return ClearSession(one, other), ClearSession(other, one)


def sealed_pair(one: int, other: int) -> tuple[ClearSession, ClearSession]:
    """The same with AES-GCM."""
    keys = one.to_bytes(4, "big") * 8, other.to_bytes(4, "big") * 8
    return (
        ClearSession(one, other, SealedChannel(*keys, other, one, Algorithm.AES_128_GCM)),
        ClearSession(other, one, SealedChannel(*keys[::-1], one, other, Algorithm.AES_128_GCM)),
    )


def pieces_of(record: bytes, piece: int) -> list[bytes]:
    """A record that is in one datagram, cut into pieces of `piece` bytes. Its tag must have been made for as many."""
    parts = [record[at : at + piece] for at in range(HEADER_BYTES, len(record), piece)]
    return [record[:5] + bytes((number, len(parts))) + record[7:HEADER_BYTES] + part for number, part in enumerate(parts)]


# --- the control plane ------------------------------------------------------------------------------


@implementer(IForwardingControl)
class TableControl:
    """Answers from `owners` and `hops`; `later` makes the answers wait in `waiting` until a test fires them."""

    def __init__(self, owners: dict[IPv4Address | IPv6Address, Ident] | None = None) -> None:
        self.owners = owners if owners is not None else {}
        self.hops: dict[Ident, tuple[Ident, Ident | None]] = {}
        self.later = False
        self.failure: Exception | None = None
        self.waiting: list[Deferred[Any]] = []
        self.calls: list[tuple[Any, ...]] = []
        self.opened_of: list[Adjacency] = []

    def _result(self, value: Any) -> Deferred[Any]:
        if self.failure is not None:
            return fail(self.failure)
        if not self.later:
            return succeed(value)
        self.waiting.append(Deferred())
        return self.waiting[-1]

    def resolve(self, address: IPv4Address | IPv6Address) -> Deferred[Ident | None]:
        self.calls.append(("resolve", address))
        return self._result(self.owners.get(address))

    def owns(self, ident: Ident, address: IPv4Address) -> Deferred[bool]:
        self.calls.append(("owns", ident, address))
        return self._result(self.owners.get(address) == ident)

    def misdirected(self, ident: Ident, address: IPv4Address) -> None:
        self.calls.append(("misdirected", ident, address))

    def connect(self, ident: Ident) -> Deferred[Any]:
        self.calls.append(("connect", ident))
        return self._result(None)

    def next_hop(self, target: Ident, came_by: Ident) -> tuple[Ident, Ident | None] | None:
        self.calls.append(("next_hop", target, came_by))
        return self.hops.get(target)

    def unsealed(self, endpoint: Endpoint, session: ISession, kind: int, payload: bytes) -> None:
        self.calls.append(("unsealed", endpoint, session, kind, payload))

    def opened(self, adjacency: Any) -> None:
        """Noted apart from `calls`, since it happens for nearly every frame."""
        self.opened_of.append(adjacency)
        adjacency.heard = True

    def path_seen(self, session: ISession, endpoint: Endpoint) -> None:
        self.calls.append(("path_seen", session, endpoint))


@implementer(IDatagramReceiver)
class Sink:
    """Keeps what the plane leaves to the control plane."""

    def __init__(self) -> None:
        self.datagrams: list[bytes] = []
        self.bursts = 0

    def datagram_received(self, endpoint: Endpoint, datagram: bytes | memoryview) -> None:
        self.datagrams.append(bytes(datagram))

    def run_received(self, endpoint: Endpoint, heads: bytearray, bodies: memoryview, size: int, total: int) -> None:
        raise AssertionError("the plane takes runs apart")

    def burst_ended(self) -> None:
        self.bursts += 1

    def drained(self) -> None:
        raise AssertionError("the plane knows that")

    def path_lost(self, endpoint: Endpoint) -> None:
        raise AssertionError("no connections here")


# --- the wire ---------------------------------------------------------------------------------------


@implementer(ITransport)
class Wire:
    """Keeps what is sent, datagram by datagram, and holds whoever writes a run to the contract of `ITransport`."""

    scheme = "mem"
    datagram_bytes = 0

    def __init__(self) -> None:
        self.sent: list[tuple[Endpoint, bytes]] = []
        self.runs: list[tuple[int, int]] = []
        """Size and number of datagrams of each run."""
        self.full = False

    def start(self, receiver: IDatagramReceiver) -> None:
        raise AssertionError("the test delivers")

    def stop(self) -> None:
        raise AssertionError("nothing to stop")

    def write(self, endpoint: Endpoint, datagram: bytes | memoryview) -> None:
        self.sent.append((endpoint, bytes(datagram)))

    def layout(self, buffers: Sequence[memoryview]) -> Sequence[memoryview]:
        if len(buffers) > 1 and any(len(head) != HEADER_BYTES for head in buffers[::2]):
            raise AssertionError("neither one buffer nor head, body, head, body, ...")
        return tuple(buffers)

    def write_run(self, endpoint: Endpoint, buffers: Sequence[bytes | memoryview], size: int, total: int) -> bool:
        if len(buffers) > 1 and any(len(body) != size - HEADER_BYTES for body in buffers[1 : 2 * -(-total // size) - 1 : 2]):
            raise AssertionError("the buffers are laid out for another size")
        run = b"".join(buffers)[:total]
        count = -(-total // size)
        if len(run) != total or not 0 < count <= 64 or total > 65000 or len(buffers) > 128:
            raise AssertionError(f"no run: {len(run)} bytes, said to be {total} in datagrams of {size}")
        self.runs.append((size, count))
        self.sent += [(endpoint, run[at : at + size]) for at in range(0, total, size)]
        return not self.full

    def local_endpoints(self) -> list[Endpoint]:
        return []

    def take(self) -> list[tuple[Endpoint, bytes]]:
        """What was sent since the last time."""
        sent, self.sent = self.sent, []
        return sent


def run_of(datagrams: Sequence[bytes]) -> tuple[bytearray, memoryview, int, int]:
    """The arguments of `run_received` after the endpoint; what a short last datagram does not fill is stale, as on a real transport."""
    size, total = len(datagrams[0]), sum(map(len, datagrams))
    body = max(0, size - HEADER_BYTES)
    heads, bodies = bytearray(b"\xa5" * HEADER_BYTES * len(datagrams)), bytearray(b"\xa5" * (body * len(datagrams) + 32))
    for place, datagram in enumerate(datagrams):
        head, rest = datagram[:HEADER_BYTES], datagram[HEADER_BYTES:]
        heads[place * HEADER_BYTES : place * HEADER_BYTES + len(head)] = head
        bodies[place * body : place * body + len(rest)] = rest
    return heads, memoryview(bodies), size, total


def receive_run(plane: ForwardingPlane, endpoint: Endpoint, datagrams: Sequence[bytes]) -> None:
    """Deliver some datagrams as one run, and spoil the buffers afterwards: whoever kept them sees what the interface promised, nothing."""
    heads, bodies, size, total = run_of(datagrams)
    plane.run_received(endpoint, heads, bodies, size, total)
    heads[:] = b"\x5a" * len(heads)
    bodies[:] = b"\x5a" * len(bodies)


def gathered(datagrams: Iterable[bytes], goes_on: Callable[[], bool] = lambda: True) -> list[list[bytes]]:
    """Datagrams as GRO joins them: of one size, the last of a run possibly shorter, no more than fit. `goes_on` may end a run anywhere."""
    runs: list[list[bytes]] = []
    for datagram in datagrams:
        last = runs[-1] if runs else [b""]
        joins = len(last[0]) == len(last[-1]) >= len(datagram) and datagram and sum(map(len, last)) + len(datagram) <= 65535
        if joins and len(last) < 64 and goes_on():
            last.append(datagram)
        else:
            runs.append([datagram])
    return runs


# --- planes that talk to each other -----------------------------------------------------------------


class Member:
    """A node of which there is only the forwarding plane."""

    def __init__(self, number: int, clock: Clock | None = None, mtu: int = 9000) -> None:
        self.number = number
        self.ident = bytes((number,)) * 20
        self.ip = IPv4Address(f"10.128.0.{number}")
        self.ip6 = ipv6_of(NETWORK.prefix, self.ident)
        self.mac = mac_of(self.ident)
        self.endpoint = Endpoint("mem", f"192.0.2.{number}", 4500)
        self.clock = clock or Clock()
        self.port, self.wire, self.elsewhere, self.control = FramePair(mtu=mtu), Wire(), Sink(), TableControl()
        self.fib = Fib(self.ident, NETWORK.prefix)
        self.plane = ForwardingPlane(self.ident, self.fib, self.port, self.wire, self.control, self.clock.seconds, self.elsewhere)
        self.plane.configure(self.ip)
        self.port.start(self.plane)

    def adjacency(self, other: Member) -> Adjacency:
        return self.fib.by_ident[other.ident]

    def knows(
        self, other: Member, sessions: Sequence[ClearSession], mtu: int = BASE_MTU, by: Member | None = None, via: Sequence[Member] = ()
    ) -> Adjacency:
        """Write the FIB: `other` is reached directly, or by way of `by` and through `via`."""
        header = Relayed(other.ident, self.ident, b"", via=tuple(one.ident for one in via)).traffic_header()
        if by is None:
            adjacency = self.fib.update(other.ident, sessions, other.endpoint, f"m{other.number}", mtu)
        else:
            adjacency = self.fib.update(other.ident, sessions, None, f"m{other.number}", hop=by.ident, relay_header=header)
        assert adjacency is not None
        adjacency.addresses.add(other.ip.packed)
        self.plane.fib_changed(adjacency)
        return adjacency

    def give(self, frames: Iterable[bytes]) -> None:
        """Frames in port layout that wait together in the kernel."""
        self.port.pause()
        for frame in frames:
            self.port.give_super(frame)
        self.port.resume()

    def dropped(self) -> dict[str, int]:
        return {reason: count for reason, count in self.plane.dropped.items() if count}


class Planes:
    """Some members and the net between them."""

    def __init__(self, count: int, sealed: bool = False, mtu: int = BASE_MTU) -> None:
        self.clock = Clock()
        self.members = [Member(number, self.clock) for number in range(1, count + 1)]
        self.sealed = sealed
        self.mtu = mtu
        self._indexes = 0x80000000
        self._by_endpoint = {one.endpoint: one for one in self.members}

    def session(self) -> tuple[ClearSession, ClearSession]:
        self._indexes += 2
        return (sealed_pair if self.sealed else clear_pair)(self._indexes, self._indexes + 1)

    def join(self, one: Member, other: Member, mtu: int | None = None) -> tuple[ClearSession, ClearSession]:
        """A direct link."""
        ends = self.session()
        one.knows(other, [ends[0]], mtu or self.mtu)
        other.knows(one, [ends[1]], mtu or self.mtu)
        return ends

    def carry(self, way: Callable[[list[bytes]], list[list[bytes]]] = gathered, by_run: bool = True) -> list[bytes]:
        """Deliver until the net is quiet. `way` makes of what one member sends another the runs that arrive. Gives all that was sent."""
        everything: list[bytes] = []
        while moving := [(one, sent) for one in self.members if (sent := one.wire.take())]:
            for sender, sent in moving:
                everything += [datagram for _, datagram in sent]
                for endpoint in dict.fromkeys(endpoint for endpoint, _ in sent):
                    receiver = self._by_endpoint[endpoint]
                    self.deliver(sender, receiver, way([datagram for to, datagram in sent if to == endpoint]), by_run)
        return everything

    def deliver(self, sender: Member, receiver: Member, runs: Iterable[Sequence[bytes]], by_run: bool = True) -> None:
        for run in runs:
            if by_run:
                receive_run(receiver.plane, sender.endpoint, run)
            else:
                for datagram in run:
                    receiver.plane.datagram_received(sender.endpoint, datagram)
        receiver.plane.burst_ended()


def shuffler(seed: int, lose: float = 0.0, double: float = 0.0, displace: float = 0.0) -> Callable[[list[bytes]], list[bytes]]:
    """What a bad path makes of some datagrams: some lost, some twice, some up to ten places late."""
    rng = random.Random(seed)

    def shuffled(datagrams: list[bytes]) -> list[bytes]:
        kept = [one for one in datagrams if rng.random() >= lose for _ in range(1 + (rng.random() < double))]
        places = [place + (rng.uniform(0, 10) if rng.random() < displace else 0) for place in range(len(kept))]
        return [kept[place] for place in sorted(range(len(kept)), key=places.__getitem__)]

    return shuffled
