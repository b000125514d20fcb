"""The process around one node: what `twistd ipop` runs. Under another application there is only the node, and none of this."""

from __future__ import annotations

import os
import signal
from typing import Any

from twisted.application.service import MultiService

from ipop_tx.app import Node
from ipop_tx.config import Config
from ipop_tx.errors import IpopError
from ipop_tx.log import Logger, set_level
from ipop_tx.services.privileges import beyond, drop
from ipop_tx.services.servicemanager import VARIABLES, ServiceManager


class Daemon(MultiService):
    """Gives up rights before the node starts, tells the service manager how it is, reads the configuration anew on SIGHUP.

    Building it touches nothing. Raises what `Node` and `privileges.drop` raise.
    """

    _log = Logger()

    def __init__(self, config: Config, reactor: Any = None) -> None:
        super().__init__()
        if reactor is None:
            from twisted.internet import reactor
        set_level(config.log.level)
        self._reactor = reactor
        self._config = config
        self.node = Node(config, reactor)
        self.node.ends_process = True
        environment = {name: os.environ.pop(name) for name in VARIABLES if name in os.environ}  # not for programs that we start
        self.manager = ServiceManager(reactor, self.node.condition, environment)
        self.node.reloading.begun, self.node.reloading.ended = self.manager.reloading, self.manager.reloaded
        self.node.reloading.beyond = beyond
        for service in (self.node, self.manager):  # the manager is told that we stop before we do: services stop in the reverse order
            service.setServiceParent(self)

    def startService(self) -> None:
        """As root, for the last time; then the node."""
        drop(self._config)
        signal.signal(signal.SIGHUP, lambda number, frame: self._reactor.callFromThread(self._hang_up))
        super().startService()

    def _hang_up(self) -> None:
        self.node.reloading.reload().addErrback(self._refused)

    def _refused(self, failure: Any) -> None:
        failure.trap(IpopError)  # the log and the node's health have it already
