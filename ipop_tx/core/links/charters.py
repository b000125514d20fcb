"""The authority's charters: who signs in its name from now on. Signed by whoever did before, and known to everybody as soon as can be.

Whoever gets the next one keeps it and tells all that it is linked to: a flood, as for revocations. Greetings carry the number of the
newest that is known; whoever has fewer asks for the rest, and goes through them one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ipop_tx.core.events import CharterAdopted
from ipop_tx.core.links.link import Link
from ipop_tx.core.links.links import Links
from ipop_tx.core.links.rpc import Rpc
from ipop_tx.core.runtime import Runtime
from ipop_tx.errors import LocalMisuse
from ipop_tx.wire import messages as m


class Charters:
    """Those that this node has gone through."""

    def __init__(self, links: Links, rpc: Rpc, runtime: Runtime, adopt: Callable[[m.Charter], bool]) -> None:
        """`adopt` judges the next one, and believes it if it is good."""
        self.all: list[m.Charter] = []
        self.on_adopted: Callable[[], None] = lambda: None
        """Called when other keys count than before."""
        self._links = links
        self._rpc = rpc
        self._runtime = runtime
        self._adopt = adopt
        rpc.serve(m.Charters, self._told)
        rpc.serve(m.WhichCharters, self._asked)

    @property
    def number(self) -> int:
        """Of the newest; 0 while there is none."""
        return self.all[-1].number if self.all else 0

    def restore(self, charters: Iterable[m.Charter]) -> None:
        """What was kept on disk."""
        self.all += [charter for charter in charters if self._adopt(charter)]

    def give(self, charter: m.Charter) -> None:
        """Take the next charter and tell everybody. Raises `LocalMisuse` if it is not that."""
        if charter.number > self.number and not self._take([charter], None):
            raise LocalMisuse("that charter is not the next one of this network, or is not signed by enough keys of the authority")

    def compare(self, link: Link, number: int) -> None:
        """A member has told the number of its newest one."""
        if number > self.number and not link.peer.guest:
            self._runtime.background(self._learn(link))

    async def _learn(self, link: Link) -> None:
        after = self.number
        while True:
            answer = await self._rpc.on_link(link, m.WhichCharters(after))
            if not isinstance(answer, m.Charters) or not answer.charters:
                return
            self._take(answer.charters, link)
            if not answer.more or answer.charters[-1].number <= after:
                return
            after = answer.charters[-1].number

    def _told(self, link: Link, body: m.Charters) -> m.Done:
        if body.charters and body.charters[0].number > self.number + 1:
            self._runtime.background(self._learn(link))
        self._take(body.charters, link)
        return m.Done()

    def _asked(self, link: Link, body: m.WhichCharters) -> m.Charters:
        rest = [charter for charter in self.all if charter.number > body.after]
        return m.Charters(tuple(rest[:1]), len(rest) > 1)

    def _take(self, charters: Iterable[m.Charter], source: Link | None) -> bool:
        """Whether any of them is news. Those that do not follow are passed over: the next may."""
        fresh = []
        for charter in charters:
            if charter.number <= self.number:
                continue
            if self._adopt(charter):
                self.all.append(charter)
                fresh.append(charter)
                self._runtime.emit(CharterAdopted(charter))
            else:
                self._runtime.count("charter_refused")
        if fresh:
            self.on_adopted()
            for link in self._links:
                if link is not source and not link.peer.guest:
                    self._runtime.background(self._tell(link, fresh))
        return bool(fresh)

    async def _tell(self, link: Link, charters: list[m.Charter]) -> None:
        for charter in charters:
            await self._rpc.on_link(link, m.Charters((charter,)))
