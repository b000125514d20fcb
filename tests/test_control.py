"""The control socket: what it answers, and whom it refuses."""

from __future__ import annotations

import grp
import json
import os
import shutil
import socket
import stat
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from ipop_tx.errors import Conflict, EnvironmentProblem, IpopError, LocalMisuse, PermissionProblem, Unavailable, Unreachable
from ipop_tx.services.control import ControlService, Route
from ipop_tx.services.control_http import BODY_LIMIT


def ask(path: Path, request: bytes) -> tuple[int, dict[str, str], Any]:
    """Send raw bytes, read to the end: (status, headers, JSON). Blocks; call it in a thread."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(20)
        sock.connect(str(path))
        sock.sendall(request)
        received = b""
        while chunk := sock.recv(65536):
            received += chunk
    head, _, body = received.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {key.lower(): value for key, _, value in (line.partition(": ") for line in lines)}
    return int(first.split()[1]), headers, json.loads(body) if body else None


def request(route: str, body: bytes = b"", host: str = "ipop", more: str = "") -> bytes:
    return f"{route} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: {len(body)}\r\n{more}\r\n".encode() + body


class Running(TestCase):
    """A control service on a socket of its own, stopped at the end."""

    allowed: frozenset[int] | None = None
    group: str | None = None

    def setUp(self) -> None:
        self.directory = Path("/tmp") / f"ipop-control-{os.getpid()}-{id(self)}"  # short: a socket's path has 107 bytes
        self.path = self.directory / "c.sock"
        self.addCleanup(shutil.rmtree, self.directory, ignore_errors=True)
        self.asked: list[dict[str, Any]] = []
        self.service = ControlService(self.path, self.routes(), self.allowed, group=self.group)
        self.service.startService()
        self.addCleanup(self.service.stopService)

    def routes(self) -> dict[str, Route]:
        def failing(error: Exception) -> Route:
            def route(_: dict[str, Any]) -> Any:
                raise error

            return route

        def echo(arguments: dict[str, Any]) -> dict[str, Any]:
            self.asked.append(arguments)
            return arguments

        return {
            "GET /status": lambda _: {"self": {"name": "a"}},
            "POST /echo": echo,
            "POST /later": lambda a: succeed(a),
            "GET /misuse": failing(LocalMisuse("no such node", "see ipop status")),
            "GET /conflict": failing(Conflict("taken")),
            "GET /unreachable": failing(Unreachable("no answer")),
            "GET /unavailable": failing(Unavailable(2, 3, 5)),
            "GET /environment": failing(EnvironmentProblem("disk full")),
            "GET /bug": failing(ZeroDivisionError("boo")),
        }

    def ask(self, raw: bytes) -> Deferred[tuple[int, dict[str, str], Any]]:
        return deferToThread(ask, self.path, raw)


class Answers(Running):
    """What an allowed user gets."""

    async def test_value(self) -> None:
        status, headers, value = await self.ask(request("GET /status"))
        self.assertEqual((status, value), (200, {"self": {"name": "a"}}))
        self.assertEqual(headers["content-type"], "application/json")

    async def test_arguments(self) -> None:
        for route in ["POST /echo", "POST /later"]:
            status, _, value = await self.ask(request(route, b'{"target": "n2"}'))
            self.assertEqual((status, value), (200, {"target": "n2"}))

    async def test_no_body_is_an_empty_object(self) -> None:
        self.assertEqual((await self.ask(request("POST /echo")))[2], {})

    async def test_two_requests_on_one_connection(self) -> None:
        kept = request("GET /status").replace(b"Connection: close\r\n", b"")
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(20)
            sock.connect(str(self.path))
            for _ in range(2):
                sock.sendall(kept)
                self.assertIn(b"200 OK", await deferToThread(sock.recv, 65536))

    async def test_errors(self) -> None:
        for route, status, body in [
            ("GET /misuse", 400, {"error": "no such node", "mend": "see ipop status", "kind": "LocalMisuse"}),
            ("GET /conflict", 409, {"error": "taken", "mend": "", "kind": "Conflict"}),
            ("GET /unreachable", 503, {"error": "no answer", "mend": "", "kind": "Unreachable"}),
            ("GET /environment", 500, {"error": "disk full", "mend": "", "kind": "EnvironmentProblem"}),
        ]:
            got = await self.ask(request(route))
            self.assertEqual((got[0], got[2]), (status, body))
        got = await self.ask(request("GET /unavailable"))
        self.assertEqual((got[0], got[2]["error"]), (503, "2 of 5 replicas reached"))

    async def test_bug_is_logged_and_hidden(self) -> None:
        status, _, value = await self.ask(request("GET /bug"))
        self.assertEqual(status, 500)
        self.assertNotIn("boo", json.dumps(value))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    async def test_unknown_route(self) -> None:
        for route in ["GET /nothing", "POST /status", "HEAD /status"]:
            self.assertEqual((await self.ask(request(route)))[0], 404)

    async def test_body_that_is_no_object(self) -> None:
        for body in [b"[1]", b"{", b"\xff\xfe"]:
            self.assertEqual((await self.ask(request("POST /echo", body)))[0], 400)
        self.assertEqual(self.asked, [])

    async def test_body_limit(self) -> None:
        fits = json.dumps({"t": "x" * (BODY_LIMIT - 9)}).encode()
        self.assertEqual(len(fits), BODY_LIMIT)
        self.assertEqual((await self.ask(request("POST /echo", fits)))[0], 200)
        self.assertEqual((await self.ask(request("POST /echo", fits + b" ")))[0], 413)
        self.assertEqual(len(self.asked), 1)


class Refusals(Running):
    """Nobody drives a daemon from a web page."""

    async def test_origin_or_other_host(self) -> None:
        for raw in [
            request("POST /echo", b"{}", more="Origin: http://localhost\r\n"),
            request("POST /echo", b"{}", more="Origin: null\r\n"),
            request("POST /echo", b"{}", host="localhost"),
            request("POST /echo", b"{}", more="Host: other\r\n"),
            b"POST /echo HTTP/1.0\r\nContent-Length: 2\r\n\r\n{}",
        ]:
            self.assertEqual((await self.ask(raw))[0], 403)
        self.assertEqual(self.asked, [])

    async def test_junk_gets_400(self) -> None:
        self.assertEqual((await self.ask(b"\x16\x03\x01\r\n\r\n"))[0], 400)


class Strangers(Running):
    """The kernel says who is at the other end."""

    allowed = frozenset({4_000_000})

    async def test_other_user(self) -> None:
        status, _, value = await self.ask(request("POST /echo", b"{}"))
        self.assertEqual((status, value["kind"], self.asked), (403, "PermissionProblem", []))


class Readers(Strangers):
    """Members of the group may look."""

    group = grp.getgrgid(os.getgid()).gr_name

    async def test_other_user(self) -> None:
        """What changes nothing is answered, the rest is not even read."""
        self.assertEqual((await self.ask(request("GET /status")))[0], 200)
        status, _, value = await self.ask(request("POST /echo", b"{}"))
        self.assertEqual((status, value["kind"], self.asked), (403, "PermissionProblem", []))
        self.assertIn("look", value["error"])
        self.assertEqual((await self.ask(request("POST /resolve")))[0], 404)  # it may; here nobody answers that
        self.assertEqual((await self.ask(request("GET /status", more="Origin: null\r\n")))[0], 403)

    async def test_many_connections(self) -> None:
        """They cannot use up the daemon's descriptors."""
        held = [socket.socket(socket.AF_UNIX) for _ in range(40)]
        for one in held:
            self.addCleanup(one.close)
            one.connect(str(self.path))
        with self.assertRaises((OSError, IndexError)):
            await self.ask(request("GET /status"))

    def test_mode(self) -> None:
        found = self.path.stat()
        self.assertEqual((stat.S_IMODE(found.st_mode), found.st_gid), (0o660, os.getgid()))

    async def test_no_such_group(self) -> None:
        await self.service.stopService()
        self.service.group = "ipop-no-such-group"
        self.assertIn("ipop-no-such-group", str(self.assertRaises(EnvironmentProblem, self.service.startService)))
        self.assertFalse(self.path.exists())


class Socket(Running):
    """The socket's file."""

    def test_modes(self) -> None:
        self.assertEqual(stat.S_IMODE(self.path.stat().st_mode), 0o600)
        self.assertEqual(stat.S_IMODE(self.directory.stat().st_mode), 0o700)

    async def test_gone_after_stop(self) -> None:
        await self.service.stopService()
        self.assertFalse(self.path.exists())
        self.service.startService()
        self.assertEqual((await self.ask(request("GET /status")))[0], 200)

    async def test_stop_closes_idle_connections(self) -> None:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(20)
            sock.connect(str(self.path))
            sock.sendall(request("GET /status").replace(b"Connection: close\r\n", b""))
            self.assertTrue((await deferToThread(sock.recv, 65536)).startswith(b"HTTP/1.1 200"))
            await self.service.stopService()
            self.assertEqual(sock.recv(1), b"")

    async def test_live_daemon_is_left_alone(self) -> None:
        second = ControlService(self.path, {})
        wrong = self.assertRaises(EnvironmentProblem, second.startService)
        self.assertIn(f"another daemon answers on {self.path}", str(wrong))
        await second.stopService()
        self.assertEqual((await self.ask(request("GET /status")))[0], 200)

    async def test_socket_of_a_dead_daemon_is_replaced(self) -> None:
        await self.service.stopService()
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(self.path))
        self.service.startService()
        self.assertEqual((await self.ask(request("GET /status")))[0], 200)

    async def test_other_file_in_the_way(self) -> None:
        await self.service.stopService()
        self.path.write_text("precious")
        self.assertIn("it is no socket", str(self.assertRaises(EnvironmentProblem, self.service.startService)))
        self.assertEqual(self.path.read_text(), "precious")
        self.path.unlink()

    async def test_directory_that_cannot_be_made(self) -> None:
        wrong = self.assertRaises(IpopError, ControlService(Path("/proc/none/c.sock"), {}).startService)
        self.assertIn("the control socket /proc/none/c.sock cannot be made", str(wrong))
        self.assertNotIsInstance(wrong, PermissionProblem)
