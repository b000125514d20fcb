"""The benchmarks: what they read from iperf3 and ping, what they report, and a short real run that leaves nothing behind."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from twisted.internet.utils import getProcessOutputAndValue
from twisted.trial.unittest import TestCase

from benchmarks import profile
from benchmarks.dataplane import measure
from benchmarks.dataplane.__main__ import main
from benchmarks.dataplane.report import KEYS, PINGS, Lossy, Report, Results, rounded, table
from benchmarks.dataplane.underlay import B_ADDRESS, Pair
from ipop_tx.errors import EnvironmentProblem
from ipop_tx.lab import Lab, netns
from ipop_tx.lab.registry import records
from tests.system import why_not

ROOT = Path(__file__).parent.parent

TCP = {
    "start": {"tcp_mss_default": 1248, "test_start": {"protocol": "TCP"}},
    "end": {
        "sum_sent": {"bytes": 1_260_000_000, "bits_per_second": 2.52e9, "retransmits": 7},
        "sum_received": {"bytes": 1_250_000_000, "bits_per_second": 2.5e9},
    },
}
UDP_SERVER = {"start": {}, "end": {"streams": [], "sum": {"seconds": 2.0, "packets": 100_000, "lost_packets": 20_000}}}
PING = """PING 10.61.2.2 (10.61.2.2) 56(84) bytes of data.
64 bytes from 10.61.2.2: icmp_seq=1 ttl=63 time=0.310 ms
64 bytes from 10.61.2.2: icmp_seq=2 ttl=63 time=12 ms
64 bytes from 10.61.2.2: icmp_seq=4 ttl=63 time=0.300 ms

4 packets transmitted, 3 received, 25% packet loss, time 30ms
"""


class Parsers(TestCase):
    """Text of others' programs becomes figures, or one sentence."""

    def test_tcp(self) -> None:
        stream = measure.parse_tcp(json.dumps(TCP))
        self.assertEqual((stream.gbps, stream.gigabytes, stream.retransmits, stream.mss), (2.5, 1.25, 7, 1248))

    def test_cpu_per_gigabyte(self) -> None:
        self.assertEqual(measure.Stream(2.5, 1.25, 0, 1248, cpu_seconds=5.0).cpu_s_per_gb, 4.0)
        self.assertEqual(measure.Stream(0.0, 0.0, 0, 1248, cpu_seconds=5.0).cpu_s_per_gb, 0.0)

    def test_udp_counts_what_arrived(self) -> None:
        self.assertEqual(measure.parse_udp_server(json.dumps(UDP_SERVER)), 40_000.0)

    def test_iperf3_that_failed(self) -> None:
        failed = json.dumps({"start": {}, "error": "unable to connect to server: Connection refused"})
        for parse in (measure.parse_tcp, measure.parse_udp_server):
            for text in (failed, "", "iperf3: error", "[]", json.dumps({"start": {}, "end": {}})):
                self.assertRaises(EnvironmentProblem, parse, text)
        self.assertIn("Connection refused", str(self.assertRaises(EnvironmentProblem, measure.parse_tcp, failed)))

    def test_a_lost_ping_counts(self) -> None:
        self.assertEqual(sorted(measure.parse_pings(PING, 4)), [0.3, 0.31, 12.0, measure.UNANSWERED_MS])
        self.assertRaises(EnvironmentProblem, measure.parse_pings, "4 packets transmitted, 0 received", 4)

    def test_percentile(self) -> None:
        hundred = [float(value) for value in range(1, 101)]
        self.assertEqual([measure.percentile(hundred, share) for share in (0.5, 0.99, 1.0)], [50.0, 99.0, 100.0])
        self.assertEqual(measure.percentile([3.0], 0.99), 3.0)

    def test_own_cpu_time(self) -> None:
        before = measure.cpu_seconds([os.getpid()])
        while os.times().user + os.times().system < before + 0.05:
            pass
        self.assertGreater(measure.cpu_seconds([os.getpid()]), before)
        self.assertGreater(measure.resident_mb([os.getpid()]), 5)


def results(*gbps: float) -> Results:
    """One system with rounds that differ in one figure."""
    others = dict.fromkeys((*KEYS, *(f"{ping}_{q}" for ping in PINGS for q in ("p50", "p99"))), 1.0)
    return Results("1.2", [{**others, "tcp1_gbps": value} for value in gbps])


class Reports(TestCase):
    """Medians, spread, text."""

    def report(self) -> Report:
        """Two systems, of which one lacks a figure."""
        report = Report({"cores": 2}, rounds=3, seconds=5)
        report.systems = {"ipop_tx": results(3.0, 1.0, 2.0), "n2n": results(0.5)}
        del report.systems["n2n"].rounds[0]["udp100_pps"]
        report.lossy = [Lossy("ipop_tx", 20, 0.1, (40.0, 60.0, 41.0)), Lossy("n2n", 20, 0.1, ())]
        report.left_out = {"tinc": "cannot have tinc"}
        return report

    def test_medians_and_spread(self) -> None:
        found = json.loads(self.report().as_json())
        self.assertEqual(found["systems"]["ipop_tx"]["tcp1_gbps"], 2.0)
        self.assertEqual(found["spread"]["ipop_tx"]["tcp1_gbps"], [1.0, 3.0])
        self.assertEqual(found["systems"]["ipop_tx"]["ping_load_ms"], {"p50": 1.0, "p99": 1.0})
        self.assertEqual(set(found["systems"]["ipop_tx"]), {"version", *KEYS, *PINGS})
        self.assertIsNone(found["systems"]["n2n"]["udp100_pps"])
        self.assertEqual(found["lossy"][0]["goodput_mbps"], 41.0)
        self.assertIsNone(found["lossy"][1]["goodput_mbps"])

    def test_text(self) -> None:
        text = self.report().as_text()
        self.assertIn("left out: tinc: cannot have tinc", text)
        (line,) = [line for line in text.splitlines() if line.startswith("| n2n")]
        self.assertEqual([cell.strip() for cell in line.strip("|").split("|")][:6], ["n2n 1.2", "0.5", "1", "1", "1", "-"])
        self.assertIn("| 20 ms, 0.1 % lost      |      41 |   - |", text)

    def test_table(self) -> None:
        self.assertEqual(table([["a", "b"]], [["x", "12"]]), "| a |  b |\n|---|---:|\n| x | 12 |")

    def test_rounded(self) -> None:
        self.assertEqual([rounded(value) for value in (0.0, 0.0123456, 1.23456, 123456.7)], [0.0, 0.01235, 1.235, 123457.0])


class Words(TestCase):
    """What the command line refuses, before anything is touched."""

    if os.geteuid() != 0:
        skip = "only root gets further than the first sentence"

    def refused(self, *words: str) -> str:
        """The sentence."""
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            status = main(words)
        self.assertNotEqual(status, 0)
        self.assertEqual(out.getvalue(), "")
        return err.getvalue()

    def test_unknown_system(self) -> None:
        self.assertIn("there is no system 'vpn9'", self.refused("--only", "raw,vpn9"))

    def test_peer(self) -> None:
        self.assertIn("write NAME=COMMAND", self.refused("--peer", "mine"))
        self.assertIn("known already", self.refused("--peer", "openvpn=true"))

    def test_congestion(self) -> None:
        self.assertIn("no congestion control 'warp'", self.refused("--congestion", "warp"))


class Stages(TestCase):
    """The profile puts every function where it belongs."""

    def at(self, *places: tuple[str, str]) -> str:
        """The stage of a stack of (file of ipop_tx, function)."""
        return profile.stage([(f"/some/where/ipop_tx/ipop_tx/{file}", function, 1) for file, function in places])

    def test_the_way_of_a_packet(self) -> None:
        read = ("services/tap.py", "doRead")
        self.assertEqual(self.at(read), "TAP read")
        self.assertEqual(self.at(("forwarding/plane.py", "frame_received"), read), "plane")
        self.assertEqual(self.at(("session/sealed.py", "protect"), ("forwarding/plane.py", "_send"), read), "seal")
        self.assertEqual(self.at(("transport/udp.py", "write"), read), "send")
        self.assertEqual(self.at(("transport/udp.py", "doRead")), "receive")
        self.assertEqual(self.at(("session/sealed.py", "unprotect"), ("transport/udp.py", "doRead")), "unseal")
        self.assertEqual(self.at(("session/replay.py", "accept"), ("session/sealed.py", "unprotect")), "replay and source checks")
        self.assertEqual(self.at(("services/tap.py", "write"), ("transport/udp.py", "doRead")), "TAP write")
        self.assertEqual(self.at(("core/ring.py", "step")), "control plane")
        self.assertEqual(profile.stage([("/x/ipop_tx/.venv/lib/site-packages/twisted/internet/base.py", "run", 1)]), "reactor")
        self.assertEqual(profile.stage([("/usr/lib/python3.11/json/decoder.py", "decode", 1)]), profile.OTHER)

    def test_samples_share_the_cpu_time(self) -> None:
        ours = ["/x/ipop_tx/services/tap.py", "doRead", 1]
        found = profile.sampled({"cpu_seconds": 2.0, "stacks": [[[ours], 30], [[["/x/ipop_tx/core/node.py", "f", 1], ours], 10]]})
        self.assertEqual(dict(found.stages), {"TAP read": 1.5, "control plane": 0.5})
        self.assertEqual(dict(found.functions), {"ipop_tx/services/tap.py doRead": 2.0, "ipop_tx/core/node.py f": 0.5})


class RealRun(TestCase):
    """The whole command on this machine."""

    skip = why_not()
    timeout = 300

    async def test_every_key(self) -> None:
        words = ["--only", "raw,ipop_tx,mine", "--peer", "mine=echo $BENCH_ADDRESS; exec sleep 1000"]
        words += ["--quick", "--json", "--rounds", "1", "--seconds", "1"]
        out, err, status = await getProcessOutputAndValue(
            sys.executable, ["-m", "benchmarks.dataplane", *words], env=dict(os.environ), path=str(ROOT)
        )
        self.assertEqual(status, 0, err.decode())
        found = json.loads(out.decode().splitlines()[-1])
        self.assertEqual((found["left_out"], found["faults"]), ({}, {}))
        self.assertEqual(set(found["systems"]), {"raw", "ipop_tx", "mine"})
        for name, entry in found["systems"].items():
            for key in ("tcp1_gbps", "tcp4_gbps", "tcp_reverse_gbps", "udp100_pps"):
                self.assertGreater(entry[key], 0, f"{name} {key}")
            for ping in PINGS:
                self.assertTrue(0 < entry[ping]["p50"] <= entry[ping]["p99"], f"{name} {ping}")
        ours = found["systems"]["ipop_tx"]
        self.assertGreater(ours["cpu_s_per_gb"], 0)
        self.assertGreater(ours["rss_mb"], 10)
        self.assertEqual(found["systems"]["raw"]["cpu_s_per_gb"], 0)
        self.assertEqual(
            {(one["system"], one["rtt_ms"], one["loss_percent"]) for one in found["lossy"]}, {("raw", 20, 0.1), ("ipop_tx", 20, 0.1)}
        )
        self.assertTrue(all(one["goodput_mbps"] > 0 for one in found["lossy"]))

    def test_interrupted(self) -> None:
        words = ["-m", "benchmarks.dataplane", "--only", "raw", "--rounds", "1", "--seconds", "60"]
        child = subprocess.Popen([sys.executable, *words], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        self.addCleanup(child.kill)
        assert child.stderr is not None
        seen = next(line for line in child.stderr if "is up" in line)
        self.assertIn("raw", seen)
        (record,) = [record for record in records() if record.owner == child.pid]
        self.assertTrue(netns.present(record.namespaces))
        child.send_signal(signal.SIGINT)
        self.assertIn("everything was removed", child.stderr.read())
        self.assertEqual(child.wait(20), 130)
        child.stderr.close()
        self.assertEqual(netns.present(record.namespaces), [])
        self.assertFalse(record.path.exists() or Path(record.scratch).exists())


class Delay(TestCase):
    """The wires under test do what their figures say."""

    skip = why_not()
    timeout = 60

    def test_delay_and_loss(self) -> None:
        with Lab("benchwire") as lab:
            pair = Pair(lab, "x", rtt_ms=20, congestion="reno")
            pings = measure.idle_pings(pair, B_ADDRESS, 50)
            self.assertGreater(min(pings), 19.5)
            self.assertLess(measure.percentile(pings, 0.5), 60)
            pair.lose(100)
            self.assertRaises(EnvironmentProblem, measure.idle_pings, pair, B_ADDRESS, 3)
            pair.lose(0)
            self.assertEqual(len([one for one in measure.idle_pings(pair, B_ADDRESS, 20) if one < measure.UNANSWERED_MS]), 20)
            self.assertEqual(measure.tcp(pair, B_ADDRESS, 1).congestion, "reno")
