"""The handshakes that a node has under way, one for each path.

When both ends begin at once on one path, each sees the other's first flight. The greater `opening` wins: its sender stays
initiator, the other drops its own attempt and answers. Both know both openings, so both decide alike without a word more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ipop_tx.core.bucket import Bucket
from ipop_tx.core.links.link import Link, PathKey, Route, patience
from ipop_tx.core.runtime import Runtime, Timer
from ipop_tx.core.tasks import Future
from ipop_tx.errors import IpopError, PeerRefused, Unreachable
from ipop_tx.interfaces import ISession, ISessionFactory
from ipop_tx.values import Ident, short

PATIENCE = 10.0
"""Seconds until a handshake is given up; more where `link.patience` says so."""
LINGER = 20.0
"""Seconds for which the answering side still repeats its last flight."""
STRANGERS = 2000.0
"""First flights of strangers answered in a second."""
MOST = 256
"""Handshakes under way at once; beyond that newcomers must wait."""


@dataclass(slots=True)
class Handshake:
    """One handshake on one path; `outcome` gives the link."""

    path: PathKey
    session: ISession
    expect: Ident | None
    timer: Timer
    retry: Timer | None = None
    flight: list[bytes] = field(default_factory=list)
    """What was sent last."""
    outcome: Future[Link] = field(default_factory=Future)


class Handshakes:
    """Feeds datagrams to sessions that are not established yet."""

    def __init__(
        self,
        runtime: Runtime,
        factory: ISessionFactory,
        send: Callable[[PathKey, bytes], None],
        established: Callable[[Handshake], Link],
        refused: Callable[[Handshake, IpopError], None],
    ) -> None:
        self._runtime = runtime
        self._factory = factory
        self._send = send
        self._established = established
        self._refused = refused
        self._greetings = Bucket(STRANGERS, STRANGERS)
        self._by_path: dict[PathKey, Handshake] = {}
        # The stations of a route may change from one datagram to the next, so they are no part of the name.

    def begin(self, path: PathKey, expect: Ident | None) -> Future[Link]:
        """Start a handshake on a path, or join the one that is under way there."""
        current = self._by_path.get(_name(path))
        if current is not None and not current.session.established:
            return current.outcome
        handshake = self._enter(path, self._factory.initiate(self._runtime.now), expect)
        self._pump(handshake)
        return handshake.outcome

    def receive(self, path: PathKey, datagram: bytes) -> None:
        """A handshake datagram that came by `path`."""
        current = self._by_path.get(_name(path))
        if current is not None:
            current.path = path
        opening = self._factory.opening(datagram)
        if opening is None or (current is not None and not current.session.initiated and current.session.opening == opening):
            if current is not None:
                current.session.receive(self._runtime.now, datagram)
                self._pump(current)
            else:
                self._runtime.count("handshake_unexpected")
        elif current is not None and current.session.initiated and current.session.opening == opening:
            self._end(current, PeerRefused(f"{describe(path)} is this node itself", "name another member"))
        elif current is not None and self._ours_wins(current, opening):
            for lost in current.flight:  # theirs would not have come, had they got ours
                self._send(current.path, lost)
        else:
            self._answer(path, datagram, current)

    def _ours_wins(self, current: Handshake, opening: bytes) -> bool:
        session = current.session
        return session.initiated and not session.established and session.opening > opening

    def _answer(self, path: PathKey, datagram: bytes, current: Handshake | None) -> None:
        # A flood of strangers must not keep us from those we know.
        if current is None and (len(self._by_path) >= MOST or not self._greetings.take(self._runtime.now)):
            self._runtime.count("handshake_shed")
            return
        # A cookie shows that a stranger is where it says. What came over the ring was passed on by members, on links of theirs.
        source = None if isinstance(path, Route) else repr(path).encode()
        session, reply = self._factory.accept(self._runtime.now, datagram, source)
        if reply is not None:
            self._send(path, reply)
        if session is None:
            return
        yielded = current if current is not None and not current.outcome.done else None
        handshake = self._enter(path, session, yielded.expect if yielded else None)
        if yielded:
            handshake.outcome.then(yielded.outcome.follow)
        self._pump(handshake)

    def _enter(self, path: PathKey, session: ISession, expect: Ident | None) -> Handshake:
        previous = self._by_path.get(_name(path))
        if previous is not None:
            previous.timer.cancel()
        handshake = Handshake(path, session, expect, self._runtime.after(PATIENCE * patience(path), lambda: self._give_up(handshake)))
        self._by_path[_name(path)] = handshake
        return handshake

    def _pump(self, handshake: Handshake) -> None:
        session = handshake.session
        flight = []
        while (datagram := session.poll_transmit()) is not None:
            flight.append(datagram)
            self._send(handshake.path, datagram)
        handshake.flight = flight or handshake.flight
        if session.failure is not None:
            self._end(handshake, session.failure)
            return
        if session.established and not handshake.outcome.done:
            self._complete(handshake)
        if (due := session.poll_timeout()) is not None:
            if handshake.retry is not None:
                handshake.retry.cancel()
            handshake.retry = self._runtime.after(max(0.0, due - self._runtime.now), lambda: self._retransmit(handshake))

    def _retransmit(self, handshake: Handshake) -> None:
        if self._by_path.get(_name(handshake.path)) is handshake:
            handshake.session.handle_timeout(self._runtime.now)
            self._pump(handshake)

    def _complete(self, handshake: Handshake) -> None:
        handshake.timer.cancel()
        handshake.timer = self._runtime.after(LINGER, lambda: self._forget(handshake))
        if handshake.session.initiated:
            self._forget(handshake)
        try:
            link = self._established(handshake)
        except IpopError as error:
            self._end(handshake, error)
        else:
            handshake.outcome.succeed(link)

    def _give_up(self, handshake: Handshake) -> None:
        self._end(handshake, Unreachable(f"no answer from {describe(handshake.path)}", "check that the node there is running"))

    def _end(self, handshake: Handshake, error: IpopError) -> None:
        self._forget(handshake)
        if not handshake.outcome.done:
            self._refused(handshake, error)
        handshake.outcome.fail(error)

    def _forget(self, handshake: Handshake) -> None:
        handshake.timer.cancel()
        if self._by_path.get(_name(handshake.path)) is handshake:
            del self._by_path[_name(handshake.path)]


def _name(path: PathKey) -> PathKey:
    return Route(path.destination) if isinstance(path, Route) else path


def describe(path: PathKey) -> str:
    """A path in words."""
    return f"{short(path.destination)} over the ring" if isinstance(path, Route) else str(path)
