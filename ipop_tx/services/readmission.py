"""This node's own certificate: renewed by itself, long before it ends, or after it has.

Any member that admits renews it, asked directly or through another member; nobody has to do anything. A node whose certificate has ended
has no links as a member any more. Then it asks as a guest does, at every endpoint that it knows.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred

from ipop_tx.core import commands as c
from ipop_tx.errors import IpopError, PeerRefused, Unreachable
from ipop_tx.identity import certificates as certs
from ipop_tx.identity import state as files
from ipop_tx.identity.credentials import Credentials
from ipop_tx.identity.readmission import build, read
from ipop_tx.identity.state import StateDirectory
from ipop_tx.log import Logger
from ipop_tx.services.chord import ChordProtocol
from ipop_tx.values import Endpoint, Ident
from ipop_tx.wire import messages as m

DUE, SPREAD = 0.66, 0.04
"""The part of a certificate's life after which it is renewed; and how much that differs from member to member."""
FIRST_WAIT, LONGEST_WAIT, LAPSED_WAIT = 10.0, 6 * 3600.0, 600.0
"""Seconds between attempts, doubled after each; the longest for a node whose certificate has ended, which has nothing else to do."""
LOOK_AGAIN = 86400.0
"""Seconds after which the clock is looked at again at the latest: it may have been set."""
WARNED, WARNED_PART = 30 * certs.DAY, 0.2
"""So many seconds, or this part of its life, if that is less, before the end of a certificate this node's health says so."""
THROUGH = 8
"""Members that do not admit themselves, and are asked in one attempt to pass the request on."""


class ReadmissionService(Service):
    """Watches this node's certificate."""

    _log = Logger()
    name = "readmission"

    def __init__(
        self,
        reactor: Any,
        protocol: ChordProtocol,
        credentials: Credentials,
        state: StateDirectory,
        endpoints: Callable[[], tuple[Endpoint, ...]],
        grant: Callable[[m.Readmit], m.Readmitted] | None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`grant` renews here, where this node admits; `endpoints` are where members may answer."""
        self._reactor = reactor
        self._protocol = protocol
        self._credentials = credentials
        self._state = state
        self._endpoints = endpoints
        self._grant = grant
        self._wall = wall
        self._call: Any = None
        self._wait = FIRST_WAIT
        self._problem = ""
        self._resting = False

    def startService(self) -> None:
        """Begin to watch."""
        Service.startService(self)
        self._look()

    def stopService(self) -> None:
        """Stop it."""
        Service.stopService(self)
        if self._call is not None:
            self._call.cancel()
            self._call = None

    @property
    def due(self) -> float:
        """When the certificate is to be renewed, in seconds since the Unix epoch."""
        leaf, key = self._credentials.member_chain[0], self._credentials.peer.key
        begun = certs.issued_at(leaf)
        due = begun + (certs.ends_of(leaf) - begun) * (DUE + SPREAD * key[0] / 256)
        trust, root = self._credentials.trust, self._credentials.root
        if trust.charter is None or (root, 0) in trust.roots:
            return due
        if self._grant is not None:
            return 0.0  # newcomers want to see the root that they were told
        until = dict(trust.charter.roots).get(certs.to_der(root), trust.charter.time)
        return min(due, until + (until - trust.charter.time) / 2 * key[0] / 256)

    def look_now(self) -> None:
        """The authority's keys have changed: the certificate may be due."""
        if self._call is not None:
            self._call.cancel()
            self._look()

    def _look(self) -> None:
        self._call = None
        if self._resting and not self._credentials.lapsed:  # the clock was wrong
            self._credentials.refresh()
            self._rest(False)
        left = self.due - self._wall()
        if left > 0:
            self._again(min(left, LOOK_AGAIN))
        else:
            Deferred.fromCoroutine(self._renew()).addErrback(lambda failure: self._log.failure("readmission_failed", failure))

    def _again(self, seconds: float) -> None:
        if self.running:
            self._call = self._reactor.callLater(max(0.1, seconds), self._look)

    async def _renew(self) -> None:
        lapsed = self._credentials.lapsed
        if lapsed:
            self._rest(True)
            self._credentials.refresh()  # what it shows as a guest is good for half a day
        try:
            self._take((await self._ask(lapsed)).certificates)
        except IpopError as error:
            self._problem = str(error)
            left = self._credentials.peer.not_after - self._wall()
            self._log.warn("certificate_not_renewed seconds_left={seconds} reason={reason}", seconds=int(left), reason=str(error))
            self._again(self._spread(min(self._wait, LAPSED_WAIT if lapsed else max(1.0, left / 8))))
            self._wait = min(2 * self._wait, LONGEST_WAIT)
        else:
            self._problem, self._wait = "", FIRST_WAIT
            self._log.info("certificate_renewed ends={ends}", ends=self._credentials.peer.not_after)
            self._look()

    def _spread(self, seconds: float) -> float:
        return seconds * random.uniform(0.8, 1.2)

    def _take(self, certificates: tuple[bytes, ...]) -> None:
        """Kept first: a certificate that is shown must be there after a restart."""
        chain = read(certificates)
        self._credentials.check_own(chain)
        self._state.write(files.NODE_CHAIN, certs.to_pem(chain))
        self._credentials.renew(chain)
        self._protocol.node.peer = self._credentials.peer
        self._rest(False)

    def _rest(self, resting: bool) -> None:
        self._resting = resting
        self._protocol.submit(c.Rest(resting))

    async def _ask(self, lapsed: bool) -> m.Readmitted:
        request = m.Readmit(*build(self._credentials.private_key, self._credentials.member_chain))
        problem: IpopError = Unreachable("no member that may admit others can be reached from here")
        if self._grant is not None:
            try:
                return self._grant(request)
            except IpopError as error:  # this node's own certificate may be beyond what it may grant
                problem = error
        for ident in self._members():
            try:
                return _expected(await self._protocol.submit(c.Ask(ident, request)))
            except IpopError as error:
                problem = problem if isinstance(error, Unreachable) else error
        if lapsed:
            return _expected(await self._protocol.submit(c.Petition(self._endpoints(), request)))
        raise problem

    def _members(self) -> list[Ident]:
        """Those linked who admit, then some of the others."""
        node = self._protocol.node
        flags = {link.ident: hello.flags for link in node.links if (hello := node.peer_hellos.get(link.ident)) is not None}
        others = [ident for ident in flags if not flags[ident] & m.ADMITS]
        return [ident for ident in flags if flags[ident] & m.ADMITS] + random.sample(others, min(THROUGH, len(others)))

    def health(self) -> list[str]:
        """Whether the certificate ends soon and could not be renewed, or has ended."""
        leaf, left = self._credentials.member_chain[0], self._credentials.peer.not_after - self._wall()
        why = f" ({self._problem})" if self._problem else ""
        if left < 0:
            return [f"this node's certificate ended {_span(-left)} ago, so nobody lets it in; it asks to be admitted again{why}"]
        if left < min(WARNED, WARNED_PART * (certs.ends_of(leaf) - certs.issued_at(leaf))):
            return [f"this node's certificate ends in {_span(left)} and could not be renewed yet{why}"]
        return []


def _expected(answer: Any) -> m.Readmitted:
    if not isinstance(answer, m.Readmitted):
        raise PeerRefused("the member's answer makes no sense", "another one is asked")
    return answer


def _span(seconds: float) -> str:
    return (
        f"{seconds / certs.DAY:.0f} days"
        if seconds > 2 * certs.DAY
        else f"{seconds / 3600:.0f} h"
        if seconds > 7200
        else f"{seconds:.0f} s"
    )
