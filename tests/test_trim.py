"""Unused memory goes back to the kernel."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import TestCase

from ipop_tx.services import trim


class Trim(TestCase):
    """When glibc is asked."""

    def service(self) -> tuple[trim.TrimService, Clock]:
        clock = Clock()
        made = trim.TrimService(clock)
        made.startService()
        return made, clock

    def test_now_and_then_until_it_stops(self) -> None:
        asked: list[int] = []
        self.patch(trim, "_malloc_trim", asked.append)
        made, clock = self.service()
        self.assertEqual(asked, [])
        clock.pump([trim.EVERY] * 3)
        self.assertEqual(asked, [0, 0, 0])
        made.stopService()
        self.assertEqual(clock.getDelayedCalls(), [])

    def test_the_real_one(self) -> None:
        made, clock = self.service()
        clock.advance(trim.EVERY)
        made.stopService()

    def test_another_c_library(self) -> None:
        self.patch(trim, "_malloc_trim", None)
        made, clock = self.service()
        clock.advance(trim.EVERY)
        made.stopService()
