"""Lines: datagrams to one endpoint and back, by UDP or TLS, blocking. For command lines, which run no reactor."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Protocol

from OpenSSL import SSL

from ipop_tx.errors import Unreachable
from ipop_tx.transport.frames import framed, unframed
from ipop_tx.transport.proxy import tunnel
from ipop_tx.transport.tls_context import TlsContexts, TlsCredentials, peer_of, reason_of
from ipop_tx.values import Endpoint, Proxy

_CHUNK = 65536


class Line(Protocol):
    """What both have."""

    def send(self, datagram: bytes) -> None:
        """Send one datagram; what goes wrong on the way is silent."""

    def receive(self, seconds: float) -> Iterator[bytes]:
        """The datagrams that come within `seconds`; ends with the first ones."""

    def close(self) -> None:
        """Give the socket back."""


class UdpLine:
    """By UDP."""

    def __init__(self, endpoint: Endpoint) -> None:
        """Raises `OSError`."""
        family = socket.AF_INET6 if ":" in endpoint.host else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_DGRAM)
        self._socket.connect((endpoint.host, endpoint.port))

    def send(self, datagram: bytes) -> None:
        """See `Line`."""
        with suppress(OSError):  # as on the wire: what is lost is sent again
            self._socket.send(datagram)

    def receive(self, seconds: float) -> Iterator[bytes]:
        """See `Line`."""
        ready, _, _ = select.select([self._socket], [], [], max(0.0, seconds))
        if ready:
            try:
                yield self._socket.recv(_CHUNK)
            except OSError:
                time.sleep(min(0.1, max(0.0, seconds)))  # nobody listens there (yet)

    def close(self) -> None:
        """See `Line`."""
        self._socket.close()


class TlsLine:
    """By TLS, through a proxy if there is one."""

    def __init__(self, endpoint: Endpoint, credentials: TlsCredentials, proxy: Proxy | None, seconds: float) -> None:
        """Connect within `seconds`. Raises `OSError`, `IpopError`."""
        contexts = TlsContexts(credentials)
        where = (proxy.host, proxy.port) if proxy else (endpoint.host, endpoint.port)
        self._deadline = time.monotonic() + seconds
        self._socket = socket.create_connection(where, seconds)
        self._tls = contexts.client()
        self._rest = b""
        try:
            if proxy is not None:
                self._tunnel(endpoint, proxy)
            self._handshake()
            peer_of(self._tls)
        except SSL.Error as problem:
            self._socket.close()
            raise reason_of(problem, self._tls) from problem
        except BaseException:
            self._socket.close()
            raise

    def _tunnel(self, endpoint: Endpoint, proxy: Proxy) -> None:
        way = tunnel(proxy, endpoint)
        self._socket.sendall(way.opening)
        while not way.done:
            self._socket.sendall(way.receive(self._more()))
        if way.rest:
            self._tls.bio_write(way.rest)

    def _more(self) -> bytes:
        self._socket.settimeout(max(0.01, self._deadline - time.monotonic()))
        data = self._socket.recv(_CHUNK)
        if not data:
            raise Unreachable("the connection was closed while it was being made")
        return data

    def _handshake(self) -> None:
        while True:
            try:
                self._tls.do_handshake()
                self._flush()
                return
            except SSL.WantReadError:
                self._flush()
                self._tls.bio_write(self._more())

    def _flush(self) -> None:
        with suppress(SSL.WantReadError):
            while True:
                self._socket.sendall(self._tls.bio_read(_CHUNK))

    def send(self, datagram: bytes) -> None:
        """See `Line`."""
        with suppress(OSError, SSL.Error):
            self._tls.send(framed((datagram,), len(datagram), len(datagram)))
            self._flush()

    def receive(self, seconds: float) -> Iterator[bytes]:
        """See `Line`. Raises `Unreachable` when the connection has ended."""
        ready, _, _ = select.select([self._socket], [], [], max(0.0, seconds))
        if not ready:
            return
        try:
            data = self._socket.recv(_CHUNK)
            if not data:
                raise Unreachable("the member has closed the connection")
            self._tls.bio_write(data)
            while True:
                self._rest += self._tls.recv(_CHUNK)
                runs, taken = unframed(memoryview(self._rest))
                self._rest = self._rest[taken:]
                for size, run in runs:
                    yield from (bytes(run[at : at + size]) for at in range(0, len(run), size))
        except SSL.WantReadError:
            return
        except (SSL.Error, OSError) as problem:
            raise Unreachable(f"the connection to the member was lost ({problem})") from problem

    def close(self) -> None:
        """See `Line`."""
        with suppress(OSError, SSL.Error):
            self._tls.shutdown()
            self._flush()
        self._socket.close()
