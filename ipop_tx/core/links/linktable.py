"""What the ring needs of links, whoever makes them: the daemons' `Links`, or the link model of large simulations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

from ipop_tx.core.links.link import Link
from ipop_tx.core.tasks import Future, failed, settled
from ipop_tx.errors import LocalMisuse
from ipop_tx.values import Endpoint, Ident
from ipop_tx.wire import messages as m


class LinkTable(ABC):
    """The links of one node to members, by ident, with hooks for those that come and go. Those to guests stand apart."""

    def __init__(self, ident: Ident) -> None:
        self.ident = ident
        self.by_ident: dict[Ident, Link] = {}
        self.on_up: list[Callable[[Link], None]] = []
        self.on_down: list[Callable[[Link], None]] = []
        self._connecting: dict[Ident, Future[Link]] = {}

    def __iter__(self) -> Iterator[Link]:
        return iter(list(self.by_ident.values()))

    @abstractmethod
    def send_message(self, link: Link, message: m.Message) -> None:
        """Send a control message by the link's active path."""

    def connect(self, ident: Ident, agent: Ident | None = None) -> Future[Link]:
        """The link to a member, made over the ring if there is none: by way of `agent`, who is known to have a link to it, if given.

        Fails with `Unreachable` or `PeerRefused`.
        """
        if ident == self.ident:
            return failed(LocalMisuse("a node has no link to itself"))
        link = self.by_ident.get(ident)
        if link is not None:
            return settled(link)
        pending = self._connecting.get(ident)
        if pending is None:
            pending = self._connecting[ident] = Future()
            self._begin(ident, agent)
        return pending

    def _announce(self, link: Link) -> None:
        """A link has come up: tell those who wait for it, then everybody."""
        pending = self._connecting.pop(link.ident, None)
        if pending is not None:
            pending.succeed(link)
        for hook in self.on_up:
            hook(link)

    @abstractmethod
    def _begin(self, ident: Ident, agent: Ident | None) -> None:
        """Start to make a link over the ring."""

    @abstractmethod
    def drop(self, link: Link, reason: str, tell: bool = True) -> None:
        """End a link, and say so to its peer if `tell`."""

    @abstractmethod
    def connect_endpoint(self, endpoint: Endpoint) -> Future[Link]:
        """The link to whichever member answers at an endpoint."""
