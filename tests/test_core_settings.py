"""The network's settings in simulated nets: who has which version, and what nobody takes."""

from __future__ import annotations

import hashlib

import msgspec

from ipop_tx.core import commands as c
from ipop_tx.errors import LocalMisuse
from ipop_tx.simulation.network import NETWORK, SimulatedNode
from ipop_tx.wire import messages as m
from tests.net import NetCase, by_authority, heal, split


def settings(version: int, text: bytes = b"text", network: bytes = NETWORK.ident) -> m.Settings:
    """As the authority of all simulated networks gives them."""
    return by_authority(m.Settings(network, version, (("policy", text),)))


class SettingsTests(NetCase):
    """Somebody adopts a version, everybody has it."""

    def without(self, machines: list[SimulatedNode], wanted: m.Settings) -> list[int]:
        """Who runs and has others."""
        return [one.number for one in machines if one.node is not None and one.running.settings.current != wanted]

    def test_everybody(self) -> None:
        """40 nodes have a version within two seconds, a long one too; each knows what its peers have."""
        net = self.net(3)
        machines = self.grow(net, 40)
        for version, text in ((1, b"text"), (2, bytes(16000))):
            wanted = settings(version, text)
            self.assertTrue(net.wait(machines[7].submit(c.AdoptSettings(wanted))))
            self.becomes(net, lambda wanted=wanted: not self.without(machines, wanted), 2.0, "everybody has it")  # type: ignore[misc]
        net.run(2)
        for one in machines:
            self.assertEqual({one.running.settings.of_peers.get(link.ident) for link in one.running.links}, {2})
        newcomer = net.add()
        net.wait(newcomer.start(machines[3]))
        self.becomes(net, lambda: not self.without([newcomer], wanted), 1.0, "a newcomer has it")

    def test_halves(self) -> None:
        """When nets merge the newer version wins, also of two with one number; whoever was off learns on contact."""
        net = self.net(4)
        machines = self.grow(net, 12)
        off = machines[9]
        off.crash()
        split(net, machines[:6])
        net.run(60)
        one, other = settings(5, b"one"), settings(5, b"other")
        net.wait(machines[0].submit(c.AdoptSettings(one)))
        net.wait(machines[7].submit(c.AdoptSettings(other)))
        net.run(5)
        heal(net)
        greater = max(one, other, key=lambda one: hashlib.sha256(m.encode(one)).digest())
        self.becomes(net, lambda: not self.without(machines, greater), 120.0, "both halves have the same")
        net.wait(off.start(machines[2]))
        self.becomes(net, lambda: not self.without([off], greater), 1.0, "the one that was off has it")

    def test_refused(self) -> None:
        """Nothing is rolled back; nobody but this network's authority gives settings, to us or by way of a peer."""
        net = self.net(5)
        machines = self.grow(net, 3)
        good = settings(9)
        net.wait(machines[0].submit(c.AdoptSettings(good)))
        self.becomes(net, lambda: not self.without(machines, good), 2.0, "everybody has it")
        self.assertFalse(net.wait(machines[1].submit(c.AdoptSettings(settings(8)))))
        liar = machines[2].running.settings
        for bad in (settings(10, network=bytes(20)), msgspec.structs.replace(settings(10), version=11)):
            self.assertIsInstance(machines[1].submit(c.AdoptSettings(bad)).error, LocalMisuse)
            liar.current, liar.newest = bad, m.Newest(bad.version, bytes(8))
            for link in machines[2].running.links:
                machines[2].running.runtime.background(liar._compare(link))
            net.run(3)
            self.assertEqual(self.without(machines[:2], good), [])
        self.assertGreaterEqual(machines[0].running.runtime.counters["settings_forged"], 1)
        self.assertFalse(liar.restore(msgspec.structs.replace(good, version=12)))
