"""What this node tells a member about the two of them, and itself when it looks for a fault (docs/explain.md).

A member learns nothing of others: the answer is about its own address, its own flow, and the service that it asks about. Whether a
program listens there is told only to those whom the policy lets try.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from ipaddress import IPv4Address, ip_address

from ipop_tx.core import events as e
from ipop_tx.core.links.rpc import failure_of
from ipop_tx.errors import IpopError, LocalMisuse
from ipop_tx.forwarding.plane import ForwardingPlane
from ipop_tx.identity.state import StateDirectory
from ipop_tx.services import machine
from ipop_tx.services.chord import ChordProtocol
from ipop_tx.services.limit import Limit
from ipop_tx.services.settings import PolicyService
from ipop_tx.services.tap import TapService
from ipop_tx.values import Ident
from ipop_tx.wire import messages as m
from ipop_tx.wire import relation as r
from ipop_tx.wire.address import ipv6_of
from ipop_tx.wire.policy import ICMP, ICMPV6, Packet, Party

_ECHO_REPLY = {ICMP: 0, ICMPV6: 129}
_LENGTHS = {0, 4, 16}
"""Of addresses, in bytes; without any the question is not about traffic."""


class Relations:
    """Answers members, and this node itself."""

    def __init__(
        self,
        protocol: ChordProtocol,
        plane: ForwardingPlane,
        tap: TapService | None,
        policy: PolicyService,
        state: StateDirectory,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._protocol = protocol
        self._node = protocol.node
        self._plane = plane
        self._tap = tap
        self._policy = policy
        self._state = state
        self._wall = wall
        self._limit = Limit(protocol.clock)
        protocol.on(e.RelationAsked, self._answer)

    def _answer(self, event: e.RelationAsked) -> None:
        link = self._node.link(event.ident)
        if link is None:
            return
        try:
            self._limit.check(event.ident)
            if not {len(event.request.source), len(event.request.target)} <= _LENGTHS:
                raise LocalMisuse("these are no addresses")
            event.reply.succeed(self.to(event.ident, Party(link.peer.name, link.peer.groups), event.request))
        except IpopError as error:
            event.reply.succeed(failure_of(error))

    def to(self, ident: Ident, party: Party, question: m.Relate, asking: bool = True) -> m.Relation:
        """What this node is to a member, which asks, or (with `asking` false) whom we would like to reach: `source` is ours then."""
        node, facts = self._node, self._node.paths.facts
        far = question.source if asking else question.target
        allowed, rule = self._decision(party, question, asking)
        link = node.link(ident)
        left = node.leases.own.until - node.runtime.now if node.leases.own.address else 0.0
        there, back, refused = self.flow(ident, question)
        return m.Relation(
            self._flags(ident, far, asking) | (self._listening(question) if asking and allowed else 0),
            int(self._wall()),
            node.leases.own.address or b"",
            max(0, int(min(left, 1 << 40))),
            node.settings.newest.version,
            allowed,
            rule,
            link is not None and link.is_direct,
            int(facts.reach.mapping),
            int(facts.reach.filtering),
            there,
            back,
            refused,
        )

    def _flags(self, ident: Ident, far: bytes, asking: bool) -> int:
        node = self._node
        flags = machine.disk_flag(self._state.path)
        if self._protocol.disk_problem and not flags:
            flags |= r.DISK_FULL
        if not node.ring.joined:
            flags |= r.ALONE
        if node.leases.own.problem:
            flags |= r.NO_LEASE
        if self._tap is None:
            return flags | r.NO_TAP
        down = machine.interface_flag(self._tap.name) or machine.interface_flag(self._tap.addressed)
        if down or not self._is_inside(far) or (asking and not self._is_of(ident, far)):
            return flags | down
        way = machine.way_to(ip_address(far))
        if way.interface != self._tap.addressed:
            flags |= r.ROUTE_ELSEWHERE | (r.RANGE_OVERLAPS if way.overlapping else 0)
        return flags

    def _is_inside(self, far: bytes) -> bool:
        """Whether it is an address of the network: of others nobody is told where they are."""
        network = self._node.network
        return (len(far) == 4 and IPv4Address(far) in network.pool) or (len(far) == 16 and ip_address(far) in network.prefix)

    def _is_of(self, ident: Ident, far: bytes) -> bool:
        """Whether it is an address of the member, which is told of no other one."""
        adjacency, hello = self._plane.fib.by_ident.get(ident), self._node.peer_hellos.get(ident)
        verified = adjacency.addresses if adjacency is not None else ()
        return far in (ipv6_of(self._node.network.prefix, ident).packed, *verified, hello.address if hello is not None else b"")

    def _decision(self, party: Party, question: m.Relate, asking: bool) -> tuple[bool, str]:
        policy = self._policy.policy
        if policy is None or not question.source or len(question.source) != len(question.target):
            return policy is None, ""
        own = Party(self._node.peer.name, self._node.peer.groups)
        ends = (party, own) if asking else (own, party)
        kind = question.kind if question.protocol in (ICMP, ICMPV6) else None
        rule = policy.decide(*ends, Packet(question.protocol, question.source, question.target, question.port or None, kind))
        return (True, rule.name) if rule is not None else (policy.allow, "default")

    def _listening(self, question: m.Relate) -> int:
        own = self._own()
        found = machine.listens(question.protocol, question.port, own) if question.target in own else None
        return {True: r.ENDS_LISTEN, False: r.ENDS_CLOSED, None: 0}[found]

    def _own(self) -> tuple[bytes, ...]:
        own = self._node.leases.own.address
        return (*((own,) if own else ()), ipv6_of(self._node.network.prefix, self._node.ident).packed)

    def flow(self, ident: Ident, question: m.Relate) -> tuple[int, int, int]:
        """Packets of the flow asked about that passed here towards its target, those that came back, and those that were refused."""
        counting = self._plane.counting
        if counting is None or not question.source_port or len(question.source) != len(question.target):
            return 0, 0, 0
        one, other = question.source, question.target
        if question.protocol in (ICMP, ICMPV6):
            name = question.source_port.to_bytes(2, "big")
            tail, back = name + bytes((question.kind, 0)), name + bytes((_ECHO_REPLY[question.protocol], 0))
        else:
            ports = question.source_port.to_bytes(2, "big"), question.port.to_bytes(2, "big")
            tail, back = b"".join(ports), b"".join(ports[::-1])
        protocol = bytes((question.protocol,))
        key = protocol + one + other + tail
        return counting.packets(ident, key), counting.packets(ident, protocol + other + one + back), counting.ledger.refused(ident, key)
