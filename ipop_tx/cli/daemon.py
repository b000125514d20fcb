"""How the `ipop` command asks the daemon: HTTP/JSON over its unix socket."""

from __future__ import annotations

import http.client
import json
import os
import socket
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from ipop_tx.config import DEFAULT_PATH, DEFAULT_SOCKET, load_config
from ipop_tx.errors import ConfigError, EnvironmentProblem, IpopError, PermissionProblem, Unreachable

_ANSWER_SECONDS = 60.0
_PATH = click.Path(path_type=Path, readable=False)  # we say ourselves what is wrong with a file


class Daemon:
    """One daemon behind its control socket. Every call is one request; errors are `IpopError`s of the daemon or about reaching it."""

    def __init__(self, path: Path, config: Path | None = None) -> None:
        self.path = path
        self.config = config
        """The node.toml that was named, if any."""
        self.reached = False
        """Whether anybody has answered."""

    def get(self, route: str) -> Any:
        """Read something."""
        return self._ask("GET", route, None)

    def post(self, route: str, arguments: dict[str, Any] | None = None, doing: str = "") -> Any:
        """Have something done; what takes its time names itself by `doing`, and then a terminal shows that it goes on."""
        with working(doing):
            return self._ask("POST", route, arguments or {})

    @property
    def network(self) -> str:
        """The name of the network of the node that answers."""
        return str(self.get("/version").get("network", ""))

    def _ask(self, method: str, route: str, arguments: dict[str, Any] | None) -> Any:
        connection = _UnixConnection(self.path)
        try:
            connection.request(method, route, None if arguments is None else json.dumps(arguments))
            response = connection.getresponse()
            value = json.loads(response.read())
            self.reached = True
        except (FileNotFoundError, ConnectionRefusedError):
            raise EnvironmentProblem(
                f"no daemon answers on {self.path}",
                "start it with 'twistd ipop --config FILE', or name its socket with --socket or --config",
            ) from None
        except PermissionError:
            raise PermissionProblem(
                f"we have no right to use {self.path}", "run the command as root or as the daemon's own user (sudo ipop ...)"
            ) from None
        except TimeoutError:
            raise EnvironmentProblem(f"the daemon on {self.path} did not answer in {_ANSWER_SECONDS:.0f} seconds", "see its log") from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise EnvironmentProblem(f"the daemon on {self.path} broke off ({error})", "see its log") from None
        finally:
            connection.close()
        if response.status != 200:
            raise _as_error(value)
        return value


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket; the Host is what the daemon demands."""

    def __init__(self, path: Path) -> None:
        super().__init__("ipop", timeout=_ANSWER_SECONDS)
        self._path = path

    def connect(self) -> None:
        """Open the socket."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def complete_node(context: click.Context, parameter: click.Parameter, begun: str) -> list[str]:
    """Names of peers, for a shell that completes a word; none where no daemon answers."""
    given, config = context.params.get("socket_path"), context.params.get("config")
    try:
        path = _socket_path(Path(given) if given else None, Path(config) if config else None)
        names = [str(peer["name"]) for peer in Daemon(path).get("/status")["peers"]]
    except (IpopError, KeyError, TypeError):
        return []
    return sorted(name for name in names if name.startswith(begun))


@contextmanager
def working(what: str) -> Iterator[None]:
    """On a terminal, a sign on stderr that something goes on."""
    if not what or not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(f"{what} ..."):
        yield


def _as_error(value: Any) -> IpopError:
    body = value if isinstance(value, dict) else {}
    family = Unreachable if body.get("kind") == "Unreachable" else IpopError
    return family(str(body.get("error", "the daemon refused")), str(body.get("mend", "")))


def daemon_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command `--socket`, `--config` and `--network`, and as its first argument the `Daemon` they name."""
    import functools

    @click.option("--socket", "socket_path", envvar="IPOP_SOCKET", type=_PATH, help="The daemon's control socket.")
    @click.option("--config", type=_PATH, help="A node.toml that names the control socket.")
    @click.option("--network", help="The network that is meant, where this machine has nodes of several.")
    @functools.wraps(command)
    def with_daemon(*arguments: Any, socket_path: Path | None, config: Path | None, network: str | None, **options: Any) -> Any:
        if network is not None:
            socket_path, config = _of_network(network, socket_path, config)
        return command(Daemon(_socket_path(socket_path, config), config), *arguments, **options)

    return with_daemon


def _of_network(network: str, given: Path | None, config: Path | None) -> tuple[Path | None, Path | None]:
    """The socket, and the configuration, of this machine's node of a network. What is named besides must be that node's.

    Raises `EnvironmentProblem` naming the networks of which there are nodes.
    """
    named = given is not None or config is not None
    places = [(given, config)] if named else [(None, file) for file in sorted(DEFAULT_PATH.parent.glob("*.toml"))]
    found: list[str] = []
    for socket_path, file in places:
        try:
            name = Daemon(_socket_path(socket_path, file)).network
        except IpopError:
            if named:
                raise
            continue
        if name == network:
            return socket_path, file
        found.append(name)
    mend = (
        f"name one of {', '.join(found)}" if found else f"start it, or name its node.toml with --config (looked in {DEFAULT_PATH.parent})"
    )
    raise EnvironmentProblem(f"no node of the network {network} answers here", mend)


def _socket_path(given: Path | None, config: Path | None) -> Path:
    """`--socket` before `--config` before /etc/ipop/node.toml, if we may read that, before the default."""
    if given is not None:
        return given
    if config is None and not os.access(DEFAULT_PATH, os.R_OK):
        return DEFAULT_SOCKET
    path = config or DEFAULT_PATH
    try:
        return load_config(path).control.socket
    except ConfigError:
        return _socket_in(path)


def _socket_in(path: Path) -> Path:
    """What a wrong file says of the socket: the daemon runs on with the former one, and shall tell. Raises `ConfigError` for no TOML."""
    try:
        named = tomllib.loads(path.read_text()).get("control", {}).get("socket", str(DEFAULT_SOCKET))
    except (OSError, ValueError, AttributeError):
        named = None
    if not isinstance(named, str):
        return load_config(path).control.socket
    return path.absolute().parent / named
