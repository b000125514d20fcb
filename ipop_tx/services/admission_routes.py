"""What the control socket offers about admission: invitations, those who wait, the network's rules."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
from twisted.internet.defer import Deferred

from ipop_tx.errors import LocalMisuse
from ipop_tx.identity.certificates import MEMBER_LIFETIME, UNLIMITED, Limits, Rights
from ipop_tx.identity.invitation import MOST_USES, Wish
from ipop_tx.services.admission import AdmissionService
from ipop_tx.services.control import Route
from ipop_tx.services.rules import SECTION

INVITATION_SECONDS = 3600.0


class AdmissionRoutes:
    """Reads requests for `AdmissionService`."""

    def __init__(
        self, admission: AdmissionService, change: Callable[[str, bytes, str, str], Coroutine[Deferred[Any], Any, dict[str, Any]]]
    ) -> None:
        """`change` gives the network another section of settings; see `PolicyService.change`."""
        self._admission = admission
        self._change = change

    def routes(self) -> dict[str, Route]:
        """All of them."""
        return {
            "POST /invite": lambda arguments: Deferred.fromCoroutine(self._invite(arguments)),
            "GET /requests": lambda arguments: self._admission.waiting(),
            "POST /admit": lambda arguments: Deferred.fromCoroutine(self._admission.decide(_text(arguments, "target"), True)),
            "POST /deny": lambda arguments: Deferred.fromCoroutine(self._admission.decide(_text(arguments, "target"), False)),
            "GET /admission/limits": lambda arguments: _told(self._admission.limits()),
            "GET /admission": lambda arguments: msgspec.structs.asdict(self._admission.rules),
            "POST /admission": lambda arguments: Deferred.fromCoroutine(self._set_rules(arguments)),
        }

    async def _invite(self, arguments: dict[str, Any]) -> dict[str, Any]:
        seconds = arguments.get("expires_s") or INVITATION_SECONDS
        if not isinstance(seconds, (int, float)) or not 0 < seconds <= 366 * 86400:
            raise LocalMisuse("expires_s is not a number of seconds up to a year", "give for instance 3600")
        uses = arguments.get("uses") or 1
        if not isinstance(uses, int) or not 1 <= uses <= MOST_USES:
            raise LocalMisuse(f"uses is not a number from 1 to {MOST_USES}", "say how many machines may join")
        life = arguments.get("life_s") or int(MEMBER_LIFETIME)
        if not isinstance(life, int):
            raise LocalMisuse("life_s is not a whole number", "give seconds, for instance 86400")
        rights = Rights(_text(arguments, "address", True), _texts(arguments, "groups"), _texts(arguments, "routes"), life)
        limits = _limits(arguments.get("limits"))
        flags = bool(arguments.get("appoints")), bool(arguments.get("approval"))
        wish = Wish(_text(arguments, "name", True), flags[0], rights, uses, flags[1], limits)
        invitation, expires = await self._admission.invite(float(seconds), wish)
        return {"token": str(invitation), "expires": expires}

    async def _set_rules(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Change what is named, and leave the rest."""
        wishes = {key: arguments[key] for key in ("approval", "grace_s") if arguments.get(key) is not None}
        rules = self._admission.rules.changed(wishes)
        answer = await self._change(SECTION, msgspec.json.encode(rules), "change the rules of admission", "ipop admission set")
        return {**msgspec.structs.asdict(rules), **answer}


def _limits(wish: Any) -> Limits:
    """Limits as a JSON object whose fields may all be left out."""
    try:
        known = msgspec.convert({**_told(UNLIMITED), **(wish or {})}, type=_Limits)
        return Limits(known.names, known.groups, known.routes, known.addresses, known.life)
    except (TypeError, msgspec.ValidationError) as error:
        raise LocalMisuse("these limits make no sense", str(error)) from None


class _Limits(msgspec.Struct, forbid_unknown_fields=True):
    names: str
    groups: tuple[str, ...] | None
    routes: tuple[str, ...] | None
    addresses: bool
    life: int


def _told(limits: Limits) -> dict[str, Any]:
    return msgspec.structs.asdict(limits)


def _text(arguments: dict[str, Any], key: str, optional: bool = False) -> str:
    value = arguments.get(key) or ""
    if not isinstance(value, str):
        raise LocalMisuse(f"{key} is not a text")
    if not value and not optional:
        raise LocalMisuse(f"{key} is missing", "name a machine that waits, as ipop requests shows it")
    return value


def _texts(arguments: dict[str, Any], key: str) -> tuple[str, ...]:
    values = arguments.get(key) or []
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise LocalMisuse(f"{key} is not a list of texts")
    return tuple(values)
