"""NATCheckService: when checks of the NAT are due."""

from __future__ import annotations

from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.python.failure import Failure

from ipop_tx.core import commands as c
from ipop_tx.core import events as e
from ipop_tx.core.nat.check import HELPERS
from ipop_tx.core.natkind import Kind, Lifetime, NatFacts
from ipop_tx.log import Logger
from ipop_tx.services.chord import ChordProtocol

LOOK_EVERY = 5.0
"""Seconds between looks whether a check is due."""
CALM = 10.0
"""Seconds for which nothing must have changed before a check."""
ANEW = 3600.0
"""Seconds until what was found is checked again ..."""
DOUBT = 600.0
"""... and until then, if it is not sure ..."""
NOTHING = 60.0
"""... or told nothing."""


class NATCheckService(Service):
    """Checks when the node has its first links, when it knows more members, when its addresses have changed, and every hour.

    How long mappings live is learnt after the first check, and again when another outer address shows that the router is another one.
    """

    _log = Logger()
    name = "natcheck"

    def __init__(self, reactor: Any, protocol: ChordProtocol) -> None:
        self._reactor = reactor
        self._protocol = protocol
        self._nat = protocol.node.nat
        self._look = LoopingCall(self.look)
        self._look.clock = reactor
        self._changed = 0.0
        """When what a check depends on changed last."""
        self._place: object = None
        self._learnt: object = None
        self._said: object = None
        protocol.on(e.NatChecked, self._checked)

    def startService(self) -> None:
        """Look now and then whether a check is due."""
        Service.startService(self)
        self._look.start(LOOK_EVERY, now=False)

    def stopService(self) -> None:
        """No more looks."""
        Service.stopService(self)
        if self._look.running:
            self._look.stop()

    def look(self) -> None:
        """Check if it is time to."""
        now = self._protocol.clock()
        facts = self._protocol.node.paths.facts
        place = tuple(facts.local), frozenset(endpoint.host for endpoint in facts.observed())
        if place != self._place:
            self._place, self._changed = place, now
        helpers = len(self._nat.check.helpers())
        if (helpers or self._nat.check.without_udp()) and now - self._changed >= CALM and not self._fresh(now, helpers):
            self.check().addErrback(self._failed)

    def _fresh(self, now: float, helpers: int) -> bool:
        """Whether what is known is good enough: of this place, not too old, and no worse for want of members than it need be."""
        last = self._nat.check.facts
        sure = last.mapping_sure and last.filtering_sure
        if last.helpers < min(helpers, HELPERS - 1):
            wait = CALM
        else:
            wait = ANEW if sure else DOUBT if last.reach.known else NOTHING
        return last.at >= self._changed and now - last.at < wait

    def check(self) -> Deferred[NatFacts]:
        """Check now."""
        return self._protocol.submit(c.CheckNat())

    def _failed(self, failure: Failure) -> None:
        self._changed = self._protocol.clock()  # and again when all has been calm for a while
        self._log.info("natcheck_failed reason={reason}", reason=str(failure.value))

    def _checked(self, event: e.NatChecked) -> None:
        facts, lifetime = self._nat.check.facts, self._nat.life.lifetime
        if (facts.reach, facts.hops, lifetime.dead) != self._said:
            self._said = facts.reach, facts.hops, lifetime.dead
            self._log.info(
                "nat_checked mapping={mapping} filtering={filtering} brittle={brittle} hops={hops} helpers={helpers} "
                "alive_s={alive} dead_s={dead}",
                mapping=facts.reach.mapping.title,
                filtering=facts.reach.filtering.title,
                brittle=facts.reach.brittle,
                hops=facts.hops,
                helpers=facts.helpers,
                alive=lifetime.alive,
                dead=lifetime.dead,
            )
        router = frozenset(endpoint.host for endpoint in facts.outer)
        if facts.reach.mapping is not Kind.UNKNOWN and (router != self._learnt or lifetime == Lifetime()):
            self._learnt = router
            self._protocol.submit(c.LearnLifetime()).addErrback(self._failed)
