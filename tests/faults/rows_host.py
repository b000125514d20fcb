"""Faults of the machine around the daemon: clocks, suspension, the interface, descriptors, a daemon that stands still, restarts."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import time

from ipop_tx.lab.node import LabNode
from ipop_tx.lab.waiting import holds_within
from tests.faults.case import BACK, FaultCase, shows
from tests.faults.shim import Shim

HOUR, YEAR = 3600, 365 * 86400
RECOVERED = 5.0
"""Seconds after which traffic goes again when a machine wakes up."""
FEW = 96
"""Descriptors that a daemon may have when they are to be exhausted."""


class RestartTests(FaultCase):
    """Both ends at once."""

    @shows(2)
    def test_both_ends(self) -> None:
        """Both daemons are killed and start in the same moment, so that their handshakes cross: one session, and traffic, each time."""
        founder, other = self.pair()
        longest = 0.0
        for _ in range(3):
            for node in (founder, other):
                node.kill9()
            for node in (founder, other):
                node.start()
            begun = time.monotonic()
            for node in (founder, other):
                node.wait_until_up(BACK)
            self.assertTrue(founder.reaches(other.address, BACK))
            longest = max(longest, time.monotonic() - begun)
        time.sleep(2.0)
        links = [[peer["name"] for peer in node.status()["peers"]] for node in (founder, other)]
        self.figures.update(restarts=3, longest_s=round(longest, 2))
        self.assertEqual(links, [["other"], ["founder"]])
        self.assertLess(longest, BACK)


class ClockTests(FaultCase):
    """One of two machines has another idea of time, from one moment to the next."""

    def clocked(self) -> tuple[LabNode, LabNode, Shim]:
        """The second one's clocks are in our hands."""
        founder = self.found(self.lab.public_host("founder"))
        other = self.node_on(self.lab.public_host("other"))
        shim = Shim(other)
        other.enter(founder)
        self.assertTrue(founder.reaches(other.address))
        founder.wait_for_path(other, lambda path: path.startswith("direct"))
        self.settle(founder, other)
        return founder, other, shim

    @shows(4, quick=True)
    def test_an_hour(self) -> None:
        """The wall clock goes forth and back by an hour: no packet is lost. A restart works, or says that the certificate is too young."""
        founder, other, shim = self.clocked()
        with self.pinged(founder, other.address) as pings:
            for seconds in (HOUR, -HOUR, 0):
                shim.set(wall_s=seconds)
                time.sleep(3.0)
        self.figures.update({f"hour_{name}": value for name, value in pings.items()})
        self.assertLessEqual(pings["lost"], 1)
        shim.set(wall_s=-HOUR)
        other.kill9()
        said = other.refuse().text
        self.assertIn("certificate begins only at", said)
        self.assertIn("compare the machines' clocks", said)
        for seconds in (HOUR, 0):
            shim.set(wall_s=seconds)
            other.kill9()
            other.start()
            other.wait_until_up(BACK)
            self.assertTrue(founder.reaches(other.address, BACK), f"with a clock that is wrong by {seconds} s")

    @shows(4)
    def test_ten_years(self) -> None:
        """By ten years: what runs goes on; a start says what is wrong, and works when the clock is right again."""
        founder, other, shim = self.clocked()
        with self.pinged(founder, other.address) as pings:
            for seconds in (10 * YEAR, -10 * YEAR, 0):
                shim.set(wall_s=seconds)
                time.sleep(3.0)
        self.figures.update({f"years_{name}": value for name, value in pings.items()})
        self.assertLessEqual(pings["lost"], 1)
        said = {}
        for name, seconds in (("ahead", 10 * YEAR), ("behind", -10 * YEAR)):
            shim.set(wall_s=seconds)
            other.kill9()
            said[name] = self._says(other)
            self.assertRegex(said[name], "certificate|clock", "in words")
        shim.set(wall_s=0)
        other.kill9()
        other.start()
        other.wait_until_up(BACK)
        self.assertTrue(founder.reaches(other.address, BACK))
        self.figures["said"] = said

    def _says(self, node: LabNode) -> str:
        """What its user sees of a start: a refusal, or a warning in the log or the status."""
        process = node.start()
        holds_within(BACK, lambda: process.returncode is not None or "peer_rejected" in process.output)
        lines = [line for line in process.output.splitlines() if line.startswith("ipop: ") or "peer_rejected" in line]
        health = []
        if process.returncode is None:
            with contextlib.suppress(Exception):
                health = node.status()["health"]
        return " | ".join([*(line[-160:] for line in lines[:1]), *health])

    @shows(4)
    def test_fifteen_seconds_asleep(self) -> None:
        """The daemon stands still for 15 s: traffic goes again soon, at the same address."""
        self.asleep(15.0, 0)

    @shows(4)
    def test_eight_hours_asleep(self) -> None:
        """It stands still, and the clock that counts sleep says eight hours more (the others have not waited so long: see `rows_sim`)."""
        self.asleep(15.0, 8 * HOUR)

    def asleep(self, seconds: float, more: int) -> None:
        """Stopped so long; `more` seconds are added to the clocks meanwhile."""
        founder, other, shim = self.clocked()
        address = other.address
        assert other.process is not None
        other.process.send(signal.SIGSTOP)
        time.sleep(seconds)
        shim.set(boot_s=more, wall_s=more)
        other.process.send(signal.SIGCONT)
        begun = time.monotonic()
        self.assertTrue(founder.reaches(address, 30))
        took = time.monotonic() - begun
        self.figures[f"awake_after_s_{more // HOUR}_h"] = round(took, 2)
        self.assertLess(took, RECOVERED)
        self.assertEqual(other.address, address)


class MachineTests(FaultCase):
    """What a daemon cannot do without."""

    @shows(13, quick=True)
    def test_the_tap_is_deleted(self) -> None:
        """The interface is made again, with its addresses; traffic goes on."""
        founder, other = self.pair()
        address = other.address
        other.host.run(["ip", "link", "del", "ipop0"])
        begun = time.monotonic()
        self.assertTrue(holds_within(BACK, lambda: other.address_on_tap() == address))
        self.assertTrue(founder.reaches(address, BACK))
        self.figures["tap_again_s"] = round(time.monotonic() - begun, 2)
        self.assertTrue(other.reaches(founder.address, 2))
        self.assertEqual(other.status()["health"], [])

    @shows(13)
    def test_no_descriptors_left(self) -> None:
        """Connections to the control socket and by TLS take all there are: some are refused, traffic goes on, and later all is well."""
        founder = self.node_on(self.lab.public_host("founder"))
        founder.keys["listen.tls"] = {"port": 443}
        founder.create("lab")
        founder.start()
        founder.wait_until_up()
        other = self.admit(founder, self.lab.public_host("other"))
        self.assertTrue(founder.reaches(other.address))
        assert founder.process is not None
        pid = str(founder.process.pid)
        subprocess.run(["prlimit", "--pid", pid, f"--nofile={FEW}:{FEW}"], check=True)
        held: list[socket.socket] = []
        attacker = self.lab.public_host("attacker")
        with self.pinged(other, founder.address) as pings:
            for _ in range(2 * FEW):
                line = socket.socket(socket.AF_UNIX)
                line.settimeout(1.0)
                with contextlib.suppress(OSError):
                    line.connect(str(founder.socket))
                stream = attacker.socket(socket.SOCK_STREAM)
                stream.settimeout(0.2)
                with contextlib.suppress(OSError):
                    stream.connect((founder.host.address, 443))
                held += [line, stream]
            time.sleep(3.0)
            for one in held:
                one.close()
        self.figures.update({f"descriptors_{name}": value for name, value in pings.items()})
        self.assertLessEqual(pings["lost"], 2)
        self.assertIsNone(founder.process.returncode)
        self.assertTrue(holds_within(BACK, lambda: founder.status()["self"]["name"] == "founder"))
        self.admit(founder, self.lab.public_host("newcomer"))

    @shows(13)
    def test_the_reactor_stalls(self) -> None:
        """One of five daemons stands still for 5 s: the others keep one another, it keeps its place, nobody's address changes."""
        founder = self.found(self.lab.public_host("founder"))
        nodes = [founder, *(self.admit(founder, self.lab.public_host(f"node{number}")) for number in range(4))]
        self.assert_reach(*nodes)
        addresses = [node.address for node in nodes]
        stalled = nodes[2]
        assert stalled.process is not None
        before = [self._downs(node) for node in nodes]
        with self.pinged(nodes[1], nodes[3].address) as pings:
            stalled.process.send(signal.SIGSTOP)
            time.sleep(5.0)
            stalled.process.send(signal.SIGCONT)
            begun = time.monotonic()
            self.assertTrue(founder.reaches(stalled.address, 20))
            took = time.monotonic() - begun
            time.sleep(5.0)
        downs = [now - then for now, then in zip([self._downs(node) for node in nodes], before, strict=True)]
        others = sum(downs[place] for place in (0, 1, 3, 4))
        self.figures.update(stalled_back_s=round(took, 2), links_lost_by_others=others, links_lost_by_it=downs[2], **pings)
        self.assertLess(took, RECOVERED)
        self.assertLessEqual(pings["lost"], 1)
        self.assertLessEqual(others, 4, "no more than those to the one that stood still")
        self.assertLessEqual(downs[2], 4)
        self.assertEqual([node.address for node in nodes], addresses)
        self.assert_reach(*nodes)

    def _downs(self, node: LabNode) -> int:
        """How many links it has lost, for other reasons than that nobody needed them."""
        assert node.process is not None
        return sum("link_down" in line and "no longer needed" not in line for line in node.process.output.splitlines())
