"""What is to be written into the flow log, until somebody takes it. Bounded."""

from __future__ import annotations

from typing import NamedTuple

from ipop_tx.forwarding.fib import Tally
from ipop_tx.forwarding.inner import Buffer
from ipop_tx.values import Ident
from ipop_tx.wire.policy import PORTED

MOST = 16384
"""Entries that wait to be taken."""
MOST_REFUSED = 1024
"""Flows that were refused since the last time."""


class Entry(NamedTuple):
    """One direction of one flow with a member, from `begin` to `end` (seconds of the node's clock)."""

    peer: Ident
    source: bytes
    target: bytes
    source_port: int
    target_port: int
    protocol: int
    packets: int
    bytes: int
    begin: float
    end: float
    accepted: bool
    rule: str
    """What has decided: a rule's name, `default` for the policy's, empty where there is no policy."""


class Ledger:
    """Gathers entries until they are taken."""

    def __init__(self) -> None:
        self.lost = 0
        """Entries for which there was no room."""
        self._entries: list[Entry] = []
        self._refused: dict[tuple[Ident, bytes], Tally] = {}

    def refuse(self, peer: Ident, key: bytes, protocol: int, packed: Buffer, now: float) -> None:
        """A frame was refused; what is refused again and again is one flow."""
        tally = self._refused.get((peer, key))
        if tally is None:
            if len(self._refused) >= MOST_REFUSED:
                self.lost += 1
                return
            tally = self._refused[peer, key] = Tally(key, protocol, now, "default")
        tally.frames += 1
        tally.bytes += len(packed)
        tally.seen = now

    def refused(self, peer: Ident, key: bytes) -> int:
        """How many packets of a flow were refused since entries were taken last."""
        tally = self._refused.get((peer, key))
        return tally.packets if tally is not None else 0

    def note(self, peer: Ident, tally: Tally, accepted: bool = True) -> bool:
        """Write down what a tally has carried since the last time; False where there is no room, and it is to be kept for the next."""
        packets, size = tally.packets - tally.told[0], tally.packet_bytes - tally.told[1]
        if not packets:
            return True
        if len(self._entries) >= MOST:
            self.lost += 1
            return False
        half = (len(tally.key) - 5) // 2
        source, target = tally.key[1 : 1 + half], tally.key[1 + half : -4]
        tail = tally.key[-4:] if tally.protocol in PORTED else bytes(4)
        ports = int.from_bytes(tail[:2], "big"), int.from_bytes(tail[2:], "big")
        entry = Entry(peer, source, target, *ports, tally.protocol, packets, size, tally.began, tally.seen, accepted, tally.rule)
        self._entries.append(entry)
        tally.told, tally.began = (tally.packets, tally.packet_bytes), tally.seen
        return True

    def take(self) -> list[Entry]:
        """What there is."""
        for (peer, _), tally in self._refused.items():
            self.note(peer, tally, accepted=False)
        self._refused.clear()
        taken, self._entries = self._entries, []
        return taken
