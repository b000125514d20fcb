"""The ring: joining, leaving, dying, splitting, merging, and a net in which not everybody reaches everybody."""

from __future__ import annotations

from itertools import combinations, permutations

from ipop_tx.core import commands as c
from ipop_tx.core.ring.bootstrap import ALONE_AFTER
from ipop_tx.simulation.network import SimulatedNet, SimulatedNode
from tests.net import NetCase, heal, separate, split


class RingTests(NetCase):
    """Whole nodes; after each change the ring must be one, ordered, with everybody on it."""

    def predecessors_match(self, net: SimulatedNet) -> None:
        """Each node's predecessor is the one that it follows."""
        ordered = sorted(machine.ident for machine in net.running())
        for machine in net.running():
            expected = ordered[ordered.index(machine.ident) - 1] if len(ordered) > 1 else None
            self.assertEqual(machine.running.ring.predecessor, expected)

    def owners_agree(self, net: SimulatedNet) -> None:
        """Whoever is asked names the same owner for a key: the first node at or after it."""
        ordered = sorted(machine.ident for machine in net.running())
        for number in range(8):
            key = bytes([number * 32]) + bytes(19)
            expected = next((ident for ident in ordered if ident >= key), ordered[0])
            found = self.all_done(net, [machine.submit(c.Lookup(key)) for machine in net.running()])
            self.assertEqual({answer.owner for answer in found}, {expected})

    def test_small(self) -> None:
        """One, two, three and five nodes."""
        for count in (1, 2, 3, 5):
            net = self.net(count)
            self.grow(net, count)
            self.predecessors_match(net)
            self.owners_agree(net)

    def test_fifty_at_once(self) -> None:
        """Fifty nodes join in one moment through random members of a ring of five, in a net that loses."""
        net = self.net(2, loss=0.03)
        machines = self.grow(net, 5)
        joins = [net.add().start(net.rng.choice(machines)) for _ in range(50)]
        self.all_done(net, joins)
        self.heals(net, 120)
        net.loss = 0.0
        net.run(30)
        self.owners_agree(net)

    def test_join_is_quick(self) -> None:
        """A join takes less than two seconds in a net of 100 ms."""
        net = self.net(3)
        machines = self.grow(net, 10)
        for machine in machines[:5]:
            begun, fresh = net.now, net.add()
            net.wait(fresh.start(machine))
            self.assertLess(net.now - begun, 2.0)

    def test_leave(self) -> None:
        """Half of the nodes leave one after another; nobody has to notice a death, so the ring is whole within a few seconds."""
        net = self.net(4)
        machines = self.grow(net, 12)
        for leaver in machines[::2]:
            net.wait(leaver.submit(c.Leave()))
            leaver.crash()
            self.assertLessEqual(self.heals(net, 10), 5)
        net.run(20)
        self.predecessors_match(net)
        self.owners_agree(net)

    def test_leave_and_come_back(self) -> None:
        """The second of two nodes leaves soon after it came and comes back at once: its place is the first one's to give, and is given."""
        for seed in range(10):
            net = self.net(seed, width_s=0.002)
            first, second = net.founder(), net.add()
            net.wait(first.start())
            net.wait(second.start(first))
            net.run(net.rng.random() * 2)
            net.wait(second.submit(c.Leave()))
            second.crash()
            net.run(1 + net.rng.random() * 2)
            net.wait(second.start(first), 10)
            self.heals(net, 10)

    def test_neighbours_crash(self) -> None:
        """A node's next neighbours die one after another, without a pause."""
        net = self.net(5)
        machines = self.grow(net, 20)
        ordered = sorted(machines, key=lambda machine: machine.ident)
        for victim in ordered[3:9]:
            victim.crash()
            net.run(1)
        self.heals(net, 60)
        net.run(30)
        self.owners_agree(net)

    def test_crowd_crashes(self) -> None:
        """Seven neighbours of one another die in the same moment: fewer than a successor list is long."""
        net = self.net(6)
        ordered = sorted(self.grow(net, 24), key=lambda machine: machine.ident)
        for victim in ordered[5:12]:
            victim.crash()
        self.heals(net, 120)

    def test_restart(self) -> None:
        """Two neighbours come back with the same idents, sooner than their deaths could be noticed."""
        net = self.net(7)
        machines = self.grow(net, 8)
        ordered = sorted(machines, key=lambda machine: machine.ident)
        for machine in ordered[2:4]:
            machine.crash()
        net.run(1)
        self.all_done(net, [machine.start(ordered[6]) for machine in ordered[2:4]])
        self.heals(net, 60)
        net.run(30)
        self.predecessors_match(net)
        self.converse(net, permutations(ordered[1:5], 2))

    def test_halves(self) -> None:
        """Ten minutes in two halves make two rings; healed, they are one again, and everybody is found."""
        net = self.net(8)
        machines = self.grow(net, 16)
        split(net, machines[:8])
        net.run(600)
        self.assertEqual({len(self.reached(net, machine)) for machine in machines}, {8})
        heal(net)
        self.heals(net, 180)
        net.run(60)
        self.owners_agree(net)

    def reached(self, net: SimulatedNet, start: SimulatedNode) -> set[bytes]:
        """Whom one comes to by going from successor to successor."""
        by_ident = {machine.ident: machine for machine in net.running()}
        seen: set[bytes] = set()
        at = start
        while at.ident not in seen:
            seen.add(at.ident)
            at = by_ident[at.running.ring.successors[0]]
        return seen

    def test_singletons_merge(self) -> None:
        """Three nodes that know of each other but reach nobody become rings of one, and one ring once they do."""
        net = self.net(9)
        machines = [net.founder(), net.add(), net.add()]
        net.reachable = lambda one, other: False
        joins = [machine.start(*(other for other in machines if other is not machine)) for machine in machines]
        self.all_done(net, joins, ALONE_AFTER + 20)
        self.assertEqual([machine.running.ring.successors for machine in machines], [[], [], []])
        heal(net)
        self.heals(net, 120)
        net.run(30)
        self.predecessors_match(net)
        self.converse(net, permutations(machines, 2))

    def test_nobody_known(self) -> None:
        """A node with nobody to ask says so."""
        net = self.net(10)
        machine = net.add()
        net.wait(machine.start(), 30)
        self.assertIn("no member is known to join through", machine.running.bootstrap.problem)

    def test_unreachable_pairs(self) -> None:
        """Three pairs of ten cannot reach each other: the ring is whole all the same, and every pair exchanges a frame."""
        for seed in (11, 12):
            net = self.net(seed)
            machines = [net.founder(), *(net.add() for _ in range(15))]
            pairs = [pair for pair in combinations(machines, 2) if machines[0] not in pair]
            cut = net.rng.sample(pairs, int(0.3 * len(pairs)))
            separate(net, cut)
            net.wait(machines[0].start())
            self.all_done(net, [machine.start(machines[0]) for machine in machines[1:]])
            self.heals(net, 180)
            net.run(60)
            self.whole(net)
            self.converse(net, permutations(machines, 2), 30)
            for one, other in cut:
                link = one.running.link(other.ident)
                self.assertTrue(link is None or not link.is_direct)
