"""Something done again and again, which one failure does not end: no descriptor, no rights, a router that is gone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.task import LoopingCall

from ipop_tx.errors import IpopError
from ipop_tx.log import Logger

_log = Logger()


def steadily(reactor: Any, work: Callable[[], None], what: str) -> LoopingCall:
    """A `LoopingCall` of `work`, to be started; what the system refuses it is told in the log and tried at the next turn."""

    def attempt() -> None:
        try:
            work()
        except (OSError, IpopError) as error:
            _log.warn("{what}_failed reason={reason}", what=what, reason=str(error))

    call = LoopingCall(attempt)
    call.clock = reactor
    return call
