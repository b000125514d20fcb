"""UDP: one socket, IPv4 or dual stack, which reads and writes whole runs of datagrams where the kernel can (UDP_GRO, UDP_SEGMENT)."""

from __future__ import annotations

import errno
import os
import socket
from collections import deque
from collections.abc import Iterable, Sequence
from ipaddress import ip_address
from typing import Any

from twisted.internet.interfaces import IDelayedCall, IReadWriteDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

from ipop_tx.errors import EnvironmentProblem, PermissionProblem
from ipop_tx.interfaces import IDatagramReceiver, ITransport
from ipop_tx.log import Logger
from ipop_tx.transport.interfaces import interface_addresses
from ipop_tx.transport.runs import (
    ANCILLARY_BYTES,
    LEAST_SIZE,
    MOST_SIZES,
    UDP_GRO,
    UDP_SEGMENT,
    USUAL_SIZE,
    Scatter,
    segment_ancillary,
    segment_size,
)
from ipop_tx.values import Endpoint

RUNS_PER_TURN = 16
"""How many runs one wake-up reads at most, so that timers and frames get their turn."""
BACKLOG = 256
"""Runs that wait in us for a full socket; more are dropped."""
SOCKET_BUFFER = 8 << 20
"""Wanted size of the kernel's buffers, in bytes."""
RETRY_AFTER = 1.0
"""Seconds for which reading pauses after an error of the socket itself."""
CACHED_PEERS = 4096

_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33  # Linux; not in the socket module, as the next ones
_IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE = 10, 23, 3
_PATH_ERRORS = "ECONNREFUSED ECONNRESET EHOSTUNREACH ENETUNREACH EHOSTDOWN ENETDOWN ETIMEDOUT EPERM EACCES EADDRNOTAVAIL"
_OF_THE_PATH = frozenset(getattr(errno, name) for name in _PATH_ERRORS.split())
_FULL = frozenset((errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM))
_NO_OFFLOAD = frozenset((errno.EIO, errno.EINVAL, errno.ENOPROTOOPT, errno.EOPNOTSUPP))
_MAPPED = "::ffff:"


class Counters:
    """What a transport has carried and lost since its start."""

    __slots__ = ("full", "rx_bytes", "rx_datagrams", "too_big", "tx_bytes", "tx_datagrams", "unsent")

    def __init__(self) -> None:
        self.rx_datagrams = self.rx_bytes = self.tx_datagrams = self.tx_bytes = 0
        self.full = 0
        """Not sent, because the kernel's queue was full."""
        self.too_big = 0
        """Not sent, because larger than the path's MTU or than UDP can carry."""
        self.unsent = 0
        """Not sent for any other reason: no route, a firewall, an address of the wrong family."""


@implementer(ITransport, IReadWriteDescriptor)
class UdpTransport:
    """Datagrams over one UDP socket. `host` "::" takes IPv4 too; its IPv4 peers appear as plain IPv4 endpoints.

    `ignore` holds names of interfaces whose addresses are never offered to peers: our own TAP.
    """

    scheme = "udp"
    _log = Logger()

    def __init__(self, reactor: Any, host: str, port: int, ignore: Iterable[str] = ()) -> None:
        self.host = host
        self.port = port
        """The port that is bound; after `start` never 0."""
        self.ignore = set(ignore)
        self.counters = Counters()
        self._reactor = reactor
        self._wanted_port = port
        self._socket: socket.socket | None = None
        self._receiver: IDatagramReceiver | None = None
        self._resume: IDelayedCall | None = None
        self._scatter = Scatter(USUAL_SIZE)
        self._scatters = {USUAL_SIZE: self._scatter}
        self._backlog: deque[tuple[Any, bytes, int]] = deque()
        self.offloads: tuple[str, ...] = ()
        """What the kernel does for us: "segment" cuts runs, "gro" joins them."""
        self._segment: dict[int, list[tuple[int, int, bytes]]] = {}
        self._health: list[str] = []
        self._seen: dict[Any, Endpoint] = {}
        self._targets: dict[Endpoint, Any] = {}
        self._complained: set[int] = set()

    def start(self, receiver: IDatagramReceiver) -> None:
        """Bind. Raises `EnvironmentProblem` when the address is taken or not ours, `PermissionProblem` for a port below 1024."""
        self._socket = self._bind()
        self.port = self._socket.getsockname()[1]
        self._receiver = receiver
        self.offloads, self._health = _offloads(self._socket)
        self._reactor.addReader(self)

    def stop(self) -> None:
        """Close the socket."""
        if self._resume is not None:
            self._resume.cancel()
            self._resume = None
        if self._socket is not None:
            self._reactor.removeReader(self)
            self._reactor.removeWriter(self)
            self._socket.close()
            self._socket = None
        self._backlog.clear()
        self._seen.clear()
        self._targets.clear()

    # in

    def doRead(self) -> None:
        """Deliver what waits, up to `RUNS_PER_TURN` runs."""
        counters, seen = self.counters, self._seen
        receiver = self._receiver
        assert receiver is not None
        for _ in range(RUNS_PER_TURN):
            if self._socket is None:  # the receiver stopped us
                return
            scatter = self._scatter
            try:
                total, ancillary, _, sockaddr = self._socket.recvmsg_into(scatter.buffers, ANCILLARY_BYTES)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno in _OF_THE_PATH or error.errno == errno.EINTR:
                    continue
                self._pause(error)
                break
            counters.rx_datagrams += 1
            counters.rx_bytes += total
            size = segment_size(ancillary, total) if ancillary else total
            endpoint = seen.get(sockaddr) or self._endpoint(sockaddr)
            try:
                if size == scatter.size or size >= total <= scatter.size:
                    receiver.run_received(endpoint, scatter.heads, scatter.bodies, size, total)
                else:
                    self._deliver_otherwise(endpoint, size, total)
            except Exception:  # noqa: BLE001 - one fault must not cost the node its socket
                self._log.failure("datagram_failed endpoint={endpoint}", endpoint=endpoint)
        receiver.burst_ended()

    def _deliver_otherwise(self, endpoint: Endpoint, size: int, total: int) -> None:
        """Datagrams of another size than we were prepared for: sort them anew, and be prepared for the next ones if they were long."""
        assert self._receiver is not None
        flat = self._scatter.flat(total)
        if size >= LEAST_SIZE:
            scatter = self._scatters.get(size)
            if scatter is None:
                if len(self._scatters) >= MOST_SIZES:
                    self._scatters.clear()
                scatter = self._scatters[size] = Scatter(size)
            self._scatter = scatter
            scatter.fill(flat)
            self._receiver.run_received(endpoint, scatter.heads, scatter.bodies, size, total)
        else:
            for at in range(0, total, size):
                self._receiver.datagram_received(endpoint, flat[at : at + size])

    def _endpoint(self, sockaddr: Any) -> Endpoint:
        host, port = sockaddr[:2]
        endpoint = Endpoint(self.scheme, host.removeprefix(_MAPPED) if "." in host else host, port)
        if len(self._seen) >= CACHED_PEERS:
            self._seen.clear()
            self._targets.clear()
        self._seen[sockaddr] = endpoint
        self._targets[endpoint] = sockaddr  # keeps the zone of a link-local peer, which an endpoint cannot say
        return endpoint

    def _pause(self, error: OSError) -> None:
        """The socket stays readable while it has an error: without a pause the reactor would spin."""
        self._complain("receive", error)
        self._reactor.removeReader(self)
        self._resume = self._reactor.callLater(RETRY_AFTER, self._read_again)

    def _read_again(self) -> None:
        self._resume = None
        self._reactor.addReader(self)

    # out

    def write(self, endpoint: Endpoint, datagram: bytes | memoryview) -> None:
        """Send one datagram, or count why not."""
        if self._socket is None:
            return
        counters = self.counters
        try:
            self._socket.sendto(datagram, self._targets.get(endpoint) or self._target(endpoint))
        except OSError as error:
            self._unsent(error)
        else:
            counters.tx_datagrams += 1
            counters.tx_bytes += len(datagram)

    def write_run(self, endpoint: Endpoint, buffers: Sequence[bytes | memoryview], size: int, total: int) -> bool:
        """Send a run of datagrams, in one call where the kernel can cut it; False when it waits for a full socket."""
        if self._socket is None:
            return True
        try:
            target = self._targets.get(endpoint) or self._target(endpoint)
            if self._backlog:
                return self._wait(target, buffers, size)
            if total <= size:
                self._socket.sendmsg(buffers, (), 0, target)
            elif "segment" in self.offloads:
                self._socket.sendmsg(buffers, self._segment.get(size) or self._cut(size), 0, target)
            else:
                return self._write_each(target, b"".join(buffers), size)
        except OSError as error:
            return self._run_unsent(error, endpoint, buffers, size, total)
        self.counters.tx_datagrams += 1
        self.counters.tx_bytes += total
        return True

    def _cut(self, size: int) -> list[tuple[int, int, bytes]]:
        if len(self._segment) >= MOST_SIZES:
            self._segment.clear()
        return self._segment.setdefault(size, segment_ancillary(size))

    def _run_unsent(self, error: OSError, endpoint: Endpoint, buffers: Sequence[bytes | memoryview], size: int, total: int) -> bool:
        if error.errno in _FULL:
            return self._wait(self._targets[endpoint], buffers, size)
        if error.errno in _NO_OFFLOAD and total > size and "segment" in self.offloads:
            self.offloads = tuple(one for one in self.offloads if one != "segment")
            self._log.warn("udp_segment_refused port={port} error={error}", port=self.port, error=str(error))
            return self.write_run(endpoint, buffers, size, total)
        self._unsent(error)
        return True

    def _wait(self, target: Any, buffers: Sequence[bytes | memoryview], size: int) -> bool:
        """Keep a run until the socket takes it. Whoever goes on writing after all loses what is beyond the bound."""
        if len(self._backlog) >= BACKLOG:
            self.counters.full += 1
            return False
        if not self._backlog:
            self._reactor.addWriter(self)
        self._backlog.append((target, b"".join(buffers), size))
        return False

    def _write_each(self, target: Any, run: bytes, size: int) -> bool:
        """Datagram by datagram, for a kernel that cannot cut."""
        assert self._socket is not None
        view = memoryview(run)
        for at in range(0, len(run), size):
            try:
                self._socket.sendto(view[at : at + size], target)
            except OSError as error:
                if error.errno in _FULL:
                    return self._wait(target, (view[at:],), size)
                self._unsent(error)
            else:
                self.counters.tx_datagrams += 1
                self.counters.tx_bytes += min(size, len(run) - at)
        return True

    def doWrite(self) -> None:
        """The socket takes more: send what waited, then tell the receiver."""
        while self._backlog and self._socket is not None:
            target, run, size = self._backlog[0]
            whole = len(run) <= size
            if not whole and "segment" not in self.offloads:
                self._backlog.popleft()
                rest, self._backlog = self._backlog, deque()
                if not self._write_each(target, run, size):
                    self._backlog.extend(rest)
                    return
                self._backlog = rest
                continue
            try:
                self._socket.sendmsg((run,), () if whole else self._cut(size), 0, target)
            except OSError as error:
                if error.errno in _FULL:
                    return
                self._unsent(error)
            else:
                self.counters.tx_datagrams += 1
                self.counters.tx_bytes += len(run)
            self._backlog.popleft()
        self._reactor.removeWriter(self)
        if self._receiver is not None:
            self._receiver.drained()

    def _target(self, endpoint: Endpoint) -> Any:
        """The sockaddr of an endpoint. Raises `OSError` when this socket cannot reach its kind."""
        assert self._socket is not None
        sixth = self._socket.family == socket.AF_INET6
        version = _version(endpoint.host)
        if version is None or (version == 6 and not sixth):
            raise OSError(errno.ENETUNREACH, "not an address that this socket can reach")
        mapped = _MAPPED + endpoint.host if sixth and version == 4 else endpoint.host
        target = (mapped, endpoint.port, 0, 0) if sixth else (mapped, endpoint.port)
        if len(self._targets) >= CACHED_PEERS:
            self._targets.clear()
            self._seen.clear()
        self._targets[endpoint] = target
        return target

    def _unsent(self, error: OSError) -> None:
        if error.errno in _FULL:
            self.counters.full += 1
        elif error.errno == errno.EMSGSIZE:
            self.counters.too_big += 1
        else:
            self.counters.unsent += 1
            if error.errno not in _OF_THE_PATH:
                self._complain("send", error)

    # what the reactor and others ask

    def health(self) -> list[str]:
        """Sentences about what does not work as it should; empty when all is well."""
        return list(self._health)

    def local_endpoints(self) -> list[Endpoint]:
        """Addresses of the interfaces that are up, those that the internet can reach first. Empty before `start`."""
        if self._socket is None:
            return []
        bound = ip_address(self._socket.getsockname()[0])
        if not bound.is_unspecified:
            return [Endpoint(self.scheme, str(bound), self.port)]
        versions = (4, 6) if bound.version == 6 else (4,)
        addresses = [
            one.ip
            for name, one in interface_addresses()
            if name not in self.ignore and one.version in versions and not one.is_loopback and not (one.version == 6 and one.is_link_local)
        ]
        addresses.sort(key=lambda one: (not one.is_global, one.version))
        return [Endpoint(self.scheme, str(address), self.port) for address in dict.fromkeys(addresses)]

    def fileno(self) -> int:
        """The socket, -1 when it is closed."""
        return self._socket.fileno() if self._socket is not None else -1

    def logPrefix(self) -> str:
        """For the reactor's logs."""
        return f"udp:{self.port}"

    def connectionLost(self, reason: Failure) -> None:
        """The reactor gives up on the socket: at its end, or because the descriptor is broken."""
        self.stop()

    def _complain(self, what: str, error: OSError) -> None:
        if error.errno not in self._complained:
            self._complained.add(error.errno or 0)
            self._log.warn("udp_{what}_failed port={port} error={error}", what=what, port=self.port, error=str(error))

    def _bind(self) -> socket.socket:
        version = _version(self.host)
        if version is None:
            raise EnvironmentProblem(
                f"{self.host!r} is not an IP address of this machine", "give an IP address, or 0.0.0.0 or :: for all of them"
            )
        try:
            return _bound_socket(socket.AF_INET6 if version == 6 else socket.AF_INET, self.host, self._wanted_port)
        except OSError as error:
            if self.host == "::" and error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                self._log.warn("udp_without_ipv6 port={port}", port=self._wanted_port)
                self.host = "0.0.0.0"
                return self._bind()
            raise _problem(error, self.host, self._wanted_port) from error


def _version(host: str) -> int | None:
    try:
        return ip_address(host).version
    except ValueError:
        return None


def _bound_socket(family: socket.AddressFamily, host: str, port: int) -> socket.socket:
    made = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(host != "::"))
        _never_fragment(made, family)
        _enlarge(made, _SO_RCVBUFFORCE, socket.SO_RCVBUF)
        _enlarge(made, _SO_SNDBUFFORCE, socket.SO_SNDBUF)
        made.bind((host, port))
    except OSError:
        made.close()
        raise
    return made


def _enlarge(made: socket.socket, forced: int, plain: int) -> None:
    try:
        made.setsockopt(socket.SOL_SOCKET, forced, SOCKET_BUFFER)
    except PermissionError:  # without CAP_NET_ADMIN the kernel gives as much as net.core.*mem_max allows
        made.setsockopt(socket.SOL_SOCKET, plain, SOCKET_BUFFER)


def _never_fragment(made: socket.socket, family: socket.AddressFamily) -> None:
    """Set "don't fragment", and leave it to us to find the path's MTU: what the kernel believes of it comes from unauthenticated ICMP."""
    made.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_PROBE)
    if family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE)


def _offloads(made: socket.socket) -> tuple[tuple[str, ...], list[str]]:
    """What the kernel does with runs, and sentences about what it does not."""
    names, health = [], []
    for name, option, value in (("segment", UDP_SEGMENT, 0), ("gro", UDP_GRO, 1)):
        try:
            made.setsockopt(socket.IPPROTO_UDP, option, value)
        except OSError:
            health.append(f"this kernel has no UDP {name} offload (Linux 5.0 has it): every datagram costs a system call")
        else:
            names.append(name)
    for name, option, limit in (("receive", socket.SO_RCVBUF, "rmem_max"), ("send", socket.SO_SNDBUF, "wmem_max")):
        size = made.getsockopt(socket.SOL_SOCKET, option) // 2  # the kernel doubles it for its own needs
        if size < SOCKET_BUFFER:
            health.append(
                f"the UDP {name} buffer has {size} of {SOCKET_BUFFER} bytes, so fast streams will lose datagrams: "
                f"run with CAP_NET_ADMIN, or set net.core.{limit}={SOCKET_BUFFER}"
            )
    return tuple(names), health


def _problem(error: OSError, host: str, port: int) -> EnvironmentProblem:
    match error.errno:
        case errno.EADDRINUSE:
            return EnvironmentProblem(
                f"UDP port {port} of {host} is taken", f"stop the other program (`ss -lunp sport = {port}` names it) or choose another port"
            )
        case errno.EADDRNOTAVAIL:
            return EnvironmentProblem(f"this machine has no address {host}", "listen on 0.0.0.0 or on an address that `ip addr` shows")
        case errno.EACCES | errno.EPERM:
            return PermissionProblem(f"UDP port {port} of {host} may not be used", "run as root or choose a port from 1024 up")
        case _:
            return EnvironmentProblem(f"UDP port {port} of {host} cannot be opened ({os.strerror(error.errno or 0)})")
