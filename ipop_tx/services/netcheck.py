"""What `ipop netcheck` shows: UDP, addresses, the NAT by name, port mappings, path MTUs, relays, and what all that means."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

from twisted.internet.defer import Deferred

from ipop_tx.core import commands as c
from ipop_tx.core.links.link import Link
from ipop_tx.core.natkind import Kind, NatFacts, Reach, feasible
from ipop_tx.services.chord import ChordProtocol
from ipop_tx.services.natcheck import NATCheckService
from ipop_tx.services.portmap import PortMapService
from ipop_tx.values import Endpoint

MEASURED = 8
"""To so many members the path MTU is measured."""
_OFF: dict[str, Any] = {"enabled": False, "gateway": None, "protocols": [], "endpoints": [], "problem": ""}


async def netcheck(protocol: ChordProtocol, checks: NATCheckService, portmap: PortMapService | None) -> dict[str, Any]:
    """Check anew, and tell all. Takes some seconds. Raises `EnvironmentProblem` when no socket can be opened."""
    _measure_mtus(protocol)
    mapping = Deferred.fromCoroutine(portmap.report()) if portmap is not None else None  # begins now
    facts = await checks.check()
    ports = await mapping if mapping is not None else _OFF
    node = protocol.node
    direct = [link for link in node.links if isinstance(link.active, Endpoint)]
    udp = any(endpoint.carrier == "udp" for link in direct for endpoint in link.direct)
    blocked = not udp and bool(node.bootstrap.endpoints)  # nobody answers where members were
    lifetime = node.nat.life.lifetime
    return {
        "udp": udp,
        "ipv4": _works(direct, 4),
        "ipv6": _works(direct, 6),
        "local": [str(endpoint) for endpoint in node.paths.facts.local],
        "observed": [{"endpoint": str(endpoint), "peers": count} for endpoint, count in node.paths.facts.observed().items()],
        "mapping": facts.reach.mapping.title,
        "mapping_sure": facts.mapping_sure,
        "filtering": facts.reach.filtering.title,
        "filtering_sure": facts.filtering_sure,
        "port_kept": facts.port_kept,
        "sequential_step": facts.reach.step or None,
        "brittle": facts.reach.brittle,
        "opening_hops": facts.hops or None,
        "hairpin": facts.hairpin,
        "lifetime_s": {"at_least": lifetime.alive or None, "less_than": lifetime.dead},
        "keepalive_s": round(node.paths.keepalive, 1),
        "helpers": facts.helpers,
        "port_mapping": ports,
        "peers": [_peer(link) for link in sorted(direct, key=lambda link: (link.peer.name, link.ident))],
        "relays": [
            {"name": link.peer.name, "rtt_ms": round(link.rtt * 1000, 2) if link.rtt else None}
            for link in sorted(direct, key=lambda link: (link.rtt or 1e9, link.ident))
            if link.placed
        ],
        "verdict": verdict(facts, udp=udp, blocked=blocked, mapped=bool(ports["endpoints"]), otherwise=bool(direct)),
    }


def _measure_mtus(protocol: ChordProtocol) -> None:
    """The MTU of a path is found once frames go over it: as if some were about to. Most are known before the check has ended."""
    direct = sorted((link for link in protocol.node.links if link.is_direct), key=lambda link: (link.rtt or 1e9, link.ident))
    for link in direct[:MEASURED]:
        protocol.submit(c.Connect(link.ident)).addErrback(lambda failure: None)


def _works(direct: list[Link], version: int) -> bool:
    return any(ip_address(endpoint.host).version == version for link in direct for endpoint in link.direct if endpoint.carrier == "udp")


def _peer(link: Link) -> dict[str, Any]:
    return {
        "name": link.peer.name,
        "path": f"direct {link.active}",
        "mtu": link.mtu,
        "rtt_ms": round(link.rtt * 1000, 2) if link.rtt else None,
    }


def verdict(facts: NatFacts, udp: bool, blocked: bool, mapped: bool, otherwise: bool = False) -> str:
    """What it means for direct paths, in one sentence. `otherwise`: members are reached by other transports than UDP."""
    reach = facts.reach
    if otherwise and not udp:
        return "No member answers by UDP, which seems to be blocked here; those that are reached by other transports relay the rest."
    if not udp:
        why = "No member answers by UDP: it is blocked here, or the members are down" if blocked else "No other member is known yet"
        return f"{why}, so there are no direct paths."
    if not facts.helpers or not reach.known:
        return "Too few members answer to tell what stands before this node; direct paths are found by trying."
    if mapped:
        return "The router leads a port here, so every member that can send UDP to it gets a direct path."
    strict = Reach(Kind.ADDRESS_AND_PORT_DEPENDENT, Kind.ADDRESS_AND_PORT_DEPENDENT)
    doubt = "" if facts.mapping_sure and facts.filtering_sure else " (more members are needed to be sure)"
    if feasible(reach, strict):
        return f"Direct paths are possible with every member that has UDP{doubt}."
    if reach.filtering is not Kind.ADDRESS_AND_PORT_DEPENDENT:
        return f"Direct paths are possible with all members but those behind the strictest NATs; relays carry the rest{doubt}."
    return f"Direct paths are possible with members whose mapping does not depend on the far end; relays carry the rest{doubt}."
