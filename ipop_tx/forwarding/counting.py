"""What passes between this node and each member, flow by flow, for the flow log. It decides nothing.

On the way of a frame there is one look into a dict and two additions, which the planes do themselves (`Outbound`, `Delivery`):

    tallies = peer.tallies.sent_tcp ...            # by direction; TCP's ports are not those of UDP
    tally = tallies.get(key)                       # IPv4: addresses and ports; IPv6: from the next header to the ports
    tally = tally or counting.begin(peer, ...)     # rare: the first frame; always for what has no ports where they mostly are

Everything else is done now and then: a tally that is old is written down and begins anew, one that was idle is forgotten.
"""

from __future__ import annotations

from collections.abc import Callable

from ipop_tx.forwarding.fib import Adjacency, Tallies, Tally
from ipop_tx.forwarding.inner import Buffer, Fragment, Inner, read
from ipop_tx.forwarding.ledger import Entry, Ledger
from ipop_tx.forwarding.offload import IP_AT
from ipop_tx.values import Ident
from ipop_tx.wire.policy import TCP, UDP

MOST_OF_ONE = 4096
"""Tallies of one member and one kind; when there are more, all of them are written down and begun anew."""
_PLAIN = 0x45
_IPV4_LEAST, _IPV6_LEAST = IP_AT + 24, IP_AT + 44


class Counting:
    """The tallies of all members. `rule_of` names the policy's rule that allows a flow (member, flow key); empty without a policy."""

    def __init__(self, clock: Callable[[], float], rule_of: Callable[[Ident, bytes], str]) -> None:
        self.ledger = Ledger()
        self.unlogged = 0
        """Entries that never came into the log: too many at once, or the disk refused them."""
        self._clock = clock
        self._rule_of = rule_of
        self._of: dict[Ident, Tallies] = {}

    def begin(self, peer: Adjacency, packed: Buffer, inward: bool) -> Tally:
        """The tally of a frame that none was found for."""
        tallies = self._of.get(peer.ident)
        if tallies is None:
            tallies = self._of[peer.ident] = Tallies()
        peer.tallies = tallies
        inner = read(packed)
        if not isinstance(inner, Inner):
            key, proto = _fallback(packed, inner)
            return self._tally(peer.ident, tallies.others, key, key, proto)
        place, kept = tallies.others, inner.key
        if _has_ports_where_they_are_looked_for(packed, inner):
            place = tallies.place(packed[21], inward)
            kept = key_in(packed)
            known = place.get(kept)
            if known is not None:
                return known
        return self._tally(peer.ident, place, kept, inner.key, inner.packet.protocol)

    def _tally(self, peer: Ident, place: dict[bytes, Tally], kept: bytes, key: bytes, protocol: int) -> Tally:
        tally = place.get(kept)
        if tally is None:
            if len(place) >= MOST_OF_ONE:
                for one in place.values():
                    self._note(peer, one)
                place.clear()
            tally = place[kept] = Tally(key, protocol, self._clock(), self._rule_of(peer, key))
        return tally

    def refuse(self, peer: Adjacency, packed: Buffer) -> None:
        """A frame was refused by the policy."""
        inner = read(packed)
        if isinstance(inner, Inner):
            self.ledger.refuse(peer.ident, inner.key, inner.packet.protocol, packed, self._clock())

    def packets(self, peer: Ident, key: bytes) -> int:
        """How many packets of one direction of a flow have passed lately."""
        tallies = self._of.get(peer)
        return sum(one.packets for _, one in tallies.all() if one.key == key) if tallies is not None else 0

    def __len__(self) -> int:
        return sum(1 for tallies in self._of.values() for _ in tallies.all())

    def entries(self, before: float) -> list[Entry]:
        """What is to be written down: tallies that began before a moment, and what was refused."""
        now = self._clock()
        for peer, tallies in list(self._of.items()):
            for place in tallies.places:
                for kept, tally in list(place.items()):
                    if not tally.looked_at(now) and tally.began <= before:
                        del place[kept]
                    elif tally.began <= before:
                        tally.rule = self._rule_of(peer, tally.key) or tally.rule
                        if not self._note(peer, tally):
                            break
            if not any(tallies.places):
                del self._of[peer]
        return self.ledger.take()

    def _note(self, peer: Ident, tally: Tally) -> bool:
        tally.looked_at(self._clock())
        return self.ledger.note(peer, tally)


def key_in(packed: Buffer) -> bytes:
    """What the planes look a frame's tally up by."""
    return bytes(packed[24:36] if packed[12] == _PLAIN else packed[18:56])


def _has_ports_where_they_are_looked_for(packed: Buffer, inner: Inner) -> bool:
    if packed[12] == _PLAIN:
        return inner.packet.protocol in (TCP, UDP) and not inner.fragment and len(packed) >= _IPV4_LEAST
    return packed[12] >> 4 == 6 and packed[18] in (TCP, UDP) and len(packed) >= _IPV6_LEAST


def _fallback(packed: Buffer, inner: Fragment | None) -> tuple[bytes, int]:
    """A flow key of addresses only, for later fragments and what does not add up."""
    if packed[12] >> 4 == 4 and len(packed) >= IP_AT + 20:
        return bytes((packed[21],)) + bytes(packed[24:32]) + bytes(4), packed[21]
    if packed[12] >> 4 == 6 and len(packed) >= IP_AT + 40:
        protocol = packed[52] if packed[18] == 44 and len(packed) > 52 else packed[18]
        return bytes((protocol,)) + bytes(packed[20:52]) + bytes(4), protocol
    return bytes(13), 0
