"""Sockets beside the node's own one, each with a port of its own, for checks of the NAT and for searches (`core.nat.search`).

The driver opens them (`events.SideWanted`), sends by them (`events.SideSend`), closes them (`events.SideDone`) and hands in what
arrives (`Node.receive_aside`). Nothing but probes goes by those of a check. One of a search is a way to an endpoint of its own
(`Endpoint.by_side`), and may come to carry a link (`events.SideKept`).
"""

from __future__ import annotations

from collections.abc import Callable

from ipop_tx.core.events import SendNear, SideDone, SideSend, SideWanted
from ipop_tx.core.runtime import Runtime
from ipop_tx.core.tasks import Future
from ipop_tx.errors import EnvironmentProblem
from ipop_tx.values import Endpoint

MOST = 24
"""Most of them at a time, for checks."""
PURPOSE = "checks of the NAT"
OPENING = 1.0
"""Seconds that the driver has to open one."""

Receiver = Callable[[Endpoint, bytes], None]


class Side:
    """One such socket, bound to `port`."""

    def __init__(self, number: int, runtime: Runtime, purpose: str) -> None:
        self.number = number
        self.purpose = purpose
        self.port = 0
        self.received: Receiver = lambda endpoint, datagram: None
        self._runtime = runtime

    def send(self, endpoint: Endpoint, datagram: bytes) -> None:
        """Send one datagram."""
        self._runtime.emit(SideSend(self.number, endpoint, datagram))

    def send_near(self, endpoint: Endpoint, datagram: bytes, hops: int) -> None:
        """Send one datagram that gets no further than so many hops."""
        self._runtime.emit(SendNear(endpoint.by_side(self.number), datagram, hops))


class Sides:
    """All of one node."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._open: dict[int, Side] = {}
        self._last = 0

    async def open(self, purpose: str = PURPOSE, most: int = MOST) -> Side:
        """A new one. Raises `EnvironmentProblem` when the driver cannot, or there are too many for the purpose."""
        if sum(side.purpose == purpose for side in self._open.values()) >= most:
            raise EnvironmentProblem(f"{most} ports are in use for {purpose}", "try again in a minute")
        self._last += 1
        side = self._open[self._last] = Side(self._last, self._runtime, purpose)
        port: Future[int] = Future()
        late = self._runtime.after(OPENING, lambda: port.fail(EnvironmentProblem("no second port could be opened")))
        self._runtime.emit(SideWanted(side.number, port))
        try:
            side.port = await port
        except BaseException:
            self.close(side)
            raise
        finally:
            late.cancel()
        return side

    def close(self, side: Side) -> None:
        """No more of it. Idempotent."""
        if self._open.pop(side.number, None) is not None:
            self._runtime.emit(SideDone(side.number))

    def received(self, number: int, endpoint: Endpoint, datagram: bytes) -> None:
        """Something came in by one of them."""
        side = self._open.get(number)
        if side is not None:
            side.received(endpoint, datagram)
