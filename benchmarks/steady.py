"""A TCP stream of a steady rate, with a checksum at both ends: `python -m benchmarks.steady send|receive ADDRESS PORT`.

The sender listens, and sends to the first who connects until it gets SIGTERM; then it ends the stream in good order. Each end prints,
as its last line, a JSON object: bytes, their SHA-256, and at the receiver the longest wait for the next byte in seconds.
"""

from __future__ import annotations

import hashlib
import json
import random
import signal
import socket
import sys
import time
from collections.abc import Sequence

BLOCK, EVERY = 25_000, 0.05
"""Bytes, and seconds from one block to the next: 4 Mbit/s."""


def send(address: str, port: int) -> None:
    """Send until told to end."""
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
    source, digest, count = random.Random(port), hashlib.sha256(), 0
    with socket.create_server((address, port)) as listening:
        connection, _ = listening.accept()
    with connection:
        while not told:
            block = source.randbytes(BLOCK)
            connection.sendall(block)
            digest.update(block)
            count += len(block)
            time.sleep(EVERY)
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)  # until the other end has everything
    print(json.dumps({"bytes": count, "sha256": digest.hexdigest()}), flush=True)


def receive(address: str, port: int) -> None:
    """Receive to the end of the stream."""
    digest, count, longest = hashlib.sha256(), 0, 0.0
    with socket.create_connection((address, port), 30) as connection:
        connection.settimeout(None)
        last = time.monotonic()
        while data := connection.recv(1 << 16):
            now = time.monotonic()
            longest, last = max(longest, now - last), now
            digest.update(data)
            count += len(data)
    print(json.dumps({"bytes": count, "sha256": digest.hexdigest(), "longest_wait_s": round(longest, 2)}), flush=True)


def main(words: Sequence[str]) -> int:
    """Gives the exit status."""
    kind, address, port = words
    {"send": send, "receive": receive}[kind](address, int(port))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
