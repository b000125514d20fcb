"""How much goes to endpoints that a peer has named and that have not answered: a member must not be able to aim us at a third party.

A path challenge asks an endpoint for its consent, so it is the only thing that goes to one before its answer. Three limits hold for it:

- bytes: `FACTOR` times what the peer itself has sent us, authenticated; up to `SAVED` may be left from before;
- targets: `TARGETS` addresses a minute for each peer;
- one address: `AT_ONCE` challenges, then `A_SECOND`, whoever names it. Whole sites are behind one address, so this is no small number.

What is over the limit is left out; the next offer of an honest peer pays for itself again.
"""

from __future__ import annotations

from ipop_tx.core.bucket import Bucket
from ipop_tx.core.links.link import Link, detour
from ipop_tx.core.runtime import Runtime
from ipop_tx.values import Endpoint, Ident

FACTOR = 3
"""RFC 9000, 8.1, has the same."""
OVERHEAD = 60
"""Bytes of a datagram around the payload of a control message: IPv4 and UDP headers 28, our own header and tag 32."""
CHALLENGE = OVERHEAD + 16
"""Bytes of a challenge."""
CONNECTING = 300
"""Bytes of the vain attempts at a connection, where a challenge takes one: five SYNs."""
GREETED = 1200
"""Bytes that a peer has sent at least in a handshake."""
SAVED = 12000
TARGETS = 16
MINUTE = 60.0
AT_ONCE, A_SECOND = 512, 32.0
MOST_ADDRESSES = 1024
"""So many addresses are remembered before those are forgotten to which nothing was sent lately."""


class Consent:
    """Counts for all links."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._targets: dict[Ident, dict[str, float]] = {}
        """For each peer the addresses that were challenged for it, and when first."""
        self._addresses: dict[str, Bucket] = {}

    def may_ask(self, link: Link, endpoint: Endpoint) -> bool:
        """Whether a challenge may go to an endpoint, which is then taken to be sent."""
        if endpoint in link.direct:
            return True
        price = CHALLENGE + (CONNECTING if detour(endpoint) else 0)
        if link.credit < price or not self._is_target(link.ident, endpoint.host) or not self._of(endpoint.host).take(self._runtime.now):
            self._runtime.count("challenge_withheld")
            return False
        link.credit -= price
        return True

    def _is_target(self, ident: Ident, host: str) -> bool:
        now = self._runtime.now
        known = self._targets.setdefault(ident, {})
        for old in [old for old, since in known.items() if now - since > MINUTE]:
            del known[old]
        if host not in known and len(known) >= TARGETS:
            return False
        known.setdefault(host, now)
        return True

    def _of(self, host: str) -> Bucket:
        if host not in self._addresses and len(self._addresses) >= MOST_ADDRESSES:
            now = self._runtime.now
            self._addresses = {known: bucket for known, bucket in self._addresses.items() if not bucket.full(now)}
        return self._addresses.setdefault(host, Bucket(AT_ONCE, A_SECOND))

    def parted(self, link: Link) -> None:
        """Its targets stay for their minute: who comes back at once has no more than before."""
        ident = link.ident
        self._runtime.after(MINUTE, lambda: self._forget(ident))

    def _forget(self, ident: Ident) -> None:
        if all(self._runtime.now - since >= MINUTE for since in self._targets.get(ident, {}).values()):
            self._targets.pop(ident, None)


def earn(link: Link, payload: int) -> None:
    """A peer has sent a datagram with so many bytes in it."""
    link.credit = min(SAVED, link.credit + FACTOR * (payload + OVERHEAD))
