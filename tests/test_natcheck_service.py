"""When checks of the NAT are due, and what follows from them; a node in virtual time, with the real service around it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import TestCase

from ipop_tx.core import commands as c
from ipop_tx.core import events as e
from ipop_tx.core.links.facts import Facts
from ipop_tx.core.natkind import Kind, Lifetime, NatFacts, Reach
from ipop_tx.core.tasks import Future
from ipop_tx.errors import EnvironmentProblem
from ipop_tx.services.natcheck import ANEW, CALM, DOUBT, LOOK_EVERY, NATCheckService
from ipop_tx.services.sides import SideService
from ipop_tx.values import Endpoint

STRICT = Reach(Kind.ENDPOINT_INDEPENDENT, Kind.ADDRESS_AND_PORT_DEPENDENT)


class _Named:
    """Anything with attributes."""

    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)


class FakeProtocol:
    """A node as far as the service looks at it: how many members help, where it is seen, what a check finds."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock.seconds
        self.helpers = 0
        self.learns = True
        self.found = NatFacts(STRICT, True, True)
        self.commands: list[type] = []
        self.listeners: dict[type, Callable[[Any], object]] = {}
        self.facts = Facts([Endpoint("udp", "192.168.1.10", 4500)])
        check = _Named(facts=NatFacts(at=-1e9), helpers=lambda: [None] * self.helpers, without_udp=lambda: False)
        self.nat = _Named(check=check, life=_Named(lifetime=Lifetime()))
        self.node = _Named(nat=self.nat, paths=_Named(facts=self.facts))

    def on(self, kind: type, listener: Callable[[Any], object]) -> None:
        self.listeners[kind] = listener

    def submit(self, command: object) -> Deferred[Any]:
        self.commands.append(type(command))
        done: Deferred[Any] = Deferred()
        if isinstance(command, c.CheckNat):
            self.nat.check.facts = NatFacts(
                self.found.reach,
                self.found.mapping_sure,
                self.found.filtering_sure,
                outer=self.found.outer,
                helpers=self.helpers,
                at=self.clock(),
            )
            self.listeners[e.NatChecked](e.NatChecked())
            done.callback(self.nat.check.facts)
        elif isinstance(command, c.LearnLifetime) and self.learns:
            self.nat.life.lifetime = Lifetime(25.0, 31.0)
        return done

    def seen_at(self, host: str) -> None:
        self.facts.seen[b"w"] = Endpoint("udp", host, 1), "203.0.113.1"


class ScheduleTests(TestCase):
    """The service's clock."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.protocol = FakeProtocol(self.clock)
        self.service = NATCheckService(self.clock, self.protocol)  # type: ignore[arg-type]
        self.service.startService()
        self.addCleanup(self.service.stopService)

    def checks_in(self, seconds: float) -> int:
        """How many checks begin in that time."""
        self.protocol.commands.clear()
        self.clock.pump([LOOK_EVERY] * int(seconds / LOOK_EVERY))
        return self.protocol.commands.count(c.CheckNat)

    def test_first(self) -> None:
        """None without members; then one, and the next after an hour."""
        self.assertEqual(self.checks_in(600), 0)
        self.protocol.helpers = 3
        self.assertEqual(self.checks_in(LOOK_EVERY), 1)
        self.assertEqual(self.checks_in(ANEW - 10), 0)
        self.assertEqual(self.checks_in(10), 1)

    def test_more_members(self) -> None:
        """A second and a third member are worth another check, a fourth is not, and one that goes is not."""
        for helpers, checks in ((1, 1), (2, 1), (3, 1), (4, 0), (2, 0), (4, 0)):
            self.protocol.helpers = helpers
            self.assertEqual(self.checks_in(60), checks, helpers)

    def test_changes(self) -> None:
        """Another address, here or outside, is waited for to be calm, then checked once."""
        self.protocol.helpers = 3
        self.checks_in(60)
        self.protocol.seen_at("198.51.100.1")
        self.assertEqual(self.checks_in(60), 1)
        for last in range(10, 20):
            self.protocol.facts.local = [Endpoint("udp", f"192.168.1.{last}", 4500)]
            self.assertEqual(self.checks_in(CALM - LOOK_EVERY), 0)
        self.assertEqual(self.checks_in(60), 1)

    def test_doubt(self) -> None:
        """What is not sure is checked more often."""
        self.protocol.helpers, self.protocol.found = 3, NatFacts(STRICT, True, False)
        self.assertEqual(self.checks_in(60), 1)
        self.assertEqual(self.checks_in(DOUBT), 1)

    def test_lifetime_is_learnt_once_for_each_router(self) -> None:
        """After the first check, and when the outer address is another one."""
        self.protocol.helpers = 3
        for host, learnt in (("198.51.100.1", 1), ("198.51.100.1", 0), ("198.51.100.2", 1)):
            self.protocol.found = NatFacts(STRICT, True, True, outer=(Endpoint("udp", host, 7),))
            self.protocol.seen_at(host)
            self.protocol.commands.clear()
            self.clock.pump([LOOK_EVERY] * int((ANEW + 60) / LOOK_EVERY))
            self.assertEqual(self.protocol.commands.count(c.LearnLifetime), learnt, host)

    def test_what_was_not_learnt_is_tried_again(self) -> None:
        """When the member that helped has gone, the next check brings another try."""
        self.protocol.helpers, self.protocol.learns = 3, False
        self.clock.pump([LOOK_EVERY] * int((2 * ANEW + 60) / LOOK_EVERY))
        self.assertEqual(self.protocol.commands.count(c.LearnLifetime), 3)

    def test_a_check_that_fails(self) -> None:
        """It is tried again when all has been calm for a while, not at once for ever."""
        self.protocol.helpers = 3
        count = 0

        def failing(command: object) -> Deferred[Any]:
            nonlocal count
            count += 1
            done: Deferred[Any] = Deferred()
            done.errback(EnvironmentProblem("no second port could be opened"))
            return done

        self.patch(self.protocol, "submit", failing)
        self.clock.pump([LOOK_EVERY] * 24)
        self.assertTrue(3 <= count <= 24 * LOOK_EVERY / CALM + 1, count)

    def test_no_socket(self) -> None:
        """What the system refuses is an error for whoever asked."""

        def refuse(number: int) -> int:
            raise OSError(24, "Too many open files")

        sides = SideService(self.clock, self.clock, self.protocol, _Named(host="127.0.0.1"))  # type: ignore[arg-type]
        self.patch(sides._sockets, "open", refuse)
        port: Future[int] = Future()
        self.protocol.listeners[e.SideWanted](e.SideWanted(1, port))
        self.assertIsInstance(port.error, EnvironmentProblem)
        self.assertIn("Too many open files", str(port.error))
