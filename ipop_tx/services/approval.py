"""Letting machines in by hand: who waits at this node, and what was decided about them.

A machine whose invitation (or network) demands approval is told to wait, and asks again now and then. The member that it asked keeps it on
a list, on disk. What somebody decides there becomes a register under the machine's key, signed by an admission key: so it counts at every
member that admits, whichever the machine asks next, and over restarts of all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import msgspec

from ipop_tx.core import commands as c
from ipop_tx.core.dht.records import key_of
from ipop_tx.errors import ApprovalAwaited, Conflict, InvitationRefused, LocalMisuse, StateError
from ipop_tx.identity import state as files
from ipop_tx.identity.authority import Admitter
from ipop_tx.identity.decision import Decision
from ipop_tx.identity.state import StateDirectory
from ipop_tx.identity.trust import Trust
from ipop_tx.log import Logger
from ipop_tx.services.chord import ChordProtocol
from ipop_tx.services.uses import KEPT_AFTER_EXPIRY
from ipop_tx.values import key_digest

MOST = 256
"""Machines that may wait at one node."""
FORGOTTEN_AFTER = 7 * 86400
"""Seconds after which a machine that asks no more is taken off the list."""


class Waiting(msgspec.Struct):
    """A machine that waits to be let in."""

    name: str
    key: str
    """The digest of its key, in hex digits: its first eight are what people call it by."""
    public: str
    """The key itself (compressed point), in hex digits."""
    since: int
    asked: int
    """When it last asked, in seconds since the Unix epoch."""


class Approvals:
    """Who waits here, and the decisions. Raises `StateError` when what was kept is damaged."""

    _log = Logger()

    def __init__(
        self,
        protocol: ChordProtocol,
        state: StateDirectory,
        trust: Trust,
        may_admit: Callable[[bytes], bool],
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._protocol = protocol
        self._state = state
        self._trust = trust
        self._may_admit = may_admit
        self._wall = wall
        self._waiting: dict[str, Waiting] = {one.key: one for one in _read(state)}

    async def check(self, public: bytes, name: str) -> None:
        """Raise `ApprovalAwaited` until the machine with this key (compressed point) is let in, `InvitationRefused` if it never is."""
        decision = await self._decided(public, name)
        if decision is None:
            self._wait(public, name)
            command = f"ipop admit {key_digest(public).hex()[:8]}"
            raise ApprovalAwaited(f"this machine waits to be let in as {name}", f"on {self._protocol.node.peer.name}:  {command}")
        self._forget(key_digest(public).hex())
        if not decision.admitted:
            raise InvitationRefused("somebody decided not to let this machine in", "ask who runs the network")

    async def _decided(self, public: bytes, name: str) -> Decision | None:
        found = await self._protocol.submit(c.Get(self._register(public)))
        decision = Decision.read(found.value) if found is not None else None
        good = decision is not None and decision.is_good(public, name, self._trust, self._may_admit)
        return decision if good else None

    def _register(self, public: bytes) -> bytes:
        return key_of("admission-decision", self._protocol.node.network.ident, public)

    def _wait(self, public: bytes, name: str) -> None:
        key, now = key_digest(public).hex(), int(self._wall())
        for one in [one for one in self._waiting.values() if one.asked < now - FORGOTTEN_AFTER]:
            del self._waiting[one.key]
        known = self._waiting.get(key)
        if known is None and len(self._waiting) >= MOST:
            raise InvitationRefused(f"{MOST} machines wait to be let in here already", "ask who runs the network to look at ipop requests")
        self._waiting[key] = Waiting(name, key, public.hex(), known.since if known else now, now)
        if known is None:
            self._log.warn("approval_awaited name={name} key={key}", name=name, key=key)
            self._keep()

    # --- what may be asked -------------------------------------------------------------------

    def told(self) -> list[dict[str, Any]]:
        """Who waits here, the first comer first."""
        ordered = sorted(self._waiting.values(), key=lambda one: (one.since, one.key))
        return [{"name": one.name, "key": one.key, "since": one.since, "asked": one.asked} for one in ordered]

    async def decide(self, target: str, admitted: bool, admitter: Admitter) -> dict[str, Any]:
        """Let somebody in who waits, by name or the first digits of its key, or refuse it. Raises `LocalMisuse`, `Conflict`."""
        one = self._whom(target)
        public = bytes.fromhex(one.public)
        decision = Decision.make(public, admitted, admitter)
        try:
            await self._protocol.submit(c.Create(self._register(public), decision.encode(), KEPT_AFTER_EXPIRY))
        except Conflict:
            known = await self._decided(public, one.name)
            if known is None or known.admitted != admitted:
                raise Conflict(f"another member has decided otherwise about {one.name}", "it counts what was decided first") from None
        self._forget(one.key)
        self._log.info("approval_decided name={name} key={key} admitted={admitted}", name=one.name, key=one.key, admitted=admitted)
        return {"name": one.name, "key": one.key, "admitted": admitted}

    def _whom(self, target: str) -> Waiting:
        found = [one for one in self._waiting.values() if target == one.name or (len(target) >= 8 and one.key.startswith(target.lower()))]
        if not found:
            raise LocalMisuse(f"nobody waits here as {target}", "ipop requests shows who does")
        if len(found) > 1:
            keys = ", ".join(one.key[:8] for one in found)
            raise LocalMisuse(f"{len(found)} machines wait here as {target}", f"name one by its key: {keys}")
        return found[0]

    def _forget(self, key: str) -> None:
        if self._waiting.pop(key, None) is not None:
            self._keep()

    def _keep(self) -> None:
        try:
            self._state.write_json(files.REQUESTS, {"requests": list(self._waiting.values())})
        except StateError as error:  # whoever waits asks again
            self._log.error("requests_not_kept reason={reason}", reason=str(error))

    def health(self) -> list[str]:
        """Whether anybody waits."""
        count = len(self._waiting)
        return [f"{count} machine{'s wait' if count > 1 else ' waits'} to be let in: ipop requests"] if count else []


def _read(state: StateDirectory) -> list[Waiting]:
    stored = state.read_json(files.REQUESTS)
    try:
        return msgspec.convert(stored["requests"], list[Waiting]) if stored is not None else []
    except (TypeError, KeyError, msgspec.ValidationError):
        raise StateError(f"{state.path / files.REQUESTS} makes no sense", "remove it; whoever waits asks again") from None
