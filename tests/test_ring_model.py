"""The ring at scale, over modelled links: Zave's invariant after every change, look-ups, failures, partitions, strangers."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from statistics import fmean

from twisted.trial.unittest import TestCase

from ipop_tx.cli.main import main
from ipop_tx.core import commands as c
from ipop_tx.errors import LocalMisuse
from ipop_tx.simulation import scenarios
from ipop_tx.simulation.invariants import shape_faults
from ipop_tx.simulation.linkmodel import RingNet
from ipop_tx.simulation.static import StaticRing, measure
from ipop_tx.simulation.story import Plan, Story, read_rtt
from ipop_tx.values import Ident
from tests.net import NetCase


class ShapeCase(TestCase):
    """Nets whose shape is looked at after every event that changed anybody's neighbours."""

    def watched(self, seed: int, **options: float) -> RingNet:
        """A net that fails the test as soon as Zave's invariant does not hold."""
        net = RingNet(seed, **options)  # type: ignore[arg-type]
        self.checks, seen, run = 0, -1, net.run

        def check() -> bool:
            nonlocal seen
            if net.changes != seen:
                seen = net.changes
                self.checks += 1
                self.assertEqual(shape_faults(lists(net)), [], f"at {net.now:.3f} s")
            return False

        net.run = lambda seconds, until=None: run(seconds, check)  # type: ignore[method-assign]
        self.addCleanup(lambda: self.assertEqual(net.faults, []))
        return net

    def churn(self, net: RingNet, times: int, every: float, together: int = 1) -> None:
        """Members crash or leave, others come in their place."""
        for _ in range(times):
            for node in net.rng.sample([node for node in net.up() if node.ring.placed], together):
                (node.leave if net.rng.random() < 0.5 else node.crash)()
            for _ in range(together):
                contacts = [node for node in net.some(8) if node.ring.placed]
                net.add().start(*contacts[:2])
            net.run(every)


def lists(net: RingNet) -> dict[Ident, list[Ident]]:
    """The living successors of all members but newcomers that had no answer and founded a ring of their own."""
    up = {node.ident for node in net.up() if node.ring.joined and (node.ring.placed or node.ring.successors)}
    return {node.ident: [ident for ident in node.ring.successors if ident in up] for node in net.up() if node.ident in up}


class InvariantTests(ShapeCase):
    """At most one ring, ordered, all others hanging on it: at every moment."""

    def test_the_check_finds(self) -> None:
        """Two rings, a ring that goes round twice, and a member off all are seen."""
        a, b, d, e = (bytes([digit]) + bytes(19) for digit in (10, 80, 150, 220))
        self.assertEqual(shape_faults({a: [b], b: [d], d: [e], e: [a]}), [])
        self.assertEqual(shape_faults({a: [b], b: [a], d: [b]}), [], "an appendage")
        self.assertEqual(shape_faults({a: [b], b: [a], d: [e], e: [d]}), ["2 rings"])
        self.assertEqual(shape_faults({a: [d], d: [b], b: [e], e: [a]}), ["a ring of 4 goes round 2 times"])
        self.assertEqual(shape_faults({a: [b], b: [a], d: []}), ["2 rings"])

    def test_one_after_another(self) -> None:
        """Joins, leaves and crashes, with 2 % of messages lost."""
        for seed in (1, 2, 3):
            net = self.watched(seed, loss=0.02)
            scenarios.joining(net, 40, per_second=2)
            net.run(5.0)  # a newcomer whose only contact crashes founds a ring of its own: that is no concern of the invariant
            self.churn(net, 20, 5.0)
            net.run(60.0)
            self.assertGreater(self.checks, 900)
            self.assertEqual(scenarios.misplaced(net), 0)

    def test_three_at_once(self) -> None:
        """Three of sixty go in one moment, again and again, faster than the ring is repaired."""
        net = self.watched(4)
        scenarios.joining(net, 60, per_second=3)
        self.churn(net, 15, 4.0, together=3)
        net.run(60.0)
        self.assertEqual(scenarios.misplaced(net), 0)


class ScaleTests(TestCase):
    """What the ring promises, at sizes that take seconds."""

    def setUp(self) -> None:
        self.addCleanup(gc.unfreeze)

    def story(self, **plan: object) -> dict[str, object]:
        """Carry out a plan; no node may meet an error of its own."""
        report = Story(Plan(**plan)).run()  # type: ignore[arg-type]
        self.assertEqual(report["faults"], [])
        return report

    def test_idle(self) -> None:
        """1000 nodes: every look-up right, few hops, near the direct round trip, within the budget of bytes."""
        report = self.story(nodes=1000, minutes=5, lookups=2000)
        self.assertEqual((report["lookup_success"], report["one_ring"]), (1.0, True))
        self.assertLessEqual(report["hops_mean"], 4.2)
        self.assertLessEqual(report["stretch_p50"], 2.5)
        self.assertLessEqual(report["bytes_per_s_per_node"], 500)

    def test_churn(self) -> None:
        """Sessions of an hour, and of five minutes."""
        report = self.story(nodes=300, minutes=5, lookups=2000, session=60.0)
        self.assertGreaterEqual(report["lookup_success"], 0.999)
        report = self.story(nodes=300, minutes=4, lookups=2000, session=5.0)
        self.assertGreaterEqual(report["lookup_success"], 0.99)

    def test_half_of_all_crash(self) -> None:
        """One ring, and 99 % of look-ups right, 30 seconds later."""
        report = self.story(nodes=500, minutes=1, lookups=1000, kill=0.5)["kill"]
        assert isinstance(report, dict)
        self.assertLessEqual(report["whole_s"], 60)
        self.assertGreaterEqual(report["lookup_success"], 0.99)

    def test_parts_merge(self) -> None:
        """Three parts that lived for an hour become one ring again."""
        report = self.story(nodes=150, minutes=1, lookups=500, parts=3)["partition"]
        assert isinstance(report, dict)
        self.assertLessEqual(report["whole_s"], 750)
        self.assertEqual(report["lookup_success"], 1.0)

    def test_sleepers(self) -> None:
        """A third of all are suspended for an hour: the others are a ring without them, and they come back as themselves."""
        report = self.story(nodes=150, minutes=1, lookups=500, asleep=0.3)["asleep"]
        assert isinstance(report, dict)
        self.assertTrue(report["whole_without"])
        self.assertLessEqual(report["whole_s"], 60)
        self.assertEqual(report["lookups_wrong"], 0)
        self.assertGreaterEqual(report["lookup_success"], 0.995, "asked from the moment that the ring is one")

    def test_strangers(self) -> None:
        """30 % of pairs cannot reach each other; the ring is whole and routes all the same."""
        report = self.story(nodes=300, minutes=3, lookups=1000, strangers=0.3)
        self.assertEqual((report["lookup_success"], report["one_ring"]), (1.0, True))

    def test_flood(self) -> None:
        """300 nodes join at once through one, with up to 140 ms between them."""
        report = self.story(nodes=300, minutes=1, lookups=500, flood=True)
        self.assertLessEqual(report["flood_whole_s"], 10.0)
        self.assertEqual(report["lookup_success"], 1.0)

    def test_same_seed(self) -> None:
        """Same seed, same run; another one, another run."""
        runs = [Story(Plan(nodes=100, minutes=2, lookups=200, session=5.0, loss=0.01, seed=seed)).run() for seed in (7, 7, 8)]
        for run in runs:
            del run["kb_per_node"]
        self.assertEqual(runs[0], runs[1])
        self.assertNotEqual(runs[0], runs[2])

    def test_static(self) -> None:
        """20,000 nodes that stand still."""
        report, _ = measure(20_000, 1, 500, 0.1, lambda what, share: None)
        self.assertEqual(report["lookup_success"], 1.0)
        self.assertLessEqual(report["hops_mean"], 5.8)
        self.assertEqual(StaticRing(1).walk(0, 5).hops, 0)


class TruthTests(NetCase):
    """The link model beside whole nodes with their handshakes, sessions and paths."""

    def test_beside_whole_nodes(self) -> None:
        """60 nodes of either kind have about the same links, hops and idle traffic of the ring."""
        net = self.net(2)
        machines = self.grow(net, 60)
        net.run(400)
        links = fmean(len(machine.running.links.by_ident) for machine in machines)
        asked = [net.rng.choice(machines).submit(c.Lookup(net.rng.randbytes(20))) for _ in range(300)]
        net.run(10, lambda: all(future.done for future in asked))
        hops = fmean(future.result().hops for future in asked)
        model = RingNet(2)
        scenarios.joining(model, 60)
        model.run(400)
        load = scenarios.LookupLoad(model).run(300, 10)
        self.assertLess(abs(fmean(load.hops) - hops), 0.3 * hops)
        self.assertLess(abs(fmean(len(node.links.by_ident) for node in model.up()) - links), 0.35 * links)


class CommandTests(TestCase):
    """`ipop simulate`."""

    def simulate(self, *words: str) -> tuple[int, str]:
        """Run the command: its exit status and its last line."""
        from contextlib import redirect_stderr, redirect_stdout
        from io import StringIO

        said = StringIO()
        with redirect_stdout(said), redirect_stderr(said):
            try:
                main(["simulate", *words])
                status = 0
            except SystemExit as end:
                status = int(end.code or 0)
        return status, said.getvalue().strip().splitlines()[-1]

    def test_json(self) -> None:
        """One JSON object, with a matrix of round trips."""
        table = Path(self.mktemp())
        table.write_text("0.5, 40\n40 0.5\n")
        status, line = self.simulate("--nodes", "40", "--minutes", "1", "--lookups", "50", "--rtt", str(table), "--json")
        report = json.loads(line)
        self.assertEqual((status, report["nodes"], report["lookup_success"], report["one_ring"]), (0, 40, 1.0, True))

    def test_bad_words(self) -> None:
        """What is wrong is named, with the mend."""
        table = Path(self.mktemp())
        table.write_text("1 2\n3\n")
        self.assertEqual(self.simulate("--rtt", str(table))[0], 1)
        self.assertEqual(self.simulate("--kill", "1.5")[0], 2)
        self.assertEqual(self.simulate("--nodes", "0")[0], 2)
        table.write_text("1 x\n3 4\n")
        self.assertRaises(LocalMisuse, read_rtt, table)
        self.assertRaises(LocalMisuse, Plan, nodes=3, session=0.0)
