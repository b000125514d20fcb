"""Flows that the policy has allowed, with one peer: so that answers pass, and the next packet costs a look into a dict. Bounded.

A flow is *young* until whoever began it has heard an answer, and goes on: for TCP that takes the third packet of the handshake, so
whoever only sends SYNs fills the table of the young, who make way first. What was forgotten too early costs TCP nothing: see `policing`.
"""

from __future__ import annotations

from collections.abc import Iterator

from ipop_tx.forwarding.inner import FIN, RST, SYN, Inner
from ipop_tx.wire.policy import TCP, UDP, Party, Rule

MOST_OF_ONE = 4096
"""Flows with one peer."""
FRAGMENTS = 256
"""Packets of one peer of which fragments are let through."""
FRAGMENT_SECONDS = 30.0
"""For which fragments of an allowed packet are let through; as long as Linux waits for them."""

YOUNG, SETTLED, CLOSING = 0, 1, 2
_SECONDS = {TCP: (60.0, 7440.0, 60.0), UDP: (30.0, 180.0, 30.0)}
"""Idle time after which a flow is forgotten, by state (RFC 5382: 2 h 4 min; RFC 4787: 2 min at least)."""
_OTHERS = (30.0, 300.0, 30.0)


class Flow:
    """One conversation; `begun` is the packet that began it, `inward` whether the peer sent that."""

    __slots__ = ("answered", "begun", "generation", "idle", "inward", "rule", "seen", "state")

    def __init__(self, begun: Inner, inward: bool, rule: Rule | None, generation: int, now: float) -> None:
        self.begun = begun
        self.inward = inward
        self.rule = rule
        """What allows it; None: the policy's default."""
        self.generation = generation
        """Of the policy that has allowed it."""
        self.seen = now
        self.state = YOUNG
        self.idle = self._seconds()
        """Seconds for which it may be idle."""
        self.answered = False

    def _seconds(self) -> float:
        return _SECONDS.get(self.begun.packet.protocol, _OTHERS)[self.state]

    def over(self, now: float) -> bool:
        """Whether it has been idle for too long."""
        return now - self.seen > self.idle

    def went_on(self, forward: bool, flags: int, now: float) -> None:
        """One more packet of it, from whoever began it or the other."""
        self.seen = now
        if self.begun.packet.protocol != TCP:
            self.state = SETTLED if not forward else self.state
        elif flags & (FIN | RST):
            self.state = CLOSING
        elif not forward:
            self.answered = True
        elif flags & SYN:
            self.state, self.answered = YOUNG, False
        elif self.answered and self.state == YOUNG:
            self.state = SETTLED
        self.idle = self._seconds()


class Flows:
    """Those with one peer, who is `party`."""

    def __init__(self, party: Party) -> None:
        self.party = party
        self.by_key: dict[bytes, Flow] = {}
        """Under the key of each direction."""
        self._young: dict[Flow, None] = {}
        self._others: dict[Flow, None] = {}
        self._fragments: dict[bytes, float] = {}

    def __len__(self) -> int:
        return len(self._young) + len(self._others)

    def __iter__(self) -> Iterator[Flow]:
        yield from self._young
        yield from self._others

    def add(self, flow: Flow) -> None:
        """Remember a flow, and forget another if there are too many."""
        for key in (flow.begun.key, flow.begun.answers):
            known = self.by_key.get(key)
            if known is not None:
                self.remove(known)
        if len(self) >= MOST_OF_ONE:
            self.evict()
        self.by_key[flow.begun.key] = self.by_key[flow.begun.answers] = flow
        self.sort(flow)

    def sort(self, flow: Flow) -> None:
        """A flow's state has changed, maybe."""
        wrong, right = (self._others, self._young) if flow.state == YOUNG else (self._young, self._others)
        wrong.pop(flow, None)
        right[flow] = None

    def evict(self) -> None:
        """Forget the oldest of the young, or else the oldest."""
        oldest = next(iter(self), None)
        if oldest is not None:
            self.remove(oldest)

    def remove(self, flow: Flow) -> None:
        """Forget one."""
        self._young.pop(flow, None)
        self._others.pop(flow, None)
        for key in (flow.begun.key, flow.begun.answers):
            if self.by_key.get(key) is flow:
                del self.by_key[key]

    def sweep(self, now: float) -> None:
        """Forget what has been idle for too long."""
        for flow in [flow for flow in self if flow.over(now)]:
            self.remove(flow)
        self._fragments = {name: until for name, until in self._fragments.items() if now < until}

    def expect_fragments(self, name: bytes, now: float) -> None:
        """The first fragment of a packet was allowed: let the others through."""
        self._fragments.pop(name, None)
        if len(self._fragments) >= FRAGMENTS:
            del self._fragments[next(iter(self._fragments))]
        self._fragments[name] = now + FRAGMENT_SECONDS

    def forget_fragments(self) -> None:
        """Another policy counts."""
        self._fragments.clear()

    def expects(self, name: bytes, now: float) -> bool:
        """Whether a later fragment may pass."""
        until = self._fragments.get(name)
        return until is not None and now < until
