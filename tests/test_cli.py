"""The `ipop` command against a real control socket with canned answers."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from twisted.internet.utils import getProcessOutputAndValue
from twisted.trial.unittest import TestCase

from ipop_tx.cli.tables import print_status
from ipop_tx.errors import LocalMisuse, Unreachable
from ipop_tx.services.control import ControlService, Route
from tests.test_netcheck import REPORT

ROOT = Path(__file__).parent.parent

WHY = "both behind address-and-port-dependent mappings"
STATUS: dict[str, Any] = {
    "self": {
        "name": "office",
        "ident": "ab" * 20,
        "address": "10.128.12.7",
        "ipv6": "fd12:3456:789a:abab:abab:abab:abab:abab",
        "network": "lab",
        "version": "0.1.0",
        "uptime_s": 7500.2,
        "endpoints": ["udp:198.51.100.7:4500", "udp:[2001:db8::7]:4500"],
        "tap": "ipop0",
        "mtu": 1300,
        "ring": {"predecessor": "n1", "successors": ["n2", "n3"], "nodes_estimate": 7},
    },
    "peers": [
        {
            "name": "cloud",
            "address": "10.128.200.201",
            "path": "direct udp:198.51.100.7:4500",
            "rtt_ms": 12.34,
            "tx_bytes": 0,
            "rx_bytes": 999,
        },
        {
            "name": "campus",
            "address": "10.128.1.2",
            "path": "relay via cloud",
            "why": WHY,
            "rtt_ms": 1234.5,
            "tx_bytes": 27_400_000,
            "rx_bytes": 1500,
        },
        {"name": "home", "address": "10.128.1.3", "path": "idle", "rtt_ms": None, "tx_bytes": 10**13, "rx_bytes": 3_100_000_000},
        {"name": "n" * 63, "address": None, "path": "direct udp:[2001:db8:1:2:3:4:5:6]:45000", "rtt_ms": 0.4, "tx_bytes": 1, "rx_bytes": 2},
    ],
    "guests": [
        {"address": "10.128.7.7", "name": "box", "mac": "02:00:00:00:00:01", "holder": "01", "state": "bound", "expires_s": 1799},
        {"address": None, "name": None, "mac": "02:00:00:00:00:02", "holder": "02", "state": "waiting", "expires_s": 50},
    ],
    "health": ["the lease could not be renewed: 2 of 5 replicas reached"],
    "counters": {"dropped": 3},
}


class Command(TestCase):
    """A control service in this process, `ipop` in another."""

    timeout = 60

    def setUp(self) -> None:
        self.directory = Path("/tmp") / f"ipop-cli-{os.getpid()}-{id(self)}"  # short: a socket's path has 107 bytes
        self.directory.mkdir()
        self.addCleanup(shutil.rmtree, self.directory, ignore_errors=True)
        self.path = self.directory / "c.sock"
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.pings: list[Any] = []
        self.lost: list[int] = []
        self.service = ControlService(self.path, {name: self.recorded(name, route) for name, route in self.routes().items()})
        self.service.startService()
        self.addCleanup(self.service.stopService)

    def routes(self) -> dict[str, Route]:
        return {
            "GET /status": lambda _: STATUS,
            "POST /ping": self.answer_ping,
            "POST /netcheck": lambda _: REPORT,
            "POST /invite": lambda _: {"token": "ipop1-abc", "expires": 1_800_000_000},
            "POST /leave": lambda _: {},
            "POST /recover": self.answer_recover,
        }

    def recorded(self, name: str, route: Route) -> Route:
        def recording(arguments: dict[str, Any]) -> Any:
            self.asked.append((name, arguments))
            return route(arguments)

        return recording

    def answer_recover(self, arguments: dict[str, Any]) -> Any:
        lost = [{"shard": n, "view": 7, "members": ["office", "cloud"], "missing": ["cloud"], "copies": n} for n in self.lost]
        works = [{"shard": n, "copies": n, "number": 7, "registers": 5, "works": n < 2} for n in self.lost]
        return {"lost": lost, "founded": works if arguments["confirm"] else []}

    def answer_ping(self, _: dict[str, Any]) -> Any:
        answer = self.pings.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def ipop(self, *words: str, socket: Path | None = None, env: dict[str, str] | None = None) -> tuple[str, str, int]:
        """(stdout, stderr, exit status) of one command."""
        surroundings = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "IPOP_SOCKET": str(socket or self.path),
            "TZ": "UTC",
            **(env or {}),
        }
        out, err, status = await getProcessOutputAndValue(sys.executable, ["-m", "ipop_tx.cli.main", *words], env=surroundings)
        return out.decode(), err.decode(), status

    async def fails(self, *words: str, status: int = 1, **more: Any) -> str:
        """The one line that a failing command prints."""
        out, err, got = await self.ipop(*words, **more)
        self.assertEqual((out, got), ("", status), err)
        self.assertTrue(err.startswith("ipop: ") and err.endswith("\n") and err.count("\n") == 1, err)
        return err


class Recover(Command):
    """`ipop network recover`."""

    async def test_nothing(self) -> None:
        out, err, status = await self.ipop("network", "recover")
        self.assertEqual((status, err), (0, ""))
        self.assertIn("nothing to recover", out)

    async def test_only_told(self) -> None:
        """Without --yes it says what is lost, and how to go on, and asks for nothing."""
        self.lost = [0, 1]
        out, err, status = await self.ipop("network", "recover")
        self.assertEqual(status, 0)
        self.assertIn("2 parts of the DHT have no majority; not reached: cloud", out)
        self.assertIn("of 1 of them no copy is left", err)
        self.assertIn("if those are lost for ever, and only then:  ipop network recover --yes", err)
        self.assertEqual(self.asked, [("POST /recover", {"confirm": False})])

    async def test_done(self) -> None:
        self.lost = [1]
        out, _, status = await self.ipop("network", "recover", "--yes")
        self.assertEqual(status, 0)
        self.assertIn("1 parts founded anew with 5 registers", out)

    async def test_not_all(self) -> None:
        self.lost = [1, 2]
        _, err, status = await self.ipop("network", "recover", "--yes")
        self.assertEqual(status, 1)
        self.assertIn("ipop: 1 parts do not work yet: run it again when more members are linked", err)


class Status(Command):
    """`ipop status`."""

    async def test_table(self) -> None:
        out, err, status = await self.ipop("status")
        self.assertEqual((err, status), ("", 0))
        lines = out.splitlines()
        self.assertIn("office  10.128.12.7  fd12:3456:789a:abab:abab:abab:abab:abab", lines[0])
        self.assertIn("network lab, up 2 h 5 min, ipop0 mtu 1300, ring of about 7", lines[1])
        self.assertEqual(lines[2], "reached at 198.51.100.7:4500, [2001:db8::7]:4500")
        rows = {line.split()[1]: line.split() for line in lines if line.startswith("10.128.")}
        self.assertEqual(rows["cloud"], ["10.128.200.201", "cloud", "direct", "198.51.100.7:4500", "12.3ms", "0B", "999B"])
        self.assertEqual(rows["campus"], ["10.128.1.2", "campus", "relay", "via", "cloud", "1234.5ms", "27M", "1.5k"])
        self.assertEqual(rows["home"], ["10.128.1.3", "home", "idle", "-", "10T", "3.1G"])
        self.assertEqual(rows["box"], ["10.128.7.7", "box", "02:00:00:00:00:01", "bound", "29", "min", "59", "s"])
        self.assertIn("-           -     02:00:00:00:00:02  waiting", out)
        self.assertIn(f"relayed: campus: {WHY}", lines)
        self.assertEqual(lines[-1], "warning: the lease could not be renewed: 2 of 5 replicas reached")
        self.assertLessEqual(max(map(len, lines)), 80)
        self.assertNotIn("\x1b", out)

    def test_makeshifts(self) -> None:
        """A path that is not by UDP says so, and why; a connection that the peer made is no endpoint."""
        text = io.StringIO()
        peers = [
            {"name": "cloud", "address": "10.128.0.1", "path": "direct tls:198.51.100.7:443", "why": "UDP unanswered", "rtt_ms": 12.34},
            {
                "name": "home",
                "address": "10.128.0.2",
                "path": "direct tls-in:198.51.100.8:50123",
                "why": "UDP not tried yet",
                "rtt_ms": 1.0,
            },
            {"name": "lab", "address": "10.128.0.3", "path": "direct udp:198.51.100.9:4500", "why": None, "rtt_ms": 1.0},
        ]
        print_status({**STATUS, "peers": peers}, Console(file=text, width=100))
        for words in ("direct tls:198.51.100.7:443 (UDP unanswered)", "direct tls from 198.51.100.8:50123 (UDP not tried yet)"):
            self.assertIn(words, text.getvalue())
        self.assertIn("direct 198.51.100.9:4500 ", text.getvalue())

    async def test_json(self) -> None:
        out, _, status = await self.ipop("status", "--json")
        self.assertEqual((json.loads(out), status), (STATUS, 0))

    async def test_socket_from_option_and_config(self) -> None:
        config = self.directory / "node.toml"
        config.write_text('[node]\nstate = "s"\n[control]\nsocket = "c.sock"\n')
        nowhere = {"IPOP_SOCKET": ""}
        self.assertEqual((await self.ipop("status", "--json", "--config", str(config), env=nowhere))[2], 0)
        self.assertEqual((await self.ipop("status", "--json", "--socket", str(self.path), env=nowhere))[2], 0)
        config.write_text('[tap]\nmtu = 1\n[control]\nsocket = "c.sock"\n')  # the daemon runs on with the former one, and can tell
        self.assertEqual((await self.ipop("status", "--json", "--config", str(config), env=nowhere))[2], 0)
        for nonsense in ("[control", "[control]\nsocket = 1\n", "control = 1\n"):
            config.write_text(nonsense)
            self.assertEqual((await self.ipop("status", "--json", "--config", str(config), env=nowhere))[2], 2)


class Netcheck(Command):
    """`ipop netcheck`."""

    async def test_text(self) -> None:
        out, err, status = await self.ipop("netcheck")
        self.assertEqual((err, status), ("", 0))
        self.assertIn("mapping       endpoint-independent, port changed\n", out)
        self.assertLessEqual(max(map(len, out.splitlines())), 80)
        self.assertTrue(out.endswith(f"\n\n{REPORT['verdict']}\n"))

    async def test_json(self) -> None:
        out, _, status = await self.ipop("netcheck", "--json")
        self.assertEqual((json.loads(out), status), (REPORT, 0))

    async def test_no_daemon(self) -> None:
        self.assertIn("no daemon answers on", await self.fails("netcheck", socket=self.directory / "nothing"))


class Ping(Command):
    """`ipop ping`."""

    relayed = {"name": "home", "address": "10.128.1.3", "ident": "cd" * 20, "path": "relay via cloud", "rtt_ms": 40.0, "direct": False}  # noqa: RUF012
    direct = {**relayed, "path": "direct udp:192.0.2.1:4500", "rtt_ms": 9.96, "direct": True}  # noqa: RUF012

    async def test_stops_at_the_first_direct_answer(self) -> None:
        self.pings = [self.relayed, Unreachable("home did not answer"), self.direct, self.direct]
        out, err, status = await self.ipop("ping", "home", "--interval", "0")
        self.assertEqual((err, status), ("", 0))
        self.assertEqual(
            out.splitlines(),
            [
                "home (10.128.1.3) answered in 40.0 ms: relay via cloud",
                "no answer: home did not answer",
                "home (10.128.1.3) answered in 10.0 ms: direct udp:192.0.2.1:4500",
            ],
        )
        self.assertEqual(self.asked, [("POST /ping", {"target": "home"})] * 3)

    async def test_count(self) -> None:
        self.pings = [self.direct] * 5
        out, _, status = await self.ipop("ping", "home", "-c", "3", "--all", "--interval", "0", "--json")
        self.assertEqual(status, 0)
        self.assertEqual(json.loads(out), {"target": "home", "sent": 3, "received": 3, "direct": True, "answers": [self.direct] * 3})

    async def test_relayed_only(self) -> None:
        self.pings = [self.relayed] * 2
        out, err, status = await self.ipop("ping", "home", "-c", "2", "--interval", "0")
        self.assertEqual((out.count("\n"), err, status), (2, "no direct path yet; answers come by relay\n", 0))

    async def test_no_answer(self) -> None:
        self.pings = [Unreachable("home did not answer")] * 2
        out, err, status = await self.ipop("ping", "home", "-c", "2", "--interval", "0")
        self.assertEqual((out.count("no answer: "), status), (2, 1))
        self.assertIn("ipop: home answered none of 2 probes", err)

    async def test_unknown_node(self) -> None:
        self.pings = [LocalMisuse("nobody is called 'hoem'", "see 'ipop status'")]
        self.assertEqual(await self.fails("ping", "hoem"), "ipop: nobody is called 'hoem': see 'ipop status'\n")


WISH: dict[str, Any] = {
    "expires_s": 3600,
    "uses": 1,
    "name": None,
    "approval": False,
    "appoints": False,
    "address": None,
    "groups": [],
    "routes": [],
    "life_s": 365 * 86400,
    "limits": {},
}


class Others(Command):
    """invite, leave, version."""

    async def test_invite(self) -> None:
        out, err, status = await self.ipop(
            "invite", "--expires", "30m", "--name", "n4", "--appoint", "--address", "10.128.3.4", "--group", "web"
        )
        self.assertEqual((out, status), ("ipop1-abc\n", 0))
        self.assertIn("once, until 2027-01-15 08:00:00 UTC", err)
        wish = {**WISH, "expires_s": 1800, "name": "n4", "appoints": True, "address": "10.128.3.4", "groups": ["web"]}
        self.assertEqual(self.asked, [("POST /invite", wish)])

    async def test_invite_defaults(self) -> None:
        await self.ipop("invite")
        self.assertEqual(self.asked, [("POST /invite", WISH)])

    async def test_leave(self) -> None:
        out, _, status = await self.ipop("leave")
        self.assertEqual((status, self.asked), (0, [("POST /leave", {})]))
        self.assertIn("left the network", out)

    async def test_version(self) -> None:
        from ipop_tx import __version__

        self.assertEqual(await self.ipop("version"), (f"ipop_tx {__version__}\n", "", 0))


class Failures(Command):
    """Each is one sentence on stderr; 2 means that the command was wrong, 1 that it could not be done."""

    async def test_no_daemon(self) -> None:
        line = await self.fails("status", socket=self.directory / "none.sock")
        self.assertIn("no daemon answers on", line)
        self.assertIn("twistd ipop --config FILE", line)

    async def test_daemon_that_knows_no_such_thing(self) -> None:
        self.service._factory.routes = {}
        self.assertIn("the daemon knows no 'POST /leave'", await self.fails("leave"))

    async def test_usage(self) -> None:
        for words, needle in [
            (["statsu"], "No such command 'statsu'"),
            (["ping"], "Missing argument 'TARGET': see 'ipop ping --help'"),
            (["invite", "--expires", "0h"], "not a duration such as 30m, 1h or 2d"),
            (["network", "create", "lab", "--pool", "10.128.0.1/16"], "not an IPv4 range such as 10.128.0.0/16"),
            (["ping", "x", "-c", "0"], "x>=1"),
        ]:
            self.assertIn(needle, await self.fails(*words, status=2))

    async def test_config(self) -> None:
        line = await self.fails("status", "--config", "/nonexistent/node.toml", status=2, env={"IPOP_SOCKET": ""})
        self.assertIn("/nonexistent/node.toml: there is no such file", line)

    async def test_no_right(self) -> None:
        if os.getuid():
            raise self.skipTest("becoming another user needs root")
        os.chmod(self.directory, 0o755)
        code = "import os; os.setgid(65534); os.setuid(65534); from ipop_tx.cli.main import main; main(['status'])"
        env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "IPOP_SOCKET": str(self.path)}
        command = ["-c", f"import ipop_tx.cli.main, ipop_tx.cli.tables; {code}"]
        _, err, status = await getProcessOutputAndValue(sys.executable, command, env=env)
        self.assertEqual(status, 1)
        self.assertIn(b"ipop: we have no right to use", err)
