"""What takes many nodes, hours or thousands of tries: whole nodes in virtual time; and real DTLS over a wire that loses."""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable
from ipaddress import IPv4Address
from random import Random
from typing import Any

from ipop_tx.core import commands as c
from ipop_tx.core.dht.records import key_of
from ipop_tx.errors import Unavailable, Unreachable
from ipop_tx.session.dtls import DtlsSessionFactory
from ipop_tx.simulation.network import SimulatedNet, SimulatedNode
from tests.faults.case import SimulatedCase, shows
from tests.net import heal, separate, split
from tests.test_session import SOURCE, SelfSigned

PARTED = 60.0
"""Seconds for which a net is parted."""
SPREAD = 25.0
"""Seconds over which real handshakes begin: all at once would only measure the processor."""
HEALED = 60.0
"""Seconds in which it must be one again."""
REFUSALS = (Unavailable, Unreachable)


def keys(count: int) -> list[bytes]:
    """Registers, all over the shards."""
    return [key_of("faults", b"", str(number).encode()) for number in range(count)]


class HandshakeTests(SimulatedCase):
    """Two ends at once."""

    @shows(2, quick=True)
    def test_simultaneous(self) -> None:
        """Two nodes call each other in the same moment, a hundred times: one link, and both seal with the same session."""
        for seed in range(100):
            net = self.net(seed, loss=0.0 if seed % 2 else 0.1)
            one, other = net.founder(), net.add()
            net.wait(one.start())
            net.wait(other.start(one))
            for machine in (one, other):
                machine.crash()
            one.start(other)
            other.start(one)
            self.becomes(net, lambda one=one, other=other: self._agree(one, other), 30, f"one session with seed {seed}")  # type: ignore[misc]
            net.run(15.0)
            self.assertTrue(self._agree(one, other), seed)
        self.figures["crossings"] = 100

    def _agree(self, one: SimulatedNode, other: SimulatedNode) -> bool:
        here, there = one.running.link(other.ident), other.running.link(one.ident)
        return here is not None and there is not None and here.confirmed and here.session.tag == there.session.tag

    @shows(5)
    def test_many_with_loss(self) -> None:
        """3000 links are made while 30 % of all datagrams get lost; then 1000 each at 1 and 10 %."""
        for loss, count in ((0.3, 3000), (0.1, 1000), (0.01, 1000)):
            failed = sum(not self._connects(seed, loss) for seed in range(count))
            self.figures[f"of_{count}_at_{loss:.0%}_failed"] = failed
            self.assertLessEqual(failed, count // 1000)

    def _connects(self, seed: int, loss: float) -> bool:
        net = self.net(seed)
        one, other = net.founder(), net.add()
        one.start()
        net.loss = loss
        other.start(one)
        net.run(60.0, lambda: other.running.link(one.ident) is not None)
        return other.running.link(one.ident) is not None

    @shows(5)
    def test_dtls_with_loss(self) -> None:
        """The same with real DTLS, 1000 handshakes side by side, 30 % lost, up to 50 ms late, 10 % doubled."""
        wire = Wire(1000, 0.3, Random(1))
        took = wire.run(60.0)
        middle = sorted(took)[len(took) // 2]
        self.figures.update(dtls_of_1000_failed=1000 - len(took), dtls_p50_s=round(middle, 2), dtls_max_s=round(max(took), 1))
        self.assertLessEqual(1000 - len(took), 1)


class Wire:
    """Pairs of real DTLS ends, each joined by a wire of its own; one attempt each."""

    def __init__(self, pairs: int, loss: float, rng: Random) -> None:
        self._loss, self._rng = loss, rng
        self._due: list[tuple[float, int, Callable[[float], None]]] = []
        self._order = itertools.count()
        self._client, self._server = (DtlsSessionFactory(SelfSigned(name)) for name in ("ann", "bob"))
        self._pairs = pairs
        self._took: list[float] = []

    def run(self, seconds: float) -> list[float]:
        """Seconds that each handshake took that came to its end."""
        begun = time.monotonic()
        for number in range(self._pairs):
            self._at(begun + SPREAD * number / self._pairs, lambda now: self._begin(now, now))
        while self._due and len(self._took) < self._pairs and time.monotonic() < begun + seconds:
            moment, _, call = heapq.heappop(self._due)
            time.sleep(max(0.0, moment - time.monotonic()))
            call(time.monotonic())
        return self._took

    def _at(self, moment: float, call: Callable[[float], None]) -> None:
        heapq.heappush(self._due, (moment, next(self._order), call))

    def _begin(self, now: float, first: float) -> None:
        _Attempt(self, first).pump(now)


class _Attempt:
    def __init__(self, wire: Wire, first: float) -> None:
        self._wire, self._first = wire, first
        self._client: Any = wire._client.initiate(first)
        self._server: Any = None
        self._done = False

    def pump(self, now: float) -> None:
        """Send what the two have to say, and see to their timers."""
        for end, deliver in ((self._client, self._to_server), (self._server, self._to_client)):
            while end is not None and (datagram := end.poll_transmit()) is not None:
                self._carry(now, datagram, deliver)
            if end is not None and (due := end.poll_timeout()) is not None:
                self._wire._at(max(now + 0.01, due), lambda then, end=end: self._late(then, end))  # type: ignore[misc]
        if not self._done and self._server is not None and self._client.established and self._server.established:
            self._done = True
            self._wire._took.append(now - self._first)

    def _carry(self, now: float, datagram: bytes, deliver: Callable[[float, bytes], None]) -> None:
        rng = self._wire._rng
        for _ in range(2 if rng.random() < 0.1 else 1):
            if rng.random() >= self._wire._loss:
                self._wire._at(now + rng.uniform(0.0, 0.05), lambda then: deliver(then, datagram))

    def _late(self, now: float, end: Any) -> None:
        due = end.poll_timeout()
        if not self._done and due is not None and due <= now:
            end.handle_timeout(now)
            self.pump(now)

    def _to_server(self, now: float, datagram: bytes) -> None:
        if self._server is not None:
            self._server.receive(now, datagram)
        else:
            self._server, reply = self._wire._server.accept(now, datagram, SOURCE)
            if reply is not None:
                self._carry(now, reply, self._to_client)
        self.pump(now)

    def _to_client(self, now: float, datagram: bytes) -> None:
        self._client.receive(now, datagram)
        self.pump(now)


class PartitionTests(SimulatedCase):
    """Nine nodes, parted in each way there is for a minute; then healed."""

    def parted(self, name: str, part: Callable[[SimulatedNet, list[SimulatedNode]], list[list[SimulatedNode]]]) -> None:
        """`part` parts the net and gives the sides that must work by themselves."""
        net = self.net(11)
        machines = self.grow(net, 9)
        for machine in machines:
            machine.submit(c.KeepLease(None, None, 86400.0))
        self.becomes(net, lambda: all(machine.running.leases.own.address for machine in machines), 30, "addresses")
        net.run(10.0)
        addresses = [machine.running.leases.own.address for machine in machines]
        sides = part(net, machines)
        net.run(PARTED)
        for side in sides:
            self.converse(net, [(one, other) for one in side for other in side if one is not other])
        heal(net)
        took = self.heals(net, HEALED)
        net.run(10.0)
        self.converse(net, [(one, other) for one in machines for other in machines if one is not other])
        self.assertEqual([machine.running.leases.own.address for machine in machines], addresses)
        for machine, address in zip(machines, addresses, strict=True):
            owners = self.all_done(net, [asker.submit(c.Owns(machine.ident, _ipv4(address))) for asker in machines[:3]])
            self.assertEqual(owners, [True] * 3, "one owner for each address")
        self.assertEqual(len(set(addresses)), len(addresses))
        self.figures[f"{name}_one_ring_after_s"] = round(took, 1)

    @shows(3, quick=True)
    def test_two_ways(self) -> None:
        """Four here, five there."""

        def part(net: SimulatedNet, machines: list[SimulatedNode]) -> list[list[SimulatedNode]]:
            split(net, machines[:4])
            return [machines[:4], machines[4:]]

        self.parted("two_way", part)

    @shows(3)
    def test_three_ways(self) -> None:
        """Three times three."""

        def part(net: SimulatedNet, machines: list[SimulatedNode]) -> list[list[SimulatedNode]]:
            side = {machine.number: place // 3 for place, machine in enumerate(machines)}
            net.reachable = lambda sender, receiver: side[sender.number] == side[receiver.number]
            return [machines[:3], machines[3:6], machines[6:]]

        self.parted("three_way", part)

    @shows(3)
    def test_one_way(self) -> None:
        """What four send to the others gets lost, what the others send to them arrives."""

        def part(net: SimulatedNet, machines: list[SimulatedNode]) -> list[list[SimulatedNode]]:
            mute = {machine.number for machine in machines[:4]}
            net.reachable = lambda sender, receiver: sender.number not in mute or receiver.number in mute
            return [machines[:4], machines[4:]]

        self.parted("one_way", part)

    @shows(3, quick=True)
    def test_not_transitive(self) -> None:
        """A third of all pairs cannot reach each other; everybody still converses with everybody, by relays."""

        def part(net: SimulatedNet, machines: list[SimulatedNode]) -> list[list[SimulatedNode]]:
            pairs = list(itertools.combinations(machines, 2))
            separate(net, net.rng.sample(pairs, len(pairs) // 3))
            return [machines]

        self.parted("not_transitive", part)


class SleepTests(SimulatedCase):
    """A machine that sleeps while the others do not."""

    @shows(4)
    def test_eight_hours(self) -> None:
        """One of five: everybody converses with it within 5 s of its waking, and it has its address still."""
        net = self.net(3)
        machines = self.grow(net, 5)
        for machine in machines:
            machine.submit(c.KeepLease(None, None, 86400.0))
        self.becomes(net, lambda: all(machine.running.leases.own.address for machine in machines), 30, "addresses")
        sleeper, others = machines[2], [*machines[:2], *machines[3:]]
        node, address = sleeper.running, sleeper.running.leases.own.address
        sleeper.crash()
        net.run(8 * 3600.0)
        sleeper.node = node
        begun = net.now
        node.handle_timeout(net.now)
        sleeper.settle()
        self.converse(net, [(sleeper, other) for other in others] + [(other, sleeper) for other in others], 5.0)
        self.figures["simulated_awake_after_s"] = round(net.now - begun, 2)
        self.heals(net, 20)
        net.run(30.0)
        self.assertEqual(node.leases.own.address, address)


class LostTests(SimulatedCase):
    """Twenty nodes with 200 registers; some die at once and for ever."""

    def lost(self, share: str, seed: int, victims: Callable[[SimulatedNet, list[SimulatedNode]], list[SimulatedNode]]) -> dict[str, int]:
        """What became of the registers: those kept by a majority that lives are all there, the others are refused and not made anew."""
        net = self.net(seed)
        machines = self.grow(net, 20)
        wanted = keys(200)
        for at in range(0, len(wanted), 20):
            self.all_done(net, [net.rng.choice(machines).submit(c.Create(key, key, 10**6)) for key in wanted[at : at + 20]])
        net.run(5.0)
        for victim in victims(net, machines):
            victim.crash()
        net.run(90.0)
        alive = net.running()
        refused, told = [], {"kept": 0, "refused": 0, "lost": 0, "doubled": 0}
        for key, future in self._asked(net, [(key, net.rng.choice(alive).submit(c.Get(key))) for key in wanted]):
            judged = self._judged(key, future)
            told[judged] += 1
            refused += [key] if judged == "refused" else []
        again = [(key, net.rng.choice(alive).submit(c.Create(key, b"another", 10**6))) for key in refused]
        told["doubled"] = sum(future.done and future.error is None for _, future in self._asked(net, again))
        self.figures[f"lost_{share}"] = told
        self.assertEqual((told["lost"], told["doubled"]), (0, 0), told)
        return told

    def _asked(self, net: SimulatedNet, asked: list[tuple[bytes, Any]]) -> list[tuple[bytes, Any]]:
        net.run(90.0, lambda: all(future.done for _, future in asked))
        return asked

    def _judged(self, key: bytes, future: Any) -> str:
        if not future.done or isinstance(future.error, REFUSALS):
            return "refused"
        return "kept" if future.error is None and future.result() is not None and future.result().value == key else "lost"

    @shows(11, quick=True)
    def test_one(self) -> None:
        """Nothing is even refused."""
        self.assertEqual(self.lost("1", 1, lambda net, machines: [net.rng.choice(machines[1:])])["kept"], 200)

    @shows(11)
    def test_a_tenth(self) -> None:
        """Two of twenty: a majority of each five lives."""
        self.assertEqual(self.lost("10%", 2, lambda net, machines: net.rng.sample(machines[1:], 2))["kept"], 200)

    @shows(11)
    def test_all_replicas_but_one(self) -> None:
        """Four of the five that keep one part of the registers, which is refused from then on; the rest is there."""

        def victims(net: SimulatedNet, machines: list[SimulatedNode]) -> list[SimulatedNode]:
            shard = next(shard for machine in machines for shard in machine.running.replicas.shards.values() if len(shard.members) == 5)
            return [machine for machine in machines if machine.ident in shard.members[:4]]

        told = self.lost("r-1", 3, victims)
        self.assertGreater(told["refused"], 0)
        self.assertGreater(told["kept"], 100)

    @shows(11)
    def test_half(self) -> None:
        """Ten of twenty: whatever has lost its majority is refused."""
        self.assertGreater(self.lost("50%", 4, lambda net, machines: net.rng.sample(machines[1:], 10))["refused"], 0)


def _ipv4(address: bytes | None) -> IPv4Address:
    return IPv4Address(address or bytes(4))
