"""Real daemons whose networks change beneath a running transfer: nobody notices but by a pause."""

from __future__ import annotations

from benchmarks import roaming
from tests.system.case import LabTestCase


class TransferTests(LabTestCase):
    """One TCP stream across all of it; `benchmarks.roaming` also measures how long each takes."""

    def test_it_arrives_whole(self) -> None:
        """The NAT gives other ports, the machine moves to another access network, the relay is killed."""
        found = roaming.run(self.lab, ["rebinding", "lte", "relay-killed"])
        self.assertTrue(found["transfer"]["whole"], found)
        for change in found["changes"]:
            self.assertIsNotNone(change["answered_s"], found)
            self.assertIsNotNone(change["settled_s"], found)
