"""What a DHCP server tells its clients, and the messages that carry it (RFC 2131, 4.3)."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from ipop_tx.wire import dhcp
from ipop_tx.wire.dhcp import Message

_SMALLEST, _ROOM = 576, 308
"""Bytes that every client takes, and how many of them there are for options."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What a server offers. `mac` and `name` are this node's own."""

    pool: IPv4Network
    mac: bytes
    name: str = ""
    guests: int = 0
    seconds: float = 3600.0
    """For how long a guest may use an address without asking again."""
    ttl: float = 86400.0
    """For how long it is leased in the DHT."""
    mtu: int = 1280
    dns: tuple[IPv4Address, ...] = ()
    domain: str = ""
    router: IPv4Address | None = None
    routes: tuple[tuple[IPv4Network, IPv4Address], ...] = ()

    def answer(self, question: Message, kind: int, server: bytes, yours: bytes, seconds: int | None) -> Message:
        """An offer or a confirmation of the address `yours` for so many seconds; for a client that has one already, None."""
        options = {dhcp.SERVER: server}
        if seconds is not None:
            times = (dhcp.LEASE_SECONDS, seconds), (dhcp.RENEW_SECONDS, seconds // 2), (dhcp.REBIND_SECONDS, seconds * 7 // 8)
            options |= {code: number.to_bytes(4, "big") for code, number in times}
        options |= _identifier(question) | self._settings()
        room = max(_ROOM, int.from_bytes(question.options.get(dhcp.LARGEST, b""), "big") - _SMALLEST + _ROOM)
        while dhcp.size_of(options) + 4 > room:  # the kind and the end come on top
            options.popitem()
        client = dhcp.NOWHERE if kind == dhcp.OFFER else question.client
        return Message(kind, question.xid, question.mac, options, True, question.broadcast, 0, client, yours)

    def _settings(self) -> dict[int, bytes]:
        """In the order of their weight. Who takes routes overlooks the router (RFC 3442), so it is among them."""
        settings = {dhcp.SUBNET_MASK: self.pool.netmask.packed, dhcp.MTU: self.mtu.to_bytes(2, "big")}
        routes = [(network.prefixlen, network.network_address.packed, gateway.packed) for network, gateway in self.routes]
        if self.router is not None:
            settings[dhcp.ROUTER] = self.router.packed
            routes.append((0, dhcp.NOWHERE, self.router.packed))
        if self.routes:
            settings[dhcp.ROUTES] = dhcp.routes(routes)
        if self.dns:
            settings[dhcp.DNS] = b"".join(one.packed for one in self.dns)
        if self.domain:
            settings[dhcp.DOMAIN] = self.domain.encode()
        return settings


def refusal(question: Message, server: bytes, why: str) -> Message:
    """The answer to who asks for an address that it cannot have."""
    options = {dhcp.SERVER: server, dhcp.TEXT: why.encode()} | _identifier(question)
    return Message(dhcp.NAK, question.xid, question.mac, options, True, question.broadcast)


def _identifier(question: Message) -> dict[int, bytes]:
    """A client's identifier comes back to it (RFC 6842)."""
    return {dhcp.CLIENT: question.options[dhcp.CLIENT]} if dhcp.CLIENT in question.options else {}
