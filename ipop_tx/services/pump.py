"""A small loop inside the reactor's: descriptors with much traffic, served many times for each turn of the reactor.

A turn of a Twisted reactor costs about as much as carrying 64 kB through this daemon. So the TAP and the UDP socket are registered with an
epoll of their own, and only that with the reactor. Each time the reactor finds it ready, the descriptors are served until they have
nothing more, or until `LONGEST` has passed: then timers and everybody else have their turn.
"""

from __future__ import annotations

import select
import time
from contextlib import suppress
from typing import Any

from twisted.internet.interfaces import IReadDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

from ipop_tx.log import Logger

LONGEST = 0.004
"""Seconds after which the reactor has its turn, however much there is to do."""
LINGER = 0.001
"""Seconds for which more is awaited after there was something, before the reactor has its turn: the least that epoll can wait."""


@implementer(IReadDescriptor)
class Pump:
    """To its descriptors it is a reactor: it has `addReader`, `removeReader`, `addWriter`, `removeWriter` and `callLater`."""

    _log = Logger()

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self.callLater = reactor.callLater
        self._epoll: select.epoll | None = None
        self._readers: dict[int, Any] = {}
        self._writers: dict[int, Any] = {}

    # what descriptors ask

    def addReader(self, reader: Any) -> None:
        """Call `reader.doRead` when it is readable."""
        self._readers[reader.fileno()] = reader
        self._update(reader.fileno())

    def addWriter(self, writer: Any) -> None:
        """Call `writer.doWrite` when it is writable."""
        self._writers[writer.fileno()] = writer
        self._update(writer.fileno())

    def removeReader(self, reader: Any) -> None:
        """No more. Idempotent."""
        self._remove(self._readers, reader)

    def removeWriter(self, writer: Any) -> None:
        """No more. Idempotent."""
        self._remove(self._writers, writer)

    def _remove(self, table: dict[int, Any], descriptor: Any) -> None:
        for number in [number for number, known in table.items() if known is descriptor]:
            del table[number]
            self._update(number)

    def _update(self, number: int) -> None:
        wanted = (select.EPOLLIN if number in self._readers else 0) | (select.EPOLLOUT if number in self._writers else 0)
        if self._epoll is None:
            self._epoll = select.epoll()
            self._reactor.addReader(self)
        with suppress(OSError):  # when it was not registered, or is closed
            self._epoll.unregister(number)
        if wanted:
            self._epoll.register(number, wanted)
        elif not self._readers and not self._writers:
            self.stop()

    def stop(self) -> None:
        """Forget all descriptors."""
        if self._epoll is not None:
            self._reactor.removeReader(self)
            self._epoll.close()
            self._epoll = None
        self._readers.clear()
        self._writers.clear()

    # what the reactor asks

    def doRead(self) -> None:
        """Serve the descriptors that are ready, and those that become ready meanwhile."""
        end = time.monotonic() + LONGEST
        patience = 0.0
        while self._epoll is not None:
            ready = self._epoll.poll(patience)
            if not ready:
                return
            for number, events in ready:
                self._serve(number, events)
            if time.monotonic() >= end:
                return
            patience = LINGER

    def _serve(self, number: int, events: int) -> None:
        reader, writer = self._readers.get(number), self._writers.get(number)
        try:
            if writer is not None and events & ~select.EPOLLIN:
                writer.doWrite()
            if reader is not None and events & ~select.EPOLLOUT:
                reader.doRead()
        except Exception:  # noqa: BLE001 - as a reactor would: the descriptor is given up, the process is not
            self._log.failure("descriptor_failed fd={fd}", fd=number)
            for descriptor in (reader, writer):
                if descriptor is not None:
                    self.removeReader(descriptor)
                    self.removeWriter(descriptor)
                    descriptor.connectionLost(Failure())

    def fileno(self) -> int:
        """The epoll itself, which is readable when one of its descriptors is ready."""
        return self._epoll.fileno() if self._epoll is not None else -1

    def logPrefix(self) -> str:
        """For the reactor's logs."""
        return "pump"

    def connectionLost(self, reason: Failure) -> None:
        """The reactor ends."""
        for descriptor in [*self._readers.values(), *self._writers.values()]:
            descriptor.connectionLost(reason)
        self.stop()
