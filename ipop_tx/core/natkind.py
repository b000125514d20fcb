"""What a NAT does, by the names of RFC 4787, and which pairs can have a direct path."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum

from ipop_tx.values import Endpoint


class Kind(IntEnum):
    """On what of the far end something depends: which outer endpoint our datagrams get (*mapping*), who may answer (*filtering*).

    The numbers are those of the wire.
    """

    UNKNOWN = 0
    NONE = 1
    """Nothing translates: others see this machine's own address and port. Of mappings only."""
    ENDPOINT_INDEPENDENT = 2
    ADDRESS_DEPENDENT = 3
    ADDRESS_AND_PORT_DEPENDENT = 4
    BLOCKED = 5
    """UDP does not get through at all."""

    @property
    def title(self) -> str:
        """The name, for people and scripts."""
        return self.name.lower().replace("_", "-")

    @classmethod
    def of(cls, number: int) -> Kind:
        """What a peer says; a number of a later version is unknown to us."""
        return cls(number) if number in cls._value2member_map_ else cls.UNKNOWN


@dataclass(frozen=True, slots=True)
class Reach:
    """Mapping and filtering of one node, as far as known."""

    mapping: Kind = Kind.UNKNOWN
    filtering: Kind = Kind.UNKNOWN
    step: int = 0
    """By how much the outer port grows from one mapping to the next, for a NAT that numbers them; else 0."""
    brittle: bool = False
    """Whether what comes in unasked takes the port: what we send there later leaves by another one. Plain Linux does that."""

    @property
    def known(self) -> bool:
        """Whether both are known."""
        return Kind.UNKNOWN not in (self.mapping, self.filtering)

    @property
    def blocked(self) -> bool:
        """Whether no datagram gets out."""
        return Kind.BLOCKED in (self.mapping, self.filtering)

    @property
    def steady(self) -> bool:
        """Whether everybody sees the same endpoint, so that it can be told to others."""
        return self.mapping in (Kind.NONE, Kind.ENDPOINT_INDEPENDENT)


@dataclass(frozen=True, slots=True)
class NatFacts:
    """What a check has found. `sure` is false where there were too few members to tell it from something milder or stricter."""

    reach: Reach = Reach()
    mapping_sure: bool = False
    filtering_sure: bool = False
    port_kept: bool | None = None
    """Whether the outer port is the inner one; None when there is no NAT or nothing is known."""
    hairpin: bool | None = None
    """Whether two sockets behind the NAT reach each other by their outer endpoints; None when there is no NAT or nothing is known."""
    hops: int = 0
    """The least hop limit of a datagram that opens all of our NATs; 0 where that is not known."""
    outer: tuple[Endpoint, ...] = ()
    """The different endpoints at which one socket was seen, in the order in which it sent."""
    helpers: int = 0
    """How many members at different addresses helped."""
    at: float = 0.0
    """When."""


@dataclass(frozen=True, slots=True)
class Lifetime:
    """For how long a mapping without traffic lives: it did live after `alive` seconds, and not any more after `dead`, if that was seen."""

    alive: float = 0.0
    dead: float | None = None


class Role(Enum):
    """What a node does in a search for a port (`core.nat.search`)."""

    CASTS = "opens sockets, each of which gets a port of our NAT"
    PROBES = "looks for one of the ports of the peer's NAT"
    MEETS = "sends from ports that are known to ports that are known, both fresh"


def feasible(one: Reach, other: Reach) -> bool:
    """Whether two nodes can get a direct path."""
    return meet_openly(one, other) or role_of(one, other, True) is not None


def meet_openly(one: Reach, other: Reach) -> bool:
    """Whether it is enough that both challenge each other at the endpoints that others see."""
    return not (one.blocked or other.blocked) and (_gets_through(one, other) or _gets_through(other, one))


def role_of(ours: Reach, theirs: Reach, first: bool) -> Role | None:
    """What we do in the search for a port that a pair needs; None when none is needed or none can help.

    Where either end could cast, one that numbers its mappings does, else the `first`.
    """
    if meet_openly(ours, theirs) or not (ours.known and theirs.known) or ours.blocked or theirs.blocked:
        return None
    we, they = _found(theirs, ours), _found(ours, theirs)
    if we and they:
        we = first if bool(ours.step) == bool(theirs.step) else bool(ours.step)
    if we or they:
        return Role.CASTS if we else Role.PROBES
    return Role.MEETS if ours.step and theirs.step else None


def _found(prober: Reach, caster: Reach) -> bool:
    """Whether a challenge of the prober to the right port gets in at a socket of the caster, which has sent to it, and the answer back.

    The answer leaves from the port that was challenged if the caster had sent to exactly where the challenge comes from, or if its
    mapping depends on no port.
    """
    gets_in = prober.steady or caster.filtering is not Kind.ADDRESS_AND_PORT_DEPENDENT
    same_port = prober.steady or caster.mapping is Kind.ADDRESS_DEPENDENT
    return not caster.steady and gets_in and (same_port or prober.filtering is not Kind.ADDRESS_AND_PORT_DEPENDENT)


def _gets_through(sender: Reach, receiver: Reach) -> bool:
    """Whether a challenge comes in at the receiver, which has sent to what others see of the sender, and its answer comes back."""
    if receiver.filtering is Kind.ENDPOINT_INDEPENDENT:
        let_in = True
    elif receiver.filtering is Kind.ADDRESS_DEPENDENT:
        let_in = receiver.steady
    else:
        let_in = receiver.steady and sender.steady
    return let_in and (receiver.steady or sender.filtering is not Kind.ADDRESS_AND_PORT_DEPENDENT)


def why_infeasible(ours: Reach, theirs: Reach) -> str:
    """Why two nodes cannot have a direct path, for people. Only for such a pair."""
    if theirs.blocked or ours.blocked:
        where = "here and at the peer" if theirs.blocked and ours.blocked else "at the peer" if theirs.blocked else "here"
        return f"UDP is blocked {where}"
    if not ours.steady and not theirs.steady:
        if ours.mapping is theirs.mapping:
            return f"both behind {ours.mapping.title} mappings"
        return f"{_article(ours.mapping)} mapping here, {_article(theirs.mapping)} one at the peer"
    if ours.steady:
        return f"{_article(theirs.mapping)} mapping at the peer, {_article(ours.filtering)} filter here"
    return f"{_article(ours.mapping)} mapping here, {_article(theirs.filtering)} filter at the peer"


def _article(kind: Kind) -> str:
    return f"an {kind.title}"
