"""Disks that are full, read-only or broken, files that are damaged, and daemons killed at any write."""

from __future__ import annotations

import errno
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from ipop_tx.lab.node import LabNode
from ipop_tx.lab.waiting import holds_within
from tests.faults.case import BACK, FaultCase, shows
from tests.faults.shim import Shim

RETRIES = 20.0
"""Seconds within which a disk that works again is used again."""


class KilledTests(FaultCase):
    """SIGKILL before the n-th change of a file, for every n there is."""

    @shows(1)
    def test_at_every_write(self) -> None:
        """The daemon starts, writes registers, and dies at each write in turn; then it is itself again, in time."""
        founder, _ = self.pair()
        victim = self.node_on(self.lab.public_host("victim"))
        shim = Shim(victim)
        victim.enter(founder)
        me = victim.status()["self"]
        victim.stop()
        kills, slowest, at = 0, 0.0, 1
        while self._dies(victim, shim, at, founder):
            kills += 1
            began = time.monotonic()
            shim.set(kill_at=0)
            victim.start()
            self.assertEqual(victim.wait_until_up(BACK), me["address"], f"killed at write {at}")
            slowest = max(slowest, time.monotonic() - began)
            self.assertEqual(victim.status()["self"]["ident"], me["ident"])
            victim.stop()
            at += 1 if at < 20 else 3
        self.figures.update(kills=kills, slowest_return_s=round(slowest, 2))
        self.assertGreater(kills, 15)

    def _dies(self, victim: LabNode, shim: Shim, at: int, founder: LabNode) -> bool:
        """Start a life that ends at its write number `at`; gives whether it has come to that."""
        shim.set(operations=0, kill_at=at)
        process = victim.start()
        holds_within(BACK, lambda: process.returncode is not None or (victim.address_on_tap() is not None and victim.socket.exists()))
        for number in range(3):
            if process.returncode is None:
                self.creates(founder, f"life{at}-{number}")
        holds_within(1.0, lambda: process.returncode is not None)
        if process.returncode is None:
            victim.kill9()
            return False
        return True


class DiskTests(FaultCase):
    """Two nodes: each register needs both of them. The disk of one does not do what it should."""

    def refused_meanwhile(self, founder: LabNode, other: LabNode, breaks: Callable[[], None], mends: Callable[[], None]) -> None:
        """Traffic goes on, status and log tell, nothing is acknowledged; when the disk is well all works again."""
        self.assertEqual(self.creates(other, "before"), "")
        with self.pinged(other, founder.address) as pings:
            breaks()
            said = self.creates(other, "unwritten")
            told = holds_within(RETRIES, lambda: any("cannot be" in sentence for sentence in founder.status()["health"]))
            alarm = [sentence for sentence in founder.status()["health"] if "cannot be" in sentence]
            time.sleep(3.0)
            mends()
            again = holds_within(RETRIES, lambda: self.creates(other, "after") == "")
        assert founder.process is not None
        self.figures.update(said=said[:80], alarm=alarm[:1], **{f"pings_{name}": value for name, value in pings.items()})
        self.assertNotEqual(said, "", "what is not on both disks is not acknowledged")
        self.assertTrue(told, "status tells")
        self.assertIn("replicas_suspended", founder.process.output)
        self.assertLessEqual(pings["lost"], 1)
        self.assertTrue(again, "it goes on when the disk is well")
        self.assertFalse([sentence for sentence in founder.status()["health"] if "cannot be" in sentence])
        kept = founder.request("POST", "/dht/get", {"entries": [{"key": "before"}]})["answers"][0]
        self.assertEqual(kept.get("text"), "x", kept)

    @shows(9, quick=True)
    def test_full(self) -> None:
        """A file system without a free byte."""
        host = self.lab.public_host("founder")
        founder = self.node_on(host)
        founder.state.mkdir(mode=0o700)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m,mode=700", "tmpfs", str(founder.state)], check=True)
        self.addCleanup(subprocess.run, ["umount", "-l", str(founder.state)], check=True)
        founder.create("lab")
        founder.start()
        founder.wait_until_up()
        other = self.admit(founder, self.lab.public_host("other"))
        self.assertTrue(founder.reaches(other.address))
        self.settle(founder, other)
        ballast = founder.state / "ballast"
        self.refused_meanwhile(founder, other, lambda: fill(ballast), ballast.unlink)

    def shimmed(self) -> tuple[LabNode, LabNode, Shim]:
        """The same pair, the founder's disk in our hands."""
        founder = self.node_on(self.lab.public_host("founder"))
        founder.create("lab")
        shim = Shim(founder)
        founder.start()
        founder.wait_until_up()
        other = self.admit(founder, self.lab.public_host("other"))
        self.assertTrue(founder.reaches(other.address))
        self.settle(founder, other)
        return founder, other, shim

    @shows(9)
    def test_read_only(self) -> None:
        """Every write is refused."""
        founder, other, shim = self.shimmed()
        self.refused_meanwhile(founder, other, lambda: shim.set(write_error=errno.EROFS), lambda: shim.set(write_error=0))

    @shows(9)
    def test_an_error_of_fsync(self) -> None:
        """Everything can be written and nothing be made durable."""
        founder, other, shim = self.shimmed()
        self.refused_meanwhile(founder, other, lambda: shim.set(sync_error=errno.EIO), lambda: shim.set(sync_error=0))


def fill(path: Path) -> None:
    """Write to a file until nothing more finds room."""
    with open(path, "wb", buffering=0) as file:
        for size in (1 << 16, 512, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue


class DamageTests(FaultCase):
    """Each file of a member's state, damaged in each of four ways while the daemon is down."""

    @shows(10)
    def test_every_file(self) -> None:
        """It comes back as itself by the last good copy, or refuses in one sentence; no new identity, no key is written over."""
        founder, other = self.pair()
        third = self.admit(founder, self.lab.public_host("third"))  # with two a majority of what the registers are kept by lives
        self.settle(founder, other, third)
        address, ident = other.address, other.status()["self"]["ident"]
        other.stop()
        good: list[str] = []
        refused: list[str] = []
        names = [path.name for path in other.state.iterdir() if path.is_file() and path.name != "lock"]
        for name in sorted(names, key=lambda name: (name.startswith("replicas"), name)):
            for kind, damage in DAMAGES.items():
                path = other.state / name
                whole = path.read_bytes()
                path.write_bytes(damage(whole))
                if self._comes_back(other, f"{name} {kind}", address, ident, name):
                    good.append(f"{name} {kind}")
                else:
                    refused.append(f"{name} {kind}")
                    path.write_bytes(whole)
        self.figures.update(cases=len(good) + len(refused), came_back=good, refused=sorted({text.split()[0] for text in refused}))
        self.assertEqual({text for text in good if "key" in text or "crt" in text}, set(), "no new identity")
        self.assertEqual([text for text in refused if "json" in text], [], "the last good copy")
        other.start()
        self.assertEqual(other.wait_until_up(), address, "with what it had")

    def _comes_back(self, other: LabNode, what: str, address: str, ident: str, name: str) -> bool:
        before = (other.state / name).read_bytes()
        process = other.start()
        holds_within(BACK, lambda: process.returncode is not None or (other.address_on_tap() is not None and other.socket.exists()))
        if process.returncode is None:
            self.assertTrue(holds_within(BACK, lambda: other.status()["self"]["address"] == address), what)
            self.assertEqual(other.status()["self"]["ident"], ident, what)
            other.stop()
            return True
        sentences = [line for line in process.output.splitlines() if line.startswith("ipop: ")]
        self.assertEqual(len(sentences), 1, f"{what}: {process.output[-2000:]}")
        self.assertIn(name.removesuffix("-wal"), sentences[0])
        self.assertNotIn("Traceback", process.output)
        self.assertEqual((other.state / name).read_bytes(), before, "it is left as it is")
        return False


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "flipped": lambda content: bytes(byte ^ (0x40 if at % 97 == 48 else 0) for at, byte in enumerate(content)),
    "zeros": lambda content: bytes(len(content)),
}
