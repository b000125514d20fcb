"""Traffic that would show any harm: `python -m benchmarks.payload tcp-send|tcp-receive|udp-send|udp-receive ...`, inside a namespace.

TCP carries blocks, each with its number and a pattern that both ends draw from the same seed; the receiver compares every byte.
UDP carries datagrams, each with its number, the time when it was sent, and a CRC-32 of all that:

```
 0        8              16       20
 +--------+--------------+--------+-----------------
 | number | sent, ns     | CRC-32 | 44 to 1380 bytes
 +--------+--------------+--------+-----------------
```

Each program ends with one line of JSON. The clock is the machine's monotonic one, the same in all of its namespaces.
"""

from __future__ import annotations

import json
import random
import signal
import socket
import struct
import sys
import time
import zlib
from array import array
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any, NoReturn

BLOCK = 260_003
"""Bytes of a block: no multiple of any segment, so that its borders wander."""
WINDOW = 200 << 10
"""Socket buffers of a stream: so little is under way at a time that no queue of the kernel runs over, which would not be our fault."""
PATIENCE = 60.0
"""Seconds that a stream may stand still before it counts as broken."""
SIZES = (64, 1400, 65, 577, 128, 1200, 1201, 92, 1399, 300, 1024, 711)
"""Lengths of the datagrams, in turn."""
CATCH_UP = 32
"""Datagrams that are sent at once, after others had the CPU; those that would be more are never sent."""
_NUMBER = struct.Struct("!Q")
_HEAD = struct.Struct("!QQI")
_BUCKET = 64
_SO_RCVBUFFORCE = 33


class Ended(Exception):
    """SIGTERM came."""


# TCP


def pattern(seed: int) -> bytes:
    """What follows the number in every block of a stream."""
    return random.Random(seed).randbytes(BLOCK - _NUMBER.size)


def tcp_send(address: str, port: int, seed: int, seconds: float) -> dict[str, Any]:
    """Blocks, as fast as they go, for `seconds`: how many were handed over."""
    with socket.create_connection((address, port), PATIENCE) as stream:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, WINDOW)
        block = bytearray(_NUMBER.size) + pattern(seed)
        ends, number = time.monotonic() + seconds, 0
        while time.monotonic() < ends:
            _NUMBER.pack_into(block, 0, number)
            stream.sendall(block)
            number += 1
        stream.shutdown(socket.SHUT_WR)
        stream.recv(1)  # the receiver has read to the end
    return {"blocks": number}


class Checker:
    """Compares what comes with what must come. Fill `space`, then call `took`."""

    def __init__(self, seed: int) -> None:
        self.blocks = 0
        self.altered = 0
        """Blocks with anything wrong in them."""
        self._wanted = bytearray(_NUMBER.size) + pattern(seed)
        self._block = bytearray(BLOCK)
        self._view = memoryview(self._block)
        self._at = 0

    @property
    def space(self) -> memoryview:
        """Where the next bytes go."""
        return self._view[self._at :]

    @property
    def rest(self) -> int:
        """Bytes of a block that is not whole."""
        return self._at

    def took(self, size: int) -> None:
        """So many bytes were put into `space`."""
        self._at += size
        if self._at == BLOCK:
            _NUMBER.pack_into(self._wanted, 0, self.blocks)
            self.altered += self._block != self._wanted
            self.blocks += 1
            self._at = 0


def tcp_receive(port: int, seed: int) -> dict[str, Any]:
    """One stream, compared to its end."""
    checker, problem = Checker(seed), ""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, WINDOW)
        listener.bind(("0.0.0.0", port))
        listener.listen(1)
        listener.settimeout(PATIENCE)
        stream, _ = listener.accept()
    with stream:
        stream.settimeout(PATIENCE)
        try:
            while size := stream.recv_into(checker.space):
                checker.took(size)
        except OSError as error:
            problem = f"tcp-receive: {error}"
    return {"blocks": checker.blocks, "altered": checker.altered, "rest": checker.rest, "problem": problem}


# UDP


def datagram(number: int, sent_ns: int, filling: bytes) -> bytes:
    """Number, time, CRC-32, and as much filling as its turn says."""
    body = filling[: SIZES[number % len(SIZES)] - _HEAD.size]
    return _HEAD.pack(number, sent_ns, _check(number, sent_ns, body)) + body


def _check(number: int, sent_ns: int, body: bytes | memoryview) -> int:
    return zlib.crc32(body, zlib.crc32(struct.pack("!QQ", number, sent_ns)))


def parse(text: memoryview) -> tuple[int, float] | None:
    """(number, when it was sent in seconds) of a datagram; None when it is not as it was."""
    if len(text) < _HEAD.size:
        return None
    number, sent_ns, check = _HEAD.unpack_from(text)
    if check != _check(number, sent_ns, text[_HEAD.size :]) or len(text) != SIZES[number % len(SIZES)]:
        return None
    return number, sent_ns / 1e9


class Ledger:
    """Which numbers came, how often and in which order. A gap's time is known as exactly as a few of its neighbours were sent."""

    def __init__(self) -> None:
        self.received = self.duplicated = self.reordered = 0
        self.highest = -1
        self._came = bytearray()
        self._times = array("d")
        """When the first of every `_BUCKET` numbers that came was sent; 0 when none of them came."""

    def note(self, number: int, sent: float) -> None:
        """A good datagram."""
        self.received += 1
        if number >= len(self._came):
            self._grow(number)
        if self._came[number]:
            self.duplicated += 1
            return
        self._came[number] = 1
        if number < self.highest:
            self.reordered += 1
            return
        self.highest = number
        bucket = number // _BUCKET
        self._times[bucket] = self._times[bucket] or sent

    def _grow(self, number: int) -> None:
        missing = (number // _BUCKET + 1) * _BUCKET - len(self._came)
        self._came += bytes(missing)
        self._times.extend([0.0] * (missing // _BUCKET))

    def gaps(self) -> Iterator[tuple[int, int, float, float]]:
        """(first number, how many, earliest and latest time when they were sent) of what did not come below the highest that did."""
        at = self._came.find(0)
        while 0 <= at <= self.highest:
            end = self._came.find(1, at)
            yield at, end - at, self._time(range((at - 1) // _BUCKET, -1, -1)), self._time(range(end // _BUCKET + 1, len(self._times)))
            at = self._came.find(0, end)

    def _time(self, buckets: range) -> float:
        """The first that is known of these; 0 when none is."""
        return next((self._times[bucket] for bucket in buckets if self._times[bucket]), 0.0)


def udp_send(address: str, port: int, seconds: float, rate: float) -> dict[str, Any]:
    """`rate` datagrams a second, evenly: how many the kernel took, and how often it refused one."""
    filling = random.Random(port).randbytes(max(SIZES))
    sent = refused = 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        out.connect((address, port))
        began = start = time.monotonic()
        while (now := time.monotonic()) < began + seconds:
            due = int((now - start) * rate) - sent
            if due > CATCH_UP:
                start, due = start + (due - CATCH_UP) / rate, CATCH_UP
            for _ in range(due):
                try:
                    out.send(datagram(sent, time.monotonic_ns(), filling))
                except OSError:
                    refused += 1
                    break
                sent += 1
            time.sleep(0.001)
        ended = time.monotonic()
    return {"sent": sent, "refused": refused, "began": began, "ended": ended}


def udp_receive(port: int) -> dict[str, Any]:
    """Until SIGTERM: what came, and the gaps."""
    ledger, altered = Ledger(), 0
    space = bytearray(1 << 16)
    view = memoryview(space)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as inlet:
        inlet.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 32 << 20)
        inlet.bind(("0.0.0.0", port))
        signal.signal(signal.SIGTERM, _end)
        try:
            while True:
                found = parse(view[: inlet.recv_into(space)])
                if found is None:
                    altered += 1
                else:
                    ledger.note(*found)
        except Ended:
            pass
    return {
        "received": ledger.received,
        "altered": altered,
        "duplicated": ledger.duplicated,
        "reordered": ledger.reordered,
        "highest": ledger.highest,
        "gaps": list(ledger.gaps()),
    }


def _end(number: int, frame: FrameType | None) -> NoReturn:
    raise Ended


def main(argv: Sequence[str]) -> int:
    """Run with words of the command line; gives the exit status."""
    what, *words = argv
    try:
        match what, words:
            case "tcp-send", [address, port, seed, seconds]:
                found = tcp_send(address, int(port), int(seed), float(seconds))
            case "tcp-receive", [port, seed]:
                found = tcp_receive(int(port), int(seed))
            case "udp-send", [address, port, seconds, rate]:
                found = udp_send(address, int(port), float(seconds), float(rate))
            case "udp-receive", [port]:
                found = udp_receive(int(port))
            case _:
                print(__doc__, file=sys.stderr)
                return 2
    except OSError as error:
        found = {"problem": f"{what}: {error}"}
    print(json.dumps(found), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
