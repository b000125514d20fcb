"""What a node says of where it can be reached."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ipop_tx.core import commands as c
from ipop_tx.services.natpunch import NATPunchService
from ipop_tx.values import Endpoint
from tests.plane import NETWORK


class ReachableTests(SynchronousTestCase):
    """The addresses of this machine, as they are told to the node."""

    def test_addresses_of_the_network_itself(self) -> None:
        """A bridge has the node's overlay addresses beside others: by those it is reached through itself only."""
        told: list[Any] = []
        protocol: Any = SimpleNamespace(on=lambda kind, listener: None, node=SimpleNamespace(network=NETWORK), submit=told.append)
        own = Endpoint("udp", "192.0.2.7", 4500)
        others = [Endpoint("udp", str(NETWORK.pool[9]), 4500), Endpoint("udp", str(NETWORK.prefix[9]), 4500)]
        onion = Endpoint("onion", "x" * 56 + ".onion", 4500)
        transport: Any = SimpleNamespace(local_endpoints=lambda: [*others, own, onion])
        service = NATPunchService(Clock(), protocol, transport, ())
        service.look()
        service.look()
        self.assertEqual(told, [c.Reachable((own, onion), carries=(("udp", 0),))])
