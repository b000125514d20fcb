"""How much goes to endpoints that a peer has merely named; and unfinished messages of one sender."""

from __future__ import annotations

from random import Random

from twisted.trial.unittest import SynchronousTestCase

from ipop_tx.core import commands as c
from ipop_tx.core.bucket import Bucket
from ipop_tx.core.links.consent import A_SECOND, AT_ONCE, CHALLENGE, CONNECTING, FACTOR, MINUTE, OVERHEAD, SAVED, TARGETS, Consent, earn
from ipop_tx.core.links.fragments import OF_ONE, PART, Reassembly
from ipop_tx.core.links.link import Link
from ipop_tx.core.runtime import Runtime
from ipop_tx.values import Endpoint, Peer
from ipop_tx.wire import messages as m
from ipop_tx.wire.datagram import OVERHEAD as SEALED
from tests.net import NetCase

IP_AND_UDP = 28


def link(number: int = 1) -> Link:
    """To a peer that has sent nothing yet."""
    return Link(Peer(bytes([number]) * 20, f"n{number}"), 0.0, True)


def victim(number: int, scheme: str = "udp", port: int = 53) -> Endpoint:
    """One of many addresses."""
    return Endpoint(scheme, f"198.51.{number >> 8}.{number & 255}", port)


class ConsentTests(SynchronousTestCase):
    """The three limits."""

    def setUp(self) -> None:
        self.runtime = Runtime(Random(1))
        self.consent = Consent(self.runtime)

    def test_bytes(self) -> None:
        """Thrice what came, counted with all headers; what was saved has an end; a connection costs more."""
        peer = link()
        self.assertFalse(self.consent.may_ask(peer, victim(1)))
        for _ in range(100):
            earn(peer, 400)
        self.assertEqual(peer.credit, SAVED)
        asked = sum(self.consent.may_ask(peer, victim(1, port=1 + number)) for number in range(1000))
        self.assertEqual(asked, SAVED // CHALLENGE)
        for scheme, price in (("udp", CHALLENGE), ("tls", CHALLENGE + CONNECTING)):
            peer.credit = 0
            earn(peer, 400)
            asked = sum(self.consent.may_ask(peer, victim(1, scheme)) for _ in range(100))
            self.assertEqual(asked, FACTOR * (400 + OVERHEAD) // price)

    def test_a_challenge_is_no_longer(self) -> None:
        """Than what is charged for it."""
        self.assertLessEqual(len(m.encode(m.PathChallenge(2**62 - 1))) + SEALED + IP_AND_UDP, CHALLENGE)

    def test_targets(self) -> None:
        """So many addresses a minute, also of a peer that comes back; another peer has its own."""
        peer = link()
        peer.credit = SAVED
        self.assertEqual([self.consent.may_ask(peer, victim(number)) for number in range(TARGETS + 3)], [True] * TARGETS + [False] * 3)
        self.assertTrue(self.consent.may_ask(peer, victim(3, port=99)), "an address that it has named before")
        self.consent.parted(peer)
        again = link()
        again.credit = SAVED
        self.assertFalse(self.consent.may_ask(again, victim(100)))
        self.assertEqual(self.runtime.counters, {"challenge_withheld": 4})
        other = link(2)
        other.credit = SAVED
        self.assertTrue(self.consent.may_ask(other, victim(100)))
        self.runtime.now += MINUTE + 1
        self.assertTrue(self.consent.may_ask(again, victim(100)))

    def test_one_address(self) -> None:
        """Many peers name one: it gets no more than its bucket holds."""
        asked = 0
        for number in range(1, 100):
            peer = link(number)
            peer.credit = 20 * CHALLENGE
            asked += sum(self.consent.may_ask(peer, victim(1)) for _ in range(20))
        self.assertEqual(asked, AT_ONCE)
        self.runtime.now += 10
        peer = link()
        peer.credit = 10**6
        self.assertEqual(sum(self.consent.may_ask(peer, victim(1)) for _ in range(1000)), 10 * A_SECOND)

    def test_who_has_answered(self) -> None:
        """Costs nothing."""
        peer = link()
        peer.direct[victim(1)] = object()  # type: ignore[assignment]
        self.assertTrue(self.consent.may_ask(peer, victim(1)))

    def test_bucket(self) -> None:
        bucket = Bucket(2, 1.0)
        self.assertEqual([bucket.take(0.0) for _ in range(3)], [True, True, False])
        self.assertEqual((bucket.take(1.0), bucket.full(1.0), bucket.full(3.0)), (True, False, True))


class FragmentTests(SynchronousTestCase):
    """One sender does not push out others."""

    def test_one_sender(self) -> None:
        reassembly = Reassembly(Runtime(Random(1)))
        honest, wicked = bytes([1]) * 20, bytes([2]) * 20
        self.assertIsNone(reassembly.add(honest, m.Fragment(7, 0, 2, b"who")))
        for group in range(1000):
            self.assertIsNone(reassembly.add(wicked, m.Fragment(group, 0, 2, bytes(PART))))
        self.assertEqual(len(reassembly._groups), 1 + OF_ONE)
        self.assertEqual(reassembly.add(honest, m.Fragment(7, 1, 2, b"le")), b"whole")


class HonestTests(NetCase):
    """Nobody honest is held up."""

    def test_a_net_that_moves(self) -> None:
        """Eight nodes, of which each gets another address twice, one after the other: no challenge is withheld."""
        net = self.net(5)
        machines = self.grow(net, 8)
        for turn in range(2):
            for machine in machines:
                del net.machines[machine.endpoint]
                machine.endpoint = Endpoint("udp", f"192.0.{100 + turn}.{machine.number}", 4500)
                net.machines[machine.endpoint] = machine
                machine.submit(c.Reachable((machine.endpoint,)))
                net.run(8.0)
        self.assertEqual(sum(machine.running.runtime.counters.get("challenge_withheld", 0) for machine in machines), 0)
        self.heals(net, 30)
