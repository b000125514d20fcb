"""What a node tells its driver."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ipop_tx.values import Endpoint, Ident
from ipop_tx.wire.messages import Revocation


@dataclass(frozen=True, slots=True)
class LinkUp:
    """A link to a member is up; its session and path are to be had from `Node.link`."""

    ident: Ident


@dataclass(frozen=True, slots=True)
class LinkChanged:
    """A link has another session, another active path, or its path another MTU."""

    ident: Ident


@dataclass(frozen=True, slots=True)
class LinkDown:
    """A link is gone; `reason` is for the log."""

    ident: Ident
    reason: str


@dataclass(frozen=True, slots=True)
class PeerRejected:
    """A handshake ended in refusal; `reason` is a sentence."""

    source: str
    reason: str


@dataclass(frozen=True, slots=True)
class Reported:
    """A member tells which of our records it has opened: those of the session with this receiver index (its own)."""

    ident: Ident
    index: int
    highest: int
    opened: int
    failed: int


@dataclass(frozen=True, slots=True)
class Joined:
    """This node has its place on the ring."""


@dataclass(frozen=True, slots=True)
class RingChanged:
    """The neighbours on the ring are others than before."""


@dataclass(frozen=True, slots=True)
class BroadcastReceived:
    """A member told everybody. Who began it is not known: what must be believed has to be signed inside."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class LookupDisagreed:
    """Members asked over disjoint ways named different owners of a key: the ring is healing, or somebody lies.

    `owner` is the one that most named, `dissent` the first members of the ways by which another was named.
    """

    key: bytes
    owner: Ident
    dissent: tuple[Ident, ...]


@dataclass(frozen=True, slots=True)
class Observed:
    """Peers see us at other endpoints than before."""


@dataclass(frozen=True, slots=True)
class SideWanted:
    """Open a UDP socket on a port of its own and call it `number`: settle `port` (a core future) with its port, or fail it."""

    number: int
    port: Any


@dataclass(frozen=True, slots=True)
class SideSend:
    """Send a datagram by one of those sockets."""

    number: int
    endpoint: Endpoint
    datagram: bytes


@dataclass(frozen=True, slots=True)
class SendNear:
    """Send a datagram that at most so many hops pass on, by the socket that the endpoint names: it opens our NAT and gets no further.

    It goes before whatever `poll_transmit` gives after it.
    """

    endpoint: Endpoint
    datagram: bytes
    hops: int


@dataclass(frozen=True, slots=True)
class SideKept:
    """One of those sockets carries a link from now on: treat it as the transport's own. Its endpoints are `udp@NUMBER:...`."""

    number: int


@dataclass(frozen=True, slots=True)
class SideDone:
    """Close one of those sockets, if it was opened."""

    number: int


@dataclass(frozen=True, slots=True)
class NatChecked:
    """A check of our NAT has ended (`Node.nat.check.facts`), or more is known of how long its mappings live (`Node.nat.life.lifetime`)."""


@dataclass(frozen=True, slots=True)
class LeaseGained:
    """This node holds an address now (4 bytes): for itself, or for the guest that `holder` names."""

    address: bytes
    holder: bytes = b""


@dataclass(frozen=True, slots=True)
class LeaseLost:
    """This node holds an address no longer; `reason` is a sentence, `holder` as in `LeaseGained`."""

    address: bytes
    reason: str
    holder: bytes = b""


@dataclass(frozen=True, slots=True)
class HandOverAsked:
    """A member says that a guest of ours, who has this address (4 bytes), is behind it now: see whether that can be, and settle `reply`.

    With None, once the address has been given up; with an `IpopError`, if the guest is still here.
    """

    ident: Ident
    address: bytes
    holder: bytes
    reply: Any


@dataclass(frozen=True, slots=True)
class LeaseContested:
    """Another node used an address of ours (4 bytes, `holder` as in `LeaseGained`) until now, and has given it up."""

    address: bytes
    ident: Ident
    holder: bytes = b""


@dataclass(frozen=True, slots=True)
class AddressMoved:
    """An IPv4 address (4 bytes) that had been resolved to `former` belongs to `owner` now; None: to nobody."""

    address: bytes
    former: Ident
    owner: Ident | None


@dataclass(frozen=True, slots=True)
class ViewsFounded:
    """The authority has ordered the view `number` of some shards, with these members; older ones are over."""

    shards: tuple[int, ...]
    number: int
    members: tuple[Ident, ...]


@dataclass(frozen=True, slots=True)
class KeyRevoked:
    """The authority trusts a key no more; the driver keeps that before anybody is told of it."""

    order: Revocation


@dataclass(frozen=True, slots=True)
class CharterAdopted:
    """The authority is another one from now on; the driver keeps that (`m.Charter`)."""

    charter: Any


@dataclass(frozen=True, slots=True)
class SettingsChanged:
    """The network has newer settings (`m.Settings`), signed by its authority."""

    settings: Any


@dataclass(frozen=True, slots=True)
class EnrolRequested:
    """Somebody with an invitation asks for admission: answer by settling `reply` (a core future) with `Enrolled` or `Failed`."""

    request: Any
    by_guest: bool
    reply: Any


@dataclass(frozen=True, slots=True)
class RelationAsked:
    """A member asks what it is to us: answer by settling `reply` (a core future) with a `Relation` or `Failed`."""

    ident: Ident
    request: Any
    reply: Any


@dataclass(frozen=True, slots=True)
class FlowsAsked:
    """A member asks for the flow log: answer by settling `reply` (a core future) with `FlowsTold` or `Failed`."""

    ident: Ident
    request: Any
    reply: Any


@dataclass(frozen=True, slots=True)
class ReadmitRequested:
    """A member's certificate is to be renewed: answer by settling `reply` (a core future) with `Readmitted` or `Failed`.

    `key` is the digest of the key that the asker has proven; `guest` whether it has proven nothing else.
    """

    request: Any
    key: bytes
    guest: bool
    reply: Any


@dataclass(frozen=True, slots=True)
class Fault:
    """A bug in ourselves: the traceback, for the log."""

    text: str
