"""Which relays lose traffic: what reports tell, and what is done about it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from ipop_tx.core import commands as c
from ipop_tx.services.relaywatch import RelayWatch
from tests.test_core_relays import ChoiceCase

RTT = 0.05


class Relayed:
    """A flow of records over a relay, ten a second, as the watch sees it; control messages of the same session go between."""

    def __init__(self) -> None:
        self.now = 0.0
        self.watch = RelayWatch()
        self.channel = SimpleNamespace(send_index=5, datagrams_sealed=0)
        self.adjacency: Any = SimpleNamespace(ident=b"peer", hop=object(), channel=self.channel, relay_header=b"by one", tx_records=0)
        self.highest, self.opened, self.found = -1, 0, 0
        self.late: list[tuple[float, int]] = []

    def run(self, seconds: float, lost: float = 0.0, delay: float = 0.0, control: int = 1, traffic: int = 1) -> int:
        """So long; gives how often the relay was found bad. Every `1 / lost`-th record of traffic gets lost, control messages never."""
        found, due = 0, 0.0
        for _ in range(round(10 * seconds)):
            self.now += 0.1
            for kind in [True] * traffic + [False] * control:
                counter = self.channel.datagrams_sealed
                self.channel.datagrams_sealed += 1
                self.adjacency.tx_records += kind
                due += lost if kind else 0.0
                if kind and due >= 1.0:
                    due -= 1.0
                else:
                    self.late.append((self.now + (delay if kind else 0.0), counter))
            arrived = [counter for moment, counter in self.late if moment <= self.now]
            self.late = [pair for pair in self.late if pair[0] > self.now]
            if arrived:
                self.opened += len(arrived)
                self.highest = max(self.highest, *arrived)
                self.watch.reported(self.adjacency, 5, self.highest, self.opened)
                self.adjacency.tx_records = 0
            found += self.watch.is_bad(self.now, self.adjacency, RTT)
        return found


class WatchTests(SynchronousTestCase):
    """Numbers only."""

    def test_good(self) -> None:
        """Nothing lost, some lost on the way, a round trip of half a second."""
        self.assertEqual([Relayed().run(60, lost) for lost in (0.0, 0.1, 0.3)], [0, 0, 0])
        self.assertEqual(Relayed().run(60, delay=0.3), 0)

    def test_bad(self) -> None:
        """All traffic lost, most of it, with much control traffic between or none; held up for seconds."""
        for lost, control in ((1.0, 1), (1.0, 5), (1.0, 0), (0.8, 1)):
            flow = Relayed()
            flow.run(10)
            self.assertGreaterEqual(flow.run(5, lost, control=control), 1, (lost, control))
        flow = Relayed()
        flow.run(10, control=0)
        self.assertGreaterEqual(flow.run(5, delay=3.0, control=0), 1)

    def test_little_traffic(self) -> None:
        """One ping a second: within ten seconds."""
        flow = Relayed()
        flow.run(5)
        found = 0
        for _ in range(9):
            found += flow.run(0.1, 1.0, control=0) + flow.run(0.9, control=0, traffic=0)
        self.assertEqual(found, 1)

    def test_nothing_to_say(self) -> None:
        """No traffic, a direct path, another session or another relay meanwhile."""
        flow = Relayed()
        self.assertEqual(flow.run(30, traffic=0), 0)
        flow.run(1.2, 1.0)
        flow.adjacency.relay_header = b"by another"
        self.assertEqual(flow.run(1.5, 1.0), 0)
        flow.adjacency.hop = None
        self.assertEqual(flow.run(10, 1.0), 0)
        flow.watch.forget(b"peer")


class MistrustTests(ChoiceCase):
    """What becomes of a relay that is doubted."""

    def test_left_for_another(self) -> None:
        """At once, and not taken again though it is the shortest."""
        self.frames(10)
        bad = self.relay()
        self.one.submit(c.DoubtRelay(self.other.ident))
        self.assertNotEqual(self.relay(), bad)
        self.frames(60)
        self.assertNotEqual(self.relay(), bad)
        self.converse(self.sim, [(self.one, self.other)], 2)
        self.frames(150)
        self.assertIn(bad.ident, self.link().relays, "after its time is over")

    def test_all_are_doubted(self) -> None:
        """Then any will do."""
        self.frames(10)
        for _ in range(4):
            self.one.submit(c.DoubtRelay(self.other.ident))
            self.frames(3)
        self.frames(10)
        self.assertIsNotNone(self.link().relay)
        self.converse(self.sim, [(self.one, self.other)], 2)

    def test_a_direct_link(self) -> None:
        """Has none to doubt."""
        third = self.nodes[1]
        self.one.submit(c.DoubtRelay(third.ident))
        self.one.submit(c.DoubtRelay(bytes(20)))
        self.assertEqual(self.one.running.runtime.counters.get("relay_mistrusted", 0), 0)
