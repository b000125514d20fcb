"""Registers over the link model: all of a daemon's control plane but handshakes and sealing, fast enough for millions of operations.

On the ring of `linkmodel` stand the daemons' replicas, coordinators, views, clients and leases, unchanged. Each node has a disk: what it
says or answers leaves it only after the commit, and a crash may come before the commit, after it, or half-way through the sending.
Messages are lost, doubled and late as the net is told to have it; every `HONEST`-th is encoded and decoded as on the wire.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, cast

from ipop_tx.core import commands as c
from ipop_tx.core.dht.certificates import Certificates
from ipop_tx.core.dht.coordinator import Coordinator
from ipop_tx.core.dht.dht import Dht
from ipop_tx.core.dht.forgetting import EVERY, Forgetting
from ipop_tx.core.dht.records import RegisterSigner
from ipop_tx.core.dht.replica import REPLICAS, Replicas, genesis, is_over
from ipop_tx.core.dht.showing import Showing
from ipop_tx.core.dht.views import Views
from ipop_tx.core.leases.lease import Leases
from ipop_tx.core.leases.resolver import Resolver
from ipop_tx.core.leases.rivalry import Rivalry
from ipop_tx.core.links.link import Link
from ipop_tx.core.tasks import Future, spawn
from ipop_tx.identity.store import MemoryReplicaStore
from ipop_tx.simulation.linkmodel import RingNet
from ipop_tx.simulation.network import NETWORK, PlainSigner
from ipop_tx.simulation.ringnode import ModelLinks, RingNode
from ipop_tx.simulation.scenarios import settled
from ipop_tx.values import Ident, Network
from ipop_tx.wire import messages as m

HONEST = 16
"""Every so many messages one travels as bytes."""
LATE = 3.0
"""Seconds that a late message takes at most, besides its way."""
LEAVING_TAKES = 30.0


class Fate(Enum):
    """Where in its next turn a node loses power."""

    BEFORE_COMMIT = "before the commit"
    AFTER_COMMIT = "after the commit, before anything is sent"
    HALF_SENT = "when some of it has been sent"


class RegisterLinks(ModelLinks):
    """Links whose messages wait for the commit."""

    def send_message(self, link: Link, message: m.Message) -> None:
        """Send it at the end of the turn."""
        cast(RegisterNode, self.node).at_end_of_turn((link, message))

    def send_now(self, link: Link, message: m.Message) -> None:
        """Let it arrive later, perhaps, and perhaps more than once."""
        net = cast(RegisterNet, self.node.net)
        net.messages += 1
        if not net.messages % HONEST:
            message = m.decode(m.encode(message))
        if net.loss and net.rng.random() < net.loss:
            net.lost += 1
            return
        peer = net.nodes[link.ident]
        net.at(net.now + net.delay(self.node, peer, link) + net.late(), self._deliver, (peer, message))
        if net.doubled and net.rng.random() < net.doubled:
            net.doubles += 1
            net.at(net.now + net.delay(self.node, peer, link) + net.late(), self._deliver, (peer, message))


class RegisterNode(RingNode):
    """A member with a disk, its part of the registers, and its leases."""

    def __init__(self, net: RegisterNet, number: int) -> None:
        self.store = MemoryReplicaStore()
        self.fate: Fate | None = None
        self.lives = 0
        super().__init__(net, number)

    def _unlinked(self) -> RegisterLinks:
        return RegisterLinks(self)

    def _power_on(self) -> None:
        super()._power_on()
        self.lives += 1
        self._waiting: list[tuple[Link, m.Message] | Callable[[], object]] = []
        net = cast(RegisterNet, self.net)
        network = net.network
        plain = PlainSigner(self.ident, wall=lambda: self.net.now)
        signer = RegisterSigner(network, plain)
        self.replicas = Replicas(self.ident, network.shards, self.store, self.runtime, signer.authentic)
        self.coordinator = Coordinator(self.replicas, self.rpc, self.runtime)
        self.views = Views(self.replicas, self.coordinator, self.ring, self.lookups, self.links, self.runtime)
        self.forgetting = Forgetting(self.replicas, self.coordinator, self.runtime, net.forget_every)
        self.replicas.is_over = net.is_over
        self.certificates = Certificates(network, self.replicas, self.coordinator, self.ring, self.runtime, plain, signer)
        parts = (self.replicas, self.coordinator, self.ring, self.lookups, self.links, self.rpc, self.runtime)
        self.dht = Dht(*parts, signer, self.certificates)
        self.showing = Showing(self.replicas, self.dht, self.certificates, self.rpc, self.runtime)
        self.leases = Leases(self.ident, self.peer.name, network, self.dht, self.showing, self.runtime)
        self.resolver = Resolver(network, self.dht, self.showing, self.lookups, self.links, self.runtime)
        self.rivalry = Rivalry(self.leases, self.resolver, self.ring, self.links, self.rpc, self.runtime)
        self.spare.needs.append(self.views.needs)

    def found(self) -> Future[Any]:
        """Be the first node of a new network."""
        for row in genesis(self.ident, self.replicas.count):
            self.store.put(*row)
        self.store.commit()
        return self.start()

    def start(self, *contacts: RingNode) -> Future[Any]:
        """Power on with the disk as it is. See `RingNode`."""
        self.runtime.alive = False
        self._power_on()
        return super().start(*contacts)

    def crash(self) -> None:
        """Power off, without a word. The disk stays, as it was at the last commit."""
        super().crash()
        cast(RegisterNet, self.net).on_crash(self)

    def leave(self) -> None:
        """Hand everything over, then stop."""
        self.runtime.background(self._leave())

    async def _leave(self) -> None:
        heirs = [*self.ring.near(), *sorted(self.links.by_ident)]
        await self.ring.leave()
        await self.views.leave(heirs)
        for link in self.links:
            self.links.drop(link, "the node leaves", tell=True)
        lives = self.lives
        self.at_end_of_turn(lambda: self._power_off() if self.lives == lives else None)

    # --- turns -------------------------------------------------------------------------------

    def at_end_of_turn(self, item: tuple[Link, m.Message] | Callable[[], object]) -> None:
        """Send a message, or make a call, once what this turn has changed is on the disk."""
        if not self._waiting:
            self.runtime.after(0.0, self._end_turn)
        self._waiting.append(item)

    def _end_turn(self) -> None:
        waiting, self._waiting = self._waiting, []
        fate, self.fate = self.fate, None
        if fate is not Fate.BEFORE_COMMIT:
            self.store.commit()
        if fate is not None:
            waiting = waiting[: self.net.rng.randrange(len(waiting))] if fate is Fate.HALF_SENT else []
        links = cast(RegisterLinks, self.links)
        for item in waiting:
            if callable(item):
                item()
            else:
                links.send_now(*item)
        if fate is not None:
            self.crash()

    # --- clients -----------------------------------------------------------------------------

    def submit(self, command: object) -> Future[Any]:
        """An operation on a register for a client at this node. The answer comes after the commit, or never if the node crashes."""
        answer: Future[Any] = Future()
        spawn(self._operation(command)).then(lambda done: self.at_end_of_turn(lambda: _pass_on(done, answer)))
        return answer

    def _operation(self, command: object) -> Any:
        dht = self.dht
        match command:
            case c.Get(key):
                return dht.get(key)
            case c.Create(key, value, ttl):
                return dht.create(key, value, ttl)
            case c.CompareAndSet(key, version, value, ttl):
                return dht.compare_and_set(key, version, value, ttl)
            case c.Delete(key, version):
                return dht.delete(key, version)
        raise TypeError(command)


def _pass_on(done: Future[Any], answer: Future[Any]) -> None:
    if done.error is None:
        answer.succeed(done.result())
    else:
        answer.fail(done.error)


@dataclass
class RegisterNet(RingNet):
    """The link model's net, with a wire that doubles and delays, and disks."""

    network: Network = NETWORK
    doubled: float = 0.0
    """Share of messages that come twice, 0..1."""
    delayed: float = 0.0
    """Share of messages that take up to `LATE` seconds more, so that others overtake them. All take up to 5 ms more."""
    forget_every: float = EVERY
    """Seconds between looks for registers that may be forgotten."""
    is_over: Callable[[m.Record | None, int], bool] = is_over
    """When they may."""
    lost: int = 0
    doubles: int = 0
    lates: int = 0
    on_crash: Callable[[RegisterNode], object] = field(default=lambda node: None)

    def add(self) -> RegisterNode:
        """One more member, switched off."""
        node = RegisterNode(self, len(self.nodes))
        self.nodes[node.ident] = node
        self.by_endpoint[node.endpoint] = node
        self.order.append(node.ident)
        return node

    def machines(self) -> list[RegisterNode]:
        """All members, on or off."""
        return cast(list[RegisterNode], list(self.nodes.values()))

    def late(self) -> float:
        """Seconds that a message takes besides its way."""
        if self.delayed and self.rng.random() < self.delayed:
            self.lates += 1
            return LATE * self.rng.random()
        return 0.005 * self.rng.random()

    def part(self, side: Iterable[RingNode]) -> None:
        """Cut the net in two: these members, and the others. Of none: it is whole again."""
        idents = {node.ident for node in side}
        self.reaches = lambda one, other: (one.ident in idents) == (other.ident in idents)
        self.recheck()

    def keepers(self, index: int) -> tuple[Ident, ...]:
        """The members of the newest view of a shard of which there is a copy."""
        copies = [node.replicas.shards[index] for node in self.machines() if index in node.replicas.shards]
        return max(copies, key=lambda shard: shard.number).members


def grown(net: RegisterNet, count: int, seconds: float = 30.0) -> list[RegisterNode]:
    """A founder and members who join through it, and time to calm down."""
    founder = net.add()
    founder.found()
    net.run(1.0)
    nodes = [founder]
    while len(nodes) < count:
        fresh = net.add()
        fresh.start(net.rng.choice(nodes))
        nodes.append(fresh)
        net.run(1.0)
    net.run(seconds)
    return nodes


def long_settled(net: RegisterNet, count: int) -> list[RegisterNode]:
    """Members who have been on the ring for long, with a first view of each shard at those whom it belongs to."""
    settled(net, count)
    ordered = sorted(net.machines(), key=lambda node: node.ident)
    for index in range(net.network.shards):
        start = ordered[0].replicas.start_of(index)
        first = sum(node.ident < start for node in ordered)
        keepers = [ordered[(first + step) % count] for step in range(min(REPLICAS, count))]
        members = tuple(node.ident for node in keepers)
        for node in keepers:
            node.replicas.install(node.ident, m.Install(index, 1, members, (), 0, True, 0))
            for other in keepers:
                if other is not node:
                    net.link(node, other)
    for node in ordered:
        node.store.commit()
    return net.machines()
