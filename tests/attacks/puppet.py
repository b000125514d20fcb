"""A member gone bad: a real daemon that does what the test says, over one more route of its control socket.

`POST /puppet {"do": name, ...}`; bytes are hexadecimal. Peers are named as in `ipop status`.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from ipop_tx.app import Node
from ipop_tx.core import commands as c
from ipop_tx.core.links.fragments import PART
from ipop_tx.core.links.link import Link
from ipop_tx.errors import LocalMisuse
from ipop_tx.services.control import Route
from ipop_tx.wire import messages as m


def install() -> None:
    """Give every node of this process the route."""
    routes = Node._routes

    def more(node: Node) -> dict[str, Route]:
        return {**routes(node), "POST /puppet": lambda words: DEEDS[words.pop("do")](node, **words)}

    Node._routes = more  # type: ignore[method-assign]


def _link(node: Node, peer: str) -> Link:
    for link in node.core.links:
        if link.peer.name == peer:
            return link
    raise LocalMisuse(f"no link to {peer}")


def seal(node: Node, peer: str, kind: int, payload: str, steps: list[int] | None = None) -> dict[str, Any]:
    """Records for a peer, by its active path: one, or one for each of `steps`, whose counters are so many after the next one."""
    link = _link(node, peer)
    channel: Any = link.session.channel
    base = channel.datagrams_sealed
    for step in steps or [0]:
        channel.datagrams_sealed = base + step
        node.core.links.send_datagram(link.active, link.session.protect(kind, bytes.fromhex(payload)))
    channel.datagrams_sealed = base + max(steps or [0]) + 1
    node.protocol.settle()
    return {"counter": base}


def fragments(node: Node, peer: str, group: int, count: int) -> dict[str, Any]:
    """All fragments of a message but the last one, with so many bytes each."""
    link = _link(node, peer)
    for index in range(count - 1):
        node.core.links.send_message(link, m.Fragment(group, index, count, bytes(PART)), whole=True)
    node.protocol.settle()
    return {}


def ask(node: Node, peer: str, body: str) -> Any:
    """Ask a peer anything, as a well-formed request; gives its answer."""
    request = m.decode(bytes.fromhex(body))
    assert isinstance(request, m.Request)
    asked = node.protocol.submit(c.Ask(_link(node, peer).ident, request.body))
    return asked.addCallbacks(lambda answer: {"answer": repr(answer)}, lambda failure: {"error": str(failure.value)})


def shards(node: Node) -> dict[str, Any]:
    """The views that it keeps: what it needs to lie about them."""
    return {str(shard.index): [shard.number, [ident.hex() for ident in shard.members]] for shard in node.core.replicas.shards.values()}


def record(node: Node, key: str, version: int, ttl: int, value: str) -> dict[str, str]:
    """A register's record that is properly signed by this member."""
    made = node.core.dht.signer.record(bytes.fromhex(key), version, ttl, bytes.fromhex(value))
    return {"record": m.encode(made).hex(), "ident": node.core.ident.hex()}


def mistreat(node: Node, how: str) -> dict[str, Any]:
    """From now on drop, alter or delay all traffic that is relayed here, but nothing of the control plane: challenges get through."""
    relaying: Any = node.forwarding.plane.relaying
    honest, chance = type(relaying)._pass, Random(1)

    def wicked(peer: Any, target: bytes, buffer: memoryview, begin: int, end: int) -> None:
        if how == "alter":
            buffer[end - 20] ^= 1  # before the tag: the end of the packet
            honest(relaying, peer, target, buffer, begin, end)
        elif how == "delay":
            kept = memoryview(bytearray(buffer))
            node._reactor.callLater(2.0 + 2.0 * chance.random(), honest, relaying, peer, target, kept, begin, end)

    relaying._pass = wicked
    return {}


DEEDS: dict[str, Callable[..., Any]] = {deed.__name__: deed for deed in (seal, fragments, ask, shards, record, mistreat)}
