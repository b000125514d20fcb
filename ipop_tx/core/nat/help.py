"""What a member does for another one that wants to know its NAT: tell where it is seen, and knock from unexpected places.

Nobody can aim us at a third party. Who asks is a member, on a link of its own; what we send goes to the asker and nobody else, to an
address at which it has answered our own challenge (a path of the link), and only the port is its to choose; one small datagram for
each request, and no more than a bucket of them. The nonce in it is the asker's own, and the datagram is sealed for it.
"""

from __future__ import annotations

from ipop_tx.core.bucket import Bucket
from ipop_tx.core.links.link import Link, PathKey
from ipop_tx.core.links.links import Links
from ipop_tx.core.nat.sides import Side, Sides
from ipop_tx.core.runtime import Runtime, Timer
from ipop_tx.errors import EnvironmentProblem, IpopError, LocalMisuse
from ipop_tx.values import Endpoint, Ident
from ipop_tx.wire import messages as m
from ipop_tx.wire.datagram import CONTROL

KEPT = 60.0
"""Seconds for which the second port stays open after it was last of use."""
AT_ONCE = 100
"""Datagrams that one member may have of us at once ..."""
A_SECOND = 1.0
"""... and so many a second for long."""
ALL_AT_ONCE, ALL_A_SECOND = 1000, 100.0
"""The same for all members together."""


class NatHelp:
    """Answers `Probe`, `Assist` and `Knock`."""

    def __init__(self, links: Links, sides: Sides, runtime: Runtime) -> None:
        self._links = links
        self._sides = sides
        self._runtime = runtime
        self._second: Side | None = None
        self._closing: Timer | None = None
        self._all = Bucket(ALL_AT_ONCE, ALL_A_SECOND)
        self._buckets: dict[Ident, Bucket] = {}
        links.on_down.append(self._link_down)

    def probed(self, link: Link, path: PathKey, message: m.Probe) -> None:
        """A probe at our own socket."""
        if isinstance(path, Endpoint) and self._may(link, path):
            self._links.send_message(link, m.Probed(message.nonce, str(path)), path, whole=True)

    async def assist(self, link: Link, body: m.Assist) -> m.Assisting:
        """Open a second port, or keep it open for longer."""
        if not link.is_direct:
            return m.Assisting(0)
        if self._second is None:
            try:
                side = await self._sides.open()
            except IpopError:
                return m.Assisting(0)
            if self._second is None:
                self._second = side
                side.received = self._received
            else:  # somebody else asked in the same moment
                self._sides.close(side)
        if self._closing is not None:
            self._closing.cancel()
        self._closing = self._runtime.after(KEPT, self._close)
        return m.Assisting(self._second.port)

    def knock(self, link: Link, body: m.Knock) -> m.Done:
        """Send the asker what it asks for."""
        endpoint = Endpoint.parse(body.endpoint)
        if endpoint.host not in {known.host for known in link.direct if known.carrier == endpoint.scheme}:
            self._runtime.count("knock_refused")
            raise LocalMisuse(f"nobody has answered us at {endpoint.host}", "ask a member with a direct path")
        if not self._may(link, endpoint):
            raise EnvironmentProblem("too many knocks are asked for", "ask again in a minute")
        message = m.Probed(body.nonce, body.endpoint)
        if not body.second:
            self._links.send_message(link, message, endpoint, whole=True)
        elif self._second is not None:
            self._second.send(endpoint, link.session.protect(CONTROL, m.encode(message)))
        else:
            raise EnvironmentProblem("there is no second port", "ask for one first")
        return m.Done()

    def _received(self, endpoint: Endpoint, datagram: bytes) -> None:
        """Something came in by the second port: only probes are answered."""
        opened = self._links.open_aside(datagram)
        if opened is None or self._second is None:
            return
        link, message = opened
        if isinstance(message, m.Probe) and self._may(link, endpoint):
            answer = m.encode(m.Probed(message.nonce, str(endpoint)))
            self._second.send(endpoint, link.session.protect(CONTROL, answer))

    def _may(self, link: Link, endpoint: Endpoint) -> bool:
        """Whether a datagram may go to an endpoint of a member: it is known to be at that address, and has not asked for too much."""
        if link.peer.guest or endpoint.host not in {known.host for known in link.direct if known.carrier == endpoint.scheme}:
            self._runtime.count("nat_help_refused")
            return False
        bucket = self._buckets.setdefault(link.ident, Bucket(AT_ONCE, A_SECOND))
        if bucket.take(self._runtime.now) and self._all.take(self._runtime.now):
            return True
        self._runtime.count("nat_help_limited")
        return False

    def _link_down(self, link: Link) -> None:
        """Its bucket stays until it would be full: who comes back at once has no more than before."""
        self._runtime.after(AT_ONCE / A_SECOND, lambda: self._buckets.pop(link.ident, None))

    def _close(self) -> None:
        if self._second is not None:
            self._sides.close(self._second)
            self._second = None
