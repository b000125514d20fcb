"""`ipop dht` against a real control socket with canned answers."""

from __future__ import annotations

import json
from typing import Any

from ipop_tx.services.control import Route
from tests.test_cli import Command

FOUND = {"key": "ab" * 20, "text": "hello", "version": 3, "owner": "cd" * 20, "name": "office", "ttl_s": 60}


class Registers(Command):
    """get, create, set, delete."""

    def routes(self) -> dict[str, Route]:
        self.told: dict[str, Any] = FOUND
        return {f"POST /dht/{name}": lambda _: {"answers": [self.told]} for name in ("get", "create", "set", "delete")}

    async def test_get(self) -> None:
        self.assertEqual(await self.ipop("dht", "get", "motd"), ("hello", "", 0))
        self.assertEqual(self.asked, [("POST /dht/get", {"entries": [{"key": "motd"}]})])
        out, _, status = await self.ipop("dht", "get", "motd", "--json")
        self.assertEqual((json.loads(out), status), (FOUND, 0))

    async def test_get_bytes(self) -> None:
        self.told = {"key": "ab" * 20, "base64": "AAo=", "version": 1}
        self.assertEqual(await self.ipop("dht", "get", "blob"), ("\0\n", "", 0))

    async def test_create(self) -> None:
        self.told = {"key": "ab" * 20, "version": 1}
        self.assertEqual(await self.ipop("dht", "create", "motd", "hello", "--ttl", "2h"), ("", "", 0))
        self.assertEqual(self.asked, [("POST /dht/create", {"entries": [{"key": "motd", "text": "hello"}], "ttl_s": 7200})])
        out, _, _ = await self.ipop("dht", "create", "motd", "hello", "--json")
        self.assertEqual(json.loads(out), self.told)

    async def test_create_from_a_file(self) -> None:
        (self.directory / "value").write_bytes(b"\xff\0")
        await self.ipop("dht", "create", "motd", f"@{self.directory / 'value'}")
        self.assertEqual(self.asked[0][1]["entries"], [{"key": "motd", "base64": "/wA="}])

    async def test_set_and_delete(self) -> None:
        await self.ipop("dht", "set", "motd", "hello")
        await self.ipop("dht", "set", "motd", "hello", "--version", "3")
        await self.ipop("dht", "delete", "motd", "--version", "4")
        entries = [arguments["entries"][0] for _, arguments in self.asked]
        self.assertEqual([entry.get("version") for entry in entries], [None, 3, 4])

    async def test_refused(self) -> None:
        self.told = {"key": "motd", "error": "motd belongs to home", "mend": "only its owner can change it", "kind": "Conflict"}
        for words in (("get", "motd"), ("get", "motd", "--json"), ("set", "motd", "x"), ("delete", "motd")):
            self.assertEqual(await self.fails("dht", *words), "ipop: motd belongs to home: only its owner can change it\n")

    async def test_what_is_no_value(self) -> None:
        (self.directory / "long").write_bytes(bytes(1025))
        for value, needle in (
            ("@/nonexistent", "/nonexistent cannot be read (no such file or directory)"),
            (f"@{self.directory}", "cannot be read (is a directory)"),
            (f"@{self.directory / 'long'}", "longer than 1024 bytes"),
            ("@/dev/zero", "longer than 1024 bytes"),
        ):
            self.assertIn(needle, await self.fails("dht", "create", "motd", value))
        self.assertEqual(self.asked, [])

    async def test_usage(self) -> None:
        for words, needle in (
            (["get"], "Missing argument 'KEY': see 'ipop dht get --help'"),
            (["create", "motd"], "Missing argument 'VALUE'"),
            (["create", "motd", "x", "--ttl", "0s"], "not a duration"),
            (["set", "motd", "x", "--version", "0"], "x>=1"),
            (["put", "motd", "x"], "No such command 'put'"),
        ):
            self.assertIn(needle, await self.fails("dht", *words, status=2))
