"""A network's registers in memory, for tests of services that keep something there."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed

from ipop_tx.core import commands as c
from ipop_tx.errors import Conflict
from ipop_tx.values import Network


class Registers:
    """What all protocols made here share. With `slowly` every answer waits for `flow`."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.values: dict[bytes, bytes] = {}
        self.asked: list[object] = []
        self.slowly = False
        self._waiting: list[tuple[Deferred[Any], object]] = []

    def protocol(self, name: str) -> Any:
        """As a service sees the daemon `name`."""
        settings = SimpleNamespace(current=None)
        node = SimpleNamespace(network=self.network, peer=SimpleNamespace(name=name), settings=settings, links=(), peer_hellos={})
        return SimpleNamespace(node=node, submit=self.submit, on=lambda kind, listener: None, settle=lambda: None)

    def submit(self, command: object) -> Deferred[Any]:
        """Read or create."""
        self.asked.append(command)
        if self.slowly:
            waiting: Deferred[Any] = Deferred()
            self._waiting.append((waiting, command))
            return waiting
        return self._answer(command)

    def _answer(self, command: object) -> Deferred[Any]:
        if isinstance(command, c.Get):
            value = self.values.get(command.key)
            return succeed(SimpleNamespace(value=value) if value is not None else None)
        assert isinstance(command, c.Create)
        if command.key in self.values:
            return fail(Conflict("the register is taken"))
        self.values[command.key] = command.value
        return succeed(None)

    def flow(self, choose: Any) -> None:
        """Answer all questions, one after another, as `choose` (of `random.Random`) puts them in order, until nobody asks any more."""
        while self._waiting:
            waiting, command = self._waiting.pop(choose.randrange(len(self._waiting)))
            self._answer(command).chainDeferred(waiting)
