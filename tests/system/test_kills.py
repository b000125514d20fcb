"""Daemons killed at any moment: a short run of the benchmark that does it for long."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from twisted.internet.utils import getProcessOutputAndValue
from twisted.trial.unittest import TestCase

from tests.system import why_not

ROOT = Path(__file__).parents[2]


class KillTests(TestCase):
    """`python -m benchmarks.kills` and `python -m benchmarks.dht_real`."""

    skip = why_not()
    timeout = 300

    async def run_json(self, module: str, *words: str) -> tuple[dict[str, object], int]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        out, err, status = await getProcessOutputAndValue(sys.executable, ["-m", module, "--json", *words], env=environment)
        self.assertTrue(out, err.decode())
        found: dict[str, object] = json.loads(out.splitlines()[-1])
        return found, status

    async def test_four_kills(self) -> None:
        """Each is back at its address, nobody else ever had it, nothing is lost."""
        found, status = await self.run_json("benchmarks.kills", "--kills", "4", "--nodes", "6")
        self.assertEqual((found["faults"], status), ([], 0))
        self.assertEqual((found["kills"], found["duplicates"], found["lost"]), (4, 0, 0))
        self.assertEqual(found["returned"], 4 - found["killed_while_starting"])  # type: ignore[operator]
        self.assertGreater(found["looks"], 100)
        self.assertGreater(found["acknowledged"], 20)

    async def test_registers(self) -> None:
        """Three daemons, a second of creates and one of gets: what is read is what was written."""
        found, status = await self.run_json("benchmarks.dht_real", "--nodes", "3", "--seconds", "1")
        self.assertEqual((found["complaints"], status, found["ok"]), ([], 0, True))
        for rates in (found, found["tmpfs"]):
            self.assertGreater(rates["creates_per_s"], 0)  # type: ignore[index]
            self.assertGreater(rates["gets_per_s"], 0)  # type: ignore[index]
