"""What the daemon with the authority's key makes of a roll-over and of approvers, and what is left when it dies between."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed

from ipop_tx.core import commands as c
from ipop_tx.core import events as e
from ipop_tx.core.dht.records import RegisterSigner
from ipop_tx.errors import LocalMisuse
from ipop_tx.identity import certificates as certs
from ipop_tx.identity import state as files
from ipop_tx.identity.authority import Admitter
from ipop_tx.identity.credentials import Credentials
from ipop_tx.identity.keys import compressed_point_of, generate_key, read_key
from ipop_tx.services.authority import AuthorityService
from ipop_tx.services.orders import from_file, signed, to_file
from ipop_tx.wire import messages as m
from tests.test_identity_certificates import WALL, FoundedCase


class Charters:
    """The core's part, without a network."""

    def __init__(self, register: RegisterSigner) -> None:
        self.all: list[m.Charter] = []
        self.register = register

    @property
    def number(self) -> int:
        """Of the newest."""
        return self.all[-1].number if self.all else 0

    def restore(self, charters: list[m.Charter]) -> None:
        """From disk."""
        self.all += [charter for charter in charters if self.register.adopts(charter)]


class AuthorityCase(FoundedCase):
    """The founder's daemon."""

    def setUp(self) -> None:
        super().setUp()
        self.revoked = m.Revocation(self.network.ident, bytes(32), "gone", 5)
        self.start()

    def start(self) -> None:
        """The daemon, which was stopped somehow."""
        self.credentials = Credentials.load(self.state, lambda: WALL + 10)
        self.register = RegisterSigner(self.network, self.credentials.signer())
        self.given: list[Any] = []
        self.listeners: dict[type, Any] = {}
        known = SimpleNamespace(may_admit=lambda key: True, by_key={bytes(32): self.revoked})
        settings = SimpleNamespace(current=None, newest=SimpleNamespace(version=0))
        self.charters = Charters(self.register)
        node = SimpleNamespace(charters=self.charters, revocations=known, settings=settings)
        protocol: Any = SimpleNamespace(node=node, submit=self.submit, on=self.listeners.__setitem__)
        admitter = Admitter.load(self.state)
        self.used: list[Admitter] = []
        trust, wall = self.credentials.trust, lambda: WALL + 10
        self.service = AuthorityService(protocol, self.state, trust, admitter.authority_key, self.used.append, wall)

    def submit(self, command: object) -> Deferred[Any]:
        """As the core does."""
        order = getattr(command, "charter", None) or command.order  # type: ignore[attr-defined]
        if isinstance(command, c.AdoptCharter):
            if not self.register.adopts(order):
                return fail(LocalMisuse("not the next"))
            self.charters.all.append(order)
            self.listeners[e.CharterAdopted](e.CharterAdopted(order))
        elif not self.register.is_ordered(order):
            return fail(LocalMisuse("not signed"))
        self.given.append(order)
        return succeed(None)

    def done(self, work: Any) -> dict[str, Any]:
        return self.successResultOf(Deferred.fromCoroutine(work))

    def point_in(self, name: str = files.AUTHORITY_KEY) -> bytes:
        return compressed_point_of(read_key(self.state, name).public_key())


class RollTests(AuthorityCase):
    """Another key."""

    def test_rolled(self) -> None:
        """The new key is in the old one's place; rights to admit are made anew; orders are given anew; all is so after a restart."""
        old = self.point_in()
        self.assertEqual(self.done(self.service.roll()), {"number": 1, "complete": True})
        self.assertNotEqual(self.point_in(), old)
        self.assertFalse(self.state.exists(files.NEXT_AUTHORITY_KEY))
        self.assertEqual([type(order) for order in self.given], [m.Charter, m.Revocation])
        for _ in range(2):
            self.assertEqual(self.service.shown()["keys"], [self.point_in().hex()])
            admitter = self.used[-1]
            self.assertEqual(admitter.digest, self.admitter.digest)
            self.assertEqual(certs.network_of(admitter.root), self.network)
            self.assertNotEqual(admitter.root, self.root)
            self.assertEqual(compressed_point_of(admitter.authority_key.public_key()), self.point_in())  # type: ignore[union-attr]
            self.start()
        self.assertEqual(self.done(self.service.roll(0)), {"number": 2, "complete": True})
        self.assertEqual([bool(root["until"]) for root in self.service.shown()["roots"]], [True, False], "the first, and the one in use")

    def test_dies_between(self) -> None:
        """With the new key on disk and no charter: the old one counts, and the next attempt uses the same new one."""
        self.service._carry_out = lambda orders: succeed(None)  # type: ignore[method-assign,assignment,return-value]
        self.done(self.service.roll())
        pending, old = self.point_in(files.NEXT_AUTHORITY_KEY), self.point_in()
        self.start()
        self.assertEqual(self.service.shown()["keys"], [old.hex()])
        self.done(self.service.roll())
        self.assertEqual(self.point_in(), pending)

    def test_dies_after(self) -> None:
        """With the charter on disk, and the new key not yet in its place: it is put there at the start."""
        taken, self.service._take_up = self.service._take_up, lambda: None  # type: ignore[method-assign]
        del taken
        self.done(self.service.roll())
        pending = self.point_in(files.NEXT_AUTHORITY_KEY)
        self.start()
        self.assertEqual((self.point_in(), self.state.exists(files.NEXT_AUTHORITY_KEY)), (pending, False))

    def test_only_with_the_key(self) -> None:
        self.service.key = None
        for work in (self.service.roll(), self.service.renew(), self.service.approvers(1, [self.point_in().hex()])):
            failure = self.failureResultOf(Deferred.fromCoroutine(work), LocalMisuse)
            self.assertIn("only the node that holds the authority's key", str(failure.value))


class ApproverTests(AuthorityCase):
    """Several."""

    def test_two_of_three(self) -> None:
        """The order goes round, and then counts; so does the next, which no longer needs the authority's key."""
        pens = [generate_key() for _ in range(3)]
        points = [compressed_point_of(pen.public_key()).hex() for pen in pens]
        answer = self.done(self.service.approvers(2, points))
        self.assertFalse(answer["complete"])
        failure = self.failureResultOf(Deferred.fromCoroutine(self.service.give(answer)), LocalMisuse)
        self.assertIn("not the next", str(failure.value))
        for pen in pens[:2]:
            answer = to_file([signed(pen, order) for order in from_file(answer)])
        self.assertEqual(len(self.done(self.service.give(answer))["done"]), 2)
        self.assertEqual((self.service.shown()["threshold"], self.service.shown()["keys"]), (2, points))
        answer = self.done(self.service.roll())
        self.assertFalse(answer["complete"])
        for pen in pens[1:]:
            answer = to_file([signed(pen, order) for order in from_file(answer)])
        self.done(self.service.give(answer))
        self.assertEqual(self.service.shown()["number"], 2)

    def test_nonsense(self) -> None:
        good = self.point_in().hex()
        for threshold, keys in ((0, [good]), (2, [good]), (2, [good, good]), (1, ["xx"]), (1, [good[:-2]]), (1, None), ("1", [good])):
            failure = self.failureResultOf(Deferred.fromCoroutine(self.service.approvers(threshold, keys)), LocalMisuse)
            self.assertIn("no keys of approvers", str(failure.value))
