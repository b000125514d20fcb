"""How the `ipop` command asks the daemon: HTTP/JSON over its unix socket."""

from __future__ import annotations

import http.client
import json
import os
import socket
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ipop_tx.config import DEFAULT_PATH, DEFAULT_SOCKET, load_config
from ipop_tx.errors import ConfigError, EnvironmentProblem, IpopError, PermissionProblem, Unreachable

_ANSWER_SECONDS = 60.0
_PATH = click.Path(path_type=Path, readable=False)  # we say ourselves what is wrong with a file


class Daemon:
    """One daemon behind its control socket. Every call is one request; errors are `IpopError`s of the daemon or about reaching it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def get(self, route: str) -> Any:
        """Read something."""
        return self._ask("GET", route, None)

    def post(self, route: str, arguments: dict[str, Any] | None = None) -> Any:
        """Have something done."""
        return self._ask("POST", route, arguments or {})

    def _ask(self, method: str, route: str, arguments: dict[str, Any] | None) -> Any:
        connection = _UnixConnection(self.path)
        try:
            connection.request(method, route, None if arguments is None else json.dumps(arguments))
            response = connection.getresponse()
            value = json.loads(response.read())
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


def _as_error(value: Any) -> IpopError:
    body = value if isinstance(value, dict) else {}
    family = Unreachable if body.get("kind") == "Unreachable" else IpopError
    return family(str(body.get("error", "the daemon refused")), str(body.get("mend", "")))


def daemon_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command `--socket` and `--config`, and as its first argument the `Daemon` they name."""
    import functools

    @click.option("--socket", "socket_path", envvar="IPOP_SOCKET", type=_PATH, help="The daemon's control socket.")
    @click.option("--config", type=_PATH, help="A node.toml that names the control socket.")
    @functools.wraps(command)
    def with_daemon(*arguments: Any, socket_path: Path | None, config: Path | None, **options: Any) -> Any:
        return command(Daemon(_socket_path(socket_path, config)), *arguments, **options)

    return with_daemon


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
