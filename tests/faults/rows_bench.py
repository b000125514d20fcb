"""Rows that benchmarks show: shorter runs of `benchmarks.kills`, `roaming` and `soak`."""

from __future__ import annotations

from pathlib import Path

from benchmarks import kills, roaming, soak
from benchmarks.dataplane import packages
from tests.faults.case import FaultCase, shows

KILLS = 12
SOAK_SECONDS, CHANGE_EVERY = 120.0, 20.0


class KillsTests(FaultCase):
    """Any daemon, at any moment."""

    @shows(1)
    def test_of_a_ring(self) -> None:
        """Daemons of a ring of six are killed and start again, while everybody is watched and registers are written."""
        found = kills.run(self.lab, 6, KILLS, 1, 1)
        names = ("kills", "slowest_return_s", "duplicates", "acknowledged", "lost")
        self.figures.update({name: found[name] for name in names})
        self.assertEqual(found["faults"], [])


class RoamingTests(FaultCase):
    """Networks change beneath a transfer."""

    @shows(7)
    def test_a_transfer(self) -> None:
        """A NAT gives other ports, reboots, the machine moves to another access network: relayed and direct again in time, TCP survives."""
        found = roaming.run(self.lab, ["rebinding", "reboot", "lte"])
        for change in found["changes"]:
            self.figures[change["event"]] = {"answered_s": change["answered_s"], "direct_s": change["settled_s"]}
            self.assertTrue(change["within"], change)
        self.figures["megabytes"] = round(found["transfer"]["bytes"] / 1e6)
        self.assertTrue(found["transfer"]["whole"])


class SoakTests(FaultCase):
    """Full load while the path changes."""

    @shows(14)
    def test_two_minutes(self) -> None:
        """Nothing is lost without a reason, doubled or altered; memory and descriptors stay."""
        packages.require(packages.TOOLS)
        found = soak.run(self.lab, SOAK_SECONDS, CHANGE_EVERY, 2, 1000.0)
        self.figures.update(held=found["held"], changes=len(found["changes"]), good=found["good"])
        self.assertTrue(found["good"], {name: value for name, value in found.items() if name != "changes"})
        for log in Path(self.lab.scratch).glob("*/*.log"):
            self.assertNotIn("Traceback", log.read_text(errors="replace"), log.name)
