"""The daemon's control socket: HTTP/JSON for `ipop` and for scripts, never for a browser."""

from __future__ import annotations

import errno
import fcntl
import grp
import os
import socket
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure

from ipop_tx.errors import (
    Conflict,
    EnvironmentProblem,
    IpopError,
    LocalMisuse,
    PermissionProblem,
    RemoteMisbehaviour,
    Unavailable,
    Unreachable,
)
from ipop_tx.log import Logger

if TYPE_CHECKING:
    from twisted.internet.interfaces import IAddress

    from ipop_tx.services.control_http import ControlChannel

Route = Callable[[dict[str, Any]], Any]
"""Takes the request's JSON object; returns what JSON can hold, or a Deferred of it."""

READING = frozenset({"POST /resolve", "POST /policy/test", "POST /dht/get"})
"""What changes nothing beside all that is asked by GET."""

_CLOSING_SECONDS = 1.0

# The first family that fits gives the status.
_STATUS: tuple[tuple[type[IpopError], int], ...] = (
    (Conflict, 409),
    (LocalMisuse, 400),
    (Unreachable, 503),
    (Unavailable, 503),
    (RemoteMisbehaviour, 502),
    (IpopError, 500),
)

_log = Logger(namespace="ipop.control")


class _Reactor(Protocol):
    """What of the reactor we use."""

    def listenUNIX(self, address: str, factory: Factory, backlog: int = ..., mode: int = ...) -> Any: ...

    def callLater(self, delay: float, call: Callable[..., object], *args: object) -> Any: ...


class ControlService(Service):
    """Answers requests on the unix socket at `path`.

    `routes` maps "GET /status" and the like to what answers them; it is read at each request, so it may be filled later.
    `allowed` are the user ids that may ask for everything: root and our own, as it is at the start, unless told. The members of `group`
    may ask for what changes nothing. `startService` raises `EnvironmentProblem` when another daemon answers on the socket, the
    directory cannot be used, or the group is none of ours.
    """

    name = "control"

    def __init__(
        self,
        path: Path,
        routes: Mapping[str, Route],
        allowed: Iterable[int] | None = None,
        reactor: _Reactor | None = None,
        group: str | None = None,
    ) -> None:
        self.path = Path(path)
        self.group = group
        self._allowed = allowed
        self._factory = _ControlFactory(routes)
        self._reactor = reactor
        self._port: Any = None

    def startService(self) -> None:
        """Create the directory (0700) if it is missing, and listen (0600; 0660 with a group)."""
        self._factory.allowed = frozenset({0, os.getuid()} if self._allowed is None else self._allowed)
        self._factory.readers = _number(self.group) if self.group is not None else None
        if self._reactor is None:
            from twisted.internet import reactor

            self._reactor = reactor  # type: ignore[assignment]
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with _alone(self.path.parent):
                _clear(self.path)
                self._port = self._listen()
                self._open_to_group()
        except PermissionError as error:
            raise PermissionProblem(f"the control socket {self.path} cannot be made: {error.strerror}", _ELSEWHERE) from error
        except OSError as error:
            raise EnvironmentProblem(f"the control socket {self.path} cannot be made: {error.strerror}", _ELSEWHERE) from error
        super().startService()

    def _listen(self) -> Any:
        from twisted.internet.error import CannotListenError

        assert self._reactor is not None
        try:
            return self._reactor.listenUNIX(str(self.path), self._factory, mode=0o600)
        except CannotListenError as error:
            if isinstance(error.socketError, OSError):
                raise error.socketError from None
            raise

    def _open_to_group(self) -> None:
        readers = self._factory.readers
        if readers is None:
            return
        try:
            os.chown(self.path, -1, readers)
        except PermissionError:
            self._port.stopListening()
            mend = f"put the daemon's user into it (usermod -aG {self.group} USER), or name a group that it is in"
            raise PermissionProblem(f"control.group is {self.group}, in which the daemon's user is not", mend) from None
        self.path.chmod(0o660)

    def stopService(self) -> Deferred[Any]:
        """Stop listening, remove the socket, let answers that are under way leave."""
        super().stopService()
        port, self._port = self._port, None
        if port is None:
            return maybeDeferred(lambda: None)
        closed: list[Deferred[Any]] = [maybeDeferred(port.stopListening)]
        for channel in list(self._factory.channels):
            channel.loseConnection()
            closed.append(channel.closed)
        assert self._reactor is not None
        timer = self._reactor.callLater(_CLOSING_SECONDS, self._abort)
        done = DeferredList(closed)
        done.addBoth(lambda _: timer.cancel() if timer.active() else None)
        return done

    def _abort(self) -> None:
        for channel in list(self._factory.channels):
            channel.forceAbortClient()


_ELSEWHERE = "run the daemon as root, or choose another control.socket in node.toml"


def _number(group: str) -> int:
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise EnvironmentProblem(f"control.group is {group}, and this machine has no such group", "make it with addgroup") from None


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Two daemons that start at once look at the socket one after the other."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _clear(path: Path) -> None:
    """Remove the socket of a dead daemon. Raises `EnvironmentProblem` when a live one answers, or it is no socket."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise EnvironmentProblem(f"{path} is in the way: it is no socket", "remove it, or choose another control.socket in node.toml")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        outcome = probe.connect_ex(str(path))
    if outcome == errno.ECONNREFUSED:
        path.unlink()
    else:  # connected, or its queue is full
        raise EnvironmentProblem(
            f"another daemon answers on {path}", "stop it first, or choose another control.socket in node.toml for a second node"
        )


class _ControlFactory(Factory):
    """Makes a channel a connection. HTTP is imported at the first one: a daemon starts without it."""

    noisy = False

    def __init__(self, routes: Mapping[str, Route]) -> None:
        self.routes = routes
        self.allowed: frozenset[int] = frozenset()
        self.readers: int | None = None
        """The group whose members may read."""
        self.channels: set[ControlChannel] = set()

    def buildProtocol(self, addr: IAddress | None) -> Any:
        """A channel for one connection."""
        from ipop_tx.services.control_http import ControlChannel

        return ControlChannel(self)

    def log(self, request: object) -> None:
        """Twisted's access log, which nobody wants of a control socket."""


async def answer(routes: Mapping[str, Route], route: str, arguments: dict[str, Any]) -> tuple[int, Any]:
    """Call one route: (HTTP status, what JSON can hold). Never raises."""
    called = routes.get(route)
    if called is None:
        return 404, refusal(LocalMisuse(f"the daemon knows no {route!r}", f"it knows {', '.join(sorted(routes))}"))
    try:
        return 200, await maybeDeferred(called, arguments)
    except IpopError as error:
        return next(status for family, status in _STATUS if isinstance(error, family)), refusal(error)
    except Exception:  # noqa: BLE001 the daemon goes on; whoever asked learns where to look
        _log.failure("control request {route} failed", Failure(), route=route)
        return 500, {"error": f"the daemon failed at {route}", "mend": "its log has the reason", "kind": "Bug"}


def refusal(error: IpopError) -> dict[str, str]:
    """The body of an answer that is an error."""
    return {"error": error.sentence, "mend": error.mend, "kind": type(error).__name__}
