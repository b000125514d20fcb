"""Look-ups over disjoint ways: they find the owner, share few members, and outvote a liar."""

from __future__ import annotations

from itertools import combinations

from ipop_tx.core import commands as c
from ipop_tx.core import events as e
from ipop_tx.core.ring.disjoint import MOST_ROUTES, Verdict, colour_of
from ipop_tx.errors import LocalMisuse, NotFound
from ipop_tx.simulation.network import SimulatedNet, SimulatedNode
from ipop_tx.values import Ident
from ipop_tx.wire import messages as m
from tests.net import NetCase


class DisjointTests(NetCase):
    """Whole nets."""

    def owner(self, machines: list[SimulatedNode], key: bytes) -> Ident:
        """The first node at or after a key."""
        ordered = sorted(machine.ident for machine in machines)
        return next((ident for ident in ordered if ident >= key), ordered[0])

    def keys(self, net: SimulatedNet, count: int) -> list[bytes]:
        return [net.rng.randbytes(20) for _ in range(count)]

    def watched(self, machines: list[SimulatedNode]) -> dict[tuple[bytes, int], list[Ident]]:
        """Which members each question passes through, as it goes: by key and colour."""
        seen: dict[tuple[bytes, int], list[Ident]] = {}
        for machine in machines:
            asked = machine.running.disjoint._asked

            def answer(link: object, body: m.Seek, machine: SimulatedNode = machine, asked: object = asked) -> object:
                seen.setdefault((body.key, body.colour), []).append(machine.ident)
                return asked(link, body)  # type: ignore[operator]

            machine.running.rpc.serve(m.Seek, answer)  # type: ignore[arg-type]
        return seen

    def test_agreement(self) -> None:
        """In a whole ring all ways lead to the owner, for any number of them; and few members are on two of them."""
        net = self.net(1)
        machines = self.grow(net, 100)
        seen = self.watched(machines)
        shared = passed = 0
        for routes in (2, 3, 5):
            for key in self.keys(net, 20):
                asker = net.rng.choice(machines)
                verdict: Verdict = net.wait(asker.submit(c.LookupDisjoint(key, routes)))
                owner = self.owner(machines, key)
                self.assertEqual((verdict.owner, verdict.agreed, verdict.votes), (owner, True, verdict.asked))
                if asker.ident == owner:
                    self.assertEqual((verdict.asked, verdict.answers), (0, ()))
                    continue
                self.assertEqual(verdict.asked, routes)
                self.assertEqual(len({first for first, _ in verdict.answers}), routes)
                ways = [set(seen[key, colour]) - {owner} for colour in range(routes)]
                passed += sum(map(len, ways))
                shared += sum(len(one & other) for one, other in combinations(ways, 2))
                self.assertLess(max(len(seen[key, colour]) for colour in range(routes)), 15)
        self.assertLess(shared, 0.1 * passed, f"{shared} of {passed} members are on two ways")

    def test_one_liar(self) -> None:
        """The first member of a way says that it is the owner: it is outvoted, counted and named."""
        net = self.net(2)
        machines = self.grow(net, 40)
        told: list[tuple[SimulatedNode, e.LookupDisagreed]] = []
        net.on_event = lambda machine, event: told.append((machine, event)) if isinstance(event, e.LookupDisagreed) else None
        for key in self.keys(net, 10):
            owner = self.owner(machines, key)
            asker = next(machine for machine in machines if not machine.running.ring.owns(key))
            honest: Verdict = net.wait(asker.submit(c.LookupDisjoint(key, 3)))
            liar = next(first for first, _ in honest.answers if first != owner)
            node = next(machine for machine in machines if machine.ident == liar).running
            node.rpc.serve(m.Seek, lambda link, body, liar=liar: m.Found(liar, (), 0))  # type: ignore[misc]
            verdict: Verdict = net.wait(asker.submit(c.LookupDisjoint(key, 3)))
            node.rpc.serve(m.Seek, node.disjoint._asked)
            self.assertEqual((verdict.owner, verdict.agreed, verdict.votes, verdict.asked), (owner, False, 2, 3))
            self.assertEqual(told, [(asker, e.LookupDisagreed(key, owner, (liar,)))])
            told.clear()
        counters = [machine.running.runtime.counters.get("lookup_disagreed", 0) for machine in machines]
        self.assertEqual(sum(counters), 10)

    def test_silence(self) -> None:
        """A way that ends at somebody who is gone has no vote; when all are, that is an error."""
        net = self.net(3)
        machines = self.grow(net, 40)
        asker = machines[0]
        key = next(key for key in self.keys(net, 50) if not asker.running.ring.owns(key))
        honest: Verdict = net.wait(asker.submit(c.LookupDisjoint(key, 3)))
        owner = self.owner(machines, key)
        firsts = [machine for machine in machines if machine.ident in dict(honest.answers)]
        next(machine for machine in firsts if machine.ident != owner).crash()
        verdict: Verdict = net.wait(asker.submit(c.LookupDisjoint(key, 3)))
        self.assertEqual((verdict.owner, verdict.agreed, verdict.votes, verdict.asked), (owner, True, 2, 3))
        for machine in machines[1:]:
            machine.crash()
        self.assertRaises(NotFound, net.wait, asker.submit(c.LookupDisjoint(key, 3)))

    def test_crashes_on_the_way(self) -> None:
        """A tenth of the nodes are gone and nobody knows: whoever finds the next hop dead tries another; only dead owners stay silent."""
        net = self.net(4)
        machines = self.grow(net, 60)
        for victim in net.rng.sample(machines[1:], 6):
            victim.crash()
        net.run(1)
        living = net.running()
        good = 0
        for key in self.keys(net, 10):
            asked = machines[0].submit(c.LookupDisjoint(key, 3))
            net.run(60, lambda asked=asked: asked.done)  # type: ignore[misc]
            good += asked.error is None and asked.result().owner == self.owner(living, key)
        self.assertGreaterEqual(good, 8)

    def test_small(self) -> None:
        """With fewer links than ways there are fewer ways; alone one owns everything."""
        for count, asked in ((1, 0), (2, 1), (3, 2), (4, 3), (9, 3)):
            net = self.net(10 + count)
            machines = self.grow(net, count)
            for key in self.keys(net, 5):
                for machine in machines:
                    verdict: Verdict = net.wait(machine.submit(c.LookupDisjoint(key)))
                    owner = self.owner(machines, key)
                    expected = 0 if machine.ident == owner else asked
                    self.assertEqual((verdict.owner, verdict.agreed, verdict.asked), (owner, True, expected))

    def test_misuse(self) -> None:
        """One way is no comparison, and there are at most so many."""
        net = self.net(5)
        machine = net.founder()
        net.wait(machine.start())
        for routes in (1, MOST_ROUTES + 1):
            self.assertRaises(LocalMisuse, machine.submit(c.LookupDisjoint(bytes(20), routes)).result)

    def test_colours(self) -> None:
        """Dealt evenly, and anew for each key."""
        net = self.net(6)
        idents, keys = self.keys(net, 300), self.keys(net, 2)
        dealt = [[colour_of(ident, key, 4) for ident in idents] for key in keys]
        for colours in dealt:
            self.assertTrue(all(50 < colours.count(colour) < 100 for colour in range(4)))
        self.assertLess(sum(one == other for one, other in zip(*dealt, strict=True)), 120)
