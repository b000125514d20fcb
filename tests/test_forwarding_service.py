"""The service between the planes: what it does now and then, with a control plane of which there is only the shape."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ipop_tx.core import events as e
from ipop_tx.forwarding.memory import FramePair
from ipop_tx.forwarding.reassembly import OLDEST
from ipop_tx.forwarding.width import UNREPORTED
from ipop_tx.services.forwarding import ForwardingService
from ipop_tx.values import Endpoint
from tests.plane import NETWORK, Wire, clear_pair

PEER = bytes((2,)) * 20


class Protocol:
    """The shape of a `ChordProtocol`."""

    def __init__(self, clock: Clock) -> None:
        self.node: Any = SimpleNamespace(ident=bytes((1,)) * 20, network=NETWORK, links=(), link=lambda ident: SimpleNamespace(rtt=0.01))
        self.clock = clock.seconds
        self.submitted: list[object] = []
        self.listeners: dict[type, Any] = {}

    def on(self, kind: type, listener: Any) -> None:
        self.listeners[kind] = listener

    def submit(self, command: object) -> None:
        self.submitted.append(command)

    def datagram_received(self, endpoint: Endpoint, datagram: bytes | memoryview) -> None:
        raise AssertionError("nothing for it")


class ForwardingServiceTests(SynchronousTestCase):
    """One peer, whose path has become wide."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.protocol: Any = Protocol(self.clock)
        self.service = ForwardingService(self.clock, self.protocol, FramePair(), Wire())
        self.service.startService()
        self.addCleanup(self.service.stopService)
        self.session, _ = clear_pair(0x80000001, 0x80000002)
        peer = self.service.fib.update(PEER, [self.session], Endpoint("mem", "192.0.2.2", 4500))
        assert peer is not None
        self.peer = peer
        self.count = 60000
        self.report(self.count)

    def report(self, count: int) -> None:
        """All of so many records were opened."""
        self.protocol.listeners[e.Reported](e.Reported(PEER, self.session.channel.send_index, count - 1, count, 0))

    def sends(self, seconds: float, reported: bool) -> None:
        """Twenty records each tenth of a second."""
        for _ in range(round(10 * seconds)):
            self.peer.tx_records += 20
            self.peer.tx_pieces += 400
            if reported:
                self.count += 20
                self.report(self.count)
            self.clock.advance(0.1)

    def test_wide_records_that_nobody_opens(self) -> None:
        """The width is one after about a second without reports, and is as wide as the next report allows."""
        self.sends(5, reported=True)
        self.assertGreater(self.peer.width.pieces, 10)
        self.sends(UNREPORTED - 0.2, reported=False)
        self.assertGreater(self.peer.width.pieces, 10)
        self.sends(0.8, reported=False)
        self.assertEqual(self.peer.width.pieces, 1)
        self.count += 400
        self.sends(0.1, reported=True)
        self.assertGreater(self.peer.width.pieces, 10)

    def test_unfinished_records_get_no_older(self) -> None:
        """Also when nothing more arrives."""
        reassembly = self.service.plane.inbound.reassembly
        reassembly.add(0x80000001, 7, bytes(16), 0, 2, memoryview(b"half"))
        self.clock.pump([0.25] * round(OLDEST * 4 - 2))
        self.assertEqual(len(reassembly), 1)
        self.clock.pump([0.25] * 4)
        self.assertEqual((len(reassembly), reassembly.lost), (0, 1))
