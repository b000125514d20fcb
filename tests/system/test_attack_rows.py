"""The quickest attacks of `python -m tests.attacks`, and that the runner tells a failure from an error."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.attacks import __main__ as runner
from tests.attacks import rows_member, rows_wire
from tests.system import why_not
from tests.system.case import LabTestCase

ROOT = Path(__file__).parents[2]
QUICK = (
    rows_wire.WireAttacks("test_replayed_data"),
    rows_member.MemberAttacks("test_a_foreign_source"),
    rows_member.CertificateAttacks("test_bad_certificates"),
    rows_wire.SocketAttacks("test_others_at_the_control_socket"),
    rows_wire.LanAttacks("test_the_overlay_from_the_lan"),
)


class RowTests(LabTestCase):
    """With the defences, then one without."""

    skip = why_not("curl")

    def setUp(self) -> None:
        """Each row has a lab of its own."""

    def test_quick_rows(self) -> None:
        """They hold."""
        for test in QUICK:
            with self.subTest(test.id()):
                how, why, _ = runner.outcome(test, "")
                self.assertEqual((how, why), ("passed", ""))

    def test_a_defence_that_is_missing(self) -> None:
        """It is seen, as a failure."""
        self.assertEqual(runner.outcome(QUICK[1], "source_check")[0], "failed")

    def test_every_defence_can_be_taken_out(self) -> None:
        """What they are taken out of is there."""
        script = "from tests.attacks.undone import DEFENCES; print(len([undo() for undo in DEFENCES.values()]))"
        done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True, cwd=ROOT)
        self.assertGreater(int(done.stdout or 0), 20, done.stderr)

    def test_every_row_has_a_name(self) -> None:
        """And every defence that is named can be taken out."""
        from tests.attacks.undone import DEFENCES

        for test in runner.tests():
            self.assertIn(runner.shown(test).number, runner.NAMES)
            self.assertIn(runner.shown(test).defence, DEFENCES)
