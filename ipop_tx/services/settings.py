"""The network's settings on this node: kept on disk, changed at the authority. Their first section is the policy."""

from __future__ import annotations

import time
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

from twisted.application.service import Service

from ipop_tx.core import commands as c
from ipop_tx.core import events as e
from ipop_tx.errors import LocalMisuse, StateError
from ipop_tx.forwarding.plane import ForwardingPlane
from ipop_tx.forwarding.policing import Policing
from ipop_tx.identity import state as files
from ipop_tx.identity.keys import PrivateKey
from ipop_tx.identity.state import StateDirectory
from ipop_tx.log import Logger
from ipop_tx.services.chord import ChordProtocol
from ipop_tx.services.control import Route
from ipop_tx.services.orders import authority_key, from_text, signed, to_file, to_text
from ipop_tx.services.ping import unowned
from ipop_tx.values import Ident
from ipop_tx.wire import messages as m
from ipop_tx.wire.policy import Packet, Party, Policy, parse, parse_service

POLICY = "policy"


class PolicyService(Service):
    """Has the forwarding plane enforce the network's policy, and tells and changes it."""

    _log = Logger()
    name = "policy"

    def __init__(
        self,
        protocol: ChordProtocol,
        plane: ForwardingPlane,
        state: StateDirectory,
        key: Callable[[], PrivateKey | None],
        wall: Callable[[], float] = time.time,
    ) -> None:
        """Takes what is kept on disk.

        Raises `StateError` when the file is damaged: without it this node would let in what the network has forbidden.
        """
        self._protocol = protocol
        self._exchange = protocol.node.settings
        self._plane = plane
        self._state = state
        self._key = key
        self._wall = wall
        self._problem = self._unread = ""
        self._text = ""
        kept = _read(state)
        if kept is not None:
            if not self._exchange.restore(kept):
                raise StateError(f"{state.path / files.SETTINGS} is not signed by this network's authority", _REMOVE)
            self._enforce(kept)
        protocol.on(e.SettingsChanged, self._changed)

    # --- what counts -------------------------------------------------------------------------

    def _changed(self, event: e.SettingsChanged) -> None:
        self._enforce(event.settings)
        self._log.info("settings_changed version={version}", version=event.settings.version)
        try:
            self._state.write_json(files.SETTINGS, {"settings": to_text(event.settings)})
        except StateError as error:
            self._problem = f"the network's settings are not kept on this node: {error}"
            self._log.error("settings_unkept reason={reason}", reason=str(error))
        else:
            self._problem = ""

    def _enforce(self, settings: m.Settings) -> None:
        """What the policy's section says; one that this version cannot read denies all, since nobody knows what it forbids."""
        self._text = dict(settings.sections).get(POLICY, b"").decode("utf-8", "replace")
        self._unread = ""
        policy: Policy | None = None
        if self._text:
            try:
                policy = parse(self._text)
            except LocalMisuse as error:
                policy = Policy(False)
                self._unread = (
                    f"this node cannot read the network's policy and lets no traffic through ({error.sentence}): install a newer ipop"
                )
        if policy is None:
            self._plane.police(None)
        elif self._plane.policing is not None:
            self._plane.policing.change(policy)
        else:
            peer = self._protocol.node.peer
            self._plane.police(Policing(Party(peer.name, peer.groups), policy, self._protocol.clock))

    @property
    def policy(self) -> Policy | None:
        """What counts here; None: everything is allowed."""
        return self._plane.policing.policy if self._plane.policing is not None else None

    def health(self) -> list[str]:
        """What does not work, a sentence each."""
        return [sentence for sentence in (self._problem, self._unread) if sentence]

    # --- what may be asked -------------------------------------------------------------------

    def routes(self) -> dict[str, Route]:
        """What the control socket offers."""
        return {
            "GET /policy": lambda arguments: self.show(),
            "POST /policy": lambda arguments: self.set(arguments.get("text")),
            "POST /policy/test": self._asked,
        }

    def summary(self) -> dict[str, Any] | None:
        """For `ipop status`: None without a policy."""
        policing = self._plane.policing
        if policing is None:
            return None
        default = "allow" if policing.policy.allow else "deny"
        return {"version": self._exchange.newest.version, "default": default, "rules": len(policing.policy.rules), **policing.status()}

    def show(self) -> dict[str, Any]:
        """The policy's text and what came of it here."""
        return {"version": self._exchange.newest.version, "text": self._text, "enforced": self.summary()}

    async def set(self, text: Any) -> dict[str, Any]:
        """Give the network another policy; an empty text: none. Raises `LocalMisuse`."""
        if not isinstance(text, str):
            raise LocalMisuse("text is missing", "give the policy as TOML")
        if text:
            parse(text)
        return await self.change(POLICY, text.encode(), "change the policy", "ipop policy set")

    async def change(self, name: str, content: bytes, act: str, command: str) -> dict[str, Any]:
        """Give the network another section of settings; empty: none. `act` and `command` are for the error.

        Raises `LocalMisuse` where the authority's key is not.
        """
        key = authority_key(self._key(), act, command)
        current = self._exchange.current
        others = tuple(section for section in (current.sections if current else ()) if section[0] != name)
        sections = (*others, (name, content)) if content else others
        version = max(int(self._wall()), self._exchange.newest.version + 1)
        settings = signed(key, m.Settings(self._protocol.node.network.ident, version, sections))
        if not self._protocol.node.is_ordered(settings):
            return {"version": version, "order": to_file([settings])}
        await self._protocol.submit(c.AdoptSettings(settings))
        return {"version": version}

    async def _asked(self, arguments: dict[str, Any]) -> dict[str, Any]:
        source, target, service = (arguments.get(key) for key in ("source", "target", "service"))
        if not (isinstance(source, str) and isinstance(target, str) and isinstance(service, str)):
            raise LocalMisuse("source, target and service are texts", "ask for instance for laptop, server, tcp/22")
        return await self.judge(source, target, service)

    async def judge(self, source: str, target: str, service: str) -> dict[str, Any]:
        """Whether one node may begin something with another, and why. Raises `LocalMisuse` where there is no such node or service."""
        protocol, port, kind = parse_service(service)
        (one, one_address, one_ident), (other, other_address, other_ident) = await self._whom(source), await self._whom(target)
        policing = self._plane.policing
        rule = None
        allowed = True
        if policing is not None:
            rule = policing.policy.decide(one, other, Packet(protocol or 0, one_address, other_address, port, kind))
            allowed = rule is not None or policing.policy.allow
        ends = [{"name": one.name, "version": self._version_of(one_ident)}, {"name": other.name, "version": self._version_of(other_ident)}]
        name = rule.name if rule is not None else None
        default = None if policing is None else "allow" if policing.policy.allow else "deny"
        version = self._exchange.newest.version
        return {"allowed": allowed, "rule": name, "default": default, "version": version, "source": ends[0], "target": ends[1]}

    async def _whom(self, text: str) -> tuple[Party, bytes, Ident]:
        """A node by name or address: who it is, and the address that it uses."""
        node = self._protocol.node
        own, own_address = Party(node.peer.name, node.peer.groups), node.leases.own.address or bytes(4)
        if text in (node.peer.name, node.ident.hex()):
            return own, own_address, node.ident
        owner = await self._protocol.submit(c.Resolve(text))
        if owner is None:
            raise unowned(self._protocol, text)
        try:
            address = ip_address(text).packed
        except ValueError:
            address = owner.address or bytes(4)
        if owner.ident == node.ident:
            return own, address, node.ident
        peer = (await self._protocol.submit(c.Connect(owner.ident))).peer
        return Party(peer.name, peer.groups), address, owner.ident

    def _version_of(self, ident: Ident) -> int | None:
        """Which settings a node has, as far as it has said."""
        if ident == self._protocol.node.ident:
            return self._exchange.newest.version
        return self._exchange.of_peers.get(ident)


_REMOVE = "remove it; the node hears of the settings from the first member that it meets, and until then has no policy"


def _read(state: StateDirectory) -> m.Settings | None:
    stored = state.read_json(files.SETTINGS)
    if stored is None:
        return None
    try:
        return from_text(stored["settings"], m.Settings)
    except (TypeError, KeyError, ValueError):
        raise StateError(f"{state.path / files.SETTINGS} makes no sense", _REMOVE) from None
