"""Members gone bad that abuse others as their hands: to hit a third party, and to hold up what they relay."""

from __future__ import annotations

import random
import socket
import struct
import time
from collections.abc import Callable

from ipop_tx.core.links.consent import TARGETS
from ipop_tx.lab.node import LabNode
from ipop_tx.wire import messages as m
from ipop_tx.wire.datagram import CONTROL
from tests.attacks.case import AttackCase, ChangedNode, shows
from tests.attacks.wire import Eyes, cut

HEADERS = 28
"""Bytes of IPv4 and UDP headers."""
ANOTHER_WAY = 10.0
"""Seconds within which traffic must have left a relay that mistreats it."""
EVERY = 0.05
SOON = 1.0
"""Seconds after which a datagram counts as held up."""
_SO_NO_CHECK = 11


class ReflectionAttacks(AttackCase):
    """A member that cannot be reached directly has another one challenge what it calls its candidates."""

    def begun(self) -> tuple[ChangedNode, ChangedNode]:
        """A victim's helper against its will, and the attacker, whom it reaches only through a relay."""
        founder, wicked = self.wicked_pair()
        self.admit(founder, self.lab.public_host("relay"))
        self.lab.core.run(["nft", "-f", "-"], text=cut(founder.host, wicked.host))
        pings = founder.host.start(["ping", "-n", "-q", "-i0.2", wicked.address], log="pings.log")
        founder.wait_for_path(wicked, lambda path: path.startswith("relay"), 60)
        pings.stop()
        time.sleep(3.0)  # what the loss of the path has begun
        return founder, wicked

    @shows(7, "consent")
    def test_ports_of_a_third_party(self) -> None:
        """All candidates are one victim's: it gets no more than thrice what the attacker has sent."""
        founder, wicked = self.begun()
        victim = self.lab.public_host("victim").address
        with Eyes(self.lab.core) as eyes:
            for number in range(60):
                self.offer(wicked, [f"udp:{victim}:{7 + 8 * number + place}" for place in range(8)])
            time.sleep(2.5)  # the last rounds of challenges
            paid = sum(HEADERS + len(one.payload) for one in eyes.seen(source=wicked.host.address))
            told = sum(HEADERS + len(one.payload) for one in eyes.seen(founder.host.address, victim))
        self.figures.update(bytes_of_attacker=paid, bytes_to_victim=told, ratio=round(told / paid, 2))
        self.assertGreater(told, 0, "a candidate is challenged at all")
        self.assertLessEqual(told, 3 * paid)
        self.assertTrue(founder.reaches(wicked.address, 10))

    @shows(7, "consent")
    def test_many_third_parties(self) -> None:
        """Candidates at 160 addresses: few of them are challenged in a minute."""
        founder, wicked = self.begun()
        with Eyes(self.lab.core) as eyes:
            for number in range(20):
                self.offer(wicked, [f"udp:192.88.{number}.{1 + place}:53" for place in range(8)])
            time.sleep(2.5)
            hit = {one.target[0] for one in eyes.seen(founder.host.address) if one.target[0].startswith("192.88.")}
        self.figures["addresses_hit"] = len(hit)
        self.assertGreater(len(hit), 0)
        self.assertLessEqual(len(hit), TARGETS)

    def offer(self, wicked: ChangedNode, candidates: list[str]) -> None:
        """One message with candidates."""
        body = m.encode(m.Request(random.getrandbits(52), m.Offer(tuple(candidates))))
        wicked.do("seal", peer="founder", kind=CONTROL, payload=body.hex())


class RelayAttacks(AttackCase):
    """Two members without a direct path; whoever relays for them is wicked, and lets all challenges through."""

    def mistreated(self, how: str, seconds: float = 20.0) -> None:
        """Datagrams in a steady row between the two, without checksums of their own: what comes of them once they are mistreated."""
        wicked = [self.wicked_founder(), None]
        wicked[1] = self.puppet(wicked[0], self.lab.public_host("second"))
        one, other = (self.admit(wicked[0], self.lab.public_host(name)) for name in ("one", "other"))
        self.lab.core.run(["nft", "-f", "-"], text=cut(one.host, other.host))
        self.assertTrue(one.reaches(other.address))
        used = one.wait_for_path(other, lambda path: path.startswith("relay via "), 60).removeprefix("relay via ")
        time.sleep(6.0)  # both relays are measured
        flow = Flow(one, other)
        flow.run(2.0)
        self.assertEqual(flow.bad(0.0), [], "before the attack")
        used = one.path_to(other).removeprefix("relay via ")
        next(node for node in wicked if node is not None and node.name == used).do("mistreat", how=how)
        begun = time.monotonic()
        flow.run(seconds)
        flow.close()
        bad = flow.bad(begun)
        away = max(bad, default=begun) - begun
        self.figures.update({f"{how}_s_until_another_way": round(away, 1), f"{how}_bad_datagrams": len(bad)})
        self.assertEqual(flow.foreign, 0, "nothing is delivered that was not sent")
        self.assertEqual(flow.twice, 0, "nothing is delivered twice")
        self.assertGreater(len(bad), 0, "the attack was seen")
        self.assertLess(away, ANOTHER_WAY)
        self.assertNotIn(used, one.path_to(other))

    def wicked_founder(self) -> ChangedNode:
        """A puppet that has made the network."""
        node = self.node_on(self.lab.public_host("first"))
        node.changes = (*node.changes, "puppet")
        node.create("lab")
        node.start()
        node.wait_until_up()
        return node

    @shows(17, "relay_watch")
    def test_it_drops(self) -> None:
        """Traffic alone is dropped."""
        self.mistreated("drop")

    @shows(17, "relay_watch")
    def test_it_delays_and_reorders(self) -> None:
        """Traffic alone is held up, for another time each."""
        self.mistreated("delay")

    @shows(17, "authentication")
    def test_it_alters(self) -> None:
        """One bit of each packet: nothing altered is delivered."""
        self.mistreated("alter")


class Flow:
    """Numbered datagrams from one member to another over the network."""

    def __init__(self, one: LabNode, other: LabNode, every: float = EVERY, meanwhile: Callable[[], None] = lambda: None) -> None:
        """`meanwhile` is called all the time while it runs."""
        self.foreign = self.twice = 0
        self.sent: dict[bytes, float] = {}
        self.got: dict[bytes, float] = {}
        self._every, self._meanwhile = every, meanwhile
        self._target = other.address, 7
        self._to, self._from = other.host.socket(), one.host.socket()
        self._to.bind(self._target)
        self._to.setblocking(False)
        self._from.setsockopt(socket.SOL_SOCKET, _SO_NO_CHECK, 1)  # else the kernel would see what was altered

    def run(self, seconds: float) -> None:
        """Send and take for so long."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            payload = struct.pack("!Q", len(self.sent)) + random.randbytes(24)
            self.sent[payload] = time.monotonic()
            self._from.sendto(payload, self._target)
            pause = time.monotonic() + self._every
            while time.monotonic() < pause:
                time.sleep(min(self._every, 0.005))
                self._meanwhile()
            self._take()

    def close(self) -> None:
        """Give the sockets back."""
        self._to.close()
        self._from.close()

    def _take(self) -> None:
        while True:
            try:
                payload = self._to.recv(2048)
            except BlockingIOError:
                return
            self.foreign += payload not in self.sent
            self.twice += payload in self.got
            self.got.setdefault(payload, time.monotonic())

    def bad(self, since: float) -> list[float]:
        """When those were sent, from a moment on, that did not come or came too late; the very last ones are still on their way."""
        last = time.monotonic() - SOON
        return [sent for payload, sent in self.sent.items() if since <= sent < last and self.got.get(payload, sent + 9) - sent > SOON]
