"""The TAP: the interface through which the programs of this machine see the network."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from typing import Any

from twisted.application.service import Service
from twisted.internet.interfaces import IReadDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

from ipop_tx.errors import EnvironmentProblem, IpopError, LocalMisuse
from ipop_tx.forwarding import offload
from ipop_tx.interfaces import IFramePort, IFrameReceiver
from ipop_tx.log import Logger
from ipop_tx.services import netlink, tun
from ipop_tx.services.shield import Shield
from ipop_tx.transport.interfaces import interface_addresses
from ipop_tx.values import Ident, Network
from ipop_tx.wire.address import mac_of

_HEAD = offload.HEAD.size
AGAIN, RARELY = 1.0, 30.0
"""Seconds until an interface that was taken away is made again, and at most between further attempts."""
_LINK_LOCAL = b"\xfe\x80" + bytes(6)


class Counters:
    """What the TAP has carried and lost since its start; `rx` is what programs sent. A super-frame counts as one frame."""

    __slots__ = ("rx_bytes", "rx_frames", "tx_bytes", "tx_frames", "unwritten")

    def __init__(self) -> None:
        self.rx_frames = self.rx_bytes = self.tx_frames = self.tx_bytes = 0
        self.unwritten = 0
        """Frames that the kernel did not take: its queue was full or the interface down."""


@implementer(IFramePort, IReadDescriptor)
class TapService(Service):
    """One TAP interface with the addresses of this node; it exists only while the service runs.

    With a `bridge`, which must be there, the interface is a port of it, and the bridge has the addresses: a port cannot use any.

    Either call `start(receiver)` and `stop()`, or set `receiver` and let a parent service do it. `configure` may be called
    at any time, also before the start.

    `offloads` names the work that the kernel leaves to the other end while the service runs, out of `offload.OFFLOADS`. What is
    missing costs time and nothing else: `readv` gives and `writev` takes frames of the same form whatever the kernel can do.
    """

    name: str
    _log = Logger()

    def __init__(
        self, reactor: Any, name: str, mtu: int, network: Network, ident: Ident, bridge: str | None = None, shielded: bool = True
    ) -> None:
        self.name = name
        self.bridge = bridge
        self.addressed = bridge or name
        """The interface that has the addresses."""
        self.mtu = mtu
        self.mac = mac_of(ident)
        self.counters = Counters()
        self.receiver: IFrameReceiver | None = None
        self.made_again: Callable[[], object] = lambda: None
        """Called after the interface was taken away and is there again, with its addresses."""
        self.offloads: tuple[str, ...] = ()
        self._reactor = reactor
        self._network = network
        self._link_local = IPv6Interface((_LINK_LOCAL + ident[:8], 64))
        self._shield = Shield([name, *filter(None, [bridge])]) if shielded else None
        self._device: Any = None
        self._fd = -1
        self._wanted: list[IPv4Interface | IPv6Interface] = []
        self._present: list[IPv4Interface | IPv6Interface] = []
        self._health: list[str] = []
        self._complained: set[int] = set()
        self._paused = False
        self._again: Any = None
        """The call that makes the interface again."""
        self._heads = True
        self._refused: frozenset[int] = frozenset()
        self._readv: Callable[[int, Any], int] = tun.readv_plain
        self._writev: Callable[[int, Any], int] = os.writev

    def startService(self) -> None:
        """Open the interface for `receiver`."""
        if self.receiver is None:
            raise LocalMisuse("a TapService needs a receiver before it starts", "set its attribute `receiver`")
        self.start(self.receiver)
        Service.startService(self)

    def stopService(self) -> None:
        """Remove the interface."""
        Service.stopService(self)
        if self._again is not None:
            self._again.cancel()
            self._again = None
        self.stop()

    def start(self, receiver: IFrameReceiver) -> None:
        """Make the interface, bring it up, tell `receiver` of its frames. Raises like `tun.opened`, or when the bridge is missing."""
        self.receiver = receiver
        if self.bridge is not None:
            netlink.bridge_index(self.bridge)
        self._device, self._heads = tun.opened(self.name)
        self._fd = self._device.fileno()
        try:
            self._choose_offloads()
            self._set_up()
        except BaseException:
            self.stop()
            raise
        if not self._paused:
            self._reactor.addReader(self)

    def stop(self) -> None:
        """Close the device, whereupon the kernel removes the interface with its addresses and routes. Idempotent."""
        if self._device is not None:
            self._reactor.removeReader(self)
            self._device.close()
            self._clear_bridge()
        if self._shield is not None:
            self._shield.lift()
        self._device, self._fd, self._present, self._health, self.offloads = None, -1, [], [], ()

    def configure(self, ipv4: IPv4Address | None, ipv6: IPv6Address) -> None:
        """Set the addresses of this node; call it again when they change. Raises like `start`."""
        self._wanted = [IPv6Interface((ipv6, self._network.prefix.prefixlen))]
        if ipv4 is not None:
            self._wanted.append(IPv4Interface((ipv4, self._network.pool.prefixlen)))
        if self._device is not None:
            self._apply()

    def health(self) -> list[str]:
        """Sentences about what does not work; empty when all is well."""
        why_not = netlink.why_bridge_fails(self.bridge, self.mtu) if self.bridge is not None and self._device is not None else None
        open_to = self._shield.health() if self._shield is not None else []
        return [*self._health, *filter(None, [why_not]), *open_to]

    def _choose_offloads(self) -> None:
        """While the interface is down."""
        self._refused = tun.refused_types(self._fd) if self._heads else frozenset()
        self.offloads = tun.in_both_directions(tun.set_offloads(self._fd), self._refused) if self._heads else ()
        why_slow = tun.why_slow(self.name, self.offloads)
        if why_slow is not None:
            self._health.append(why_slow)
        self._readv = tun.Reader().readv if self._heads else tun.readv_plain
        self._writev = os.writev if self._heads and not self._refused else self._write_less

    def _set_up(self) -> None:
        why_not = netlink.why_no_ipv6(self.addressed, self.mtu) or netlink.quieten_ipv6(self.name)
        if why_not is not None:
            self._health.append(why_not)
        netlink.set_up(self.name, self.mac, self.mtu, offload.GSO_MAX)
        if self.bridge is not None:
            netlink.enter_bridge(self.name, self.bridge)
            self._present = self._left_over()
        self._apply()

    def _left_over(self) -> list[IPv4Interface | IPv6Interface]:
        """Addresses of the network that the bridge has of an earlier life, which was killed."""
        ours = self._network.pool, self._network.prefix
        every = [one.address for one in interface_addresses() if one.interface == self.bridge]
        return [one for one in every if one == self._link_local or one.network in ours]

    def _clear_bridge(self) -> None:
        """Take our addresses off the bridge, which stays."""
        if self.bridge is not None and self._present:
            try:
                netlink.change_addresses(self.bridge, [], self._present)
            except EnvironmentProblem as error:
                self._log.warn("bridge_not_cleared bridge={bridge} reason={reason}", bridge=self.bridge, reason=str(error))

    def _apply(self) -> None:
        wanted = self._wanted
        if self._shield is not None:
            self._shield.protect(one.ip for one in wanted)
        if netlink.why_no_ipv6(self.addressed, self.mtu) is not None:
            wanted = [one for one in wanted if one.version == 4]
        elif wanted:
            # Neighbour discovery sends its unicast probes from a link-local address; without one, neighbours would go stale.
            wanted = [self._link_local, *wanted]
        add = [one for one in wanted if one not in self._present]
        remove = [one for one in self._present if one not in wanted]
        if add or remove:
            netlink.change_addresses(self.addressed, add, remove)
        self._present = wanted

    # frames from the kernel

    def doRead(self) -> None:
        """Tell the receiver."""
        assert self.receiver is not None
        seen = self.counters.rx_frames
        try:
            self.receiver.frames_waiting()
        except Exception:  # noqa: BLE001 - one fault must not cost the node its interface
            self._log.failure("frame_failed interface={interface}", interface=self.name)
            if self.counters.rx_frames == seen:
                self.readv([bytearray(_HEAD)])  # else the same frame would be at fault for ever

    def readv(self, buffers: Sequence[bytearray | memoryview]) -> int:
        """Fill the next frame, offload head first, into `buffers`; what finds no room in them is lost. 0 when no frame waits."""
        try:
            size = self._readv(self._fd, buffers)
        except OSError as error:
            if self._fd >= 0:
                self._lost(os.strerror(error.errno or 0))
            return 0
        if not size:
            return 0
        counters = self.counters
        counters.rx_frames += 1
        counters.rx_bytes += size - _HEAD
        return size

    def pause(self) -> None:
        """Tell the receiver nothing until `resume`, also over a stop and a start. Idempotent."""
        self._paused = True
        if self._device is not None:
            self._reactor.removeReader(self)

    def resume(self) -> None:
        """Go on after `pause`. Idempotent."""
        self._paused = False
        if self._device is not None:
            self._reactor.addReader(self)

    # frames to the kernel

    def writev(self, buffers: Sequence[bytes | bytearray | memoryview]) -> None:
        """Hand one frame, offload head first, to the kernel, or count that it was not taken."""
        try:
            size = self._writev(self._fd, buffers)
        except OSError as error:
            if self._fd >= 0:
                self._unwritten(error, buffers)
            return
        counters = self.counters
        counters.tx_frames += 1
        counters.tx_bytes += size - _HEAD

    def _write_less(self, fd: int, buffers: Sequence[bytes | bytearray | memoryview]) -> int:
        """As `os.writev`, for a kernel that does not take all that we have."""
        frame = b"".join(buffers)
        if self._heads and offload.type_of(frame) not in self._refused:
            return os.write(fd, frame)
        return tun.write_cut(fd, frame, self._heads)

    def _unwritten(self, error: OSError, buffers: Sequence[bytes | bytearray | memoryview]) -> None:
        if error.errno == errno.EINVAL and self._writev != self._write_less and self._cut_instead(b"".join(buffers)):
            return
        self.counters.unwritten += 1
        if error.errno not in (errno.EAGAIN, errno.ENOBUFS, *self._complained):
            self._complained.add(error.errno or 0)
            self._log.warn("tap_write_failed interface={interface} error={error}", interface=self.name, error=str(error))

    def _cut_instead(self, frame: bytes) -> bool:
        """Write a super-frame that the kernel refuses though it knows the type. A peer may have made it so: draw no conclusions."""
        if offload.type_of(frame) == offload.GSO_NONE:
            return False
        try:
            size = tun.write_cut(self._fd, frame, self._heads)
        except OSError:
            return False
        self.counters.tx_frames += 1
        self.counters.tx_bytes += size - _HEAD
        return True

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
        self._health = [f"the interface {self.name} was removed by somebody else: it is made again in {AGAIN:.0f} s"]
        self._log.error("tap_lost interface={interface} error={error}", interface=self.name, error=why)
        if self.running:
            self._again = self._reactor.callLater(AGAIN, self._make_again, AGAIN)

    def _make_again(self, waited: float) -> None:
        """Where that fails, try later: whoever took it away may be about to put it back."""
        assert self.receiver is not None
        self._again, self._health = None, []
        try:
            self.start(self.receiver)
        except IpopError as error:
            self._health = [f"the interface {self.name} was removed by somebody else, and cannot be made again: {error}"]
            waited = min(RARELY, 2 * waited)
            self._again = self._reactor.callLater(waited, self._make_again, waited)
        else:
            self._log.info("tap_made_again interface={interface}", interface=self.name)
            self.made_again()
