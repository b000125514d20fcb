"""Who is no member any more asks for a certificate in a simulated net: at whichever member answers, and for nothing else."""

from __future__ import annotations

import dataclasses
from typing import Any

from ipop_tx.core import commands as c
from ipop_tx.core.events import ReadmitRequested
from ipop_tx.errors import Unreachable
from ipop_tx.simulation.network import SimulatedNode
from ipop_tx.wire import messages as m
from tests.net import NetCase

REQUEST = m.Readmit((b"leaf", b"admission"), b"signature")


class PetitionTests(NetCase):
    """`late` shows and sees guests only."""

    def setUp(self) -> None:
        self.world = self.net(3)
        self.machines = self.grow(self.world, 6)
        self.asked: list[ReadmitRequested] = []
        self.world.on_event = self.answer
        self.late = self.world.add()
        self.late.peer = dataclasses.replace(self.late.peer, guest=True)
        self.lapse(self.late)

    def lapse(self, machine: SimulatedNode) -> None:
        """Everybody is a guest to it."""
        machine.start()
        machine.submit(c.Rest(True))
        adopt = machine.running.links._adopt

        def as_guest(handshake: Any) -> Any:
            handshake.session.peer = dataclasses.replace(handshake.session.peer, guest=True)
            return adopt(handshake)

        machine.running.links._handshakes._established = as_guest

    def answer(self, machine: SimulatedNode, event: object) -> None:
        """As daemons do."""
        if isinstance(event, ReadmitRequested):
            self.asked.append(event)
            event.reply.succeed(m.Readmitted((b"new",)))
            machine.settle()

    def test_asked(self) -> None:
        """The first two do not answer, the third does; no link is left, and neither end has taken the other for a member."""
        for one in self.machines[:2]:
            one.crash()
        endpoints = tuple(one.endpoint for one in self.machines)
        answer = self.world.wait(self.late.submit(c.Petition(endpoints, REQUEST)), 120)
        self.assertEqual(answer, m.Readmitted((b"new",)))
        self.assertEqual([(event.guest, event.request) for event in self.asked], [(True, REQUEST)])
        self.world.run(5)
        self.assertEqual((self.late.running.links.guests, self.late.running.links.by_ident), (set(), {}))
        for one in self.machines[2:]:
            self.assertNotIn(self.late.ident, one.running.links.by_ident)
            self.assertEqual(one.running.links.guests, set())

    def test_nobody(self) -> None:
        for one in self.machines:
            one.crash()
        petition = self.late.submit(c.Petition((self.machines[0].endpoint,), REQUEST))
        self.world.run(60, lambda: petition.done)
        self.assertIsInstance(petition.error, Unreachable)
        self.assertIsInstance(self.late.submit(c.Petition((), REQUEST)).error, Unreachable)

    def test_rests(self) -> None:
        """It knocks nowhere until it may; then it joins by itself."""
        other = self.world.add()
        other.start()
        other.submit(c.Rest(True))
        other.running.bootstrap.remember((self.machines[0].endpoint,))
        self.world.run(60)
        self.assertEqual(other.running.links.by_ident, {})
        other.submit(c.Rest(False))
        self.becomes(self.world, lambda: self.machines[0].ident in other.running.links.by_ident, 10.0, "a link")
