"""What `ipop lease` tells and does: the address of this node and those of its guests."""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import Any

from twisted.internet.defer import Deferred

from ipop_tx.core import commands as c
from ipop_tx.services.chord import ChordProtocol
from ipop_tx.services.control import Route
from ipop_tx.services.guests import GuestService


class LeaseRoutes:
    """`GET /leases` and `POST /lease/renew`."""

    def __init__(self, protocol: ChordProtocol, guests: GuestService | None) -> None:
        self._protocol = protocol
        self._guests = guests

    def routes(self) -> dict[str, Route]:
        """For the control socket."""
        return {"GET /leases": lambda arguments: self.told(), "POST /lease/renew": lambda arguments: Deferred.fromCoroutine(self._renew())}

    def told(self) -> dict[str, Any]:
        """This node's, then its guests'."""
        node = self._protocol.node
        own = node.leases.own
        mine = {
            "address": str(IPv4Address(own.address)) if own.address else None,
            "name": own.name,
            "state": "bound" if own.address else "waiting",
            "expires_s": max(0, round(own.until - node.runtime.now)) if own.address else None,
            "assigned": bool(own.assigned),
            "problem": own.problem or own.name_problem,
        }
        return {"own": mine, "guests": self._guests.status() if self._guests is not None else []}

    async def _renew(self) -> dict[str, Any]:
        """Raises `LocalMisuse` without a lease, `Conflict`, `Unavailable`."""
        return {"address": str(IPv4Address(await self._protocol.submit(c.RenewLease())))}
