"""UDP: one socket, IPv4 or dual stack, which reads and writes whole runs of datagrams where the kernel can (UDP_GRO, UDP_SEGMENT)."""

from __future__ import annotations

import errno
import socket
from collections import deque
from collections.abc import Iterable, Sequence
from ipaddress import ip_address
from typing import Any

from twisted.internet.interfaces import IDelayedCall, IReadWriteDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

from ipop_tx.errors import EnvironmentProblem
from ipop_tx.interfaces import IDatagramReceiver, ITransport
from ipop_tx.log import Logger
from ipop_tx.transport.interfaces import own_hosts
from ipop_tx.transport.native import Incoming, Layout, Outgoing, native_address, python_address, segment_ancillary
from ipop_tx.transport.runs import LEAST_SIZE, MOST_SIZES, USUAL_SIZE, Scatter
from ipop_tx.transport.udp_socket import bound_socket, hop_limit, host_for, offloads_of, plain_host, prepare, problem_of, version_of
from ipop_tx.values import Endpoint

RUNS_PER_TURN = 16
"""How many runs one wake-up reads at most, so that timers and frames get their turn."""
BACKLOG = 256
"""Runs that wait in us for a full socket; more are dropped."""
SINGLE_BACKLOG = 64
"""So many single datagrams wait beside them: they are the control plane's, which no queue holds back."""
RETRY_AFTER = 1.0
"""Seconds for which reading pauses after an error of the socket itself."""
CACHED_PEERS = 4096

_PATH_ERRORS = "ECONNREFUSED ECONNRESET EHOSTUNREACH ENETUNREACH EHOSTDOWN ENETDOWN ETIMEDOUT EPERM EACCES EADDRNOTAVAIL"
_OF_THE_PATH = frozenset(getattr(errno, name) for name in _PATH_ERRORS.split())
_FULL = frozenset((errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM))
_NO_OFFLOAD = frozenset((errno.EIO, errno.EINVAL, errno.ENOPROTOOPT, errno.EOPNOTSUPP))


class Counters:
    """What a transport has carried and lost since its start."""

    __slots__ = ("full", "rx_bytes", "rx_runs", "too_big", "tx_bytes", "tx_runs", "unsent")

    def __init__(self) -> None:
        self.rx_runs = self.rx_bytes = self.tx_runs = self.tx_bytes = 0
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
    datagram_bytes = 0  # `core.links.mtu` finds it out for each path
    _log = Logger()

    def __init__(
        self, reactor: Any, host: str, port: int, ignore: Iterable[str] = (), taken: socket.socket | None = None, side: int = 0
    ) -> None:
        """`taken` is a socket that is bound already; as the side `side` its endpoints have that in their scheme (`Endpoint.side`)."""
        self.scheme = Endpoint("udp", host, port).by_side(side).scheme
        self._taken = taken
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
        self._incoming, self._outgoing = Incoming(), Outgoing()
        self._scatters: dict[int, Scatter] = {}
        self._scatter = self._prepare(USUAL_SIZE)
        self._backlog: deque[tuple[bytes, bytes, int]] = deque()
        self.offloads: tuple[str, ...] = ()
        """What the kernel does for us: "segment" cuts runs, "gro" joins them."""
        self._health: list[str] = []
        self._seen: dict[bytes, Endpoint] = {}
        self._targets: dict[Endpoint, bytes] = {}
        self._complained: set[int] = set()

    def start(self, receiver: IDatagramReceiver) -> None:
        """Bind. Raises `EnvironmentProblem` when the address is taken or not ours, `PermissionProblem` for a port below 1024."""
        self._socket = self._bind()
        self.port = self._socket.getsockname()[1]
        self._receiver = receiver
        self.offloads, self._health = offloads_of(self._socket)
        self._reactor.addReader(self)

    def stop(self) -> None:
        """Close the socket. What waited for it is lost, and so the receiver hears that nothing waits any more."""
        if self._resume is not None:
            self._resume.cancel()
            self._resume = None
        if self._socket is not None:
            self._reactor.removeReader(self)
            self._reactor.removeWriter(self)
            self._socket.close()
            self._socket = None
        self._seen.clear()
        self._targets.clear()
        if self._backlog:
            self._backlog.clear()
            self._tell_drained()

    # in

    def doRead(self) -> None:
        """Deliver what waits, up to `RUNS_PER_TURN` runs."""
        counters, seen, incoming, receiver = self.counters, self._seen, self._incoming, self._receiver
        assert receiver is not None
        fd = self.fileno()
        for _ in range(RUNS_PER_TURN):
            if self._socket is None:  # the receiver stopped us
                return
            try:
                total, sockaddr = incoming.receive(fd)
            except OSError as error:
                if error.errno in _OF_THE_PATH or error.errno == errno.EINTR:
                    continue
                self._pause(error)
                break
            if total < 0:
                break
            counters.rx_runs += 1
            counters.rx_bytes += total
            size, scatter = incoming.size, self._scatter
            endpoint = seen.get(sockaddr) or self._endpoint(sockaddr)
            try:
                if size == scatter.size or size >= total <= scatter.size:
                    receiver.run_received(endpoint, scatter.heads, scatter.bodies, size, total)
                else:
                    self._deliver_otherwise(endpoint, size, total)
            except Exception:  # noqa: BLE001 - one fault must not cost the node its socket
                self._log.failure("datagram_failed endpoint={endpoint}", endpoint=endpoint)
        try:
            receiver.burst_ended()
        except Exception:  # noqa: BLE001 - as above
            self._log.failure("burst_failed port={port}", port=self.port)

    def _deliver_otherwise(self, endpoint: Endpoint, size: int, total: int) -> None:
        """Datagrams of another size than we were prepared for: sort them anew, and be prepared for the next ones if they were long."""
        assert self._receiver is not None
        flat = self._scatter.flat(total)
        if size >= LEAST_SIZE:
            scatter = self._scatter = self._prepare(size)
            scatter.fill(flat)
            self._receiver.run_received(endpoint, scatter.heads, scatter.bodies, size, total)
        else:
            for at in range(0, total, size):
                self._receiver.datagram_received(endpoint, flat[at : at + size])

    def _prepare(self, size: int) -> Scatter:
        """Receive into buffers for datagrams of a size."""
        scatter = self._scatters.get(size)
        if scatter is None:
            if len(self._scatters) >= MOST_SIZES:
                self._scatters.clear()
            scatter = self._scatters[size] = Scatter(size)
        self._incoming.into(scatter.buffers)
        return scatter

    def _endpoint(self, sockaddr: bytes) -> Endpoint:
        host, port = python_address(sockaddr)[:2]
        endpoint = Endpoint(self.scheme, plain_host(host), port)
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
        """Send one datagram, or count why not. It may overtake runs that wait."""
        if self._socket is None:
            return
        counters = self.counters
        try:
            self._socket.sendto(datagram, python_address(self._targets.get(endpoint) or self._target(endpoint)))
        except OSError as error:
            if error.errno in _FULL and datagram:
                self._wait(self._targets[endpoint], bytes(datagram), len(datagram), BACKLOG + SINGLE_BACKLOG)
            else:
                self._unsent(error)
        else:
            counters.tx_runs += 1
            counters.tx_bytes += len(datagram)

    def write_near(self, endpoint: Endpoint, datagram: bytes, hops: int) -> None:
        """Send one datagram that gets no further than so many hops, at once or never."""
        if self._socket is None:
            return
        try:
            target = python_address(self._targets.get(endpoint) or self._target(endpoint))
            self._socket.sendmsg((datagram,), hop_limit(endpoint.host, hops), 0, target)
        except OSError as error:
            self._unsent(error)

    def layout(self, buffers: Sequence[memoryview]) -> Layout:
        """Buffers of a run with what the kernel needs to know of them."""
        return Layout(buffers)

    def write_run(self, endpoint: Endpoint, buffers: Sequence[bytes | memoryview], size: int, total: int) -> bool:
        """Send a run of datagrams, in one call where the kernel can cut it; False when it waits for a full socket."""
        if self._socket is None:
            return True
        try:
            target = self._targets.get(endpoint) or self._target(endpoint)
            if self._backlog:
                return self._wait(target, b"".join(buffers)[:total], size)
            if type(buffers) is Layout and (total <= size or "segment" in self.offloads):
                self._outgoing.send(self._socket.fileno(), buffers, size, total, target)
            else:
                return self._send(target, b"".join(buffers)[:total], size)
        except OSError as error:
            return self._run_unsent(error, endpoint, b"".join(buffers)[:total], size)
        self.counters.tx_runs += 1
        self.counters.tx_bytes += total
        return True

    def _run_unsent(self, error: OSError, endpoint: Endpoint, run: bytes, size: int) -> bool:
        if error.errno in _FULL:
            return self._wait(self._targets[endpoint], run, size)
        if error.errno in _NO_OFFLOAD and len(run) > size and "segment" in self.offloads:
            if error.errno != errno.EINVAL:  # that only says that the datagrams are too large for this path
                self.offloads = tuple(one for one in self.offloads if one != "segment")
                self._log.warn("udp_segment_refused port={port} error={error}", port=self.port, error=str(error))
            return self._send(self._targets[endpoint], run, size, size)
        self._unsent(error)
        return True

    def _send(self, target: bytes, run: bytes, size: int, step: int = 0) -> bool:
        """Send a run, `step` bytes at a time or in as few calls as the kernel allows; what it does not take waits."""
        assert self._socket is not None
        step = step or (len(run) if "segment" in self.offloads else size)
        for at in range(0, len(run), step):
            part = run[at : at + step]
            try:
                self._socket.sendmsg((part,), segment_ancillary(size) if len(part) > size else (), 0, python_address(target))
            except OSError as error:
                if error.errno in _FULL:
                    return self._wait(target, run[at:], size)
                if error.errno in _NO_OFFLOAD and len(part) > size:
                    return self._send(target, run[at:], size, size)
                self._unsent(error)
            else:
                self.counters.tx_runs += 1
                self.counters.tx_bytes += len(part)
        return True

    def _wait(self, target: bytes, run: bytes, size: int, most: int = BACKLOG) -> bool:
        """Keep a run until the socket takes it. Whoever goes on writing after all loses what is beyond the bound."""
        if len(self._backlog) >= most:
            self.counters.full += 1
            return False
        if not self._backlog:
            self._reactor.addWriter(self)
        self._backlog.append((target, run, size))
        return False

    def doWrite(self) -> None:
        """The socket takes more: send what waited, then tell the receiver."""
        waiting, self._backlog = self._backlog, deque()
        while waiting and self._socket is not None:
            if not self._send(*waiting.popleft()):
                self._backlog.extend(waiting)
                return
        self._reactor.removeWriter(self)
        self._tell_drained()

    def _tell_drained(self) -> None:
        if self._receiver is not None:
            try:
                self._receiver.drained()
            except Exception:  # noqa: BLE001 - as in doRead
                self._log.failure("drained_failed port={port}", port=self.port)

    def _target(self, endpoint: Endpoint) -> bytes:
        """The sockaddr of an endpoint. Raises `OSError` when this socket cannot reach its kind."""
        assert self._socket is not None
        family = self._socket.family
        host = host_for(family, endpoint.host)
        if host is None:
            raise OSError(errno.ENETUNREACH, "not an address that this socket can reach")
        target = native_address(family, (host, endpoint.port))
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
        return [Endpoint(self.scheme, host, self.port) for host in own_hosts(bound.version == 6, self.ignore)]

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
        if self._taken is not None:
            prepare(self._taken)
            return self._taken
        version = version_of(self.host)
        if version is None:
            raise EnvironmentProblem(
                f"{self.host!r} is not an IP address of this machine", "give an IP address, or 0.0.0.0 or :: for all of them"
            )
        try:
            return bound_socket(socket.AF_INET6 if version == 6 else socket.AF_INET, self.host, self._wanted_port)
        except OSError as error:
            if self.host == "::" and error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                self._log.warn("udp_without_ipv6 port={port}", port=self._wanted_port)
                self.host = "0.0.0.0"
                return self._bind()
            raise problem_of(error, self.host, self._wanted_port) from error
