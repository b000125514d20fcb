"""A DHCP server (RFC 2131) whose addresses come from the DHT: sans-IO, in virtual time.

A guest is a client that has asked us. What is true of it:

```
             DISCOVER           REQUEST of its address   REQUEST of another   gained           lost      the time is up
 unknown     hold it: WAITING   hold it: WAITING         hold it: WAITING     -                -         -
 WAITING     note the question  note the question        note the question    answer as below  -         forget it
 OFFERED     OFFER              ACK: BOUND               NAK                  OFFERED          forget    forget it
 BOUND       OFFER              ACK                      NAK                  OFFERED          forget    a grace later: forget it
```

DECLINE and RELEASE forget a guest too; whoever is forgotten gives its lease up. A REQUEST after an OFFER, after a reboot, to renew
(at half of the time) and to rebind (at seven eighths) differ in where they put the address and in nothing else: so they need no states.
The register of a lease outlives by far what a client is told, so renewals are answered also while no majority of the DHT is reached.
"""

from __future__ import annotations

import enum
import re
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address

from ipop_tx.core import commands as c
from ipop_tx.core.leases.dhcpterms import Terms, refusal
from ipop_tx.wire import dhcp
from ipop_tx.wire.dhcp import Message

PATIENCE = 60.0
"""Seconds for which a guest that asks no more is waited for: for its address, then for its decision."""
GRACE = 60.0
"""Seconds that an address stays with a guest which did not renew it."""
UNTOUCHED = 15 / 16
"""Share of a guest's time during which it is told what is left, not given more: whoever asks all the time keeps no disk busy."""
LEAST = 10.0
"""Seconds below which an address is not worth being given."""
AVOIDED = 3600.0
"""Seconds for which no guest gets an address that was declined: somebody uses it beside us."""
MOST_AVOIDED = 64
TELL_EVERY = 60.0
"""Seconds between two complaints that there is no room."""
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")


class State(enum.Enum):
    """See above."""

    WAITING = "waiting"
    OFFERED = "offered"
    BOUND = "bound"


@dataclass(slots=True)
class Guest:
    """One client. `until` is when it is forgotten, or, if it is bound, when its time is up."""

    holder: bytes
    mac: bytes
    name: str
    until: float
    state: State = State.WAITING
    address: bytes | None = None
    question: Message | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """Send this to a client."""

    message: Message


@dataclass(frozen=True, slots=True)
class Serve:
    """Deliver packets for an address to a MAC from now on; None: to nobody."""

    address: bytes
    mac: bytes | None


@dataclass(frozen=True, slots=True)
class Note:
    """A line for the log: an event's name and the guest that it is about."""

    event: str
    guest: Guest | None = None
    address: bytes | None = None


Output = Answer | Serve | Note | c.HoldLease | c.GiveUpLease


class DhcpServer:
    """The driver's contract. Inputs: `receive`, `gained`, `lost`, `handle_timeout`; each takes `now`, seconds of a monotonic clock.

    After every input: write `bound` to the disk if `changed`, and set that back; carry out what `poll` gives until it gives None;
    call `handle_timeout` at `poll_timeout`. So no client is told of an address that a restart would forget.
    """

    def __init__(self, terms: Terms, lease_until: Callable[[bytes], float]) -> None:
        """`lease_until` gives the time at which a holder's lease ends in the DHT."""
        self.terms = terms
        self.own: bytes | None = None
        """This node's address, under which the server is known; without it there is silence."""
        self.guests: dict[bytes, Guest] = {}
        self.changed = False
        self.refused_at = float("-inf")
        """When somebody was turned away last because there is no room."""
        self._lease_until = lease_until
        self._told_at = float("-inf")
        self._avoid: dict[bytes, float] = {}
        self._out: deque[Output] = deque()

    # --- inputs ------------------------------------------------------------------------------

    def restore(self, now: float, guests: Iterable[Guest]) -> None:
        """Guests of an earlier life, bound: they go on as if nothing had happened, while their leases are confirmed."""
        for guest in guests:
            if guest.address is not None:
                self.guests[guest.holder] = guest
                self._hold(now, guest, None, guest.address)
                self._out.append(Serve(guest.address, guest.mac))

    def receive(self, now: float, message: Message) -> None:
        """A client's question, well-formed."""
        server = message.options.get(dhcp.SERVER)
        if self.own is None or message.reply:
            return
        if message.mac == self.terms.mac:
            self._answer_interface(message, server)
        elif message.kind == dhcp.INFORM:
            self._inform(message)
        elif message.kind in (dhcp.DISCOVER, dhcp.REQUEST):
            self._asked(now, message, server)
        elif server in (None, self.own):
            self._given_back(now, message)

    def gained(self, now: float, holder: bytes, address: bytes) -> None:
        """The DHT has leased an address to a holder."""
        guest = self.guests.get(holder)
        if guest is None or guest.address == address:
            return
        if guest.address is not None:
            self._unserve(guest)
            self._out.append(Note("guest_moved", guest, address))
        guest.address, guest.state = address, State.OFFERED
        question, guest.question = guest.question, None
        guest.until = now + PATIENCE
        if question is not None:
            self._answer(now, guest, question)

    def lost(self, now: float, holder: bytes, address: bytes) -> None:
        """A holder's address is another's now, or was given back."""
        guest = self.guests.get(holder)
        if guest is not None and guest.address == address:
            self._forget(guest, "guest_lost")

    def hand_over(self, now: float, holder: bytes) -> None:
        """A guest is behind another node now."""
        guest = self.guests.get(holder)
        if guest is not None:
            self._forget(guest, "guest_handed_over")

    def handle_timeout(self, now: float) -> None:
        """Forget those whose time is up."""
        for guest in [guest for guest in self.guests.values() if _due(guest) <= now]:
            self._forget(guest, "guest_expired")

    # --- outputs -----------------------------------------------------------------------------

    def poll(self) -> Output | None:
        """The next thing to do."""
        return self._out.popleft() if self._out else None

    def poll_timeout(self) -> float | None:
        """When to call `handle_timeout`."""
        return min(map(_due, self.guests.values()), default=None)

    @property
    def bound(self) -> list[Guest]:
        """The guests that have been told their addresses."""
        return [guest for guest in self.guests.values() if guest.state is State.BOUND]

    # --- questions ---------------------------------------------------------------------------

    def _asked(self, now: float, message: Message, server: bytes | None) -> None:
        guest = self.guests.get(message.holder)
        if message.kind == dhcp.REQUEST and (message.asked is None or server not in (None, self.own)):
            if guest is not None and guest.state is not State.BOUND:  # it has chosen another server
                self._forget(guest, "guest_elsewhere")
            return
        if guest is None:
            guest = self._admit(now, message)
        if guest is not None and guest.address is None:
            guest.question, guest.until = message, now + PATIENCE
        elif guest is not None:
            self._answer(now, guest, message)

    def _admit(self, now: float, message: Message) -> Guest | None:
        if len(self.guests) >= self.terms.guests:
            self.refused_at = now
            if self.terms.guests and now >= self._told_at + TELL_EVERY:
                self._told_at = now
                self._out.append(Note("guests_full"))
            return None
        guest = Guest(message.holder, message.mac, self._name_of(message), now + PATIENCE)
        self.guests[guest.holder] = guest
        asked = message.asked if message.asked is not None and IPv4Address(message.asked) in self.terms.pool else None
        if message.kind == dhcp.REQUEST:  # it has the address, or had it when it was switched off, perhaps from another node
            self._hold(now, guest, None, asked)
        else:
            self._hold(now, guest, asked, None)
        return guest

    def _hold(self, now: float, guest: Guest, wish: bytes | None, held: bytes | None) -> None:
        self._avoid = {address: until for address, until in self._avoid.items() if until > now}
        self._out.append(c.HoldLease(guest.holder, guest.name, wish, self.terms.ttl, held, frozenset(self._avoid)))

    def _name_of(self, message: Message) -> str:
        """The client's host name, if it may be one of the network and nobody here has it."""
        name = message.options.get(dhcp.HOST_NAME, b"").decode("ascii", "replace").rstrip("\0").partition(".")[0].lower()
        taken = {self.terms.name.lower(), *(guest.name for guest in self.guests.values())}
        return name if _NAME.fullmatch(name) and name not in taken else ""

    def _answer(self, now: float, guest: Guest, message: Message) -> None:
        assert guest.address is not None
        seconds = self._seconds(now, guest, message)
        if message.kind == dhcp.REQUEST and message.asked != guest.address:
            self._refuse(message, "that address is not yours")
        elif seconds < LEAST:
            return
        elif message.kind == dhcp.REQUEST:
            self._bind(now, guest, message.mac, seconds)
            self._reply(message, dhcp.ACK, guest.address, seconds)
        else:
            if guest.state is not State.BOUND:
                guest.until = now + PATIENCE
            self._reply(message, dhcp.OFFER, guest.address, seconds)

    def _seconds(self, now: float, guest: Guest, message: Message) -> int:
        """For how long: as asked, as the terms say, and never longer than the lease in the DHT or what was promised already."""
        wanted = message.options.get(dhcp.LEASE_SECONDS)
        left = guest.until - now if guest.state is State.BOUND else 0.0
        most = left if left > UNTOUCHED * self.terms.seconds else max(self._lease_until(guest.holder) - now, left)
        asked = max(LEAST, int.from_bytes(wanted, "big")) if wanted else self.terms.seconds
        return int(min(asked, self.terms.seconds, most))

    def _bind(self, now: float, guest: Guest, mac: bytes, seconds: int) -> None:
        assert guest.address is not None
        if guest.state is not State.BOUND or guest.mac != mac:
            guest.mac, guest.state, guest.until = mac, State.BOUND, now
            self._out.append(Note("guest_bound", guest))
            self._out.append(Serve(guest.address, mac))
        if now + seconds > guest.until:
            guest.until = now + seconds
            self.changed = True

    def _given_back(self, now: float, message: Message) -> None:
        guest = self.guests.get(message.holder)
        if guest is None or guest.address is None or message.asked != guest.address:
            return
        if message.kind == dhcp.RELEASE:
            self._forget(guest, "guest_released")
        elif message.kind == dhcp.DECLINE:
            if len(self._avoid) >= MOST_AVOIDED:
                del self._avoid[next(iter(self._avoid))]
            self._avoid[guest.address] = now + AVOIDED
            self._forget(guest, "guest_declined")

    def _forget(self, guest: Guest, why: str) -> None:
        del self.guests[guest.holder]
        self._out.append(Note(why, guest, guest.address))
        self._unserve(guest)
        self._out.append(c.GiveUpLease(guest.holder))

    def _unserve(self, guest: Guest) -> None:
        if guest.state is State.BOUND and guest.address is not None:
            self._out.append(Serve(guest.address, None))
            self.changed = True

    # --- answers -----------------------------------------------------------------------------

    def _answer_interface(self, message: Message, server: bytes | None) -> None:
        """A client that runs on our own interface gets the node's own address, which is there already."""
        assert self.own is not None
        if message.kind == dhcp.INFORM:
            self._inform(message)
        elif message.kind == dhcp.DISCOVER:
            self._reply(message, dhcp.OFFER, self.own, int(self.terms.seconds))
        elif message.kind == dhcp.REQUEST and server in (None, self.own) and message.asked is not None:
            if message.asked == self.own:
                self._reply(message, dhcp.ACK, self.own, int(self.terms.seconds))
            else:
                self._refuse(message, "that is not this node's address")

    def _inform(self, message: Message) -> None:
        """Options for a client that has its address from elsewhere."""
        if message.client != dhcp.NOWHERE and IPv4Address(message.client) in self.terms.pool:
            self._reply(message, dhcp.ACK, dhcp.NOWHERE, None)

    def _reply(self, message: Message, kind: int, yours: bytes, seconds: int | None) -> None:
        self._out.append(Answer(self.terms.answer(message, kind, self.own or b"", yours, seconds)))

    def _refuse(self, message: Message, why: str) -> None:
        self._out.append(Answer(refusal(message, self.own or b"", why)))


def _due(guest: Guest) -> float:
    return guest.until + (GRACE if guest.state is State.BOUND else 0.0)
