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

from benchmarks import profile, tls, width
from benchmarks.dataplane import measure, ratios
from benchmarks.dataplane.__main__ import main
from benchmarks.dataplane.relayed import Relayed
from benchmarks.dataplane.report import KEYS, PINGS, Lossy, Report, Results, rounded, table
from ipop_tx.errors import EnvironmentProblem
from ipop_tx.lab import netns
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

    def test_relayed(self) -> None:
        report = self.report()
        self.assertIsNone(json.loads(report.as_json())["relayed"])
        report.relayed = Relayed(direct=[2.0, 4.0, 3.0], relay=[1.5, 1.0, 9.0], cpu=[20.0]).as_json()
        found = json.loads(report.as_json())
        self.assertEqual(
            {key: found["relayed"][key] for key in ("direct_gbps", "relay_gbps", "ratio", "cpu_s_per_gb")},
            {"direct_gbps": 3.0, "relay_gbps": 1.5, "ratio": 0.5, "cpu_s_per_gb": 20.0},
        )
        self.assertEqual(found["ratios"]["relayed_vs_direct"], 0.5)
        self.assertIn("| ipop_tx           |      3 |     1.5 |   0.5 |               20 |", report.as_text())
        self.assertEqual(Relayed().as_json()["ratio"], None)

    def test_ratios(self) -> None:
        report = Report({}, rounds=1, seconds=1)
        report.systems = {"ipop_tx": results(3.0), "openvpn": results(0.5), "tinc": results(1.0), "mine": results(100.0)}
        report.lossy = [Lossy("ipop_tx", 20, 0.1, (50.0,)), Lossy("raw", 20, 0.1, (100.0,)), Lossy("raw", 100, 0.1, (7.0,))]
        found = json.loads(report.as_json())["ratios"]
        self.assertEqual(set(found), set(ratios.WANTED))
        self.assertEqual((found["tcp1_vs_openvpn"], found["tcp1_vs_best_peer"]), (6.0, 3.0))
        self.assertEqual((found["cpu_vs_openvpn"], found["ping_load_p99_vs_openvpn"], found["lossy_vs_raw"]), (1.0, 1.0, 0.5))
        missing = ("tcp1_vs_yggdrasil", "lossy_vs_best_peer", "relayed_vs_direct")
        self.assertEqual([found[name] for name in missing], [None, None, None])
        self.assertIn("| tcp1 vs openvpn                  |     6 |    >= 7 |", report.as_text())
        self.assertEqual([ratios.quotient(*pair) for pair in ((None, 1.0), (1.0, None), (1.0, 0.0), (1.0, 4.0))], [None, None, None, 0.25])

    def test_table(self) -> None:
        self.assertEqual(table([["a", "b"]], [["x", "12"]]), "| a |  b |\n|---|---:|\n| x | 12 |")

    def test_rounded(self) -> None:
        self.assertEqual([rounded(value) for value in (0.0, 0.0123456, 1.23456, 123456.7)], [0.0, 0.01235, 1.235, 123457.0])


class Width(TestCase):
    """What the comparison of widths tells."""

    def test_entry(self) -> None:
        found = width.Condition(0.1, 20)
        found.mbps["adaptive_mbps"] += [300.0, 100.0, 200.0]
        self.assertEqual(found.as_json(), {"loss_percent": 0.1, "rtt_ms": 20, "adaptive_mbps": 200.0, "width1_mbps": None})


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
        self.assertEqual(self.at(("core/ring/ring.py", "step")), "control plane")
        self.assertEqual(profile.stage([("/x/ipop_tx/.venv/lib/site-packages/twisted/internet/base.py", "run", 1)]), "reactor")
        self.assertEqual(profile.stage([("/usr/lib/python3.11/json/decoder.py", "decode", 1)]), profile.OTHER)

    def test_the_way_of_a_record(self) -> None:
        waiting = ("forwarding/outbound.py", "frames_waiting")
        self.assertEqual(self.at(waiting, ("services/tap.py", "doRead")), "frames to records")
        self.assertEqual(self.at(("forwarding/inbound.py", "run"), ("transport/udp.py", "doRead")), "records to frames")
        self.assertEqual(self.at(("forwarding/offload.py", "restore"), waiting), "cutting and joining")
        self.assertEqual(self.at(("forwarding/reassembly.py", "add"), ("forwarding/inbound.py", "run")), "cutting and joining")
        self.assertEqual(self.at(("transport/udp.py", "write_run"), waiting), "send")
        self.assertEqual(self.at(("transport/udp.py", "doRead")), "receive")

    def test_a_call_on_the_line_decides(self) -> None:
        for stage, line in {
            "seal": "channel.encrypt(self._nonce, plain, None, into)",
            "unseal": "channel.decrypt(header[4:], sealed, None, into)",
            "TAP read": "size = os.readv(self._fd, buffers)",
            "TAP write": "port.writev((head, frame))",
            "send": "self._socket.sendmsg(buffers, (), 0, target)",
            "receive": "total, ancillary, _, sockaddr = self._socket.recvmsg_into(buffers, 64)",
        }.items():
            self.assertEqual(profile.stage_of_call(line), stage)
        for name, stage in {"<built-in method posix.writev>": "TAP write", "<method 'sendto' of '_socket.socket' objects>": "send"}.items():
            self.assertEqual(profile.stage_of_call(name), stage)
        for line in ("", "self._flush(peer)  # then encrypt", "def write_run(self, endpoint, buffers):", "send = self.send"):
            self.assertIsNone(profile.stage_of_call(line))

    def test_only_lines_of_ours_are_read(self) -> None:
        place = Path(self.mktemp())
        ours, other = place / "ipop_tx/forwarding/outbound.py", place / "other.py"
        ours.parent.mkdir(parents=True)
        for file in (ours, other):
            file.write_text("def run(channel):\n    channel.encrypt(nonce, plain, None, into)\n")
        self.assertEqual(profile.stage([(str(ours.absolute()), "run", 2)]), "seal")
        self.assertEqual(profile.stage([(str(ours.absolute()), "run", 1)]), "frames to records")
        self.assertEqual(profile.stage([(str(other.absolute()), "run", 2)]), profile.OTHER)

    def test_built_in_functions_have_stages_of_their_own(self) -> None:
        caller = ["/x/ipop_tx/forwarding/outbound.py", "record", 269]
        calls = [[["~", "<built-in method builtins.len>", 0], 9, 0.5, 0.5, [[caller, 0.5]]]]
        calls += [[["~", "<method 'encrypt_into' of 'AESGCM' objects>", 0], 9, 1.5, 1.5, [[caller, 1.5]]]]
        found = profile.exact({"cpu_seconds": 2.0, "calls": calls})
        self.assertEqual(dict(found.stages), {"frames to records": 0.5, "seal": 1.5})

    def test_samples_share_the_cpu_time(self) -> None:
        ours = ["/x/ipop_tx/services/tap.py", "doRead", 1]
        found = profile.sampled({"cpu_seconds": 2.0, "stacks": [[[ours], 30], [[["/x/ipop_tx/core/node.py", "f", 1], ours], 10]]})
        self.assertEqual(dict(found.stages), {"TAP read": 1.5, "control plane": 0.5})
        self.assertEqual(dict(found.functions), {"ipop_tx/services/tap.py doRead": 2.0, "ipop_tx/core/node.py f": 0.5})


class TlsTests(TestCase):
    """The figures of `benchmarks.tls`."""

    def test_entry(self) -> None:
        mbps = {"direct": [100.0, 300.0, 200.0], "tls": [150.0], "tls_relayed": [100.0]}
        found = tls.Line(200, mbps, {"direct": [1.0], "tls": [], "tls_relayed": [2.0]})
        entry = found.as_json()
        self.assertEqual((entry["direct_mbps"], entry["tls_mbps"], entry["ratio"]), (200.0, 150.0, 0.75))
        self.assertEqual(entry["ratio_relayed"], 0.5)
        self.assertEqual(entry["cpu_s_per_gb"], {"direct": 1.0, "tls": None, "tls_relayed": 2.0})
        self.assertIn("0.75", tls._text([entry], ["lost"]))
        self.assertIn("failed: lost", tls._text([tls.Line(0).as_json()], ["lost"]))


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
        self.assertTrue(all(found["relayed"][key] > 0 for key in ("direct_gbps", "relay_gbps", "ratio", "cpu_s_per_gb")))
        self.assertGreater(found["ratios"]["lossy_vs_raw"], 0)

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
