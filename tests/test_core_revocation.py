"""Members that are thrown out, in simulated nets: who hears of it, when, and what ends."""

from __future__ import annotations

import hashlib

import msgspec

from ipop_tx.core import commands as c
from ipop_tx.errors import LocalMisuse
from ipop_tx.simulation.network import NETWORK, SimulatedNet, SimulatedNode
from ipop_tx.wire import messages as m
from tests.net import NetCase, by_authority, heal, split


def revocation(machine: SimulatedNode, network: bytes = NETWORK.ident) -> m.Revocation:
    """As the authority of all simulated networks gives it."""
    return by_authority(m.Revocation(network, machine.peer.key, machine.peer.name, 1_800_000_000))


class RevocationCase(NetCase):
    """Somebody orders, everybody obeys."""

    def revoke(self, net: SimulatedNet, at: SimulatedNode, whom: SimulatedNode) -> None:
        """The order, given at a node."""
        net.wait(at.submit(c.Revoke(revocation(whom))))

    def ignorant(self, machines: list[SimulatedNode], whom: SimulatedNode) -> list[int]:
        """Who runs and has not heard of it."""
        return [one.number for one in machines if one.node is not None and not one.running.revocations.is_revoked(whom.peer.key)]

    def linked(self, machines: list[SimulatedNode], whom: SimulatedNode) -> list[int]:
        """Who still has a link with it."""
        return [one.number for one in machines if one.node is not None and one is not whom and whom.ident in one.running.links.by_ident]


class SpreadTests(RevocationCase):
    """Who hears of it."""

    def test_everybody(self) -> None:
        """60 nodes know within two seconds; its links are over and none comes up again; it knows why."""
        net = self.net(3)
        machines = self.grow(net, 60)
        whom = machines[17]
        self.revoke(net, machines[0], whom)
        self.becomes(net, lambda: not self.ignorant(machines, whom) and not self.linked(machines, whom), 2.0, "everybody obeys")
        net.run(90)
        self.assertEqual(self.linked(machines, whom), [])
        self.assertEqual(whom.running.links.by_ident, {})
        whom.crash()
        self.heals(net, 60)

    def test_whoever_was_away(self) -> None:
        """Whoever was off hears of it with the first greeting, half a net when nets merge; whoever restarts has kept it."""
        net = self.net(4)
        machines = self.grow(net, 20)
        whom, off, kept = machines[7], machines[9], machines[11]
        off.crash()
        split(net, machines[:8])
        net.run(60)
        self.revoke(net, machines[0], whom)
        net.run(5)
        self.assertEqual(self.ignorant(machines[:8], whom), [])
        heal(net)
        self.becomes(net, lambda: not self.ignorant(machines, whom), 120.0, "the other half hears of it")
        self.becomes(net, lambda: not self.linked(machines, whom), 5.0, "its links are over there too")
        kept.crash()
        net.wait(kept.start())
        self.assertEqual(self.ignorant([kept], whom), [])
        net.wait(off.start(machines[2]))
        self.becomes(net, lambda: not self.ignorant([off], whom), 1.0, "the one that was off hears of it")
        self.assertEqual(self.linked(machines, whom), [])

    def test_many(self) -> None:
        """More than one page of them is told on contact; both sides learn what they lack."""
        net = self.net(5)
        machines = self.grow(net, 4)
        gone = [net.add() for _ in range(50)]
        for machine, part in ((machines[0], gone[:30]), (machines[1], gone[30:])):
            machine.running.revocations.restore(revocation(one) for one in part)
        machines[3].crash()
        net.wait(machines[3].start(machines[0], machines[1]))
        self.becomes(net, lambda: len(machines[3].running.revocations.by_key) == 50, 90.0, "all 50")
        self.becomes(net, lambda: all(len(one.running.revocations.by_key) == 50 for one in machines), 90.0, "everybody")
        self.assertEqual(len({one.running.revocations.digest for one in machines}), 1)


class EffectTests(RevocationCase):
    """What ends."""

    def test_registers_are_free(self) -> None:
        """Its address resolves to nobody and can be taken at once; so can whatever else it has filled."""
        net = self.net(6)
        machines = self.grow(net, 8)
        whom, other = machines[3], machines[5]
        address = net.wait(whom.submit(c.ClaimLease()))
        key = hashlib.sha256(b"mine").digest()[:20]
        net.wait(whom.submit(c.Create(key, b"by whom", 3600)))
        self.assertEqual(net.wait(other.submit(c.Get(key))).value, b"by whom")
        self.revoke(net, machines[0], whom)
        net.run(3)
        self.assertIsNone(net.wait(other.submit(c.Get(key))))
        self.assertIsNone(net.wait(other.submit(c.Resolve(".".join(map(str, address))))))
        self.assertEqual(net.wait(other.submit(c.Create(key, b"by other", 3600))).value, b"by other")
        self.assertEqual(net.wait(other.submit(c.ClaimLease(address))), address)
        self.assertEqual(net.wait(machines[6].submit(c.Get(key))).value, b"by other")

    def test_forged(self) -> None:
        """Nobody but the authority throws out, and an order of another network is none here."""
        net = self.net(7)
        machines = self.grow(net, 3)
        good, whom = revocation(machines[2]), machines[2]
        for bad in (
            msgspec.structs.replace(good, signature=b"forged"),
            msgspec.structs.replace(good, key=machines[1].peer.key),
            msgspec.structs.replace(good, name="another"),
            revocation(whom, bytes(20)),
        ):
            order = machines[0].submit(c.Revoke(bad))
            self.assertIsInstance(order.error, LocalMisuse)
            link = machines[0].running.links.by_ident[machines[1].ident]
            told = machines[0].running.rpc.on_link(link, m.Revoked((bad,)))
            net.run(5, lambda told=told: told.done)  # type: ignore[misc]
            self.assertIsNotNone(told.error)
        self.assertEqual(self.ignorant(machines, whom), [0, 1, 2])
        self.assertEqual(machines[1].running.runtime.counters["revocation_forged"], 4)

    def test_who_passes_nothing_on(self) -> None:
        """Members that keep it to themselves, a third of all, keep it from nobody."""
        net = self.net(8)
        machines = self.grow(net, 30)
        for one in machines[1::3]:
            one.running.revocations._carry_out = lambda orders, source: 0  # type: ignore[method-assign]
        self.revoke(net, machines[0], machines[5])
        self.becomes(net, lambda: not self.ignorant(machines, machines[5]), 3.0, "all honest ones and the others too")
