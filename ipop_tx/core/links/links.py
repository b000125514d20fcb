"""All links of a node: how they come up, carry messages and end.

A link is made by a handshake on any path: to an endpoint (`connect_endpoint`) or over the ring (`connect`). What its sessions
unseal is handed on by kind. Which path is active is the business of `Paths`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ipop_tx.core.events import LinkChanged, LinkDown, LinkUp, PeerRejected, SendNear
from ipop_tx.core.links.consent import GREETED, earn
from ipop_tx.core.links.fragments import Reassembly, split
from ipop_tx.core.links.handshakes import Handshake, Handshakes, describe
from ipop_tx.core.links.link import KEY_LIFE, LINGER, UNNEEDED, Keyed, Link, PathKey, Route
from ipop_tx.core.links.linktable import LinkTable
from ipop_tx.core.runtime import Runtime
from ipop_tx.core.tasks import Future, settled
from ipop_tx.errors import BadDatagram, BadMessage, IpopError, PeerRefused, Unreachable
from ipop_tx.interfaces import ISession, ISessionFactory
from ipop_tx.values import Endpoint, Ident, Peer, short
from ipop_tx.wire import messages as m
from ipop_tx.wire.datagram import CONTROL, RELAY, Form, form_of, receiver_index

REKEY_AFTER = 120.0
"""Seconds after which the initiator of a session makes a fresh one; the other side waits ten seconds longer."""
REAUTHENTICATE = 3600.0
"""Seconds, give or take a fifth, after which a fresh session takes a handshake, in which certificates are checked."""
MOST_GUESTS = 16


class Relaying(Protocol):
    """What carries datagrams over the ring."""

    def originate(self, route: Route, datagram: bytes) -> None:
        """Send a datagram of ours over the ring."""

    def received(self, link: Link, payload: bytes) -> None:
        """A relayed datagram arrived on a link."""


class Links(LinkTable):
    """The links of one node, by ident and by receiver index."""

    def __init__(self, ident: Ident, runtime: Runtime, factory: ISessionFactory) -> None:
        super().__init__(ident)
        self.guests: set[Link] = set()
        """Links of those who show only an invitation; two may show the same one, so they are not known by ident."""
        self.twins: dict[Ident, str] = {}
        """Members of whom there seem to be two, a sentence each."""
        self.relaying: Relaying
        self.on_control: Callable[[Link, PathKey, m.Message], None]
        self.on_path: Callable[[Link, PathKey], None]
        self.on_stray: Callable[[Link, PathKey], None] = lambda link, path: None
        """Something to pass on came from an endpoint that is no path of its link."""
        self.renew: Callable[[Link, Keyed], object]
        """Begins the renewal of a session."""
        self._runtime = runtime
        self._by_index: dict[int, tuple[Link, ISession]] = {}
        self._reassembly = Reassembly(runtime)
        self._handshakes = Handshakes(runtime, factory, self.send_datagram, self._adopt, self._handshake_refused)

    # --- out ---------------------------------------------------------------------------------

    def send_datagram(self, path: PathKey, datagram: bytes) -> None:
        """Put a finished datagram on a path."""
        if isinstance(path, Route):
            self.relaying.originate(path, datagram)
        else:
            self._runtime.transmissions.append((path, datagram))

    def send_message(self, link: Link, message: m.Message, path: PathKey | None = None, whole: bool = False) -> None:
        """Seal a control message and send it by `path`, or by the link's active one. In fragments, if it is long, unless `whole`."""
        session, payload = link.session, m.encode(message)
        for part in [payload] if whole else split(payload, self._runtime):
            self.send_datagram(path or link.active, session.protect(CONTROL, part))

    def open_towards(self, link: Link, endpoint: Endpoint, hops: int) -> None:
        """Send a challenge that gets no further than so many hops: it opens our NAT for what comes from the endpoint."""
        challenge = m.encode(m.PathChallenge(self._runtime.rng.getrandbits(62)))
        self._runtime.emit(SendNear(endpoint, link.session.protect(CONTROL, challenge), hops))

    # --- in ----------------------------------------------------------------------------------

    def receive(self, path: PathKey, datagram: bytes) -> None:
        """A datagram from a transport or out of a relayed one."""
        form = form_of(datagram)
        if form is Form.HANDSHAKE:
            self._handshakes.receive(path, datagram)
        elif form is Form.SEALED:
            self._receive_sealed(path, datagram)
        else:
            self._runtime.count("datagram_unknown")

    def _receive_sealed(self, path: PathKey, datagram: bytes) -> None:
        entry = self._by_index.get(receiver_index(datagram))
        if entry is None:
            self._runtime.count("index_unknown")
            return
        link, session = entry
        try:
            kind, payload = session.unprotect(datagram)
        except BadDatagram:
            self._runtime.count("datagram_forged")
            return
        self.unsealed(path, link, session, kind, payload)

    def open_aside(self, datagram: bytes) -> tuple[Link, m.Message] | None:
        """A control message that came by another socket than the node's own: it says nothing of the paths of its link."""
        entry = self._by_index.get(receiver_index(datagram)) if form_of(datagram) is Form.SEALED else None
        if entry is None or not entry[0].up:
            return None
        try:
            kind, payload = entry[1].unprotect(datagram)
            return (entry[0], m.decode(payload)) if kind == CONTROL else None
        except (BadDatagram, BadMessage):
            self._runtime.count("aside_bad")
            return None

    def of_session(self, session: ISession) -> Link | None:
        """The link that a session belongs to."""
        entry = self._by_index.get(session.local_index)
        return entry[0] if entry else None

    def unsealed(self, path: PathKey, link: Link, session: ISession, kind: int, payload: bytes) -> None:
        """What a session of `link` unsealed, by whichever plane."""
        if not link.up:
            self._late(path, link, session, kind, payload)
            return
        if path == link.active or isinstance(link.active, Route):
            link.heard = self._runtime.now
        earn(link, len(payload))
        if not link.peer.guest:
            self._watch_for_twins(link, session, path)
        if link.confirm(session, self._runtime.now):
            self._runtime.emit(LinkChanged(link.ident))
        if isinstance(path, Route) and path.via and link.relay is None:
            link.route = path
            if isinstance(link.active, Route):
                link.active = path
        if kind == CONTROL:
            self._control(path, link, session, payload)
        elif link.peer.guest:
            self._runtime.count("guest_overreach")
        elif kind == RELAY:
            if isinstance(path, Endpoint) and path not in link.direct:
                self.on_stray(link, path)
            self.relaying.received(link, payload)
        else:
            self._runtime.count("kind_unknown")

    def _control(self, path: PathKey, link: Link, session: ISession, payload: bytes) -> None:
        try:
            message = m.decode(payload)
            if isinstance(message, m.Fragment):
                whole = self._reassembly.add(link.ident, message)
                if whole is None:
                    return
                message = m.decode(whole)
        except BadMessage:
            self._runtime.count("message_bad")
            return
        if isinstance(message, m.Close):
            self._closed(link, session, message.reason)
        else:
            self.on_control(link, path, message)

    def _late(self, path: PathKey, link: Link, session: ISession, kind: int, payload: bytes) -> None:
        """Something came on a link that has ended: pass on what is for others, and tell a peer that does not know."""
        if kind == RELAY:
            self.relaying.received(link, payload)
        if kind != CONTROL or not _is_close(payload):
            self._say_closed(link, session, path)

    def remind(self, index: int) -> bool:
        """If the session with this receiver index has ended, tell the peer again; gives whether it has."""
        entry = self._by_index.get(index)
        if entry is None or entry[0].up:
            return False
        self._say_closed(*entry, entry[0].active)
        return True

    def _say_closed(self, link: Link, session: ISession, path: PathKey) -> None:
        self.send_datagram(path, session.protect(CONTROL, m.encode(m.Close(UNNEEDED))))

    # --- life --------------------------------------------------------------------------------

    def _begin(self, ident: Ident, agent: Ident | None) -> None:
        self._handshakes.begin(Route(ident, (agent,) if agent else ()), ident).then(lambda done: self._connected(ident, done))

    def _connected(self, ident: Ident, done: Future[Link]) -> None:
        pending = self._connecting.pop(ident, None)
        if pending is not None:
            pending.follow(done)

    def connect_endpoint(self, endpoint: Endpoint) -> Future[Link]:
        """See `LinkTable`."""
        for link in self.by_ident.values():
            if endpoint in link.direct:
                return settled(link)
        return self._handshakes.begin(endpoint, None)

    def rekey(self, link: Link) -> None:
        """Make a fresh session, of the newest one if that may be renewed; the old one goes on until the new one is confirmed."""
        newest = link.sessions[0]
        if newest.session.renewable and self._runtime.now < newest.renew_until:
            self.renew(link, newest)
        else:
            self.greet_anew(link)

    def greet_anew(self, link: Link) -> Future[Link]:
        """Make a fresh session by a handshake on the active path, since the peer may have forgotten the link."""
        return self._handshakes.begin(link.active, link.ident)

    def follow(self, link: Link, parent: Keyed, session: ISession) -> Keyed:
        """Take a session that renews another one of the link. Raises `Unreachable` when its index is taken."""
        self._refuse_taken(session)
        child = link.follow(parent, session, self._runtime.now)
        self._use(link, session)
        return child

    def _adopt(self, handshake: Handshake) -> Link:
        session, peer = handshake.session, handshake.session.peer
        assert peer is not None
        if peer.ident == self.ident:
            raise PeerRefused(f"this node's own identity answers at {describe(handshake.path)}", "if that is another machine, join it anew")
        if handshake.expect is not None and peer.ident != handshake.expect:
            raise PeerRefused(f"somebody else answered for {short(handshake.expect)}")
        self._refuse_taken(session)
        link = None if peer.guest else self.by_ident.get(peer.ident)
        fresh = link is None
        if link is None:
            link = self._new_link(peer, handshake)
        link.peer = peer
        link.add_session(session, self._runtime.now, self._runtime.now + self._runtime.spread(REAUTHENTICATE))
        earn(link, GREETED)
        self._use(link, session)
        self._came_up(link, handshake.path, fresh)
        return link

    def _refuse_taken(self, session: ISession) -> None:
        if session.local_index in self._by_index:
            raise Unreachable("two sessions drew the same index", "it is tried again")

    def _use(self, link: Link, session: ISession) -> None:
        self._by_index[session.local_index] = (link, session)
        self._forget_sessions(link)
        self._runtime.after(REKEY_AFTER + (0.0 if session.initiated else 10.0), lambda: self._rekey_due(link, session))
        self._runtime.after(KEY_LIFE, lambda: self._keys_dead(link))

    def _watch_for_twins(self, link: Link, session: ISession, path: PathKey) -> None:
        places = link.twin_places(session, path, self._runtime.now)
        if places is not None:
            where = " and ".join(sorted({describe(place) for place in places}))
            self.twins[link.ident] = f"the identity of {link.peer.name} is used by two machines ({where}): join one of them anew"

    def _new_link(self, peer: Peer, handshake: Handshake) -> Link:
        if peer.guest and len(self.guests) >= MOST_GUESTS:
            raise PeerRefused("too many guests ask at once", "they may try again in a minute")
        link = Link(peer, self._runtime.now, handshake.session.initiated)
        link.active = handshake.path
        link.route = handshake.path if isinstance(handshake.path, Route) else link.route
        if peer.guest:
            self.guests.add(link)
        else:
            self.by_ident[peer.ident] = link
        return link

    def _came_up(self, link: Link, path: PathKey, fresh: bool) -> None:
        self.on_path(link, path)
        if link.peer.guest:
            self._runtime.after(60.0, lambda: self.drop(link, "a guest's time is up"))
        elif fresh:
            self._runtime.emit(LinkUp(link.ident))
            self._announce(link)
        else:
            self._runtime.emit(LinkChanged(link.ident))

    def _rekey_due(self, link: Link, session: ISession) -> None:
        self._keys_dead(link)  # the timers of a machine that was suspended are all late
        if not link.up or link.peer.guest or link.sessions[0].session is not session:
            return
        self.rekey(link)
        self._runtime.after(10.0, lambda: self._rekey_due(link, session))

    def _keys_dead(self, link: Link) -> None:
        if link.up and self._runtime.now >= max(keyed.born for keyed in link.sessions) + KEY_LIFE:
            self.drop(link, "its keys are too old and no fresh ones could be made")
        elif link.up and self._forget_sessions(link):
            self._runtime.emit(LinkChanged(link.ident))

    def _forget_sessions(self, link: Link) -> bool:
        gone = link.retire(self._runtime.now)
        for session in gone:
            self._by_index.pop(session.local_index, None)
            session.close()
        return bool(gone)

    def drop(self, link: Link, reason: str, tell: bool = True) -> None:
        """End a link. Its sessions are forgotten at once, or, if both ends have agreed, once nothing can be on its way any more."""
        if not link.up:
            return
        link.parted = reason == UNNEEDED
        if tell and link.parted:
            for keyed in link.sessions:
                self._say_closed(link, keyed.session, link.active)
        elif tell:
            self.send_message(link, m.Close(reason[:200]))
        link.up = False
        self.guests.discard(link)
        if self.by_ident.get(link.ident) is link:
            del self.by_ident[link.ident]
        if link.parted:
            self._runtime.after(LINGER, lambda: self._bury(link.sessions))
        else:
            self._bury(link.sessions)
        if link.peer.guest:
            return
        self._runtime.emit(LinkDown(link.ident, reason))
        for hook in self.on_down:
            hook(link)

    def _bury(self, sessions: list[Keyed]) -> None:
        for keyed in sessions:
            self._by_index.pop(keyed.session.local_index, None)
            keyed.session.close()

    def _closed(self, link: Link, session: ISession, reason: str) -> None:
        """The peer has ended the link, though not the sessions that it has made since it said so."""
        used = next((keyed for keyed in link.sessions if keyed.session is session), None)
        younger = [keyed for keyed in link.sessions if used is not None and keyed.born > used.born]
        if reason != UNNEEDED or not younger:
            self.drop(link, reason, tell=False)
            return
        self._bury([keyed for keyed in link.sessions if keyed not in younger])
        link.sessions = younger
        self._runtime.emit(LinkChanged(link.ident))

    def _handshake_refused(self, handshake: Handshake, error: IpopError) -> None:
        if not isinstance(error, Unreachable):
            self._runtime.emit(PeerRejected(describe(handshake.path), str(error)))
        self._runtime.count("handshake_failed")


def _is_close(payload: bytes) -> bool:
    try:
        return isinstance(m.decode(payload), m.Close)
    except BadMessage:
        return False
