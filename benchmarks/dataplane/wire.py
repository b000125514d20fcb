"""A wire with a delay, in user space: `python -m benchmarks.dataplane.wire LEFT RIGHT MILLISECONDS`.

Kernels without netem cannot delay. Every frame that comes in on one interface leaves on the other after the delay, in order.
A super-frame passes whole, with the kernel's note on how to cut it (PACKET_VNET_HDR); so the work is one turn of a loop for each
frame that the sender handed over, not for each datagram, and the kernel cuts on the way out where the interface has no offloads.
"""

from __future__ import annotations

import select
import socket
import sys
import time
from collections import deque
from collections.abc import Sequence

_ALL = 3  # ETH_P_ALL
_SOL_PACKET, _VNET_HDR, _IGNORE_OUTGOING = 263, 15, 23  # packet(7); our own frames would come back to us
_SO_RCVBUFFORCE, _SO_SNDBUFFORCE = 33, 32
_BUFFER = 32 << 20
_LARGEST = 10 + 14 + (1 << 16)
_FRAMES_PER_TURN = 64
MOST = 64 << 20
"""Bytes that may be under way in one direction: 100 ms at 5 Gbit/s. What comes beyond is lost, as in any full queue."""


class Lane:
    """One direction."""

    def __init__(self, source: socket.socket, target: socket.socket, delay: float) -> None:
        self.held = 0
        """Bytes under way."""
        self._source = source
        self._target = target
        self._delay = delay
        self._waiting: deque[tuple[float, bytes]] = deque()
        self._buffer = bytearray(_LARGEST)
        self._view = memoryview(self._buffer)

    @property
    def due(self) -> float | None:
        """When the next frame leaves."""
        return self._waiting[0][0] if self._waiting else None

    def take(self) -> None:
        """Receive what is there."""
        receive, buffer, view, waiting = self._source.recv_into, self._buffer, self._view, self._waiting
        try:
            for _ in range(_FRAMES_PER_TURN):
                size = receive(buffer)
                if self.held + size <= MOST:
                    self.held += size
                    waiting.append((time.monotonic() + self._delay, bytes(view[:size])))
        except BlockingIOError:
            return

    def give(self) -> None:
        """Send what has waited long enough."""
        send, waiting, now = self._target.send, self._waiting, time.monotonic()
        try:
            while waiting and waiting[0][0] <= now:
                send(waiting[0][1])
                self.held -= len(waiting.popleft()[1])
        except BlockingIOError:
            return


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
    made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)  # deaf until it is bound
    made.setsockopt(_SOL_PACKET, _VNET_HDR, 1)
    made.setsockopt(_SOL_PACKET, _IGNORE_OUTGOING, 1)
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
