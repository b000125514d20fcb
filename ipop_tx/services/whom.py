"""Who is meant by a name or an address, what the registers say of it, and what it says itself: the first half of `ipop explain`."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

from twisted.internet.defer import Deferred, DeferredList

from ipop_tx.core import commands as c
from ipop_tx.core.dht.certificates import held
from ipop_tx.core.dht.records import lease_key
from ipop_tx.core.leases.lease import LeaseValue, name_key, value_of
from ipop_tx.core.links.link import Link
from ipop_tx.errors import IpopError, LocalMisuse
from ipop_tx.services.chord import ChordProtocol
from ipop_tx.services.dns import DNSService
from ipop_tx.services.verdicts import Step, explanation, step
from ipop_tx.values import Ident, short
from ipop_tx.wire import messages as m
from ipop_tx.wire.address import ipv6_of
from ipop_tx.wire.policy import ICMP, ICMPV6, TYPES, Party, parse_service

WITNESSES = 4
"""Members that are asked about a third one, or about the time."""

HELD, MISSING, EXPIRED, REVOKED, UNSURE = "held", "missing", "expired", "revoked", "unsure"


@dataclass(slots=True)
class Whom:
    """The other end, as far as it is known, and what it says."""

    target: str
    name: str = ""
    ident: Ident | None = None
    address: bytes = b""
    """The one that is asked for, 4 or 16 bytes; empty if none is known."""
    lease: str = UNSURE
    revoked: str = ""
    """When it was thrown out, in words."""
    link: Link | None = None
    relation: m.Relation | None = None
    refusal: IpopError | None = None
    ends: int = 0
    """When its certificate does, as others have seen; 0: not known."""
    witness: str = ""
    """Who reaches it while we do not."""

    @property
    def called(self) -> str:
        """A name for it, for sentences."""
        return self.name or (short(self.ident) if self.ident else self.target)

    @property
    def party(self) -> Party:
        """As the policy knows it."""
        return Party(self.link.peer.name, self.link.peer.groups) if self.link is not None else Party(self.name, ())

    @property
    def written(self) -> str:
        """Its address, written out; what was asked for where there is none."""
        return str(ip_address(self.address)) if self.address else self.target


@dataclass(slots=True)
class Service:
    """What is asked about."""

    text: str
    protocol: int
    port: int
    kind: int

    @classmethod
    def parse(cls, text: str) -> Service:
        """Read `tcp/22`. Raises `LocalMisuse`."""
        protocol, port, kind = parse_service(text)
        return cls(text.lower(), protocol or 0, port or 0, kind or 0)

    def over(self, version: int) -> Service:
        """The same over IPv6, where ICMP is another protocol."""
        if version == 4 or self.protocol != ICMP:
            return self
        detail = self.text.partition("/")[2] or "echo-request"
        return Service(self.text, ICMPV6, 0, next((kind for protocol, kind in TYPES[detail] if protocol == ICMPV6), self.kind))


@dataclass(slots=True)
class Explanation:
    """The lines so far."""

    steps: list[Step] = field(default_factory=list)

    def add(self, code: str, **words: object) -> None:
        """One line more."""
        self.steps.append(step(code, **words))

    def to_json(self) -> dict[str, Any]:
        """As the control socket gives it."""
        return explanation(self.steps)


class Finder:
    """Asks the network who somebody is, and that one what it is to us."""

    def __init__(self, protocol: ChordProtocol, dns: DNSService) -> None:
        self._protocol = protocol
        self._node = protocol.node
        self._dns = dns

    async def find(self, whom: Whom, found: Explanation) -> None:
        """Who it is, and whether that is leased to it."""
        node, target = self._node, whom.target
        try:
            address: IPv4Address | IPv6Address | None = ip_address(target)
        except ValueError:
            address = None
            self._resolver(found)
        if address is not None and address not in node.network.pool and address not in node.network.prefix:
            found.add("address-outside", target=target, pool=node.network.pool, prefix=node.network.prefix)
            return
        whom.address = address.packed if address is not None else b""
        if not any(not link.peer.guest for link in self._node.links):
            found.add("name-uncertain", target=target, why="there is nobody to ask")
            return
        try:
            owner = await self._protocol.submit(c.Resolve(target))
        except IpopError as error:
            owner = None
            if not self._known_by_link(whom):
                found.add("name-uncertain", target=target, why=error.sentence)
                return
        if owner is not None:
            whom.ident, whom.name = owner.ident, owner.name
            whom.address = whom.address or owner.address
        if owner is None or not owner.name:
            self._known_by_link(whom)
        await self._inspect(whom)
        self._told(whom, found)

    def _resolver(self, found: Explanation) -> None:
        """Whether programs that look the name up come to us."""
        if self._dns.problem:
            found.add("dns-broken", why=self._dns.problem)
        elif not self._dns.port:
            found.add("dns-off")
        elif self._dns.is_asked():
            found.add("dns-asks-us")
        else:
            found.add("dns-not-asked", server=self._dns.host, file=self._dns.file)

    def _known_by_link(self, whom: Whom) -> bool:
        """Take who is linked under that name, ident or address, whatever the registers say."""
        for link in self._node.links:
            hello = self._node.peer_hellos.get(link.ident)
            says = hello.address if hello is not None else b""
            if whom.target in (link.peer.name, link.ident.hex()) or link.ident == whom.ident or (says and says == whom.address):
                whom.ident, whom.name = link.ident, link.peer.name
                whom.address = whom.address or says
                return True
        return False

    async def _inspect(self, whom: Whom) -> None:
        """What the registers of address and name hold, also where that does not count any more."""
        network = self._node.network
        keys = [name_key(network, whom.target)] if not whom.address else []
        keys += [lease_key(network, whom.address)] if len(whom.address) == 4 else []
        for key in keys:
            try:
                certificate = await self._protocol.submit(c.Inspect(key))
            except IpopError:
                return
            record = certificate.record
            value = value_of(record, LeaseValue) if record is not None and record.value else None
            if record is None or not record.value:
                whom.lease = MISSING
                continue
            whom.name = whom.name or (value.name if value is not None else "")
            if self._node.dht.signer.is_void(record):
                whom.ident, whom.lease = whom.ident or record.owner, REVOKED
            elif held(certificate) is None:
                whom.ident, whom.lease = whom.ident or record.owner, EXPIRED
            else:
                whom.lease = HELD if whom.ident in (None, record.owner) else MISSING
        if len(whom.address) == 16:
            whom.lease = HELD  # an IPv6 address is its owner's for ever
        whom.revoked = self._revoked(whom)

    def _revoked(self, whom: Whom) -> str:
        if whom.lease == HELD:  # whoever has the name now may have it of one that was thrown out
            return ""
        orders = self._node.revocations.by_key.values()
        when = next((order.time for order in orders if order.name and order.name in (whom.target, whom.name)), None)
        return time.strftime("%Y-%m-%d", time.gmtime(when)) if when is not None else "a day unknown here" if whom.lease == REVOKED else ""

    def _told(self, whom: Whom, found: Explanation) -> None:
        if whom.ident == self._node.ident:
            found.add("target-is-here", target=whom.target)
            whom.ident = None
        elif whom.ident is not None:
            found.add("name-found", target=whom.target, there=whom.called, ident=short(whom.ident))
        elif not whom.revoked:
            found.add("address-unowned" if whom.address else "name-unknown", target=whom.target)

    async def meet(self, whom: Whom, asked: Service) -> None:
        """A link to the other end, and its answer; or who else reaches it."""
        assert whom.ident is not None
        try:
            whom.link = await self._protocol.submit(c.Connect(whom.ident))
            whom.name = whom.link.peer.name or whom.name
            whom.relation = await self.ask(whom.ident, self.question(whom, asked))
        except IpopError as error:
            whom.link, whom.refusal = None, error
            await self._ask_others(whom)

    def question(self, whom: Whom, asked: Service, source_port: int = 0) -> m.Relate:
        """What the other end is asked; with a port, about the flow that has begun there."""
        own = ipv6_of(self._node.network.prefix, self._node.ident).packed if len(whom.address) == 16 else self._node.leases.own.address
        return m.Relate(own or b"", whom.address, asked.protocol, asked.port, asked.kind, source_port)

    async def ask(self, ident: Ident, question: m.Relate) -> m.Relation:
        """Have a member answer it. Raises `Unreachable`, or what it refuses by."""
        answer = await self._protocol.submit(c.Ask(ident, question))
        if not isinstance(answer, m.Relation):
            raise LocalMisuse("the other end does not know this question", "install a newer ipop there")
        return answer

    async def _ask_others(self, whom: Whom) -> None:
        """Who reaches it, and until when the certificate is good that it has shown there."""
        assert whom.ident is not None
        members = [link for link in self._node.links if link.ident != whom.ident and not link.peer.guest][:WITNESSES]
        asked: list[Deferred[Any]] = [self._protocol.submit(c.Ask(link.ident, m.Reach(whom.ident))) for link in members]
        for link, (good, answer) in zip(members, await DeferredList(asked, consumeErrors=True), strict=True):
            if good and isinstance(answer, m.Reached):
                whom.ends = max(whom.ends, answer.ends)
                if answer.answered:
                    whom.witness = link.peer.name or short(link.ident)
