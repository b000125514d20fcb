"""Simulated NATs: mapping x filtering (RFC 4787), in front of one machine each; also two in a row."""

from __future__ import annotations

from enum import Enum
from random import Random

from ipop_tx.simulation.network import NETWORK, SimulatedNet, SimulatedNode
from ipop_tx.values import Endpoint, Network

FIRST_PORT = 20001
UNASKED = 30.0
"""Seconds for which a brittle router remembers what came in unasked."""


class Depends(Enum):
    """What a mapping, or the admission of a datagram, depends on at the far end."""

    NOTHING = "endpoint-independent"
    ADDRESS = "address-dependent"
    ENDPOINT = "address-and-port-dependent"

    def part(self, remote: Endpoint) -> tuple[str | int, ...]:
        """The part of a far endpoint that counts."""
        return {"NOTHING": (), "ADDRESS": (remote.host,), "ENDPOINT": (remote.host, remote.port)}[self.name]


class Ports(Enum):
    """Which outer port a new mapping gets."""

    IN_ORDER = "the next one"
    RANDOM = "any that is free"
    KEPT = "the inner one, if it is free"


class Nat:
    """A router with one outer address. A mapping that nothing has used for `lifetime` seconds is gone; `now` is the time of a datagram.

    A `brittle` one is plain Linux: what comes in unasked takes the place of what would go out to its sender by that port, which then gets
    another one, at random, as does from then on whatever goes out from the same inner port to anybody new. No place is given up in use.
    """

    def __init__(
        self,
        host: str,
        mapping: Depends,
        filtering: Depends,
        ports: Ports = Ports.IN_ORDER,
        lifetime: float = float("inf"),
        hairpin: bool = False,
        seed: int = 0,
        brittle: bool = False,
    ) -> None:
        self.host = host
        self.mapping = mapping
        self.filtering = filtering
        self.ports = ports
        self.lifetime = lifetime
        self.hairpin = hairpin
        self._rng = Random(seed)
        self._next = FIRST_PORT
        self._outer: dict[tuple[str | int, ...], int] = {}
        self._inner: dict[int, int] = {}
        self._used: dict[int, float] = {}
        self._admitted: dict[int, set[tuple[str | int, ...]]] = {}
        self.brittle = brittle
        self._unasked: dict[tuple[Endpoint, int], float] = {}
        """When something came in unasked, by its sender and our port."""
        self._moved: dict[tuple[Endpoint, int], int] = {}
        """The ports of flows through a brittle router, by far endpoint and inner port."""
        self._newest: dict[int, int] = {}
        """The port of the newest flow of each inner port."""

    def outward(self, remote: Endpoint, port: int = 4500, now: float = 0.0) -> Endpoint:
        """Our machine sends from a port to `remote`: under which endpoint that sees it."""
        self._expire(now)
        key = (port, *self.mapping.part(remote))
        outer = self._outer.get(key)
        if outer is None:
            outer = self._outer[key] = self._new_port(port)
            self._inner[outer] = port
            self._admitted[outer] = set()
        if self.brittle:
            outer = self._evade(remote, port, outer, now)
        self._used[outer] = now
        self._admitted[outer].add(self.filtering.part(remote))
        return Endpoint(remote.scheme, self.host, outer)

    def _evade(self, remote: Endpoint, port: int, outer: int, now: float) -> int:
        """The port of a flow: that of the newest one from the same inner port, unless its place is taken."""
        flow = remote, port
        if flow not in self._moved:
            outer = self._newest.get(port, outer)
            if now - self._unasked.get((remote, outer), -UNASKED) < UNASKED:
                outer = self._rng.randrange(FIRST_PORT, 60000)
                self._inner[outer], self._admitted[outer] = port, set()
            self._moved[flow] = self._newest[port] = outer
        return self._moved[flow]

    def admits(self, remote: Endpoint, port: int, now: float = 0.0) -> int | None:
        """The inner port that gets a datagram from `remote` to one of our outer ports, if it gets through."""
        self._expire(now)
        if self.filtering.part(remote) not in self._admitted.get(port, ()):
            self._unasked[remote, port] = now
            return None
        self._used[port] = now
        return self._inner[port]

    def _new_port(self, port: int) -> int:
        if self.ports is Ports.KEPT and port not in self._inner:
            return port
        while self.ports is not Ports.IN_ORDER:
            drawn = self._rng.randrange(FIRST_PORT, 60000)
            if drawn not in self._inner:
                return drawn
        self._next += 1
        return self._next - 1

    def _expire(self, now: float) -> None:
        if self.lifetime == float("inf"):
            return
        for outer in [outer for outer, used in self._used.items() if now - used > self.lifetime]:
            del self._used[outer], self._inner[outer], self._admitted[outer]
            self._outer = {key: port for key, port in self._outer.items() if port != outer}


class NattedNet(SimulatedNet):
    """A net in which some machines stand behind a NAT of their own."""

    def __init__(self, seed: int, loss: float = 0.0, width_s: float = 0.1, network: Network = NETWORK) -> None:
        super().__init__(seed, loss, width_s, network)
        self._nats: dict[SimulatedNode, list[Nat]] = {}
        """Before each machine, the nearest first."""
        self._inside: dict[str, SimulatedNode] = {}

    def behind(
        self, machine: SimulatedNode, mapping: Depends, filtering: Depends, ports: Ports = Ports.IN_ORDER, brittle: bool = False
    ) -> Nat:
        """Put a NAT in front of a machine, or of the NATs that it is behind already."""
        row = self._nats.setdefault(machine, [])
        nat = Nat(f"198.51.{100 + len(row)}.{len(self._nats)}", mapping, filtering, ports, seed=self.seed, brittle=brittle)
        row.append(nat)
        self._inside[nat.host] = machine
        return nat

    def dies_on_its_way(self, sender: SimulatedNode, endpoint: Endpoint, port: int | None, hops: int) -> bool:
        """Each of the sender's NATs is a router; those that it passes are opened, also by what dies behind them."""
        row = self._nats.get(sender, [])
        if hops >= len(row) + 2:
            return False
        source = super().source(sender, endpoint, port)
        for nat in row[: hops - 1]:
            source = nat.outward(endpoint, source.port, self.now)
        return True

    def receiver(self, source: Endpoint, endpoint: Endpoint) -> tuple[SimulatedNode | None, int | None]:
        """Through the NAT that has the endpoint; a machine behind one has no other way in."""
        inside = self._inside.get(endpoint.host)
        if inside is None:
            machine, port = super().receiver(source, endpoint)
            return (None if machine in self._nats else machine), port
        row = self._nats[inside]
        inner = endpoint.port if endpoint.host == row[-1].host else None
        for nat in reversed(row):
            if inner is not None and (source.host != row[-1].host or nat.hairpin):
                inner = nat.admits(source, inner, self.now)
            else:
                inner = None
        return (inside if inner is not None else None), inner if inner != inside.endpoint.port else None

    def source(self, sender: SimulatedNode, endpoint: Endpoint, port: int | None) -> Endpoint:
        """As the sender's NATs map it."""
        source = super().source(sender, endpoint, port)
        for nat in self._nats.get(sender, ()):
            source = nat.outward(endpoint, source.port, self.now)
        return source
