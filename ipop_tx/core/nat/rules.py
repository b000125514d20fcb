"""What the observations of a check of the NAT tell: pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from ipop_tx.core.natkind import Kind, NatFacts, Reach
from ipop_tx.values import Endpoint

SMALL_STEP = 16
"""The outer ports of a NAT that numbers its mappings grow by no more than this from one to the next, even if others use it too."""


def mapping_of(seen: dict[Endpoint, Endpoint], inner: set[Endpoint]) -> NatFacts:
    """What the outer endpoints of one socket tell, by the endpoints that it sent to in this order; `inner` is what it is itself."""
    seen = _without_odd_one(seen)
    outer = list(seen.values())
    distinct = tuple(dict.fromkeys(outer))
    by_host: dict[str, list[Endpoint]] = {}
    for target, endpoint in seen.items():
        by_host.setdefault(target.host, []).append(endpoint)
    several = len(by_host) > 1
    twice = any(len(found) > 1 for found in by_host.values())
    if not outer:
        return NatFacts()
    if len(distinct) == 1:
        kind = Kind.NONE if distinct[0] in inner else Kind.ENDPOINT_INDEPENDENT
        sure = several or kind is Kind.NONE
    elif any(len(set(found)) > 1 for found in by_host.values()):
        kind, sure = Kind.ADDRESS_AND_PORT_DEPENDENT, True
    elif twice:
        kind, sure = Kind.ADDRESS_DEPENDENT, True
    else:  # nobody has a second port: the stricter is the safer guess
        kind, sure = Kind.ADDRESS_AND_PORT_DEPENDENT, False
    kept = None if kind is Kind.NONE else outer[0].port in {endpoint.port for endpoint in inner}
    step = step_of(outer) if len(distinct) > 1 else 0
    return NatFacts(Reach(kind, step=step), sure, port_kept=kept, outer=distinct)


def _without_odd_one(seen: dict[Endpoint, Endpoint]) -> dict[Endpoint, Endpoint]:
    """Of three addresses or more at which the same is seen but for one, that one is wrong or lies."""
    hosts: dict[str, set[Endpoint]] = {}
    for target, outer in seen.items():
        hosts.setdefault(target.host, set()).add(outer)
    for odd, seen_there in hosts.items():
        rest = [hosts[host] for host in hosts if host != odd]
        if len(rest) > 1 and all(len(found) == 1 and found == rest[0] for found in rest) and seen_there != rest[0]:
            return {target: outer for target, outer in seen.items() if target.host != odd}
    return seen


def step_of(outer: Sequence[Endpoint]) -> int:
    """By how much a NAT's ports grow from one mapping to the next, if most do by little (its numbers may have begun anew); else 0."""
    ports = list(dict.fromkeys(endpoint.port for endpoint in outer))
    steps = sorted(step for one, next_ in pairwise(ports) if 0 < (step := next_ - one) <= SMALL_STEP)
    return steps[len(steps) // 2] if steps and 2 * len(steps) >= len(ports) - 1 else 0


def filtering_of(others: Sequence[bool | None], second: bool | None) -> tuple[Kind, bool]:
    """What it tells of the filter whether knocks from other addresses, and from another port of the one sent to, came in."""
    elsewhere = [came for came in others if came is not None]
    if any(elsewhere):
        return Kind.ENDPOINT_INDEPENDENT, True
    if second is False:  # who keeps out another port of the same address keeps out other addresses too
        return Kind.ADDRESS_AND_PORT_DEPENDENT, True
    if second:
        return Kind.ADDRESS_DEPENDENT, bool(elsewhere)
    return (Kind.ADDRESS_AND_PORT_DEPENDENT, False) if elsewhere else (Kind.UNKNOWN, False)
