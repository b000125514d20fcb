"""What the attack tests share: daemons with changes, and what each test shows."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from ipop_tx.lab import Host
from ipop_tx.lab.node import LabNode
from ipop_tx.lab.process import Process
from tests.system.case import LabTestCase

Test = TypeVar("Test", bound=Callable[..., None])


@dataclass(frozen=True)
class Shows:
    """Which row of docs/security.md a test is part of, and which defence it would miss (`undone.DEFENCES`)."""

    number: int
    defence: str


def shows(number: int, defence: str) -> Callable[[Test], Test]:
    """Mark a test."""

    def mark(test: Test) -> Test:
        test.shows = Shows(number, defence)  # type: ignore[attr-defined]
        return test

    return mark


class ChangedNode(LabNode):
    """A daemon that is run by `tests.attacks.daemon`, if it has any `changes`."""

    changes: tuple[str, ...] = ()

    def start(self, *wrapper: str) -> Process:
        """See `LabNode.start`."""
        changed = (sys.executable, "-m", "tests.attacks.daemon", ",".join(self.changes)) if self.changes else ()
        return super().start(*wrapper, *changed)

    def do(self, deed: str, **words: Any) -> Any:
        """Have a puppet do one of `puppet.DEEDS`."""
        return self.request("POST", "/puppet", {"do": deed, **words}, timeout=30)

    def counter(self, *names: str) -> int:
        """The sum of some counters."""
        counters = self.status()["counters"]
        return sum(counters.get(name, 0) for name in names)

    def echoes(self) -> int:
        """How many pings its kernel has got, on all interfaces."""
        lines = [line.split() for line in self.host.run(["cat", "/proc/net/snmp"]).stdout.splitlines() if line.startswith("Icmp:")]
        return int(lines[1][lines[0].index("InEchos")])


class AttackCase(LabTestCase):
    """`without` is the defence that all daemons of the test go without; the runner sets it to see the test fail."""

    without = ""

    def setUp(self) -> None:
        self.figures: dict[str, Any] = {}
        """What was measured, for the report."""
        super().setUp()

    def _look_for_tracebacks(self) -> None:
        if not self.without:
            super()._look_for_tracebacks()

    def node_on(self, host: Host) -> ChangedNode:
        """A daemon as shipped, or without the defence."""
        node = ChangedNode(host)
        node.changes = (self.without,) if self.without else ()
        return node

    def found(self, host: Host, network: str = "lab") -> ChangedNode:
        """See `LabTestCase`."""
        node = super().found(host, network)
        assert isinstance(node, ChangedNode)
        return node

    def admit(self, inviter: LabNode, host: Host, *options: str) -> ChangedNode:
        """See `LabTestCase`."""
        node = super().admit(inviter, host, *options)
        assert isinstance(node, ChangedNode)
        return node

    def puppet(self, inviter: LabNode, host: Host) -> ChangedNode:
        """A member gone bad."""
        node = self.node_on(host)
        node.changes = (*node.changes, "puppet")
        node.enter(inviter)
        return node

    def pair(self) -> tuple[ChangedNode, ChangedNode]:
        """Two nodes in the open that reach each other directly."""
        founder = self.found(self.lab.public_host("founder"))
        other = self.admit(founder, self.lab.public_host("other"))
        return founder, self._met(founder, other)

    def wicked_pair(self) -> tuple[ChangedNode, ChangedNode]:
        """The same, the second one a puppet."""
        founder = self.found(self.lab.public_host("founder"))
        return founder, self._met(founder, self.puppet(founder, self.lab.public_host("wicked")))

    def _met(self, founder: ChangedNode, other: ChangedNode) -> ChangedNode:
        self.assertTrue(founder.reaches(other.address), "before the attack")
        self.assertTrue(other.reaches(founder.address), "before the attack")
        founder.wait_for_path(other, lambda path: path.startswith("direct"))
        return other
