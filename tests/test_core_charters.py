"""Charters in simulated nets: everybody hears of each, in order; and what earlier keys have signed gives way to the same signed anew."""

from __future__ import annotations

import msgspec

from ipop_tx.core import commands as c
from ipop_tx.errors import LocalMisuse
from ipop_tx.simulation.network import NETWORK, SimulatedNode
from ipop_tx.wire import messages as m
from tests.net import NetCase, by_authority, heal, split
from tests.test_core_revocation import revocation


def charter(number: int) -> m.Charter:
    """As the authority of all simulated networks gives it."""
    return by_authority(m.Charter(NETWORK.ident, number, ((b"root", 0),), (bytes(33),), 1, (bytes(1500),) * 20, 1_800_000_000))


class CharterTests(NetCase):
    """Somebody gives one, everybody has it."""

    def without(self, machines: list[SimulatedNode], number: int) -> list[int]:
        """Who runs and has another."""
        return [one.number for one in machines if one.node is not None and one.running.charters.number != number]

    def test_everybody(self) -> None:
        """30 nodes within seconds, long ones too; whoever was cut off goes through all it lacks; whoever restarts has kept them."""
        net = self.net(3)
        machines = self.grow(net, 30)
        net.wait(machines[7].submit(c.AdoptCharter(charter(1))))
        self.becomes(net, lambda: not self.without(machines, 1), 3.0, "everybody has it")
        machines[9].crash()
        split(net, machines[:15])
        net.run(60)
        for number in (2, 3, 4):
            net.wait(machines[0].submit(c.AdoptCharter(charter(number))))
        heal(net)
        self.becomes(net, lambda: not self.without(machines, 4), 120.0, "the other half goes through them")
        net.wait(machines[9].start(machines[20]))
        self.assertGreaterEqual(machines[9].running.charters.number, 1)
        self.becomes(net, lambda: not self.without(machines, 4), 10.0, "the one that was off")

    def test_refused(self) -> None:
        """One that is not the next, or not signed; one that is known already changes nothing."""
        net = self.net(4)
        machines = self.grow(net, 3)
        for bad in (charter(2), msgspec.structs.replace(charter(1), signature=b"forged")):
            self.assertIsInstance(machines[0].submit(c.AdoptCharter(bad)).error, LocalMisuse)
            link = machines[0].running.links.by_ident[machines[1].ident]
            net.wait(machines[0].running.rpc.on_link(link, m.Charters((bad,))))
        self.assertEqual(self.without(machines, 0), [])
        net.wait(machines[0].submit(c.AdoptCharter(charter(1))))
        net.wait(machines[0].submit(c.AdoptCharter(charter(1))))
        self.assertEqual(len(machines[0].running.charters.all), 1)

    def test_signed_anew(self) -> None:
        """A revocation by keys that sign no more stays in force, is told to nobody, and is replaced by the same with good signatures."""
        net = self.net(5)
        machines = self.grow(net, 4)
        gone = revocation(machines[3])
        for one in machines[:2]:
            revocations = one.running.revocations
            plain = revocations._is_authentic
            revocations._is_authentic = lambda order, ever=False, plain=plain: ever or (plain(order) and order.time > 1)  # type: ignore[misc,assignment]
        old = by_authority(m.Revocation(NETWORK.ident, gone.key, "gone", 1))
        machines[0].running.revocations.restore([old])
        known = machines[0].running.revocations
        self.assertTrue(known.is_revoked(gone.key))
        self.assertEqual((known.digest, known._asked(None, m.WhichRevoked()).orders), (b"", ()))  # type: ignore[arg-type]
        net.wait(machines[0].submit(c.Revoke(gone)))
        self.assertEqual(known.by_key[gone.key], gone)
        net.run(3)
        self.assertTrue(machines[1].running.revocations.is_revoked(gone.key))
