"""The TAP: the interface through which the programs of this machine see the network."""

from __future__ import annotations

import errno
import os
import re
import socket
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from typing import Any

from twisted.application.service import Service
from twisted.internet.interfaces import IReadDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

from ipop_tx.errors import EnvironmentProblem, LocalMisuse, PermissionProblem
from ipop_tx.interfaces import IFramePort, IFrameReceiver
from ipop_tx.log import Logger
from ipop_tx.services import netlink
from ipop_tx.values import Ident, Network
from ipop_tx.wire.address import mac_of

FRAMES_PER_TURN = 64
"""How many frames one wake-up reads at most, so that timers and datagrams get their turn."""

_LARGEST = 1 << 16
_DEVICE = "/dev/net/tun"
_NAME = re.compile(r"[^\s/:%]{1,15}")
_LINK_LOCAL = b"\xfe\x80" + bytes(6)


class Counters:
    """What the TAP has carried and lost since its start; `rx` is what programs sent."""

    __slots__ = ("rx_bytes", "rx_frames", "tx_bytes", "tx_frames", "unwritten")

    def __init__(self) -> None:
        self.rx_frames = self.rx_bytes = self.tx_frames = self.tx_bytes = 0
        self.unwritten = 0
        """Frames that the kernel did not take: its queue was full or the interface down."""


@implementer(IFramePort, IReadDescriptor)
class TapService(Service):
    """One TAP interface with the addresses of this node; it exists only while the service runs.

    Either call `start(receiver)` and `stop()`, or set `receiver` and let a parent service do it. `configure` may be called
    at any time, also before the start.
    """

    name: str
    _log = Logger()

    def __init__(self, reactor: Any, name: str, mtu: int, network: Network, ident: Ident) -> None:
        self.name = name
        self.mtu = mtu
        self.mac = mac_of(ident)
        self.counters = Counters()
        self.receiver: IFrameReceiver | None = None
        self._reactor = reactor
        self._network = network
        self._link_local = IPv6Interface((_LINK_LOCAL + ident[:8], 64))
        self._device: Any = None
        self._fd = -1
        self._wanted: list[IPv4Interface | IPv6Interface] = []
        self._present: list[IPv4Interface | IPv6Interface] = []
        self._health: list[str] = []
        self._complained: set[int] = set()
        self._buffer = bytearray(_LARGEST)
        self._view = memoryview(self._buffer)

    def startService(self) -> None:
        """Open the interface for `receiver`."""
        if self.receiver is None:
            raise LocalMisuse("a TapService needs a receiver before it starts", "set its attribute `receiver`")
        self.start(self.receiver)
        Service.startService(self)

    def stopService(self) -> None:
        """Remove the interface."""
        Service.stopService(self)
        self.stop()

    def start(self, receiver: IFrameReceiver) -> None:
        """Make the interface, bring it up, deliver its frames to `receiver`.

        Raises `LocalMisuse` for a name that no interface can have, `PermissionProblem` without CAP_NET_ADMIN and
        `EnvironmentProblem` for anything else in the way.
        """
        self.receiver = receiver
        self._device = _opened(self.name)
        self._fd = self._device.fileno()
        os.set_blocking(self._fd, False)
        os.set_inheritable(self._fd, False)
        try:
            self._set_up()
        except BaseException:
            self.stop()
            raise
        self._reactor.addReader(self)

    def stop(self) -> None:
        """Close the device, whereupon the kernel removes the interface with its addresses and routes. Idempotent."""
        if self._device is not None:
            self._reactor.removeReader(self)
            self._device.close()
        self._device, self._fd, self._present, self._health = None, -1, [], []

    def configure(self, ipv4: IPv4Address | None, ipv6: IPv6Address) -> None:
        """Set the addresses of this node; call it again when they change. Raises like `start`."""
        self._wanted = [IPv6Interface((ipv6, self._network.prefix.prefixlen))]
        if ipv4 is not None:
            self._wanted.append(IPv4Interface((ipv4, self._network.pool.prefixlen)))
        if self._device is not None:
            self._apply()

    def health(self) -> list[str]:
        """Sentences about what does not work; empty when all is well."""
        return list(self._health)

    def _set_up(self) -> None:
        why_not = netlink.why_no_ipv6(self.name, self.mtu) or netlink.quieten_ipv6(self.name)
        if why_not is not None:
            self._health.append(why_not)
        netlink.set_up(self.name, self.mac, self.mtu)
        self._apply()

    def _apply(self) -> None:
        wanted = self._wanted
        if netlink.why_no_ipv6(self.name, self.mtu) is not None:
            wanted = [one for one in wanted if one.version == 4]
        elif wanted:
            # Neighbour discovery sends its unicast probes from a link-local address; without one, neighbours would go stale.
            wanted = [self._link_local, *wanted]
        add = [one for one in wanted if one not in self._present]
        remove = [one for one in self._present if one not in wanted]
        if add or remove:
            netlink.change_addresses(self.name, add, remove)
        self._present = wanted

    # frames from the kernel

    def doRead(self) -> None:
        """Deliver what waits, up to `FRAMES_PER_TURN` frames."""
        view, counters, into = self._view, self.counters, (self._buffer,)
        for _ in range(FRAMES_PER_TURN):
            if self._fd < 0:  # the receiver stopped us
                return
            try:
                size = os.readv(self._fd, into)
            except BlockingIOError:
                return
            except OSError as error:
                self._lost(os.strerror(error.errno or 0))
                return
            counters.rx_frames += 1
            counters.rx_bytes += size
            self._deliver(view[:size])

    def _deliver(self, frame: memoryview) -> None:
        assert self.receiver is not None
        try:
            self.receiver.frame_received(frame)
        except Exception:  # noqa: BLE001 - one fault must not cost the node its interface
            self._log.failure("frame_failed interface={interface}", interface=self.name)

    # frames to the kernel

    def write(self, frame: bytes | memoryview) -> None:
        """Hand one frame to the kernel, or count that it was not taken."""
        if self._fd < 0:
            return
        try:
            os.write(self._fd, frame)
        except OSError as error:
            self._unwritten(error)
        else:
            self.counters.tx_frames += 1
            self.counters.tx_bytes += len(frame)

    def _unwritten(self, error: OSError) -> None:
        self.counters.unwritten += 1
        if error.errno not in (errno.EAGAIN, errno.ENOBUFS, *self._complained):
            self._complained.add(error.errno or 0)
            self._log.warn("tap_write_failed interface={interface} error={error}", interface=self.name, error=str(error))

    # what the reactor asks

    def fileno(self) -> int:
        """The descriptor, -1 when it is closed."""
        return self._fd

    def logPrefix(self) -> str:
        """For the reactor's logs."""
        return f"tap:{self.name}"

    def connectionLost(self, reason: Failure) -> None:
        """The reactor gives up on the descriptor."""
        if self._device is not None:
            self._lost(reason.getErrorMessage())

    def _lost(self, why: str) -> None:
        self.stop()
        self._health = [f"the interface {self.name} was removed by somebody else: restart the daemon to make it again"]
        self._log.error("tap_lost interface={interface} error={error}", interface=self.name, error=why)


def _opened(name: str) -> Any:
    from pytun import IFF_NO_PI, IFF_TAP, IFF_TUN_EXCL, TunTapDevice

    if not _NAME.fullmatch(name) or len(name.encode()) > 15 or name in (".", ".."):
        raise LocalMisuse(f"{name!r} cannot be the name of an interface", "set tap.name to 1-15 characters without spaces, /, : and %")
    if name in {known for _, known in socket.if_nameindex()}:
        raise _taken(name)
    try:
        return TunTapDevice(name=name, flags=IFF_TAP | IFF_NO_PI | IFF_TUN_EXCL)
    except OSError as error:
        raise _problem(error, name) from error


def _taken(name: str) -> EnvironmentProblem:
    return EnvironmentProblem(f"an interface named {name} exists already", "set tap.name to another name or remove the interface")


def _problem(error: OSError, name: str) -> EnvironmentProblem:
    match error.errno:
        case errno.EPERM | errno.EACCES:
            return PermissionProblem(f"the interface {name} may not be made", "run as root or with the capability CAP_NET_ADMIN")
        case errno.ENOENT | errno.ENODEV | errno.ENXIO:
            return EnvironmentProblem(f"{_DEVICE} is missing", "load the kernel module: modprobe tun (in a container: allow the device)")
        case errno.EBUSY | errno.EEXIST:
            return _taken(name)
        case _:
            return EnvironmentProblem(f"the interface {name} cannot be made ({os.strerror(error.errno or 0)})")
