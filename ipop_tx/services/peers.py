"""Peers remembered on disk: when every bootstrap node is gone, a node that restarts still finds its network."""

from __future__ import annotations

from typing import Any

from twisted.application.service import Service
from twisted.internet.task import LoopingCall

from ipop_tx.core import commands as c
from ipop_tx.core import events as e
from ipop_tx.errors import IpopError, LocalMisuse
from ipop_tx.identity import state as files
from ipop_tx.identity.state import StateDirectory
from ipop_tx.log import Logger
from ipop_tx.services.chord import ChordProtocol
from ipop_tx.values import Endpoint

SAVE_EVERY = 10.0
SAVE_AFTER = 0.3
MOST = 32
MAKESHIFTS = 8
"""So many of them for the day on which UDP does not pass any more."""


class PeerCache(Service):
    """Writes down the endpoints of directly linked members."""

    _log = Logger()
    name = "peers"

    def __init__(self, reactor: Any, protocol: ChordProtocol, state: StateDirectory, bootstrap: tuple[Endpoint, ...]) -> None:
        self._protocol = protocol
        self._state = state
        self._bootstrap = bootstrap
        self._saved: list[str] = []
        self._save = LoopingCall(self.save)
        self._save.clock = reactor
        self._reactor = reactor
        self._soon: Any = None
        protocol.on(e.LinkUp, lambda event: self._save_soon())

    def startService(self) -> None:
        """Save now and then."""
        Service.startService(self)
        self._save.start(SAVE_EVERY, now=False)

    def stopService(self) -> None:
        """Save a last time."""
        if self._soon is not None:
            self._soon.cancel()
            self._soon = None
        if self._save.running:
            self._save.stop()
            self.save()
        Service.stopService(self)

    def endpoints(self) -> tuple[Endpoint, ...]:
        """Where to knock: what the configuration names, then what was remembered."""
        stored = self._state.read_json(files.PEERS)
        self._saved = [text for text in stored.get("endpoints", []) if isinstance(text, str)] if isinstance(stored, dict) else []
        remembered = []
        for text in self._saved:
            try:
                remembered.append(Endpoint.parse(text))
            except LocalMisuse:
                self._log.warn("peer_unreadable text={text}", text=text)
        return tuple(dict.fromkeys([*self._bootstrap, *remembered]))

    def reconfigure(self, bootstrap: tuple[Endpoint, ...]) -> None:
        """Knock on these too, beginning now."""
        self._bootstrap = bootstrap
        self._protocol.submit(c.Remember(bootstrap))

    def _save_soon(self) -> None:
        """A little after a new link, when its company has come too."""
        if self._soon is None and self._save.running:
            self._soon = self._reactor.callLater(SAVE_AFTER, self._save_now)

    def _save_now(self) -> None:
        self._soon = None
        self.save()

    def save(self) -> None:
        """Write the endpoints down if they have changed; those that are linked now come first, older ones are kept behind them."""
        node = self._protocol.node
        linked = [str(link.active) for link in node.links if isinstance(link.active, Endpoint) and not link.active.passing]
        makeshifts = sorted({str(endpoint) for link in node.links for endpoint in node.makeshifts(link.ident)})[:MAKESHIFTS]
        fresh = list(dict.fromkeys([*sorted(linked), *makeshifts, *self._saved]))[:MOST]
        if fresh == self._saved or not (linked or makeshifts):
            return
        try:
            self._state.write_json(files.PEERS, {"endpoints": fresh})
            self._saved = fresh
        except IpopError as error:
            self._log.warn("peers_unsaved reason={reason}", reason=str(error))
