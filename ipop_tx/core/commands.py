"""What a node can be asked to do: the arguments of `Node.submit`. Each gives a core future of the type that its docstring names."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any

from ipop_tx.values import Endpoint, Ident
from ipop_tx.wire.messages import Order, Revocation


@dataclass(frozen=True, slots=True)
class Start:
    """Find the ring through any of these endpoints and take our place; alone if nobody is there. Future of None, when joined."""

    bootstrap: tuple[Endpoint, ...]


@dataclass(frozen=True, slots=True)
class Remember:
    """Knock on these endpoints too. Future of None, at once."""

    endpoints: tuple[Endpoint, ...]


@dataclass(frozen=True, slots=True)
class Reachable:
    """These are the endpoints under which this machine itself knows that it can be reached. Future of None.

    `endpoints` are those of its interfaces, `mapped` those that a router leads here, because it was told so by hand or by protocol.
    `carries` names the schemes of its transports and the largest datagram of each, 0 where that depends on the path; without it, the
    schemes are those of the endpoints.
    """

    endpoints: tuple[Endpoint, ...]
    mapped: tuple[Endpoint, ...] = ()
    carries: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class KeepLease:
    """Claim an address and keep it renewed. Future of None, at once; see `LeaseGained`."""

    held: bytes | None
    wish: bytes | None
    ttl: float


@dataclass(frozen=True, slots=True)
class HoldLease:
    """Claim an address for a guest and keep it renewed. Future of None, at once; see `LeaseGained`, which names the same `holder`.

    A holder is up to 64 bytes that stand for one guest for ever, for instance its DHCP client identifier. `held` is the address that
    it is known to have had, `avoid` are those that it must not get.
    """

    holder: bytes
    name: str
    wish: bytes | None
    ttl: float
    held: bytes | None = None
    avoid: frozenset[bytes] = frozenset()


@dataclass(frozen=True, slots=True)
class GiveUpLease:
    """Give the address of a guest back. Future of None."""

    holder: bytes


@dataclass(frozen=True, slots=True)
class ReleaseLease:
    """Give back our address and those of our guests. Future of None."""


@dataclass(frozen=True, slots=True)
class ClaimLease:
    """Claim an address now. Future of its 4 bytes."""

    wish: bytes | None = None


@dataclass(frozen=True, slots=True)
class RenewLease:
    """Renew the lease now. Future of its 4 bytes."""


@dataclass(frozen=True, slots=True)
class Get:
    """Future of a `Record` or None."""

    key: bytes


@dataclass(frozen=True, slots=True)
class Create:
    """Future of the `Record` written."""

    key: bytes
    value: bytes
    ttl: float


@dataclass(frozen=True, slots=True)
class CompareAndSet:
    """Future of the `Record` written."""

    key: bytes
    version: int
    value: bytes
    ttl: float


@dataclass(frozen=True, slots=True)
class Delete:
    """Future of None."""

    key: bytes
    version: int


@dataclass(frozen=True, slots=True)
class Survey:
    """Which shards can be neither read nor written. Future of a list of `recovery.Loss`."""


@dataclass(frozen=True, slots=True)
class CarryOut:
    """Found views anew by the authority's order. Future of a list of `recovery.Founded`."""

    order: Order


@dataclass(frozen=True, slots=True)
class Revoke:
    """Carry a revocation out, which the authority has signed, and tell everybody. Gives how many links of this node that has ended."""

    order: Revocation


@dataclass(frozen=True, slots=True)
class Lookup:
    """Who owns a key of the ring. Future of `Found`."""

    key: bytes


@dataclass(frozen=True, slots=True)
class LookupDisjoint:
    """Who owns a key of the ring, asked over `routes` (2 to 8) ways that share as few members as possible. Future of a `Verdict`."""

    key: bytes
    routes: int = 3


@dataclass(frozen=True, slots=True)
class Broadcast:
    """Tell everybody else on the ring. Future of None, when all whom we have handed it to have it; that is not yet everybody."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class Resolve:
    """Who owns an overlay address or a name. Future of an `Owner` or None."""

    target: str


@dataclass(frozen=True, slots=True)
class Owns:
    """Whether an IPv4 address is leased to a member; if not, the member is told, in case it believes so. Future of bool."""

    ident: Ident
    address: IPv4Address


@dataclass(frozen=True, slots=True)
class Disown:
    """A member has sent us frames for an IPv4 address that is not ours: tell it so. Future of None, at once."""

    ident: Ident
    address: IPv4Address


@dataclass(frozen=True, slots=True)
class Connect:
    """A link to a member, over the ring if need be. Future of the `Link`."""

    ident: Ident


@dataclass(frozen=True, slots=True)
class Ping:
    """One round trip to a member on whatever path its link uses. Future of seconds.

    With `size` by one datagram of so many bytes, at least 400; only a direct path that has answered before gets one.
    """

    ident: Ident
    size: int = 0


@dataclass(frozen=True, slots=True)
class Inspect:
    """What a majority says of a register, be it expired or not. Future of a `Certificate`."""

    key: bytes


@dataclass(frozen=True, slots=True)
class Punch:
    """Try now for a direct path to a linked member. Future of None."""

    ident: Ident


@dataclass(frozen=True, slots=True)
class CheckNat:
    """Find out with the help of other members what our NAT does. Future of `NatFacts`."""


@dataclass(frozen=True, slots=True)
class LearnLifetime:
    """Find out with the help of another member for how long our NAT keeps an idle mapping, within some minutes. Future of `Lifetime`."""


@dataclass(frozen=True, slots=True)
class PathLost:
    """The connection by which an endpoint was reached has ended. Future of None, at once."""

    endpoint: Endpoint


@dataclass(frozen=True, slots=True)
class AdoptSettings:
    """Take settings of the network (`m.Settings`), and tell everybody. Future of whether they are newer than ours, at once."""

    settings: Any


@dataclass(frozen=True, slots=True)
class AdoptCharter:
    """Take the next charter of the authority (`m.Charter`), and tell everybody. Future of None, at once."""

    charter: Any


@dataclass(frozen=True, slots=True)
class Suspect:
    """A member seems silent: test its path now. Future of None, at once."""

    ident: Ident


@dataclass(frozen=True, slots=True)
class DoubtMtu:
    """Large datagrams to a member seem to vanish: test now what its path carries. Future of None, at once."""

    ident: Ident


@dataclass(frozen=True, slots=True)
class DoubtRelay:
    """Traffic to a member vanishes at its relay, though challenges come through: take another one. Future of None, at once."""

    ident: Ident


@dataclass(frozen=True, slots=True)
class PathSeen:
    """The forwarding plane heard a member from another endpoint than its path's. Future of None."""

    ident: Ident
    endpoint: Endpoint


@dataclass(frozen=True, slots=True)
class Ask:
    """Send a request to a member. Future of the answer."""

    ident: Ident
    body: object


@dataclass(frozen=True, slots=True)
class Rest:
    """Look for the ring no more, until told otherwise: nobody would let us in. Future of None, at once."""

    resting: bool


@dataclass(frozen=True, slots=True)
class Petition:
    """Ask, as somebody who is no member, whoever answers at these endpoints, one after another. Future of the first good answer."""

    endpoints: tuple[Endpoint, ...]
    body: object


@dataclass(frozen=True, slots=True)
class Leave:
    """Tell the neighbours, hand over what we keep, close all links. Future of the number of shards that could not be handed over."""


@dataclass(frozen=True, slots=True)
class Report:
    """Tell a member which of its records we have opened; see `m.Opened`."""

    ident: Ident
    index: int
    highest: int
    opened: int
    failed: int
