"""The commands that use the registers of the DHT: dht get, create, set, delete."""

from __future__ import annotations

import base64
import json
import sys
from contextlib import nullcontext
from typing import Any

import click

from ipop_tx.cli.daemon import Daemon, daemon_options
from ipop_tx.cli.durations import duration
from ipop_tx.errors import EnvironmentProblem, IpopError, LocalMisuse
from ipop_tx.wire.fields import MAX_VALUE

json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object, also where there is nothing to print.")
ttl_option = click.option("--ttl", type=duration, default="1d", show_default=True, help="For how long it is kept: 90s, 30m, 1h, 2d.")
version_option = click.option(
    "--version", type=click.IntRange(1), help="The version that must be there.  [default: whatever is there, if it is this node's]"
)


@click.group()
def dht() -> None:
    """Keep small values in the network: registers of up to 1024 bytes.

    KEY is a name, or the 40 hex digits of a key. VALUE is text; @FILE stands for the contents of a file, @- for stdin. A register belongs
    to the node that filled it: everybody reads it, only that node changes it.
    """


@dht.command()
@click.argument("key")
@json_option
@daemon_options
def get(daemon: Daemon, key: str, as_json: bool) -> None:
    """Print what is kept under KEY."""
    found = _ask(daemon, "get", {"key": key})
    if as_json:
        click.echo(json.dumps(found))
        return
    value = found["text"].encode() if "text" in found else base64.b64decode(found["base64"])
    sys.stdout.buffer.write(value)
    if sys.stdout.isatty():
        click.echo()


@dht.command()
@click.argument("key")
@click.argument("value")
@ttl_option
@json_option
@daemon_options
def create(daemon: Daemon, key: str, value: str, ttl: int, as_json: bool) -> None:
    """Keep VALUE under KEY, if nothing is kept there yet."""
    _tell(_ask(daemon, "create", {"key": key, **_content(value)}, ttl), as_json)


@dht.command("set")
@click.argument("key")
@click.argument("value")
@version_option
@ttl_option
@json_option
@daemon_options
def set_(daemon: Daemon, key: str, value: str, version: int | None, ttl: int, as_json: bool) -> None:
    """Keep VALUE under KEY, also where this node keeps something there already."""
    _tell(_ask(daemon, "set", {"key": key, "version": version, **_content(value)}, ttl), as_json)


@dht.command()
@click.argument("key")
@version_option
@json_option
@daemon_options
def delete(daemon: Daemon, key: str, version: int | None, as_json: bool) -> None:
    """Remove what this node keeps under KEY."""
    _tell(_ask(daemon, "delete", {"key": key, "version": version}), as_json)


def _ask(daemon: Daemon, what: str, entry: dict[str, Any], ttl: int | None = None) -> dict[str, Any]:
    """One entry, its answer. Raises the error that the answer names."""
    request: dict[str, Any] = {"entries": [entry]} if ttl is None else {"entries": [entry], "ttl_s": ttl}
    answer: dict[str, Any] = daemon.post(f"/dht/{what}", request)["answers"][0]
    if "error" in answer:
        raise IpopError(str(answer["error"]), str(answer.get("mend", "")))
    return answer


def _content(value: str) -> dict[str, str]:
    """What an argument stands for, as the control socket takes it."""
    if not value.startswith("@"):
        return {"text": value}
    name = value[1:]
    try:
        with nullcontext(sys.stdin.buffer) if name == "-" else open(name, "rb") as file:
            content = file.read(MAX_VALUE + 1)
    except OSError as error:
        raise EnvironmentProblem(f"{name} cannot be read ({(error.strerror or str(error)).lower()})", "name another file") from None
    if len(content) > MAX_VALUE:
        raise LocalMisuse(f"{name} is longer than {MAX_VALUE} bytes", "keep the place where it can be fetched instead")
    return {"base64": base64.b64encode(content).decode()}


def _tell(answer: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(answer))
