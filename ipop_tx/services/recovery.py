"""Break-glass at the authority: find the shards that have lost their majority, and order them to be founded anew."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from ipop_tx.core import commands as c
from ipop_tx.core import events as e
from ipop_tx.core.dht.recovery import Founded, Loss
from ipop_tx.core.dht.replica import REPLICAS
from ipop_tx.identity.keys import PrivateKey
from ipop_tx.log import Logger
from ipop_tx.services.chord import ChordProtocol
from ipop_tx.services.orders import authority_key, signed, to_file
from ipop_tx.values import Ident, short
from ipop_tx.wire import messages as m


class Recovery:
    """What `ipop network recover` asks of the daemon that holds the authority's key."""

    _log = Logger()

    def __init__(
        self,
        protocol: ChordProtocol,
        key: Callable[[], PrivateKey | None],
        name_of: Callable[[Ident], str],
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._protocol = protocol
        self._key = key
        self._name_of = name_of
        self._wall = wall
        protocol.on(e.ViewsFounded, self._ordered)

    def _ordered(self, event: e.ViewsFounded) -> None:
        members, shards = ",".join(short(ident) for ident in event.members), len(event.shards)
        self._log.warn("views_founded shards={shards} view={view} members={members}", shards=shards, view=event.number, members=members)

    async def recover(self, confirmed: bool) -> dict[str, Any]:
        """The shards that cannot be read, and, if that is confirmed, what came of founding them anew. Raises `LocalMisuse`."""
        key = authority_key(self._key(), "found views anew", "ipop network recover")
        losses: list[Loss] = await self._protocol.submit(c.Survey())
        founded: list[Founded] = []
        if confirmed and losses:
            order = self._order(key, losses)
            if not self._protocol.node.is_ordered(order):
                return {"lost": [self._told(loss) for loss in losses], "founded": [], "order": to_file([order])}
            founded = await self._protocol.submit(c.CarryOut(order))
        return {"lost": [self._told(loss) for loss in losses], "founded": [one._asdict() for one in founded]}

    def _order(self, key: PrivateKey, losses: list[Loss]) -> m.Order:
        """For those losses: the number is the time, which no view reaches by changing once in a while, unless a view is later already."""
        node, wall = self._protocol.node, int(self._wall())
        number = max([wall, *(loss.number + 1 for loss in losses)])
        shards = tuple(loss.shard for loss in losses)
        return signed(key, m.Order(node.network.ident, number, self._members(losses), shards, os.urandom(16), wall))

    def _members(self, losses: list[Loss]) -> tuple[Ident, ...]:
        """This node, and of those that are linked the ones that have most of the copies. The views then move to where they belong."""
        node = self._protocol.node
        copies = Counter(member for loss in losses for member in loss.copies)
        linked = sorted(node.links.by_ident, key=lambda ident: (-copies[ident], ident))
        return (node.ident, *linked[: REPLICAS - 1])

    def _told(self, loss: Loss) -> dict[str, Any]:
        own = self._protocol.node.ident
        named = {member: "this node" if member == own else self._name_of(member) for member in loss.members}
        missing = [named[member] for member in loss.members if member not in loss.reached]
        return {"shard": loss.shard, "view": loss.number, "members": list(named.values()), "missing": missing, "copies": len(loss.copies)}
