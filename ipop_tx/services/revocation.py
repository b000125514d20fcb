"""Throwing members out: what the authority's daemon orders, what every daemon keeps of it and does about it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from ipop_tx.core import commands as c
from ipop_tx.core import events as e
from ipop_tx.errors import LocalMisuse, PeerRefused, StateError
from ipop_tx.identity import appointed
from ipop_tx.identity import state as files
from ipop_tx.identity.keys import PrivateKey
from ipop_tx.identity.state import StateDirectory
from ipop_tx.log import Logger
from ipop_tx.services.chord import ChordProtocol
from ipop_tx.services.orders import authority_key, from_text, signed, to_file, to_text
from ipop_tx.services.ping import unowned
from ipop_tx.transport.tls import TlsTransport
from ipop_tx.values import Ident
from ipop_tx.wire import messages as m


class Revoking:
    """Keeps revocations on disk, ends TLS connections of those concerned, and gives orders where the authority's key is.

    Construct it before the node runs: it tells the core what was kept. Raises `StateError` when that is damaged.
    """

    _log = Logger()

    def __init__(
        self,
        protocol: ChordProtocol,
        state: StateDirectory,
        key: Callable[[], PrivateKey | None],
        streams: Iterable[TlsTransport],
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._protocol = protocol
        self._revocations = protocol.node.revocations
        self._state = state
        self._key = key
        self._streams = list(streams)
        self._wall = wall
        self._revocations.restore(_read(state))
        protocol.on(e.KeyRevoked, self._revoked)

    def _revoked(self, event: e.KeyRevoked) -> None:
        """Kept first: a node that forgot it would let them in again."""
        order = event.order
        self._log.warn("key_revoked name={name} key={key}", name=order.name, key=order.key.hex())
        try:
            kept = [to_text(order) for _, order in sorted(self._revocations.by_key.items())]
            self._state.write_json(files.REVOCATIONS, {"orders": kept})
        except StateError as error:
            self._log.error("revocation_not_kept reason={reason}", reason=str(error))
        for transport in self._streams:
            for connection in transport:
                if connection.peer is not None and self._revocations.is_out(connection.peer):
                    connection.fail(PeerRefused("its key was revoked"))

    def health(self) -> list[str]:
        """Whether it is this node that was thrown out."""
        own = self._protocol.node.peer
        if not self._revocations.is_out(own):
            return []
        order = self._revocations.by_key.get(own.key) or self._revocations.by_key[own.admitted_by]
        when = time.strftime("%Y-%m-%d %H:%M", time.gmtime(order.time))
        whose = "this node's key" if order.key == own.key else "the key that admitted this node"
        return [f"{whose} was revoked by the authority at {when} UTC, so nobody talks to it: remove its state directory and join anew"]

    # --- what may be asked -------------------------------------------------------------------

    def told(self) -> list[dict[str, Any]]:
        """All revocations, the latest first: name, key, time; `since` when it was only the right to admit that was withdrawn, else 0."""
        orders = sorted(self._revocations.by_key.values(), key=lambda order: (-order.time, order.key))
        return [{"name": order.name, "key": order.key.hex(), "time": order.time, "since": order.since} for order in orders]

    async def revoke(self, target: str, key: str, confirmed: bool) -> dict[str, Any]:
        """Throw out a node, by name or address, or a key, by its digest in hex. Says whom, and does it only if that is confirmed.

        Raises `LocalMisuse` where the authority's key is not, when nobody is called so, or when it would be this node itself.
        """
        pen = authority_key(self._key(), "throw members out", "ipop revoke")
        name, ident, digest = await self._whom(target) if target else ("", b"", _digest(key))
        own = self._protocol.node.peer
        if digest in (own.key, own.admitted_by):
            raise LocalMisuse("that is this node's own key, or the one that admitted it", "name another node")
        known = self._revocations.is_revoked(digest)
        answer = {"name": name, "ident": ident.hex(), "key": digest.hex(), "known": known, "links": 0}
        if confirmed and not answer["known"]:
            order = signed(pen, m.Revocation(self._protocol.node.network.ident, digest, name, int(self._wall())))
            answer |= await self._give(order)
        return answer

    async def withdraw(self, target: str, confirmed: bool) -> dict[str, Any]:
        """Let the admission key of a node, by the node's name or the key's digest, admit no more; those that it has admitted stay.

        Raises `LocalMisuse` where the authority's key is not, or when nobody was appointed under that name.
        """
        pen = authority_key(self._key(), "withdraw a right to admit", "ipop withdraw")
        found = [one for one in appointed.read(self._state) if target in (one.name, one.key.hex())]
        if len(found) != 1:
            names = ", ".join(f"{one.name} ({one.key.hex()})" for one in found or appointed.read(self._state))
            what = f"{len(found)} were" if found else "nobody was"
            raise LocalMisuse(f"{what} appointed to admit members as {target}", f"name one of {names}")
        (one,) = found
        answer = {"name": one.name, "key": one.key.hex(), "known": not self._revocations.may_admit(one.key)}
        if confirmed and not answer["known"]:
            now = int(self._wall())
            order = signed(pen, m.Revocation(self._protocol.node.network.ident, one.key, one.name, now, since=now))
            answer |= await self._give(order)
        return answer

    async def _give(self, order: m.Revocation) -> dict[str, Any]:
        """Carry an order out; or hand it over, where others have to sign it first."""
        if not self._protocol.node.is_ordered(order):
            return {"order": to_file([order])}
        return {"links": await self._protocol.submit(c.Revoke(order))}

    async def _whom(self, target: str) -> tuple[str, Ident, bytes]:
        """Name, ident and key digest of a node, be it linked or only known by what it has written."""
        node = self._protocol.node
        for link in node.links:
            if target in (link.peer.name, link.ident.hex()):
                return link.peer.name, link.ident, link.peer.key
        owner = await self._protocol.submit(c.Resolve(target))
        if owner is None:
            raise unowned(self._protocol, target)
        key = owner.key or (await self._protocol.submit(c.Connect(owner.ident))).peer.key
        return owner.name, owner.ident, key


def _read(state: StateDirectory) -> list[m.Revocation]:
    stored = state.read_json(files.REVOCATIONS)
    try:
        texts = stored["orders"] if stored is not None else []
        return [from_text(text, m.Revocation) for text in texts]
    except (TypeError, KeyError, ValueError):
        raise StateError(
            f"{state.path / files.REVOCATIONS} makes no sense", "remove it; the node hears of revocations from the others"
        ) from None


def _digest(text: str) -> bytes:
    try:
        digest = bytes.fromhex(text)
    except ValueError:
        digest = b""
    if len(digest) != 32:
        raise LocalMisuse(f"{text!r} is no key's digest", "give 64 hex digits, as ipop revocations and the log show them")
    return digest
