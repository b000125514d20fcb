"""A wire with a delay, in user space: `python -m benchmarks.dataplane.wire LEFT RIGHT MILLISECONDS`.

Kernels without netem cannot delay. Every frame that comes in on one interface leaves on the other after the delay, in order.
It carries some 600 Mbit/s of TCP here; more than that waits in the sockets' buffers, then is lost.
"""

from __future__ import annotations

import select
import socket
import sys
import time
from collections import deque
from collections.abc import Sequence

_ALL = 3  # ETH_P_ALL
_OUTGOING = 4  # PACKET_OUTGOING: our own frames come back to us
_SO_RCVBUFFORCE, _SO_SNDBUFFORCE = 33, 32
_BUFFER = 32 << 20
_FRAMES_PER_TURN = 64


class Lane:
    """One direction."""

    def __init__(self, source: socket.socket, target: socket.socket, delay: float) -> None:
        self.source = source
        self._target = target
        self._delay = delay
        self._waiting: deque[tuple[float, bytes]] = deque()

    @property
    def due(self) -> float | None:
        """When the next frame leaves."""
        return self._waiting[0][0] if self._waiting else None

    def take(self) -> None:
        """Receive what is there."""
        for _ in range(_FRAMES_PER_TURN):
            try:
                frame, address = self.source.recvfrom(2048)
            except BlockingIOError:
                return
            if address[2] != _OUTGOING:
                self._waiting.append((time.monotonic() + self._delay, frame))

    def give(self) -> None:
        """Send what has waited long enough."""
        waiting, now = self._waiting, time.monotonic()
        while waiting and waiting[0][0] <= now:
            try:
                self._target.send(waiting[0][1])
            except BlockingIOError:
                return
            waiting.popleft()


def run(left: str, right: str, delay: float) -> None:
    """Carry frames both ways until killed; `delay` in seconds."""
    sockets = [_open(left), _open(right)]
    lanes = {sockets[0].fileno(): Lane(sockets[0], sockets[1], delay), sockets[1].fileno(): Lane(sockets[1], sockets[0], delay)}
    print("ready", flush=True)
    while True:
        due = [lane.due for lane in lanes.values() if lane.due is not None]
        # Not epoll: that waits in whole milliseconds.
        patience = max(0.0, min(due) - time.monotonic()) if due else None
        for descriptor in select.select(lanes, (), (), patience)[0]:
            lanes[descriptor].take()
        for lane in lanes.values():
            lane.give()


def _open(device: str) -> socket.socket:
    made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL))
    made.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
    made.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _BUFFER)
    made.bind((device, _ALL))
    made.setblocking(False)
    return made


def main(argv: Sequence[str]) -> None:
    """Run with words of the command line."""
    run(argv[0], argv[1], float(argv[2]) / 1000)


if __name__ == "__main__":
    main(sys.argv[1:])
