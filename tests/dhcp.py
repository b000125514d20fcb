"""Around a DHCP server in tests: the DHT as a table, clients that say what they are told to, a port and a disk."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network
from typing import Any

from ipop_tx.core import commands as c
from ipop_tx.core.leases.dhcp import Answer, DhcpServer, Guest, Note, Serve
from ipop_tx.core.leases.dhcpterms import Terms
from ipop_tx.wire import dhcp
from ipop_tx.wire.dhcp import Message

POOL = IPv4Network("10.128.0.0/16")
OWN, OTHER = IPv4Address("10.128.0.1").packed, IPv4Address("10.128.0.2").packed
HOUR, DAY = 3600.0, 86400.0
TERMS = Terms(POOL, b"\x02own\0\0", "node", guests=3, seconds=HOUR, ttl=DAY, mtu=1428)


def mac(number: int) -> bytes:
    return b"\x02mac\0" + bytes((number,))


def address(number: int) -> bytes:
    return IPv4Address(f"10.128.1.{number}").packed


class World:
    """A server, the DHT as a table of what it leases, the port and the disk."""

    def __init__(self, terms: Terms = TERMS) -> None:
        self.now = 1000.0
        self.majority = True
        self.leases: dict[bytes, tuple[bytes, float]] = {}
        """Address and end of a holder's lease."""
        self.waiting: dict[bytes, c.HoldLease] = {}
        self.free = [address(number) for number in range(1, 50)]
        self.remembered: dict[bytes, bytes] = {}
        self.answers: list[Message] = []
        self.notes: list[str] = []
        self.served: dict[bytes, bytes] = {}
        self.disk: list[Guest] = []
        self.server = DhcpServer(terms, lambda holder: self.leases.get(holder, (b"", float("-inf")))[1])
        self.server.own = OWN

    def settle(self) -> None:
        """What a driver does after each input."""
        while True:
            if self.server.changed:
                self.disk, self.server.changed = (
                    [Guest(g.holder, g.mac, g.name, g.until, g.state, g.address) for g in self.server.bound],
                    False,
                )
            output = self.server.poll()
            match output:
                case None:
                    return
                case Answer(message):
                    self.answers.append(dhcp.decode(dhcp.encode(message)))
                case Serve(one, None):
                    del self.served[one]
                case Serve(one, target):
                    self.served[one] = target or b""
                case Note(event):
                    self.notes.append(event)
                case c.HoldLease():
                    self.waiting[output.holder] = output
                    self.lease()
                case c.GiveUpLease(holder):
                    self.waiting.pop(holder, None)
                    if holder in self.leases:
                        self.free.append(self.leases.pop(holder)[0])

    def lease(self) -> None:
        """The DHT gives what it was asked for, as far as it can: what was held or wished, then what was remembered, then the next."""
        if not self.majority:
            return
        for holder, hold in list(self.waiting.items()):
            wishes = [one for one in (hold.held, self.remembered.get(holder), hold.wish, *self.free) if one in self.free]
            allowed = [one for one in wishes if one not in hold.avoid]
            if allowed and holder not in self.leases:
                self.free.remove(allowed[0])
                self.leases[holder] = allowed[0], self.now + hold.ttl
                self.remembered[holder] = allowed[0]
            del self.waiting[holder]
            if holder in self.leases:
                self.server.gained(self.now, holder, self.leases[holder][0])

    def advance(self, seconds: float) -> None:
        """Let time pass, with its timers; leases in the DHT are renewed at half of their time."""
        end = self.now + seconds
        while (due := self.server.poll_timeout()) is not None and due <= end:
            self.now = max(self.now, due)
            self.renew()
            self.server.handle_timeout(self.now)
            self.settle()
        self.now = end
        self.renew()

    def renew(self) -> None:
        for holder, (one, until) in self.leases.items() if self.majority else ():
            if until - self.now < self.server.terms.ttl / 2:
                self.leases[holder] = one, self.now + self.server.terms.ttl

    def say(self, kind: int, number: int, **options: Any) -> Message | None:
        """A client says something; what it hears, if anything."""
        fields = {key: options.pop(key) for key in ("client", "broadcast") if key in options}
        coded = {getattr(dhcp, key.upper()): value for key, value in options.items()}
        before = len(self.answers)
        self.server.receive(self.now, dhcp.decode(dhcp.encode(Message(kind, bytes(4), mac(number), coded, **fields))))
        self.settle()
        heard = self.answers[before:]
        return heard[0] if heard else None

    def join(self, number: int, **options: Any) -> bytes:
        """DISCOVER, OFFER, REQUEST, ACK; gives the address."""
        offer = self.say(dhcp.DISCOVER, number, **options)
        assert offer is not None and offer.kind == dhcp.OFFER, offer
        ack = self.say(dhcp.REQUEST, number, **(options | {"server": OWN, "requested": offer.yours}))
        assert ack is not None and ack.kind == dhcp.ACK and ack.yours == offer.yours, ack
        return ack.yours

    def restart(self, seconds: float = 3.0) -> None:
        """A kill of the daemon; `seconds` later it is back with its disk."""
        again = World(self.server.terms)
        again.now, again.disk, again.remembered, again.free = self.now + seconds, self.disk, self.remembered, self.free
        again.leases, again.majority = self.leases, self.majority
        again.server.restore(again.now, again.disk)
        self.__dict__ = again.__dict__
        self.settle()
