"""What a node knows of its own reachability, and what of it peers are told."""

from __future__ import annotations

from dataclasses import dataclass, field

from ipop_tx.core.links.link import BASE, DirectPath, detour
from ipop_tx.core.links.makeshift import MOST_OFFERED
from ipop_tx.core.natkind import Reach
from ipop_tx.values import Endpoint, Ident

USUAL_HOPS = 2
"""Hop limit of a datagram that passes one router and dies at the next."""
CANDIDATES = 8
"""Most endpoints offered to a peer, and most that we challenge for one peer at once."""


def version_of(endpoint: Endpoint) -> int:
    """Whether an endpoint is reached by IPv4 or IPv6: 4 or 6."""
    return 6 if ":" in endpoint.host else 4


@dataclass(slots=True)
class Facts:
    """Endpoints of this node, and who says so."""

    local: list[Endpoint] = field(default_factory=list)
    """Those of this machine's interfaces."""
    mapped: list[Endpoint] = field(default_factory=list)
    """Those that lead here because somebody has told a router so."""
    carries: dict[str, int] = field(default_factory=lambda: {"udp": 0})
    """The schemes that our transports reach, and the largest datagram of each; 0: it depends on the path."""
    reach: Reach = field(default_factory=Reach)
    """What our NAT does, as far as known."""
    hops: int = 0
    """The least hop limit with which a datagram opens our NATs; 0 while unknown."""
    seen: dict[Ident, tuple[Endpoint, str]] = field(default_factory=dict)
    """Under which endpoint each peer saw us last, and at which address that peer is."""

    def forget(self, witness: Ident) -> None:
        """A witness is gone."""
        self.seen.pop(witness, None)

    def seen_by(self, witness: Ident) -> Endpoint | None:
        """Under which endpoint a peer saw us last."""
        return self.seen[witness][0] if witness in self.seen else None

    def observed(self) -> dict[Endpoint, int]:
        """The endpoints at which peers see us, most witnesses first. Several peers at one address are one witness."""
        witnesses: dict[Endpoint, set[str]] = {}
        for endpoint, host in self.seen.values():
            witnesses.setdefault(endpoint, set()).add(host)
        return {endpoint: len(witnesses[endpoint]) for endpoint in sorted(witnesses, key=lambda one: (-len(witnesses[one]), one))}

    def versions(self) -> set[int]:
        """Over which versions of IP peers see us; empty while nobody does."""
        return {version_of(endpoint) for endpoint, _ in self.seen.values()}

    def opening_hops(self) -> int:
        """With which hop limit a datagram opens what stands before us, and gets not much further: most have one router, or none."""
        return self.hops or (1 if any(endpoint in self.local for endpoint in self.observed()) else USUAL_HOPS)

    def candidates(self) -> list[Endpoint]:
        """What to offer: our own endpoints, then those that peers saw, most witnesses first."""
        makeshifts = list(dict.fromkeys(endpoint for endpoint in (*self.mapped, *self.local) if detour(endpoint)))[:MOST_OFFERED]
        mapped, local = ([endpoint for endpoint in some if not detour(endpoint)] for some in (self.mapped, self.local))
        seen = [endpoint for endpoint in self.observed() if not detour(endpoint)]
        half = CANDIDATES // 2
        ordered = list(dict.fromkeys([*mapped[: half // 2], *local[:half], *seen, *mapped, *local]))
        return [*ordered[: CANDIDATES - len(makeshifts)], *makeshifts]

    def fresh(self, endpoint: Endpoint, rtt: float, now: float) -> DirectPath:
        """What is known at first of a path that has answered."""
        return DirectPath(rtt, now, self.carries.get(endpoint.carrier, 0) or BASE)
