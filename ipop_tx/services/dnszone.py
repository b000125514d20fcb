"""DNS for the names of this network: `NAME.NETWORK.ipop` and the way back, answered from verified leases.

 question -> Server (twisted.names) -> Zone: one of ours -> the core's resolver -> A, AAAA, PTR
                                    `-> Upstream: the system's own name servers, where resolv.conf names us first

A name counts where the address that it names is leased to the node that owns the name. Nothing here is kept in memory: the core's
resolver keeps what it has found, and programs keep answers for `TTL`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.names import client, dns, server
from twisted.names.common import ResolverBase
from twisted.names.error import AuthoritativeDomainError, DNSNameError, DNSNotImplementedError, DNSQueryRefusedError, DomainError
from twisted.python.failure import Failure

from ipop_tx.errors import Unreachable
from ipop_tx.values import Network
from ipop_tx.wire.address import ipv6_of

TTL = 30
"""Seconds for which an answer may be kept: so soon a name follows a node that gets another address."""
TTL_NONE = 3
"""Seconds for which it may be kept that a name is not there (RFC 2308): a node that joins is found soon."""
PATIENCE = 4.0
"""Seconds until a question is given up: the system's resolvers ask another server, or fail, after five."""
UPSTREAM_TIMEOUTS = (1, 3)
TOP = "ipop"

Resolve = Callable[[str], "Deferred[Any]"]
"""From an address or a name to an `Owner` or None: `DHTService.resolve`."""


def domain_of(network: Network) -> str:
    """Under which the names of a network are: home.ipop."""
    return f"{network.name}.{TOP}"


def reverse_zones(network: Network) -> Iterator[str]:
    """The zones of the way back: one for each whole label of pool and prefix, thus up to 128 for a pool between two labels."""
    pool, whole = network.pool, -(-network.pool.prefixlen // 8) * 8
    for part in pool.subnets(new_prefix=whole):
        yield ".".join(part.network_address.reverse_pointer.split(".")[4 - whole // 8 :])
    yield ".".join(network.prefix.network_address.reverse_pointer.split(".")[32 - network.prefix.prefixlen // 4 :])


class Zone(ResolverBase):
    """Answers for the names and addresses of one network; for everything else it fails with `DomainError`.

    `own` gives this node's name and address (None while it has none), which are known also when nobody else answers.
    """

    def __init__(self, network: Network, resolve: Resolve, own: Callable[[], tuple[str, IPv4Address | None, bytes]], reactor: Any) -> None:
        super().__init__()
        self._network = network
        self._resolve = resolve
        self._own = own
        self._reactor = reactor
        self._domain = domain_of(network)
        self._zones = (self._domain, *reverse_zones(network))

    def _lookup(self, name: bytes, cls: int, type: int, timeout: Sequence[int] | None) -> Deferred[Any]:  # noqa: A002
        """Twisted's hook for questions of all types."""
        done: Deferred[Any] = Deferred.fromCoroutine(self._answer(text_of(name), cls, type))
        return done.addTimeout(PATIENCE, self._reactor, lambda _, seconds: Failure(Unreachable(f"no answer in {seconds:g} s")))

    async def _answer(self, name: str, cls: int, kind: int) -> tuple[list[dns.RRHeader], list[dns.RRHeader], list[dns.RRHeader]]:
        """Answers, authority, nothing additional. Raises `AuthoritativeDomainError` (not there), `DomainError` (not ours)."""
        apex = self._apex(name)
        if apex is None or cls not in (dns.IN, dns.ANY):
            raise DomainError(name)
        found = await (self._forward(name) if apex == self._domain else self._back(name))
        records = [record for record in found if kind in (record.TYPE, dns.ALL_RECORDS)]
        answers = [dns.RRHeader(name.encode(), record.TYPE, dns.IN, TTL, record, auth=True) for record in records]
        return answers, [] if answers else [self.authority(name)], []

    def _apex(self, name: str) -> str | None:
        return next((zone for zone in self._zones if name == zone or name.endswith("." + zone)), None)

    def authority(self, name: str) -> dns.RRHeader:
        """The record that goes with an answer that something is not there (RFC 2308)."""
        apex = self._apex(name) or self._domain
        return dns.RRHeader(apex.encode(), dns.SOA, dns.IN, TTL_NONE, self._start(), auth=True)

    def _start(self) -> dns.Record_SOA:
        return dns.Record_SOA(f"{self._own()[0]}.{self._domain}", f"hostmaster.{self._domain}", 1, 3600, 600, 86400, TTL_NONE)

    async def _forward(self, name: str) -> list[Any]:
        """The records of a name; empty for a name that is only the beginning of others."""
        label = name.removesuffix(self._domain).rstrip(".")
        own_name, address, ident = self._own()
        if not label:
            return [self._start(), dns.Record_NS(f"{own_name}.{self._domain}")]
        if label != own_name:
            owner = await self._resolve(label) if "." not in label else None
            if owner is None:
                raise AuthoritativeDomainError(name)
            address, ident = await self._leased(owner), owner.ident
        records: list[Any] = [dns.Record_A(str(address))] if address is not None else []
        return [*records, dns.Record_AAAA(str(ipv6_of(self._network.prefix, ident)))]

    async def _leased(self, owner: Any) -> IPv4Address | None:
        """The address that a name's register names, if it is leased to the same node."""
        if not owner.address:
            return None
        address = IPv4Address(owner.address)
        holder = await self._resolve(str(address))
        return address if holder is not None and holder.ident == owner.ident else None

    async def _back(self, name: str) -> list[Any]:
        """The record of an address, or none for a name that is only the end of others."""
        address = address_of(name)
        if address is None:
            return []
        own_name, own_address, ident = self._own()
        if address in (own_address, ipv6_of(self._network.prefix, ident)):
            return [dns.Record_PTR(f"{own_name}.{self._domain}")]
        owner = await self._resolve(str(address))
        if owner is None or not owner.name:
            raise AuthoritativeDomainError(name)
        return [dns.Record_PTR(f"{owner.name}.{self._domain}")]


def address_of(name: str) -> IPv4Address | IPv6Address | None:
    """The address whose pointer has this name (RFC 1035, 3596); None where the name is none of an address, or of a part of one."""
    labels = name.split(".")[::-1]
    try:
        if labels[:2] == ["arpa", "in-addr"]:
            return IPv4Address(".".join(labels[2:]))
        if labels[:2] == ["arpa", "ip6"] and all(len(label) == 1 for label in labels[2:]):
            return IPv6Address(bytes.fromhex("".join(labels[2:])))
    except ValueError:
        pass
    return None


def text_of(name: bytes) -> str:
    """A name of the wire, as it is compared here."""
    return name.decode("ascii", "replace").lower().rstrip(".")


class Upstream(client.Resolver):
    """The name servers that the system had before. They are never asked for names under `ipop`: those are of other networks, if of any."""

    def _lookup(self, name: bytes, cls: int, type: int, timeout: Sequence[int] | None) -> Deferred[Any]:  # noqa: A002
        if text_of(name).endswith("." + TOP):
            return fail(DNSQueryRefusedError(name))
        asked: Deferred[Any] = super()._lookup(name, cls, type, timeout)
        return asked


class Server(server.DNSServerFactory):
    """Answers of the zone first; the rest is asked of `upstream`, (address, port) each, or refused where there is none."""

    noisy = False

    def __init__(self, zone: Zone, upstream: Sequence[tuple[str, int]] = (), reactor: Any = None) -> None:
        self._zone = zone
        others = [Upstream(servers=list(upstream), timeout=UPSTREAM_TIMEOUTS, reactor=reactor)] if upstream else []
        super().__init__(authorities=[zone], clients=others)

    def gotResolverError(self, failure: Failure, protocol: Any, message: dns.Message, address: Any) -> None:
        """Tell apart: not there, not ours, not reachable. None of them is worth a traceback in the log."""
        authority = []
        if failure.check(AuthoritativeDomainError):
            code, authority = dns.ENAME, [self._zone.authority(text_of(message.queries[0].name.name))]
        elif failure.check(DNSNameError):
            code = dns.ENAME
        elif failure.check(DNSNotImplementedError):
            code = dns.ENOTIMP
        elif failure.check(DNSQueryRefusedError) or (failure.check(DomainError) and not self.canRecurse):
            code = dns.EREFUSED
        else:
            code = dns.ESERVER
        self.sendReply(protocol, self._responseFromMessage(message=message, rCode=code, authority=authority), address)
