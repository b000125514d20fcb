"""One probe of a member, over whatever path its link uses just now; and who that member is."""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import Any

from ipop_tx.core import commands as c
from ipop_tx.errors import LocalMisuse
from ipop_tx.services.chord import ChordProtocol
from ipop_tx.services.status import Status
from ipop_tx.values import Ident
from ipop_tx.wire.address import ipv6_of


async def ping(protocol: ChordProtocol, status: Status, target: str) -> dict[str, Any]:
    """Resolve a name or address, measure one round trip, and say by which path. Asks for a direct path where there is none.

    Raises `LocalMisuse` when nobody owns the target, `Unreachable` when its owner does not answer.
    """
    ident, name, address = await _owner(protocol, target)
    if ident == protocol.node.ident:
        raise LocalMisuse(f"{target} is this node itself", "name another node")
    seconds = await protocol.submit(c.Ping(ident))
    link = protocol.node.link(ident)
    direct = link is not None and link.is_direct
    if not direct:
        protocol.submit(c.Punch(ident)).addErrback(lambda failure: None)
    return {
        "name": name or (link.peer.name if link else ""),
        "address": address,
        "ident": ident.hex(),
        "path": status.path_of(link),
        "rtt_ms": round(seconds * 1000, 3),
        "direct": direct,
    }


async def resolve(protocol: ChordProtocol, target: str) -> dict[str, Any]:
    """Which node owns a name or an address. Raises `LocalMisuse` when nobody does."""
    ident, name, address = await _owner(protocol, target)
    return {"ident": ident.hex(), "name": name, "address": address, "ipv6": str(ipv6_of(protocol.node.network.prefix, ident))}


async def _owner(protocol: ChordProtocol, target: str) -> tuple[Ident, str, str]:
    owner = await protocol.submit(c.Resolve(target))
    if owner is not None:
        return owner.ident, owner.name, str(IPv4Address(owner.address)) if owner.address else target
    for link in protocol.node.links:
        if link.peer.name == target:
            return link.ident, link.peer.name, ""
    raise unowned(protocol, target)


def unowned(protocol: ChordProtocol, target: str) -> LocalMisuse:
    """A name or an address stands for nobody."""
    return LocalMisuse(f"nobody in the network {protocol.node.network.name} owns {target}", "ipop status names the peers")
