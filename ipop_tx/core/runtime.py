"""What all parts of a node share: the time, chance, timers, what waits to be sent and told."""

from __future__ import annotations

import heapq
import itertools
import traceback
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from random import Random
from typing import Any

from ipop_tx.core.events import Fault
from ipop_tx.core.tasks import Future, first, spawn
from ipop_tx.errors import IpopError
from ipop_tx.values import Endpoint


class Timer:
    """A call that will be made; `cancel` forgets it."""

    __slots__ = ("call",)

    def __init__(self, call: Callable[[], object] | None) -> None:
        self.call = call

    def cancel(self) -> None:
        """Do not make the call. Idempotent."""
        self.call = None


class Runtime:
    """Time, chance, timers and outgoing queues of one node."""

    def __init__(self, rng: Random, now: float = 0.0) -> None:
        self.now = now
        self.rng = rng
        self.transmissions: deque[tuple[Endpoint, bytes]] = deque()
        self.events: deque[object] = deque()
        self.counters: dict[str, int] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()

    def after(self, delay: float, call: Callable[[], object]) -> Timer:
        """Make `call` in `delay` seconds."""
        timer = Timer(call)
        heapq.heappush(self._timers, (self.now + delay, next(self._order), timer))
        return timer

    def deadline(self) -> float | None:
        """When the next timer is due."""
        while self._timers and self._timers[0][2].call is None:
            heapq.heappop(self._timers)
        return self._timers[0][0] if self._timers else None

    def run_due(self) -> None:
        """Make all calls that are due."""
        while self._timers and self._timers[0][0] <= self.now:
            timer = heapq.heappop(self._timers)[2]
            call, timer.call = timer.call, None
            if call is not None:
                call()

    def sleep(self, seconds: float) -> Future[None]:
        """A future that is settled in `seconds`."""
        future: Future[None] = Future()
        self.after(seconds, future.occur)
        return future

    async def wait(self, futures: Sequence[Future[Any]], seconds: float) -> None:
        """Until one of the futures is settled, whichever way, or so many seconds have passed."""
        over: Future[None] = Future()
        timer = self.after(seconds, over.occur)
        await first([*futures, over])
        timer.cancel()

    def spread(self, period: float) -> float:
        """`period` give or take a fifth, so that nodes do not march in step."""
        return period * (0.8 + 0.4 * self.rng.random())

    def emit(self, event: object) -> None:
        """Queue an event for the driver."""
        self.events.append(event)

    def count(self, name: str, by: int = 1) -> None:
        """Add to a counter."""
        self.counters[name] = self.counters.get(name, 0) + by

    def background(self, work: Coroutine[Future[Any], None, Any]) -> Future[Any]:
        """Run a coroutine whose failure nobody awaits: an `IpopError` is counted, anything else is our bug and becomes a `Fault`."""
        future = spawn(work)
        future.then(self._settled_in_background)
        return future

    def _settled_in_background(self, future: Future[Any]) -> None:
        error = future.error
        if isinstance(error, IpopError):
            self.count(f"background_{type(error).__name__.lower()}")
        elif error is not None:
            self.emit(Fault("".join(traceback.format_exception(error))))
