"""A certificate that renews itself, in virtual time: when, by whom, how often it is tried, and what is said meanwhile."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock

from ipop_tx.core import commands as c
from ipop_tx.errors import InvitationRefused, Unreachable
from ipop_tx.identity import certificates as certs
from ipop_tx.identity import readmission
from ipop_tx.identity import state as files
from ipop_tx.identity.authority import read_certificates, request
from ipop_tx.identity.credentials import Credentials
from ipop_tx.identity.readmission import Readmission
from ipop_tx.identity.state import StateDirectory
from ipop_tx.services.readmission import ReadmissionService
from ipop_tx.values import Endpoint
from ipop_tx.wire import messages as m
from tests.test_identity_certificates import WALL, FoundedCase

DAY = certs.DAY
LIFE = 90 * DAY
ADMITS, OTHER = b"a" * 20, b"o" * 20


class ServiceTests(FoundedCase):
    """Bob's daemon, which is linked to two members: one that admits, and one that does not."""

    def setUp(self) -> None:
        super().setUp()
        self.clock = Clock()
        self.place = StateDirectory(self.mktemp())
        leaf = self.admitter.admit(request(self.key, "bob"), "bob", WALL, certs.Rights(life=int(LIFE)))
        chain = [leaf, self.admission, self.root]
        self.place.write(files.NODE_CHAIN, certs.to_pem(chain))
        self.credentials = Credentials(self.key, chain, self.wall)
        self.answers: dict[Any, bool] = {ADMITS: True, OTHER: True, "petition": True}
        self.asked: list[Any] = []
        self.rests: list[bool] = []
        links = [SimpleNamespace(ident=ident) for ident in (OTHER, ADMITS)]
        hellos = {ADMITS: SimpleNamespace(flags=m.ADMITS), OTHER: SimpleNamespace(flags=0)}
        self.node = SimpleNamespace(links=links, peer_hellos=hellos, peer=self.credentials.peer)
        protocol: Any = SimpleNamespace(node=self.node, submit=self.submit)
        endpoints = (Endpoint("udp", "192.0.2.1", 4500),)
        self.service = ReadmissionService(self.clock, protocol, self.credentials, self.place, lambda: endpoints, None, self.wall)
        self.service.startService()
        self.addCleanup(self.service.stopService)

    def wall(self) -> float:
        return WALL + self.clock.seconds()

    def submit(self, command: object) -> Deferred[Any]:
        """As the members answer."""
        if isinstance(command, c.Rest):
            self.rests.append(command.resting)
            return succeed(None)
        whom = "petition" if isinstance(command, c.Petition) else command.ident  # type: ignore[attr-defined]
        self.asked.append(whom)
        if not self.answers[whom]:
            return fail(Unreachable("nobody is there"))
        asked = Readmission(command.body.certificates, command.body.signature)  # type: ignore[attr-defined]
        try:
            leaf, _ = readmission.check(asked, self.credentials.trust, self.wall(), 30 * DAY, lambda peer: False)
        except InvitationRefused as refusal:
            return fail(refusal)
        return succeed(m.Readmitted(readmission.grant(leaf, self.admitter, self.wall())))

    def pass_days(self, days: float) -> None:
        self.clock.pump([DAY / 8] * int(days * 8))

    def test_by_itself(self) -> None:
        """At two thirds of its life, by the member that admits; kept on disk, again and again."""
        for turn in range(1, 4):
            self.pass_days(64)
            self.assertEqual(self.asked, [ADMITS] * turn)
            (leaf, *_) = read_certificates(self.place, files.NODE_CHAIN)
            self.assertEqual(self.credentials.peer.not_after, int(certs.ends_of(leaf)))
            self.assertEqual(self.node.peer, self.credentials.peer)
            self.assertGreater(self.credentials.peer.not_after, self.wall() + 70 * DAY)
        self.assertEqual(self.service.health(), [])

    def test_not_before(self) -> None:
        self.pass_days(59)
        self.assertEqual(self.asked, [])

    def test_through_another(self) -> None:
        """Where the one that admits does not answer, others pass the request on."""
        self.answers[ADMITS] = False
        self.pass_days(63)
        self.assertEqual(self.asked, [ADMITS, OTHER])
        self.assertFalse(self.credentials.peer.not_after < WALL + LIFE + 50 * DAY)

    def test_tried_again(self) -> None:
        """Ever more rarely, but all the time; health says so before it ends, and what came of it; the day somebody answers all is well."""
        self.answers = dict.fromkeys(self.answers, False)
        self.pass_days(63)
        self.assertEqual(self.service.health(), [])
        few = len(self.asked)
        self.pass_days(12)
        self.assertTrue(40 < len(self.asked) - few < 160, "every six hours or so, two members each time")
        (sentence,) = self.service.health()
        self.assertRegex(sentence, r"ends in 1[45] days and could not be renewed yet \(no member that may admit others")
        self.assertEqual(self.rests, [])
        self.answers[OTHER] = True
        self.pass_days(1)
        self.assertEqual(self.service.health(), [])

    def test_lapsed(self) -> None:
        """Once it has ended, the node looks for the ring no more, and asks as a guest at every endpoint, until it is a member again."""
        self.answers = dict.fromkeys(self.answers, False)
        self.pass_days(95)
        self.assertTrue(self.credentials.lapsed)
        self.assertTrue(all(self.rests))
        self.assertIn("petition", self.asked)
        self.assertEqual(len(self.credentials.chain), 1)
        (sentence,) = self.service.health()
        self.assertRegex(sentence, "certificate ended [45] days ago, so nobody lets it in; it asks to be admitted again .nobody is there")
        self.answers["petition"] = True
        self.pass_days(1)
        self.assertEqual((self.rests[-1], self.credentials.lapsed, self.service.health()), (False, False, []))
        self.assertEqual(len(self.credentials.chain), 3)

    def test_too_late(self) -> None:
        """Beyond the grace the refusal stands in its health."""
        self.answers = dict.fromkeys(self.answers, False)
        self.pass_days(LIFE / DAY + 31)
        self.answers["petition"] = True
        self.pass_days(1)
        self.assertIn("too long to be renewed", self.service.health()[0])

    def test_disk_full(self) -> None:
        """A certificate that cannot be kept is not used; it is tried again."""

        def full(name: str, content: bytes) -> None:
            raise Unreachable("the disk is full")

        ended = self.credentials.peer.not_after
        write, self.place.write = self.place.write, full  # type: ignore[method-assign]
        self.pass_days(64)
        self.assertEqual(self.credentials.peer.not_after, ended)
        self.place.write = write  # type: ignore[method-assign]
        self.pass_days(1)
        self.assertGreater(self.credentials.peer.not_after, ended)
