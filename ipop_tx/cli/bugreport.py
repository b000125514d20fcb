"""`ipop bugreport`: what somebody who helps wants to see, and no secret."""

from __future__ import annotations

import json
import platform
import re
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ipop_tx import __version__
from ipop_tx.cli.daemon import Daemon, daemon_options
from ipop_tx.config import DEFAULT_PATH
from ipop_tx.errors import IpopError

HIDDEN = "(hidden)"
_SECRET_KEYS = re.compile(r"password|secret|token|key|passphrase|credential", re.IGNORECASE)
_IN_TEXT = (
    (re.compile(r"(?<=//)[^/@\s]+@"), f"{HIDDEN}@"),  # user and password of a proxy
    (re.compile(r"\bipop1[-A-Za-z0-9_]{16,}"), HIDDEN),  # an invitation
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|$)", re.DOTALL), HIDDEN),
)


@click.command()
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="The file to write.  [default: stdout]")
@click.option("--netcheck", "asks_nat", is_flag=True, help="Find out what the NAT does first; takes some seconds.")
@click.option("--json", "as_json", is_flag=True, help="Changes nothing: the report is a JSON object.")
@daemon_options
def bugreport(daemon: Daemon, output: Path | None, asks_nat: bool, as_json: bool) -> None:
    """Gather versions, configuration, status, counters and the end of the log: one JSON object to send to whoever helps.

    It holds addresses and names of nodes, but no key, password or invitation. Also where no daemon runs.
    """
    report: dict[str, Any] = {"ipop": __version__, "machine": machine(), "config": configuration(daemon.config or DEFAULT_PATH)}
    questions: dict[str, Callable[[], Any]] = {
        "version": lambda: daemon.get("/version"),
        "status": lambda: daemon.get("/status"),
        "leases": lambda: daemon.get("/leases"),
        "metrics": lambda: daemon.get("/metrics")["text"].splitlines(),
        "log": lambda: daemon.post("/log", {"limit": 500})["lines"],
    }
    if asks_nat:
        questions["netcheck"] = lambda: daemon.post("/netcheck", doing="asking members about the NAT")
    for name, question in questions.items():
        try:
            report[name] = question()
        except IpopError as error:
            report[name] = {"error": str(error)}
    text = json.dumps(without_secrets(report), indent=1)
    if output is None:
        click.echo(text)
    else:
        output.write_text(text + "\n")
        click.echo(f"{output} is written: look through it before you send it", err=True)


def machine() -> dict[str, str]:
    """Of which kind it is."""
    return {"system": platform.platform(), "machine": platform.machine(), "python": sys.version.split()[0]}


def configuration(path: Path) -> Any:
    """node.toml as it stands, or why it cannot be read."""
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        return {"error": f"{path} cannot be read ({(error.strerror or str(error)).lower()})"}
    except ValueError as error:
        return {"error": f"{path} is no TOML ({type(error).__name__})"}


def without_secrets(value: Any) -> Any:
    """The same without what is under a key that sounds secret, and without what looks so in texts."""
    if isinstance(value, dict):
        return {
            key: HIDDEN if _SECRET_KEYS.search(str(key)) and isinstance(one, str) else without_secrets(one) for key, one in value.items()
        }
    if isinstance(value, list):
        return [without_secrets(one) for one in value]
    if isinstance(value, str):
        for pattern, put in _IN_TEXT:
            value = pattern.sub(put, value)
    return value
