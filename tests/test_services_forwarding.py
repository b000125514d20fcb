"""Where the planes meet: what the forwarding plane is told of links, and when."""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ipop_tx.core.events import AddressMoved
from ipop_tx.core.links.link import Keyed, Link
from ipop_tx.forwarding.memory import FramePair
from ipop_tx.forwarding.neighbour import announcement
from ipop_tx.services.forwarding import ForwardingService
from ipop_tx.values import Endpoint, Peer
from ipop_tx.wire.address import mac_of
from tests.plane import NETWORK, Wire, clear_pair

OURS, THEIRS, THIRD = b"a" * 20, b"b" * 20, b"c" * 20
ADDRESS = IPv4Address("10.128.3.4")


class Node:
    """A node of which a test makes the links."""

    ident = OURS
    network = NETWORK

    def __init__(self) -> None:
        self.links: list[Link] = []
        self.clock = lambda: 0.0
        self.node = self
        self.linked: Deferred[Link] = Deferred()

    def on(self, kind: type, listener: Any) -> None:
        """Nothing is ever told."""

    def datagram_received(self, endpoint: Endpoint, datagram: bytes) -> None:
        """Nothing comes either."""

    def submit(self, command: object) -> Deferred[Link]:
        """Connect, and nothing else."""
        return self.linked


class ConnectTests(SynchronousTestCase):
    """A link that was asked for because frames wait for it."""

    def setUp(self) -> None:
        self.node: Any = Node()
        self.service = ForwardingService(Clock(), self.node, None, Wire())

    def link(self) -> Link:
        """A link that has just come up."""
        link = Link(Peer(THEIRS, "b"), 0.0, True)
        link.sessions.append(Keyed(clear_pair(1, 2)[0], 0.0, True))
        link.active = Endpoint("udp", "192.0.2.1", 4500)
        return link

    def test_the_fib_knows_it_before_the_answer(self) -> None:
        """The event `LinkUp` comes later; frames that wait may not be given up until then."""
        seen = []
        answer = self.service.connect(THEIRS)
        answer.addCallback(lambda link: seen.append(self.service.fib.by_ident[THEIRS].reachable))
        self.node.linked.callback(self.link())
        self.successResultOf(answer)
        self.assertEqual(seen, [True])

    def test_one_that_is_down_again(self) -> None:
        link = self.link()
        link.up = False
        self.node.linked.callback(link)
        self.successResultOf(self.service.connect(THEIRS))
        self.assertEqual(self.service.fib.by_ident, {})


class MovedTests(SynchronousTestCase):
    """An address that was one member's is another's."""

    def setUp(self) -> None:
        self.node: Any = Node()
        self.port = FramePair(mtu=1500)
        self.service = ForwardingService(Clock(), self.node, self.port, Wire())
        self.port.start(self.service.plane)
        self.former = self.service.fib.update(THEIRS, [], None)
        assert self.former is not None
        self.former.addresses.add(ADDRESS.packed)

    def test_moved(self) -> None:
        """The former owner's frames are not believed any more, and the kernel hears of the new one."""
        self.service._moved(AddressMoved(ADDRESS.packed, THEIRS, THIRD))
        self.assertEqual(self.former.addresses, set())
        self.assertEqual(self.port.taken, [announcement(ADDRESS, mac_of(THIRD))])

    def test_to_nobody_or_to_us(self) -> None:
        """Then there is nothing to tell the kernel."""
        for owner in (None, OURS):
            self.service._moved(AddressMoved(ADDRESS.packed, THEIRS, owner))
        self.assertEqual((self.former.addresses, self.port.taken), (set(), []))
