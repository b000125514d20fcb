"""What the fault tests share."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, TypeVar

from ipop_tx.errors import IpopError
from ipop_tx.lab import wait_for
from ipop_tx.lab.node import LabNode
from tests.faults import shim
from tests.net import NetCase
from tests.system import why_not
from tests.system.case import LabTestCase

Test = TypeVar("Test", bound=Callable[..., Any])
BACK = 10.0
"""Seconds within which a daemon is itself again."""


def shows(row: int, quick: bool = False) -> Callable[[Test], Test]:
    """Mark a test as part of a row of docs/security.md; the `quick` ones are part of `make test`."""

    def mark(test: Test) -> Test:
        test.shows = (row, quick)  # type: ignore[attr-defined]
        return test

    return mark


class FaultCase(LabTestCase):
    """Real daemons in the lab."""

    skip = why_not("curl") or shim.why_not()

    def setUp(self) -> None:
        self.figures: dict[str, Any] = {}
        """What was measured, for the report."""
        super().setUp()

    def pair(self) -> tuple[LabNode, LabNode]:
        """Two nodes in the open that reach each other directly, each with a copy of every register."""
        founder = self.found(self.lab.public_host("founder"))
        other = self.admit(founder, self.lab.public_host("other"))
        self.assertTrue(founder.reaches(other.address), "before the fault")
        founder.wait_for_path(other, lambda path: path.startswith("direct"))
        self.settle(founder, other)
        return founder, other

    def creates(self, node: LabNode, key: str, timeout: float = 40.0) -> str:
        """Write a register; gives what is wrong, or nothing when it is acknowledged."""
        try:
            body = {"entries": [{"key": key, "text": "x"}], "ttl_s": 600}
            answer = node.request("POST", "/dht/create", body, timeout=timeout)["answers"][0]
        except IpopError as error:
            return str(error)
        return str(answer.get("error", ""))

    @contextlib.contextmanager
    def pinged(self, one: LabNode, address: str) -> Iterator[dict[str, float]]:
        """Ping ten times a second meanwhile; afterwards the dictionary has `sent`, `lost`, `twice` and `longest_s`, the longest silence."""
        found: dict[str, float] = {}
        pings = one.host.start(["ping", "-n", "-D", "-i0.1", address], log="pings.log")
        wait_for("the first answer", 10, lambda: "bytes from" in pings.output, 0.02)
        try:
            yield found
        finally:
            pings.interrupt()
            moments = [float(moment) for moment in re.findall(r"^\[([\d.]+)\] \d+ bytes from", pings.output, re.MULTILINE)]
            ends = [*moments, time.time()]
            told = re.search(r"(\d+) packets transmitted, (\d+) received", pings.output)
            assert told is not None
            found.update(
                sent=int(told[1]),
                lost=int(told[1]) - int(told[2]),
                twice=pings.output.count("DUP!"),
                longest_s=round(max(later - earlier for earlier, later in pairwise(ends)), 2),
            )


class SimulatedCase(NetCase):
    """Whole nodes in virtual time."""

    def setUp(self) -> None:
        self.figures: dict[str, Any] = {}
