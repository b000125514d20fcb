"""What the tests of transports share: a receiver that keeps what arrives, laid out buffers, a reactor in the hands of a test."""

from __future__ import annotations

import os
import socket
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from zope.interface import implementer

from ipop_tx.interfaces import IDatagramReceiver
from ipop_tx.values import Endpoint
from ipop_tx.wire.datagram import HEADER_BYTES


@implementer(IDatagramReceiver)
class Inbox:
    """Keeps what arrives, run by run and datagram by datagram; `have(n)` fires once there are n datagrams."""

    def __init__(self) -> None:
        self.items: list[tuple[Endpoint, bytes]] = []
        self.views: list[Any] = []
        self.runs: list[tuple[int, int]] = []
        """Size and number of datagrams of each run."""
        self.bursts = self.drains = 0
        self.lost: list[Endpoint] = []
        self._wanted: list[tuple[int, Deferred[None]]] = []

    def datagram_received(self, endpoint: Endpoint, datagram: bytes | memoryview) -> None:
        self.items.append((endpoint, bytes(datagram)))
        self.views.append(datagram)
        ready = [waiting for waiting in self._wanted if waiting[0] <= len(self.items)]
        self._wanted = [waiting for waiting in self._wanted if waiting not in ready]
        for _, deferred in ready:
            deferred.callback(None)

    def run_received(self, endpoint: Endpoint, heads: bytearray, bodies: memoryview, size: int, total: int) -> None:
        count = max(1, -(-total // size)) if size else 1
        self.runs.append((size, count))
        for place in range(count):
            length = min(size, total - place * size)
            head = heads[place * HEADER_BYTES :][: min(HEADER_BYTES, length)]
            self.datagram_received(endpoint, bytes(head) + bodies[place * (size - HEADER_BYTES) :][: max(0, length - HEADER_BYTES)])
        self.views[-1] = memoryview(heads)[: min(HEADER_BYTES, length)]

    def burst_ended(self) -> None:
        self.bursts += 1

    def drained(self) -> None:
        self.drains += 1

    def path_lost(self, endpoint: Endpoint) -> None:
        self.lost.append(endpoint)

    def have(self, count: int) -> Deferred[None]:
        deferred: Deferred[None] = Deferred()
        self._wanted.append((count, deferred))
        if len(self.items) >= count:
            self._wanted.pop()
            deferred.callback(None)
        return deferred


def laid_out(transport: Any, run: bytes, size: int) -> Any:
    """A run in buffers as a data plane has them: head, body, head, body, ..."""
    heads, bodies = memoryview(bytearray(HEADER_BYTES * 64)), memoryview(bytearray(66000))
    body = size - HEADER_BYTES
    buffers = [part for place in range(64) for part in (heads[place * HEADER_BYTES :][:HEADER_BYTES], bodies[place * body :][:body])]
    at = 0
    for buffer in buffers:
        part = run[at : at + len(buffer)]
        buffer[: len(part)] = part
        at += len(buffer)
    return transport.layout(buffers)


def cut(run: bytes, size: int) -> list[bytes]:
    return [run[at : at + size] for at in range(0, len(run), size)]


class ReadersClock(Clock):
    """A clock that also keeps readers, so that a test sees when reading pauses."""

    def __init__(self) -> None:
        super().__init__()
        self.readers: list[Any] = []

        self.writers: list[Any] = []

    def addReader(self, reader: Any) -> None:
        self.readers.append(reader)

    def addWriter(self, writer: Any) -> None:
        if writer not in self.writers:
            self.writers.append(writer)

    def removeWriter(self, writer: Any) -> None:
        if writer in self.writers:
            self.writers.remove(writer)

    def removeReader(self, reader: Any) -> None:
        if reader in self.readers:
            self.readers.remove(reader)


class BrokenSocket:
    """A socket whose every call fails: no real one does so on command."""

    family = socket.AF_INET

    def __init__(self, number: int) -> None:
        self.number = number

    def sendto(self, *_: Any) -> None:
        raise OSError(self.number, os.strerror(self.number))

    sendmsg = sendto

    def fileno(self) -> int:
        return -1

    def close(self) -> None:
        pass
