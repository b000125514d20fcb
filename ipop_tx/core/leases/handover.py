"""A guest that has moved to another node, as virtual machines do, takes its address along.

A lease names its guest. So a node that is to serve a guest finds out who has served it, and asks for the address. That node looks whether
the guest is still beside it, which is the driver's part; only if it is not, the lease ends there, and the new node makes one of its own.
"""

from __future__ import annotations

from ipaddress import IPv4Address

from ipop_tx.core.events import HandOverAsked
from ipop_tx.core.leases.lease import Leases
from ipop_tx.core.links.link import Link
from ipop_tx.core.links.rpc import Rpc
from ipop_tx.core.runtime import Runtime
from ipop_tx.core.tasks import Future
from ipop_tx.errors import Conflict, IpopError
from ipop_tx.values import Ident
from ipop_tx.wire import messages as m


class HandOver:
    """Asks for leases of guests, and is asked."""

    def __init__(self, leases: Leases, rpc: Rpc, runtime: Runtime) -> None:
        self._leases = leases
        self._rpc = rpc
        self._runtime = runtime
        self._asked: set[bytes] = set()
        """Holders about whom the driver is thinking."""
        leases.former = self.ask
        rpc.serve(m.HandOver, self._ask)

    async def ask(self, ident: Ident, address: bytes, holder: bytes) -> bool:
        """Ask the node that has leased an address (4 bytes) to a guest; whether it has given it up."""
        try:
            await self._rpc.call(ident, m.HandOver(address, holder))
        except IpopError:
            self._runtime.count("handover_refused")
            return False
        return True

    def _ask(self, link: Link, body: m.HandOver) -> Future[m.Answer]:
        lease = self._leases.guests.get(body.holder)
        if lease is None or lease.address != body.address:
            raise Conflict(f"{IPv4Address(body.address)} is not leased to such a guest here")
        if body.holder in self._asked:
            raise Conflict("another node asks for that guest just now")
        self._asked.add(body.holder)
        verdict, answer = Future[None](), Future[m.Answer]()
        verdict.then(lambda done: self._decided(body.holder, done, answer))
        self._runtime.emit(HandOverAsked(link.ident, body.address, body.holder, verdict))
        return answer

    def _decided(self, holder: bytes, done: Future[None], answer: Future[m.Answer]) -> None:
        self._asked.discard(holder)
        if done.error is not None:
            answer.fail(done.error)
        else:
            answer.succeed(m.Done())
