"""Pings between all of many hosts of a lab, from one process: each host has a raw ICMP socket of ours that lives on it.

```
 0      1      2          4                6                    8
 +------+------+----------+----------------+--------------------+
 | type | code | checksum | who asks       | who is asked       |      RFC 792; both are numbers of places
 +------+------+----------+----------------+--------------------+
```

The kernel keeps 1024 neighbours for all namespaces together, fewer than there are pairs: so a pair's are forgotten once it has answered.
"""

from __future__ import annotations

import selectors
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress

from ipop_tx.lab import Host, netns
from ipop_tx.lab.node import TAP
from ipop_tx.transport import rtnetlink

PATIENCE = 3.0
"""Seconds after which a ping counts as lost."""
MOST_AT_ONCE = 16
"""Pings that wait for their answer: a machine that is slow today is asked more slowly, instead of measuring the crowd."""
TRIES = 10
"""Pings to a pair of which none is answered, before it counts as not routable."""
_ECHO = struct.Struct("!BBHHH")
_REQUEST, _REPLY = 8, 0
_NEIGHBOUR = struct.Struct("=BxxxiHBB")  # ndmsg: family, interface, state, flags, type
_RTM_DELNEIGH, _NDA_DST = 29, 1
_SOL_RAW, _ICMP_FILTER = 255, 1
_ONLY_REPLIES = struct.pack("=I", 0xFFFFFFFF & ~(1 << _REPLY))

Pair = tuple[int, int]


class Schedule:
    """Which pair is pinged when: at most `rate` a second, every ordered pair until it answers or has had its tries. Pure."""

    def __init__(self, count: int, rate: float, now: float) -> None:
        self.answered: set[Pair] = set()
        self.first_lost = 0
        """Pairs whose very first ping had no answer in time."""
        self._every = 1 / rate
        self._next = now
        self._waiting: deque[tuple[Pair, int]] = deque((pair, 1) for pair in in_turns(count))
        self._asked: deque[tuple[float, Pair, int]] = deque()

    def due(self, now: float) -> Pair | None:
        """The pair to ping now; call it until it gives None."""
        while self._asked and self._asked[0][0] + PATIENCE <= now:
            self._give_up(*self._asked.popleft())
        if not self._waiting or now < self._next or self._unanswered() >= MOST_AT_ONCE:
            return None
        self._next = max(self._next + self._every, now - 10 * self._every)
        pair, attempt = self._waiting.popleft()
        self._asked.append((now, pair, attempt))
        return pair

    def _unanswered(self) -> int:
        self._asked = deque(one for one in self._asked if one[1] not in self.answered)
        return len(self._asked)

    def _give_up(self, asked: float, pair: Pair, attempt: int) -> None:
        if pair in self.answered:
            return
        self.first_lost += attempt == 1
        if attempt < TRIES:
            self._waiting.append((pair, attempt + 1))

    @property
    def over(self) -> bool:
        """Whether there is nothing to ask and nothing to wait for."""
        return not self._waiting and not self._unanswered()


def in_turns(count: int) -> Iterator[Pair]:
    """All ordered pairs of `count` places; nobody is busy with two neighbours in the list."""
    return ((a, (a + away) % count) for away in range(1, count) for a in range(count))


def ping_all(hosts: Sequence[Host], addresses: Sequence[str], rate: float, say: Callable[[str], None]) -> Schedule:
    """Ping every one of `addresses`, which belong to `hosts` in their order, from every other host; tell now and then how far it is."""
    with ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        sockets = [stack.enter_context(_opened(host)) for host in hosts]
        for number, one in enumerate(sockets):
            selector.register(one, selectors.EVENT_READ, number)
        schedule = Schedule(len(hosts), rate, time.monotonic())
        said = time.monotonic()
        while not schedule.over:
            while (pair := schedule.due(time.monotonic())) is not None:
                with suppress(OSError):  # no route just now: lost, as any other
                    sockets[pair[0]].sendto(request(*pair), (addresses[pair[1]], 0))
            for key, _ in selector.select(0.005):
                for asker, asked in _replies(sockets[key.data], key.data, addresses):
                    schedule.answered.add((asker, asked))
                    _forget(hosts[asker], addresses[asked])
                    _forget(hosts[asked], addresses[asker])
            if time.monotonic() >= said + 10:
                said = time.monotonic()
                say(f"{len(schedule.answered)} pairs have answered")
        return schedule


def _opened(host: Host) -> socket.socket:
    with netns.inside(host.namespace):
        made = socket.socket(socket.AF_INET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.IPPROTO_ICMP)
    made.setsockopt(_SOL_RAW, _ICMP_FILTER, _ONLY_REPLIES)
    return made


def _forget(host: Host, neighbour: str) -> None:
    """Make a host forget the MAC address of a neighbour in the overlay, if it knows one."""
    with netns.inside(host.namespace), suppress(OSError):
        head = _NEIGHBOUR.pack(socket.AF_INET, socket.if_nametoindex(TAP), 0, 0, 0)
        rtnetlink.ask(_RTM_DELNEIGH, head, {_NDA_DST: socket.inet_aton(neighbour)})


def request(asker: int, asked: int) -> bytes:
    """An echo request without payload."""
    total = (_REQUEST << 8) + asker + asked
    return _ECHO.pack(_REQUEST, 0, ~(total + (total >> 16)) & 0xFFFF, asker, asked)


def _replies(one: socket.socket, asker: int, addresses: Sequence[str]) -> Iterator[Pair]:
    with suppress(BlockingIOError):
        while True:
            packet, (source, _) = one.recvfrom(256)
            pair = reply(packet)
            if pair is not None and pair[0] == asker and pair[1] < len(addresses) and source == addresses[pair[1]]:
                yield pair


def reply(packet: bytes) -> Pair | None:
    """(who asked, who was asked) of an IPv4 packet that is an echo reply; None for any other."""
    at = (packet[0] & 15) * 4 if packet else 0
    if len(packet) < at + _ECHO.size:
        return None
    kind, _, _, asker, asked = _ECHO.unpack_from(packet, at)
    return (asker, asked) if kind == _REPLY else None
