"""HTTP on the control socket: who may ask, how much, and the way of one request."""

from __future__ import annotations

import io
import json
import socket
import struct
from typing import TYPE_CHECKING, Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel, Request

from ipop_tx.errors import LocalMisuse, PermissionProblem
from ipop_tx.services.control import READING, answer, refusal

if TYPE_CHECKING:
    from ipop_tx.services.control import _ControlFactory

BODY_LIMIT = 64 * 1024
HOST = "ipop"
"""What clients send as Host. A browser that was lured here would send another."""

_IDLE_SECONDS = 60
_SO_PEERGROUPS = 59  # Linux 4.13; not in the socket module
_MOST_GROUPS = 256  # what Python's getsockopt has room for
_MOST_READERS = 32
"""Connections beyond which no more of those are taken who may only look: they are not to use up the daemon's descriptors."""


class ControlRequest(Request):
    """One request: checked, answered, done."""

    channel: ControlChannel
    content: io.BytesIO
    _gone = False

    def gotLength(self, length: int | None) -> None:
        """Bodies are small: never on disk."""
        self.content = io.BytesIO()

    def handleContentChunk(self, data: bytes) -> None:
        """Keep no more than shows that it is too much."""
        self.content.write(data[: max(0, BODY_LIMIT + 1 - self.content.tell())])

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        """The whole request is here."""
        self.method, self.uri, self.clientproto = command, path, version
        self.notifyFinish().addErrback(self._lost)
        route = f"{command.decode('latin-1')} {path.partition(b'?')[0].decode('latin-1')}"
        status, refused = self._forbidden(command == b"GET" or route in READING)
        if refused is not None:
            self._reply((status, refusal(refused)))
            return
        try:
            arguments = json.loads(self.content.getvalue() or b"{}")
        except (ValueError, RecursionError):
            arguments = None
        if not isinstance(arguments, dict):
            self._reply((400, refusal(LocalMisuse("the request's body is not a JSON object"))))
            return
        Deferred.fromCoroutine(answer(self.channel.routes, route, arguments)).addCallback(self._reply)

    def _forbidden(self, reads: bool) -> tuple[int, LocalMisuse | PermissionProblem | None]:
        if not self.channel.permitted and not self.channel.reads:
            return 403, PermissionProblem("this control socket belongs to another user", "run the command as that user or as root")
        if not self.channel.permitted and not reads:
            return 403, PermissionProblem("you may look, but change nothing", "run the command as the daemon's user or as root")
        if self.requestHeaders.hasHeader("Origin") or self.requestHeaders.getRawHeaders("Host") != [HOST]:
            return 403, PermissionProblem("the control socket is not for browsers", f"send 'Host: {HOST}' and no Origin")
        if self.content.tell() > BODY_LIMIT:
            return 413, LocalMisuse(f"the request's body is over {BODY_LIMIT} bytes")
        return 200, None

    def _reply(self, result: tuple[int, Any]) -> None:
        if self._gone:
            return
        status, value = result
        body = msgspec.json.encode(value) + b"\n"
        self.setResponseCode(status)
        self.setHeader("Content-Type", "application/json")
        self.setHeader("Content-Length", str(len(body)))
        self.write(body)
        self.finish()

    def _lost(self, _: Failure) -> None:
        self._gone = True


class ControlChannel(HTTPChannel):
    """One connection. `permitted` tells whether the kernel names an allowed user at the other end, `reads` whether it may at least look."""

    requestFactory = ControlRequest
    timeOut = _IDLE_SECONDS
    permitted = reads = False

    def __init__(self, factory: _ControlFactory) -> None:
        super().__init__()
        self.factory = factory
        self.routes = factory.routes
        self.closed: Deferred[None] = Deferred()

    def connectionMade(self) -> None:
        """Look who it is."""
        transport: Any = self.transport
        user, groups = _peer(transport.socket)
        self.permitted = user in self.factory.allowed
        self.reads = self.factory.readers in groups
        self.factory.channels.add(self)
        super().connectionMade()
        if not self.permitted and len(self.factory.channels) > _MOST_READERS:
            transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The other end is gone."""
        super().connectionLost(reason)
        self.factory.channels.discard(self)
        self.closed.callback(None)


def _peer(connected: socket.socket) -> tuple[int, set[int]]:
    """The user at the other end and its groups, as they were when it connected: SO_PEERCRED and SO_PEERGROUPS, unix(7)."""
    _, user, group = struct.unpack("iII", connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("iII")))
    try:
        more = connected.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 4 * _MOST_GROUPS)
    except OSError:  # an old kernel, or more groups: then the first one must do
        more = b""
    return user, {group, *struct.unpack(f"{len(more) // 4}I", more)}
