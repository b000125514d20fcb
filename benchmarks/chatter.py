"""Datagrams between all members that say for whom they are: `python -m benchmarks.chatter DIRECTORY SELF ADDRESS ... `, until SIGTERM.

Each names its sender, its receiver, the port, the moment of sending, and ends with a CRC-32 of all of it; so whoever receives one can tell
that it was meant for him and came as it was sent. What SELF, a number, has sent and received is written to DIRECTORY (`Said`).
"""

from __future__ import annotations

import random
import selectors
import signal
import socket
import struct
import sys
import time
import zlib
from array import array
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

OPEN, GATED = 7007, 7009
"""Ports: one that every policy allows, and one that some do not."""
RATE = 5.0
"""Datagrams a second from each member, to members and ports by chance."""
_HEAD = struct.Struct("!4s4sHQ")
_SIZES = (64, 1200)
_PORTS = (OPEN, GATED)


@dataclass
class Said:
    """What one end has noted. Datagrams are told as (member by number, port, nanoseconds of the monotonic clock at the sender)."""

    sent: array[int] = field(default_factory=lambda: array("Q"))
    received: array[int] = field(default_factory=lambda: array("Q"))
    wrong: list[str] = field(default_factory=list)

    def save(self, directory: Path, name: str) -> None:
        """As three files."""
        (directory / f"{name}.sent").write_bytes(self.sent.tobytes())
        (directory / f"{name}.received").write_bytes(self.received.tobytes())
        (directory / f"{name}.wrong").write_text("\n".join(self.wrong))

    @classmethod
    def load(cls, directory: Path, name: str) -> Said:
        """What `save` has written."""
        said = cls(wrong=(directory / f"{name}.wrong").read_text().splitlines())
        said.sent.frombytes((directory / f"{name}.sent").read_bytes())
        said.received.frombytes((directory / f"{name}.received").read_bytes())
        return said


def triples(numbers: array[int]) -> list[tuple[int, int, int]]:
    """The datagrams in a list of numbers."""
    return list(zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True))


def datagram(source: bytes, target: bytes, port: int, sent: int, filling: bytes) -> bytes:
    """What is sent from one address (4 bytes) to a port of another."""
    text = _HEAD.pack(source, target, port, sent) + filling
    return text + zlib.crc32(text).to_bytes(4, "big")


class Chatter:
    """One member: sends to the others, and looks closely at what comes in."""

    def __init__(self, addresses: Sequence[str], own: int) -> None:
        self.said = Said()
        self._addresses = [socket.inet_aton(address) for address in addresses]
        self._own = own
        self._seen: set[tuple[int, int, int]] = set()

    def run(self, told: list[int]) -> None:
        """Until something is in `told`."""
        selector, sockets = selectors.DefaultSelector(), {port: _bound(port) for port in _PORTS}
        for port, bound in sockets.items():
            selector.register(bound, selectors.EVENT_READ, port)
        following = time.monotonic()
        while not told:
            for key, _ in selector.select(max(0.0, following - time.monotonic())):
                with suppress(OSError):  # an ICMP error about one of ours
                    heard, (host, _) = sockets[key.data].recvfrom(65536)
                    self.hear(heard, host, key.data)
            if time.monotonic() >= following:
                self._send(sockets)
                following += random.expovariate(RATE)

    def _send(self, sockets: Mapping[int, socket.socket]) -> None:
        other = random.choice([number for number in range(len(self._addresses)) if number != self._own])
        port, now, target = random.choice(_PORTS), time.monotonic_ns(), self._addresses[other]
        self.said.sent.extend((other, port, now))
        with suppress(OSError):  # no interface: our daemon is down
            text = datagram(self._addresses[self._own], target, port, now, random.randbytes(random.randint(*_SIZES)))
            sockets[port].sendto(text, (socket.inet_ntoa(target), port))

    def hear(self, heard: bytes, host: str, port: int) -> None:
        """A datagram that came from an address to a port of ours: note it, or what is wrong with it."""
        text, checksum = heard[:-4], heard[-4:]
        if len(text) < _HEAD.size or zlib.crc32(text).to_bytes(4, "big") != checksum:
            self.said.wrong.append(f"a datagram from {host} came altered")
            return
        source, target, meant, sent = _HEAD.unpack_from(text)
        if socket.inet_aton(host) != source or target != self._addresses[self._own] or meant != port:
            names = f"{socket.inet_ntoa(source)} to {socket.inet_ntoa(target)}, port {meant}"
            self.said.wrong.append(
                f"a datagram of {names} came to {socket.inet_ntoa(self._addresses[self._own])}, port {port}, from {host}"
            )
            return
        told = (self._addresses.index(source), port, sent)
        if told in self._seen:
            self.said.wrong.append(f"a datagram of {host} came twice")
        self._seen.add(told)
        self.said.received.extend(told)


def _bound(port: int) -> socket.socket:
    bound = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    bound.bind(("", port))
    bound.setblocking(False)
    return bound


def main(words: Sequence[str]) -> int:
    """Gives the exit status."""
    directory, own, *addresses = words
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
    chatter = Chatter(addresses, int(own))
    chatter.run(told)
    chatter.said.save(Path(directory), own)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
