"""Looks for a port, where it takes more than challenging what others see: the peer's NAT gives each far endpoint another port.

Who is behind such a NAT *casts*: it opens sockets and sends from each to the peer, so that each gets a port that lets the peer in.
The peer *probes*: it challenges ports at the NAT's address from its own socket. Where the NAT numbers its mappings, a helper has seen
each socket just before, so the next ports are foretold and few sockets do; else both are many, by the birthday paradox: of 64512 ports of
a NAT `SOCKETS` are ours, so `PROBES` draws hit one but for a chance of (1 - 256/64512)^2048 = 0.0003.

The socket that is hit carries the link from then on, by the endpoint `udp@NUMBER:...` (`Endpoint.by_side`). No other can: the NAT would
give the node's own socket a port that nobody knows.

Two NATs that number their mappings and let in endpoints only *meet*: both tell each other the ports that are next, then both send from the
first of ours to the first of theirs, and so on. That fails when something else takes a number in between; so it is tried several times.

Nobody can aim us at a third party: only members who are asked by us and say that the peer answers them there make us cast or probe at an
address, one search a minute for each peer, two at a time, and `RATE` datagrams a second.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ipop_tx.core.links.link import Link
from ipop_tx.core.links.links import Links
from ipop_tx.core.links.paths import Paths
from ipop_tx.core.links.rpc import Rpc
from ipop_tx.core.nat.check import Helper, NatCheck
from ipop_tx.core.nat.sides import Side, Sides
from ipop_tx.core.natkind import Role, role_of
from ipop_tx.core.runtime import Runtime, Timer
from ipop_tx.core.tasks import successes
from ipop_tx.errors import EnvironmentProblem, IpopError, LocalMisuse
from ipop_tx.values import Endpoint, Ident
from ipop_tx.wire import messages as m

SOCKETS = 256
"""Opened where ports cannot be foretold ..."""
FORETOLD = 8
"""... and where they can."""
AHEAD = 3
"""So many of the next numbers are foretold for each socket."""
PROBES = 2048
RATE = 160.0
"""Probes a second."""
TURN = 0.05
"""Seconds between two handfuls of them."""
CAST_AGAIN = 7.0
"""Seconds after which the sockets send once more: the shortest life of a mapping is 10 s."""
MEETINGS = 4
"""How often two NATs that number their mappings are made to meet in one search ..."""
MEETING_WAIT = 0.4
"""... and for how many seconds, beside two round trips."""
AT_ONCE = 2
"""Searches at a time of one node as prober; as caster one, whose sockets are many."""
AGAIN = 60.0
"""Seconds until a pair searches again; twice as long each time, up to `MOST_AGAIN`."""
MOST_AGAIN = 3600.0
WITNESSES = 3
PURPOSE = "searches"
TEND_EVERY = 30.0
FIRST_PORT, LAST_PORT = 1024, 65535


@dataclass(slots=True)
class _Past:
    """What a pair has tried."""

    due: float = 0.0
    wait: float = AGAIN
    running: bool = False


class Searches:
    """Begins searches, and takes part in those of peers."""

    def __init__(self, links: Links, rpc: Rpc, paths: Paths, sides: Sides, check: NatCheck, runtime: Runtime) -> None:
        self._links = links
        self._rpc = rpc
        self._paths = paths
        self._sides = sides
        self._check = check
        self._runtime = runtime
        self._past: dict[Ident, _Past] = {}
        self._kept: dict[int, Side] = {}
        """Sockets that carry links."""
        self._waiting: list[Link] = []
        """Links whose search waits until we have cast for another one."""
        self._tending: Timer | None = None
        self._casting = False
        self._probing: set[Ident] = set()
        self._asked: dict[Ident, float] = {}
        """When peers may ask us to probe again."""
        paths.seek = self.consider
        rpc.serve(m.Search, self._search)
        rpc.serve(m.WhereIs, self._where)
        links.on_down.append(lambda link: self._tend())

    # --- when --------------------------------------------------------------------------------

    def role(self, link: Link) -> Role | None:
        """What we do to get a direct path to a peer, if it takes a search."""
        theirs = self._paths.reaches.get(link.ident)
        if theirs is None or link.settled or link.peer.guest:
            return None
        return role_of(self._paths.facts.reach, theirs, self._links.ident > link.ident)

    def consider(self, link: Link) -> None:
        """A peer has told of itself: begin a search if it is ours to begin, and due."""
        role = self.role(link)
        begins = role is Role.CASTS or (role is Role.MEETS and self._links.ident > link.ident)
        past = self._past.setdefault(link.ident, _Past()) if begins else None
        if past is None or past.running or self._runtime.now < past.due:
            return
        self._forget()
        if not self._check.helpers() or self._paths.outers.get(link.ident) is None:
            return
        past.running = True
        self._waiting.append(link)
        if not self._casting:
            self._runtime.background(self._work())

    def _forget(self) -> None:
        """What pairs have tried that have no link any more and might search again."""
        over = [
            ident
            for ident, past in self._past.items()
            if not past.running and self._runtime.now >= past.due and ident not in self._links.by_ident
        ]
        for ident in over:
            del self._past[ident]

    async def _work(self) -> None:
        self._casting = True
        try:
            while self._waiting:
                link = self._waiting.pop(0)
                past = self._past.setdefault(link.ident, _Past())
                try:
                    await self._begin(link)
                except IpopError:
                    self._runtime.count("search_failed")
                finally:
                    past.running, past.due = False, self._runtime.now + self._runtime.spread(past.wait)
                    past.wait = min(2 * past.wait, MOST_AGAIN)
        finally:
            self._casting = False

    async def _begin(self, link: Link) -> None:
        role, target = self.role(link), self._paths.outers.get(link.ident)
        if not link.up or role is None or target is None:
            return
        self._runtime.count("searches")
        target = await self._vouched(link, str(target), self._who_sees(link))
        if role is Role.MEETS:
            for _ in range(MEETINGS):
                if link.up and not link.settled:
                    await self._meet(link, target)
        elif self._paths.facts.reach.step:
            await self._cast_foretold(link, target)
        else:
            await self._cast_many(link, target)
        if link.settled:
            self._past.pop(link.ident, None)
        self._tend()

    # --- casting -----------------------------------------------------------------------------

    async def _cast_many(self, link: Link, target: Endpoint) -> None:
        sides: list[Side] = []
        try:
            for _ in range(SOCKETS):
                sides.append(await self._open())  # noqa: PERF401 - those opened before one fails count
        except EnvironmentProblem:  # fewer will do, with less luck
            self._runtime.count("search_sockets_short")
        try:
            await self._cast(link, target, sides)
            await self._ask(link, ())
            end = self._runtime.now + PROBES / RATE + 2.0
            again = self._runtime.now + CAST_AGAIN
            while self._runtime.now < end and link.up and not link.settled:
                await self._runtime.sleep(TURN)
                if self._runtime.now >= again:
                    again += CAST_AGAIN
                    await self._cast(link, target, sides)
        finally:
            await self._close(link, sides)

    async def _cast(self, link: Link, target: Endpoint, sides: Iterable[Side]) -> None:
        for count, side in enumerate(sides):
            if link.up and not link.settled:
                self._send(link, target.by_side(side.number))
            if count % 16 == 15:
                await self._runtime.sleep(TURN / 5)

    async def _cast_foretold(self, link: Link, target: Endpoint) -> None:
        sides: list[Side] = []
        ports: list[int] = []
        try:
            for _ in range(FORETOLD):
                side, next_ports = await self._foretell(AHEAD)
                sides.append(side)
                ports += next_ports
                self._send(link, target.by_side(side.number))
            await self._ask(link, tuple(dict.fromkeys(ports)))
            await self._until_settled(link, 3.0)
        finally:
            await self._close(link, sides)

    async def _foretell(self, ahead: int) -> tuple[Side, list[int]]:
        """A socket, and the ports that it will get with whom it sends to next. Raises `EnvironmentProblem`."""
        made = await self._check.open(PURPOSE, SOCKETS)
        helper = next(iter(self._check.helpers()), None)
        (outer,) = await self._check.probe(made, [helper]) if helper is not None else (None,)
        if outer is None:
            self._check.close(made)
            raise EnvironmentProblem("no member tells which port the NAT gave", "it is tried again")
        self._lead(made.side)
        step = self._paths.facts.reach.step
        return made.side, [port for count in range(1, ahead + 1) if (port := outer.port + count * step) <= LAST_PORT]

    async def _open(self) -> Side:
        side = await self._sides.open(PURPOSE, SOCKETS)
        self._lead(side)
        return side

    def _lead(self, side: Side) -> None:
        """What comes in by a socket now is for the links, by endpoints of its own."""
        side.received = lambda endpoint, datagram: self._links.receive(endpoint.by_side(side.number), datagram)

    def _send(self, link: Link, endpoint: Endpoint) -> None:
        """A challenge whose answer nobody waits for: it opens our NAT, and whom it reaches challenges back."""
        self._links.send_message(link, m.PathChallenge(self._runtime.rng.getrandbits(62)), endpoint, whole=True)

    async def _ask(self, link: Link, ports: tuple[int, ...]) -> m.Searching:
        helpers = self._check.helpers()
        witnesses = tuple(helper.link.ident for helper in helpers[:WITNESSES])
        outer = next((str(seen) for helper in helpers if (seen := self._seen(helper)) is not None), "")
        answer = await self._rpc.on_link(link, m.Search(outer, ports, witnesses))
        if not isinstance(answer, m.Searching):
            raise LocalMisuse("a search was answered by something else")
        return answer

    def _seen(self, helper: Helper) -> Endpoint | None:
        return self._paths.facts.seen_by(helper.link.ident)

    async def _until_settled(self, link: Link, seconds: float) -> None:
        end = self._runtime.now + seconds
        while link.up and not link.settled and self._runtime.now < end:
            await self._runtime.sleep(TURN)

    async def _close(self, link: Link, sides: Sequence[Side]) -> None:
        """Keep what carries the link; the peer may still choose between two."""
        if link.settled:
            await self._runtime.sleep(1.0)
        used = {endpoint.side for endpoint in link.direct} if link.up else set()
        for side in sides:
            if side.number in used:
                self._kept[side.number] = side
            else:
                self._sides.close(side)

    def _tend(self) -> None:
        """Close the sockets that carry nothing any more, now and as long as there are any; of several for one link those not used."""
        for link in self._links:
            late = self._runtime.now - TEND_EVERY / 2
            idle = [one for one, path in link.direct.items() if one.side and one != link.active and path.answered < late]
            for endpoint in idle:
                del link.direct[endpoint]
        used = {endpoint.side for link in self._links for endpoint in link.direct}
        for number in [number for number in self._kept if number not in used]:
            self._sides.close(self._kept.pop(number))
        if self._tending is not None:
            self._tending.cancel()
        self._tending = self._runtime.after(TEND_EVERY, self._tend) if self._kept else None

    # --- probing -----------------------------------------------------------------------------

    async def _search(self, link: Link, body: m.Search) -> m.Searching:
        """A peer has cast."""
        role = self.role(link)
        if role not in (Role.PROBES, Role.MEETS):
            raise LocalMisuse("no search is needed, or none can help", "challenge the endpoints that were offered")
        if link.ident in self._probing or len(self._probing) >= AT_ONCE or self._runtime.now < self._asked.get(link.ident, 0.0):
            raise EnvironmentProblem("too many searches are asked for", "ask again in a minute")
        self._probing.add(link.ident)
        try:
            outer = await self._vouched(link, body.outer, body.witnesses)
            if role is Role.MEETS:
                return await self._met(link, outer, body.ports)
        except BaseException:
            self._probing.discard(link.ident)
            raise
        self._asked = {ident: due for ident, due in self._asked.items() if due > self._runtime.now}
        self._asked[link.ident] = self._runtime.now + AGAIN / 2
        self._runtime.background(self._probe(link, outer, body.ports))
        return m.Searching()

    def _who_sees(self, link: Link) -> tuple[Ident, ...]:
        """Members that should know where a peer is: who relays for it, and our own helpers."""
        relays = [ident for ident in (link.relay, link.first_hop, *link.relays) if ident is not None]
        return tuple(dict.fromkeys([*relays, *(helper.link.ident for helper in self._check.helpers())]))[: 2 * WITNESSES]

    async def _vouched(self, link: Link, text: str, named: tuple[Ident, ...]) -> Endpoint:
        """The address at which others, whom we ask ourselves, see the peer. Raises `LocalMisuse` when they do not see it where it says."""
        outer = self._paths.admissible(text)
        witnesses = [ident for ident in named if ident not in (link.ident, self._links.ident)]
        answers = await successes([self._rpc.call(ident, m.WhereIs(link.ident)) for ident in witnesses])
        hosts = {_host(answer.endpoint) for answer in answers if isinstance(answer, m.Sighted) and answer.endpoint}
        if self._links.ident in named:
            hosts |= {endpoint.host for endpoint in link.direct if endpoint.carrier == "udp"}
        if outer is None or hosts != {outer.host}:
            self._runtime.count("search_refused")
            raise LocalMisuse("nobody sees the asker at that address", "name members that have a direct path")
        return outer

    def _where(self, link: Link, body: m.WhereIs) -> m.Sighted:
        seen = self._links.by_ident.get(body.ident)
        direct = seen is not None and isinstance(seen.active, Endpoint) and seen.active.carrier == "udp"
        return m.Sighted(str(seen.active.by_side(0)) if seen is not None and isinstance(seen.active, Endpoint) and direct else "")

    async def _probe(self, link: Link, outer: Endpoint, ports: tuple[int, ...]) -> None:
        drawn: Sequence[int] = ports * 3 if ports else self._runtime.rng.sample(range(FIRST_PORT, LAST_PORT + 1), PROBES)
        handful = max(1, round(RATE * TURN))
        try:
            for at in range(0, len(drawn), handful):
                if not link.up or link.settled:
                    return
                for port in drawn[at : at + handful]:
                    self._paths.challenge(link, outer._replace(port=port), 3.0)
                await self._runtime.sleep(TURN)
            await self._until_settled(link, 2.0)
        finally:
            self._probing.discard(link.ident)

    # --- meeting -----------------------------------------------------------------------------

    async def _meet(self, link: Link, target: Endpoint) -> None:
        """As the one who begins."""
        side, ports = await self._foretell(FORETOLD)
        try:
            answer = await self._ask(link, tuple(ports))
            outer = self._paths.admissible(answer.outer)
            await self._send_in_order(link, side, outer if outer is not None and outer.host == target.host else None, answer.ports)
        finally:
            await self._close(link, [side])

    async def _met(self, link: Link, outer: Endpoint, ports: tuple[int, ...]) -> m.Searching:
        """As the other one: it hears of the first one's ports, tells its own, and both send."""
        side, ours = await self._foretell(FORETOLD)
        self._runtime.background(self._follow(link, side, outer, ports))
        seen = next(iter(self._paths.facts.observed()), "")
        return m.Searching(str(seen), tuple(ours))

    async def _follow(self, link: Link, side: Side, outer: Endpoint, ports: tuple[int, ...]) -> None:
        try:
            await self._send_in_order(link, side, outer, ports)
        finally:
            self._probing.discard(link.ident)
            await self._close(link, [side])
            self._tend()

    async def _send_in_order(self, link: Link, side: Side, outer: Endpoint | None, ports: tuple[int, ...]) -> None:
        """Twice, since what comes first may find the other NAT not open yet; by then the numbers are given out and do not change."""
        if outer is None:
            return
        for _ in range(2):
            for port in ports[:FORETOLD]:
                self._send(link, outer._replace(port=port).by_side(side.number))
            await self._until_settled(link, MEETING_WAIT / 2 + link.rtt)


def _host(text: str) -> str:
    try:
        return Endpoint.parse(text).host
    except LocalMisuse:
        return ""
