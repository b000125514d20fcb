"""Finds out what this node's NAT does, without any server: members at other addresses help (`core.nat.help`).

All tests use fresh sockets, so that nothing the node has sent before has opened anything.

- *Mapping*: one socket sends to several endpoints: two ports of one member, and one of each other member. At how many different outer
  endpoints is it seen?
- *Filtering*: one socket sends to one port of one member only. Then another member knocks there, and the first one from another port.
  Who gets in?
- *Brittleness*: where the mapping depends on nobody, the socket then sends to those who did not get in. Is it still seen at the same port?
- *Hops*: a fresh socket sends to another member with a small hop limit, and that one knocks. With which limit does it get in?
- *Hairpin*: two sockets send to each other's outer endpoint.

This is what RFC 5780 does with a STUN server that has two addresses. What does not arrive is asked for three times.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ipop_tx.core.events import NatChecked
from ipop_tx.core.links.facts import USUAL_HOPS, Facts
from ipop_tx.core.links.link import Link
from ipop_tx.core.links.links import Links
from ipop_tx.core.links.rpc import Rpc
from ipop_tx.core.nat.rules import filtering_of, mapping_of
from ipop_tx.core.nat.sides import MOST, PURPOSE, Side, Sides
from ipop_tx.core.natkind import Kind, NatFacts, Reach
from ipop_tx.core.runtime import Runtime
from ipop_tx.core.tasks import Future, all_settled, spawn
from ipop_tx.errors import IpopError, LocalMisuse
from ipop_tx.values import Endpoint, Ident
from ipop_tx.wire import messages as m
from ipop_tx.wire.datagram import CONTROL

HELPERS = 4
"""Most members that are asked."""
TRIES = 3
WAIT = 0.4
"""Least seconds to wait for an answer; thrice the round trip, if that is more."""
MOST_HOPS = 6
"""The greatest hop limit that is tried: so many routers in a row do not translate."""
PACE = 0.02
"""Seconds between two first probes, so that they pass the NAT in order."""
TOKEN_BYTES = 16
_NO_FORM = b"\x00"  # first byte of a token: no datagram of ours begins so


@dataclass(frozen=True, slots=True)
class Helper:
    """A member, and the endpoint of it that we send to."""

    link: Link
    endpoint: Endpoint


@dataclass(slots=True)
class _Socket:
    """A fresh socket, what it waits for, and what of that it has heard: from where it came, and where the socket was seen."""

    side: Side
    awaited: set[int] = field(default_factory=set)
    heard: dict[int, tuple[Endpoint, str]] = field(default_factory=dict)
    token: bytes = b""
    token_came: bool = False


class NatCheck:
    """Checks, one at a time; `facts` is what the last one found."""

    def __init__(self, links: Links, rpc: Rpc, sides: Sides, own: Facts, reaches: Mapping[Ident, Reach], runtime: Runtime) -> None:
        """`reaches` are the NATs of peers."""
        self.facts = NatFacts()
        self._links = links
        self._rpc = rpc
        self._sides = sides
        self._own = own
        self._reaches = reaches
        self._runtime = runtime
        self._running: Future[NatFacts] | None = None

    def check(self) -> Future[NatFacts]:
        """Start a check, or join the one that runs."""
        if self._running is None:
            running = self._running = spawn(self._check())
            running.then(self._checked)
            return running
        return self._running

    def _checked(self, done: Future[NatFacts]) -> None:
        self._running = None
        if done.error is None:
            self.facts = done.result()
            self._runtime.emit(NatChecked())

    def helpers(self) -> list[Helper]:
        """Members with direct paths, of different addresses, those first that anybody reaches at any port, then the nearest.

        A member on our own LAN sees us as we are and can tell nothing of the NAT: it counts only if nobody else is there.
        """
        found = [Helper(link, link.active) for link in self._links if isinstance(link.active, Endpoint) and link.active.scheme == "udp"]
        inner = set(self._own.local)
        outside = [helper for helper in found if self._own.seen_by(helper.link.ident) not in (None, *inner)]
        version6 = [":" in helper.endpoint.host for helper in outside or found]
        candidates = [helper for helper, sixth in zip(outside or found, version6, strict=True) if sixth == all(version6)]
        candidates.sort(key=lambda helper: (not helper.link.placed, self._shut(helper), helper.link.rtt or 1.0, helper.link.ident))
        return list({helper.endpoint.host: helper for helper in reversed(candidates)}.values())[::-1][:HELPERS]

    def _shut(self, helper: Helper) -> int:
        """Whether a NAT is in the way of a member's help: a second port behind it is reached by nobody, and answers leave by others."""
        theirs = self._reaches.get(helper.link.ident, Reach())
        return 1 if not theirs.known else 0 if theirs.steady and theirs.filtering is Kind.ENDPOINT_INDEPENDENT else 2

    def without_udp(self) -> bool:
        """Whether members are reached directly, but none by UDP: then that is blocked here."""
        schemes = {link.active.carrier for link in self._links if isinstance(link.active, Endpoint)}
        return bool(schemes) and "udp" not in schemes

    async def _check(self) -> NatFacts:
        helpers = self.helpers()
        if not helpers:
            blocked = Reach(Kind.BLOCKED, Kind.BLOCKED) if self.without_udp() else Reach()
            return NatFacts(blocked, mapping_sure=blocked.blocked, filtering_sure=blocked.blocked, at=self._runtime.now)
        seconds = await self._second_ports(helpers)
        mapping, answered = await self._mapping(helpers, seconds)
        # Whoever has a second port tells more: it is the one that the test of the filter sends to.
        first = max(helpers, key=lambda helper: (helper.endpoint in answered, seconds.get(helper) in answered, helper in seconds))
        others = [helper for helper in helpers if helper is not first]
        facts = await self._filtering(mapping, first, others, seconds.get(first))
        if facts.reach.mapping not in (Kind.UNKNOWN, Kind.NONE):
            facts = replace(facts, hairpin=await self._hairpin(first))
        if facts.reach.steady and facts.reach.filtering not in (Kind.UNKNOWN, Kind.ENDPOINT_INDEPENDENT):
            answering = [helper for helper in others if helper.endpoint in answered]
            facts = replace(facts, hops=await self._hops(facts, first, answering[:2]) if answering else 0)
        return replace(facts, helpers=len(helpers), at=self._runtime.now)

    # --- sockets and probes ------------------------------------------------------------------

    async def open(self, purpose: str = PURPOSE, most: int = MOST) -> _Socket:
        """A fresh socket; see `Sides.open`."""
        made = _Socket(await self._sides.open(purpose, most))

        def received(endpoint: Endpoint, datagram: bytes) -> None:
            if made.token and datagram == made.token:
                made.token_came = True
                return
            opened = self._links.open_aside(datagram)
            message = opened[1] if opened is not None else None
            if isinstance(message, m.Probed) and message.nonce in made.awaited:
                made.heard.setdefault(message.nonce, (endpoint, message.observed))

        made.side.received = received
        return made

    def close(self, *sockets: _Socket) -> None:
        """No more of them."""
        for made in sockets:
            self._sides.close(made.side)

    async def probe(self, made: _Socket, targets: Sequence[Helper]) -> list[Endpoint | None]:
        """Where each of the targets sees a socket; None for one that does not answer."""
        nonces = self._nonces(made, len(targets))
        for _ in range(TRIES):
            missing = [(nonce, target) for nonce, target in zip(nonces, targets, strict=True) if nonce not in made.heard]
            for nonce, target in missing:
                if target.link.up:
                    made.side.send(target.endpoint, target.link.session.protect(CONTROL, m.encode(m.Probe(nonce))))
                await self._runtime.sleep(PACE)
            if await self._heard(made, nonces, _patience(targets)):
                break
        return [_endpoint(made.heard[nonce][1]) if nonce in made.heard else None for nonce in nonces]

    def _nonces(self, made: _Socket, count: int) -> list[int]:
        nonces = [self._runtime.rng.getrandbits(62) for _ in range(count)]
        made.awaited.update(nonces)
        return nonces

    async def _heard(self, made: _Socket, nonces: Iterable[int], seconds: float) -> bool:
        """Wait until a socket has heard all of these, `seconds` at most."""
        end = self._runtime.now + seconds
        while not (all_there := all(nonce in made.heard for nonce in nonces)) and self._runtime.now < end:
            await self._runtime.sleep(PACE)
        return all_there

    async def knock(self, made: _Socket, outer: Endpoint, helper: Helper, second: bool = False) -> bool | None:
        """Whether a knock of a helper gets in to a socket that is seen at `outer`; None when it could not be asked for.

        One that comes from another place than was asked for does not count.
        """
        nonces = self._nonces(made, TRIES)
        asked = False
        for at in range(TRIES):
            try:
                await self._rpc.on_link(helper.link, m.Knock(nonces[at], str(outer), second))
            except IpopError:
                continue
            asked = True
            end = self._runtime.now + _patience((helper,)) / 2
            while self._runtime.now < end:
                if any(_is_from(made.heard[nonce][0], helper, second) for nonce in nonces if nonce in made.heard):
                    return True
                await self._runtime.sleep(PACE)
        return False if asked else None

    # --- mapping -----------------------------------------------------------------------------

    async def _second_ports(self, helpers: Sequence[Helper]) -> dict[Helper, Endpoint]:
        asked = [self._rpc.on_link(helper.link, m.Assist()) for helper in helpers]
        await all_settled(asked)
        ports = [done.result() if done.error is None else None for done in asked]
        return {
            helper: helper.endpoint._replace(port=answer.port)
            for helper, answer in zip(helpers, ports, strict=True)
            if isinstance(answer, m.Assisting) and answer.port
        }

    async def _mapping(self, helpers: Sequence[Helper], seconds: dict[Helper, Endpoint]) -> tuple[NatFacts, set[Endpoint]]:
        """What the mapping is, and which endpoints of the helpers have answered."""
        targets: list[Helper] = []
        for helper in helpers:
            targets.append(helper)
            if helper in seconds:
                targets.append(Helper(helper.link, seconds[helper]))
        made = await self.open()
        try:
            seen = await self.probe(made, targets)
        finally:
            self.close(made)
        inner = {Endpoint("udp", local.host, made.side.port) for local in self._own.local}
        places = {target.endpoint: outer for target, outer in zip(targets, seen, strict=True) if outer is not None}
        return mapping_of(places, inner), set(places)

    # --- filtering ---------------------------------------------------------------------------

    async def _filtering(self, facts: NatFacts, first: Helper, others: Sequence[Helper], second: Endpoint | None) -> NatFacts:
        made = await self.open()
        try:
            (outer,) = await self.probe(made, [first])
            if outer is None:
                return facts
            asked = [spawn(self.knock(made, outer, helper)) for helper in others]
            asked += [spawn(self.knock(made, outer, first, second=True))] if second else []
            # A nonce tells who knocked: each of these waits for its own.
            await all_settled(asked)
            came = [done.result() if done.error is None else None for done in asked]
            knocked = [*others, *([Helper(first.link, second)] if second else [])]
            kept_out = [helper for helper, got_in in zip(knocked, came, strict=True) if got_in is False]
            filtering, sure = filtering_of(came[: len(others)], came[-1] if second else None)
            strict = filtering not in (Kind.UNKNOWN, Kind.ENDPOINT_INDEPENDENT)
            may_be = strict and facts.reach.mapping is Kind.ENDPOINT_INDEPENDENT
            brittle = may_be and await self._is_brittle(made, outer, kept_out)
        finally:
            self.close(made)
        return replace(facts, reach=replace(facts.reach, filtering=filtering, brittle=brittle), filtering_sure=sure)

    async def _is_brittle(self, made: _Socket, outer: Endpoint, kept_out: Sequence[Helper]) -> bool:
        """Whether those whose knock did not come in see the socket at another port than the one they knocked at. In doubt it is so."""
        seen = [place for place in await self.probe(made, kept_out) if place is not None] if kept_out else []
        return not seen or any(place != outer for place in seen)

    async def _hops(self, facts: NatFacts, first: Helper, others: Sequence[Helper]) -> int:
        """The least hop limit of datagrams to other members that lets in their knocks; 0 if none does."""
        for hops in range(1 if facts.reach.mapping is Kind.NONE else USUAL_HOPS, MOST_HOPS + 1):
            made = await self.open()
            try:
                (outer,) = await self.probe(made, [first])
                if outer is None:
                    return 0
                for other in others:
                    made.side.send_near(other.endpoint, _NO_FORM + self._runtime.rng.randbytes(TOKEN_BYTES), hops)
                asked = [spawn(self.knock(made, outer, other)) for other in others]
                await all_settled(asked)
                if any(done.error is None and done.result() for done in asked):
                    return hops
            finally:
                self.close(made)
        return 0

    # --- hairpin -----------------------------------------------------------------------------

    async def _hairpin(self, first: Helper) -> bool | None:
        one, other = await self.open(), await self.open()
        try:
            (left,), (right,) = await self.probe(one, [first]), await self.probe(other, [first])
            if left is None or right is None:
                return None
            token = one.token = other.token = _NO_FORM + self._runtime.rng.randbytes(TOKEN_BYTES)
            for _ in range(TRIES):
                one.side.send(right, token)
                other.side.send(left, token)
                await self._runtime.sleep(WAIT / 2)
                if one.token_came or other.token_came:
                    return True
            return False
        finally:
            self.close(one, other)


def _is_from(source: Endpoint, helper: Helper, second: bool) -> bool:
    return source.host == helper.endpoint.host and (source.port != helper.endpoint.port or not second)


def _patience(helpers: Iterable[Helper]) -> float:
    return max(WAIT, 3 * max(helper.link.rtt for helper in helpers))


def _endpoint(text: str) -> Endpoint | None:
    try:
        return Endpoint.parse(text)
    except LocalMisuse:
        return None
