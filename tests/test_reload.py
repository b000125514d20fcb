"""The configuration read anew: what is taken, what waits, what is refused."""

from __future__ import annotations

import re
from pathlib import Path

from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from ipop_tx.config import Config, load_config
from ipop_tx.config.sections import LIVE, READERS
from ipop_tx.errors import ConfigError
from ipop_tx.services.reload import Reloading, changed

MODEL = Path(__file__).parent.parent / "conf" / "node.toml"


class Reloads(TestCase):
    """A file, and takers that note what they are given."""

    def setUp(self) -> None:
        self.path = Path(self.mktemp())
        self.write("")
        self.taken: list[str] = []
        self.held: Deferred[None] | None = None
        self.reloading = Reloading(load_config(self.path), {name: self.taker(name) for name in LIVE}, self.check)

    def write(self, text: str) -> None:
        self.path.write_text(f'[node]\nstate = "s"\n{text}')

    def taker(self, name: str) -> object:
        def take(config: Config) -> object:
            self.taken.append(name)
            return self.held

        return take

    def check(self, config: Config) -> None:
        if config.network.name == "other":
            raise ConfigError("network.name is another")

    async def test_nothing(self) -> None:
        self.assertEqual(await self.reloading.reload(), {"taken": [], "restart": []})
        self.assertEqual((self.taken, self.reloading.health()), ([], []))

    async def test_taken_once_for_each_section(self) -> None:
        self.write('[dns]\nlisten = "127.0.0.1:5353"\nsearch = false\n[log]\nlevel = "debug"\n')
        answer = await self.reloading.reload()
        self.assertEqual(answer, {"taken": ["dns.listen", "dns.search", "log.level"], "restart": []})
        self.assertEqual(self.taken, ["dns", "log.level"])
        self.assertEqual((await self.reloading.reload())["taken"], [])

    async def test_waiting_until_it_is_as_it_was(self) -> None:
        self.write("[tap]\nmtu = 1300\n[transports.carrier]\nspeed = 1\n")
        self.assertEqual((await self.reloading.reload())["restart"], ["tap.mtu", "transports.carrier"])
        self.assertEqual((await self.reloading.reload())["restart"], ["tap.mtu", "transports.carrier"])
        self.assertIn("tap.mtu, transports.carrier", self.reloading.health()[0])
        self.write("")
        self.assertEqual(await self.reloading.reload(), {"taken": [], "restart": []})
        self.assertEqual((self.taken, self.reloading.health()), ([], []))

    async def test_refused(self) -> None:
        """By what it says, or by the network; the next good one ends the complaint."""
        for wrong in ("nonsense", '[network]\nname = "other"\n[log]\nlevel = "debug"'):
            self.write(wrong)
            await self.assertFailure(self.reloading.reload(), ConfigError)
            self.assertIn("the former one is in use", self.reloading.health()[0])
        self.path.unlink()
        await self.assertFailure(self.reloading.reload(), ConfigError)
        self.assertEqual(self.taken, [])
        self.write("")
        await self.reloading.reload()
        self.assertEqual(self.reloading.health(), [])

    async def test_more_rights_than_were_kept(self) -> None:
        self.reloading.beyond = lambda config: ["dns.listen"] if config.dns.listen else []
        self.write('[dns]\nlisten = "127.0.0.1:53"\n')
        self.assertEqual(await self.reloading.reload(), {"taken": [], "restart": ["dns.listen"]})
        self.assertEqual(self.taken, [])

    def test_two_at_once(self) -> None:
        """The second begins when the first has ended."""
        self.held = Deferred()
        self.write('[log]\nlevel = "debug"\n')
        first = self.reloading.reload()
        self.write('[log]\nlevel = "warn"\n')
        second = self.reloading.reload()
        self.assertEqual(self.taken, ["log.level"])
        held, self.held = self.held, None
        held.callback(None)
        self.successResultOf(first)
        self.assertEqual(self.successResultOf(second)["taken"], ["log.level"])
        self.assertEqual(self.taken, ["log.level"] * 2)

    async def test_around(self) -> None:
        """Whoever supervises is told of the end of failures too."""
        told: list[str] = []
        self.reloading.begun, self.reloading.ended = lambda: told.append("begun"), lambda: told.append("ended")
        self.write("nonsense")
        await self.assertFailure(self.reloading.reload(), ConfigError)
        self.assertEqual(told, ["begun", "ended"])


class Table(TestCase):
    """`LIVE`."""

    def test_every_name_is_a_key_or_a_section(self) -> None:
        self.assertEqual([name for name in LIVE if name not in READERS and not any(key.startswith(f"{name}.") for key in READERS)], [])

    def test_model_says_the_same(self) -> None:
        said = re.search(r"which then takes: (.*?)\. All other", MODEL.read_text().replace("\n# ", " "))
        assert said is not None
        self.assertEqual({name.strip("[]") for name in said[1].split(", ")}, LIVE)

    def test_changed_sees_every_key(self) -> None:
        """No key is forgotten in the comparison."""
        path = Path(self.mktemp())
        path.write_text('[node]\nstate = "s"\n')
        before = load_config(path)
        path.write_text('[node]\nstate = "t"\n[listen.tls]\nport = 4\n[daemon]\nuser = "x"\n[control]\ngroup = "y"\n')
        self.assertEqual(changed(before, load_config(path)), ["node.state", "listen.tls.port", "daemon.user", "control.group"])
