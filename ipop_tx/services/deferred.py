"""From the core's futures to Twisted's Deferreds."""

from __future__ import annotations

from typing import TypeVar

from twisted.internet.defer import Deferred

from ipop_tx.core.tasks import Future

T = TypeVar("T")


def deferred_of(future: Future[T]) -> Deferred[T]:
    """A Deferred that fires with the future's outcome."""
    deferred: Deferred[T] = Deferred()

    def settled(done: Future[T]) -> None:
        if done.error is not None:
            deferred.errback(done.error)
        else:
            deferred.callback(done.result())

    future.then(settled)
    return deferred
