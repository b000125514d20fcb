"""Looks for a port, where it takes more than challenging what others see: the peer's NAT gives each far endpoint another port.

Who is behind such a NAT *casts*: it opens sockets and sends from each to the peer, so that each gets a port that lets the peer in.
The peer *probes*: it challenges ports at the NAT's address from its own socket. Where the NAT numbers its mappings, a helper has seen
each socket just before, so the next ports are foretold and few sockets do; else both are many, by the birthday paradox: of 64512 ports of
a NAT `SOCKETS` are ours, so `PROBES` draws hit one but for a chance of (1 - 256/64512)^2048 = 0.0003.

The socket that is hit carries the link from then on, by the endpoint `udp@NUMBER:...` (`Endpoint.by_side`). No other can: the NAT would
give the node's own socket a port that nobody knows.

Two NATs that number their mappings and let in endpoints only *meet*: both tell each other the ports that are next, then both send from the
first of ours to the first of theirs, and so on. That fails when something else takes a number in between; so it is tried several times.

Every other pair whose challenges should have been enough, but were not, meets as well: both open a socket, have a member tell its port, and
send. What has happened to their own ports does not matter then: a datagram that came too early to a brittle NAT, another machine behind
the same NAT that uses the same port.

Whoever is asked opens its own NAT first, by datagrams that do not get as far as the asker's (`Links.open_towards`), and then answers.
A cast for a peer with a brittle NAT opens like that too: what comes in there before the peer has probed spoils the port to probe from. And
such a peer probes from a fresh socket: the port of its own one may have been spoilt long ago, after which Linux gives the port that it
took instead to whatever goes out next, whereto ever.

Nobody can aim us at a third party: only members who are asked by us and say that the peer answers them there make us cast or probe at an
address, one search a minute for each peer, two at a time, and `RATE` datagrams a second.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ipop_tx.core.links.facts import version_of
from ipop_tx.core.links.link import Link
from ipop_tx.core.links.links import Links
from ipop_tx.core.links.paths import Paths
from ipop_tx.core.links.rpc import Rpc
from ipop_tx.core.nat.check import Helper, NatCheck
from ipop_tx.core.nat.sides import Side, Sides
from ipop_tx.core.nat.sockets import LAST_PORT, SearchSockets
from ipop_tx.core.natkind import Reach, Role, meet_openly, role_of
from ipop_tx.core.runtime import Runtime
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
OPEN_WAIT = 0.4
"""Seconds within which the challenges of a pair with a brittle NAT are answered, if they are."""
PREPARED = 20.0
"""Seconds for which a fresh socket waits for a peer that is about to cast."""
CAST_AGAIN = 7.0
"""Seconds after which the sockets send once more: the shortest life of a mapping is 10 s."""
MEETINGS = 4
"""How often two NATs that number their mappings are made to meet in one search ..."""
MEETING_WAITS = (0.2, 0.4, 1.2)
"""... and how many seconds are between what is sent then, beside a round trip."""
AT_ONCE = 2
"""Searches at a time of one node as prober; as caster one, whose sockets are many."""
AT_ONCE_FOR_FRAMES = 4
"""The same as prober, for links that carry frames."""
IDLE = 30.0
"""Seconds without frames after which a link does not count as one of these."""
AGAIN = 60.0
"""Seconds until a pair searches again; twice as long each time, up to `MOST_AGAIN`."""
SOON = 4.0
"""The same where the search could not begin: the peer has too many of them, or does not know our NAT yet."""
MOST_AGAIN = 3600.0
WITNESSES = 3
FIRST_PORT = 1024


@dataclass(slots=True)
class _Past:
    """What a pair has tried."""

    due: float = 0.0
    wait: float = AGAIN
    soon: float = SOON
    running: bool = False
    vain: int = 0
    """How many searches have found nothing."""


class Searches:
    """Begins searches, and takes part in those of peers."""

    def __init__(self, links: Links, rpc: Rpc, paths: Paths, sides: Sides, check: NatCheck, runtime: Runtime) -> None:
        self._links = links
        self._rpc = rpc
        self._paths = paths
        self._sockets = SearchSockets(links, paths, sides, check, runtime)
        self._check = check
        self._runtime = runtime
        self._past: dict[Ident, _Past] = {}
        self._waiting: list[Link] = []
        """Links whose search waits until we have cast for another one."""
        self._casting = False
        self._probing: set[Ident] = set()
        self._asked: dict[Ident, float] = {}
        """When peers may ask us to probe again."""
        self._prepared: dict[Ident, Side] = {}
        """Fresh sockets from which we shall probe for peers that are about to cast."""
        self._found: dict[Ident, str] = {}
        """How paths were found."""
        paths.seek = self.consider
        rpc.serve(m.Search, self._search)
        rpc.serve(m.Whence, self._whence)
        rpc.serve(m.WhereIs, self._where)
        links.on_down.append(self._link_down)

    # --- when --------------------------------------------------------------------------------

    def role(self, link: Link) -> Role | None:
        """What we do to get a direct path to a peer, if it takes a search."""
        theirs = self._paths.reaches.get(link.ident)
        outer = self._paths.outers.get(link.ident)
        if theirs is None or link.settled or link.peer.guest or outer is None or version_of(outer) not in self._paths.facts.versions():
            return None
        if self._is_open(link):
            return Role.MEETS if self._paths.facts.reach.known and theirs.known else None
        return role_of(self._paths.facts.reach, theirs, self._links.ident > link.ident)

    def _is_open(self, link: Link) -> bool:
        """Whether challenges should be enough."""
        return meet_openly(self._paths.facts.reach, self._paths.reaches.get(link.ident, Reach()))

    def consider(self, link: Link, tried: bool) -> None:
        """A peer without path by UDP has told of itself: begin a search if it is ours to, and due. `tried`: challenges are not answered."""
        self._found.pop(link.ident, None)
        role = self.role(link)
        brittle = self._is_brittle(link) or self._paths.facts.reach.brittle
        if role is None or (self._is_open(link) and not tried and not brittle):
            return
        begins = role is Role.CASTS or (role is Role.MEETS and self._links.ident > link.ident)
        past = self._past.setdefault(link.ident, _Past()) if begins else None
        if past is None or past.running or self._runtime.now < past.due:
            return
        self._forget()
        if not self._check.helpers():
            return
        past.running = True
        self._waiting.append(link)
        self._waiting.sort(key=lambda waiting: -waiting.frames)
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
                wait = past.wait
                try:
                    await self._begin(link)
                    past.wait, past.vain = min(2 * past.wait, MOST_AGAIN), past.vain + 1
                except IpopError:
                    self._runtime.count("search_failed")
                    wait = past.soon
                    past.soon = min(2 * past.soon, AGAIN)
                finally:
                    past.running = False
                    self._wait(link, past, self._runtime.spread(wait))
        finally:
            self._casting = False

    def _wait(self, link: Link, past: _Past, seconds: float) -> None:
        past.due = self._runtime.now + seconds
        if link.up and not link.settled:
            self._runtime.after(seconds, lambda: self.consider(link, True) if link.up else None)

    async def _begin(self, link: Link) -> None:
        if self._is_open(link):
            await self._sockets.until_settled(link, OPEN_WAIT)
        role, target = self.role(link), self._paths.outers.get(link.ident)
        if not link.up or role is None or target is None:
            self._past.pop(link.ident, None)
            return
        self._runtime.count("searches")
        if role is Role.CASTS and self._is_brittle(link):
            whence = await self._rpc.on_link(link, m.Whence())
            target = self._paths.admissible(whence.outer) if isinstance(whence, m.Searching) else None
        if role is Role.CASTS and target is not None:
            target = await self._vouched(link, str(target), self._who_sees(link))
        if role is Role.MEETS:
            for _ in range(MEETINGS):
                if link.up and not link.settled:
                    await self._meet(link)
        elif target is not None and self._paths.facts.reach.step:
            await self._cast_foretold(link, target)
        elif target is not None:
            await self._cast_many(link, target)
        self._note(link, role, bool(self._paths.facts.reach.step))
        self._sockets.tend()

    def _note(self, link: Link, role: Role, foretold: bool) -> None:
        """Keep in mind how a path was found."""
        if link.settled:
            self._past.pop(link.ident, None)
            self._found[link.ident] = "fresh ports" if role is Role.MEETS else "ports foretold" if foretold else "a search among all ports"

    def _link_down(self, link: Link) -> None:
        self._found.pop(link.ident, None)
        self._sockets.tend()

    # --- words -------------------------------------------------------------------------------

    def technique(self, link: Link) -> str | None:
        """How the direct path of a link by UDP was found; None for another one."""
        return self._found.get(link.ident, "challenges") if link.settled else None

    def state(self, link: Link) -> str | None:
        """What is done about a link without such a path, in words; None where no search is ours to do."""
        past = self._past.get(link.ident)
        if link.ident in self._probing:
            return "looking for the right port with the peer"
        if past is None:
            return None
        if link in self._waiting:
            return "a search for a port waits for others to end"
        if past.running:
            return "looking for the right port with the peer"
        begins = f"{max(0.0, past.due - self._runtime.now):.0f} s"
        searches = "1 search" if past.vain == 1 else f"{past.vain} searches"
        return f"{searches} for a port found nothing; the next in {begins}" if past.vain else f"a search for a port begins in {begins}"

    # --- casting -----------------------------------------------------------------------------

    async def _cast_many(self, link: Link, target: Endpoint) -> None:
        sides: list[Side] = []
        try:
            for _ in range(SOCKETS):
                sides.append(await self._sockets.open())  # noqa: PERF401 - those opened before one fails count
        except EnvironmentProblem:  # fewer will do, with less luck
            self._runtime.count("search_sockets_short")
        try:
            await self._cast(link, target, sides, self._is_brittle(link))
            await self._ask(link, ())
            end = self._runtime.now + PROBES / RATE + 2.0
            again = self._runtime.now + CAST_AGAIN
            while self._runtime.now < end and link.up and not link.settled and not self._must_yield(link):
                await self._runtime.sleep(TURN)
                if self._runtime.now >= again:
                    again += CAST_AGAIN
                    await self._cast(link, target, sides)  # what has been probed meanwhile is open, even at a brittle NAT
            if self._must_yield(link) and not link.settled:
                raise EnvironmentProblem("a link that carries frames comes first", "it is tried again")
        finally:
            await self._sockets.close(link, sides)

    def _must_yield(self, link: Link) -> bool:
        """Whether a link that carries frames waits for one that carries none."""
        return not self._has_frames(link) and any(self._has_frames(waiting) for waiting in self._waiting)

    def _has_frames(self, link: Link) -> bool:
        return self._runtime.now - link.frames < IDLE

    def _is_brittle(self, link: Link) -> bool:
        return self._paths.reaches.get(link.ident, Reach()).brittle

    async def _cast(self, link: Link, target: Endpoint, sides: Iterable[Side], near: bool = False) -> None:
        for count, side in enumerate(sides):
            if link.up and not link.settled:
                self._sockets.send(link, target.by_side(side.number), near)
            if count % 16 == 15:
                await self._runtime.sleep(TURN / 5)

    async def _cast_foretold(self, link: Link, target: Endpoint) -> None:
        sides: list[Side] = []
        ports: list[int] = []
        try:
            for _ in range(FORETOLD):
                side, _, next_ports = await self._sockets.foretell(AHEAD)
                sides.append(side)
                ports += next_ports
                self._sockets.send(link, target.by_side(side.number), self._is_brittle(link))
            await self._ask(link, tuple(dict.fromkeys(ports)))
            await self._sockets.until_settled(link, 1.5)
            await self._cast(link, target, sides)
            await self._sockets.until_settled(link, 1.5)
        finally:
            await self._sockets.close(link, sides)

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

    # --- probing -----------------------------------------------------------------------------

    async def _search(self, link: Link, body: m.Search) -> m.Searching:
        """A peer has cast."""
        role = self.role(link)
        if role not in (Role.PROBES, Role.MEETS):
            raise LocalMisuse("no search is needed, or none can help", "challenge the endpoints that were offered")
        most = AT_ONCE_FOR_FRAMES if self._has_frames(link) else AT_ONCE
        if link.ident in self._probing or len(self._probing) >= most or self._runtime.now < self._asked.get(link.ident, 0.0):
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
        self._runtime.background(self._probe(link, outer, body.ports, self._prepared.pop(link.ident, None)))
        return m.Searching()

    def _who_sees(self, link: Link) -> tuple[Ident, ...]:
        """Members that should know where a peer is: who relays for it, and our own helpers."""
        relays = [ident for ident in (link.relay, link.first_hop, *link.relays) if ident is not None]
        return tuple(dict.fromkeys([*relays, *(helper.link.ident for helper in self._check.helpers())]))[: 2 * WITNESSES]

    async def _whence(self, link: Link, body: m.Whence) -> m.Searching:
        """A peer is about to cast: a fresh socket to probe from, and where it is seen."""
        if self.role(link) is not Role.PROBES:
            raise LocalMisuse("no search is needed, or none can help", "challenge the endpoints that were offered")
        if len(self._prepared) >= AT_ONCE_FOR_FRAMES and link.ident not in self._prepared:
            raise EnvironmentProblem("too many searches are asked for", "ask again in a minute")
        side, seen, _ = await self._sockets.foretell(0)
        self._drop(link.ident, self._prepared.get(link.ident))
        self._prepared[link.ident] = side
        self._runtime.after(PREPARED, lambda: self._drop(link.ident, side))
        return m.Searching(str(seen))

    def _drop(self, ident: Ident, side: Side | None) -> None:
        """Close a socket that was prepared and has not been used."""
        if side is not None and self._prepared.get(ident) is side:
            del self._prepared[ident]
            self._sockets.discard(side)

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

    async def _probe(self, link: Link, outer: Endpoint, ports: tuple[int, ...], side: Side | None) -> None:
        drawn: Sequence[int] = ports * 3 if ports else self._runtime.rng.sample(range(FIRST_PORT, LAST_PORT + 1), PROBES)
        handful = max(1, round(RATE * TURN))
        try:
            for at in range(0, len(drawn), handful):
                if not link.up or link.settled:
                    return
                for port in drawn[at : at + handful]:
                    self._paths.challenge(link, outer._replace(port=port).by_side(side.number if side else 0), 3.0)
                await self._runtime.sleep(TURN)
            await self._sockets.until_settled(link, 2.0)
        finally:
            self._probing.discard(link.ident)
            self._note(link, Role.PROBES, bool(ports))
            if side is not None:
                await self._sockets.close(link, [side])
                self._sockets.tend()

    # --- meeting -----------------------------------------------------------------------------

    async def _meet(self, link: Link) -> None:
        """As the one who begins."""
        side, _, ports = await self._sockets.foretell(FORETOLD)
        try:
            answer = await self._ask(link, tuple(ports))
            await self._send_in_order(link, side, self._paths.admissible(answer.outer), answer.ports)
        finally:
            await self._sockets.close(link, [side])

    async def _met(self, link: Link, outer: Endpoint, ports: tuple[int, ...]) -> m.Searching:
        """As the other one: it hears of the first one's ports, opens its NAT, tells its own ports, and both send."""
        side, seen, ours = await self._sockets.foretell(FORETOLD)
        for port in ports[:FORETOLD]:
            self._sockets.send(link, outer._replace(port=port).by_side(side.number), near=True)
        self._runtime.background(self._follow(link, side, outer, ports))
        return m.Searching(str(seen), tuple(ours))

    async def _follow(self, link: Link, side: Side, outer: Endpoint, ports: tuple[int, ...]) -> None:
        try:
            await self._sockets.until_settled(link, self._paths.held_back(link))
            await self._send_in_order(link, side, outer, ports)
        finally:
            self._probing.discard(link.ident)
            self._note(link, Role.MEETS, False)
            await self._sockets.close(link, [side])
            self._sockets.tend()

    async def _send_in_order(self, link: Link, side: Side, outer: Endpoint | None, ports: tuple[int, ...]) -> None:
        """Thrice, since what comes first may find the other NAT not open yet; by then the numbers are given out and do not change."""
        for wait in MEETING_WAITS:
            for port in ports[:FORETOLD]:
                if outer is not None and link.up and not link.settled:
                    self._sockets.send(link, outer._replace(port=port).by_side(side.number))
            await self._sockets.until_settled(link, wait + link.rtt)


def _host(text: str) -> str:
    try:
        return Endpoint.parse(text).host
    except LocalMisuse:
        return ""
