"""Frames that wait for a link to their node, or for the owner of their MAC: bounded for each in number and bytes, and in bytes in all."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

WAITING_FRAMES = 64
WAITING_BYTES = 1 << 20
"""Frames, and bytes, that wait for one of them at most."""
WAITING_BYTES_IN_ALL = 16 << 20


class Room:
    """How many bytes all frames that wait have."""

    __slots__ = ("taken",)

    def __init__(self) -> None:
        self.taken = 0


class Waiting:
    """Frames by what they wait for, each in the order in which they came."""

    def __init__(self, room: Room, most: int) -> None:
        """`room` is shared with others; there are at most `most` queues."""
        self._room = room
        self._most = most
        self._queues: dict[bytes, deque[bytes]] = {}
        self._bytes: dict[bytes, int] = {}

    def __iter__(self) -> Iterator[bytes]:
        return iter(list(self._queues))

    def __contains__(self, key: bytes) -> bool:
        return key in self._queues

    def add(self, key: bytes, packed: bytes) -> bool:
        """Keep a frame; False when there is no room for it."""
        queue, size = self._queues.get(key), len(packed)
        if self._room.taken + size > WAITING_BYTES_IN_ALL:
            return False
        if queue is None:
            if len(self._queues) >= self._most:
                return False
            queue = self._queues[key] = deque()
            self._bytes[key] = 0
        elif len(queue) >= WAITING_FRAMES or self._bytes[key] + size > WAITING_BYTES:
            return False
        queue.append(packed)
        self._bytes[key] += size
        self._room.taken += size
        return True

    def next(self, key: bytes) -> bytes | None:
        """Take the frame that has waited longest; None when none does."""
        queue = self._queues.get(key)
        if queue is None:
            return None
        packed = queue.popleft()
        self._bytes[key] -= len(packed)
        self._room.taken -= len(packed)
        if not queue:
            del self._queues[key], self._bytes[key]
        return packed

    def take(self, key: bytes) -> deque[bytes]:
        """Take all of them."""
        self._room.taken -= self._bytes.pop(key, 0)
        return self._queues.pop(key, deque())
