"""How often an invitation was used: registers decide, so that it does not matter where it is used, or at how many places at once.

An invitation for N machines has N registers, each created once, by whichever member lets a machine in: it names the machine's key. A
machine tries them in an order that its key fixes, so one that comes again finds its own before it could take another.
"""

from __future__ import annotations

from ipop_tx.core import commands as c
from ipop_tx.core.dht.records import key_of
from ipop_tx.errors import Conflict, InvitationRefused
from ipop_tx.identity.invitation import InvitationRecord
from ipop_tx.services.chord import ChordProtocol
from ipop_tx.values import key_digest

KEPT_AFTER_EXPIRY = 30 * 86400
"""Seconds for which an expired or used invitation is remembered, to say so."""


class InvitationUses:
    """Claims uses of invitations."""

    def __init__(self, protocol: ChordProtocol) -> None:
        self._protocol = protocol
        self._network = protocol.node.network

    async def claim(self, record: InvitationRecord, public: bytes, wall: float) -> None:
        """Use an invitation for the machine with this key (compressed point), once for good. Raises `InvitationRefused` if none is left.

        The same key may come again: its answer may have been lost.
        """
        first = int.from_bytes(key_digest(public)[:8], "big")
        for step in range(record.uses):
            if await self._take(record, (first + step) % record.uses, public, wall):
                return
        times = "already" if record.uses == 1 else f"by {record.uses} machines, as many as it admits,"
        raise InvitationRefused(f"this invitation has been used {times}".rstrip(","), "ask for a new one")

    async def _take(self, record: InvitationRecord, number: int, public: bytes, wall: float) -> bool:
        key = key_of("invitation-use", self._network.ident, record.public + number.to_bytes(4, "big"))
        used = await self._protocol.submit(c.Get(key)) if record.uses > 1 else None
        if used is None:
            try:
                await self._protocol.submit(c.Create(key, public, max(0.0, record.expires - wall) + KEPT_AFTER_EXPIRY))
            except Conflict:
                used = await self._protocol.submit(c.Get(key))
            else:
                return True
        return used is not None and bytes(used.value) == public
