"""Port mappings by UPnP-IGD and the library miniupnpc. That blocks: all of it runs in one thread at a time, never in the reactor's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address
from threading import Thread
from typing import Any

from twisted.internet.defer import Deferred, DeferredLock
from twisted.python.failure import Failure

from ipop_tx.errors import EnvironmentProblem

LIFETIME = 3600
"""Seconds for which a mapping is asked for; some routers grant only permanent ones, which then end with the daemon."""
SEARCH_MS = 1000
"""Milliseconds that devices have to answer; the library asks for four kinds of them in turn until one does."""
FRESH = 60.0
"""Seconds for which what a search has found is believed."""
TRIES = 4
"""So many outer ports are tried where somebody has the first."""
DESCRIPTION = "ipop_tx"


@dataclass(frozen=True, slots=True)
class UpnpMapping:
    """A port of the router that leads here. `lifetime` 0 is for ever."""

    host: str
    port: int
    lifetime: int


class Upnp:
    """One router, found on the interface that has the address `client`. Every result is a Deferred; errors are `EnvironmentProblem`."""

    def __init__(self, reactor: Any, client: IPv4Address) -> None:
        self.available = available()
        self._reactor = reactor
        self._client = str(client)
        self._lock = DeferredLock()
        self._device: Any = None
        self._searched = float("-inf")
        """When the last search began."""

    def search(self) -> Deferred[bool]:
        """Whether there is a router that speaks it. What was found less than a minute ago is good enough."""
        return self._run(self._search_anew)

    def map(self, port: int) -> Deferred[UpnpMapping]:
        """Map a UDP port, or renew that."""
        return self._run(self._map, port)

    def unmap(self, outer: int) -> Deferred[None]:
        """Take a mapping away; whether that worked is nobody's concern any more."""
        return self._run(self._unmap, outer)

    def _run(self, work: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        return self._lock.run(self._in_thread, work, *arguments)

    def _in_thread(self, work: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        """Not one of the reactor's threads: these would be waited for when the daemon stops, for seconds."""
        done: Deferred[Any] = Deferred()

        def run() -> None:
            try:
                result = work(*arguments)
            except Exception:  # noqa: BLE001 - it belongs to whoever waits
                self._reactor.callFromThread(done.errback, Failure())
            else:
                self._reactor.callFromThread(done.callback, result)

        Thread(target=run, daemon=True).start()
        return done

    # --- in the thread -----------------------------------------------------------------------

    def _search_anew(self) -> bool:
        return self._search() if self._reactor.seconds() - self._searched > FRESH else self._device is not None

    def _search(self) -> bool:
        import miniupnpc

        self._searched = self._reactor.seconds()
        device = miniupnpc.UPnP(self._client, None, SEARCH_MS)
        try:
            found = device.discover() and device.selectigd()
        except Exception:  # noqa: BLE001 - the library raises nothing more special
            found = False
        self._device = device if found and device.lanaddr == self._client else None
        return self._device is not None

    def _map(self, port: int) -> UpnpMapping:
        if self._device is None and not self._search():
            raise EnvironmentProblem("no router answers by UPnP")
        try:
            for outer in (port, *(1024 + (port * 31 + 7919 * n) % 64000 for n in range(1, TRIES))):
                lifetime = self._add(port, outer)
                if lifetime is not None:
                    return UpnpMapping(self._device.externalipaddress(), outer, lifetime)
        except Exception as error:  # noqa: BLE001 - as above
            self._device = None
            raise EnvironmentProblem(f"the router makes no port mapping by UPnP: {error}") from None
        raise EnvironmentProblem("the router makes no port mapping by UPnP: the ports asked for are taken")

    def _add(self, port: int, outer: int) -> int | None:
        """Ask for one mapping: for how long it was made, None when somebody has that port."""
        for lifetime in (LIFETIME, 0):
            try:
                if self._device.addportmapping(outer, "UDP", self._client, port, DESCRIPTION, "", lifetime):
                    return lifetime
            except Exception as error:
                text = str(error)
                if "Conflict" in text or "718" in text:
                    return None
                if not lifetime or not ("Permanent" in text or "725" in text or "Invalid" in text):
                    raise
        return None

    def _unmap(self, outer: int) -> None:
        if self._device is None:
            return
        try:
            self._device.deleteportmapping(outer, "UDP", "")
        except Exception:  # noqa: BLE001 - as above
            self._device = None


def available() -> bool:
    """Whether the library is installed."""
    from importlib.util import find_spec

    return find_spec("miniupnpc") is not None
