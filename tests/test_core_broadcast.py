"""Broadcast: everybody once where the ring is whole, nobody left out where it is not, and no member's loudspeaker."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from math import log2
from typing import Any

from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from zope.interface.verify import verifyObject

from ipop_tx.core import commands as c
from ipop_tx.core import events as e
from ipop_tx.core.links.link import Link
from ipop_tx.core.ring import broadcast
from ipop_tx.errors import BadMessage, EnvironmentProblem, LocalMisuse, Unreachable
from ipop_tx.interfaces import IBroadcast
from ipop_tx.services.chord import ChordProtocol, ChordService
from ipop_tx.simulation.network import SimulatedNet, SimulatedNode
from ipop_tx.transport.memory import MemoryNet
from ipop_tx.values import Ident, short
from ipop_tx.wire import messages as m
from tests.net import NetCase, separate


class Ear:
    """Hears in every node of a net what is broadcast, and by whom it was handed on."""

    def __init__(self, net: SimulatedNet) -> None:
        self.heard: dict[bytes, Counter[Ident]] = {}
        self.by: dict[bytes, dict[Ident, Ident]] = {}
        """Payload -> member -> who handed it to it first."""
        self.messages = 0
        net.on_event = self._event
        for machine in net.running():
            self._listen(machine)

    def _event(self, machine: SimulatedNode, event: object) -> None:
        if isinstance(event, e.BroadcastReceived):
            self.heard.setdefault(event.payload, Counter())[machine.ident] += 1

    def _listen(self, machine: SimulatedNode) -> None:
        told = machine.running.broadcast._told

        def tell(link: Link, body: m.Broadcast) -> Any:
            self.messages += 1
            self.by.setdefault(body.payload, {}).setdefault(machine.ident, link.ident)
            return told(link, body)

        machine.running.rpc.serve(m.Broadcast, tell)

    def depth(self, payload: bytes) -> int:
        """How many hands the payload went through at most."""
        by, deepest = self.by[payload], 0
        for ident in by:
            depth = 0
            while ident in by:
                ident, depth = by[ident], depth + 1
            deepest = max(deepest, depth)
        return deepest


class BroadcastCase(NetCase):
    """Who has heard what."""

    def once(self, ear: Ear, machines: list[SimulatedNode], origin: SimulatedNode, payload: bytes) -> None:
        """Everybody has heard it exactly once, but for its origin."""
        expected = {machine.ident: 1 for machine in machines if machine is not origin}
        self.assertEqual(dict(ear.heard.get(payload, {})), expected)

    def reaches_the_living(self, net: SimulatedNet, ear: Ear, origin: SimulatedNode, dying: Sequence[SimulatedNode] = ()) -> None:
        """Some may be told twice."""
        wanted = {machine.ident for machine in net.running() if machine is not origin and machine not in dying}
        origin.submit(c.Broadcast(b"who lives?"))
        told = net.run(60, lambda: set(ear.heard.get(b"who lives?", ())) >= wanted)
        self.assertTrue(told, f"{len(wanted - set(ear.heard[b'who lives?']))} of {len(wanted)} were not told")

    def counted(self, machines: list[SimulatedNode], name: str) -> int:
        return sum(machine.running.runtime.counters.get(name, 0) for machine in machines)


class WholeRingTests(BroadcastCase):
    """Nothing goes wrong."""

    def from_every_tenth(self, seed: int, count: int) -> tuple[SimulatedNet, list[SimulatedNode], Ear]:
        """One after another; each costs N - 1 messages and is not deep."""
        net = self.net(seed)
        machines = self.grow(net, count, 45.0)
        ear = Ear(net)
        for number, origin in enumerate(machines[::10]):
            payload = b"%d" % number
            before = ear.messages
            net.wait(origin.submit(c.Broadcast(payload)))
            net.run(2)
            self.once(ear, machines, origin, payload)
            self.assertEqual(ear.messages - before, count - 1)
            self.assertLessEqual(ear.depth(payload), 2 * log2(count))
        self.assertEqual(self.counted(machines, "broadcast_detours"), 0)
        return net, machines, ear

    def test_three_hundred(self) -> None:
        """From every tenth node; then a tenth of them are gone and nobody knows."""
        net, machines, ear = self.from_every_tenth(1, 300)
        victims = net.rng.sample(machines[1:], 30)
        for victim in victims:
            victim.crash()
        net.run(1)
        self.reaches_the_living(net, ear, machines[0])

    def test_a_hundred(self) -> None:
        """From every tenth node one after another, then from all of them in one moment; then in a net that loses."""
        net, machines, ear = self.from_every_tenth(2, 100)
        origins = machines[::10]
        self.all_done(net, [origin.submit(c.Broadcast(b"at once %d" % number)) for number, origin in enumerate(origins)])
        net.run(2)
        for number, origin in enumerate(origins):
            self.once(ear, machines, origin, b"at once %d" % number)
        net.loss = 0.05
        for number, origin in enumerate(machines[5::20]):
            payload = b"lossy %d" % number
            net.wait(origin.submit(c.Broadcast(payload)))
            net.run(20)
            self.once(ear, machines, origin, payload)

    def test_small(self) -> None:
        """Alone, two, three; the largest payload, and an empty one."""
        for count in (1, 2, 3):
            net = self.net(10 + count)
            machines = self.grow(net, count)
            ear = Ear(net)
            for payload in (b"", bytes(m.MAX_VALUE)):
                net.wait(machines[-1].submit(c.Broadcast(payload)))
                net.run(1)
                self.once(ear, machines, machines[-1], payload)

    def test_behind_relays(self) -> None:
        """A third of all pairs reach each other only through others."""
        net = self.net(3)
        machines = [net.founder(), *(net.add() for _ in range(29))]
        pairs = [pair for pair in combinations(machines, 2) if machines[0] not in pair]
        separate(net, net.rng.sample(pairs, int(0.33 * len(pairs))))
        net.wait(machines[0].start())
        self.all_done(net, [machine.start(machines[0]) for machine in machines[1:]])
        self.heals(net, 180)
        net.run(60)
        self.whole(net)
        ear = Ear(net)
        for number, origin in enumerate(machines[::5]):
            payload = b"%d" % number
            net.wait(origin.submit(c.Broadcast(payload)))
            net.run(5)
            self.once(ear, machines, origin, payload)

    def test_many_links(self) -> None:
        """A node that is linked to everybody makes no more parts than it may, and still everybody is told once."""
        self.patch(broadcast, "FANOUT", 4)
        net = self.net(4)
        machines = self.grow(net, 30)
        self.all_done(net, [machines[0].submit(c.Connect(other.ident)) for other in machines[1:]])
        net.run(5)
        ear = Ear(net)
        net.wait(machines[0].submit(c.Broadcast(b"x")))
        net.run(2)
        self.once(ear, machines, machines[0], b"x")
        self.assertEqual(list(ear.by[b"x"].values()).count(machines[0].ident), 4)


class BrokenRingTests(BroadcastCase):
    """Something does."""

    def test_crashed_a_second_before(self) -> None:
        """A tenth of the nodes are gone and nobody knows: the others are all told, some perhaps twice."""
        net = self.net(5)
        machines = self.grow(net, 100)
        victims = net.rng.sample(machines[1:], 10)
        ear = Ear(net)
        for victim in victims:
            victim.crash()
        net.run(1)
        self.reaches_the_living(net, ear, machines[0])
        net.run(60)
        self.assertEqual(self.counted(net.running(), "broadcast_abandoned"), 0)
        self.assertGreater(self.counted(net.running(), "broadcast_detours"), 0)

    def test_crashes_on_the_way(self) -> None:
        """Members die while it is under way, most of them before it reaches them."""
        net = self.net(17)
        machines = self.grow(net, 60)
        ear = Ear(net)
        victims = net.rng.sample(machines[1:], 8)
        for number, victim in enumerate(victims):
            net.at(net.now + 0.01 * (number + 1), victim.crash)
        self.reaches_the_living(net, ear, machines[0], victims)

    def test_the_successor_is_gone(self) -> None:
        """And three more behind it: the first cut is someone else's."""
        net = self.net(6)
        ordered = sorted(self.grow(net, 24), key=lambda machine: machine.ident)
        ear = Ear(net)
        for victim in ordered[1:5]:
            victim.crash()
        net.wait(ordered[0].submit(c.Broadcast(b"x")))
        net.run(60)
        self.assertEqual(set(ear.heard[b"x"]), {machine.ident for machine in ordered[5:]})

    def test_a_member_that_only_seems_gone(self) -> None:
        """It does not answer on its link, which has just broken; it is found by a look-up, and told."""
        net = self.net(7)
        ordered = sorted(self.grow(net, 24), key=lambda machine: machine.ident)
        far = ordered[12]
        net.reachable = lambda one, other: {one, other} != {ordered[0], far}
        ear = Ear(net)
        net.wait(ordered[0].submit(c.Connect(far.ident)))
        net.wait(ordered[0].submit(c.Broadcast(b"x")), 120)
        net.run(30)
        self.assertEqual(set(ear.heard[b"x"]), {machine.ident for machine in ordered[1:]})


class ServiceTests(BroadcastCase):
    """As applications see it."""

    def test_there_and_back(self) -> None:
        """`IBroadcast` of a service; and a warning for those who disagree."""
        net = self.net(18)
        [machine] = self.grow(net, 1)
        node, clock, heard = machine.running, Clock(), list[bytes]()
        protocol = ChordProtocol(clock, node, machine.store, lambda: net.now)
        service = ChordService(protocol, MemoryNet(clock).transport("192.0.2.1", 1), lambda: ())
        verifyObject(IBroadcast, service)
        service.on_broadcast(heard.append)
        node.runtime.emit(e.BroadcastReceived(b"from others"))
        node.runtime.emit(e.LookupDisagreed(bytes(20), node.ident, (bytes((7,)) * 20,)))
        with capturedLogs() as logs:
            self.assertIsNone(self.successResultOf(service.broadcast(b"to nobody")))
        self.assertEqual([event["dissent"] for event in logs if "dissent" in event], [short(bytes((7,)) * 20)])
        self.failureResultOf(service.broadcast(bytes(m.MAX_VALUE + 1)), LocalMisuse)
        self.assertEqual(heard, [b"from others"])


class BoundTests(BroadcastCase):
    """What a member cannot do."""

    def flood(self, net: SimulatedNet, machine: SimulatedNode, victim: SimulatedNode, count: int) -> list[Any]:
        """So many messages to one victim, which shall pass each on to the whole ring."""
        limit = bytes([victim.ident[0] ^ 128]) + victim.ident[1:]
        return [machine.submit(c.Ask(victim.ident, m.Broadcast(limit, b"%d" % number))) for number in range(count)]

    def test_flood(self) -> None:
        """Some at once, some late, the rest is shed; a second later as many more as the rate allows; others are not affected."""
        net = self.net(8)
        machines = self.grow(net, 10)
        attacker, victim, other = machines[1:4]
        ear = Ear(net)
        net.wait(attacker.submit(c.Connect(victim.ident)))
        net.wait(other.submit(c.Connect(victim.ident)))
        answers = self.flood(net, attacker, victim, 400)
        net.run(0.2)
        taken = sum(victim.ident in heard for heard in ear.heard.values())
        self.assertTrue(broadcast.BURST <= taken <= broadcast.BURST + 5, taken)
        net.wait(other.submit(c.Ask(victim.ident, m.Broadcast(other.ident, b"urgent"))), 1.0)
        self.assertEqual(ear.heard[b"urgent"][victim.ident], 1)
        net.run(20)
        refused = [answer for answer in answers if isinstance(answer.error, EnvironmentProblem)]
        taken = sum(victim.ident in heard for payload, heard in ear.heard.items() if payload != b"urgent")
        self.assertEqual(taken + len(refused), 400)
        self.assertLessEqual(taken, broadcast.BURST + broadcast.LATE + 10)
        self.assertEqual(victim.running.runtime.counters["broadcast_shed"], len(refused))
        self.assertEqual(victim.running.broadcast._under_way, 0)

    def test_our_own(self) -> None:
        """A program that broadcasts too much is told."""
        net = self.net(9)
        machines = self.grow(net, 3)
        sent = [machines[0].submit(c.Broadcast(b"%d" % number)) for number in range(broadcast.BURST + broadcast.LATE + 5)]
        self.assertEqual(sum(isinstance(future.error, EnvironmentProblem) for future in sent), 5)
        ear = Ear(net)
        net.run(20)
        self.assertTrue(all(future.done for future in sent))
        self.assertEqual(len(ear.heard[b"%d" % (broadcast.BURST + 50)]), 2)

    def test_misuse(self) -> None:
        """Too long, and too early."""
        net = self.net(14)
        machine = net.founder()
        net.wait(machine.start())
        self.assertRaises(LocalMisuse, machine.submit(c.Broadcast(bytes(m.MAX_VALUE + 1))).result)
        fresh = net.add()
        fresh.start()
        self.assertRaises(Unreachable, fresh.submit(c.Broadcast(b"x")).result)

    def test_a_senseless_arc(self) -> None:
        """One that ends where it begins is nobody's: it would be the whole ring once more."""
        net = self.net(15)
        machines = self.grow(net, 3)
        ear = Ear(net)
        future = machines[0].submit(c.Ask(machines[1].ident, m.Broadcast(machines[1].ident, b"x")))
        net.run(1)
        self.assertIsInstance(future.error, BadMessage)
        self.assertEqual(ear.heard, {})

    def test_budgets_are_forgotten(self) -> None:
        """Those of members who have been quiet for a while."""
        self.patch(broadcast, "REMEMBERED", 1)
        net = self.net(16)
        machines = self.grow(net, 5)
        for machine in machines:
            net.wait(machine.submit(c.Broadcast(b"x")))
            net.run(10)
        for machine in machines:
            self.assertLessEqual(len(machine.running.broadcast._budgets), 2)
