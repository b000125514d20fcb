"""How often an invitation is used, wherever; and machines that somebody has to let in by hand."""

from __future__ import annotations

from random import Random
from typing import Any

import msgspec
from twisted.internet.defer import Deferred

from ipop_tx.errors import Conflict, InvitationRefused, LocalMisuse, StateError
from ipop_tx.identity import state as files
from ipop_tx.identity.authority import checked_pattern
from ipop_tx.identity.decision import Decision
from ipop_tx.identity.invitation import Invitation, InvitationRecord, Wish
from ipop_tx.identity.keys import compressed_point_of, generate_key
from ipop_tx.identity.state import StateDirectory
from ipop_tx.identity.trust import Trust
from ipop_tx.services.approval import FORGOTTEN_AFTER, MOST, Approvals
from ipop_tx.services.rules import DAY, SECTION, Rules
from ipop_tx.services.uses import InvitationUses
from ipop_tx.values import key_digest
from ipop_tx.wire import messages as m
from tests.registers import Registers
from tests.test_identity_certificates import WALL, FoundedCase

SOON = int(WALL) + 3600


def public() -> bytes:
    """A machine's key."""
    return compressed_point_of(generate_key().public_key())


class AdmissionCase(FoundedCase):
    """A network with registers in memory."""

    def setUp(self) -> None:
        super().setUp()
        self.registers = Registers(self.network)

    def record(self, **wish: Any) -> InvitationRecord:
        return InvitationRecord.make(Invitation.make(self.root, SOON, ()), Wish(**wish), self.admitter.key, self.admission)


class UseTests(AdmissionCase):
    """Registers decide."""

    def test_as_often_as_it_says(self) -> None:
        """Seven machines ask two members at once, in any order: exactly three get in, and those again whenever they come."""
        for seed in range(30):
            random = Random(seed)
            self.registers = Registers(self.network)
            uses = [InvitationUses(self.registers.protocol(name)) for name in ("one", "two")]
            record, keys = self.record(uses=3), [public() for _ in range(7)]
            rounds = []
            for _ in range(2):
                self.registers.slowly = True
                claims = [Deferred.fromCoroutine(random.choice(uses).claim(record, key, WALL)) for key in keys for _ in range(2)]
                self.registers.flow(random)
                won = {keys[at // 2] for at, claim in enumerate(claims) if self._succeeded(claim)}
                rounds.append(won)
            self.assertEqual(len(rounds[0]), 3, f"seed {seed}")
            self.assertEqual(rounds[0], rounds[1], f"seed {seed}")

    def _succeeded(self, claim: Deferred[None]) -> bool:
        outcome: list[Any] = []
        claim.addBoth(outcome.append)
        if outcome[0] is not None:
            outcome[0].trap(InvitationRefused)
            self.assertIn("has been used by 3 machines, as many as it admits", str(outcome[0].value))
        return outcome[0] is None

    def test_once(self) -> None:
        uses, record, key = InvitationUses(self.registers.protocol("one")), self.record(), public()
        for _ in range(2):
            self.successResultOf(Deferred.fromCoroutine(uses.claim(record, key, WALL)))
        late = self.failureResultOf(Deferred.fromCoroutine(uses.claim(record, public(), WALL)), InvitationRefused)
        self.assertIn("this invitation has been used already", str(late.value))

    def test_kept_for_as_long_as_it_could_be_used(self) -> None:
        """An invitation that lasts a year is not forgotten to have been used before that."""
        record = msgspec.structs.replace(self.record(), expires=int(WALL) + 365 * DAY)
        self.successResultOf(Deferred.fromCoroutine(InvitationUses(self.registers.protocol("one")).claim(record, public(), WALL)))
        (created,) = self.registers.asked
        self.assertGreater(created.ttl, 365 * DAY)  # type: ignore[attr-defined]

    def test_names(self) -> None:
        for pattern, wish, name in (
            ("", "pc7", "pc7"),
            ("fixed", "pc7", "fixed"),
            ("lab-*", "pc7", "lab-pc7"),
            ("lab-*", "lab-7", "lab-7"),
            ("*-x", "pc7", "pc7-x"),
            ("a-*", "b" * 40, "a-" + "b" * 38),
            ("lab-*", "lab-", "lab-lab"),
        ):
            self.assertEqual(self.record(name=pattern).named(wish), name)
            checked_pattern(name)
        for bad in ("a**", "*a*", "A*", "-*", "x" * 31 + "*"):
            self.assertRefused(lambda bad=bad: checked_pattern(bad), "cannot be", kind=LocalMisuse)
        self.assertEqual([checked_pattern(good) for good in ("*", "lab-*", "*-x", "a")], ["*", "lab-*", "*-x", "a"])


class ApprovalTests(AdmissionCase):
    """By hand."""

    def setUp(self) -> None:
        super().setUp()
        self.wall, self.revoked = WALL, b""
        self.places = [StateDirectory(self.mktemp()) for _ in range(2)]
        self.nodes = [self.node(at) for at in range(2)]
        self.key = public()
        self.digest = key_digest(self.key).hex()

    def node(self, at: int) -> Approvals:
        """A daemon that has just started."""
        protocol = self.registers.protocol(f"member{at}")
        return Approvals(protocol, self.places[at], Trust(self.root, lambda: self.wall), lambda key: key != self.revoked, lambda: self.wall)

    def ask(self, at: int, key: bytes | None = None, name: str = "bob") -> str:
        """What a machine is told: nothing, when it may come in."""
        told: list[Any] = []
        Deferred.fromCoroutine(self.nodes[at].check(key or self.key, name)).addBoth(told.append)
        return str(told[0].value) if told[0] is not None else ""

    def decide(self, at: int, target: str, admitted: bool) -> dict[str, Any]:
        return self.successResultOf(Deferred.fromCoroutine(self.nodes[at].decide(target, admitted, self.admitter)))

    def test_waits_until_it_is_let_in(self) -> None:
        """It is told where it waits; the list outlives a restart; what is decided at one member counts at the other."""
        self.assertIn(f"waits to be let in as bob: on member0:  ipop admit {self.digest[:8]}", self.ask(0))
        self.wall += 60
        self.ask(0)
        self.nodes[0] = self.node(0)
        self.assertEqual([(one["name"], one["since"]) for one in self.nodes[0].told()], [("bob", int(WALL))])
        self.assertEqual(len(self.nodes[0].health()), 1)
        self.assertEqual(self.decide(0, "bob", True), {"name": "bob", "key": self.digest, "admitted": True})
        self.assertEqual([self.ask(1), self.ask(0), self.nodes[0].told(), self.nodes[0].health()], ["", "", [], []])

    def test_denied(self) -> None:
        """For good, at each member."""
        self.ask(0)
        self.ask(1)
        self.decide(0, self.digest[:8], False)
        self.assertIn("decided not to let this machine in", self.ask(0))
        late = Deferred.fromCoroutine(self.nodes[1].decide("bob", True, self.admitter))
        self.assertIn("another member has decided otherwise", str(self.failureResultOf(late, Conflict).value))
        self.assertIn("decided not to let this machine in", self.ask(1))
        self.assertEqual(self.nodes[1].told(), [])

    def test_who_is_meant(self) -> None:
        """Whoever takes the name of another that waits is not let in by mistake."""
        self.ask(0)
        self.ask(0, public())
        for target, words in (("bob", "2 machines wait here as bob"), ("eve", "nobody waits here"), (self.digest[:7], "nobody")):
            failure = self.failureResultOf(Deferred.fromCoroutine(self.nodes[0].decide(target, True, self.admitter)), LocalMisuse)
            self.assertIn(words, str(failure.value))

    def test_only_who_admits_decides(self) -> None:
        """A register that any member has written under the key is no decision, nor that of a key that was revoked, or about another."""
        other, _ = self.other_network()
        register = self.nodes[0]._register(self.key)
        good = Decision.make(self.key, True, self.admitter)
        for bad in (
            b"junk",
            Decision.make(self.key, True, other).encode(),
            Decision.make(public(), True, self.admitter).encode(),
            msgspec.structs.replace(Decision.make(self.key, False, self.admitter), admitted=True).encode(),
        ):
            self.registers.values[register] = bad
            self.assertIn("waits to be let in", self.ask(0))
        self.registers.values[register] = good.encode()
        self.revoked = key_digest(compressed_point_of(self.admitter.key.public_key()))
        self.assertIn("waits to be let in", self.ask(0))
        self.revoked = b""
        self.assertEqual(self.ask(0), "")
        self.assertLessEqual(len(good.encode()), 1024)

    def test_bounds(self) -> None:
        """The list is bounded, and those who ask no more are forgotten."""
        for number in range(MOST):
            self.ask(0, number.to_bytes(33, "big"), "bob")
        self.assertIn("wait to be let in here already", self.ask(0))
        self.wall += FORGOTTEN_AFTER + 1
        self.assertIn("waits to be let in as bob", self.ask(0))
        self.assertEqual(len(self.nodes[0].told()), 1)

    def test_damaged_list(self) -> None:
        self.places[0].write_json(files.REQUESTS, {"requests": [1]})
        self.assertIn("makes no sense", str(self.assertRaises(StateError, lambda: self.node(0))))


class RuleTests(FoundedCase):
    """The section of the settings."""

    def of(self, section: bytes | None) -> Rules:
        settings: Any = type("Exchange", (), {"current": m.Settings(bytes(20), 1, ((SECTION, section),)) if section is not None else None})
        return Rules.of(settings)

    def test_read(self) -> None:
        self.assertEqual(self.of(None), Rules(False, 30 * DAY))
        self.assertEqual(self.of(b'{"approval": true, "grace_s": 5, "later": 1}'), Rules(True, 5))
        for junk in (b"junk", b'{"grace_s": -1}', b"\xff"):
            self.assertEqual(self.of(junk), Rules(True, 0), "what cannot be read is taken for the strictest")

    def test_changed(self) -> None:
        self.assertEqual(Rules(True, 5).changed({"grace_s": 7}), Rules(True, 7))
        for bad in ({"grace_s": -1}, {"grace_s": "x"}, {"approval": 2}):
            self.assertRefused(lambda bad=bad: Rules().changed(bad), "make no sense", kind=LocalMisuse)
