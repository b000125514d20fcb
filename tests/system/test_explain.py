"""`ipop explain` names each planted fault, with the right mend (`python -m tests.explain`)."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.explain.__main__ import run
from tests.explain.faults import FAULTS
from tests.system import why_not


class ExplainTests(SynchronousTestCase):
    """One lab for all of them."""

    skip = why_not()

    def test_planted_faults(self) -> None:
        """Each code comes first, and was not there before. A row may be wrong once: on a busy machine a brief certificate ends too soon."""
        rows = run(FAULTS)
        wrong = [fault for fault, row in zip(FAULTS, rows, strict=True) if not row["right"]]
        self.assertLess(len(wrong), 3, rows)
        again = run(wrong) if wrong else []
        self.assertEqual([(one["fault"], one["why"]) for one in again if not one["right"]], [])
        self.assertGreaterEqual(len({one["code"] for one in rows}), 20)
