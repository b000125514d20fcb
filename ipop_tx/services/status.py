"""What the node tells of itself: the contents of `ipop status`, and its health in sentences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ipaddress import IPv4Address
from typing import Any, NamedTuple, Protocol

from zope.interface import implementer

from ipop_tx import __version__
from ipop_tx.core.links.link import Link, Route
from ipop_tx.core.links.why import why_relayed
from ipop_tx.core.node import Node
from ipop_tx.forwarding.plane import ForwardingPlane
from ipop_tx.interfaces import IStatus
from ipop_tx.services.chord import ChordProtocol
from ipop_tx.services.guests import GuestService
from ipop_tx.services.tap import TapService
from ipop_tx.transport.several import Transports
from ipop_tx.transport.udp import UdpTransport
from ipop_tx.values import Endpoint, Ident, short
from ipop_tx.wire.address import ipv6_of
from ipop_tx.wire.datagram import HEADER_BYTES


class HasHealth(Protocol):
    """A part that nothing depends on, and that can tell what is wrong with it."""

    def health(self) -> list[str]:
        """What does not work, a sentence each."""


class Port(NamedTuple):
    """What a port of the daemon has carried since its start."""

    receive_packets: int
    transmit_packets: int
    receive_bytes: int
    transmit_bytes: int


@implementer(IStatus)
class Status:
    """Gathers from all parts; changes nothing."""

    def __init__(
        self,
        protocol: ChordProtocol,
        plane: ForwardingPlane,
        tap: TapService | None,
        udp: UdpTransport,
        transports: Transports,
        guests: GuestService | None,
        others: Sequence[HasHealth] = (),
        policy: Callable[[], dict[str, Any] | None] = lambda: None,
    ) -> None:
        self._protocol = protocol
        self._node: Node = protocol.node
        self._plane = plane
        self._fib = plane.fib
        self._tap = tap
        self._udp = udp
        self._transports = transports
        self._guests = guests
        self._others = others
        self._policy = policy
        self._since = protocol.clock()

    def status(self) -> dict[str, Any]:
        """Self, peers, guests, health, counters."""
        links = sorted(self._node.links, key=lambda link: (link.peer.name, link.ident))
        return {
            "self": self._self(),
            "peers": [self._peer(link) for link in links],
            "guests": self._guests.status() if self._guests else [],
            "policy": self._policy(),
            "health": self.health(),
            "counters": self._counters(),
        }

    def _counters(self) -> dict[str, int]:
        merged: dict[str, int] = {}
        for events in self.events().values():
            merged |= events
        return merged

    def events(self) -> dict[str, dict[str, int]]:
        """What each part has counted, without zeros."""
        control = {**self._node.runtime.counters, "replica_commits": self._protocol.commits}
        return {"control": control, "forwarding": self._plane.counters(), "transport": self._transports.counts()}

    def ports(self) -> dict[str, Port]:
        """What went through the TAP, where `receive` is what programs have sent, and through the UDP socket."""
        udp = self._udp.counters
        found = {"udp": Port(udp.rx_runs, udp.tx_runs, udp.rx_bytes, udp.tx_bytes)}
        if self._tap is not None:
            tap = self._tap.counters
            found["tap"] = Port(tap.rx_frames, tap.tx_frames, tap.rx_bytes, tap.tx_bytes)
        return found

    def _self(self) -> dict[str, Any]:
        node = self._node
        return {
            "name": node.peer.name,
            "groups": list(node.peer.groups),
            "routes": list(node.peer.routes),
            "ident": node.ident.hex(),
            "address": _text(node.leases.own.address),
            "ipv6": str(ipv6_of(node.network.prefix, node.ident)),
            "network": node.network.name,
            "pool": str(node.network.pool),
            "version": __version__,
            "uptime_s": round(self._protocol.clock() - self._since, 1),
            "endpoints": [str(endpoint) for endpoint in node.paths.facts.candidates()],
            "tap": self._tap.name if self._tap else None,
            "mtu": self._tap.mtu if self._tap else None,
            "offloads": {"tap": list(self._tap.offloads) if self._tap else [], "udp": list(self._udp.offloads)},
            "admits": node.peer.admits,
            "certificate_ends": int(node.peer.not_after),
            "ring": self._ring(),
            "dht": self._dht(),
        }

    def _dht(self) -> dict[str, Any]:
        kept = self._node.replicas.shards.values()
        return {
            "shards": len(kept),
            "of": self._node.replicas.count,
            "registers": sum(len(shard.cells) for shard in kept),
            "bytes": sum(shard.room.total for shard in kept),
        }

    def _ring(self) -> dict[str, Any]:
        ring = self._node.ring
        return {
            "joined": ring.joined,
            "predecessor": self.name_of(ring.predecessor) if ring.predecessor else None,
            "successors": [self.name_of(ident) for ident in ring.successors],
            "nodes_estimate": ring.estimate(),
        }

    def _peer(self, link: Link) -> dict[str, Any]:
        hello = self._node.peer_hellos.get(link.ident)
        adjacency = self._fib.by_ident.get(link.ident)
        return {
            "name": link.peer.name,
            "groups": list(link.peer.groups),
            "routes": list(link.peer.routes),
            "ident": link.ident.hex(),
            "address": self._address_of(link.ident, hello.address if hello else b""),
            "ipv6": str(ipv6_of(self._node.network.prefix, link.ident)),
            "path": self.path_of(link),
            "why": self.why(link) or why_relayed(link, self._node.paths, self._protocol.clock(), self._node.nat.search.state),
            "technique": self._node.nat.search.technique(link),
            "rtt_ms": round(link.rtt * 1000, 2) if link.rtt else None,
            "relays": self._relays(link),
            "mtu": adjacency.piece + HEADER_BYTES if adjacency and adjacency.endpoint else None,
            "width": adjacency.width.pieces if adjacency else None,
            "lost_records": adjacency.width.lost if adjacency else 0,
            "tx_bytes": adjacency.tx_bytes if adjacency else 0,
            "rx_bytes": adjacency.rx_bytes if adjacency else 0,
            "age_s": round(self._protocol.clock() - link.since, 1),
        }

    def _relays(self, link: Link) -> list[dict[str, Any]]:
        """Who can relay to a peer that has no direct path, the best first: members through whom it has answered lately."""
        found = sorted(link.relays.items(), key=lambda one: (one[1], one[0])) if not link.is_direct else []
        return [{"name": self.name_of(ident), "rtt_ms": round(rtt * 1000, 2)} for ident, rtt in found]

    def _address_of(self, ident: Ident, said: bytes) -> str | None:
        """What the peer says of itself; else a verified one, where traffic has made us verify any: it may be a guest's."""
        adjacency = self._fib.by_ident.get(ident)
        verified = adjacency.addresses if adjacency else set()
        return _text(said or min(verified, default=b""))

    def path_of(self, link: Link | None) -> str:
        """`direct udp:...`, `direct tls:...`, `relay via NAME` or `idle`."""
        if link is None:
            return "idle"
        if isinstance(link.active, Endpoint):
            return f"direct {link.active}"
        assert isinstance(link.active, Route)
        first = link.relay or link.first_hop or next(iter(link.active.via), None)
        return f"relay via {self.name_of(first)}" if first else "relay"

    def why(self, link: Link) -> str | None:
        """Why a path is not the best kind; None when it is, or when nothing is known."""
        if isinstance(link.active, Endpoint) and not link.settled:
            return "UDP unanswered" if link.ident in self._node.paths.makeshifts.unanswered else "UDP not tried yet"
        return None

    def name_of(self, ident: Ident) -> str:
        """The name of a linked node or of this one, else the beginning of its ident."""
        if ident == self._node.ident:
            return self._node.peer.name
        link = self._node.links.by_ident.get(ident)
        return link.peer.name if link is not None and link.peer.name else short(ident)

    def health(self) -> list[str]:
        """What does not work, a sentence each; empty when all is well."""
        node = self._node
        sentences = [
            node.bootstrap.problem,
            self._short_of_replicas(),
            node.leases.own.problem,
            node.leases.own.name_problem,
            *node.links.twins.values(),
        ]
        sentences.extend(node.rivalry.recent())
        if self._protocol.disk_problem:
            sentences.append(f"this node is no replica just now: {self._protocol.disk_problem}")
        if self._tap is not None:
            sentences.extend(self._tap.health())
        if self._guests is not None:
            sentences.extend(self._guests.health())
        for service in self._others:
            sentences.extend(service.health())
        sentences.extend(self._transports.health())
        return [sentence for sentence in sentences if sentence]

    def _short_of_replicas(self) -> str:
        """What a minority waits for; of many shards the one that lacks the most."""
        short = self._node.views.shortages()
        if not short:
            return ""
        worst = max(short, key=lambda one: one.needed - one.reached)
        part = "" if len(short) == self._node.replicas.count else f" in {len(short)} of {self._node.replicas.count} parts of the DHT"
        return (
            f"{worst.reached} of {worst.replicas} replicas reached; waiting for {worst.needed - worst.reached} more: "
            f"addresses are kept, but nothing new is granted{part}"
        )


def _text(address: bytes | None) -> str | None:
    return str(IPv4Address(address)) if address else None
