"""Which path carries a link, and whether it still does.

One mechanism serves liveness, round-trip times and traversal: the *path challenge*, a random token sent on a path and
answered on it. An endpoint becomes a direct path only when our own challenge to it was answered; so nobody can aim us at a
third party with more than the challenges themselves, whose number is bounded (`Consent`).

Of several direct paths the end with the greater ident chooses by round trip; the other follows the path on which it hears
its peer, so that both use one path and they never swap for ever.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ipop_tx.core.events import LinkChanged, Observed, SideKept
from ipop_tx.core.links.consent import Consent
from ipop_tx.core.links.facts import CANDIDATES, Facts, version_of
from ipop_tx.core.links.link import Link, PathKey, Route, detour, patience
from ipop_tx.core.links.links import Links
from ipop_tx.core.links.makeshift import MAKESHIFT_AFTER, Makeshifts, better, by_worth, is_lost, without_onions
from ipop_tx.core.links.mtu import PathMtu, padded
from ipop_tx.core.links.relays import Relays
from ipop_tx.core.natkind import Kind, Reach
from ipop_tx.core.runtime import Runtime, Timer
from ipop_tx.core.tasks import Future
from ipop_tx.errors import IpopError, LocalMisuse, Unreachable
from ipop_tx.values import ONION, Endpoint, Ident, Network
from ipop_tx.wire import messages as m

HELD_BACK, HELD_BACK_LONG = 0.5, 1.0
"""Seconds for which whoever was asked waits for the asker's challenges before it sends its own: see `_open_first`."""
KEEPALIVE = 20.0
"""Seconds between challenges on a link; with its spread under 30 s, the shortest usual life of a NAT mapping."""
MOST_KEEPALIVE = 45.0
"""The most, for a node whose mappings are known to live for longer."""
NEIGHBOUR_KEEPALIVE = 5.0
"""The same for neighbours on the ring, whose death must be noticed sooner."""
PROBE_WAIT = 0.5
"""Least seconds to wait for the answer to a challenge; thrice the round trip if that is more, half as long again each time."""
PROBE_TRIES = 3
SPARE_TRIES = 2
"""The same where the peer has meanwhile answered through another member."""
ASKED_AGAIN = 3.0
"""Seconds within which a second challenge over the ring means that our answer to the first one was lost on its way."""
ROUNDS = (0.0, 0.05, 0.15, 0.4, 1.0, 2.0)
"""When the candidates of a peer are challenged, in seconds after they became known."""
WITNESSES = 3
"""Members that are asked where they see us, before a path that was lost is tried for again."""
RETRY_LOST = 1.5
"""Seconds until a direct path that was lost is tried for again; twice as long each time, up to ..."""
RETRY_DIRECT = 60.0
"""Seconds between attempts to turn a relayed link into a direct one."""


@dataclass(slots=True)
class _Pending:
    link: Link
    path: PathKey
    sent: float
    answered: Future[float]
    timer: Timer
    size: int


class Paths:
    """Challenges, keep-alive, fall-back and upgrade of the paths of all links."""

    def __init__(self, links: Links, runtime: Runtime, network: Network) -> None:
        self.facts = Facts()
        self.watched: Callable[[Ident], bool] = lambda ident: False
        """Whether a member is a ring neighbour, whose death must be noticed soon."""
        self.ask: Callable[[Link, m.Ask], Future[m.Answer]]
        """Sends a request on a link: `Rpc.on_link`."""
        self.keepalive = KEEPALIVE
        """Seconds between challenges on a link; changes with what is known of our NAT."""
        self.reaches: dict[Ident, Reach] = {}
        """What peers say of their NATs."""
        self.outers: dict[Ident, Endpoint | None] = {}
        """Where most members see a peer, as it says."""
        self.seek: Callable[[Link, bool], object] = lambda link, tried: None
        """A peer has told of its NAT: look for a port of it, if that is what it takes. `tried`: no endpoint has answered a challenge."""
        self.tried: dict[Ident, tuple[float, int]] = {}
        """When we last challenged the candidates of a peer, and how many they were."""
        self.endpoints_of: Callable[[Ident], Iterable[str]] = lambda ident: ()
        """The endpoints that a linked peer has offered last."""
        self.makeshifts = Makeshifts(links, runtime, self.punch)
        self.relays = Relays(links, runtime, self.challenge)
        self.mtu = PathMtu(runtime, self.challenge)
        self._consent = Consent(runtime)
        self._links = links
        self._runtime = runtime
        self._network = network
        self._pending: dict[int, _Pending] = {}
        self._strangers: dict[Ident, tuple[float, int]] = {}
        """For each peer since when we count, and how many unknown endpoints of it we have challenged back."""
        links.on_path = self.proven
        links.on_stray = self.heard
        links.on_up.append(self._link_up)
        links.on_down.append(self._link_down)
        links.on_down.append(self._consent.parted)

    # --- challenges --------------------------------------------------------------------------

    def challenge(self, link: Link, path: PathKey, wait: float, size: int = 0) -> Future[float]:
        """Send one challenge; the future gives the round trip in seconds or fails with `Unreachable` after `wait`.

        With `size` it is one datagram of so many bytes, which must go only to an endpoint that has answered a small one.
        """
        token = self._runtime.rng.getrandbits(62)
        answered: Future[float] = Future()
        timer = self._runtime.after(wait, lambda: self._unanswered(token))
        self._pending[token] = _Pending(link, path, self._runtime.now, answered, timer, size)
        message = padded(token, size) if size else m.PathChallenge(token)
        self._links.send_message(link, message, path, whole=True)
        return answered

    def _unanswered(self, token: int) -> None:
        pending = self._pending.pop(token, None)
        if pending is not None:
            pending.answered.fail(Unreachable("no answer to a path challenge"))

    def challenged(self, link: Link, path: PathKey, message: m.PathChallenge) -> None:
        """Answer on the path it came by; an endpoint that we do not know yet is challenged back."""
        # Where a connection comes from, or who reaches another socket than our own, is of no use to anybody.
        observed = "" if isinstance(path, Route) or path.passing else str(path)
        self._links.send_message(link, m.PathResponse(message.token, observed), path)
        if isinstance(path, Route):
            # Not when the way has just been found good from here: two ends that made each other doubt would never stop.
            if self._runtime.now - link.asked < ASKED_AGAIN < self._runtime.now - link.answered:
                self.suspect(link.ident)
            link.asked = self._runtime.now
        self.heard(link, path)

    def responded(self, link: Link, path: PathKey, message: m.PathResponse) -> None:
        """An answer: the path that we challenged is proven."""
        pending = self._pending.get(message.token)
        if pending is None or pending.link is not link:
            self._runtime.count("response_unexpected")
            return
        del self._pending[message.token]
        pending.timer.cancel()
        rtt = self._runtime.now - pending.sent
        if pending.path == link.active:
            link.alarm = False
            link.answered = self._runtime.now
        if not pending.size:  # a large datagram takes longer, and a burst of them much longer
            self._measured(link, path, pending, rtt, message.observed)
        pending.answered.succeed(rtt)

    def _measured(self, link: Link, path: PathKey, pending: _Pending, rtt: float, observed: str) -> None:
        if pending.path == link.active:
            link.measured(rtt)
        if isinstance(pending.path, Endpoint):
            self._direct_answered(link, pending.path, rtt)
            if observed and path == pending.path and not pending.path.side:  # another socket's port is none to offer
                self._observe(link.ident, observed, pending.path.host)

    def _observe(self, witness: Ident, text: str, host: str) -> None:
        try:
            endpoint = Endpoint.parse(text)
        except LocalMisuse:
            self._runtime.count("observed_bad")
            return
        known = self.facts.seen_by(witness)
        self.facts.seen[witness] = endpoint, host
        if known != endpoint:
            self._runtime.emit(Observed())

    # --- choice ------------------------------------------------------------------------------

    def proven(self, link: Link, path: PathKey) -> None:
        """A handshake went through on `path`, which proves it as an answered challenge does."""
        if isinstance(path, Endpoint):
            link.direct.setdefault(path, self.facts.fresh(path, 0.0, self._runtime.now))
            if not link.is_direct or link.active not in link.direct:
                self._activate(link, path)
        if path == link.active:
            link.alarm, link.answered = False, self._runtime.now

    def _direct_answered(self, link: Link, endpoint: Endpoint, rtt: float) -> None:
        if endpoint.side and endpoint not in link.direct:
            self._runtime.emit(SideKept(endpoint.side))
        path = link.direct.setdefault(endpoint, self.facts.fresh(endpoint, rtt, self._runtime.now))
        path.rtt = rtt if path.rtt == 0.0 else 0.875 * path.rtt + 0.125 * rtt
        path.answered = self._runtime.now
        if len(link.direct) > CANDIDATES:
            del link.direct[min((known for known in link.direct if known != link.active), key=lambda known: link.direct[known].answered)]
        if isinstance(link.active, Route):
            self._activate(link, endpoint)
        elif self._links.ident > link.ident or is_lost(link):
            best = by_worth(link)[0]
            if better(link, best):
                self._activate(link, best)
        self.mtu.tend(link)

    def _activate(self, link: Link, path: PathKey) -> None:
        if link.active == path:
            return
        if is_lost(link):
            del link.direct[link.active]  # type: ignore[arg-type]  # it is an endpoint
        link.active = path
        link.rtt = link.direct[path].rtt if isinstance(path, Endpoint) else 0.0
        link.alarm = False
        self._runtime.emit(LinkChanged(link.ident))
        self.mtu.tend(link)
        self.makeshifts.watch(link)
        self.relays.watch(link)

    def heard(self, link: Link, path: PathKey) -> None:
        """Something authentic came by `path`. Never a reason to trust it, often one to test it."""
        if isinstance(path, Route) or link.peer.guest or path == link.active:
            return
        if path in link.direct:
            if self._links.ident < link.ident:
                self._activate(link, path)
        elif not any(pending.link is link and pending.path == path for pending in self._pending.values()) and self._may_test(link, path):
            self.challenge(link, path, 2.0)
            if link.is_direct:  # the peer's NAT may have given it another port, and nothing gets to the old one
                self.suspect(link.ident)

    def _may_test(self, link: Link, endpoint: Endpoint) -> bool:
        """A few unknown endpoints per peer and keep-alive: two NATs that map each endpoint anew would have us test for ever."""
        since, count = self._strangers.get(link.ident, (0.0, 0))
        if self._runtime.now - since > KEEPALIVE:
            since, count = self._runtime.now, 0
        self._strangers[link.ident] = (since, count + 1)
        return count < CANDIDATES and self._consent.may_ask(link, endpoint)

    # --- liveness ----------------------------------------------------------------------------

    def _link_up(self, link: Link) -> None:
        self._runtime.background(self._keep(link))
        self._runtime.background(self._keep_upgrading(link))
        self.makeshifts.watch(link)
        self.relays.watch(link)

    def _link_down(self, link: Link) -> None:
        self.facts.forget(link.ident)
        for known in (self._strangers, self.reaches, self.outers, self.tried):
            known.pop(link.ident, None)

    async def _keep(self, link: Link) -> None:
        """Challenge now and then. One end's challenge serves both: who has just heard the other need not ask."""
        interval = 0.0
        while link.up:
            silent = self._runtime.now - link.heard
            if silent >= 0.7 * interval:
                await self.probe(link)
                silent = 0.0
            interval = min(self.keepalive, NEIGHBOUR_KEEPALIVE) if self.watched(link.ident) else self.keepalive
            # From when the peer was heard: its own interval may be far longer, and it shall not be silent for longer than ours.
            await self._runtime.sleep(max(0.1 * interval, self._runtime.spread(interval) - silent))

    async def probe(self, link: Link) -> None:
        """Make sure that the active path carries; fall back to another, and drop the link when none does."""
        while link.up:
            path = link.active
            if await self._answers(link, path) or not link.up:
                self.relays.watch(link)
                return
            if path == link.active:
                self._fall_back(link, path)

    def suspect(self, ident: Ident) -> None:
        """Something went unanswered: test the link now."""
        link = self._links.by_ident.get(ident)
        if link is not None and not link.alarm:
            link.alarm = True
            if isinstance(link.active, Route) and link.first_hop is not None:
                self.suspect(link.first_hop)  # a relay that died is the likeliest reason, so let it be found out first
            self._runtime.background(self._test(link))

    async def _test(self, link: Link) -> None:
        await self.probe(link)
        self.mtu.doubt(link)  # small challenges pass: perhaps large datagrams do not

    async def _answers(self, link: Link, path: PathKey) -> bool:
        wait, begun = max(PROBE_WAIT, 3 * link.rtt), self._runtime.now
        for number in range(1, PROBE_TRIES + 1):
            if not link.up or path != link.active:
                return True
            try:
                await self.challenge(link, path, wait)
                return True
            except Unreachable:
                if link.answered > begun:  # another challenge, or the handshake of a peer that has started anew
                    return True
                wait *= 1.5
                if any(known.answered > begun for endpoint, known in link.direct.items() if endpoint != path):
                    return False  # the peer has moved
                if number == 1 and self.relays.busy(link):
                    self._runtime.background(self.relays.measure(link))
                elif number >= SPARE_TRIES and link.relays.keys() - {link.relay}:
                    return False
        return False

    def _fall_back(self, link: Link, dead: PathKey) -> None:
        if isinstance(dead, Route):
            if link.relay is not None and self.relays.fails(link, link.relay):
                return
            relay = self._links.by_ident.get(link.first_hop) if link.first_hop else None
            if not dead.via and (link.first_hop is None or (relay is not None and relay.is_direct)):
                self._links.drop(link, "no answer", tell=False)
                return
            # The relay or the agent has gone, maybe not the peer: the next challenge takes another way.
            link.forget_route()
            link.first_hop = None
            return
        link.direct.pop(dead, None)
        others = by_worth(link)
        self._activate(link, others[0] if others else link.route)
        self.makeshifts.tried(link, [dead])
        if not others:
            self.relays.fails(link, None)
            self._forget_agent(link.ident)
            self._runtime.background(self._regain(link))
            # If no UDP passes any more, the ring is gone for us too, and with it the way to ask.
            makeshifts = [text for text in self.endpoints_of(link.ident) if (known := self.admissible(text)) and detour(known)]
            self.try_candidates(link, makeshifts)

    def _forget_agent(self, ident: Ident) -> None:
        """Nobody is reached through a member that does not answer."""
        for link in self._links:
            if ident in link.route.via and not self.relays.fails(link, ident):
                link.forget_route()

    def lost(self, endpoint: Endpoint) -> None:
        """The connection behind a path has ended."""
        for link in self.makeshifts.lost(endpoint):
            self.suspect(link.ident)

    # --- upgrade -----------------------------------------------------------------------------

    async def _keep_upgrading(self, link: Link) -> None:
        while link.up:
            await self._runtime.sleep(self._runtime.spread(RETRY_DIRECT))
            if link.up and not link.is_direct:
                await self.punch(link)

    async def _regain(self, link: Link) -> None:
        """A direct path is lost: try at once, and again soon, since routers restart and machines move within seconds."""
        pause = RETRY_LOST
        while link.up and not link.is_direct and pause < RETRY_DIRECT:
            await self._ask_who_sees_us(link)
            await self.punch(link)
            await self._runtime.sleep(self._runtime.spread(pause))
            pause *= 2

    async def _ask_who_sees_us(self, link: Link) -> None:
        """What we would offer may be what our NAT has just forgotten: members say where they see us now."""
        witnesses = [known for known in self._links if known.is_direct and known is not link]
        witnesses.sort(key=lambda known: (known.ident not in link.relays, known.rtt))
        asked = [self.challenge(known, known.active, PROBE_WAIT) for known in witnesses[:WITNESSES]]
        await self._runtime.wait(asked, PROBE_WAIT)

    async def punch(self, link: Link) -> None:
        """Tell the peer our candidates; its answer makes both ends challenge each other at the same time."""
        try:
            answer = await self.ask(link, self.offer())
        except IpopError:
            return
        if isinstance(answer, m.Offer):
            self.offered(link, answer)

    def offer(self) -> m.Offer:
        """Our candidates, and what is known of our NAT."""
        reach, outer = self.facts.reach, next(iter(self.facts.observed()), "")
        candidates = tuple(str(endpoint) for endpoint in self.facts.candidates())
        return m.Offer(candidates, reach.mapping, reach.filtering, min(reach.step, 255), reach.brittle, str(outer))

    def offered(self, link: Link, body: m.Offer | m.Hello, asked: bool = False) -> None:
        """A peer tells of itself: its NAT, and where it may be reached. `asked`: it is not the answer to what we have told."""
        self.reaches[link.ident] = Reach(Kind.of(body.mapping), Kind.of(body.filtering), body.step, body.brittle)
        self.outers[link.ident] = self.admissible(body.outer)
        self.try_candidates(link, body.candidates, asked)
        if not link.settled:
            self.seek(link, False)

    def try_candidates(self, link: Link, candidates: Iterable[str], asked: bool = False) -> None:
        """Challenge a peer's endpoints, paced, until one answers; makeshifts only once the better ones have not."""
        endpoints = without_onions([endpoint for text in list(candidates)[:CANDIDATES] if (endpoint := self.admissible(text))])
        self.tried[link.ident] = self._runtime.now, len(endpoints)
        wanted = [endpoint for endpoint in endpoints if link.improves(endpoint)]
        if wanted:
            held_back = self._open_first(link, wanted) if asked else 0.0
            self._runtime.background(self._challenge_all(link, wanted, held_back))

    def _open_first(self, link: Link, endpoints: list[Endpoint]) -> float:
        """Whoever is asked opens its own NAT, then answers, and so lets the asker's challenges in; gives for how long to wait for them.

        Its own must not come first: a NAT of the asker's that is brittle would give the asker another port from then on, for this peer.
        """
        for endpoint in endpoints:
            if endpoint.scheme == "udp" and version_of(endpoint) == 4 and self._consent.may_ask(link, endpoint):
                self._links.open_towards(link, endpoint, self.facts.opening_hops())
        return self.held_back(link)

    def held_back(self, link: Link) -> float:
        """For how many seconds nothing must go to a peer that has not sent yet."""
        theirs = self.reaches.get(link.ident, Reach())
        if theirs.brittle:
            return max(HELD_BACK_LONG, 3 * link.rtt)
        return 0.0 if theirs.known or theirs.mapping is Kind.NONE else max(HELD_BACK, 2 * link.rtt)

    async def _challenge_all(self, link: Link, endpoints: list[Endpoint], held_back: float) -> None:
        begun, least = self._runtime.now + held_back, min(map(detour, endpoints))
        for moment in ROUNDS:
            await self._runtime.sleep(max(0.0, begun + moment - self._runtime.now))
            wanted = [endpoint for endpoint in endpoints if link.improves(endpoint)]
            if not link.up or not wanted:
                return
            for endpoint in wanted:
                if (moment >= MAKESHIFT_AFTER or detour(endpoint) == least) and self._consent.may_ask(link, endpoint):
                    self.challenge(link, endpoint, 3.0 * patience(endpoint))
        self.makeshifts.tried(link, endpoints)
        await self._runtime.sleep(ROUNDS[-1] - ROUNDS[-2])
        if link.up and not link.settled:
            self.seek(link, True)

    def admissible(self, text: str) -> Endpoint | None:
        """The endpoint, if it is one that a datagram of ours may go to."""
        try:
            endpoint = Endpoint.parse(text)
        except LocalMisuse:
            return None
        if endpoint.scheme not in self.facts.carries or endpoint in self.facts.local or endpoint in self.facts.mapped:
            return None
        return endpoint if endpoint.host.endswith(ONION) or self._is_decent(ipaddress.ip_address(endpoint.host)) else None

    def _is_decent(self, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
        loopback = any(_is_loopback(local.host) for local in self.facts.local)
        inner = address in (self._network.pool if address.version == 4 else self._network.prefix)
        silly = address.is_multicast or address.is_unspecified or address.is_link_local or (address.is_loopback and not loopback)
        return not (inner or silly)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return False
