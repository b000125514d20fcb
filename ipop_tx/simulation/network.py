"""A net of simulated nodes: datagrams take time and get lost, nodes crash and come back, all decided by one seed."""

from __future__ import annotations

import hashlib
import heapq
import itertools
from collections.abc import Callable
from ipaddress import IPv4Network, IPv6Network
from math import hypot
from random import Random
from typing import Any

from zope.interface import implementer

from ipop_tx.core import commands as c
from ipop_tx.core.dht.replica import genesis
from ipop_tx.core.events import CharterAdopted, Fault, KeyRevoked, SendNear, SideDone, SideSend, SideWanted
from ipop_tx.core.node import Node
from ipop_tx.core.tasks import Future
from ipop_tx.errors import PeerRefused
from ipop_tx.identity.store import MemoryReplicaStore
from ipop_tx.interfaces import IRecordSigner
from ipop_tx.session.plain import PlainSessionFactory
from ipop_tx.values import Endpoint, Ident, Network, Peer, key_digest
from ipop_tx.wire.messages import Charter, Revocation

LARGEST_DATAGRAM = 65507
"""Most bytes that UDP over IPv4 carries."""
NETWORK = Network(
    "simulated", hashlib.sha256(b"simulated").digest()[:20], IPv4Network("10.128.0.0/16"), IPv6Network("fd12:3456:789a::/48"), shards=32
)


@implementer(IRecordSigner)
class PlainSigner:
    """Signatures that anybody could forge, of the usual size, for nodes that do not try."""

    def __init__(self, ident: Ident, assigned: bytes = b"", issued: int = 1, wall: Callable[[], float] = lambda: 0.0) -> None:
        """`assigned` is an address that the authority has given to this node, at the time `issued`."""
        self.ident = ident
        self.signer = ident
        self.charter = 0
        self.assigned = assigned
        self.credential = ident + assigned + issued.to_bytes(4, "big") if assigned else ident
        self.wall = wall

    def sign(self, data: bytes) -> bytes:
        """A digest over signer and data."""
        return hashlib.sha512(self.ident + data).digest()

    def verify(self, signer: bytes, data: bytes, signature: bytes) -> Ident | None:
        """The signer, if the digest is right."""
        return signer[:20] if hashlib.sha512(signer[:20] + data).digest() == signature else None

    def key(self, signer: bytes) -> bytes:
        """Of a node that has no key."""
        return key_digest(signer[:20])

    def by_authority(self, data: bytes, signature: bytes, ever: bool = False) -> bool:
        """Whether the authority that all simulated networks share has signed."""
        return signature == hashlib.sha512(b"authority" + data).digest()

    def adopt(self, charter: Charter, text: bytes) -> bool:
        """Whatever comes next and is signed."""
        good = charter.number == self.charter + 1 and self.by_authority(text, charter.signature)
        self.charter += good
        return good

    def admitted(self, credential: bytes) -> Peer | None:
        """Whoever has a credential is a member."""
        return Peer(credential[:20], "")

    def assignment(self, signer: bytes) -> tuple[bytes, int]:
        """What a proof says."""
        return (signer[20:24], int.from_bytes(signer[24:], "big")) if len(signer) == 28 else (b"", 0)


def _let_in(node: Node, peer: Peer) -> None:
    """As credentials do it."""
    if node.revocations.is_out(peer):
        raise PeerRefused(f"{peer.name} was thrown out")


class SimulatedNode:
    """One machine: an address, a disk, and a `Node` while it runs."""

    def __init__(self, net: SimulatedNet, number: int, network: Network) -> None:
        self.net = net
        self.number = number
        self.ident: Ident = hashlib.sha256(b"node" + number.to_bytes(8, "big")).digest()[:20]
        self.peer = Peer(self.ident, f"n{number}")
        self.endpoint = Endpoint("udp", f"192.0.{number >> 8 & 255}.{number & 255}", 4500 + (number >> 16))
        self.place = (net.rng.random(), net.rng.random())
        self.network = network
        self.store = MemoryReplicaStore()
        self.signer = PlainSigner(self.ident, wall=lambda: net.now)
        self.node: Node | None = None
        self.revoked: list[Revocation] = []
        self.charters: list[Charter] = []
        """Both on disk."""
        self.started = 0
        self.sides: dict[int, int] = {}
        """The ports of the sockets that the node has asked for, by number."""
        self._armed: float | None = None

    @property
    def running(self) -> Node:
        """The node, which must be running."""
        assert self.node is not None, f"n{self.number} is down"
        return self.node

    @property
    def up(self) -> bool:
        """Whether it is on."""
        return self.node is not None

    def start(self, *bootstrap: SimulatedNode) -> Future[None]:
        """Power on and join through other machines. The future is settled when the node has its place on the ring."""
        self.started += 1
        rng = Random(f"{self.net.seed}/{self.number}/{self.started}")
        sessions = PlainSessionFactory(self.peer, rng)
        node = self.node = Node(self.peer, self.network, rng, sessions, self.signer, self.store, now=self.net.now)
        self.signer.charter = 0
        node.charters.restore(self.charters)
        node.revocations.restore(self.revoked)
        sessions.verify = lambda peer: _let_in(node, peer)
        self.submit(c.Reachable((self.endpoint,)))
        return self.submit(c.Start(tuple(other.endpoint for other in bootstrap)))

    def crash(self) -> None:
        """Power off, without a word. The disk stays."""
        self.node = self._armed = None
        self.sides.clear()

    def submit(self, command: object) -> Future[Any]:
        """Ask the node for something."""
        future = self.running.submit(self.net.now, command)
        self.settle()
        return future

    def receive(self, source: Endpoint, datagram: bytes) -> None:
        """A datagram arrives, if the machine is on."""
        if self.node is not None:
            self.node.receive_datagram(self.net.now, source, datagram)
            self.settle()

    def receive_aside(self, source: Endpoint, datagram: bytes, port: int) -> None:
        """A datagram arrives at another port than the node's own one."""
        for number in [number for number, side in self.sides.items() if side == port]:
            self.running.receive_aside(self.net.now, number, source, datagram)
            self.settle()

    def wake(self, moment: float) -> None:
        """A timer that was armed for `moment`."""
        if self.node is not None and self._armed == moment:
            self._armed = None
            self.node.handle_timeout(self.net.now)
            self.settle()

    def settle(self) -> None:
        """The driver's part of the contract of `Node`."""
        node = self.node
        if node is None:
            return
        while (event := node.poll_event()) is not None:
            if isinstance(event, Fault):
                self.net.faults.append(f"n{self.number} at {self.net.now:.3f}: {event.text}")
            if isinstance(event, KeyRevoked):
                self.revoked.append(event.order)
            if isinstance(event, CharterAdopted):
                self.charters.append(event.charter)
            self._beside(event)
            self.net.on_event(self, event)
        self.store.commit()
        while (sending := node.poll_transmit()) is not None:
            endpoint, datagram = sending
            if not endpoint.side:
                self.net.carry(self, endpoint, datagram)
            elif endpoint.side in self.sides:
                self.net.carry(self, endpoint.by_side(0), datagram, self.sides[endpoint.side])
        due = node.poll_timeout()
        if due is not None and (self._armed is None or due < self._armed):
            self._armed = due
            self.net.at(due, lambda: self.wake(due))

    def _beside(self, event: object) -> None:
        """Sockets besides the node's own one."""
        if isinstance(event, SideWanted):
            self.sides[event.number] = port = 49152 + event.number % 16384
            event.port.succeed(port)
        elif isinstance(event, SendNear) and event.endpoint.side in (0, *self.sides):
            ports = [self.sides[event.endpoint.side]] if event.endpoint.side else []
            self.net.carry_near(self, event.endpoint.by_side(0), event.datagram, event.hops, *ports)
        elif isinstance(event, SideSend) and event.number in self.sides:
            self.net.carry(self, event.endpoint, event.datagram, self.sides[event.number])
        elif isinstance(event, SideDone):
            self.sides.pop(event.number, None)


class SimulatedNet:
    """Machines on a unit square whose distance is their delay; `loss` in 0..1 and `reachable` decide what arrives."""

    def __init__(self, seed: int, loss: float = 0.0, width_s: float = 0.1, network: Network = NETWORK) -> None:
        self.seed = seed
        self.rng = Random(f"net/{seed}")
        self.loss = loss
        self.width_s = width_s
        self.network = network
        self.now = 0.0
        self.machines: dict[Endpoint, SimulatedNode] = {}
        self._hosts: dict[str, SimulatedNode] = {}
        self.faults: list[str] = []
        self.reachable: Callable[[SimulatedNode, SimulatedNode], bool] = lambda one, other: True
        self.mtu: Callable[[SimulatedNode, SimulatedNode], int] = lambda one, other: LARGEST_DATAGRAM
        """UDP payload of the largest datagram that gets from one machine to another; larger ones vanish."""
        self.on_event: Callable[[SimulatedNode, object], None] = lambda machine, event: None
        self.datagrams = 0
        self.bytes = 0
        self._queue: list[tuple[float, int, Callable[[], object]]] = []
        self._order = itertools.count()

    def add(self) -> SimulatedNode:
        """One more machine, switched off."""
        machine = SimulatedNode(self, len(self.machines), self.network)
        self.machines[machine.endpoint] = machine
        self._hosts[machine.endpoint.host] = machine
        return machine

    def founder(self) -> SimulatedNode:
        """A machine on whose disk the network was created."""
        machine = self.add()
        for row in genesis(machine.ident, self.network.shards):
            machine.store.put(*row)
        machine.store.commit()
        return machine

    def at(self, moment: float, call: Callable[[], object]) -> None:
        """Make `call` at `moment`."""
        heapq.heappush(self._queue, (max(moment, self.now), next(self._order), call))

    def carry(self, sender: SimulatedNode, endpoint: Endpoint, datagram: bytes, port: int | None = None) -> None:
        """Put a datagram on its way, from the sender's own port or another one."""
        self.datagrams += 1
        self.bytes += len(datagram) + 28
        source = self.source(sender, endpoint, port)
        receiver, inner = self.receiver(source, endpoint)
        if receiver is None or not self.reachable(sender, receiver) or (self.loss and self.rng.random() < self.loss):
            return
        if len(datagram) > self.mtu(sender, receiver):
            return
        (x, y), (u, v) = sender.place, receiver.place
        delay = 0.001 + self.width_s / 2 * hypot(x - u, y - v)
        arrive = (lambda: receiver.receive(source, datagram)) if inner is None else lambda: receiver.receive_aside(source, datagram, inner)
        self.at(self.now + delay, arrive)

    def carry_near(self, sender: SimulatedNode, endpoint: Endpoint, datagram: bytes, hops: int, *port: int) -> None:
        """The same with a hop limit."""
        if self.dies_on_its_way(sender, endpoint, next(iter(port), None), hops):
            self.datagrams += 1
            self.bytes += len(datagram) + 28
        else:
            self.carry(sender, endpoint, datagram, *port)

    def dies_on_its_way(self, sender: SimulatedNode, endpoint: Endpoint, port: int | None, hops: int) -> bool:
        """Whether the hop limit is too small. Between two machines there is one router."""
        return hops < 2

    def source(self, sender: SimulatedNode, endpoint: Endpoint, port: int | None) -> Endpoint:
        """Under which endpoint a machine's own port, or another one of it, is seen at another."""
        return sender.endpoint if port is None else sender.endpoint._replace(port=port)

    def receiver(self, source: Endpoint, endpoint: Endpoint) -> tuple[SimulatedNode | None, int | None]:
        """Which machine gets what `source` sends to an endpoint, and at which port if not at its own one."""
        machine = self.machines.get(endpoint)
        return (machine, None) if machine is not None else (self._hosts.get(endpoint.host), endpoint.port)

    def run(self, seconds: float, until: Callable[[], bool] | None = None) -> bool:
        """Let time pass, at most until the condition holds; gives whether it does."""
        end = self.now + seconds
        if until is not None and until():
            return True
        while self._queue and self._queue[0][0] <= end:
            self.now, _, call = heapq.heappop(self._queue)
            call()
            if until is not None and until():
                return True
        self.now = end
        return False

    def wait(self, future: Future[Any], seconds: float = 60.0) -> Any:
        """Let time pass until a future is settled; gives its result or raises its error."""
        assert self.run(seconds, lambda: future.done), f"not settled within {seconds} simulated seconds"
        return future.result()

    def running(self) -> list[SimulatedNode]:
        """The machines that are on."""
        return [machine for machine in self.machines.values() if machine.node is not None]
