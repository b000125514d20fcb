"""What the tests of the control plane share: simulated nets that grow, split and exchange frames, and fail the test on any fault."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import msgspec
from twisted.trial.unittest import TestCase

from ipop_tx.core import commands as c
from ipop_tx.core.dht.records import AuthorityOrder, order_text
from ipop_tx.core.tasks import Future
from ipop_tx.simulation.invariants import order_faults, ring_faults
from ipop_tx.simulation.network import SimulatedNet, SimulatedNode

Order = TypeVar("Order", bound=AuthorityOrder)


class NetCase(TestCase):
    """A test on a simulated net. A fault inside a node fails it, whatever else it checks."""

    def net(self, seed: int = 1, **options: Any) -> SimulatedNet:
        """A net of which nothing may go wrong unnoticed."""
        return self.watch(SimulatedNet(seed, **options))

    def watch(self, net: SimulatedNet) -> SimulatedNet:
        """Fail the test for a fault in any node of `net`."""
        self.addCleanup(lambda: self.assertEqual(net.faults, [], "a node met an error of its own"))
        return net

    def grow(self, net: SimulatedNet, count: int, settle: float = 30.0) -> list[SimulatedNode]:
        """A founder and others who join through random members, a few at a time; then time to calm down."""
        machines = [net.founder()]
        net.wait(machines[0].start())
        while len(machines) < count:
            fresh = [net.add() for _ in range(min(max(1, len(machines) // 2), count - len(machines)))]
            joins = [machine.start(net.rng.choice(machines)) for machine in fresh]
            self.all_done(net, joins)
            machines += fresh
        net.run(settle)
        self.whole(net)
        return machines

    def all_done(self, net: SimulatedNet, futures: Iterable[Future[Any]], seconds: float = 60.0) -> list[Any]:
        """Let time pass until all futures are settled; their results."""
        waiting = list(futures)
        self.assertTrue(net.run(seconds, lambda: all(future.done for future in waiting)), f"not settled within {seconds} s")
        return [future.result() for future in waiting]

    def whole(self, net: SimulatedNet) -> None:
        """The running nodes form one ordered ring."""
        self.assertEqual(ring_faults(net) + order_faults(net), [])

    def becomes(self, net: SimulatedNet, condition: Callable[[], bool], seconds: float, what: str) -> float:
        """The condition holds within `seconds`, looked at twice a second; gives how long it took."""
        begun = net.now
        while not condition():
            self.assertLess(net.now - begun, seconds, f"{what}: not within {seconds} s")
            net.run(0.5)
        return net.now - begun

    def heals(self, net: SimulatedNet, seconds: float) -> float:
        """The ring becomes whole within `seconds`; gives how long it took."""
        return self.becomes(net, lambda: not ring_faults(net) + order_faults(net), seconds, "one ring")

    def converse(self, net: SimulatedNet, pairs: Iterable[tuple[SimulatedNode, SimulatedNode]], seconds: float = 20.0) -> None:
        """A ping gets from the first to the second of each pair and back, on whatever path their link uses, within `seconds`."""
        by_ident = {machine.ident: machine for machine in net.running()}
        wanted = sorted({(one.ident, other.ident) for one, other in pairs})
        pings = {(one, other): by_ident[one].submit(c.Ping(other)) for one, other in wanted}
        net.run(seconds, lambda: all(ping.done for ping in pings.values()))
        missing = [
            f"{one.hex()[:8]} to {other.hex()[:8]}" for (one, other), ping in pings.items() if not (ping.done and ping.error is None)
        ]
        self.assertEqual(missing, [], "pings that did not come back")


def by_authority(unsigned: Order) -> Order:
    """With the signature of the authority that all simulated networks share."""
    return msgspec.structs.replace(unsigned, signature=hashlib.sha512(b"authority" + order_text(unsigned)).digest())


def split(net: SimulatedNet, one: Iterable[SimulatedNode]) -> None:
    """Cut the net in two: the given machines, and the others."""
    side = {machine.number for machine in one}
    net.reachable = lambda sender, receiver: (sender.number in side) == (receiver.number in side)


def heal(net: SimulatedNet) -> None:
    """Everybody reaches everybody again."""
    net.reachable = lambda sender, receiver: True


def separate(net: SimulatedNet, pairs: Iterable[tuple[SimulatedNode, SimulatedNode]]) -> None:
    """These pairs cannot reach each other, either way."""
    cut = {frozenset((one.number, other.number)) for one, other in pairs}
    net.reachable = lambda sender, receiver: frozenset((sender.number, receiver.number)) not in cut
