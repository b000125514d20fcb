"""Renewal of a link's keys in band: one question and one answer over the link make a session that follows the newest one.

Both ends may ask at once. Each then makes the new session of the other's question; it is the same one, and the answers only confirm it.
What cannot be renewed gets a full handshake: after a refusal or a lost answer that no repetition brought, and when the certificates were
checked too long ago. Both ends watch that age, so that whoever has stolen keys cannot renew them for ever.
"""

from __future__ import annotations

from ipop_tx.core.events import LinkChanged
from ipop_tx.core.links.link import Keyed, Link
from ipop_tx.core.links.links import Links
from ipop_tx.core.links.rpc import Rpc, unexpected
from ipop_tx.core.runtime import Runtime
from ipop_tx.errors import IpopError, LocalMisuse
from ipop_tx.wire import messages as m

SOONEST = 10.0
"""Seconds from the birth of a session before which a peer may not renew it: far less than an honest one waits, and a bound for others."""


class Renewals:
    """Asks for renewals and answers them, on all links of a node."""

    def __init__(self, links: Links, rpc: Rpc, runtime: Runtime) -> None:
        self._links = links
        self._rpc = rpc
        self._runtime = runtime
        links.renew = lambda link, parent: runtime.background(self._renew(link, parent))
        rpc.serve(m.Renew, self._asked)

    async def _renew(self, link: Link, parent: Keyed) -> None:
        try:
            answer = await self._rpc.on_link(link, m.Renew(parent.session.tag, parent.session.offer()))
            if not isinstance(answer, m.Renewed):
                raise unexpected(answer)
            child = parent.child or self._links.follow(link, parent, parent.session.renew(answer.public))
        except IpopError:
            self._runtime.count("renewal_failed")
            if link.up and link.sessions[0] is parent:
                parent.renew_until = self._runtime.now
                self._links.rekey(link)
        else:
            child.confirmed = True
            self._runtime.emit(LinkChanged(link.ident))

    def _asked(self, link: Link, body: m.Renew) -> m.Renewed:
        parent = link.sessions[0]
        if parent.session.tag != body.parent or not parent.born + SOONEST <= self._runtime.now < parent.renew_until:
            raise LocalMisuse("only the newest session can be renewed, neither too soon nor too late", "make a handshake")
        public = parent.session.offer()
        self._links.follow(link, parent, parent.session.renew(body.public))
        self._runtime.emit(LinkChanged(link.ident))
        return m.Renewed(public)
