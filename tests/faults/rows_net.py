"""Faults of networks: what paths lose, double and reorder, narrow, forget; and members that are gone."""

from __future__ import annotations

import json
import random
import signal
import sys
import time

from benchmarks.dataplane.underlay import OFFLOADS
from ipop_tx.lab import Nat, netns, wait_for
from ipop_tx.lab.node import LabNode, environment
from tests.attacks.rows_relay import Flow
from tests.attacks.wire import Datagram, Eyes, Forger, cut
from tests.faults.case import BACK, FaultCase, shows

RECOVERED = 10.0
"""Seconds within which bulk goes again."""
TIMEOUTS = (10, 30, 60)
"""Seconds that NAT mappings live."""
QUIET = 2.5
"""So many lives of a mapping nothing is sent."""
BLACK_HOLE = """table inet hole {
 chain f {
  type filter hook forward priority 0;
  meta length > 1280 drop
 }
 chain o {
  type filter hook output priority 0;
  icmp type destination-unreachable drop
  icmpv6 type packet-too-big drop
 }
}
"""


class CrookedPath:
    """A path between two hosts that loses, delays and doubles datagrams one by one; runs while `carry` does."""

    def __init__(self, eyes: Eyes, forger: Forger, ends: tuple[str, str], loss: float) -> None:
        self.doubled = self.lost = self.carried = 0
        self._eyes, self._forger, self._ends, self._loss = eyes, forger, ends, loss
        self._rng = random.Random(1)
        self._seen = 0
        self._due: list[tuple[float, Datagram]] = []

    def carry(self) -> None:
        """What has come since the last call, and what is due."""
        now = time.monotonic()
        seen = self._eyes.seen()
        for one in seen[self._seen :]:
            if one.source[0] in self._ends and one.target[0] in self._ends:
                self._take(now, one)
        self._seen = len(seen)
        due = sorted((pair for pair in self._due if pair[0] <= now), key=lambda pair: pair[0])
        self._due = [pair for pair in self._due if pair[0] > now]
        for _, one in due:
            self._forger.again(one)

    def _take(self, now: float, one: Datagram) -> None:
        self.carried += 1
        if self._rng.random() < self._loss:
            self.lost += 1
            return
        copies = 2 if self._rng.random() < 0.1 else 1
        self.doubled += copies - 1
        self._due += [(now + self._rng.uniform(0.0, 0.05), one) for _ in range(copies)]


class CrookedTests(FaultCase):
    """Two nodes whose datagrams all go through such a path."""

    @shows(5)
    def test_nothing_comes_twice(self) -> None:
        """At 1, 10 and 30 % loss, up to 50 ms of delay 10 % doubled: what was not lost arrives, whole and once."""
        founder, other = self.pair()
        ends = founder.host.address, other.host.address
        self.lab.core.run(["nft", "-f", "-"], text=cut(founder.host, other.host))
        with Eyes(self.lab.core) as eyes, Forger(self.lab.core) as forger:
            for loss in (0.01, 0.1, 0.3):
                path = CrookedPath(eyes, forger, ends, loss)
                path._seen = len(eyes.seen())
                flow = Flow(founder, other, every=0.01, meanwhile=path.carry)  # type: ignore[arg-type]
                flow.run(12.0)
                missing = 1 - len(flow.got) / len(flow.sent)
                name = f"{loss:.0%}"
                self.figures.update({f"sent_{name}": len(flow.sent), f"missing_{name}": round(missing, 3), f"doubled_{name}": path.doubled})
                self.assertEqual((flow.twice, flow.foreign), (0, 0), name)
                self.assertGreater(path.doubled, 50)
                self.assertLess(missing, loss + 0.1, name)
                flow.close()
        self.assertTrue(founder.path_to(other).startswith("direct"), "the path is kept all the time")


class NarrowTests(FaultCase):
    """The path becomes narrower, and nobody says so."""

    @shows(6)
    def test_a_black_hole(self) -> None:
        """A TCP stream runs; then nothing over 1280 bytes passes any more and no ICMP tells: it goes on soon, and fast."""
        founder, other = self.pair()
        self._without_offloads(founder, other)
        program = [sys.executable, "-m", "benchmarks.steady"]
        sender = founder.host.start([*program, "send", founder.address, "7000"], "send.log", environment())
        wait_for("the sender", 20, lambda: ":7000" in founder.host.run(["ss", "-ltn"]).stdout, 0.1)
        receiver = other.host.start([*program, "receive", founder.address, "7000"], "receive.log", environment())
        time.sleep(6.0)
        self.lab.core.run(["nft", "-f", "-"], text=BLACK_HOLE)
        before = self._bytes(other)
        time.sleep(RECOVERED)
        middle = self._bytes(other)
        time.sleep(15.0)
        after = self._bytes(other)
        sender.send(signal.SIGTERM)
        receiver.wait(60)
        told = json.loads(receiver.output.splitlines()[-1])
        self.figures.update(
            longest_wait_s=told["longest_wait_s"], kb_within_10_s=(middle - before) >> 10, kb_of_15_s=(after - middle) >> 10
        )
        self.assertLessEqual(told["longest_wait_s"], RECOVERED)
        self.assertGreater(after - middle, (middle - before) // 2)
        self.assertGreater(after - middle, 1 << 20)

    def _without_offloads(self, *nodes: LabNode) -> None:
        """Let the router see each datagram by itself."""
        devices = [(node.host, "eth0") for node in nodes] + [(self.lab.core, f"v{node.host.address}") for node in nodes]
        for host, device in devices:
            for offload in OFFLOADS:  # one by one: no device knows all of them
                host.run(["ethtool", "-K", device, offload, "off"], check=False)

    def _bytes(self, node: LabNode) -> int:
        """What has come out of its TAP."""
        return int(node.host.run(["cat", "/sys/class/net/ipop0/statistics/rx_bytes"]).stdout)


class MappingTests(FaultCase):
    """NATs that forget soon."""

    @shows(8)
    def test_short_lives(self) -> None:
        """Three pairs behind NATs whose mappings live for 10, 30 and 60 s say nothing for 150 s: then they reach each other at once."""
        founder = self.found(self.lab.public_host("founder"))
        self.admit(founder, self.lab.public_host("second"))
        pairs = []
        for seconds in TIMEOUTS:
            sites = [self.lab.site(f"{name}{seconds}", Nat.PORT_RESTRICTED) for name in ("left", "right")]
            for site in sites:
                for key in ("nf_conntrack_udp_timeout", "nf_conntrack_udp_timeout_stream"):
                    netns.set_kernel(site.router.namespace, f"netfilter.{key}", seconds)
            left, right = (self.admit(founder, site.host(f"{site.name}h")) for site in sites)
            self.assertTrue(left.reaches(right.address))
            left.wait_for_path(right, lambda path: path.startswith("direct"), 60)
            pairs.append((seconds, left, right))
        time.sleep(QUIET * max(TIMEOUTS))
        for seconds, left, right in pairs:
            before, rtt = left.path_to(right), left.ping(right.address)
            answered = rtt is not None or left.reaches(right.address, BACK)
            direct = left.wait_for_path(right, lambda path: path.startswith("direct"), 30)
            self.figures[f"life_{seconds}_s"] = {"first_ping_ms": rtt, "path_before": before.split(" ")[0]}
            self.assertTrue(answered)
            self.assertTrue(direct.startswith("direct"))


class BootstrapTests(FaultCase):
    """Those that everybody was told to ask are gone."""

    @shows(12, quick=True)
    def test_all_are_dead(self) -> None:
        """The only bootstrap node dies for ever; the others are killed and start at once: they find each other again."""
        founder = self.found(self.lab.public_host("founder"))
        nodes = [self.admit(founder, self.lab.public_host(f"node{number}")) for number in range(3)]
        self.assert_reach(founder, *nodes)
        self.settle(founder, *nodes)
        time.sleep(6.0)  # links are written down some seconds after they come up
        addresses = [node.address for node in nodes]
        for node in (founder, *nodes):
            node.kill9()
        begun = time.monotonic()
        for node in nodes:
            node.keys["node"]["bootstrap"] = [f"udp:{founder.host.address}:4500"]
            node.start()
        found = [node.wait_until_up(BACK) for node in nodes]
        self.assert_reach(*nodes)
        self.figures["together_after_s"] = round(time.monotonic() - begun, 2)
        self.assertEqual(found, addresses)
        self._alone(nodes[0], nodes[1:])

    def _alone(self, node: LabNode, others: list[LabNode]) -> None:
        """One of them once more, while the others run."""
        node.kill9()
        node.start()
        node.wait_until_up(BACK)
        self.assert_reach(node, *others)
