"""The configuration, read anew while the node runs: what can be taken at once is, the rest is said to wait for a restart."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from twisted.internet.defer import Deferred, DeferredLock, maybeDeferred

from ipop_tx.config import Config, load_config
from ipop_tx.config.sections import LIVE, READERS
from ipop_tx.errors import IpopError
from ipop_tx.log import Logger

Taker = Callable[[Config], object]
"""Takes its part of a configuration; may give a Deferred, and never fails for a reason that its health tells."""

_log = Logger()


class Reloading:
    """Compares the file with what runs.

    `takers` are the parts that take what `LIVE` names, by these names. `check` raises `ConfigError` for
    a configuration that this network cannot have. A refused one changes nothing. Two at once follow each other.
    """

    def __init__(self, config: Config, takers: Mapping[str, Taker], check: Callable[[Config], object]) -> None:
        assert set(takers) == LIVE
        self._started = config
        self._taken = config
        self._takers = takers
        self._check = check
        self._lock = DeferredLock()
        self.beyond: Callable[[Config], Collection[str]] = lambda config: ()
        """Keys of a configuration that take more rights than the process has kept."""
        self.begun: Callable[[], object] = lambda: None
        self.ended: Callable[[], object] = lambda: None
        """Called around each attempt, for whoever supervises the process."""
        self._refused = ""
        self._waiting: list[str] = []

    def reload(self) -> Deferred[dict[str, list[str]]]:
        """Take the file: `{"taken": [key, ...], "restart": [key, ...]}`. Fails with `ConfigError`."""
        done: Deferred[dict[str, list[str]]] = self._lock.run(lambda: Deferred.fromCoroutine(self._attempt()))
        return done

    async def _attempt(self) -> dict[str, list[str]]:
        self.begun()
        try:
            return await self._reload()
        finally:
            self.ended()

    async def _reload(self) -> dict[str, list[str]]:
        try:
            config = load_config(self._started.path)
            self._check(config)
        except IpopError as error:
            self._refused = f"the configuration was not taken, and the former one is in use: {error}"
            _log.warn("reload_refused reason={reason}", reason=str(error))
            raise
        self._refused = ""
        beyond = self.beyond(config)
        self._waiting = [key for key in changed(self._started, config) if self._taker(key) is None or key in beyond]
        taken = [key for key in changed(self._taken, config) if self._taker(key) is not None and key not in beyond]
        for name in dict.fromkeys(self._taker(key) for key in taken):
            assert name is not None
            await maybeDeferred(self._takers[name], config)
        self._taken = config
        _log.info("reloaded taken={taken} restart={restart}", taken=",".join(taken) or "none", restart=",".join(self._waiting) or "none")
        return {"taken": taken, "restart": self._waiting}

    def _taker(self, key: str) -> str | None:
        """Who takes a key: the taker of that very name, or of its section."""
        return next((name for name in (key, key.rpartition(".")[0]) if name in self._takers), None)

    def health(self) -> list[str]:
        """A refused configuration, and keys that wait."""
        waiting = [f"{', '.join(self._waiting)} of {self._started.path} changed: restart the daemon to use that"] if self._waiting else []
        return [self._refused, *waiting] if self._refused else waiting


def changed(before: Config, after: Config) -> list[str]:
    """The keys whose values differ, in the order of `READERS`; foreign transports as `transports.NAME`."""
    return [key for key in READERS if _value(before, key) != _value(after, key)] + list(_foreign(before, after))


def _foreign(before: Config, after: Config) -> Iterator[str]:
    for name in sorted({*before.transports, *after.transports}):
        if before.transports.get(name) != after.transports.get(name):
            yield f"transports.{name}"


def _value(config: Config, key: str) -> Any:
    value: Any = config
    for word in key.split("."):
        value = getattr(value, word)
    return value
