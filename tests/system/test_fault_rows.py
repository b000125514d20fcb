"""The quickest faults of `python -m tests.faults`, and that its runner sees a failure."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.faults import __main__ as runner
from tests.faults import shim
from tests.faults.case import SimulatedCase, shows
from tests.system import why_not


def failing() -> type[SimulatedCase]:
    """Made where trial does not look for tests."""

    class Failing(SimulatedCase):
        """A row that does not hold."""

        @shows(1)
        def test_fails(self) -> None:
            """For want of anything else."""
            self.figures["tried"] = 1
            self.assertEqual(1, 2)

        @shows(1)
        def test_skipped(self) -> None:
            """What was not shown has not passed."""
            self.skipTest("no reason")

    return Failing


class RowTests(SynchronousTestCase):
    """Each has a lab or a net of its own."""

    skip = why_not("curl") or shim.why_not()

    def test_quick_rows(self) -> None:
        """They hold."""
        for test in runner.quick():
            with self.subTest(test.id()):
                found = runner.part(test)
                self.assertEqual((found["passed"], found.get("why")), (True, None), found)

    def test_every_row(self) -> None:
        """Each has a name and a test."""
        self.assertEqual(sorted({runner.row_of(test) for test in runner.tests()}), sorted(runner.NAMES))

    def test_a_row_that_fails(self) -> None:
        """It is told with its figures; so is one that was skipped."""
        found = [runner.part(failing()(name)) for name in ("test_fails", "test_skipped")]
        self.assertEqual([one["passed"] for one in found], [False, False])
        self.assertEqual((found[0]["figures"], found[1]["why"]), ({"tried": 1}, "no reason"))
        self.assertFalse(runner.row(1, found)["passed"])
