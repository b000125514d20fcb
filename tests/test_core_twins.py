"""One identity on two machines: the others say so, and neither is harmed by its own shadow."""

from __future__ import annotations

from ipop_tx.core import commands as c
from tests.net import NetCase


class TwinTests(NetCase):
    """A state directory was copied; both copies run."""

    def test_others_tell(self) -> None:
        """A member that hears one identity from two places in turn has a sentence that names it."""
        net = self.net()
        machines = self.grow(net, 3)
        original = machines[2]
        copy = net.add()
        copy.ident, copy.peer = original.ident, original.peer
        copy.start(machines[0])
        told = machines[0].running.links.twins
        self.becomes(net, lambda: original.ident in told, 400.0, "a warning")
        self.assertIn(f"the identity of {original.peer.name} is used by two machines (", told[original.ident])

    def test_a_restart_is_no_twin(self) -> None:
        """Nor is a machine that moves to another address now and then."""
        net = self.net()
        machines = self.grow(net, 3)
        for _ in range(6):
            machines[2].crash()
            net.run(2.0)
            machines[2].start(machines[0])
            net.run(10.0)
        self.assertEqual(machines[0].running.links.twins, {})

    def test_own_endpoint(self) -> None:
        """A node that knocks on itself hears so at once."""
        net = self.net()
        machine = self.grow(net, 1)[0]
        knocking = machine.running.links.connect_endpoint(machine.endpoint)
        machine.settle()
        net.run(1.0, lambda: knocking.done)
        self.assertIn("is this node itself", str(knocking.error))
        self.assertIsNone(net.wait(machine.submit(c.Get(bytes(20)))))
