"""What a service manager is told, and which rights a configuration takes."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from pyprctl import Cap
from twisted.internet.task import Clock
from twisted.trial.unittest import TestCase

from ipop_tx.config import parse_config
from ipop_tx.services.privileges import needed
from ipop_tx.services.servicemanager import TELL_EVERY, ServiceManager


class Notifications(TestCase):
    """A socket of our own plays the manager."""

    def setUp(self) -> None:
        self.path = f"/tmp/ipop-notify-{os.getpid()}-{id(self)}"
        self.manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.manager.bind(self.path)
        self.manager.setblocking(False)
        self.addCleanup(os.unlink, self.path)
        self.addCleanup(self.manager.close)
        self.clock = Clock()

    def heard(self) -> list[str]:
        found = []
        while True:
            try:
                found.append(self.manager.recv(4096).decode())
            except BlockingIOError:
                return found

    def service(self, **environment: str) -> ServiceManager:
        return ServiceManager(self.clock, lambda: "well", {"NOTIFY_SOCKET": self.path, **environment})

    def test_a_life(self) -> None:
        service = self.service(WATCHDOG_USEC="9000000")
        service.startService()
        self.assertEqual(self.heard(), ["READY=1", "WATCHDOG=1\nSTATUS=well"])
        self.clock.pump([1] * 6)
        self.assertEqual(self.heard(), ["WATCHDOG=1\nSTATUS=well"] * 2)
        service.reloading()
        service.reloaded()
        begun, ended = self.heard()
        self.assertRegex(begun, r"^RELOADING=1\nMONOTONIC_USEC=\d+$")
        self.assertEqual(ended, "READY=1\nSTATUS=well")
        service.stopService()
        self.clock.advance(60)
        self.assertEqual(self.heard(), ["STOPPING=1"])

    def test_interval(self) -> None:
        """Only a watchdog of this very process counts."""
        me, other = str(os.getpid()), "1"
        for usec, pid, every in [("9000000", me, 3.0), ("9000000", other, TELL_EVERY), ("0", me, TELL_EVERY), ("x", me, TELL_EVERY)]:
            self.assertEqual(self.service(WATCHDOG_USEC=usec, WATCHDOG_PID=pid).every, every)
        self.assertEqual(self.service(WATCHDOG_USEC="900000000").every, TELL_EVERY)

    def test_abstract_socket(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(f"\0{self.path}")
            manager.setblocking(False)
            ServiceManager(self.clock, lambda: "", {"NOTIFY_SOCKET": f"@{self.path}"}).tell("READY=1")
            self.assertEqual(manager.recv(64), b"READY=1")

    def test_a_condition_that_cannot_be_told(self) -> None:
        """The watchdog hears of the node all the same."""
        service = ServiceManager(self.clock, lambda: str(1 / 0), {"NOTIFY_SOCKET": self.path})
        service.startService()
        self.assertEqual(self.heard()[1], "WATCHDOG=1\nSTATUS=the log says what is wrong")
        self.clock.advance(TELL_EVERY)
        self.assertEqual(len(self.heard()), 1)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)

    def test_nobody_to_tell(self) -> None:
        """No socket, one that nobody reads, one that is nonsense: the node lives on."""
        for environment in ({}, {"NOTIFY_SOCKET": "/nowhere/at/all"}, {"NOTIFY_SOCKET": "nonsense"}):
            service = ServiceManager(self.clock, lambda: "", environment)
            service.startService()
            service.stopService()


class Needed(TestCase):
    """Capabilities by configuration."""

    def of(self, text: str) -> set[str]:
        return {one.name for one in needed(parse_config(f'[node]\nstate = "s"\n{text}', Path("node.toml")))}

    def test_needed(self) -> None:
        for text, wanted in [
            ("", {"NET_ADMIN"}),
            ("[tap]\nenabled = false", set()),
            ('[listen]\nudp = "0.0.0.0:443"', {"NET_ADMIN", "NET_BIND_SERVICE"}),
            ("[listen.tls]\nport = 443", {"NET_ADMIN", "NET_BIND_SERVICE"}),
            ("[listen.tls]\nport = 0", {"NET_ADMIN"}),
            ("[dhcp]\nguests = 1", {"NET_ADMIN", "NET_BIND_SERVICE"}),
            ('[dns]\nlisten = "127.0.0.1:53"', {"NET_ADMIN", "NET_BIND_SERVICE"}),
            ('[metrics]\nlisten = "127.0.0.1:9477"\n[tap]\nenabled = false', set()),
        ]:
            self.assertEqual(self.of(text), wanted, text)
        self.assertTrue({Cap[name].is_supported() for name in ("NET_ADMIN", "NET_BIND_SERVICE")} == {True})
