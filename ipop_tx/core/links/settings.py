"""The settings of the network: signed by its authority, the newest version counts, everybody has it as soon as can be.

Whoever gets a newer version keeps it and tells all that it is linked to which version it has: a flood of short messages, in which the
document itself crosses to each member once. It needs no order on the ring. On each new link both ends tell their versions, so whoever
was away learns on contact, and a newcomer from the first member that it meets. An older version is never taken: nothing is rolled back.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from ipop_tx.core.events import SettingsChanged
from ipop_tx.core.links.link import Link
from ipop_tx.core.links.links import Links
from ipop_tx.core.links.rpc import Rpc
from ipop_tx.core.runtime import Runtime
from ipop_tx.errors import LocalMisuse
from ipop_tx.values import Ident
from ipop_tx.wire import messages as m

NONE = m.Newest(0)


class SettingsExchange:
    """Which settings this node has, and which its peers say that they have."""

    def __init__(self, links: Links, rpc: Rpc, runtime: Runtime, is_authentic: Callable[..., bool]) -> None:
        self.current: m.Settings | None = None
        self.newest = NONE
        """What `current` is called."""
        self.of_peers: dict[Ident, int] = {}
        """The version that each linked member has told last."""
        self._links = links
        self._rpc = rpc
        self._runtime = runtime
        self._is_authentic = is_authentic
        rpc.serve(m.Newest, self._told)
        links.on_up.append(self._greet)
        links.on_down.append(self._forget)

    def restore(self, settings: m.Settings) -> bool:
        """What was kept on disk; whether the authority has signed it."""
        if self._is_authentic(settings, ever=True):
            self.current, self.newest = settings, name_of(settings)
        return self.current is settings

    async def adopt(self, settings: m.Settings) -> bool:
        """Take a version unless it is older than ours; whether it was newer. Raises `LocalMisuse` if it is not the authority's."""
        return self._take(settings)

    def _take(self, settings: m.Settings) -> bool:
        name = name_of(settings)
        if _order(name) <= _order(self.newest):
            return False
        if not self._is_authentic(settings):
            self._runtime.count("settings_forged")
            raise LocalMisuse("the network's settings must be signed by its authority")
        self.current, self.newest = settings, name
        self._runtime.emit(SettingsChanged(settings))
        for link in self._links:
            if not link.peer.guest:
                self._runtime.background(self._compare(link))
        return True

    def _greet(self, link: Link) -> None:
        if link.initiated and not link.peer.guest:
            self._runtime.background(self._compare(link))

    def _forget(self, link: Link) -> None:
        self.of_peers.pop(link.ident, None)

    async def _compare(self, link: Link) -> None:
        """Tell a peer what we have; take what it has, if that is newer."""
        answer = await self._rpc.on_link(link, self.newest)
        if isinstance(answer, m.Settings):
            self.of_peers[link.ident] = answer.version
            self._take(answer)
        elif isinstance(answer, m.Newest):
            self.of_peers[link.ident] = answer.version

    def _told(self, link: Link, body: m.Newest) -> m.Settings | m.Newest:
        self.of_peers[link.ident] = body.version
        if _order(body) > _order(self.newest):
            self._runtime.background(self._compare(link))
        return self.current if self.current is not None and _order(body) < _order(self.newest) else self.newest


def name_of(settings: m.Settings) -> m.Newest:
    """What a version is called. Two of one number are told apart, and put in order, by their hash."""
    return m.Newest(settings.version, hashlib.sha256(m.encode(settings)).digest()[:8])


def _order(name: m.Newest) -> tuple[int, bytes]:
    return name.version, name.digest
