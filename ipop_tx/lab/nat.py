"""What a site's router does to datagrams, as data, and the nftables rules that do it.

The words are those of RFC 4787: how a NAT *maps* (does the outer port depend on whom one talks to) and how it *filters*
(who may answer). Every pair of the two can be built; `tests/test_lab_nat.py` measures each with real sockets.
"""

from __future__ import annotations

from collections.abc import Mapping as Dict
from dataclasses import dataclass, replace
from enum import Enum
from typing import ClassVar


class Mapping(Enum):
    """How the router chooses the outer port of an inner endpoint."""

    PORT_KEPT = "endpoint-independent, port kept"
    PORT_CHANGED = "endpoint-independent, port changed"
    ADDRESS_DEPENDENT = "another port for each address"
    SEQUENTIAL = "symmetric, the next port for each endpoint"
    RANDOM = "symmetric, a random port for each endpoint"

    @property
    def endpoint_independent(self) -> bool:
        """Whether everybody sees the same outer endpoint."""
        return self in (Mapping.PORT_KEPT, Mapping.PORT_CHANGED)


class Filtering(Enum):
    """Whose datagrams the router lets in to a mapping."""

    ENDPOINT_INDEPENDENT = "anybody's"
    ADDRESS_DEPENDENT = "those from an address that was sent to"
    PORT_DEPENDENT = "those from an endpoint that was sent to"


class Kind(Enum):
    """What sort of router stands before a site."""

    NAT = "address and port translation"
    LINUX = "plain Linux masquerading"
    ONE_TO_ONE = "1:1 NAT"
    UDP_BLOCKED = "web only"


@dataclass(frozen=True)
class Nat:
    """One kind of router. `hairpin`: inner hosts reach each other by their outer endpoints."""

    mapping: Mapping = Mapping.PORT_KEPT
    filtering: Filtering = Filtering.PORT_DEPENDENT
    hairpin: bool = False
    kind: Kind = Kind.NAT

    FULL_CONE: ClassVar[Nat]
    RESTRICTED: ClassVar[Nat]
    PORT_RESTRICTED: ClassVar[Nat]
    PORT_CHANGING: ClassVar[Nat]
    SEQUENTIAL: ClassVar[Nat]
    SYMMETRIC: ClassVar[Nat]
    LINUX: ClassVar[Nat]
    ONE_TO_ONE: ClassVar[Nat]
    UDP_BLOCKED: ClassVar[Nat]

    def with_hairpin(self) -> Nat:
        """The same NAT, hairpinning."""
        return replace(self, hairpin=True)

    def __str__(self) -> str:
        if self.kind is not Kind.NAT:
            return str(self.kind.value)
        common = _COMMON_NAMES.get((self.mapping, self.filtering))
        return common or f"NAT: {self.mapping.value}; lets in {self.filtering.value}"


_COMMON_NAMES = {
    (Mapping.PORT_KEPT, Filtering.ENDPOINT_INDEPENDENT): "full-cone NAT",
    (Mapping.PORT_KEPT, Filtering.ADDRESS_DEPENDENT): "restricted NAT",
    (Mapping.PORT_KEPT, Filtering.PORT_DEPENDENT): "port-restricted NAT",
    (Mapping.RANDOM, Filtering.PORT_DEPENDENT): "symmetric NAT",
}

Nat.FULL_CONE = Nat(filtering=Filtering.ENDPOINT_INDEPENDENT)
Nat.RESTRICTED = Nat(filtering=Filtering.ADDRESS_DEPENDENT)
Nat.PORT_RESTRICTED = Nat()
Nat.PORT_CHANGING = Nat(mapping=Mapping.PORT_CHANGED)
Nat.SEQUENTIAL = Nat(mapping=Mapping.SEQUENTIAL)
Nat.SYMMETRIC = Nat(mapping=Mapping.RANDOM)
Nat.LINUX = Nat(kind=Kind.LINUX)
Nat.ONE_TO_ONE = Nat(kind=Kind.ONE_TO_ONE)
Nat.UDP_BLOCKED = Nat(kind=Kind.UDP_BLOCKED)


def ruleset(nat: Nat, wan: str, lan: str, outer: Dict[str, str]) -> str:
    """The nftables text for a router with the interfaces `wan` and `lan`.

    `wan` is its outer address, `lan` the inner subnet; `outer` maps inner to outer addresses (one-to-one only).
    """
    if nat.kind is Kind.LINUX:
        return _FLUSH + _table(_chain("post", "nat hook postrouting priority srcnat", 'oifname "wan" masquerade'))
    if nat.kind is Kind.ONE_TO_ONE:
        return _FLUSH + _one_to_one(outer)
    if nat.kind is Kind.UDP_BLOCKED:
        return _FLUSH + _table(_chain("post", "nat hook postrouting priority srcnat", 'oifname "wan" masquerade'), _WEB_ONLY, _INPUT)
    return _FLUSH + _translation(nat, wan, lan)


STATEFUL = """
table inet firewall {
 chain input {
  type filter hook input priority 0; policy accept;
  iifname "eth0" meta l4proto udp ct state established,related accept
  iifname "eth0" meta l4proto udp drop
 }
}
"""
"""A firewall on a host itself, which lets in answers only."""
_FLUSH = "flush ruleset\n"


def _chain(name: str, hook: str, *rules: str) -> str:
    body = "".join(f"  {rule}\n" for rule in rules if rule)
    return f" chain {name} {{\n  type {hook};\n{body} }}\n"


def _table(*parts: str) -> str:
    return "table ip lab {\n" + "".join(parts) + "}\n"


# Without this, a datagram that comes too early makes a connection entry of the router's own, and the later
# outbound one cannot keep its port. Home routers drop; plain Linux does not (`Kind.LINUX`).
_INPUT = _chain("inp", "filter hook input priority filter", 'iifname "wan" ct state established,related accept', 'iifname "wan" drop')
_FORWARD = _chain(
    "fw",
    "filter hook forward priority filter; policy drop",
    "ct state established,related accept",
    "ct status dnat accept",
    'iifname "lan" oifname "wan" accept',
)
_WEB_ONLY = _chain(
    "fw",
    "filter hook forward priority filter; policy drop",
    "ct state established,related accept",
    'iifname "lan" oifname "wan" tcp dport 443 accept',
    'iifname "lan" reject with icmp admin-prohibited',
)

# `fc`: outer port -> inner endpoint; `perm`: which outer source may come to which outer port.
_MEMORY = """\
 map fc { type inet_service : ipv4_addr . inet_service; flags dynamic,timeout; timeout 120s; size 65535; }
 set perm { type ipv4_addr . inet_service; flags dynamic,timeout; timeout 120s; size 65535; }
"""
_LEARN = (  # after the source was translated
    "update @fc { udp sport : ct original ip saddr . ct original proto-src }",
    "update @perm { ip daddr . udp sport }",
)
# So many that a number does not come again while what had it is still in use. Plain numgen offsets come out byte-swapped.
NUMBERS = 2048
_SEQUENCE = ", ".join(f"{n}:{40000 + n}" for n in range(NUMBERS))


def _mapped(mapping: Mapping, wan: str) -> str:
    hashed = f"snat ip to {wan}:jhash ip saddr . udp sport"
    return {
        Mapping.PORT_KEPT: "",
        Mapping.PORT_CHANGED: f'oifname "wan" ip protocol udp {hashed} mod 20000 offset 40000',
        Mapping.ADDRESS_DEPENDENT: f'oifname "wan" ip protocol udp {hashed} . ip daddr mod 20000 offset 40000',
        Mapping.SEQUENTIAL: f'oifname "wan" ip protocol udp snat ip to {wan} : numgen inc mod {NUMBERS} map {{ {_SEQUENCE} }}',
        Mapping.RANDOM: 'oifname "wan" masquerade fully-random',
    }[mapping]


def _translation(nat: Nat, wan: str, lan: str) -> str:
    post = _chain(
        "post",
        "nat hook postrouting priority srcnat",
        f'oifname "lan" ip saddr {lan} ct status dnat snat to {wan}' if nat.hairpin else "",
        _mapped(nat.mapping, wan),
        'oifname "wan" masquerade',
    )
    learn = _chain("learn", "filter hook postrouting priority 110", *(f'oifname "wan" ip protocol udp {r}' for r in _LEARN))
    admit = {
        Filtering.ENDPOINT_INDEPENDENT: 'iifname "wan" dnat ip to udp dport map @fc',
        Filtering.ADDRESS_DEPENDENT: 'iifname "wan" ip saddr . udp dport @perm dnat ip to udp dport map @fc',
        Filtering.PORT_DEPENDENT: "",  # connection tracking alone does that
    }[nat.filtering]
    hairpin = f'iifname "lan" ip daddr {wan} dnat ip to udp dport map @fc' if nat.hairpin else ""
    pre = _chain("pre", "nat hook prerouting priority dstnat", admit, hairpin) if admit or hairpin else ""
    return _table(_MEMORY, post, learn, pre, _FORWARD, _INPUT)


def _one_to_one(outer: Dict[str, str]) -> str:
    if not outer:
        return ""
    inward = ", ".join(f"{o} : {i}" for i, o in outer.items())
    outward = ", ".join(f"{i} : {o}" for i, o in outer.items())
    return _table(
        _chain("pre", "nat hook prerouting priority dstnat", f"dnat to ip daddr map {{ {inward} }}"),
        _chain(
            "post",
            "nat hook postrouting priority srcnat",
            f'oifname "wan" snat to ip saddr map {{ {outward} }}',
            f'oifname "lan" ct status dnat snat to ip saddr map {{ {outward} }}',
        ),
    )
