"""Registers over the control socket: what `ipop dht` asks, one entry or many in a request.

A key is 40 hex digits, or a name: that one is hashed together with the network, so that names never meet leases. A value is text, or
anything else in base64. Many entries of one request are worked on side by side; each has an answer of its own, in the order asked.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine
from typing import Annotated, Any

import msgspec
from twisted.internet.defer import Deferred, gatherResults

from ipop_tx.core.dht.records import key_of
from ipop_tx.errors import Conflict, IpopError, LocalMisuse, NotFound, Unavailable, Unreachable
from ipop_tx.interfaces import IDHT
from ipop_tx.services.control import Route, refusal
from ipop_tx.values import Ident, Network

MOST = 512
"""Entries in one request."""
AT_ONCE = 16
"""Entries of one request that are worked on at a time: enough to keep replicas busy, few enough not to wait for each other."""
MOST_SECONDS = 366 * 86400
USUAL_SECONDS = 86400.0
_HEX_KEY = re.compile(r"[0-9a-fA-F]{40}")


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    key: str
    text: str | None = None
    base64: bytes | None = None
    version: Annotated[int, msgspec.Meta(ge=0, lt=2**62)] | None = None


class _Asked(msgspec.Struct, forbid_unknown_fields=True):
    entries: list[_Entry]
    ttl_s: float = USUAL_SECONDS


Work = Callable[[bytes, _Entry, float], Coroutine[Any, Any, dict[str, Any]]]


class RegisterRoutes:
    """`POST /dht/get`, `create`, `set` and `delete`: {"entries": [...]} to {"answers": [...]}."""

    def __init__(self, dht: IDHT, network: Network, ident: Ident, name_of: Callable[[Ident], str]) -> None:
        """`name_of` names the owner of a register."""
        self._dht = dht
        self._network = network
        self._ident = ident
        self._name_of = name_of

    def routes(self) -> dict[str, Route]:
        """For the control socket."""
        works: dict[str, Work] = {"get": self._get, "create": self._create, "set": self._set, "delete": self._delete}
        return {f"POST /dht/{name}": self._route(work) for name, work in works.items()}

    def _route(self, work: Work) -> Route:
        return lambda arguments: Deferred.fromCoroutine(self._all(work, _asked(arguments)))

    async def _all(self, work: Work, asked: _Asked) -> dict[str, Any]:
        answers: list[dict[str, Any]] = [{}] * len(asked.entries)
        left = iter(enumerate(asked.entries))

        async def some() -> None:
            for place, entry in left:
                answers[place] = await self._one(work, entry, asked.ttl_s)

        await gatherResults([Deferred.fromCoroutine(some()) for _ in range(min(AT_ONCE, len(answers)))], consumeErrors=True)
        return {"answers": answers}

    async def _one(self, work: Work, entry: _Entry, ttl: float) -> dict[str, Any]:
        try:
            key = self.key(entry.key)
            return {"key": key.hex(), **await work(key, entry, ttl)}
        except (Unavailable, Unreachable) as error:
            unknown = f"it may have been written all the same: see 'ipop dht get {entry.key}'"
            return {"key": entry.key, **refusal(error), **({} if work == self._get else {"mend": unknown})}
        except IpopError as error:
            return {"key": entry.key, **refusal(error)}

    def key(self, text: str) -> bytes:
        """The key that a user means. Raises `LocalMisuse`."""
        if _HEX_KEY.fullmatch(text):
            return bytes.fromhex(text)
        if not text:
            raise LocalMisuse("the key is empty", "give a name, or 40 hex digits")
        return key_of("user", self._network.ident, _utf8(text, "the key"))

    # --- one entry ---------------------------------------------------------------------------

    async def _get(self, key: bytes, entry: _Entry, ttl: float) -> dict[str, Any]:
        return self._told(await self._held(key, entry))

    async def _create(self, key: bytes, entry: _Entry, ttl: float) -> dict[str, Any]:
        return {"version": await self._dht.create(key, _value(entry), ttl)}

    async def _set(self, key: bytes, entry: _Entry, ttl: float) -> dict[str, Any]:
        """Replace the version that the caller names; without one what there is, or fill what is empty."""
        value, version = _value(entry), entry.version
        if version is None:
            held = await self._dht.get(key)
            if held is None:
                return {"version": await self._dht.create(key, value, ttl)}
            version = self._ours(held, entry).version
        return {"version": await self._dht.compare_and_set(key, version, value, ttl)}

    async def _delete(self, key: bytes, entry: _Entry, ttl: float) -> dict[str, Any]:
        version = entry.version
        if version is None:
            version = self._ours(await self._held(key, entry), entry).version
        await self._dht.delete(key, version)
        return {"version": version}

    async def _held(self, key: bytes, entry: _Entry) -> Any:
        record = await self._dht.get(key)
        if record is None:
            raise NotFound(f"nothing is kept under {entry.key}", f"'ipop dht create {entry.key} VALUE' fills it")
        return record

    def _ours(self, record: Any, entry: _Entry) -> Any:
        if record.owner != self._ident:
            raise Conflict(f"{entry.key} belongs to {self._name_of(record.owner)}", "only its owner can change it", record.version)
        return record

    def _told(self, record: Any) -> dict[str, Any]:
        try:
            value = {"text": record.value.decode()}
        except UnicodeDecodeError:
            value = {"base64": record.value}
        return {**value, "version": record.version, "owner": record.owner.hex(), "name": self._name_of(record.owner), "ttl_s": record.ttl}


def _asked(arguments: dict[str, Any]) -> _Asked:
    """The request, checked. Raises `LocalMisuse`."""
    try:
        asked = msgspec.convert(arguments, type=_Asked)
    except msgspec.ValidationError as error:
        raise LocalMisuse(f"the request is wrong: {error}", "docs/control.md has its form") from None
    if not 0 < len(asked.entries) <= MOST:
        raise LocalMisuse(f"a request has 1 to {MOST} entries, not {len(asked.entries)}", "send several requests")
    if not 1 <= asked.ttl_s <= MOST_SECONDS:
        raise LocalMisuse(f"ttl_s is {asked.ttl_s:g}, not a number of seconds from 1 to {MOST_SECONDS}", "give for instance 86400")
    return asked


def _value(entry: _Entry) -> bytes:
    """The value to be written. Raises `LocalMisuse` unless there is exactly one."""
    if (entry.text is None) == (entry.base64 is None):
        raise LocalMisuse(f"{entry.key} has no value, or two", "give either text or base64")
    return _utf8(entry.text, f"the value of {entry.key}") if entry.text is not None else entry.base64 or b""


def _utf8(text: str, what: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can say
        raise LocalMisuse(f"{what} is not text that UTF-8 can hold", "give it as base64") from None
