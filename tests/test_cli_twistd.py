"""`twistd ipop`: a wrong configuration and a failing start are one line, and leave nothing behind."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from twisted.internet.utils import getProcessOutputAndValue
from twisted.trial.unittest import TestCase

ROOT = Path(__file__).parent.parent
TWISTD = "from twisted.scripts.twistd import run; run()"

# A node that cannot start: the composition root is replaced, because a real one needs root rights and a network.
FAILING = """
import sys, types
from twisted.application.service import Service
from ipop_tx.errors import EnvironmentProblem
class Node(Service):
    def startService(self):
        raise EnvironmentProblem("the port 4500 is taken", "choose another listen.udp")
sys.modules["ipop_tx.daemon"] = types.SimpleNamespace(Daemon=lambda config: Node())
"""


class Twistd(TestCase):
    """Real twistd processes."""

    timeout = 60

    def setUp(self) -> None:
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir()
        self.config = self.directory / "node.toml"

    async def twistd(self, *words: str, before: str = "") -> tuple[str, str, int]:
        """(stdout, stderr, exit status)."""
        env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
        out, err, status = await getProcessOutputAndValue(
            sys.executable, ["-c", before + TWISTD, *words], env=env, path=str(self.directory)
        )
        return out.decode(), err.decode(), status

    async def test_is_known(self) -> None:
        out, _, status = await self.twistd("--help")
        self.assertEqual(status, 0)
        self.assertRegex(out, r"(?m)^    ipop +A node of a private IP network")

    async def test_wrong_config(self) -> None:
        self.config.write_text('[node]\nstate = "s"\n[tap]\nmtu = 99\n')
        out, err, status = await self.twistd("-n", "ipop", "--config", str(self.config))
        self.assertEqual((out, err, status), ("", f"ipop: {self.config}: tap.mtu = 99: is out of range: choose 1280 to 9000 bytes\n", 2))
        self.assertEqual([path.name for path in self.directory.iterdir()], ["node.toml"])

    async def test_missing_config(self) -> None:
        _, err, status = await self.twistd("ipop", "-c", "none.toml")
        self.assertEqual((err.count("\n"), status), (1, 2), err)
        self.assertIn("ipop: none.toml: there is no such file", err)

    async def test_state_of_no_member(self) -> None:
        self.config.write_text('[node]\nstate = "s"\n')
        out, err, status = await self.twistd("-n", "ipop", "--config", str(self.config))
        self.assertEqual((out, err.count("\n"), status), ("", 1, 1), err)
        self.assertTrue(err.startswith("ipop: "), err)
        self.assertEqual([path.name for path in self.directory.iterdir()], ["node.toml"])

    async def test_killed_over_its_pidfile(self) -> None:
        """An empty pidfile, as a kill or a full disk leaves it, is none; one with a number is twistd's business."""
        self.config.write_text('[node]\nstate = "s"\n')
        pidfile = self.directory / "twistd.pid"
        pidfile.write_text("")
        words = ("-n", f"--pidfile={pidfile}", "ipop", "--config", str(self.config))
        _, err, _ = await self.twistd(*words, before=FAILING)
        self.assertEqual(err, "ipop: the port 4500 is taken: choose another listen.udp\n")
        pidfile.write_text(f"{os.getpid()}")
        _, err, _ = await self.twistd(*words, before=FAILING)
        self.assertIn("Another twistd server is running", err)

    async def test_failing_start(self) -> None:
        self.config.write_text('[node]\nstate = "s"\n')
        _, err, status = await self.twistd("-n", "ipop", "--config", str(self.config), before=FAILING)
        self.assertEqual((err, status), ("ipop: the port 4500 is taken: choose another listen.udp\n", 1))
        self.assertEqual([path.name for path in self.directory.iterdir()], ["node.toml"])
