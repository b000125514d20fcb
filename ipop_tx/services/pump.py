"""A small loop inside the reactor's: descriptors with much traffic, served many times for each turn of the reactor.

A turn of a Twisted reactor costs about as much as carrying 64 kB through this daemon, and several times that when it has slept. So
the TAP, the UDP socket and TLS connections are registered with an epoll of their own, and only that with the reactor. Once the
reactor finds it ready, the pump serves its descriptors and waits for more, until a timer is due or the reactor has something else
to do: that it sees by having the reactor's own epoll beside its descriptors in a second one. Descriptors that are always ready keep
the reactor for `LONGEST` at most.
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
"""Seconds for which more is awaited under a reactor that has no epoll to watch: the least that epoll can wait."""


@implementer(IReadDescriptor)
class Pump:
    """To its descriptors, Twisted's TCP ones among them, it is a reactor: it has what these ask of one, and no more."""

    _log = Logger()

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self.callLater = reactor.callLater
        self.seconds = reactor.seconds
        self._epoll: select.epoll | None = None
        self._all: select.epoll | None = None
        """Our descriptors and the reactor's epoll."""
        self._readers: dict[int, Any] = {}
        self._writers: dict[int, Any] = {}

    # what descriptors ask

    def addReader(self, reader: Any) -> None:
        """Call `reader.doRead` when it is readable."""
        self._readers[reader.fileno()] = reader
        self._update(reader.fileno())

    def resolve(self, name: str, *patience: float) -> Any:
        """The address of a host, in a Deferred."""
        return self._reactor.resolve(name, *patience)

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
        number = descriptor.fileno()
        if table.get(number) is descriptor:
            del table[number]
            self._update(number)
            return
        for number in [number for number, known in table.items() if known is descriptor]:
            del table[number]
            self._update(number)

    def _update(self, number: int) -> None:
        wanted = (select.EPOLLIN if number in self._readers else 0) | (select.EPOLLOUT if number in self._writers else 0)
        if self._epoll is None:
            self._begin()
        for epoll in self._epolls():
            _watch(epoll, number, wanted)
        if not self._readers and not self._writers:
            self.stop()

    def _begin(self) -> None:
        self._epoll = select.epoll()
        poller = getattr(self._reactor, "_poller", None)  # Twisted's epollreactor; others have none, or none that can be watched
        if isinstance(poller, select.epoll):
            self._all = select.epoll()
            self._all.register(poller.fileno(), select.EPOLLIN)
        self._reactor.addReader(self)

    def _epolls(self) -> list[select.epoll]:
        return [epoll for epoll in (self._epoll, self._all) if epoll is not None]

    def stop(self) -> None:
        """Forget all descriptors."""
        if self._epoll is not None:
            self._reactor.removeReader(self)
        for epoll in self._epolls():
            epoll.close()
        self._epoll = self._all = None
        self._readers.clear()
        self._writers.clear()

    # what the reactor asks

    def doRead(self) -> None:
        """Serve the descriptors that are ready, and those that become ready before the reactor has anything else to do."""
        end = time.monotonic() + LONGEST
        patience: float | None = 0.0
        while (epoll := self._all or self._epoll) is not None:
            if self._serve_ready(epoll, patience):
                if patience != 0.0:
                    end = time.monotonic() + LONGEST
                elif time.monotonic() >= end:
                    return
                patience = 0.0
            elif patience != 0.0:
                return
            else:
                patience = self._patience()
                if patience == 0.0:
                    return

    def _patience(self) -> float | None:
        """Seconds until the reactor's next timer, None when it has none, 0 when it has been stopped meanwhile."""
        if self._all is None:
            return LINGER
        patience: float | None = self._reactor.timeout() if self._reactor.running else 0.0
        return patience

    def _serve_ready(self, epoll: select.epoll, patience: float | None) -> bool:
        """Wait until something is ready; False when that is none of our descriptors."""
        served = False
        for number, events in epoll.poll(patience):
            if number in self._readers or number in self._writers:
                self._serve(number, events)
                served = True
        return served

    def _serve(self, number: int, events: int) -> None:
        reader, writer = self._readers.get(number), self._writers.get(number)
        try:
            if writer is not None and events & ~select.EPOLLIN:
                end = writer.doWrite()
                if end is not None:
                    self._lost(writer, end)
                    return
            if reader is not None and events & ~select.EPOLLOUT and number in self._readers:
                end = reader.doRead()
                if end is not None:
                    self._lost(reader, end)
        except Exception as fault:  # noqa: BLE001 - as a reactor would: the descriptor is given up, the process is not
            self._log.failure("descriptor_failed fd={fd}", fd=number)
            for descriptor in (reader, writer):
                if descriptor is not None:
                    self._lost(descriptor, fault)

    def _lost(self, descriptor: Any, end: Any) -> None:
        """A descriptor has ended: by a fault, or as it says, as Twisted's own do for a connection."""
        self.removeReader(descriptor)
        self.removeWriter(descriptor)
        descriptor.connectionLost(Failure(end))

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


def _watch(epoll: select.epoll, number: int, wanted: int) -> None:
    """Have an epoll tell of these events of a descriptor, which it may know already, or of none."""
    if not wanted:
        with suppress(OSError):  # it was not registered, or is closed
            epoll.unregister(number)
        return
    try:
        epoll.modify(number, wanted)
    except OSError:
        epoll.register(number, wanted)
