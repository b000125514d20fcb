"""How large a datagram a direct path carries: datagram packetization layer path MTU discovery (RFC 8899).

A path challenge that is padded to a size and answered shows that the path carries that size. One that stays unanswered shows
little, since datagrams get lost for other reasons too: an MTU rises by one answer and falls only when three challenges of its size
went unanswered while a small one was answered. ICMP plays no part: it is filtered by many and can be forged by anybody.

The sizes of usual links are tried at once, so that most paths are measured after one round trip; what lies between is found by
halving, at leisure. Endpoints that never answered a small challenge get no large ones, so nobody can aim these at a third party.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ipop_tx.core.events import LinkChanged
from ipop_tx.core.links.link import BASE, DirectPath, Link, PathKey, Route
from ipop_tx.core.runtime import Runtime
from ipop_tx.core.tasks import Future, first
from ipop_tx.values import Endpoint
from ipop_tx.wire import messages as m
from ipop_tx.wire.datagram import OVERHEAD

LINK_MTUS = (9001, 9000, 1500, 1492, 1480, 1420, 1400, 1380, 1280)
"""Clouds, jumbo frames, Ethernet, PPPoE, IP in IP, WireGuard, more tunnels, the least of IPv6."""
USUAL = 1500
"""Between this MTU and the next of `LINK_MTUS` nothing is searched."""
TRIES = 3
PRECISION = 16
"""Bytes by which the MTU found may be too small."""
EASY = 1.0
"""Seconds between two challenges while halving."""
PACE = 0.3
"""Seconds between two challenges while in doubt."""
WATCH = 40.0
"""Seconds between tests of the MTU in use: large and small keep-alives by turns."""
IDLE = 60.0
"""Seconds without frames after which a path is left alone."""
RAISE = 600.0
"""Seconds between searches for more (PMTU_RAISE_TIMER)."""
RESTART = 30.0
"""The same after a search that was broken off, because the link took another path."""
LATE = 3.0
"""Seconds for which an answer still counts."""

Challenge = Callable[[Link, PathKey, float, int], Future[float]]


def headers(endpoint: Endpoint) -> int:
    """Bytes of IP and UDP header around a datagram to an endpoint."""
    return 48 if ":" in endpoint.host else 28


def sizes(endpoint: Endpoint) -> list[int]:
    """What datagrams fill the usual links, largest first."""
    return [mtu - headers(endpoint) for mtu in LINK_MTUS]


def padded(token: int, size: int) -> m.PathChallenge:
    """A challenge that makes a sealed datagram of `size` bytes, which are at least 400."""
    room = size - OVERHEAD - len(m.encode(m.PathChallenge(token)))
    return m.PathChallenge(token, bytes(room - 1))  # from 256 bytes on, MessagePack writes the length in two bytes, not one


@dataclass(slots=True, eq=False)
class _Care:
    """A path that was active when we took it into our care."""

    link: Link
    path: Endpoint
    known: DirectPath

    @property
    def active(self) -> bool:
        """Whether it still is."""
        return self.link.up and self.link.active == self.path and self.link.direct.get(self.path) is self.known

    @property
    def ours(self) -> bool:
        """Whether it is active and nobody has begun anew with it."""
        return self.active and self.known.tending is self


class PathMtu:
    """Finds the MTU of each link's active path, if that is direct, and watches over it."""

    def __init__(self, runtime: Runtime, challenge: Challenge) -> None:
        self._runtime = runtime
        self._challenge = challenge
        """`Paths.challenge`: link, path, how long to wait, size (0: as small as can be)."""

    def tend(self, link: Link) -> None:
        """Take the active path into our care, if it carries frames, has shown that it is the peer's, and is not there yet."""
        care = _care(link)
        if care is not None and care.known.tending is None and self._busy(link):
            self._begin(care)

    def doubt(self, link: Link) -> None:
        """Large datagrams seem to vanish: see whether the active path still carries its MTU."""
        care = _care(link)
        if care is not None and care.known.mtu > BASE and not care.known.doubted:
            care.known.doubted = True
            self._runtime.background(self._test(care))

    def _busy(self, link: Link) -> bool:
        """Whether frames go over a link: the ring's own messages fit any path, and large challenges would outweigh them all."""
        return self._runtime.now - link.frames < IDLE

    def _begin(self, care: _Care) -> None:
        care.known.tending = care
        self._runtime.background(self._tend(care))

    async def _tend(self, care: _Care) -> None:
        """While the path is active and carries frames: search, then see now and then whether its MTU is still true, then search again."""
        try:
            self.doubt(care.link)  # a path that was active before may have changed meanwhile
            while care.ours and self._busy(care.link):
                if self._runtime.now >= care.known.search_due:
                    await self._search(care)
                await self._runtime.sleep(self._runtime.spread(WATCH))
                if care.ours and self._busy(care.link):
                    self.doubt(care.link)
        finally:
            if care.known.tending is care:
                care.known.tending = None

    # --- up ----------------------------------------------------------------------------------

    async def _search(self, care: _Care) -> None:
        """Try the usual sizes above what is known, then halve what is left."""
        care.known.search_due = self._runtime.now + RESTART
        for _ in range(TRIES):
            for size in _above(care):
                self._probe(care, size, LATE)
            await self._runtime.sleep(max(0.2, 2 * care.known.rtt))
            if not care.ours:
                return
            if not _above(care):
                break
        await self._halve(care)
        if care.ours:
            care.known.search_due = self._runtime.now + RAISE

    async def _halve(self, care: _Care) -> None:
        """Between the MTU and the next usual size, which did not pass, one challenge at a time."""
        failed = min(_above(care), default=care.known.mtu)
        while failed - care.known.mtu > PRECISION and failed <= USUAL - headers(care.path):
            size = (care.known.mtu + failed) // 2
            if not await self._passes(care, size):
                failed = size
            if not care.ours:
                return
            await self._runtime.sleep(EASY)

    async def _passes(self, care: _Care, size: int) -> bool:
        for _ in range(TRIES):
            probe = self._probe(care, size, max(EASY, 3 * care.known.rtt))
            await first([probe])
            if _passed(probe) or not care.ours:
                return _passed(probe)
        return False

    def _probe(self, care: _Care, size: int, wait: float) -> Future[float]:
        answered = self._challenge(care.link, care.path, wait, size)
        answered.then(lambda done: self._rise(care, size) if done.error is None else None)
        return answered

    def _rise(self, care: _Care, size: int) -> None:
        if size > care.known.mtu:
            self._set(care, size)

    # --- down --------------------------------------------------------------------------------

    async def _test(self, care: _Care) -> None:
        """Challenges of the size of the MTU beside small ones: if only these are answered, the path has become narrower."""
        try:
            if await self._too_large(care, care.known.mtu) and care.active:
                self._fall(care)
        finally:
            care.known.doubted = False

    async def _too_large(self, care: _Care, size: int) -> bool:
        wait = max(PACE, 3 * care.known.rtt)
        small: list[Future[float]] = []
        large: list[Future[float]] = []
        for left in reversed(range(TRIES)):
            if large:  # mostly the first one is answered, and shows both
                small.append(self._challenge(care.link, care.path, wait, 0))
            large.append(self._challenge(care.link, care.path, wait, size))
            await first([large[-1], self._runtime.sleep(PACE if left else wait)])
            if any(map(_passed, large)) or care.known.mtu != size or not care.active:
                return False
        return any(map(_passed, small))

    def _fall(self, care: _Care) -> None:
        self._runtime.count("mtu_fallen")
        care.known.search_due = self._runtime.now
        self._set(care, BASE)
        self._begin(_Care(care.link, care.path, care.known))

    def _set(self, care: _Care, mtu: int) -> None:
        care.known.mtu = mtu
        if care.active:
            self._runtime.emit(LinkChanged(care.link.ident))


def _care(link: Link) -> _Care | None:
    """The active path, if its MTU is our business: direct, and the peer has answered a small challenge on it."""
    path = link.active
    if isinstance(path, Route) or path.carrier != "udp" or link.peer.guest or not link.up:
        return None
    known = link.direct.get(path)
    return _Care(link, path, known) if known is not None and known.rtt > 0.0 else None


def _above(care: _Care) -> list[int]:
    return [size for size in sizes(care.path) if size > care.known.mtu]


def _passed(challenge: Future[float]) -> bool:
    return challenge.done and challenge.error is None
