"""`ipop explain`: from a name to a program's answer, step by step, with what this node knows and what the other end tells of the two.

Each part gathers, judges by `verdicts`, and leaves what cannot be known to the code that says so; none raises. Only a probe sends packets
of the network's own traffic; what is asked between the daemons goes over the control plane.
"""

from __future__ import annotations

import time
from ipaddress import IPv4Address, ip_address
from typing import Any

from twisted.internet.defer import Deferred, DeferredList

from ipop_tx.core import commands as c
from ipop_tx.core.links.link import Link
from ipop_tx.core.links.why import why_relayed
from ipop_tx.core.natkind import Reach, feasible, why_infeasible
from ipop_tx.errors import IpopError, PeerRefused
from ipop_tx.forwarding.plane import ForwardingPlane
from ipop_tx.services import machine
from ipop_tx.services.chord import ChordProtocol
from ipop_tx.services.dns import DNSService
from ipop_tx.services.probe import ANSWERED, IMPOSSIBLE, REFUSED, Outcome, probe
from ipop_tx.services.relation import Relations
from ipop_tx.services.status import Status
from ipop_tx.services.tap import TapService
from ipop_tx.services.whom import EXPIRED, HELD, MISSING, WITNESSES, Explanation, Finder, Service, Whom
from ipop_tx.values import Endpoint, Ident
from ipop_tx.wire import messages as m
from ipop_tx.wire import relation as r
from ipop_tx.wire.policy import UDP

CLOCKS_MAY_DIFFER = 30
"""Seconds."""
BASE_MTU = 1200
"""See `core.links.mtu`: what every path has to carry."""


class Explain:
    """Asks this node, the other end, and where these do not know, members between."""

    def __init__(
        self,
        reactor: Any,
        protocol: ChordProtocol,
        plane: ForwardingPlane,
        tap: TapService | None,
        dns: DNSService,
        relations: Relations,
        status: Status,
        state: str,
        udp_port: int,
    ) -> None:
        self._reactor = reactor
        self._protocol = protocol
        self._node = protocol.node
        self._plane = plane
        self._tap = tap
        self._finder = Finder(protocol, dns)
        self._relations = relations
        self._status = status
        self._state = state
        self._udp_port = udp_port

    async def explain(self, target: str, service: str, probing: bool) -> dict[str, Any]:
        """The steps, each with code, verdict and sentence, and the first cause. Raises `LocalMisuse` for a service that is none."""
        asked, found, whom = Service.parse(service), Explanation(), Whom(target)
        await self._finder.find(whom, found)
        if whom.ident is not None and not whom.revoked:
            await self._finder.meet(whom, asked)
        version = 6 if len(whom.address) == 16 else 4
        asked = asked.over(version)
        question = self._finder.question(whom, asked)
        mine = self._relations.to(whom.ident or bytes(20), whom.party, question, asking=False)
        self._here(found, mine, whom)
        await self._certificates(found, whom)
        await self._clock(found, whom)
        self._leases(found, whom)
        self._taps(found, mine, whom)
        self._routes(found, mine, whom)
        self._policies(found, mine, whom, asked)
        self._links(found, whom)
        self._paths(found, whom)
        await self._mtu(found, whom, probing)
        await self._delivery(found, mine, whom, asked, probing)
        return {"target": target, "name": whom.name, "service": asked.text, "probed": probing, **found.to_json()}

    # --- here --------------------------------------------------------------------------------

    def _here(self, found: Explanation, mine: m.Relation, whom: Whom) -> None:
        found.add("node-runs", here=self._node.peer.name)
        theirs = whom.relation.flags if whom.relation is not None else 0
        for flags, where in ((mine.flags, ""), (theirs, "-there")):
            if flags & r.READ_ONLY:
                found.add(f"disk-read-only{where}", path=self._state, there=whom.called)
            elif flags & r.DISK_FULL:
                found.add(f"disk-full{where}", path=self._state, there=whom.called)
            elif not where:
                found.add("state-good", path=self._state)
        links = sum(not link.peer.guest for link in self._node.links)
        if links:
            found.add("on-ring", links=links)
        else:
            found.add("alone", why=self._node.bootstrap.problem or "nobody has answered")

    async def _certificates(self, found: Explanation, whom: Whom) -> None:
        node, wall = self._node, time.time()
        theirs = whom.link.peer.not_after if whom.link is not None else whom.ends
        why = whom.refusal.sentence if isinstance(whom.refusal, PeerRefused) else ""
        if node.revocations.is_revoked(node.peer.key) or node.revocations.is_revoked(node.peer.admitted_by):
            found.add("revoked-here")
        elif node.peer.not_after <= wall:
            found.add("certificate-expired-here", date=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(node.peer.not_after)))
        elif whom.revoked or "thrown out" in why:
            found.add("revoked-there", there=whom.called, date=whom.revoked or "a day unknown here")
        elif (theirs and theirs <= wall) or "ended at" in why:
            found.add("certificate-expired-there", there=whom.called)
        elif "refused this node's" in why:
            found.add("certificate-refused-here", there=whom.called)
        elif "certificate" in why:
            found.add("certificate-refused-there", there=whom.called, why=str(whom.refusal))
        else:
            found.add("certificate-good" if whom.link else "certificate-good-here", there=whom.called)

    async def _clock(self, found: Explanation, whom: Whom) -> None:
        if whom.relation is None:
            found.add("clock-unknown", there=whom.called)
            return
        ahead = whom.relation.wall - int(time.time())
        if abs(ahead) <= CLOCKS_MAY_DIFFER:
            found.add("clocks-agree", seconds=CLOCKS_MAY_DIFFER)
            return
        members = [link.ident for link in self._node.links if link.ident != whom.ident and not link.peer.guest][:WITNESSES]
        asked = [Deferred.fromCoroutine(self._finder.ask(ident, m.Relate(b"", b""))) for ident in members]
        told = [answer.wall for good, answer in await DeferredList(asked, consumeErrors=True) if good and isinstance(answer, m.Relation)]
        with_us = sum(abs(wall - time.time()) <= CLOCKS_MAY_DIFFER for wall in told)
        if not told:
            found.add("clocks-apart", there=whom.called, seconds=abs(ahead), way="ahead of" if ahead > 0 else "behind")
        elif 2 * with_us >= len(told):
            found.add("clock-wrong-there", there=whom.called, seconds=abs(ahead), way="fast" if ahead > 0 else "slow")
        else:
            found.add("clock-wrong-here", seconds=abs(ahead), way="slow" if ahead > 0 else "fast")

    def _leases(self, found: Explanation, whom: Whom) -> None:
        own, now = self._node.leases.own, self._node.runtime.now
        if own.address is None:
            found.add("lease-missing-here", why=own.problem or "none was found yet")
        elif own.until <= now:
            found.add("lease-expired-here")
        elif whom.lease == EXPIRED:
            found.add("lease-expired-there", there=whom.called, target=whom.target)
        elif whom.ident is not None and (whom.lease == MISSING or (whom.relation is not None and not whom.relation.address)):
            found.add("lease-missing-there", there=whom.called)
        elif whom.lease == HELD and whom.ident is not None:
            found.add("leases-held", here=self._node.peer.name, own=IPv4Address(own.address), there=whom.called, address=whom.written)
        else:
            found.add("lease-held-here", here=self._node.peer.name, own=IPv4Address(own.address), there=whom.called)

    def _taps(self, found: Explanation, mine: m.Relation, whom: Whom) -> None:
        tap = self._tap.addressed if self._tap is not None else ""
        theirs = whom.relation.flags if whom.relation is not None else 0
        kinds = ((r.NO_TAP, "tap-none"), (r.TAP_GONE, "tap-gone"), (r.TAP_DOWN, "tap-down"))
        here = next((code for flag, code in kinds if mine.flags & flag), "")
        there = next((code for flag, code in kinds if theirs & flag), "")
        if here:
            found.add(here, tap=tap)
        if there:
            found.add(f"{there}-there", there=whom.called)
        if not here and not there:
            found.add("tap-up", tap=tap)

    def _routes(self, found: Explanation, mine: m.Relation, whom: Whom) -> None:
        if not whom.address or self._tap is None:
            found.add("route-unknown", target=whom.target)
            return
        address, tap, there = whom.written, self._tap.addressed, whom.called
        own = self._node.leases.own.address
        if mine.flags & r.ROUTE_ELSEWHERE:
            way = machine.way_to(ip_address(whom.address))
            if way.interface is None:
                found.add("route-missing", address=address, tap=tap)
            elif way.overlapping:
                found.add("pool-overlaps", interface=way.interface, range=way.overlapping)
            else:
                found.add("route-elsewhere", address=address, interface=way.interface)
        elif whom.relation is None:
            found.add("route-good-here", address=address, tap=tap, there=there)
        elif whom.relation.flags & r.RANGE_OVERLAPS:
            found.add("pool-overlaps-there", there=there)
        elif whom.relation.flags & r.ROUTE_ELSEWHERE:
            found.add("route-elsewhere-there", there=there, own=IPv4Address(own) if own else "")
        else:
            found.add("route-good", address=address, tap=tap, there=there)

    def _policies(self, found: Explanation, mine: m.Relation, whom: Whom, asked: Service) -> None:
        theirs, words = whom.relation, {"there": whom.called, "service": asked.text}
        if not mine.allowed:
            found.add("policy-drops-here", **words)
        elif theirs is not None and not theirs.allowed:
            found.add("policy-drops-there", **words, theirs=theirs.settings, ours=mine.settings)
        elif theirs is None and mine.rule:
            found.add("policy-allows-here", **words, rule=mine.rule)
        elif mine.rule or (theirs is not None and theirs.rule):
            found.add("policy-allows", **words, rule=mine.rule or (theirs.rule if theirs else ""))
        else:
            found.add("policy-none")

    # --- between -----------------------------------------------------------------------------

    def _links(self, found: Explanation, whom: Whom) -> None:
        if whom.ident is None or whom.revoked:
            found.add("link-unknown", target=whom.target)
        elif whom.relation is not None:
            found.add("link-up", there=whom.called)
        elif isinstance(whom.refusal, PeerRefused):
            found.add("link-refused", there=whom.called, why=whom.refusal.sentence)
        elif whom.witness:
            found.add("peer-unreachable", there=whom.called, witness=whom.witness)
        else:
            found.add("peer-down", there=whom.called)

    def _paths(self, found: Explanation, whom: Whom) -> None:
        link, paths = whom.link, self._node.paths
        if link is None or not link.up:
            for code in ("path-unknown", "nat-unknown", "transport-unknown"):
                found.add(code)
            return
        ours, theirs = paths.facts.reach, paths.reaches.get(link.ident, Reach())
        self._transport(found, link, ours, theirs, whom.called)
        if isinstance(link.active, Endpoint):
            found.add("path-direct", endpoint=str(link.active).removeprefix("udp:"))
            found.add("nat-open" if link.settled else "nat-unknown")
            return
        relay = self._status.path_of(link).removeprefix("relay via ").replace("relay", "the ring")
        found.add("path-relayed", relay=relay, why=why_relayed(link, paths, self._protocol.clock()) or "no direct path is known")
        if ours.known and theirs.known and not (ours.blocked or theirs.blocked) and not feasible(ours, theirs):
            found.add("nat-blocks", why=why_infeasible(ours, theirs), port=self._udp_port)
        else:
            found.add("nat-unknown")

    def _transport(self, found: Explanation, link: Link, ours: Reach, theirs: Reach, there: str) -> None:
        active = link.active
        scheme = active.carrier if isinstance(active, Endpoint) else "a relay"
        if scheme == "udp":
            found.add("transport-udp")
        elif ours.blocked:
            found.add("udp-blocked-here")
        elif theirs.blocked:
            found.add("udp-blocked-there", there=there)
        elif not isinstance(active, Endpoint):
            found.add("transport-unknown")
        elif link.ident in self._node.paths.makeshifts.unanswered:
            found.add("udp-blocked", there=there, scheme=scheme.upper())
        else:
            found.add("transport-other", scheme=scheme, why="UDP was not tried yet")

    async def _mtu(self, found: Explanation, whom: Whom, probing: bool) -> None:
        link = whom.link
        if link is None or whom.ident is None or not isinstance(link.active, Endpoint) or link.active.carrier != "udp":
            found.add("mtu-unknown")
        elif not probing:
            found.add("mtu-good" if link.mtu > BASE_MTU else "mtu-not-probed", mtu=link.mtu)
        else:
            for size in dict.fromkeys((link.mtu, BASE_MTU)):
                if await self._passes(whom.ident, size):
                    found.add("mtu-good", mtu=size)
                    return
            found.add("mtu-hole" if await self._passes(whom.ident, 0) else "mtu-unknown", mtu=BASE_MTU)

    async def _passes(self, ident: Ident, size: int) -> bool:
        """Whether one of three challenges of so many bytes is answered."""
        asked: list[Deferred[Any]] = [self._protocol.submit(c.Ping(ident, size)) for _ in range(3)]
        return any(good for good, _ in await DeferredList(asked, consumeErrors=True))

    # --- there -------------------------------------------------------------------------------

    async def _delivery(self, found: Explanation, mine: m.Relation, whom: Whom, asked: Service, probing: bool) -> None:
        question = self._finder.question(whom, asked)
        words = {"there": whom.called, "service": asked.text, "address": whom.written}
        told = whom.relation.flags if whom.relation is not None else 0
        if not probing or not question.source or not question.target:
            found.add(
                *("not-probed",) if not probing else ("probe-impossible",), **({} if not probing else {"why": "an address is missing"})
            )
            known = "service-listens" if told & r.ENDS_LISTEN else "service-closed" if told & r.ENDS_CLOSED else "service-unknown"
            found.add(known, **words)
            return
        outcome = await probe(self._reactor, ip_address(question.source), ip_address(question.target), asked.protocol, asked.port)
        if outcome.what == ANSWERED:
            found.add("probe-answered", **words)
            found.add("service-answers", **words)
        elif outcome.what == REFUSED:
            found.add("probe-answered", **words)
            found.add("service-closed", **words)
        elif outcome.what == IMPOSSIBLE:
            found.add("probe-impossible", why=outcome.why)
            found.add("service-unknown", **words)
        else:
            found.add(await self._why_silent(whom, asked, outcome), **words, tap=self._tap.addressed if self._tap else "")
            found.add("service-unknown" if not told & r.ENDS_CLOSED else "service-closed", **words)

    async def _why_silent(self, whom: Whom, asked: Service, outcome: Outcome) -> str:
        """Where a probe that nobody has answered was seen last."""
        question = self._finder.question(whom, asked, outcome.port)
        if whom.ident is None or whom.relation is None or self._plane.counting is None:
            return "probe-unsure"
        forth, back, refused = self._relations.flow(whom.ident, question)
        if not forth:
            return "probe-unsure" if refused else "firewall-here"
        if back:
            return "firewall-back"
        try:
            there = await self._finder.ask(whom.ident, question)
        except IpopError:
            return "probe-unsure"
        if not there.came:
            return "packets-lost"
        if there.flags & r.ENDS_LISTEN and asked.protocol == UDP:
            return "probe-unsure"  # a program that waits need not answer an empty datagram
        return "packets-lost" if there.went else "firewall-there"
