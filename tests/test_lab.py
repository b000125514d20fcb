"""A lab leaves nothing behind, however it ends, and never touches what is somebody else's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from twisted.trial import unittest

from ipop_tx.errors import EnvironmentProblem, LocalMisuse, PermissionProblem
from ipop_tx.lab import Lab, Nat, netns, wait_for
from ipop_tx.lab.registry import PLACE, Record, clean, records, started
from tests.system import why_not

_OWNER = """
import sys
from ipop_tx.lab import Lab, Nat
with Lab("victim") as lab:
    host = lab.site("home", Nat.PORT_RESTRICTED).host("h1")
    sleeper = host.start(["sh", "-c", "trap '' TERM; exec sleep 1000"])
    if "keep" in sys.argv:
        lab.keep()
    print(lab.scratch, flush=True)
    if "keep" not in sys.argv:
        sys.stdin.read()
"""


class _Owner:
    """A process of its own that owns a lab with one stubborn program in it."""

    def __init__(self, *words: str) -> None:
        root = str(Path(__file__).parents[1])
        self.process = subprocess.Popen(
            [sys.executable, "-c", _OWNER, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "PYTHONPATH": root},
        )
        assert self.process.stdout is not None
        self.scratch = Path(self.process.stdout.readline().strip())
        self.record = next(record for record in records() if record.owner == self.process.pid)

    def end(self, how: signal.Signals = signal.SIGKILL) -> int:
        """Send a signal and wait for the end."""
        self.process.send_signal(how)
        self.process.communicate()
        return self.process.returncode

    def leftovers(self) -> list[object]:
        """All that is still there of its lab."""
        files = [path for path in (self.scratch, self.record.path) if path.exists()]
        return [*netns.members(self.record.namespaces), *netns.present(self.record.namespaces), *files]


class LabTests(unittest.SynchronousTestCase):
    """Beginning and end."""

    skip = why_not()

    def owner(self, *words: str) -> _Owner:
        """A victim that certainly goes."""
        owner = _Owner(*words)
        self.addCleanup(lambda: owner.record.destroy(grace=0))
        self.addCleanup(owner.process.communicate)
        self.addCleanup(owner.process.kill)
        return owner

    def test_close_leaves_nothing(self) -> None:
        """Namespaces, processes, files and the record are gone; a second close does no harm."""
        with Lab("own") as lab:
            host = lab.site("home", Nat.PORT_RESTRICTED).host("h1")
            process = host.start(["sleep", "1000"])
            (record,) = [record for record in records() if record.owner == os.getpid()]
            self.assertIn(process.pid, netns.members(record.namespaces))
            scratch = lab.scratch
        self.assertEqual(process.returncode, -signal.SIGTERM)
        self.assertEqual((netns.present(record.namespaces), scratch.exists(), record.path.exists()), ([], False, False))
        lab.close()

    def test_an_error_cleans_up(self) -> None:
        """An exception in the body goes through, and the lab goes."""
        with self.assertRaises(ZeroDivisionError), Lab("own") as lab:
            namespace = lab.public_host("a").namespace
            raise ZeroDivisionError
        self.assertEqual(netns.present([namespace]), [])

    def test_a_killed_owner_is_cleaned_up_after_by_the_next(self) -> None:
        """After SIGKILL everything is still there; entering any lab removes it."""
        owner = self.owner()
        owner.end(signal.SIGKILL)
        self.assertEqual(len(netns.present(owner.record.namespaces)), 3)
        self.assertTrue(netns.members(owner.record.namespaces))
        with Lab("next"):
            self.assertEqual(owner.leftovers(), [])

    def test_a_living_owner_is_left_alone(self) -> None:
        """The labs of two processes do not see each other."""
        owner = self.owner()
        before = owner.leftovers()
        self.assertEqual(len(before), 6)  # a process, three namespaces, two files
        with Lab("next"):
            self.assertEqual(clean(kept=True), [])
        self.assertEqual(owner.leftovers(), before)

    def test_sigterm_and_interrupt_clean_up(self) -> None:
        """Whoever asks a lab's owner to stop gets a clean machine, even when a program in it does not want to."""
        for how in (signal.SIGTERM, signal.SIGINT):
            owner = self.owner()
            self.assertNotEqual(owner.end(how), 0)
            self.assertEqual(owner.leftovers(), [])

    def test_a_kept_lab_stays_until_it_is_asked_to_go(self) -> None:
        """`keep` survives the owner and the next lab; `clean(kept=True)` removes it."""
        owner = self.owner("keep")
        owner.process.communicate()
        with Lab("next"):
            self.assertTrue(netns.members(owner.record.namespaces))
        self.assertIn(owner.record.path, [record.path for record in clean(kept=True)])
        self.assertEqual(owner.leftovers(), [])

    def test_a_pid_that_came_again_is_no_owner(self) -> None:
        """An owner is known by its start time too."""
        record = Record("own", os.getpid(), started(os.getpid()), "/nonexistent")
        self.assertTrue(record.alive)
        record.owner_started -= 1
        self.assertFalse(record.alive)

    def test_a_record_that_cannot_be_read(self) -> None:
        """It is named, and nothing is guessed from it."""
        strange = PLACE / f"strange-{os.getpid()}.json"
        self.addCleanup(strange.unlink)
        for text in ("{", '{"lab": "x", "colour": 1}'):
            strange.write_text(text)
            self.assertIn(str(strange), str(self.assertRaises(EnvironmentProblem, records)))

    def test_names_are_checked(self) -> None:
        """A bad name, and one that is taken, are refused."""
        self.assertRaises(LocalMisuse, Lab, "no spaces")
        with Lab("own") as lab:
            lab.public_host("a")
            self.assertRaises(LocalMisuse, lab.public_host, "a")

    def test_output_is_kept_in_the_log(self) -> None:
        """A program's output can be read while and after it runs."""
        with Lab("own") as lab:
            process = lab.public_host("a").start(["sh", "-c", "echo word; exec sleep 1000"])
            wait_for("the word", 5, lambda: process.output == "word\n")
            self.assertEqual(process.stop(), -signal.SIGTERM)
            self.assertEqual(process.stop(), -signal.SIGTERM)


class RootTests(unittest.SynchronousTestCase):
    """Without root there is one clear sentence."""

    def test_without_root(self) -> None:
        """An ordinary user is told to use sudo."""
        self.patch(os, "geteuid", lambda: 1000)
        error = self.assertRaises(PermissionProblem, Lab("own").__enter__)
        self.assertEqual(str(error), "only root may make network namespaces: run it again with sudo")
