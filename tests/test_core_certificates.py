"""Certificates of registers: what a majority says passes whoever shows it, and nothing that a liar can make does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace as other
from ipaddress import IPv4Address, IPv4Network

from msgspec.structs import replace

from ipop_tx.core import commands as c
from ipop_tx.core.dht import certificates
from ipop_tx.core.dht.certificates import SHOWN_FOR, SKEW, held
from ipop_tx.core.dht.records import RegisterSigner, lease_key
from ipop_tx.core.ident import shard_of
from ipop_tx.core.tasks import spawn
from ipop_tx.errors import BadMessage, Unavailable
from ipop_tx.simulation.network import NETWORK, PlainSigner, SimulatedNet, SimulatedNode
from ipop_tx.values import Peer
from ipop_tx.wire import messages as m
from tests.net import NetCase, split

ADDRESS = IPv4Address("10.128.3.4")
KEY = lease_key(NETWORK, ADDRESS.packed)
SHARD = shard_of(KEY, NETWORK.shards)
NONCE = b"n" * 16
HOUR = 3600.0


class CertificateCase(NetCase):
    """A ring in which one node has a lease."""

    def setUp(self) -> None:
        self.world = self.net()
        self.machines = self.grow(self.world, 7)
        self.owner = self.machines[3]
        self.owner.submit(c.KeepLease(ADDRESS.packed, None, HOUR))
        self.becomes(self.world, lambda: KEY in self.owner.running.showing.shown, 30, "a certificate of the lease")
        self.asker = next(machine for machine in self.machines if machine is not self.owner and machine not in self.keepers())

    def keepers(self) -> list[SimulatedNode]:
        """Who keeps the lease."""
        return [machine for machine in self.world.running() if SHARD in machine.running.replicas.shards]

    def certified(self) -> m.Certificate:
        """As the asker gets it."""
        certificate: m.Certificate = self.world.wait(spawn(self.asker.running.dht.certified(KEY)))
        return certificate

    def said(self, machine: SimulatedNode, certificate: m.Certificate, key: bytes = KEY, network: bytes = NETWORK.ident) -> m.Voice:
        """A member's voice for anything at all."""
        voice = m.Voice(machine.ident, 0, int(self.world.now), b"")
        about = (certificate.number, certificate.members, key, certificate.accepted, certificate.record, certificate.nonce)
        text = b"ipop-voice-1" + m.encode(m.Statement(network, *about, voice.age_ms, voice.time))
        return replace(voice, signature=machine.signer.sign(text))

    def by(
        self, machines: list[SimulatedNode], certificate: m.Certificate, key: bytes = KEY, network: bytes = NETWORK.ident
    ) -> m.Certificate:
        """A certificate with their voices."""
        return replace(certificate, voices=tuple(self.said(machine, certificate, key, network) for machine in machines))

    def assert_refused(self, certificate: m.Certificate, words: str, key: bytes = KEY) -> None:
        """The asker believes nothing of it, for this reason."""
        error = self.assertRaises(BadMessage, self.asker.running.certificates.check, key, certificate)
        self.assertIn(words, str(error))


class JudgedTests(CertificateCase):
    """Certificates by hand."""

    def test_good(self) -> None:
        """A majority's voices, a record of the owner's."""
        certificate = self.certified()
        self.asker.running.certificates.check(KEY, certificate)
        record = held(certificate)
        assert record is not None
        self.assertEqual((record.owner, len(certificate.voices)), (self.owner.ident, 3))

    def test_emptiness(self) -> None:
        """That nothing is there is certified as well."""
        key = lease_key(NETWORK, bytes((10, 128, 9, 9)))
        certificate = self.world.wait(spawn(self.asker.running.dht.certified(key)))
        self.asker.running.certificates.check(key, certificate)
        self.assertIsNone(certificate.record)

    def test_altered(self) -> None:
        """What the voices have not said: another record or none, view, ballot, key, network, time, age."""
        good = self.certified()
        forged = RegisterSigner(NETWORK, PlainSigner(self.asker.ident)).record(KEY, 9, HOUR, b"mine")
        changes: list[Callable[[m.Certificate], m.Certificate]] = [
            lambda one: replace(one, record=None),
            lambda one: replace(one, record=forged),
            lambda one: replace(one, number=one.number + 1),
            lambda one: replace(one, members=one.members[:3]),
            lambda one: replace(one, accepted=m.Ballot(one.accepted.round + 1, one.accepted.proposer)),
            lambda one: replace(one, nonce=NONCE),
            lambda one: replace(one, voices=tuple(replace(voice, age_ms=voice.age_ms + 1) for voice in one.voices)),
            lambda one: replace(one, voices=tuple(replace(voice, time=voice.time + 1) for voice in one.voices)),
        ]
        for change in changes:
            self.assert_refused(change(good), "not that of a member over it")
        self.assert_refused(good, "not that of a member over it", KEY[:-1] + bytes([KEY[-1] ^ 1]))
        self.assert_refused(self.by(self.keepers(), good, network=b"other network ident!"), "not that of a member over it")

    def test_too_few(self) -> None:
        """Two voices, one of three said twice, or a view as small as the liar likes."""
        good, liars = self.certified(), self.keepers()[:2]
        self.assert_refused(self.by(liars, good), "2 voices are no majority")
        self.assert_refused(self.by([*liars, liars[0]], good), "counted twice")
        self.assert_refused(self.by(liars[:1], replace(good, members=(liars[0].ident,))), "1 voices are no majority")

    def test_others(self) -> None:
        """Voices of members of the network who are not in the view, and of whoever is no member at all."""
        good = self.certified()
        outside = [machine for machine in self.machines if machine.ident not in good.members]
        self.assert_refused(self.by([*self.keepers()[:2], outside[0]], good), "is not in the view")
        self.patch(
            PlainSigner, "admitted", lambda signer, credential: Peer(credential[:20], "") if credential != self.keepers()[0].ident else None
        )
        self.assert_refused(
            good if good.voices[0].credential == self.keepers()[0].ident else self.by(self.keepers(), good), "not that of a member"
        )

    def test_thrown_out(self) -> None:
        """A member whose key was revoked has no voice any more, and what it holds is nobody's."""
        good = self.certified()
        records = self.asker.running.certificates._records
        self.patch(records, "is_out", lambda peer: peer.ident == good.voices[0].credential[:20])
        self.assert_refused(good, "not that of a member")
        self.patch(records, "is_revoked", lambda key: key == records._signer.key(self.owner.ident))
        self.asker.running.resolver.forget_all()
        self.assertIsNone(self.world.wait(self.asker.submit(c.Resolve(str(ADDRESS)))))

    def test_forged_record(self) -> None:
        """Three of five together cannot give away what its owner has not asked for."""
        record = replace(self.certified().record or self.fail("no record"), owner=self.asker.ident)
        self.assert_refused(self.by(self.keepers()[:3], replace(self.certified(), record=record)), "not signed by the owner")

    def test_ended_by_the_authority(self) -> None:
        """Views from before an order are over; in the one that it founds its members count, wherever they lie."""
        good = self.certified()
        far = tuple(machine.ident for machine in self.machines if machine not in self.keepers())[:1]
        order = m.Order(NETWORK.ident, good.number + 1, far, (SHARD,), bytes(16), 1)
        self.asker.running.replicas.orders[SHARD] = order
        self.assert_refused(good, "the authority has ended that view")
        founded = replace(good, number=order.number, members=far)
        self.patch(certificates, "SUCCESSORS", 1)
        self.patch(certificates, "MARGIN", 0)
        machine = next(machine for machine in self.machines if machine.ident == far[0])
        self.asker.running.certificates.check(KEY, self.by([machine], founded))

    def test_shown_too_late(self) -> None:
        """A certificate that was not made for us counts for an hour, if its time has come, and while the lease lasts."""
        good = self.owner.running.showing.shown[KEY]
        judge = self.asker.running.certificates
        record = judge.check_shown(KEY, good)
        assert record is not None
        self.assertEqual(record.owner, self.owner.ident)
        for moment in (good.voices[0].time + SHOWN_FOR + 2, good.voices[0].time - SKEW - 2):
            self.patch(self.asker.signer, "wall", lambda moment=moment: moment)
            self.assertRaises(BadMessage, judge.check_shown, KEY, good)
        self.patch(self.asker.signer, "wall", lambda: good.voices[0].time + SHOWN_FOR - 1)
        short = replace(record, ttl=1800)
        signed = RegisterSigner(NETWORK, PlainSigner(self.owner.ident)).record(KEY, short.version, 1800, short.value)
        self.assertIsNone(held(replace(good, record=signed), good.voices[0].time + 1801))
        self.assertEqual(held(replace(good, record=signed), good.voices[0].time + 1700), signed)


class PlaceTests(NetCase):
    """A ring that is larger than what one looks at."""

    def test_far_from_the_shard(self) -> None:
        """Three members of the network, admitted as they are, that lie elsewhere on the ring: they have no voice."""
        world = self.net()
        machines = self.grow(world, 90)
        judge = machines[0].running.certificates
        shards = range(NETWORK.shards)
        for index in shards:
            view = next(machine.running.replicas.newest(index) for machine in machines if index in machine.running.replicas.shards)
            self.assertTrue(all(judge._may_keep(index, member) for member in view.members), index)
        refused = sum(not judge._may_keep(index, machine.ident) for index in shards for machine in machines)
        self.assertGreater(refused, 0.3 * NETWORK.shards * len(machines))


class LyingTests(CertificateCase):
    """Members that lie, in a ring that works."""

    def test_a_lying_coordinator(self) -> None:
        """It says that nobody has the address, or shows an old answer: another member is asked, and the owner is found."""
        old = self.certified()
        liar = self.machines_of(old)[0]

        async def lie(key: bytes, nonce: bytes, voices: int) -> m.Certificate:
            return lies[0](nonce)

        lies: list[Callable[[bytes], m.Certificate]] = [
            lambda nonce: old,
            lambda nonce: replace(old, nonce=nonce),
            lambda nonce: self.by([liar], m.Certificate(old.number, old.members, m.NO_BALLOT, None, nonce, ())),
            lambda nonce: self.by([liar], m.Certificate(old.number, (liar.ident,), m.NO_BALLOT, None, nonce, ())),
        ]
        self.patch(liar.running.certificates, "collect", lie)
        self.patch(self.asker.running.dht, "_readiest", _first(self.asker, liar))
        while lies:
            counted = self.asker.running.runtime.counters.get("certificate_refused", 0)
            self.assertEqual(self.certified().record, old.record)
            self.assertGreater(self.asker.running.runtime.counters["certificate_refused"], counted, "the liar was asked")
            del lies[0]

    def test_a_lying_replica(self) -> None:
        """Its voice for nothing, or for what the owner never wrote, is not in the certificate; the others' are."""
        members = self.machines_of(self.certified())
        liar = members[0]
        self.patch(liar.running.replicas, "peek", lambda body: m.Promise(m.Ballot(10**6, liar.ident), None, 0))
        liar.running.coordinator._acceptor[m.Peek] = liar.running.replicas.peek
        for _ in range(3):
            certificate = self.certified()
            self.assertEqual(certificate.record and certificate.record.owner, self.owner.ident)
            self.assertNotIn(liar.ident, [voice.credential for voice in certificate.voices])

    def test_not_checked(self) -> None:
        """With the check left out the lie is believed: so it is the check that catches it."""
        old = self.certified()
        liar = self.machines_of(old)[0]

        async def lie(key: bytes, nonce: bytes, voices: int) -> m.Certificate:
            return m.Certificate(old.number, old.members, m.NO_BALLOT, None, nonce, ())

        self.patch(liar.running.certificates, "collect", lie)
        self.patch(self.asker.running.dht, "_readiest", _first(self.asker, liar))
        self.patch(self.asker.running.certificates, "check", lambda key, certificate: None)
        self.assertIsNone(self.certified().record)

    def machines_of(self, certificate: m.Certificate) -> list[SimulatedNode]:
        """The members of its view that are not the owner."""
        return [machine for machine in self.machines if machine.ident in certificate.members and machine is not self.owner]


class ShownTests(NetCase):
    """Those who are left of a network, without a majority."""

    def left(self) -> tuple[SimulatedNet, SimulatedNode, SimulatedNode, str]:
        """Two of five, one of which has an address that the other has never heard of."""
        net = self.net(9, network=other(NETWORK, pool=IPv4Network("10.128.0.0/16")))
        machines = self.grow(net, 5)
        owner = machines[1]
        owner.submit(c.KeepLease(ADDRESS.packed, None, HOUR))
        key = lease_key(NETWORK, ADDRESS.packed)
        self.becomes(net, lambda: key in owner.running.showing.shown, 30, "a certificate of the lease")
        split(net, machines[:2])
        net.run(60)
        return net, machines[0], owner, str(ADDRESS)

    def test_the_owner_proves_it(self) -> None:
        """It is found within seconds, where no majority answers."""
        net, asker, owner, address = self.left()
        self.assertRaises(Unavailable, net.wait, asker.submit(c.Get(KEY)))
        began = net.now
        self.assertEqual(net.wait(asker.submit(c.Resolve(address))).ident, owner.ident)
        self.assertLess(net.now - began, 5.0)

    def test_without_hint(self) -> None:
        """Nobody claims the address: a copy of the register, which proves nothing, names whom to ask."""
        net, asker, owner, address = self.left()
        asker.running.resolver.claimants = lambda address: []
        self.assertEqual(net.wait(asker.submit(c.Resolve(address))).ident, owner.ident)

    def test_a_claim_is_no_proof(self) -> None:
        """An owner that has given the address up shows nothing; nor is it believed without a good certificate."""
        net, asker, owner, address = self.left()
        shown = owner.running.showing.shown
        good = shown[KEY]
        for lie in (replace(good, number=good.number + 1), replace(good, voices=good.voices[:2]), None):
            shown.clear()
            if lie is not None:
                shown[KEY] = lie
            self.assertRaises(Unavailable, net.wait, asker.submit(c.Resolve(address)))

    def test_given_up(self) -> None:
        """Who releases a lease, or loses it, does not show it any more."""
        net = self.net()
        machines = self.grow(net, 4)
        machines[1].submit(c.KeepLease(ADDRESS.packed, None, HOUR))
        showing = machines[1].running.showing
        self.becomes(net, lambda: len(showing.shown) == 2, 30, "certificates of lease and name")
        net.wait(machines[1].submit(c.ReleaseLease()))
        net.run(60)
        self.assertEqual(showing.shown, {})


class YoungTests(NetCase):
    """A ring that has just grown, whose views have not yet."""

    def test_a_newcomer_resolves_at_once(self) -> None:
        """The fourth member asks for three voices, which a view of three members can give."""
        for seed in (2, 5, 6, 7):
            net = self.net(seed)
            machines = self.grow(net, 3)
            addresses = [net.wait(machine.submit(c.ClaimLease())) for machine in machines]
            newcomer = net.add()
            net.wait(newcomer.start(machines[0]))
            begun = net.now
            asked = [newcomer.submit(c.Resolve(str(IPv4Address(address)))) for address in addresses]
            owners = self.all_done(net, asked, 2.0)
            self.assertEqual([owner.ident for owner in owners], [machine.ident for machine in machines], f"seed {seed}")
            self.assertLess(net.now - begun, 2.0)


def _first(asker: SimulatedNode, first: SimulatedNode) -> Callable[[list[bytes], set[bytes]], bytes | None]:
    """Ask one member before all others."""
    usual = asker.running.dht._readiest

    def choose(to_ask: list[bytes], asked: set[bytes]) -> bytes | None:
        return first.ident if first.ident not in asked else usual(to_ask, asked)

    return choose
