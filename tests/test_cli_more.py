"""The commands that show: peers, info, route, lease, top, log, bugreport; which daemon is meant; the man page and completion."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from click.testing import CliRunner
from twisted.logger import Logger, LogLevel
from twisted.trial.unittest import SynchronousTestCase

from ipop_tx.cli import daemon as daemon_module
from ipop_tx.cli.bugreport import HIDDEN, without_secrets
from ipop_tx.cli.main import ipop
from ipop_tx.cli.manual import page, tree
from ipop_tx.cli.watch import rates
from ipop_tx.errors import LocalMisuse
from ipop_tx.services.control import Route
from ipop_tx.services.logtail import LONGEST, MOST, LogTail
from tests.test_cli import STATUS, Command

MORE = {"groups": [], "mtu": 1472, "age_s": 70}
FULL: dict[str, Any] = {
    **STATUS,
    "self": {**STATUS["self"], "pool": "10.128.0.0/16", "groups": ["servers"], "certificate_ends": 1_900_000_000},
    "peers": [{"ident": f"{place:040x}", "ipv6": f"fd00::{place}", **MORE, **peer} for place, peer in enumerate(STATUS["peers"])],
}  # fmt: skip
LEASES = {
    "own": {"address": "10.128.12.7", "name": "office", "state": "bound", "expires_s": 40000, "assigned": False, "problem": "it is late"},
    "guests": STATUS["guests"],
}
SECRETS = ("hunter2-is-the-password", "proxy-user", "ipop1-abcdefghijklmnopqrstuvwxyz", "MIGHAgEAMBMGByqGSM49")


class Shown(Command):
    """Each within 80 columns when piped, without colours, and as JSON."""

    def routes(self) -> dict[str, Route]:
        return {
            **super().routes(),
            "GET /status": lambda _: FULL,
            "GET /leases": lambda _: LEASES,
            "GET /version": lambda _: {"version": "9", "network": "lab", "name": "office"},
            "GET /metrics": lambda _: {"text": "a 1\nb 2\n"},
            "POST /lease/renew": lambda _: {"address": "10.128.12.7"},
            "POST /log": lambda _: {"lines": ["one", f"token {SECRETS[2]} was used"], "last": 7},
            "POST /resolve": lambda arguments: {"ident": "f" * 40, "name": arguments["target"], "address": "10.128.9.9", "ipv6": "fd00::9"},
        }

    async def shown(self, *words: str) -> str:
        """What a command prints, narrow and plain."""
        out, err, status = await self.ipop(*words)
        self.assertEqual(status, 0, err)
        self.assertNotIn("\x1b", out)
        for line in out.splitlines():
            self.assertLessEqual(len(line), 80, line)
        return out

    async def test_peers(self) -> None:
        self.assertIn("relayed: campus", await self.shown("peers"))
        self.assertEqual(json.loads((await self.ipop("peers", "--json"))[0]), FULL["peers"])

    async def test_info(self) -> None:
        """Of a peer by name or address, of this node, of somebody who is no peer."""
        self.assertIn("direct 198.51.100.7:4500", await self.shown("info", "cloud"))
        self.assertIn("cloud", await self.shown("info", "10.128.200.201"))
        self.assertIn("network lab", await self.shown("info", "office"))
        self.assertIn("idle", await self.shown("info", "far"))
        self.assertEqual(json.loads((await self.ipop("info", "cloud", "--json"))[0])["name"], "cloud")

    async def test_route(self) -> None:
        """The pool, this node, peers, guests."""
        out = await self.shown("route")
        for word in ("10.128.0.0/16", "interface ipop0", "relay via", "guest 02:00"):
            self.assertIn(word, out)
        self.assertIn(
            {"to": "10.128.1.2", "node": "campus", "via": "relay via cloud", "mtu": 1472},
            json.loads((await self.ipop("route", "--json"))[0]),
        )

    async def test_lease(self) -> None:
        out, err, _ = await self.ipop("lease", "list")
        self.assertIn("11 h 6 min", out)
        self.assertIn("guest", out)
        self.assertIn("warning: it is late", err)
        self.assertEqual(json.loads((await self.ipop("lease", "list", "--json"))[0]), LEASES)
        self.assertIn("10.128.12.7 is leased anew", await self.shown("lease", "renew"))

    async def test_top(self) -> None:
        """Ends after so many looks."""
        self.assertIn("0B/s", await self.shown("top", "-n", "1", "--interval", "0.2"))
        out, _, _ = await self.ipop("top", "-n", "2", "--interval", "0.2", "--json")
        self.assertEqual([len(json.loads(line)["peers"]) for line in out.splitlines()], [4, 4])

    async def test_log(self) -> None:
        self.assertTrue((await self.shown("log", "-n", "2")).startswith("one\n"))
        self.assertEqual(json.loads((await self.ipop("log", "--json"))[0])["last"], 7)

    async def test_others_as_json(self) -> None:
        """Commands that had none."""
        self.assertEqual(json.loads((await self.ipop("version", "--json"))[0]).keys(), {"version"})
        self.assertEqual(json.loads((await self.ipop("metrics", "--json"))[0]), {"text": "a 1\nb 2\n"})
        self.assertEqual(json.loads((await self.ipop("leave", "--json"))[0]), {})

    async def test_bugreport(self) -> None:
        """Nothing secret of the configuration or the log; written also without a daemon."""
        config = self.directory / "node.toml"
        config.write_text(
            f'[node]\nstate = "/s"\n[tor]\npassword = "{SECRETS[0]}"\n[listen.tls]\nproxy = "http://{SECRETS[1]}:{SECRETS[0]}@192.0.2.1:3128"\n'
            f'[control]\nsocket = "{self.path}"\n'
        )
        out, err, status = await self.ipop("bugreport", "--config", str(config), env={"IPOP_SOCKET": str(self.path)})
        self.assertEqual((status, err), (0, ""))
        for secret in SECRETS:
            self.assertNotIn(secret, out)
        report = json.loads(out)
        self.assertEqual(report["config"]["tor"]["password"], HIDDEN)
        self.assertEqual(report["config"]["listen"]["tls"]["proxy"], f"http://{HIDDEN}@192.0.2.1:3128")
        self.assertEqual((report["status"], report["metrics"], report["version"]["network"]), (FULL, ["a 1", "b 2"], "lab"))
        file = self.directory / "report.json"
        _, err, status = await self.ipop("bugreport", "-o", str(file), socket=self.directory / "none.sock")
        self.assertEqual(status, 0)
        self.assertIn("no daemon answers", json.loads(file.read_text())["status"]["error"])

    async def test_network(self) -> None:
        """The daemon that is named must be of that network."""
        self.assertIn("office", await self.shown("status", "--network", "lab"))
        self.assertIn("no node of the network home answers here: name one of lab", await self.fails("status", "--network", "home"))

    async def test_completion(self) -> None:
        """Commands, and names of peers."""
        env = {"_IPOP_COMPLETE": "bash_complete", "COMP_CWORD": "1", "COMP_WORDS": "ipop expl"}
        self.assertEqual((await self.ipop(env=env))[0].split(), ["plain,explain"])
        env.update(COMP_CWORD="2", COMP_WORDS="ipop explain c")
        self.assertEqual((await self.ipop(env=env))[0].split(), ["plain,campus", "plain,cloud"])
        for shell in ("bash", "zsh", "fish"):
            self.assertIn("_IPOP_COMPLETE", (await self.ipop("completion", shell))[0])


class SeveralTests(SynchronousTestCase):
    """A machine with nodes of several networks, and none of the one that is meant."""

    def test_nowhere(self) -> None:
        self.patch(daemon_module, "DEFAULT_PATH", Path(self.mktemp()) / "node.toml")
        done = CliRunner().invoke(ipop, ["status", "--network", "home"])
        self.assertIn("no node of the network home answers here", str(done.exception))


class ManualTests(SynchronousTestCase):
    """ipop(1), made of the commands themselves."""

    def test_complete(self) -> None:
        """Each command and each of its options."""
        text = "\n".join(page(ipop)).replace("\\-", "-")
        for words, command in tree(ipop):
            self.assertIn(" ".join(("ipop", *words)), text)
            self.assertTrue(command.help, words)
            for parameter in command.params:
                for name in parameter.opts if parameter.param_type_name == "option" else ():
                    self.assertIn(name, text)

    def test_json_everywhere(self) -> None:
        """Whatever asks the daemon has --json, but for `invite`, which prints one line."""
        for words, command in tree(ipop):
            options = {name for parameter in command.params for name in parameter.opts}
            if "--socket" in options and words != ("invite",):
                self.assertIn("--json", options, words)
                self.assertIn("--network", options, words)

    def test_lists(self) -> None:
        """The commands named here fit their line."""
        out = CliRunner().invoke(ipop, ["--help"], terminal_width=80).output
        self.assertEqual(
            [line for line in out.splitlines() if re.match(r"  (explain|flows|peers|status|bugreport|ping) .*\.\.\.$", line)], []
        )

    def test_roff(self) -> None:
        """Groff has no complaints."""
        if shutil.which("groff") is None:
            self.skipTest("no groff")
        done = subprocess.run(
            ["groff", "-man", "-Tutf8", "-ww", "-z"], input="\n".join(page(ipop)), capture_output=True, text=True, check=False
        )
        self.assertEqual((done.returncode, done.stderr), (0, ""))


class PartsTests(SynchronousTestCase):
    """Small ones."""

    def test_rates(self) -> None:
        """The busiest first; a peer that is new, or has started anew, counts from nothing."""
        before = {"peers": [{"ident": "a", "tx_bytes": 100, "rx_bytes": 0}, {"ident": "b", "tx_bytes": 500, "rx_bytes": 500}]}
        row = {"name": "x", "address": None, "path": "idle", "rtt_ms": None}
        counts = (("a", 300, 100), ("b", 0, 600), ("c", 10**6, 0))
        now = {"peers": [{**row, "ident": ident, "tx_bytes": sent, "rx_bytes": got} for ident, sent, got in counts]}
        found = [(one["tx_bytes_s"], one["rx_bytes_s"]) for one in rates(before, now, 2.0)]
        self.assertEqual(found, [(500000, 0), (100, 50), (0, 50)])

    def test_secrets(self) -> None:
        """By the key, and in texts."""
        pem = "-----BEGIN EC PRIVATE KEY-----\nMIGH\n-----END EC PRIVATE KEY-----"
        found = without_secrets({"password": "p", "a": [f"see {pem} there", {"api_token": "t", "key": 7}], "url": "socks5://u:p@h:1"})
        self.assertEqual(
            found, {"password": HIDDEN, "a": [f"see {HIDDEN} there", {"api_token": HIDDEN, "key": 7}], "url": f"socks5://{HIDDEN}@h:1"}
        )

    def test_log_tail(self) -> None:
        """The last lines, bounded, after a number."""
        tail = LogTail()
        tail.start()
        self.addCleanup(tail.stop)
        log = Logger()
        for number in range(MOST + 5):
            log.emit(LogLevel.info, "line {number}", number=number)
        log.emit(LogLevel.info, "x" * 5000)
        told = tail.told({"limit": 2})
        self.assertIn(f"line {MOST + 4}", told["lines"][0])
        self.assertEqual(len(told["lines"][1]), LONGEST)
        self.assertEqual(len(tail.told({})["lines"]), MOST)
        self.assertEqual(tail.told({"after": told["last"]})["lines"], [])
        for wrong in ({"after": "x"}, {"limit": 0}):
            self.assertRaises(LocalMisuse, tail.told, wrong)
