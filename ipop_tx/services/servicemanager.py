"""What the service manager is told: sd_notify(3), over the datagram socket that it names in the environment."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any

from twisted.application.service import Service
from twisted.internet.task import LoopingCall

from ipop_tx.log import Logger

TELL_EVERY = 10.0
"""Seconds between lines about how the node is, unless the watchdog wants signs of life more often."""

VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
"""Of the environment, by which the manager says where and how often it listens."""

_log = Logger()


class ServiceManager(Service):
    """Tells whoever supervises this process that it is ready, how it is, and that the reactor turns; nobody, where there is no socket.

    `condition` gives a line for humans. Nothing that goes wrong here stops the node.
    """

    name = "servicemanager"

    def __init__(self, reactor: Any, condition: Callable[[], str], environment: Mapping[str, str]) -> None:
        self._condition = condition
        self._address = _address(environment.get("NOTIFY_SOCKET", ""))
        self._look = LoopingCall(self._tell_condition)
        self._look.clock = reactor
        self.every = _interval(environment)
        """Seconds between signs of life."""

    def startService(self) -> None:
        """Everything is ready: the ports are bound, and the TAP is there."""
        super().startService()
        if self._address:
            self.tell("READY=1")
            self._look.start(self.every)

    def stopService(self) -> None:
        """The end has begun."""
        super().stopService()
        if self._look.running:
            self._look.stop()
        self.tell("STOPPING=1")

    def reloading(self) -> None:
        """The configuration is read anew; `reloaded` must follow."""
        self.tell("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def reloaded(self) -> None:
        """It was, or was refused."""
        self.tell("READY=1", f"STATUS={self._line()}")

    def _tell_condition(self) -> None:
        self.tell("WATCHDOG=1", f"STATUS={self._line()}")

    def _line(self) -> str:
        try:
            return self._condition()
        except Exception:  # noqa: BLE001 - a fault in the telling is none for which the watchdog should end the node
            _log.failure("condition_unknown")
            return "the log says what is wrong"

    def tell(self, *lines: str) -> None:
        """Send one message, if anybody wants any."""
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
                out.setblocking(False)
                out.sendto("\n".join(lines).encode(), self._address)
        except OSError as error:
            _log.debug("service_manager_deaf error={error}", error=str(error))


def _address(named: str) -> str:
    """A path, or a name of the abstract kind, which begins with @."""
    return "\0" + named[1:] if named.startswith("@") else named if named.startswith("/") else ""


def _interval(environment: Mapping[str, str]) -> float:
    """Thrice in the time after which the watchdog bites, if it is ours (sd_watchdog_enabled(3))."""
    given, whose = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", "")
    if not given.isdecimal() or int(given) == 0 or whose not in ("", str(os.getpid())):
        return TELL_EVERY
    return min(TELL_EVERY, int(given) / 3e6)
