"""A short run of the fuzzer, and that it finds what it looks for."""

from __future__ import annotations

from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from tests import bombs, fuzz, fuzz_seeds


class FuzzTests(SynchronousTestCase):
    """`python -m tests.fuzz` runs for longer."""

    def test_all_parsers(self) -> None:
        """Each gives a value or raises an `IpopError`; memory stays."""
        found = fuzz.run(100_000, 2, list(fuzz.PARSERS))
        self.assertEqual(found["broken"], [])
        self.assertGreater(found["executions"], 99_000)
        self.assertLess(found["memory_grown_mb"], 100)

    def test_bombs(self) -> None:
        """Nesting, promises of gigabytes, truncation at every byte: each parser, a value or an `IpopError`, in little memory and time."""
        for name in fuzz.PARSERS:
            with self.subTest(name):
                count, most, broken = bombs.against(name)
                self.assertEqual(broken, [])
                self.assertGreater(count, 150)
                self.assertLess(most, bombs.MOST_BYTES)

    def test_a_bomb_that_goes_off(self) -> None:
        """A parser that keeps what it is promised is found."""
        with mock.patch.dict(fuzz.PARSERS, message=lambda data: bytes(8 << 20)):
            self.assertIn("8388", bombs.against("message")[2][0])

    def test_seeds(self) -> None:
        """What the fuzzer begins with is good: else it would only ever see how a parser refuses."""
        names = ("message", "relay", "dhcp", "endpoint", "invitation", "invitation_record", "payload", "request", "credential", "policy")
        for name in names:
            with self.subTest(name):
                fuzz.PARSERS[name](fuzz_seeds.SEEDS[name][0])

    def test_a_broken_parser(self) -> None:
        """An error that is none of ours is found and kept."""

        def broken(data: bytes) -> None:
            if len(data) > 20 and data[3] == 0xFF:
                raise IndexError("out of range")

        kept: list[bytes] = []
        with mock.patch.dict(fuzz.PARSERS, message=broken), mock.patch.object(fuzz, "keep", lambda name, data: kept.append(data)):
            _, found = fuzz.fuzz("message", 50_000, 1)
        self.assertEqual(found[0], "message: IndexError: out of range")
        self.assertEqual(len(kept), len(found))
