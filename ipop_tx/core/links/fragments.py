"""Control messages longer than one datagram: cut on one side, joined on the other, bounded in number, size and time."""

from __future__ import annotations

from dataclasses import dataclass, field

from ipop_tx.core.runtime import Runtime
from ipop_tx.values import Ident
from ipop_tx.wire import messages as m
from ipop_tx.wire.datagram import DATAGRAM_LIMIT, OVERHEAD

PART = DATAGRAM_LIMIT - OVERHEAD - 40
"""Bytes of a message that one fragment carries."""
GROUPS, OF_ONE = 256, 16
"""Unfinished messages kept in all, and of one sender; the oldest makes way."""
PATIENCE = 10.0
"""Seconds for which an unfinished message is kept."""


def split(payload: bytes, runtime: Runtime) -> list[bytes]:
    """The payload itself if it fits a datagram, else its fragments, encoded."""
    if len(payload) <= DATAGRAM_LIMIT - OVERHEAD:
        return [payload]
    group = runtime.rng.getrandbits(48)
    parts = [payload[at : at + PART] for at in range(0, len(payload), PART)]
    return [m.encode(m.Fragment(group, index, len(parts), part)) for index, part in enumerate(parts)]


@dataclass(slots=True)
class _Group:
    count: int
    begun: float
    parts: dict[int, bytes] = field(default_factory=dict)


class Reassembly:
    """Joins fragments by sender and group."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._groups: dict[tuple[Ident, int], _Group] = {}

    def add(self, sender: Ident, fragment: m.Fragment) -> bytes | None:
        """Take a fragment; gives the whole payload when it was the last one missing."""
        name = (sender, fragment.group)
        group = self._groups.get(name)
        if group is None:
            self._make_room(sender)
            group = self._groups[name] = _Group(fragment.count, self._runtime.now)
        if group.count != fragment.count or fragment.index >= group.count or len(fragment.part) > PART:
            self._runtime.count("fragment_bad")
            return None
        group.parts[fragment.index] = fragment.part
        if len(group.parts) < group.count:
            return None
        del self._groups[name]
        return b"".join(group.parts[index] for index in range(group.count))

    def _make_room(self, sender: Ident) -> None:
        of_it = [name for name in self._groups if name[0] == sender]
        for name in of_it[: max(0, len(of_it) + 1 - OF_ONE)]:
            del self._groups[name]
        while self._groups:
            oldest = next(iter(self._groups))
            if len(self._groups) < GROUPS and self._runtime.now - self._groups[oldest].begun < PATIENCE:
                return
            del self._groups[oldest]
