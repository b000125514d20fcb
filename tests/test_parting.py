"""Whole daemons but for TAP, sockets and disk: no frame is lost when a link ends that was not needed, nor when it is needed again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from itertools import count, permutations
from random import Random

from cryptography import x509
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ipop_tx.core import commands as c
from ipop_tx.core import events as e
from ipop_tx.core.dht.replica import genesis
from ipop_tx.core.links.link import LINGER, UNNEEDED
from ipop_tx.core.links.spare import IDLE
from ipop_tx.core.node import Node
from ipop_tx.forwarding.memory import FramePair
from ipop_tx.identity.store import MemoryReplicaStore
from ipop_tx.services.chord import ChordProtocol, ChordService
from ipop_tx.services.forwarding import ForwardingService
from ipop_tx.session.dtls import DtlsSessionFactory
from ipop_tx.simulation.network import NETWORK, PlainSigner
from ipop_tx.transport.memory import MemoryNet
from ipop_tx.values import Endpoint, Peer
from ipop_tx.wire.address import ipv6_of, mac_of
from tests.test_session import SelfSigned

DELAY = 0.02
STEP = 0.02
NODES = 14


class SlowNet(MemoryNet):
    """Every datagram takes its time."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self._clock = clock

    def carry(self, source: Endpoint, destination: Endpoint, datagram: bytes) -> None:
        self._clock.callLater(DELAY, self._arrive, source, destination, datagram)


class Named(SelfSigned):
    """A name stands for an ident."""

    def verify(self, chain: list[x509.Certificate]) -> Peer:
        return peer_of(super().verify(chain).name)


def peer_of(name: str) -> Peer:
    """Who has a name."""
    return Peer(hashlib.sha256(name.encode()).digest()[:20], name)


class Daemon:
    """A node with both planes."""

    def __init__(self, clock: Clock, net: MemoryNet, number: int) -> None:
        self.peer = peer_of(f"d{number}")
        self.ident = self.peer.ident
        self.ip6, self.mac = ipv6_of(NETWORK.prefix, self.ident), mac_of(self.ident)
        self.endpoint = Endpoint("mem", f"192.0.2.{number + 1}", 4500)
        store = MemoryReplicaStore()
        for row in genesis(self.ident, NETWORK.shards) if not number else ():
            store.put(*row)
        store.commit()
        factory = DtlsSessionFactory(Named(self.peer.name))
        self.node = Node(self.peer, NETWORK, Random(number), factory, PlainSigner(self.ident), store, now=clock.seconds())
        self.protocol = ChordProtocol(clock, self.node, store, clock.seconds)
        self.port = FramePair()
        transport = net.transport(self.endpoint.host, self.endpoint.port)
        self.forwarding = ForwardingService(clock, self.protocol, self.port, transport)
        self.ring = ChordService(self.protocol, transport, lambda: ())
        self.ring.receiver = self.forwarding.plane
        self.ends: list[e.LinkDown] = []
        self.faults: list[object] = []
        self.protocol.on(e.LinkDown, self.ends.append)
        self.protocol.on(e.Fault, self.faults.append)

    def start(self, *bootstrap: Daemon) -> None:
        self.port.start(self.forwarding.plane)
        self.ring._bootstrap = lambda: tuple(other.endpoint for other in bootstrap)
        self.forwarding.startService()
        self.ring.startService()
        self.protocol.submit(c.Reachable((self.endpoint,)))

    def stop(self) -> None:
        self.ring.stopService()
        self.forwarding.stopService()

    def needs(self, other: Daemon) -> bool:
        return any(needs(other.ident) for needs in self.node.spare.needs)


class PartingTests(SynchronousTestCase):
    """Two of a net who do not need each other but for the frames that they exchange."""

    def setUp(self) -> None:
        self.clock = Clock()
        net = SlowNet(self.clock)
        self.daemons = [Daemon(self.clock, net, number) for number in range(NODES)]
        for number, daemon in enumerate(self.daemons):
            self.addCleanup(daemon.stop)
            daemon.start(*self.daemons[:number][-1:])
            self.run_for(1.0)
        self.run_for(40.0)
        self.a, self.b = next(pair for pair in permutations(self.daemons, 2) if not pair[0].needs(pair[1]) and not pair[1].needs(pair[0]))
        self._numbers = count()
        self.expected: dict[Daemon, list[bytes]] = {self.a: [], self.b: []}
        self.frame(self.a, self.b)
        self.frame(self.b, self.a)
        self.run_for(3.0)
        self.all_arrived()
        for daemon in self.daemons:
            daemon.ends.clear()

    def run_for(self, seconds: float, until: Callable[[], bool] = lambda: False) -> None:
        end = self.clock.seconds() + seconds
        while self.clock.seconds() < end and not until():
            self.clock.advance(STEP)

    def frame(self, one: Daemon, other: Daemon) -> None:
        """The kernel of one sends the other a small packet."""
        payload = b"frame %6d" % next(self._numbers)
        head = b"\x60\0\0\0" + len(payload).to_bytes(2, "big") + b"\x3b\x40"
        one.port.give(other.mac + one.mac + b"\x86\xdd" + head + one.ip6.packed + other.ip6.packed + payload)
        self.expected[other].append(payload)

    def all_arrived(self) -> None:
        """Each frame, once."""
        for daemon, expected in self.expected.items():
            got = [frame[54:] for frame in daemon.port.taken if frame[54:].startswith(b"frame")]
            self.assertEqual(sorted(got), expected)
        self.assertEqual([fault for daemon in self.daemons for fault in daemon.faults], [])

    def parted(self) -> bool:
        return self.a.node.link(self.b.ident) is None and self.b.node.link(self.a.ident) is None

    def test_frames_just_then(self) -> None:
        """From the first moment of the end to the last: both kernels send all the while."""
        began: list[float] = []
        for one, other in ((self.a, self.b), (self.b, self.a)):
            drop = one.node.links.drop
            self.patch(one.node.links, "drop", self.sending(drop, one, other, began))
        self.run_for(IDLE + 60, lambda: bool(began))
        self.assertTrue(began)
        for _ in range(10):
            self.run_for(STEP)
            self.frame(self.a, self.b)
            self.frame(self.b, self.a)
        self.run_for(5.0)
        self.all_arrived()
        ends = [end for daemon, peer in ((self.a, self.b), (self.b, self.a)) for end in daemon.ends if end.ident == peer.ident]
        self.assertEqual([end.reason for end in ends], [UNNEEDED] * 2)
        self.assertFalse(self.parted())

    def sending(self, drop: Callable[..., None], one: Daemon, other: Daemon, began: list[float]) -> Callable[..., None]:
        """Ends links like `drop`; both kernels send just before it and at the same moment."""

        def dropping(link: object, reason: str, tell: bool = True) -> None:
            if getattr(link, "ident", None) == other.ident:
                began.append(self.clock.seconds())
                self.frame(one, other)
                self.frame(other, one)
                drop(link, reason, tell)
                self.frame(other, one)
                self.clock.callLater(0, self.frame, one, other)
            else:
                drop(link, reason, tell)

        return dropping

    def indexes(self) -> set[int]:
        """The sessions by which A's plane would still open what B seals."""
        return {index for index, entry in self.a.forwarding.fib.by_index.items() if entry[2].ident == self.b.ident}

    def test_after_a_while(self) -> None:
        """The planes forget the link and all of its sessions; the next frame brings another up."""
        self.run_for(IDLE + 60, self.parted)
        self.assertTrue(self.parted())
        self.assertNotIn(self.b.ident, self.a.forwarding.fib.by_ident)
        self.assertNotEqual(self.indexes(), set(), "what is on its way still arrives")
        self.run_for(LINGER + 1)
        self.assertEqual(self.indexes(), set())
        self.frame(self.a, self.b)
        self.frame(self.b, self.a)
        self.run_for(2.0)
        self.all_arrived()

    def test_a_frame_now_and_then(self) -> None:
        """One small frame each way in a minute and a half keeps the link."""
        for _ in range(4):
            self.run_for(0.75 * IDLE)
            self.frame(self.a, self.b)
            self.run_for(1.0)
        self.all_arrived()
        self.assertEqual([end for end in self.a.ends if end.ident == self.b.ident], [])
