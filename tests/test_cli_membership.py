"""`ipop network create`, `request`, `sign`, `install`, `join`: what they leave on disk and what they say."""

from __future__ import annotations

import os
import stat
import sys
from ipaddress import IPv4Network
from pathlib import Path

from twisted.internet.utils import getProcessOutputAndValue
from twisted.trial.unittest import TestCase

from ipop_tx.cli.membership import host_name
from ipop_tx.config import load_config
from ipop_tx.identity.credentials import Credentials
from ipop_tx.identity.state import StateDirectory

ROOT = Path(__file__).parent.parent


class Membership(TestCase):
    """Each command in a process of its own, each machine a directory of its own."""

    timeout = 60

    def setUp(self) -> None:
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir()

    async def ipop(self, *words: str) -> tuple[str, str, int]:
        """(stdout, stderr, exit status) of one command."""
        surroundings = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
        out, err, status = await getProcessOutputAndValue(sys.executable, ["-m", "ipop_tx.cli.main", *words], env=surroundings)
        return out.decode(), err.decode(), status

    async def fails(self, *words: str) -> str:
        """The one line that a failing command prints."""
        out, err, status = await self.ipop(*words)
        self.assertEqual((out, err.count("\n"), status), ("", 1, 1), err)
        self.assertTrue(err.startswith("ipop: "), err)
        return err

    async def create(self, where: str, *more: str) -> str:
        out, err, status = await self.ipop("network", "create", "lab", "--name", "first", "--state", f"{self.directory}/{where}", *more)
        self.assertEqual(status, 0, err)
        self.assertIn("network lab: pool 10.", out)
        return err

    async def test_create(self) -> None:
        config = self.directory / "node.toml"
        said = await self.create("a", "--config", str(config), "--pool", "10.9.0.0/24")
        self.assertIn(f"wrote {config}", said)
        self.assertIn(f"twistd ipop --config {config}", said)
        self.assertEqual(load_config(config).node.state, self.directory / "a")
        credentials = Credentials.load(StateDirectory(self.directory / "a"))
        self.assertEqual((credentials.network.name, credentials.network.pool), ("lab", IPv4Network("10.9.0.0/24")))
        for key in (self.directory / "a").glob("*.key"):
            self.assertEqual(stat.S_IMODE(key.stat().st_mode), 0o600)

    async def test_create_without_config_writes_none(self) -> None:
        said = await self.create("a")
        self.assertEqual([path.name for path in self.directory.iterdir()], ["a"])
        self.assertIn(f'node.state = "{self.directory}/a"', said)

    async def test_create_twice(self) -> None:
        await self.create("a")
        self.assertIn("belongs to a network already", await self.fails("network", "create", "lab", "--state", f"{self.directory}/a"))

    async def test_offline_signing(self) -> None:
        await self.create("a")
        request, _, _ = await self.ipop("request", "--state", f"{self.directory}/b", "--name", "second")
        (self.directory / "b.csr").write_text(request)
        chain, said, status = await self.ipop("sign", f"{self.directory}/b.csr", "--state", f"{self.directory}/a")
        self.assertEqual(status, 0, said)
        (self.directory / "b.crt").write_text(chain)
        authority = said.split("--authority ")[1].strip()
        places = ["--state", f"{self.directory}/b", "--config", f"{self.directory}/b.toml"]
        wrong = await self.fails("install", f"{self.directory}/b.crt", "--authority", "00" * 16, *places)
        self.assertIn("under another authority", wrong)
        out, said, _ = await self.ipop(
            "install", f"{self.directory}/b.crt", "--authority", authority, "--bootstrap", "udp:192.0.2.1:4500", *places
        )
        self.assertEqual(out, "a member of lab\n")
        self.assertEqual(Credentials.load(StateDirectory(self.directory / "b")).facts.name, "second")
        self.assertEqual([str(e) for e in load_config(self.directory / "b.toml").node.bootstrap], ["udp:192.0.2.1:4500"])

    async def test_sign_refuses(self) -> None:
        self.assertIn("admission.key is missing", await self.fails("sign", "/dev/null", "--state", f"{self.directory}/none"))
        await self.create("a")
        self.assertIn("this is no certificate request", await self.fails("sign", "/dev/null", "--state", f"{self.directory}/a"))

    async def test_state_at_odds_with_config(self) -> None:
        config = self.directory / "node.toml"
        config.write_text('[node]\nstate = "a"\n')
        said = await self.fails("request", "--state", f"{self.directory}/b", "--config", str(config))
        self.assertIn(f"is not the node.state of {config}", said)

    async def test_existing_config_is_kept(self) -> None:
        config = self.directory / "node.toml"
        config.write_text('[node]\nstate = "a"\n')
        await self.ipop("network", "create", "lab", "--config", str(config))
        self.assertEqual(config.read_text(), '[node]\nstate = "a"\n')
        self.assertTrue((self.directory / "a" / "node.key").exists())

    async def test_join_refuses_what_is_no_invitation(self) -> None:
        said = await self.fails("join", "nonsense", "--state", f"{self.directory}/a")
        self.assertIn("this is not an invitation", said)
        self.assertEqual(list(self.directory.iterdir()), [])

    def test_host_name_is_a_name(self) -> None:
        self.assertRegex(host_name(), r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$")
