"""Simulated NATs: mapping x filtering (RFC 4787), in front of one machine each."""

from __future__ import annotations

from enum import Enum

from ipop_tx.simulation.network import NETWORK, SimulatedNet, SimulatedNode
from ipop_tx.values import Endpoint, Network


class Depends(Enum):
    """What a mapping, or the admission of a datagram, depends on at the far end."""

    NOTHING = "endpoint-independent"
    ADDRESS = "address-dependent"
    ENDPOINT = "address-and-port-dependent"

    def part(self, remote: Endpoint) -> tuple[str | int, ...]:
        """The part of a far endpoint that counts."""
        return {"NOTHING": (), "ADDRESS": (remote.host,), "ENDPOINT": (remote.host, remote.port)}[self.name]


class Nat:
    """A router with one outer address; mappings do not expire."""

    def __init__(self, host: str, mapping: Depends, filtering: Depends) -> None:
        self.host = host
        self.mapping = mapping
        self.filtering = filtering
        self._ports: dict[tuple[str | int, ...], int] = {}
        self._admitted: set[tuple[str | int, ...]] = set()

    def outward(self, remote: Endpoint) -> Endpoint:
        """Our machine sends to `remote`: under which endpoint that sees it."""
        port = self._ports.setdefault(self.mapping.part(remote), 20001 + len(self._ports))
        self._admitted.add((port, *self.filtering.part(remote)))
        return Endpoint(remote.scheme, self.host, port)

    def admits(self, remote: Endpoint, port: int) -> bool:
        """Whether a datagram from `remote` to one of our ports gets through to the machine."""
        return (port, *self.filtering.part(remote)) in self._admitted


class NattedNet(SimulatedNet):
    """A net in which some machines stand behind a NAT of their own."""

    def __init__(self, seed: int, loss: float = 0.0, width_s: float = 0.1, network: Network = NETWORK) -> None:
        super().__init__(seed, loss, width_s, network)
        self._nats: dict[SimulatedNode, Nat] = {}
        self._inside: dict[str, SimulatedNode] = {}

    def behind(self, machine: SimulatedNode, mapping: Depends, filtering: Depends) -> Nat:
        """Put a NAT in front of a machine."""
        nat = Nat(f"198.51.100.{len(self._nats) + 1}", mapping, filtering)
        self._nats[machine] = nat
        self._inside[nat.host] = machine
        return nat

    def receiver(self, source: Endpoint, endpoint: Endpoint) -> SimulatedNode | None:
        """Through the NAT that has the endpoint; a machine behind one has no other way in."""
        inside = self._inside.get(endpoint.host)
        if inside is not None:
            return inside if self._nats[inside].admits(source, endpoint.port) else None
        machine = super().receiver(source, endpoint)
        return None if machine in self._nats else machine

    def source(self, sender: SimulatedNode, endpoint: Endpoint) -> Endpoint:
        """As the sender's NAT maps it."""
        nat = self._nats.get(sender)
        return nat.outward(endpoint) if nat is not None else super().source(sender, endpoint)
