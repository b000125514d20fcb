"""FlowLogService: takes from the forwarding plane what flows have carried, keeps it, and tells it: here, and to whom it concerns."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from ipaddress import ip_address
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall

from ipop_tx.core import commands as c
from ipop_tx.core import events as e
from ipop_tx.core.links.rpc import failure_of
from ipop_tx.errors import IpopError, LocalMisuse
from ipop_tx.forwarding.counting import Counting
from ipop_tx.forwarding.ledger import Entry
from ipop_tx.forwarding.plane import ForwardingPlane
from ipop_tx.identity.keys import PrivateKey
from ipop_tx.services.chord import ChordProtocol
from ipop_tx.services.control import Route
from ipop_tx.services.flowstore import FlowStore
from ipop_tx.services.limit import Limit
from ipop_tx.services.orders import signed
from ipop_tx.services.ping import unowned
from ipop_tx.values import Ident, short
from ipop_tx.wire import messages as m
from ipop_tx.wire.flows import FRESH, MOST_ROWS, FlowRow

WRITE_EVERY = 5.0
"""Seconds between looks for flows that have ended."""
TELL_AFTER = 60.0
"""Seconds after which a flow that goes on is written down, with what it has carried since the last time."""
USUAL_SECONDS = 3600
MOST_TOLD = 1000


class FlowLogService(Service):
    """Without a `store` nothing is kept, and only others are asked."""

    name = "flowlog"

    def __init__(
        self,
        reactor: Any,
        protocol: ChordProtocol,
        plane: ForwardingPlane,
        store: FlowStore | None,
        key: Callable[[], PrivateKey | None],
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`key` gives the authority's, where this machine has it: it may ask members about each other."""
        self._protocol = protocol
        self._node = protocol.node
        self._plane = plane
        self._store = store
        self._key = key
        self._wall = wall
        self._limit = Limit(protocol.clock)
        self.counting = Counting(protocol.clock, self._rule_of)
        self._look = LoopingCall(self.write)
        self._look.clock = reactor
        protocol.on(e.FlowsAsked, self._asked)

    def startService(self) -> None:
        """Open the store."""
        super().startService()
        if self._store is not None:
            self._store.open()
            self._plane.count(self.counting)
            self._look.start(WRITE_EVERY, now=False)

    def stopService(self) -> None:
        """Write what there is."""
        super().stopService()
        if self._store is not None:
            self._look.stop()
            self.write(TELL_AFTER)
            self._store.close()

    def _rule_of(self, peer: Ident, key: bytes) -> str:
        policing = self._plane.policing
        return policing.rule_of(peer, key) if policing is not None else ""

    def health(self) -> list[str]:
        """What does not work, a sentence each."""
        return [self._store.problem] if self._store is not None and self._store.problem else []

    def write(self, older: float = 0.0) -> None:
        """Keep what has ended, and of what goes on what is due; `older` seconds sooner than usual."""
        if self._store is None:
            return
        counting = self.counting
        now, wall = self._protocol.clock(), self._wall()
        entries = counting.entries(now - TELL_AFTER + older)
        lost, counting.ledger.lost = counting.ledger.lost, 0
        if entries:
            lost += self._store.add((one.peer, _row(one, wall - now)) for one in entries)
        counting.unlogged += lost

    # --- what may be asked -------------------------------------------------------------------

    def routes(self) -> dict[str, Route]:
        """For the control socket."""
        return {"POST /flows": lambda arguments: Deferred.fromCoroutine(self._tell(arguments))}

    async def _tell(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Raises `LocalMisuse` for what cannot be asked."""
        seconds, most = arguments.get("since_s") or USUAL_SECONDS, arguments.get("limit") or MOST_TOLD
        if not isinstance(seconds, (int, float)) or not 0 < seconds <= 1 << 32 or not isinstance(most, int) or not 0 < most <= MOST_TOLD:
            raise LocalMisuse("since_s or limit is no number that can be", f"give seconds, and a limit of 1 to {MOST_TOLD}")
        between = arguments.get("between") or []
        if not (isinstance(between, list) and len(between) in (0, 2) and all(isinstance(one, str) for one in between)):
            raise LocalMisuse("between is no list of two nodes", "name two, or leave it out for the flows of this node")
        told: dict[str, Any] = {"network": self._node.network.name, "flows": [], "missing": []}
        if not between:
            told["flows"] = self._written(self._own(None, int(seconds), most), self._node.peer.name)
            return told
        ends = [await self._whom(text) for text in between]
        if self._key() is None and self._node.ident not in (ends[0][0], ends[1][0]):
            raise LocalMisuse(
                "members tell of flows only to the other end of them", "run it at one of the two, or where the authority's key is"
            )
        for (ident, name), (other, _) in (ends, ends[::-1]):
            await self._gather(told, ident, name, other, int(seconds), most)
        told["flows"] = sorted(told["flows"], key=lambda one: (-one["end"], one["reporter"]))[: 2 * most]
        return told

    async def _gather(self, told: dict[str, Any], ident: Ident, name: str, about: Ident, seconds: int, most: int) -> None:
        if ident == self._node.ident:
            told["flows"] += self._written(self._own(about, seconds, most), name)
            return
        try:
            answer = await self._protocol.submit(c.Ask(ident, self._question(about, seconds)))
            if not isinstance(answer, m.FlowsTold):
                raise LocalMisuse("it does not know the question", "install a newer ipop there")
        except IpopError as error:
            told["missing"].append({"name": name, "why": str(error)})
        else:
            told["flows"] += self._written(answer.rows[:most], name)

    def _question(self, about: Ident, seconds: int) -> m.AskFlows:
        node = self._node
        if about == node.ident:
            return m.AskFlows(node.network.ident, node.ident, seconds)
        key = self._key()
        assert key is not None  # `_tell` has looked
        return signed(key, m.AskFlows(node.network.ident, node.ident, seconds, about, int(self._wall())))

    async def _whom(self, text: str) -> tuple[Ident, str]:
        node = self._node
        if text in (node.peer.name, node.ident.hex(), str(ip_address(node.leases.own.address or bytes(4)))):
            return node.ident, node.peer.name
        for link in node.links:
            if text in (link.peer.name, link.ident.hex()):
                return link.ident, link.peer.name
        owner = await self._protocol.submit(c.Resolve(text))
        if owner is None:
            raise unowned(self._protocol, text)
        return owner.ident, owner.name or short(owner.ident)

    def _own(self, peer: Ident | None, seconds: int, most: int) -> list[FlowRow]:
        self.write(TELL_AFTER)
        return self._store.find(peer, int(self._wall()) - seconds, most) if self._store is not None else []

    def _written(self, rows: Iterable[FlowRow], reporter: str) -> list[dict[str, Any]]:
        return [told(row, reporter) for row in rows]

    # --- what others may ask -----------------------------------------------------------------

    def _asked(self, event: e.FlowsAsked) -> None:
        question: m.AskFlows = event.request
        try:
            self._limit.check(event.ident)
            about = self._about(event.ident, question)
        except IpopError as error:
            event.reply.succeed(failure_of(error))
            return
        rows = self._own(about, min(question.seconds, 1 << 32), MOST_ROWS + 1)
        event.reply.succeed(m.FlowsTold(tuple(rows[:MOST_ROWS]), len(rows) > MOST_ROWS))

    def _about(self, asker: Ident, question: m.AskFlows) -> Ident:
        """Whose flows with us are told. Raises `LocalMisuse` unless that is the asker itself, or the authority says so, just now."""
        if not question.about or question.about == asker:
            return asker
        fresh = abs(self._wall() - question.time) <= FRESH
        if question.asker != asker or not fresh or not self._node.dht.signer.is_ordered(question):
            raise LocalMisuse(
                "the authority has not said that you may ask about others", "run it where the authority's key is, its clock set"
            )
        return question.about


def told(row: FlowRow, reporter: str) -> dict[str, Any]:
    """A row as the control socket gives it."""
    return {
        "reporter": reporter,
        "source": str(ip_address(row.source)) if len(row.source) in (4, 16) else "-",
        "target": str(ip_address(row.target)) if len(row.target) in (4, 16) else "-",
        "source_port": row.source_port,
        "target_port": row.target_port,
        "protocol": row.protocol,
        "packets": row.packets,
        "bytes": row.bytes,
        "start": row.start,
        "end": row.end,
        "action": "ACCEPT" if row.accepted else "REJECT",
        "rule": row.rule,
    }


def _row(one: Entry, wall: float) -> FlowRow:
    """With times of the epoch; `wall` is that of the clock's zero."""
    begin, end = max(0, int(one.begin + wall)), max(0, int(one.end + wall))
    ends = one.source, one.target, one.source_port, one.target_port
    return FlowRow(*ends, one.protocol, one.packets, one.bytes, begin, end, one.accepted, one.rule[:60])
