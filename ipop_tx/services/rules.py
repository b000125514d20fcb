"""The network's rules of admission: a section of its settings, so everybody has the same."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from ipop_tx.core.links.settings import SettingsExchange
from ipop_tx.errors import LocalMisuse

SECTION = "admission"
DAY = 86400


class Rules(msgspec.Struct, frozen=True, forbid_unknown_fields=False):
    """What holds for all who join, or come back late."""

    approval: bool = False
    """Whether each newcomer must be let in by hand."""
    grace_s: Annotated[int, msgspec.Meta(ge=0, le=3660 * DAY)] = 30 * DAY
    """Seconds for which a certificate that has ended can still be renewed."""

    @classmethod
    def of(cls, settings: SettingsExchange) -> Rules:
        """The rules that hold now. What this version cannot read is taken for the strictest."""
        section = dict(settings.current.sections if settings.current else ()).get(SECTION)
        if section is None:
            return cls()
        try:
            return msgspec.json.decode(section, type=cls)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return cls(approval=True, grace_s=0)

    def changed(self, wishes: dict[str, Any]) -> Rules:
        """These rules, but for what is wished otherwise. Raises `LocalMisuse`."""
        try:
            return msgspec.convert({**msgspec.structs.asdict(self), **wishes}, type=Rules)
        except msgspec.ValidationError as error:
            raise LocalMisuse("these rules of admission make no sense", str(error)) from None
