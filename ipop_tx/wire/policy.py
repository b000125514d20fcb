"""The network's policy: which traffic between members is allowed. Read from the TOML that people write, or from JSON; docs/policy.md.

Pure. `Policy.decide` says in the plainest way what a policy means; `ipop_tx.forwarding.policing` does the same fast.
"""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any, NamedTuple

from ipop_tx.errors import LocalMisuse

TCP, UDP, ICMP, ICMPV6 = 6, 17, 1, 58
PROTOCOLS: dict[str, tuple[int, ...]] = {
    "tcp": (TCP,),
    "udp": (UDP,),
    "icmp": (ICMP, ICMPV6),
    "gre": (47,),
    "esp": (50,),
    "ah": (51,),
    "sctp": (132,),
    "udplite": (136,),
}
"""Names of protocols, and their numbers; `icmp` is that of either IP version."""
PORTED = frozenset((TCP, UDP, 132, 136))
"""Protocols whose headers begin with the source's port and the target's."""
TYPES: dict[str, tuple[tuple[int, int], ...]] = {
    "echo-request": ((ICMP, 8), (ICMPV6, 128)),
    "echo-reply": ((ICMP, 0), (ICMPV6, 129)),
    "unreachable": ((ICMP, 3), (ICMPV6, 1)),
    "packet-too-big": ((ICMPV6, 2),),
    "time-exceeded": ((ICMP, 11), (ICMPV6, 3)),
    "parameter-problem": ((ICMP, 12), (ICMPV6, 4)),
    "timestamp-request": ((ICMP, 13),),
}
"""Names of ICMP types: of which protocol, which number (RFC 792, RFC 4443)."""

MOST_RULES = 256
MOST_ENDS = 64
"""In one `from` or `to`; as many port ranges and types may stand in one rule."""
MOST_BYTES = 16384
"""Of a policy's text."""

_NAME = r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?"
_KEYS = ("name", "from", "to", "protocol", "ports", "types")


class Party(NamedTuple):
    """Who stands at one end, as its certificate says."""

    name: str
    groups: tuple[str, ...] = ()


class Packet(NamedTuple):
    """What of a packet a rule looks at."""

    protocol: int
    source: bytes
    """4 or 16 bytes."""
    target: bytes
    port: int | None = None
    """The target's, where the protocol has ports."""
    type: int | None = None
    """Of ICMP."""


@dataclass(frozen=True, slots=True)
class Ends:
    """Whom `from` or `to` of a rule means: everybody, or whoever is in one of these."""

    anybody: bool = True
    groups: frozenset[str] = frozenset()
    names: frozenset[str] = frozenset()
    ranges: tuple[IPv4Network | IPv6Network, ...] = ()

    def knows(self, party: Party) -> bool:
        """Whether a party is meant whatever its address."""
        return self.anybody or party.name in self.names or not self.groups.isdisjoint(party.groups)

    def means(self, party: Party, address: bytes) -> bool:
        """Whether a party is meant when it uses this address."""
        return self.knows(party) or any(ip_address(address) in one for one in self.ranges)


@dataclass(frozen=True, slots=True)
class Rule:
    """What one rule allows."""

    name: str
    sources: Ends = Ends()
    targets: Ends = Ends()
    protocols: frozenset[int] = frozenset()
    """None: all."""
    ports: tuple[tuple[int, int], ...] = ()
    """First and last of each range; none: all."""
    types: frozenset[tuple[int, int]] = frozenset()
    """(protocol, ICMP type); none: all."""

    def fits(self, packet: Packet) -> bool:
        """Whether protocol, port and type of a packet are what this rule is about."""
        if self.protocols and packet.protocol not in self.protocols:
            return False
        if self.ports and not (packet.port is not None and any(first <= packet.port <= last for first, last in self.ports)):
            return False
        return not self.types or (packet.protocol, packet.type) in self.types


@dataclass(frozen=True, slots=True)
class Policy:
    """What is allowed: whatever a rule allows, the answers to that, and all the rest too if `allow` is true."""

    allow: bool
    rules: tuple[Rule, ...] = ()

    def decide(self, source: Party, target: Party, packet: Packet) -> Rule | None:
        """The first rule that allows a packet which is no answer to an earlier one, None if there is none."""
        for rule in self.rules:
            if rule.fits(packet) and rule.sources.means(source, packet.source) and rule.targets.means(target, packet.target):
                return rule
        return None


def parse(text: str) -> Policy:
    """Read a policy. Raises `LocalMisuse` that names line or rule, and what to write there."""
    if len(text.encode()) > MOST_BYTES:
        raise LocalMisuse(f"the policy is longer than {MOST_BYTES} bytes", "put members into groups rather than naming each")
    try:
        value = json.loads(text) if text.lstrip().startswith("{") else tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise LocalMisuse(f"the policy does not parse: {error}", "docs/policy.md has examples") from None
    unknown = set(value) - {"default", "allow"}
    if unknown:
        raise LocalMisuse(f"the policy has an unknown key {min(unknown)!r}", "it has 'default' and [[allow]] rules")
    default = value.get("default")
    if default not in ("allow", "deny"):
        raise LocalMisuse(f"the policy's default is {default!r}", 'write  default = "deny"  or  default = "allow"  at the top')
    rules = value.get("allow", [])
    if not isinstance(rules, list) or not all(isinstance(rule, dict) for rule in rules):
        raise LocalMisuse("'allow' is not a list of rules", "begin each rule with a line [[allow]]")
    if len(rules) > MOST_RULES:
        raise LocalMisuse(f"the policy has {len(rules)} rules", f"at most {MOST_RULES} can be had: put members into groups")
    read = tuple(_rule(rule, number) for number, rule in enumerate(rules, 1))
    names = [rule.name for rule in read]
    for number, name in enumerate(names):
        if name in names[:number]:
            raise LocalMisuse(f"two rules are called {name!r}", "give each a name of its own: counters go by it")
    return Policy(default == "allow", read)


def parse_service(text: str) -> tuple[int | None, int | None, int | None]:
    """What somebody asks about, `tcp/22`, `udp/53`, `icmp/echo-request`, `icmp`, `gre`: (protocol of IPv4, port, ICMP type).

    Raises `LocalMisuse`.
    """
    protocol, _, detail = text.lower().partition("/")
    number = PROTOCOLS.get(protocol, (int(protocol),) if protocol.isascii() and protocol.isdigit() and int(protocol) < 256 else ())
    mend = "write for instance tcp/22, udp/53, icmp/echo-request or gre"
    if not number:
        raise LocalMisuse(f"{text!r} names no protocol", mend)
    if number[0] in PORTED:
        if not (detail.isascii() and detail.isdigit() and 0 < int(detail) < 65536):
            raise LocalMisuse(f"{text!r} has no port from 1 to 65535", mend)
        return number[0], int(detail), None
    if number[0] == ICMP:
        kinds = TYPES.get(detail or "echo-request")
        if kinds is None:
            raise LocalMisuse(f"{text!r} names no type of ICMP", f"types are {', '.join(TYPES)}")
        return kinds[0][0], None, kinds[0][1]
    if detail:
        raise LocalMisuse(f"{text!r}: this protocol has no ports", mend)
    return number[0], None, None


def _rule(value: dict[str, Any], number: int) -> Rule:
    name = value.get("name", f"rule {number}")
    if not isinstance(name, str) or not 0 < len(name) <= 60 or not name.isprintable():
        raise LocalMisuse(f"the name of rule {number} is no text of up to 60 characters", 'write for instance  name = "ssh"')
    where = f"rule {number} ({name})" if "name" in value else f"rule {number}"
    unknown = set(value) - set(_KEYS)
    if unknown:
        raise LocalMisuse(f"{where} has an unknown key {min(unknown)!r}", f"a rule has {', '.join(_KEYS)}")
    protocols, types = _protocols(value, where), _types(value, where)
    ports = tuple(_port_range(text, where) for text in _texts(value, "ports", where))
    if ports and not (protocols and protocols <= PORTED):
        raise LocalMisuse(f"{where} has ports without a protocol that has some", 'write  protocol = "tcp"  or  "udp"  beside them')
    if types and not (protocols and protocols <= {ICMP, ICMPV6}):
        raise LocalMisuse(f"{where} has types without ICMP", 'write  protocol = "icmp"  beside them')
    return Rule(name, _ends(value, "from", where), _ends(value, "to", where), protocols, ports, types)


def _texts(value: dict[str, Any], key: str, where: str) -> list[str]:
    """What stands at a key as a list of texts: one may stand alone, and numbers are texts too."""
    found = value.get(key, [])
    found = found if isinstance(found, list) else [found]
    if key in value and not found:
        raise LocalMisuse(f"'{key}' of {where} is empty", "leave it out to mean all")
    if not all(isinstance(one, (str, int)) and not isinstance(one, bool) for one in found):
        raise LocalMisuse(f"'{key}' of {where} is not a list of texts", f'write for instance  {key} = ["..."]')
    if len(found) > MOST_ENDS:
        raise LocalMisuse(f"'{key}' of {where} has {len(found)} entries", f"at most {MOST_ENDS} can be had")
    return [str(one) for one in found]


def _protocols(value: dict[str, Any], where: str) -> frozenset[int]:
    numbers: set[int] = set()
    for text in _texts(value, "protocol", where):
        if text == "any":
            return frozenset()
        if text.isascii() and text.isdigit() and int(text) < 256:
            numbers.add(int(text))
        elif text in PROTOCOLS:
            numbers.update(PROTOCOLS[text])
        else:
            raise LocalMisuse(f"{where} names an unknown protocol {text!r}", f"use {', '.join(PROTOCOLS)}, any, or a number below 256")
    return frozenset(numbers)


def _types(value: dict[str, Any], where: str) -> frozenset[tuple[int, int]]:
    found: set[tuple[int, int]] = set()
    for text in _texts(value, "types", where):
        version, _, number = text.partition(":")
        if text in TYPES:
            found.update(TYPES[text])
        elif version in ("v4", "v6") and number.isascii() and number.isdigit() and int(number) < 256:
            found.add((ICMP if version == "v4" else ICMPV6, int(number)))
        else:
            raise LocalMisuse(f"{where} names an unknown ICMP type {text!r}", f"use {', '.join(TYPES)}, or v4:NUMBER and v6:NUMBER")
    return frozenset(found)


def _port_range(text: str, where: str) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", text)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
    if not 0 <= first <= last < 65536:
        raise LocalMisuse(f"{where} has {text!r} among its ports", "write 22, or 8000-8100")
    return first, last


def _ends(value: dict[str, Any], key: str, where: str) -> Ends:
    texts = _texts(value, key, where)
    if not texts or "any" in texts:
        return Ends()
    groups: set[str] = set()
    names: set[str] = set()
    ranges: list[IPv4Network | IPv6Network] = []
    for text in texts:
        kind, _, rest = text.partition(":")
        if kind in ("group", "name") and re.fullmatch(_NAME, rest):
            (groups if kind == "group" else names).add(rest)
            continue
        try:
            ranges.append(ip_network(text))
        except ValueError as error:
            raise LocalMisuse(
                f"'{key}' of {where} has {text!r}: {error}",
                "write group:NAME, name:NAME, an address, a range such as 10.128.3.0/24, or any",
            ) from None
    return Ends(False, frozenset(groups), frozenset(names), tuple(ranges))
