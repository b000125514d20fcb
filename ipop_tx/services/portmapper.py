"""Keeps one UDP port mapped at one gateway, by PCP, or by NAT-PMP where the gateway is older than that.

A mapping is asked for, renewed when half of its life is over, and taken away at the end. Every answer carries the gateway's clock: when
that has run other than ours, the gateway has restarted and forgotten us, and is asked again (RFC 6886, 3.6; RFC 6887, 8.5).
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from ipaddress import IPv4Address, IPv6Address
from random import Random
from typing import Any

from ipop_tx.errors import BadMessage
from ipop_tx.log import Logger
from ipop_tx.wire import portmap as w

LIFETIME = 3600
"""Seconds for which a mapping is asked for."""
WAITS = (0.25, 0.5, 1.0, 2.0)
"""Seconds after which an unanswered question is asked again; after the last one the gateway does not speak that protocol."""
HEARTBEAT = 120.0
"""Seconds between looks at the gateway's clock: its announcement of a restart may have been lost."""
AGAIN = 600.0
"""Seconds until a gateway that did not answer, or has refused, is asked again."""
LEAST_RENEWAL = 4.0


class Phase(Enum):
    """What is being asked for, or has come of it."""

    PCP = "PCP is tried"
    PMP = "NAT-PMP is tried"
    MAPPED = "mapped"
    REFUSED = "refused"
    SILENT = "no answer"
    STOPPED = "stopped"


class Epoch:
    """A gateway's clock beside ours."""

    def __init__(self) -> None:
        self._seen: tuple[float, int] | None = None

    def went_on(self, now: float, epoch: int, version: int) -> bool:
        """Take a reading; False when it shows that the gateway has forgotten its mappings since the one before."""
        before, self._seen = self._seen, (now, epoch)
        if before is None:
            return True
        ours, theirs = now - before[0], epoch - before[1]
        if version == w.PMP:
            return theirs >= 0.875 * ours - 2.0
        return theirs >= -1 and ours + 2 >= theirs * 15 / 16 and theirs + 2 >= ours * 15 / 16


class PortMapper:
    """`changed` is called whenever `outer` is another one. `clock` is a reactor: `callLater`, `seconds`."""

    _log = Logger()

    def __init__(
        self,
        clock: Any,
        rng: Random,
        nonce: bytes,
        client: IPv4Address,
        port: int,
        send: Callable[[bytes], object],
        changed: Callable[[], object],
    ) -> None:
        """`nonce` is that of PCP, 12 bytes: whoever had the mapping before must have had the same, or it is refused until that one ends."""
        self.phase = Phase.STOPPED
        self.outer: tuple[str, int] | None = None
        """Address and port under which the gateway leads here; None without a mapping."""
        self.problem = ""
        """Why there is none, in a sentence; empty when there is one, or no gateway that could."""
        self.speaks: set[str] = set()
        """The protocols in which the gateway has answered: `PCP`, `NAT-PMP`."""
        self._clock = clock
        self._rng = rng
        self._client = client
        self._port = port
        self._send = send
        self._changed = changed
        self._nonce = nonce
        self._epochs = {w.PMP: Epoch(), w.PCP: Epoch()}
        self._address: IPv4Address | IPv6Address | None = None
        self._mapped: w.Mapped | None = None
        self._expires = 0.0
        self._tries = 0
        self._timer: Any = None
        self._heart: Any = None

    # --- life --------------------------------------------------------------------------------

    def start(self) -> None:
        """Ask for a mapping. The outer address is asked for too: that also shows whether the gateway speaks NAT-PMP."""
        self._begin(Phase.PCP)
        self._send(w.pmp_address())
        self._beat()

    def stop(self) -> None:
        """Give the mapping back."""
        mapped, self._mapped = self._mapped, None
        self.phase = Phase.STOPPED
        for timer in (self._timer, self._heart):
            if timer is not None and timer.active():
                timer.cancel()
        if mapped is not None:
            self._send(self._question(mapped.version, 0))
        self._set()

    # --- asking ------------------------------------------------------------------------------

    def _begin(self, phase: Phase) -> None:
        self.phase, self._tries = phase, 0
        self._ask()

    def _ask(self) -> None:
        if self._tries >= len(WAITS):
            self._unanswered()
            return
        self._send(self._question(w.PCP if self.phase is Phase.PCP else w.PMP, LIFETIME))
        if self.phase is Phase.PMP and self._address is None:
            self._send(w.pmp_address())
        self._again(WAITS[self._tries], self._ask)
        self._tries += 1

    def _question(self, version: int, lifetime: int) -> bytes:
        outer = self._mapped.outer if self._mapped else self._port
        if version == w.PCP:
            return w.pcp_map(self._client, self._nonce, self._port, outer if lifetime else 0, lifetime)
        return w.pmp_map(self._port, outer if lifetime else 0, lifetime)

    def _unanswered(self) -> None:
        if self._mapped is not None:  # a renewal: the mapping lives on for a while
            left = self._expires - self._clock.seconds()
            self._again(max(LEAST_RENEWAL, left / 2) if left > 0 else 0.0, self._renew if left > 0 else self._lost)
            self.phase = Phase.MAPPED
        elif self.phase is Phase.PCP:
            self._begin(Phase.PMP)
        else:
            self.phase = Phase.SILENT
            self._again(AGAIN, lambda: self._begin(Phase.PCP))

    def _renew(self) -> None:
        self._begin(Phase.PCP if self._mapped is not None and self._mapped.version == w.PCP else Phase.PMP)

    def _lost(self) -> None:
        self._mapped = None
        self._set()
        self._begin(Phase.PCP)

    def _again(self, delay: float, call: Callable[[], object]) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = self._clock.callLater(delay, call)

    def _beat(self) -> None:
        self._heart = self._clock.callLater(HEARTBEAT * (0.9 + 0.2 * self._rng.random()), self._beat)
        if self._mapped is not None:
            self._send(w.pcp_announce(self._client) if self._mapped.version == w.PCP else w.pmp_address())

    # --- answers -----------------------------------------------------------------------------

    def received(self, data: bytes, announced: bool = False) -> None:
        """A datagram of the gateway: an answer, or what it has `announced` to everybody.

        That it does when it has restarted: also one whose clock has not run long enough to tell is asked again then.
        """
        if self.phase is Phase.STOPPED:
            return
        try:
            answer = w.decode(data)
        except BadMessage as error:
            self._log.debug("gateway_unreadable reason={reason}", reason=str(error))
            return
        version = data[0]
        if answer.result == w.UNSUPPORTED_VERSION:
            if self.phase is Phase.PCP and self._mapped is None:
                self._begin(Phase.PMP)
            return
        self.speaks.add("PCP" if version == w.PCP else "NAT-PMP")
        went_on = self._epochs[version].went_on(self._clock.seconds(), answer.epoch, version)
        if isinstance(answer, w.OuterAddress):
            self._address = answer.address
            self._set()
        elif isinstance(answer, w.Mapped):
            self._answered(answer)
            return
        if self.phase is Phase.SILENT:  # so it speaks after all
            self._again(self._rng.random(), lambda: self._begin(Phase.PCP))
        elif (announced or not went_on) and self.phase is Phase.MAPPED and self._mapped is not None and self._mapped.version == version:
            self._log.info("gateway_restarted client={client}", client=str(self._client))
            self._again(self._rng.random(), self._renew)

    def _answered(self, answer: w.Mapped) -> None:
        wanted = {Phase.PCP: w.PCP, Phase.PMP: w.PMP}.get(self.phase)
        mine = answer.inner == self._port and (answer.version == w.PMP or answer.nonce == self._nonce)
        if answer.version != wanted or not (mine or (answer.result and answer.version == w.PMP)):
            return  # late, or somebody else's
        if answer.result or not answer.lifetime or not answer.outer:
            self._refused(answer)
            return
        self.phase, self.problem = Phase.MAPPED, ""
        self._mapped = answer
        if answer.version == w.PCP:
            self._address = answer.address
        lifetime = min(answer.lifetime, 86400)
        self._expires = self._clock.seconds() + lifetime
        self._again(max(LEAST_RENEWAL, lifetime / 2 * (0.9 + 0.1 * self._rng.random())), self._renew)
        self._set()

    def _refused(self, answer: w.Mapped) -> None:
        self.phase, self._mapped = Phase.REFUSED, None
        results = w.PCP_RESULTS if answer.version == w.PCP else w.PMP_RESULTS
        self.problem = f"the gateway makes no port mapping: {results.get(answer.result, f'its result is {answer.result}')}"
        wait = min(max(60.0, float(answer.lifetime)), 1800.0) if answer.version == w.PCP else AGAIN
        self._again(wait, lambda: self._begin(Phase.PCP))
        self._set()

    def _set(self) -> None:
        outer = (str(self._address), self._mapped.outer) if self._mapped is not None and self._address is not None else None
        if outer != self.outer:
            self.outer = outer
            self._changed()
