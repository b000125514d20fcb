"""The Tor transport, with real tors that have no network; what needs one is in tests/system/test_tor.py."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.trial.unittest import SynchronousTestCase, TestCase

from ipop_tx.core.links.link import patience
from ipop_tx.core.links.makeshift import without_onions
from ipop_tx.errors import EnvironmentProblem, LocalMisuse
from ipop_tx.transport.proxy import tunnel
from ipop_tx.transport.tor import client_key
from ipop_tx.transport.tor_process import TorConnection, TorProcess
from ipop_tx.values import Endpoint, Proxy

NAME = "a" * 56 + ".onion"
ONION = Endpoint("onion", NAME, 4500)


class ValueTests(SynchronousTestCase):
    """Onion endpoints."""

    def test_endpoints(self) -> None:
        self.assertEqual(Endpoint.parse(f"onion:{NAME}:4500"), ONION)
        for host in ("198.51.100.7", "abc.onion", NAME.upper(), "a" + NAME, "1" + NAME[1:]):
            self.assertRaises(LocalMisuse, Endpoint.parse, f"onion:{host}:4500")

    def test_socks(self) -> None:
        """The proxy is asked for the name, which nobody else could resolve."""
        way = tunnel(Proxy("socks5", "127.0.0.1", 9050), ONION)
        self.assertEqual(way.opening, b"\x05\x01\x00")
        self.assertEqual(way.receive(b"\x05\x00"), b"\x05\x01\x00\x03" + bytes([len(NAME)]) + NAME.encode() + b"\x11\x94")
        self.assertEqual(way.receive(b"\x05\x00\x00\x01" + bytes(6) + b"hello"), b"")
        self.assertTrue(way.done)
        self.assertEqual(way.rest, b"hello")

    def test_only_where_there_is_nothing_else(self) -> None:
        udp = Endpoint("udp", "198.51.100.7", 4500)
        self.assertEqual(without_onions([udp, ONION]), [udp])
        self.assertEqual(without_onions([ONION]), [ONION])
        self.assertEqual((patience(udp), patience(ONION) > 1), (1.0, True))

    def test_client_key(self) -> None:
        """All members of a network have one; other networks have another."""
        keys = [client_key(fingerprint).private_bytes_raw() for fingerprint in (b"f" * 32, b"f" * 32, b"g" * 32)]
        self.assertEqual(keys[0], keys[1])
        self.assertNotEqual(keys[0], keys[2])


class ConnectionTests(TestCase):
    """The control connection of real tors."""

    skip = None if shutil.which("tor") else "there is no program tor"
    timeout = 60

    def connection(self, control: str | TorProcess, password: str = "") -> TorConnection:
        """One that has begun."""
        self.seen: list[object] = []
        made = TorConnection(reactor, control, password, self.seen.append, lambda: self.seen.append("down"))
        made.start()
        self.addCleanup(made.stop)
        return made

    def process(self, *lines: str, binary: str = "tor") -> TorProcess:
        """A tor to start, which goes nowhere."""
        torrc = Path(self.mktemp())
        torrc.write_text("\n".join(["DisableNetwork 1", *lines, ""]))
        process = TorProcess(reactor, binary, torrc)
        self.addCleanup(self.gone, process)
        return process

    async def gone(self, process: TorProcess) -> None:
        """Its end is waited for, so that the reactor is clean."""
        process.stop()
        await self.becomes(lambda: process.pid == 0)

    async def becomes(self, wanted: Callable[[], bool], seconds: float = 30.0) -> None:
        """Wait for it."""
        for _ in range(int(seconds / 0.05)):
            if wanted():
                return
            await deferLater(reactor, 0.05, lambda: None)
        self.fail("it did not become so")

    async def test_started(self) -> None:
        """It answers, says that it knows no way yet, and is started anew when it is killed."""
        process = self.process()
        tor = self.connection(process)
        await self.becomes(lambda: "has not found its network yet: 0 %" in tor.problem)
        self.assertIn("version=", await tor.ask("GETINFO version"))
        refused = await self.assertFailure(Deferred.fromCoroutine(tor.ask("ADD_ONION nonsense secret")), EnvironmentProblem)
        self.assertNotIn("secret", str(refused))
        first = process.pid
        os.kill(first, signal.SIGKILL)
        await self.becomes(lambda: "tor has ended (signal 9)" in tor.problem)
        await self.becomes(lambda: process.pid not in (0, first) and "not found its network" in tor.problem)
        self.assertEqual(self.seen, [])

    async def test_a_bad_torrc(self) -> None:
        tor = self.connection(self.process("NoSuchOption 1"))
        await self.becomes(lambda: "tor has ended (status 1)" in tor.problem)
        self.assertIn("NoSuchOption", tor.problem)

    async def test_no_program(self) -> None:
        tor = self.connection(self.process(binary="no-such-tor"))
        await self.becomes(lambda: "there is no program no-such-tor" in tor.problem)
        self.assertIn("tor.control", tor.problem)

    async def test_nobody_listens(self) -> None:
        tor = self.connection("127.0.0.1:1")
        await self.becomes(lambda: "tor's control port 127.0.0.1:1 cannot be used" in tor.problem)

    async def test_a_running_tor(self) -> None:
        """Attached to with the right password, refused with a wrong one."""
        hashed = subprocess.check_output(["tor", "--quiet", "--hash-password", "right"], text=True).split()[-1]
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        process = self.process(f"ControlPort 127.0.0.1:{port}", f"HashedControlPassword {hashed}", "CookieAuthentication 0")
        await process.ready()
        wrong = self.connection(f"127.0.0.1:{port}", "wrong")
        await self.becomes(lambda: "cannot be used" in wrong.problem)
        self.assertNotIn("wrong", wrong.problem)
        right = self.connection(f"127.0.0.1:{port}", "right")
        await self.becomes(lambda: "has not found its network yet" in right.problem)
