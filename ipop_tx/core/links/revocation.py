"""Members that are thrown out: revocations of their keys, signed by the authority, known to everybody as soon as can be.

Whoever hears of one for the first time keeps it, ends its links with that key, and tells all that it is linked to, but for whom it heard
it from: a flood, by 30 short messages of each member, once. It needs no order on the ring, so it gets through when that is broken, and
around members that would rather not pass it on. Whoever was away then learns it on contact: greetings carry a digest of all that is known,
and where two differ each asks the other for its list.

What comes of it: no handshake with that key or with a certificate that it has signed succeeds (`is_revoked` is asked by the
credentials); its links, relayed ones too, are over; the registers that it has filled count as empty (`core.dht`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Protocol

from ipop_tx.core.events import KeyRevoked
from ipop_tx.core.links.link import Link
from ipop_tx.core.links.links import Links
from ipop_tx.core.links.rpc import Rpc
from ipop_tx.core.runtime import Runtime
from ipop_tx.errors import LocalMisuse
from ipop_tx.values import Peer
from ipop_tx.wire import messages as m

MOST = 65536
"""Revocations that are kept: more than networks have members. An authority that gives more has lost its key."""
DIGEST_BYTES = 8
REASON = "its key was revoked by the authority"


class IsAuthentic(Protocol):
    """Whether the authority has signed a revocation; with `ever`, by keys that may count no more."""

    def __call__(self, order: m.Revocation, ever: bool = False) -> bool: ...


class Revocations:
    """All revocations of the network that this node knows of."""

    def __init__(self, links: Links, rpc: Rpc, runtime: Runtime, is_authentic: IsAuthentic) -> None:
        self.by_key: dict[bytes, m.Revocation] = {}
        self.digest = b""
        """Of all that is in `by_key`; empty while there are none."""
        self.on_revoked: Callable[[], None] = lambda: None
        """Called when something was revoked: what is remembered of owners may be wrong."""
        self._outdated: set[bytes] = set()
        """Keys whose revocation nobody would believe any more who does not know it."""
        self._links = links
        self._rpc = rpc
        self._runtime = runtime
        self._is_authentic = is_authentic
        rpc.serve(m.Revoked, self._told)
        rpc.serve(m.WhichRevoked, self._asked)

    def is_revoked(self, key: bytes) -> bool:
        """Whether the key with this digest (`values.key_digest`) is trusted no more."""
        order = self.by_key.get(key)
        return order is not None and not order.since

    def may_admit(self, key: bytes) -> bool:
        """Whether a key that was appointed to admit members still is."""
        return key not in self.by_key

    def is_out(self, peer: Peer) -> bool:
        """Whether a member is none any more: because of its own key, or of whoever has admitted it, and when."""
        order = self.by_key.get(peer.admitted_by)
        return self.is_revoked(peer.key) or (order is not None and peer.begun >= order.since)

    def restore(self, orders: Iterable[m.Revocation]) -> None:
        """What was kept on disk; what the authority has not signed is left out."""
        self._keep([order for order in orders if self._is_authentic(order, ever=True)])

    def reweigh(self) -> None:
        """Other keys sign for the authority now. What earlier ones have signed stays in force, is told to nobody, and gives way to the
        same with a signature that counts.
        """
        self._keep(())

    def revoke(self, order: m.Revocation) -> int:
        """Carry an order out and tell everybody; gives how many links that ended. Raises `LocalMisuse` if it is not the authority's."""
        return self._take([order], None)

    def compare(self, link: Link, digest: bytes) -> None:
        """A member has told the digest of what it knows."""
        if digest != self.digest and digest:
            self._runtime.background(self._learn(link))

    async def _learn(self, link: Link) -> None:
        after = b""
        while True:
            answer = await self._rpc.on_link(link, m.WhichRevoked(after))
            if not isinstance(answer, m.Revoked) or not answer.orders:
                return
            self._take(answer.orders, link)
            if not answer.more or answer.orders[-1].key <= after:
                return
            after = answer.orders[-1].key

    def _told(self, link: Link, body: m.Revoked) -> m.Done:
        self._take(body.orders, link)
        return m.Done()

    def _asked(self, link: Link, body: m.WhichRevoked) -> m.Revoked:
        rest = sorted(key for key in self.by_key.keys() - self._outdated if key > body.after)
        return m.Revoked(tuple(self.by_key[key] for key in rest[: m.PAGE]), len(rest) > m.PAGE)

    def _take(self, orders: Iterable[m.Revocation], source: Link | None) -> int:
        fresh = {order.key: order for order in orders if self._is_news(order)}
        if not fresh or len(self.by_key) + len(fresh) > MOST:
            return 0
        if not all(self._is_authentic(order) for order in fresh.values()):
            self._runtime.count("revocation_forged")
            raise LocalMisuse("a revocation must be signed by this network's authority")
        self._keep(fresh.values())
        for order in fresh.values():
            self._runtime.emit(KeyRevoked(order))
        return self._carry_out(tuple(fresh.values()), source)

    def _is_news(self, order: m.Revocation) -> bool:
        """What is stricter than what is known of the key counts: first the right to admit may be withdrawn, then the key revoked."""
        known = self.by_key.get(order.key)
        if known is not None and order.since == known.since:
            return order.key in self._outdated and self._is_authentic(order)
        return known is None or order.since < known.since

    def _keep(self, orders: Iterable[m.Revocation]) -> None:
        self.by_key |= {order.key: order for order in orders}
        self._outdated = {key for key, order in self.by_key.items() if not self._is_authentic(order)}
        told = sorted(self.by_key.keys() - self._outdated)
        all_told = b"".join(key + self.by_key[key].since.to_bytes(8, "big") for key in told)
        self.digest = hashlib.sha256(all_told).digest()[:DIGEST_BYTES] if told else b""

    def _carry_out(self, orders: tuple[m.Revocation, ...], source: Link | None) -> int:
        """Tell everybody, those concerned too: they shall know why nobody answers them any more. Then end the links with those."""
        for link in self._links:
            if link is not source:
                self._runtime.background(self._tell(link, orders))
        over = [link for link in self._links if self.is_out(link.peer)]
        for link in over:
            self._links.drop(link, REASON)
        self.on_revoked()
        return len(over)

    async def _tell(self, link: Link, orders: tuple[m.Revocation, ...]) -> None:
        for begin in range(0, len(orders), m.PAGE):
            await self._rpc.on_link(link, m.Revoked(orders[begin : begin + m.PAGE]))
