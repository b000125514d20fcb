"""Futures and coroutines without an event loop.

A coroutine awaits `Future`s and is resumed inside the call that settles them, so a run is a deterministic function of its
inputs. There is no scheduler: whoever settles a future runs what waited for it, first come first served.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator, Sequence
from contextlib import suppress
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Future(Generic[T]):
    """A result that is not there yet. Settled once; later settling is ignored, so a late reply and a timeout may race."""

    __slots__ = ("_callbacks", "_error", "_value", "done")

    def __init__(self) -> None:
        self.done = False
        self._value: T | None = None
        self._error: BaseException | None = None
        self._callbacks: tuple[Callable[[Future[T]], object], ...] = ()

    def succeed(self, value: T) -> None:
        """Settle with a result."""
        self._settle(value, None)

    def occur(self, _: object = None) -> None:
        """Settle without a result: for those that tell only when."""
        self._settle(None, None)

    def fail(self, error: BaseException) -> None:
        """Settle with an error."""
        self._settle(None, error)

    def _settle(self, value: T | None, error: BaseException | None) -> None:
        if self.done:
            return
        self.done, self._value, self._error = True, value, error
        callbacks, self._callbacks = self._callbacks, ()
        for callback in callbacks:
            callback(self)

    def follow(self, other: Future[T]) -> None:
        """Settle as another one was settled."""
        self._settle(other._value, other._error)

    def result(self) -> T:
        """The result; raises the error. Only of a settled future."""
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]

    @property
    def error(self) -> BaseException | None:
        """What it failed with, if it did."""
        return self._error

    def then(self, callback: Callable[[Future[T]], object]) -> None:
        """Call `callback` with this future once it is settled, at once if it is."""
        if self.done:
            callback(self)
        else:
            self._callbacks += (callback,)

    def __await__(self) -> Generator[Future[T], None, T]:
        if not self.done:
            yield self
        return self.result()


def spawn(work: Coroutine[Future[Any], None, T]) -> Future[T]:
    """Start a coroutine; it runs until its first unsettled future. Gives the future of its result."""
    outcome: Future[T] = Future()
    _Task(work, outcome).step()
    return outcome


class _Task(Generic[T]):
    """A coroutine under way. A small object, since a node always has a dozen that sleep."""

    __slots__ = ("outcome", "work")

    def __init__(self, work: Coroutine[Future[Any], None, T], outcome: Future[T]) -> None:
        self.work = work
        self.outcome = outcome

    def step(self, _: object = None) -> None:
        """Go on until the next unsettled future."""
        while True:
            try:
                waiting = self.work.send(None)
            except StopIteration as stop:
                self.outcome.succeed(stop.value)
                return
            except Exception as error:  # noqa: BLE001 - whoever awaits the future gets it
                self.outcome.fail(error)
                return
            if not waiting.done:
                waiting.then(self.step)
                return

    def __del__(self) -> None:
        # Given up with all that could wake it. It may be in the midst of closing what it awaits, whose frame held the last reference to us.
        with suppress(ValueError):
            self.work.close()


def quorum(futures: Sequence[Future[T]], enough: Callable[[list[T]], bool]) -> Future[list[T]]:
    """The successful results so far, as soon as `enough` says so or all are settled. Never fails."""
    outcome: Future[list[T]] = Future()
    results: list[T] = []
    left = len(futures)

    def settled(future: Future[T]) -> None:
        nonlocal left
        left -= 1
        if future.error is None:
            results.append(future.result())
        if not outcome.done and (left == 0 or enough(results)):
            outcome.succeed(list(results))

    if not futures:
        outcome.succeed([])
    for future in futures:
        future.then(settled)
    return outcome


def successes(futures: Sequence[Future[T]]) -> Future[list[T]]:
    """The successful results, once all are settled."""
    return quorum(futures, lambda results: False)


def all_settled(futures: Sequence[Future[T]]) -> Future[list[Future[T]]]:
    """All of them, once each is settled, whichever way."""
    outcome: Future[list[Future[T]]] = Future()
    successes(futures).then(lambda done: outcome.succeed(list(futures)))
    return outcome


def first(futures: Sequence[Future[Any]]) -> Future[None]:
    """Settled as soon as one of the futures is, whichever way."""
    outcome: Future[None] = Future()
    for future in futures:
        future.then(outcome.occur)
    return outcome


def failed(error: BaseException) -> Future[Any]:
    """A future that has failed already."""
    future: Future[Any] = Future()
    future.fail(error)
    return future


def settled(value: T) -> Future[T]:
    """A future that has succeeded already."""
    future: Future[T] = Future()
    future.succeed(value)
    return future
