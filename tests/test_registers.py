"""Registers over the control socket: many entries in a request, each with an answer or an error of its own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from ipop_tx.core.dht.records import key_of
from ipop_tx.errors import Conflict, LocalMisuse, Unavailable, Unreachable
from ipop_tx.interfaces import IDHT
from ipop_tx.services.control import answer
from ipop_tx.services.registers import AT_ONCE, MOST, RegisterRoutes
from ipop_tx.simulation.network import NETWORK

US, THEM = b"u" * 20, b"t" * 20
KEY = "0123456789abcdefABCD" * 2


@implementer(IDHT)
class Registers:
    """Registers in memory; `slow` holds back every answer, `problem` fails it."""

    def __init__(self) -> None:
        self.held: dict[bytes, SimpleNamespace] = {}
        self.problem: Exception | None = None
        self.slow: list[Deferred[Any]] | None = None

    def get(self, key: bytes) -> Deferred[Any]:
        return self._answer(self.held.get(key))

    def create(self, key: bytes, value: bytes, ttl: float) -> Deferred[int]:
        return fail(Conflict("taken")) if key in self.held else self.put(key, value, ttl, 1)

    def compare_and_set(self, key: bytes, version: int, value: bytes, ttl: float) -> Deferred[int]:
        held = self.held.get(key)
        return self.put(key, value, ttl, version + 1) if held and held.version == version else fail(Conflict("changed"))

    def delete(self, key: bytes, version: int) -> Deferred[None]:
        if key not in self.held or self.held[key].version != version:
            return fail(Conflict("changed"))
        del self.held[key]
        return self._answer(None)

    def put(self, key: bytes, value: bytes, ttl: float, version: int, owner: bytes = US) -> Deferred[Any]:
        if not 0 < len(value) <= 1024:
            return fail(LocalMisuse("too long"))
        if self.problem is None:
            self.held[key] = SimpleNamespace(value=value, version=version, ttl=int(ttl), owner=owner)
        return self._answer(version)

    def _answer(self, value: Any) -> Deferred[Any]:
        if self.problem is not None:
            return fail(self.problem)
        if self.slow is None:
            return succeed(value)
        self.slow.append(Deferred())
        return self.slow[-1].addCallback(lambda _: value)


class RoutesCase(SynchronousTestCase):
    """Asks as the control socket does."""

    def setUp(self) -> None:
        self.dht = Registers()
        verifyObject(IDHT, self.dht)
        self.routes = RegisterRoutes(self.dht, NETWORK, US, lambda ident: "us" if ident == US else "them").routes()

    def asking(self, what: str, *entries: Any, **more: Any) -> Deferred[tuple[int, Any]]:
        return Deferred.fromCoroutine(answer(self.routes, f"POST /dht/{what}", {"entries": list(entries), **more}))

    def ask(self, what: str, *entries: Any, **more: Any) -> list[dict[str, Any]]:
        status, value = self.successResultOf(self.asking(what, *entries, **more))
        self.assertEqual(status, 200, value)
        answers: list[dict[str, Any]] = value["answers"]
        return answers

    def refused(self, **arguments: Any) -> str:
        status, value = self.successResultOf(Deferred.fromCoroutine(answer(self.routes, "POST /dht/create", arguments)))
        self.assertEqual((status, value["kind"]), (400, "LocalMisuse"))
        return str(value["error"])


class OneEntryTests(RoutesCase):
    """What can be done with one register."""

    def test_text(self) -> None:
        self.assertEqual(self.ask("create", {"key": "motd", "text": "grüß"}, ttl_s=60)[0]["version"], 1)
        [got] = self.ask("get", {"key": "motd"})
        hashed = key_of("user", NETWORK.ident, b"motd").hex()
        self.assertEqual(got, {"key": hashed, "text": "grüß", "version": 1, "owner": US.hex(), "name": "us", "ttl_s": 60})

    def test_bytes(self) -> None:
        self.ask("create", {"key": KEY, "base64": "/wA="})
        [got] = self.ask("get", {"key": KEY})
        self.assertEqual((got["key"], bytes(got["base64"])), (KEY.lower(), b"\xff\0"))
        self.assertNotIn("text", got)

    def test_set_and_delete(self) -> None:
        self.assertEqual(self.ask("set", {"key": "a", "text": "1"})[0]["version"], 1)
        self.assertEqual(self.ask("set", {"key": "a", "text": "2"})[0]["version"], 2)
        self.assertEqual(self.ask("set", {"key": "a", "text": "3", "version": 2})[0]["version"], 3)
        self.assertEqual(self.ask("set", {"key": "a", "text": "4", "version": 2})[0]["kind"], "Conflict")
        self.assertEqual(self.ask("delete", {"key": "a", "version": 2})[0]["kind"], "Conflict")
        self.assertEqual(self.ask("delete", {"key": "a"})[0]["version"], 3)
        [gone] = self.ask("get", {"key": "a"})
        self.assertEqual((gone["error"], gone["kind"]), ("nothing is kept under a", "NotFound"))
        self.assertEqual(self.ask("delete", {"key": "a"})[0]["kind"], "NotFound")

    def test_of_another_node(self) -> None:
        self.dht.put(bytes.fromhex(KEY), b"x", 60, 7, THEM)
        for what, more in (("set", {"text": "y"}), ("delete", {})):
            [got] = self.ask(what, {"key": KEY, **more})
            self.assertEqual((got["error"], got["mend"]), (f"{KEY} belongs to them", "only its owner can change it"))

    def test_it_may_have_been_written(self) -> None:
        """Who gets no answer to a write is told that it may have been carried out; who gets none to a read is not."""
        for problem in (Unavailable(2, 3, 5), Unreachable("nobody answers")):
            self.dht.problem = problem
            self.assertIn("may have been written", self.ask("create", {"key": "a", "text": "1"})[0]["mend"])
            self.assertNotIn("written", self.ask("get", {"key": "a"})[0]["mend"])


class ManyEntriesTests(RoutesCase):
    """Answers in the order asked, worked on side by side, not too many at a time."""

    def test_order_and_errors(self) -> None:
        entries = [{"key": "b", "text": "1"}, {"key": "", "text": "2"}, {"key": "b", "text": "3"}, {"key": "c", "text": "4"}]
        got = self.ask("create", *entries)
        self.assertEqual([one.get("kind") for one in got], [None, "LocalMisuse", "Conflict", None])

    def test_side_by_side(self) -> None:
        self.dht.slow = []
        asking = self.asking("create", *[{"key": f"k{number}", "text": "x"} for number in range(MOST)])
        self.assertEqual(len(self.dht.slow), AT_ONCE)
        while self.dht.slow:
            self.dht.slow.pop(len(self.dht.slow) // 2).callback(None)
            self.assertLessEqual(len(self.dht.slow), AT_ONCE)
        _, value = self.successResultOf(asking)
        self.assertEqual([one["key"] for one in value["answers"]], [key_of("user", NETWORK.ident, b"k%d" % n).hex() for n in range(MOST)])

    def test_wrong_requests(self) -> None:
        good = {"key": "a", "text": "x"}
        for arguments, needle in (
            ({}, "missing required field `entries`"),
            ({"entries": []}, "1 to 512 entries, not 0"),
            ({"entries": [good] * (MOST + 1)}, "not 513"),
            ({"entries": [good], "ttl_s": 0}, "ttl_s is 0"),
            ({"entries": [good], "ttl_s": float("nan")}, "ttl_s is nan"),
            ({"entries": [good], "ttl": 5}, "unknown field `ttl`"),
            ({"entries": [{"key": 5}]}, "Expected `str`, got `int` - at `$.entries[0].key`"),
            ({"entries": [{"key": "a", "base64": "*"}]}, "Invalid base64"),
            ({"entries": [{**good, "version": -1}]}, "Expected `int` >= 0"),
            ({"entries": [{**good, "version": 2**70}]}, "Expected `int`"),
        ):
            self.assertIn(needle, self.refused(**arguments))

    def test_wrong_entries(self) -> None:
        for entry, needle in (
            ({"key": "a"}, "a has no value, or two"),
            ({"key": "a", "text": "x", "base64": "eA=="}, "a has no value, or two"),
            ({"key": "a", "text": "\ud800"}, "the value of a is not text"),
            ({"key": "\ud800", "text": "x"}, "the key is not text"),
            ({"key": "a", "text": "x" * 1025}, "too long"),
            ({"key": "a", "base64": ""}, "too long"),
        ):
            self.assertIn(needle, self.ask("create", entry)[0]["error"])
