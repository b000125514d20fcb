"""The demo is good, says so, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from twisted.trial import unittest

from ipop_tx.lab.registry import records
from tests.system import why_not


class DemoTests(unittest.SynchronousTestCase):
    """The command, as `make demo` runs it, with a smaller file."""

    skip = why_not("curl")

    def test_check_and_json(self) -> None:
        """Exit status 0, and the last line of stdout is the whole result."""
        argv = [sys.executable, "-m", "ipop_tx.lab.demo", "--check", "--json", "--megabytes", "16"]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        self.addCleanup(process.kill)
        out, story = process.communicate(timeout=300)
        result = json.loads(out.splitlines()[-1])
        self.assertEqual(process.returncode, 0, story + out)
        self.assertGreaterEqual(result["nodes"], 7)
        self.assertEqual(result["pairs"], result["nodes"] * (result["nodes"] - 1))
        self.assertEqual((result["pairs_reached"], result["ipv6_pairs_reached"]), (result["pairs"], result["pairs"]))
        self.assertTrue(result["file_ok"])
        self.assertLessEqual(result["join_seconds"]["p50"], 2)
        after = result["after_kill"]
        self.assertEqual((after["pairs_reached"], after["joined"]), (after["pairs"], True))
        self.assertEqual([record for record in records() if record.owner == process.pid], [])
