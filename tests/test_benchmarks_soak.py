"""The soak: its traffic shows every harm, its verdict complains about what it must, and a short real one has nothing to complain about."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from twisted.internet.utils import getProcessOutputAndValue
from twisted.trial.unittest import TestCase

from benchmarks import payload, soak
from benchmarks.samples import Sample, growth
from benchmarks.streams import Lost, Told
from benchmarks.upheaval import AFTER, BEFORE, Change, excused
from tests.system import why_not

ROOT = Path(__file__).parent.parent
_SENT = {"sent": 100, "refused": 0, "began": 0.0, "ended": 50.0}


class Payload(TestCase):
    """Every harm that can be done to the soak's traffic is seen."""

    FILLING = bytes(range(256)) * 8

    def feed(self, stream: bytes, step: int = 7001) -> payload.Checker:
        """A checker that has seen a stream in steps."""
        checker = payload.Checker(1)
        while stream:
            space = checker.space
            size = min(step, len(space), len(stream))
            space[:size] = stream[:size]
            checker.took(size)
            stream = stream[size:]
        return checker

    def blocks(self, count: int) -> bytes:
        """What a sender with seed 1 sends."""
        return b"".join(number.to_bytes(8, "big") + payload.pattern(1) for number in range(count))

    def test_stream(self) -> None:
        good = self.blocks(3)
        found = self.feed(good)
        self.assertEqual((found.blocks, found.altered, found.rest), (3, 0, 0))
        at = payload.BLOCK + 1000
        self.assertEqual(self.feed(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :]).altered, 1)
        self.assertEqual(self.feed(good[:at] + good[at + 1 :]).altered, 1)
        self.assertEqual(self.feed(good[: payload.BLOCK] + good).altered, 3)
        self.assertEqual(self.feed(good[:-1]).rest, payload.BLOCK - 1)

    def test_datagram(self) -> None:
        for number in range(2 * len(payload.SIZES)):
            made = payload.datagram(number, 5_000_000_000, self.FILLING)
            self.assertEqual(len(made), payload.SIZES[number % len(payload.SIZES)])
            self.assertEqual(payload.parse(memoryview(made)), (number, 5.0))
            for at in range(0, len(made), 13):
                self.assertIsNone(payload.parse(memoryview(made[:at] + bytes([made[at] ^ 64]) + made[at + 1 :])))
            self.assertIsNone(payload.parse(memoryview(made[:-1])))
        self.assertIsNone(payload.parse(memoryview(b"")))

    def test_ledger(self) -> None:
        ledger = payload.Ledger()
        for number in (*range(300), *range(310, 500), 305, 305, 502):
            ledger.note(number, number / 1000)
        self.assertEqual((ledger.received, ledger.duplicated, ledger.reordered, ledger.highest), (493, 1, 1, 502))
        gaps = list(ledger.gaps())
        self.assertEqual([gap[:2] for gap in gaps], [(300, 5), (306, 4), (500, 2)])
        for number, _, earliest, latest in gaps[:2]:
            self.assertTrue(number / 1000 - 0.13 <= earliest < number / 1000 < latest <= number / 1000 + 0.13)
        self.assertEqual(gaps[2][3], 0.0)
        self.assertEqual(list(payload.Ledger().gaps()), [])


class SoakVerdict(TestCase):
    """From what the programs told to the verdict."""

    def told(self, gaps: list[tuple[int, int, float, float]], **other: int) -> Told:
        """One stream without fault, and datagrams with these gaps."""
        received = {"received": 90, "altered": 0, "duplicated": 0, "reordered": 0, "highest": 99, "gaps": gaps}
        return Told(50.0, [({"blocks": 4}, {"blocks": 4, "altered": 0, "rest": 0, "problem": ""})], [(_SENT, received | other)])

    def test_losses_are_put_down_to_changes(self) -> None:
        cut, mend = Change("cut", 10.0, 14.0), Change("mend", 30.0, 31.0, excused=False)
        told = self.told([(20, 3, 10.5, 11.0), (60, 2, 30.0, 30.1), (5, 1, 3.0, 3.1)])
        self.assertEqual(told.lost([cut, mend]), Lost(3, 3))
        self.assertEqual(told.lost([]), Lost(0, 6))
        self.assertEqual(self.told([(90, 1, 45.0, 0.0)], highest=97).lost([]), Lost(0, 3))
        for at, is_excused in ((10 - BEFORE - 0.1, False), (10 - BEFORE, True), (14 + AFTER, True), (14 + AFTER + 0.1, False)):
            self.assertEqual(excused([cut], at, at), is_excused, str(at))
        self.assertTrue(excused([Change("cut", 10.0)], 40.0, 40.0))

    def test_complaints(self) -> None:
        steady, swollen = ([Sample(float(at), 60.0 + slope * at, 16) for at in range(0, 400, 5)] for slope in (0.001, 0.1))

        def verdict(told: Told, samples: list[Sample], settled: float | None = 2.0) -> list[str]:
            changes = [Change("cut", 10.0, settled and 10.0 + settled)]
            report = {"tcp": told.tcp(), "udp": told.udp(changes), "changes": [change.as_json(0.0) for change in changes]}
            return soak.complaints(told.problems(), told.lost(changes), report, {"a": growth(samples)})

        self.assertEqual(verdict(self.told([(20, 3, 10.5, 11.0)]), steady), [])
        self.assertIn("the daemon on a grew by", verdict(self.told([]), swollen)[0])
        self.assertIn("3 datagrams were lost", verdict(self.told([(20, 3, 40.0, 40.1)]), steady)[0])
        self.assertIn("1 datagrams came duplicated", verdict(self.told([], duplicated=1), steady)[0])
        self.assertIn("2 datagrams came altered", verdict(self.told([], altered=2), steady)[0])
        self.assertIn("did not follow the cut", verdict(self.told([]), steady, None)[0])
        broken = self.told([])
        broken.streams.append(({"blocks": 4}, {"blocks": 3, "altered": 1, "rest": 9, "problem": ""}))
        broken.streams.append(({"problem": "gone"}, {"problem": "gone"}))
        found = verdict(broken, steady)
        self.assertIn("gone", found)
        self.assertIn("of a stream of 4 blocks 3 came", found)
        self.assertIn("1 blocks of the streams came altered", found)

    def test_growth(self) -> None:
        samples = [Sample(float(at), 100.0 if at < 300 else 105.0, 16 if at < 300 else 17) for at in range(0, 600, 5)]
        found = growth(samples)
        self.assertEqual((found.first_mb, found.last_mb, round(found.percent, 3)), (100.0, 105.0, 5.0))
        self.assertEqual((found.first_descriptors, found.last_descriptors), (16, 17))
        self.assertEqual(growth(samples[:1]).percent, 0.0)


class RealSoak(TestCase):
    """The whole command on this machine, for a few seconds."""

    skip = why_not()
    timeout = 120

    async def test_soak(self) -> None:
        words = ["-m", "benchmarks.soak", "--seconds", "6", "--change-every", "0", "--json"]
        out, err, status = await getProcessOutputAndValue(sys.executable, words, env=dict(os.environ), path=str(ROOT))
        self.assertEqual(status, 0, (out + err).decode())
        found = json.loads(out.decode().splitlines()[-1])["soak"]
        self.assertTrue(found["good"])
        self.assertEqual((found["tcp"]["altered"], found["udp"]["altered"], found["udp"]["duplicated"], found["complaints"]), (0, 0, 0, []))
        self.assertGreater(found["tcp"]["gigabytes"], 0.01)
        self.assertGreater(found["udp"]["received"], 1000)
        self.assertEqual(set(found["held"]), {"a", "b", "r"})
