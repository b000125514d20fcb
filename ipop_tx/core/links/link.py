"""A link: the secure association of two nodes, with its sessions and the paths that carry it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ipop_tx.core.routing import Table, place_of
from ipop_tx.errors import LocalMisuse
from ipop_tx.interfaces import ISession
from ipop_tx.values import Endpoint, Ident, Peer
from ipop_tx.wire.datagram import DATAGRAM_LIMIT

BASE = DATAGRAM_LIMIT
"""MTU of a path that has not shown more. An MTU of a path always means: bytes of UDP payload of the largest datagram that arrives whole."""
CROSSING = 1.0
"""Seconds after which both ends of two sessions that crossed must have settled on the same one."""
TWIN_WATCH = 180.0
TWIN_RELAPSES = 2
"""So many returns to an older session, none more than `TWIN_WATCH` seconds after the one before, make a member two."""
UNNEEDED = "no longer needed"
"""Reason of a link's end to which both ends have agreed: nobody has died."""
LINGER = 60.0
"""Seconds for which the sessions of such a link still open what comes late."""
NEVER = float("-inf")
"""The moment of what has not happened yet."""
KEY_LIFE = 180.0
"""Seconds from the birth of a session until its keys are dead."""


class Route(NamedTuple):
    """A path over the ring: to `destination`, by way of the members in `via`, in order, as far as any are named."""

    destination: Ident
    via: tuple[Ident, ...] = ()


PathKey = Endpoint | Route

DETOURS = {"udp": 0, "mem": 0, "tls": 1}
OTHER_DETOURS = 2


def detour(endpoint: Endpoint) -> int:
    """How much of a makeshift a direct path is: 0 for UDP. One that is less of it is always preferred, whatever the round trips."""
    return DETOURS.get(endpoint.carrier, OTHER_DETOURS)


ONION_PATIENCE = 4.0


def patience(path: PathKey) -> float:
    """How many times longer a first answer by a path may take: Tor builds a circuit before it carries anything."""
    return ONION_PATIENCE if isinstance(path, Endpoint) and path.carrier == "onion" else 1.0


@dataclass(slots=True, eq=False)
class Keyed:
    """A session in use. `confirmed`: the peer has shown that it holds the keys too."""

    session: ISession
    born: float
    confirmed: bool
    renew_until: float = 0.0
    """Until when it may be renewed without that certificates are checked."""
    renewed: bool = False
    """Whether it was made by a renewal, not by a handshake."""
    child: Keyed | None = None
    """The session that renews it."""
    heard: float = 0.0
    """When the peer last sent a control message by it."""
    path: PathKey | None = None
    """Where that came from."""


@dataclass(slots=True)
class DirectPath:
    """A direct path whose far end answered our challenge."""

    rtt: float
    """Smoothed, in seconds; 0.0 until a challenge was answered."""
    answered: float
    mtu: int = BASE
    """Of the way there: the other direction is the peer's business."""
    search_due: float = 0.0
    """When `PathMtu` may look for a greater one."""
    tending: object = None
    """The task of `PathMtu` that has this path in its care."""
    doubted: bool = False
    """Whether `mtu` is being tested just now."""


class Link:
    """One peer, its sessions, its paths. Owned and changed by `Links` alone."""

    __slots__ = (
        "active",
        "alarm",
        "answered",
        "asked",
        "credit",
        "direct",
        "first_hop",
        "frames",
        "heard",
        "ident",
        "initiated",
        "parted",
        "peer",
        "place",
        "placed",
        "relapse_at",
        "relapses",
        "relay",
        "relays",
        "released",
        "route",
        "rtt",
        "sessions",
        "since",
        "table",
        "up",
        "used",
        "wanted",
    )

    def __init__(self, peer: Peer, now: float, initiated: bool) -> None:
        self.ident = peer.ident
        self.peer = peer
        self.place = place_of(peer.ident)
        self.table: Table | None = None
        """The peer's own links, as far as it has told."""
        self.since = now
        self.initiated = initiated
        self.up = True
        self.parted = False
        """Whether it has ended because neither end needed it."""
        self.used = now
        """When it last carried something for its own sake: traffic, or a question that is not part of its upkeep or of the ring's."""
        self.frames = NEVER
        """When frames were last known to go over it, either way."""
        self.released = NEVER
        """When we last told the peer that it may end the link."""
        self.wanted = NEVER
        """Until when the peer is believed to need it."""
        self.placed = False
        """Whether the peer has said that it has its place on the ring, so that it can pass things on."""
        self.heard = now
        """When the control plane last unsealed something of this peer that came by the active path; over the ring, whichever way."""
        self.sessions: list[Keyed] = []
        self.direct: dict[Endpoint, DirectPath] = {}
        self.route = Route(peer.ident)
        self.first_hop: Ident | None = None
        """The member that took our last relayed datagram."""
        self.relay: Ident | None = None
        """The member that was chosen to relay; None for a direct link, and until one has been measured."""
        self.relays: dict[Ident, float] = {}
        """Members through whom the peer has answered lately, and the smoothed round trip in seconds: see `Relays`."""
        self.active: PathKey = self.route
        self.rtt = 0.0
        """Smoothed round trip of the active path in seconds; 0.0 while unmeasured."""
        self.alarm = False
        """Whether the active path is being doubted just now."""
        self.relapses = 0
        self.relapse_at = NEVER
        """How often, and when last, the peer has gone back to an older session."""
        self.credit = 0
        """Bytes that may go to endpoints which the peer has named and which have not answered: see `Consent`."""
        self.answered = now
        """When the peer last answered a challenge of ours on the active path."""
        self.asked = NEVER
        """When the peer last challenged the way over the ring."""

    def forget_route(self) -> None:
        """Nobody in particular relays any more: the ring may take any way."""
        self.route = Route(self.ident)
        self.active = self.active if self.is_direct else self.route

    @property
    def is_direct(self) -> bool:
        """Whether the active path is direct."""
        return not isinstance(self.active, Route)

    def improves(self, endpoint: Endpoint) -> bool:
        """Whether a path to `endpoint` would be better in kind than the active one."""
        return isinstance(self.active, Route) or detour(endpoint) < detour(self.active)

    @property
    def settled(self) -> bool:
        """Whether no path would be better in kind than the active one."""
        return not isinstance(self.active, Route) and not detour(self.active)

    @property
    def mtu(self) -> int:
        """MTU of the active path."""
        known = None if isinstance(self.active, Route) else self.direct.get(self.active)
        return known.mtu if known is not None else BASE

    @property
    def session(self) -> ISession:
        """The session to seal with: the preferred one that the peer has confirmed, else the preferred one."""
        for keyed in self.sessions:
            if keyed.confirmed:
                return keyed.session
        if not self.sessions:
            raise LocalMisuse("the link has no session")
        return self.sessions[0].session

    @property
    def confirmed(self) -> bool:
        """Whether the peer holds the keys of a session for certain: if not, the last flight of the handshake may still be on its way."""
        return any(keyed.confirmed for keyed in self.sessions)

    def add_session(self, session: ISession, now: float, renew_until: float = 0.0) -> None:
        """Put the session of a handshake first, unless it crossed with another one of the same moment whose tag is greater.

        Two sessions that the same side began have not crossed: that side has restarted.
        """
        last = self.sessions[0] if self.sessions else None
        crossed = last is not None and not last.renewed and now - last.born < 5.0 and last.session.initiated != session.initiated
        at = 1 if crossed and self.sessions[0].session.tag > session.tag else 0
        self.sessions.insert(at, Keyed(session, now, session.initiated, renew_until))

    def follow(self, parent: Keyed, session: ISession, now: float) -> Keyed:
        """Put a session that renews `parent` first, or behind a newer one: that is a handshake's, which counts for more at both ends."""
        parent.child = child = Keyed(session, now, False, parent.renew_until, renewed=True)
        self.sessions.insert(0 if self.sessions[0] is parent else 1, child)
        return child

    def confirm(self, session: ISession, now: float) -> bool:
        """The peer used `session`; True when that changes which session we send with, or is the first sign that the peer has the keys.

        A peer that goes on using only the younger of two sessions that seemed to cross has restarted and lost the older one.
        """
        before, confirmed = self.session, self.confirmed
        used = next((keyed for keyed in self.sessions if keyed.session is session), None)
        if used is not None:
            used.confirmed, used.heard = True, now
            preferred = next(keyed for keyed in self.sessions if keyed.session is self.session)
            if preferred.heard < used.born and preferred.born < used.born < now - CROSSING:
                self.sessions.sort(key=lambda keyed: keyed is not used)
        return self.session is not before or self.confirmed != confirmed

    def twin_places(self, session: ISession, path: PathKey, now: float) -> tuple[PathKey, PathKey] | None:
        """The two places from which the peer speaks, when it must be two machines.

        One machine that has used a younger session for a while never goes back to an older one; two with one identity do so all the time.
        """
        used = next((keyed for keyed in self.sessions if keyed.session is session), None)
        if used is None:
            return None
        used.path = path
        for other in self.sessions:
            if used.born < other.born and other.heard > other.born + CROSSING and other.heard < now - CROSSING:
                if now - self.relapse_at > CROSSING:
                    self.relapses = self.relapses + 1 if now - self.relapse_at < TWIN_WATCH else 1
                    self.relapse_at = now
                return (path, other.path or path) if self.relapses >= TWIN_RELAPSES else None
        return None

    def retire(self, now: float) -> list[ISession]:
        """Take out the sessions whose keys are dead, and all but the first three."""
        keep = [keyed for keyed in self.sessions if now < keyed.born + KEY_LIFE][:3]
        gone = [keyed.session for keyed in self.sessions if keyed not in keep]
        self.sessions = keep
        return gone

    def measured(self, rtt: float) -> None:
        """Take a round trip of the active path into the smoothed value (RFC 6298's weights)."""
        self.rtt = rtt if self.rtt == 0.0 else 0.875 * self.rtt + 0.125 * rtt
