"""The lab's measurements, tried on hosts without any daemon: what they find is known beforehand."""

from __future__ import annotations

import json
import time
import tomllib
from itertools import permutations
from pathlib import Path
from unittest.mock import patch

from twisted.trial import unittest

from ipop_tx.errors import EnvironmentProblem, Unreachable
from ipop_tx.lab import Lab, wait_for
from ipop_tx.lab.demo_report import AfterKill, Report
from ipop_tx.lab.node import LabNode, Refusal, to_toml
from ipop_tx.lab.traffic import Watch, fetch, unreached
from tests.system import why_not


def plain(node: LabNode) -> str:
    """The host's own address: these nodes have no overlay."""
    return node.host.address


class TrafficTests(unittest.SynchronousTestCase):
    """Three hosts of one internet."""

    skip = why_not("curl")

    def setUp(self) -> None:
        lab = Lab("traffic")
        self.addCleanup(lab.close)
        lab.__enter__()
        self.lab = lab
        self.nodes = [LabNode(lab.public_host(name)) for name in ("a", "b", "c")]

    def test_who_is_not_reached(self) -> None:
        """Exactly the pairs with an unplugged host are missing."""
        pairs = list(permutations(self.nodes, 2))
        self.assertEqual(unreached(pairs, plain, 5), [])
        self.nodes[2].host.plug(False)
        self.assertEqual(set(unreached(pairs, plain, 0.5)), {("a", "c"), ("b", "c"), ("c", "a"), ("c", "b")})

    def test_a_watch_sees_an_outage(self) -> None:
        """A second without a cable is a second of silence for its pairs, and none for the others."""
        watch = Watch(self.nodes, plain, 4)
        began = time.time()
        wait_for("a second", 5, lambda: time.time() > began + 1)
        self.nodes[2].host.plug(False)
        unplugged = time.time()
        wait_for("another second", 5, lambda: time.time() > unplugged + 1)
        self.nodes[2].host.plug()
        outages = watch.outages(unplugged)
        self.assertEqual(set(outages), {"a-b", "a-c", "b-c"})
        self.assertLess(outages["a-b"], 0.7)
        for pair in ("a-c", "b-c"):
            self.assertGreaterEqual(outages[pair], 0.8)
            self.assertLess(outages[pair], 3)

    def test_a_file_arrives(self) -> None:
        """The file is compared, and none of it stays."""
        left, right = self.nodes[:2]
        moved = fetch(left, right, left.host.address, megabytes=3)
        self.assertTrue(moved.good)
        self.assertGreater(moved.mbit_per_second, 0)
        self.assertEqual([path.name for path in right.host.directory.iterdir()], ["node-b"])

    def test_a_file_that_changed_is_noticed(self) -> None:
        """A copy that differs is not good."""
        left, right = self.nodes[:2]
        with patch("ipop_tx.lab.traffic._curl", lambda client, url, target: float(Path(target).write_bytes(b"other"))):
            self.assertFalse(fetch(left, right, left.host.address, megabytes=1).good)

    def test_ping(self) -> None:
        """The round trip in milliseconds, or None."""
        left, right = self.nodes[:2]
        answer = left.ping(right.host.address)
        assert answer is not None
        self.assertTrue(0 < answer < 1000)
        right.host.plug(False)
        self.assertIsNone(left.ping(right.host.address, 0.3))

    def test_the_address_on_the_tap(self) -> None:
        """Found as soon as it is there, with no daemon asked."""
        node = self.nodes[0]
        self.assertIsNone(node.address_on_tap())
        node.host.run(["ip", "link", "add", "ipop0", "type", "bridge"])
        self.assertIsNone(node.address_on_tap())
        node.host.run(["ip", "addr", "add", "10.128.0.7/16", "dev", "ipop0"])
        self.assertEqual(node.address_on_tap(), "10.128.0.7")

    def test_no_daemon_to_ask(self) -> None:
        """A node that does not run is unreachable."""
        self.assertRaises(Unreachable, self.nodes[0].status)

    def test_a_program_that_fails_or_hangs(self) -> None:
        """Both are errors that name the program and the host."""
        host = self.nodes[0].host
        error = self.assertRaises(EnvironmentProblem, host.run, ["sh", "-c", "echo reason >&2; exit 3"])
        self.assertIn("on a failed: reason", str(error))
        error = self.assertRaises(EnvironmentProblem, host.run, ["sleep", "60"], timeout=0.2)
        self.assertIn("more than 0.2 s", str(error))


class ReportTests(unittest.SynchronousTestCase):
    """What counts as good."""

    def good(self) -> Report:
        """A report without a fault."""
        after = AfterKill(30, 30, [0.1], True, 1.0, 12, 12)
        return Report(7, 42, 42, 42, [0.9, 1.0, 3.0], [9.0, 20.0], 0, {"direct": 40, "relay": 2}, True, 256, 3.0, "direct x", after, 60.0)

    def test_a_good_one(self) -> None:
        """No fault; the figures are in the JSON under their names."""
        report = self.good()
        self.assertEqual(report.faults(), [])
        value = json.loads(report.as_json())
        self.assertEqual(value["join_seconds"], {"p50": 1.0, "max": 3.0})
        self.assertEqual(value["first_ping_ms"], {"p50": 14.5, "max": 20.0})
        self.assertEqual((value["file_ok"], value["ok"], value["after_kill"]["joined"]), (True, True, True))

    def test_every_fault_is_one(self) -> None:
        """Each claim can fail alone."""
        wrong: list[tuple[str, object]] = [
            ("nodes", 6),
            ("pairs_reached", 41),
            ("ipv6_pairs_reached", 41),
            ("first_pings_lost", 1),
            ("file_ok", False),
            ("join_seconds", [5.1]),
            ("join_seconds", []),
            ("error", "it broke"),
            ("after_kill", AfterKill(30, 29, [], True, 1.0, 12, 12)),
            ("after_kill", AfterKill(30, 30, [], False, 1.0, 12, 12)),
            ("after_kill", AfterKill(30, 30, [], True, 1.0, 12, 11)),
        ]
        for name, value in wrong:
            report = self.good()
            setattr(report, name, value)
            self.assertEqual(len(report.faults()), 1, name)
            self.assertFalse(json.loads(report.as_json())["ok"])

    def test_an_empty_one_is_not_good(self) -> None:
        """Nothing measured is nothing shown."""
        report = Report()
        self.assertGreaterEqual(len(report.faults()), 6)
        self.assertEqual(json.loads(report.as_json())["join_seconds"], {"p50": None, "max": None})


class FileTests(unittest.SynchronousTestCase):
    """What the lab writes and reads."""

    def test_toml(self) -> None:
        """What is written is read back by a TOML reader."""
        sections = {"node": {"state": 'a "b"\\', "bootstrap": ["udp:203.0.113.10:4500"]}, "tap": {"mtu": 1300, "enabled": True}}
        self.assertEqual(tomllib.loads(to_toml(sections)), sections)

    def test_sentences(self) -> None:
        """Only what `ipop` itself says counts."""
        self.assertEqual(Refusal(1, "2026 [-] Log\nipop: a sentence\nmore\n").sentences, ["a sentence"])
