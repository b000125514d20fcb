"""The ring of real daemons: who is pinged when, what is read from the kernel, and a short real run."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from twisted.internet.utils import getProcessOutputAndValue
from twisted.trial.unittest import TestCase

from benchmarks import daemons, echoes, samples
from ipop_tx.errors import EnvironmentProblem
from ipop_tx.lab.registry import records
from tests.system import why_not

ROOT = Path(__file__).parent.parent


class Pings(TestCase):
    """The schedule of pings, without sockets."""

    def asked(self, schedule: echoes.Schedule, now: float) -> list[echoes.Pair]:
        """All that is due."""
        return list(iter(lambda: schedule.due(now), None))

    def test_every_ordered_pair_once(self) -> None:
        pairs = list(echoes.in_turns(5))
        self.assertEqual(sorted(pairs), [(a, b) for a in range(5) for b in range(5) if a != b])
        self.assertEqual([asker for asker, _ in pairs[:5]], [0, 1, 2, 3, 4])

    def test_the_rate_is_kept(self) -> None:
        schedule = echoes.Schedule(20, rate=10, now=0.0)
        self.assertEqual(len(self.asked(schedule, 0.0)), 1)
        self.assertEqual(sum(len(self.asked(schedule, tick / 100)) for tick in range(1, 101)), 10)
        # After others had the CPU it does not catch up with more than a few at once.
        self.assertLess(len(self.asked(schedule, 10.0)), 15)

    def test_it_ends_when_all_have_answered(self) -> None:
        schedule = echoes.Schedule(3, rate=1e6, now=0.0)
        self.assertFalse(schedule.over)
        schedule.answered.update(self.asked(schedule, 1.0))
        self.assertTrue(schedule.over)
        self.assertEqual((len(schedule.answered), schedule.first_lost), (6, 0))

    def test_who_does_not_answer_is_asked_again_but_not_for_ever(self) -> None:
        schedule = echoes.Schedule(2, rate=1e6, now=0.0)
        asked = []
        for second in range(1000):
            for pair in self.asked(schedule, float(second)):
                asked.append(pair)
                schedule.answered.update({pair} if pair == (0, 1) and len(asked) > 3 else ())
        self.assertTrue(schedule.over)
        self.assertEqual(asked.count((1, 0)), echoes.TRIES)
        self.assertEqual((schedule.answered, schedule.first_lost), ({(0, 1)}, 2))

    def test_packets(self) -> None:
        asked = echoes.request(3, 258)
        self.assertEqual(asked.hex(), "0800f6fa00030102")
        head = bytes.fromhex("4500001c") + bytes(16)
        self.assertEqual(echoes.reply(head + b"\0" + asked[1:]), (3, 258))
        self.assertIsNone(echoes.reply(head + asked))
        for size in range(len(head + asked)):
            self.assertIsNone(echoes.reply((head + asked)[:size]))


class Figures(TestCase):
    """What is read from /proc, and made of it."""

    def test_memory(self) -> None:
        resident, proportional = samples.memory_mb(os.getpid())
        self.assertTrue(5 < proportional <= resident < 5000, (resident, proportional))
        self.assertEqual(samples.memory_mb(1 << 22), (0.0, 0.0))

    def test_sent(self) -> None:
        self.assertGreaterEqual(samples.sent(os.getpid(), "lo"), 0)
        self.assertRaises(EnvironmentProblem, samples.sent, os.getpid(), "nonesuch")

    def test_spread(self) -> None:
        self.assertEqual(daemons.spread([3, 1, 2]), {"p50": 2, "max": 3})
        self.assertEqual(daemons.spread([]), {"p50": None, "max": None})

    def test_text(self) -> None:
        found = {"nodes": 2, "joined": 1, "pairs": 2, "pairs_routable": 0, "rss_mb": daemons.spread([59.5]), "faults": ["b did not join"]}
        told = daemons.text({**found, "pss_mb": daemons.spread([])})
        for words in ("1 of 2 joined", "0 of 2 pairs", "59.5", "failed: b did not join"):
            self.assertIn(words, told)


class RealRun(TestCase):
    """The command itself."""

    skip = why_not()
    timeout = 180

    async def test_short(self) -> None:
        """Eight daemons reach each other, hardly do anything when idle, and leave nothing behind."""
        words = ["-m", "benchmarks.daemons", "--nodes", "8", "--settle", "3", "--idle", "5", "--json"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        output, errors, status = await getProcessOutputAndValue(sys.executable, words, env=environment, path=str(ROOT))
        self.assertEqual(status, 0, errors.decode())
        found = json.loads(output.decode().splitlines()[-1])
        self.assertTrue(found["ok"])
        self.assertEqual((found["nodes"], found["joined"], found["pairs"], found["pairs_routable"]), (8, 8, 56, 56))
        self.assertEqual(found["faults"], [])
        for key in ("join_seconds", "idle_bytes_per_s_per_node", "links_per_node", "rss_mb", "pss_mb"):
            self.assertTrue(0 < found[key]["p50"] <= found[key]["max"], key)
        self.assertLess(found["idle_cpu_percent"]["max"], 50)
        self.assertEqual([record for record in records() if record.lab == "daemons" and not record.alive], [])
