"""A message to everybody on the ring, by splitting the range (El-Ansary et al. 2003, "Efficient broadcast in structured P2P networks").

Whoever has the message answers for an arc of the ring, from itself to a limit, both left out; who begins, for all but itself. It cuts the
arc at the members that it is linked to and hands each the part that begins there:

     we        a             b    c                 limit
     |---------|-------------|----|-------------------|
               a: up to b     b: up to c    c: up to the limit

The parts do not overlap, and where the first cut is our successor they leave nobody out: everybody is told once, by N - 1 messages, and
nobody keeps anything. Links reach ever farther (`fingers`), so the arcs shrink by a factor from one member to the next: O(log N) deep.

Each hand-over is an ordinary request. When a member gives no sign of life, the part is ours again: members linked to us inside it get
what begins at them, and for what is left a look-up says who comes first there. While the ring heals somebody may be told twice.
"""

from __future__ import annotations

from itertools import pairwise

from ipop_tx.core.events import BroadcastReceived
from ipop_tx.core.ident import clockwise, strictly_within
from ipop_tx.core.links.link import Link
from ipop_tx.core.links.links import Links
from ipop_tx.core.links.rpc import Rpc
from ipop_tx.core.ring.lookup import Lookups
from ipop_tx.core.ring.ring import Ring
from ipop_tx.core.runtime import Runtime
from ipop_tx.core.tasks import Future, quorum
from ipop_tx.errors import BadMessage, EnvironmentProblem, IpopError, LocalMisuse, PeerRefused, Unreachable
from ipop_tx.values import Ident
from ipop_tx.wire import messages as m

FANOUT = 32
"""Most parts that one member makes of an arc, so that one with a thousand links does not send a thousand messages."""
RATE = 20.0
"""Broadcasts that are taken from one member each second."""
BURST = 50
"""So many more at once after a pause."""
LATE = 100
"""So many more are answered late, at the pace of `RATE`; any beyond are shed. All of them wait less long than their senders do."""
UNDER_WAY = 4096
"""Hand-overs under way, from which on no more broadcasts are taken."""
LOOKS = 10
PAUSE = 1.0
"""How often, and with what seconds between, we look for somebody who takes a part before it is given up."""
REMEMBERED = 1024


class Broadcast:
    """Begins, takes and passes on."""

    def __init__(self, ring: Ring, lookups: Lookups, links: Links, rpc: Rpc, runtime: Runtime) -> None:
        self._ring = ring
        self._lookups = lookups
        self._links = links
        self._rpc = rpc
        self._runtime = runtime
        self._ident = links.ident
        self._budgets: dict[Ident, tuple[float, float]] = {}
        """How many broadcasts we would have taken from a member at once, and when."""
        self._under_way = 0
        rpc.serve(m.Broadcast, self._told)

    async def begin(self, payload: bytes) -> None:
        """Tell everybody else. Returns when all whom we hand a part have confirmed it, or nobody could be found who does.

        Raises `LocalMisuse` for a payload over 1 KiB, `Unreachable` off the ring, `EnvironmentProblem` when there are too many.
        """
        if len(payload) > m.MAX_VALUE:
            raise LocalMisuse(f"a broadcast carries at most {m.MAX_VALUE} bytes, not {len(payload)}", "tell where to fetch the rest")
        if not self._ring.joined:
            raise Unreachable("the node is not on the ring yet", "wait until it has joined")
        await self._turn(self._ident)
        await quorum(self._spread(self._cuts(self._ident, self._ident), self._ident, payload), lambda handed: False)

    async def _told(self, link: Link, body: m.Broadcast) -> m.Done:
        if not self._ring.joined:
            raise Unreachable("this member is not on the ring", "tell the next one")
        if body.limit == self._ident:
            raise BadMessage("an arc that ends where it begins")
        await self._turn(link.ident)
        self._runtime.emit(BroadcastReceived(body.payload))
        self._spread(self._cuts(self._ident, body.limit), body.limit, body.payload)
        return m.Done()

    async def _turn(self, origin: Ident) -> None:
        """Wait until one more may be taken from a member. Raises `EnvironmentProblem` when there are too many (a token bucket)."""
        now = self._runtime.now
        tokens, since = self._budgets.get(origin, (float(BURST), now))
        tokens = min(float(BURST), tokens + (now - since) * RATE) - 1.0
        if tokens < -LATE or self._under_way >= UNDER_WAY:
            self._runtime.count("broadcast_shed")
            raise EnvironmentProblem("too many broadcasts come at once", "send fewer")
        if len(self._budgets) >= REMEMBERED:
            full = now - (BURST + LATE) / RATE
            self._budgets = {ident: budget for ident, budget in self._budgets.items() if budget[1] > full}
        self._budgets[origin] = (tokens, now)
        if tokens < 0.0:
            await self._runtime.sleep(-tokens / RATE)

    # --- passing on --------------------------------------------------------------------------

    def _cuts(self, start: Ident, limit: Ident) -> list[Ident]:
        """Whom we know between `start` and `limit`, in ring order: our successor too, be it not placed or not linked yet."""
        known = {link.ident for link in self._links if link.placed}
        if start == self._ident:
            known.update(self._ring.successors[:1])
        inside = [ident for ident in known if strictly_within(start, ident, limit)]
        inside.sort(key=lambda ident: clockwise(start, ident))
        if len(inside) > FANOUT:
            inside = [inside[place * len(inside) // FANOUT] for place in range(FANOUT)]
        return inside

    def _spread(self, cuts: list[Ident], limit: Ident, payload: bytes) -> list[Future[None]]:
        """Hand each the arc that begins at it and ends before the next."""
        return [self._runtime.background(self._hand(member, end, payload)) for member, end in pairwise([*cuts, limit])]

    async def _hand(self, member: Ident, limit: Ident, payload: bytes) -> None:
        """Have `member`, and everybody between it and `limit`, told."""
        self._under_way += 1
        try:
            if not await self._give(member, limit, payload):
                self._runtime.count("broadcast_detours")
                cuts = self._cuts(member, limit)
                self._spread(cuts, limit, payload)
                await self._find_and_give(member, cuts[0] if cuts else limit, payload)
        finally:
            self._under_way -= 1

    async def _give(self, member: Ident, limit: Ident, payload: bytes) -> bool:
        """Hand a part over; False when the member cannot be reached. What it refuses is lost: more messages would not mend that."""
        try:
            await self._rpc.call(member, m.Broadcast(limit, payload))
        except (Unreachable, PeerRefused):
            return False
        except IpopError:
            self._runtime.count("broadcast_refused")
        else:
            self._runtime.count("broadcast_handed")
        return True

    async def _find_and_give(self, start: Ident, limit: Ident, payload: bytes) -> None:
        """Hand everybody from `start` on up to `limit` to the first of them, whoever that is: `start` itself, if it lives after all."""
        for _ in range(LOOKS):
            try:
                found = await self._lookups.find(start)
                if found.owner != start and not strictly_within(start, found.owner, limit):
                    return  # nobody is there
                await self._links.connect(found.owner, found.agent)
                if await self._give(found.owner, limit, payload):
                    return
            except IpopError:
                self._runtime.count("broadcast_looks")
            await self._runtime.sleep(self._runtime.spread(PAUSE))
        self._runtime.count("broadcast_abandoned")
