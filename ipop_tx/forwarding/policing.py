"""The network's policy, enforced: one decision a flow, then a look into a dict for each frame, be it a super-frame of 62 kB.

Both ends of each flow decide: the sender, to spare the wire; the receiver, because a sender may be anybody. Who a peer is says its
certificate; that the source address is the peer's has been checked before. What is refused is dropped without a word.

TCP needs no memory to be safe: a SYN that opens a connection is judged by the rules, always and in its own direction; whatever else comes
out of the blue passes if a connection from either side is allowed. So connections live through a restart of the daemon, a table that
overflowed, and the first policy that is set. A flow is judged anew when it goes on under another policy.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Any, NamedTuple

from ipop_tx.forwarding.fib import Adjacency
from ipop_tx.forwarding.flows import MOST_OF_ONE, SETTLED, Flow, Flows
from ipop_tx.forwarding.inner import FIN, RST, SYN, Buffer, Fragment, Inner, read
from ipop_tx.values import Ident
from ipop_tx.wire.policy import TCP, UDP, Ends, Packet, Party, Policy, Rule

MOST = 65536
"""Flows with all peers together."""
DENIALS = 32
"""Kinds of traffic that were dropped last, for people to look at."""

_IPV4, _IPV6 = 0x0800, 0x86DD
_ENDING = FIN | SYN | RST
_LEAST_IPV4, _LEAST_IPV6 = 46, 66  # with a whole TCP header

Range = IPv4Network | IPv6Network


class Entry(NamedTuple):
    """A rule of which the parties fit; what is left to check are addresses, None where they do not matter."""

    rule: Rule
    sources: tuple[Range, ...] | None
    targets: tuple[Range, ...] | None


class Policing:
    """Decides on the frames of one node, which is `own`."""

    def __init__(self, own: Party, policy: Policy, clock: Callable[[], float]) -> None:
        self.policy = policy
        self.own = own
        self.allowed: dict[str, int] = {}
        """Flows that each rule has allowed, by its name; `default` is the policy's."""
        self.denied: dict[tuple[str, str, str], int] = {}
        """The last kinds of frames that were dropped, and how many: direction, peer, what."""
        self._clock = clock
        self._generation = 0
        self._flows: dict[Ident, Flows] = {}
        self._compiled: dict[tuple[Party, bool], tuple[Entry, ...]] = {}

    def change(self, policy: Policy) -> None:
        """From now on another policy counts, for flows that are under way too."""
        self.policy = policy
        self.allowed.clear()
        self._generation += 1
        self._compiled.clear()
        for flows in self._flows.values():
            flows.forget_fragments()

    def admits(self, peer: Adjacency, packed: Buffer, inward: bool) -> bool:
        """Whether a packed frame from (`inward`) or for a peer may pass."""
        flows = peer.flows if peer.flows is not None else self._flows_of(peer)
        key = _key(packed)
        if key is not None:
            flow = flows.by_key.get(key)
            if (
                flow is not None
                and flow.generation == self._generation
                and ((flow.state == SETTLED and not _ends(packed)) or (key[0] == UDP and flow.begun.key == key))
            ):
                now = self._clock()
                if now - flow.seen <= flow.idle:
                    flow.seen = now
                    return True
        return self._judge(flows, peer, packed, inward)

    def rule_of(self, peer: Ident, key: bytes) -> str:
        """The name of the rule that allows a flow (the key of either direction); `default` where none does, or it is not known."""
        flows = self._flows.get(peer)
        flow = flows.by_key.get(key) if flows is not None else None
        return flow.rule.name if flow is not None and flow.rule is not None else "default"

    def sweep(self, linked: Container[Ident]) -> None:
        """Forget flows that are over; to be called now and then. Flows with peers that are not linked just now may go on later."""
        now = self._clock()
        for ident, flows in list(self._flows.items()):
            flows.sweep(now)
            if not len(flows) and ident not in linked:
                del self._flows[ident]

    def __len__(self) -> int:
        return sum(map(len, self._flows.values()))

    def status(self) -> dict[str, Any]:
        """What people may want to know of it."""
        names = [rule.name for rule in self.policy.rules] + ["default"] * self.policy.allow
        denied = [{"direction": one, "peer": peer, "what": what, "frames": count} for (one, peer, what), count in self.denied.items()]
        return {"flows": len(self), "allowed": {name: self.allowed.get(name, 0) for name in names}, "denied": denied}

    # --- decisions ---------------------------------------------------------------------------

    def _flows_of(self, peer: Adjacency) -> Flows:
        party = Party(peer.name, peer.groups)
        flows = self._flows.get(peer.ident)
        if flows is None:
            flows = self._flows[peer.ident] = Flows(party)
        elif flows.party != party:  # another certificate: what it may is looked at anew
            flows.party = party
            flows.forget_fragments()
            for flow in flows:
                flow.generation = -1
        peer.flows = flows
        return flows

    def _judge(self, flows: Flows, peer: Adjacency, packed: Buffer, inward: bool) -> bool:
        inner, now = read(packed), self._clock()
        if isinstance(inner, Fragment):
            good = flows.expects(inner.name, now)
        else:
            good = inner is not None and self._passes(flows, inner, inward, now)
            if good and inner is not None and inner.fragment:
                flows.expect_fragments(inner.fragment, now)
        if not good:
            self._deny(peer, inner, inward)
        return good

    def _passes(self, flows: Flows, inner: Inner, inward: bool, now: float) -> bool:
        flow = self._known(flows, flows.by_key.get(inner.key), now)
        if flow is not None:
            forward = flow.inward == inward
            if forward or inner.packet.protocol != TCP or not inner.opens:
                flow.went_on(forward, inner.flags, now)
                flows.sort(flow)
                return True
        if inner.about and self._known(flows, flows.by_key.get(inner.about), now) is not None:
            return True
        if self._begins(flows, inner, inward, now):
            return True
        return inner.packet.protocol == TCP and not inner.opens and self._begins(flows, inner.turned(), not inward, now, answered=True)

    def _known(self, flows: Flows, flow: Flow | None, now: float) -> Flow | None:
        """A flow, if it is not over and may go on."""
        if flow is None:
            return None
        if flow.over(now):
            flows.remove(flow)
            return None
        if flow.generation != self._generation:
            found, rule = self._match(flows.party, flow.begun.packet, flow.inward)
            if not found:
                flows.remove(flow)
                return None
            flow.generation, flow.rule = self._generation, rule
        return flow

    def _begins(self, flows: Flows, inner: Inner, inward: bool, now: float, answered: bool = False) -> bool:
        """Whether a packet may begin something; then that is remembered."""
        found, rule = self._match(flows.party, inner.packet, inward)
        if not found:
            return False
        name = rule.name if rule is not None else "default"
        self.allowed[name] = self.allowed.get(name, 0) + 1
        if inner.answers:
            if len(self._flows) * MOST_OF_ONE > MOST and len(self) >= MOST:
                max(self._flows.values(), key=len).evict()
            flow = Flow(inner, inward, rule, self._generation, now)
            flow.answered = answered
            if inner.packet.protocol == TCP:
                flow.went_on(not answered, inner.flags, now)
            flows.add(flow)
        return True

    def _match(self, party: Party, packet: Packet, inward: bool) -> tuple[bool, Rule | None]:
        """Whether the policy allows a packet, and the rule that does."""
        entries = self._compiled.get((party, inward))
        if entries is None:
            ends = (party, self.own) if inward else (self.own, party)
            entries = self._compiled[party, inward] = tuple(_entries(self.policy.rules, *ends))
        for rule, sources, targets in entries:
            if rule.fits(packet) and _within(packet.source, sources) and _within(packet.target, targets):
                return True, rule
        return self.policy.allow, None

    def _deny(self, peer: Adjacency, inner: Inner | Fragment | None, inward: bool) -> None:
        what = _what(inner)
        kind = ("in" if inward else "out", peer.name, what)
        count = self.denied.pop(kind, 0)
        if len(self.denied) >= DENIALS:
            del self.denied[next(iter(self.denied))]
        self.denied[kind] = count + 1


def _key(packed: Buffer) -> bytes | None:
    """The flow key of a whole TCP or UDP packet without options and extensions; None for any other."""
    if len(packed) < _LEAST_IPV4:
        return None
    if packed[12] == 0x45:
        if packed[21] not in (TCP, UDP) or packed[19] or packed[18] & 0x3F:
            return None
        return bytes(packed[21:22]) + bytes(packed[24:36])
    if packed[12] >> 4 == 6 and packed[18] in (TCP, UDP) and len(packed) >= _LEAST_IPV6:
        return bytes(packed[18:19]) + bytes(packed[20:56])
    return None


def _ends(packed: Buffer) -> bool:
    """Whether a packet that has a key begins or ends a TCP connection."""
    if packed[12] == 0x45:
        return packed[21] == TCP and bool(packed[45] & _ENDING)
    return packed[18] == TCP and bool(packed[65] & _ENDING)


def _entries(rules: Iterable[Rule], source: Party, target: Party) -> Iterable[Entry]:
    for rule in rules:
        sources, targets = _left(rule.sources, source), _left(rule.targets, target)
        if sources != () and targets != ():
            yield Entry(rule, sources, targets)


def _left(ends: Ends, party: Party) -> tuple[Range, ...] | None:
    return None if ends.knows(party) else ends.ranges


def _within(address: bytes, ranges: tuple[Range, ...] | None) -> bool:
    if ranges is None:
        return True
    parsed = ip_address(address)
    return any(parsed in one for one in ranges)


def _what(inner: Inner | Fragment | None) -> str:
    """A kind of traffic, for people."""
    if inner is None:
        return "malformed"
    if isinstance(inner, Fragment):
        return "fragment"
    protocol, _, _, port, kind = inner.packet
    name = {TCP: "tcp", UDP: "udp", 1: "icmp", 58: "icmpv6"}.get(protocol, str(protocol))
    return f"{name}/{port if port is not None else kind}" if port is not None or kind is not None else name
