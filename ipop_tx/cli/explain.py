"""`ipop explain`: why this node reaches another one, or why not; also where the daemon is not there to ask."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ipop_tx.cli.daemon import Daemon, complete_node, daemon_options
from ipop_tx.cli.tables import printable
from ipop_tx.config import DEFAULT_PATH, load_config
from ipop_tx.errors import EnvironmentProblem, IpopError, LocalMisuse, PermissionProblem

_STYLES = {"ok": "green", "fault": "bold red", "unknown": "yellow"}


@click.command()
@click.argument("words", nargs=-1, required=True, metavar="[SOURCE] NODE [SERVICE]", shell_complete=complete_node)
@click.option("--probe", is_flag=True, help="Also send packets: one of the service's kind, and large ones to try the path's MTU.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@daemon_options
def explain(daemon: Daemon, words: tuple[str, ...], probe: bool, as_json: bool) -> None:
    r"""Say step by step whether this node reaches NODE (a name or an address), and what to change where it does not.

    With SOURCE, another node, only what the two tell everybody; run it there for more. SERVICE is tcp/22, udp/53, icmp/echo-request (which
    it is unless told) or the like. Exits with 1 when something is at fault. The codes are listed in docs/explain.md.

    \b
    ipop explain server
    ipop explain server tcp/22 --probe
    """
    nodes, service = (words[:-1], words[-1]) if len(words) > 1 and _names_service(words[-1]) else (words, None)
    if len(nodes) > 2:
        raise click.UsageError("name one node or two, then a service such as tcp/22")
    question = {"source": nodes[0] if len(nodes) > 1 else None, "target": nodes[-1], "service": service, "probe": probe}
    try:
        found = daemon.post("/explain", question, doing=f"asking about {nodes[-1]}")
    except PermissionProblem:
        raise
    except EnvironmentProblem as error:
        if daemon.reached:
            raise
        found = {"target": nodes[-1], "service": question["service"], "probed": False, **without_daemon(daemon.config, error)}
    if as_json:
        click.echo(json.dumps(found))
    else:
        show(found)
    if found["verdict"] == "fault":
        sys.exit(1)


def _names_service(word: str) -> bool:
    from ipop_tx.wire.policy import parse_service

    try:
        parse_service(word)
    except LocalMisuse:
        return "/" in word
    return not word.isdecimal()


def show(found: dict[str, Any], console: Console | None = None) -> None:
    """A row a step, within 80 columns; then what to do first."""
    console = console or Console(file=sys.stdout, highlight=False)
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for one in found["steps"]:
        text = Text.assemble(printable(one["sentence"]), (f" [{one['code']}]", "dim"))
        table.add_row(one["step"], Text(one["verdict"], style=_STYLES[one["verdict"]]), text)
    console.print(table)
    if found["cause"]:
        console.print(Text.assemble(("first: ", "bold"), printable(found["cause"]["sentence"])))


def without_daemon(config: Path | None, error: IpopError) -> dict[str, Any]:
    """What a look at the node's own files tells, where no daemon runs."""
    from ipop_tx.identity.credentials import Credentials
    from ipop_tx.identity.state import StateDirectory
    from ipop_tx.services import machine
    from ipop_tx.services.verdicts import explanation, step
    from ipop_tx.wire import relation as r

    steps = []
    mend = error.mend
    try:
        state = StateDirectory(load_config(config or DEFAULT_PATH).node.state)
        flag = machine.disk_flag(state.path)
        if flag:
            steps.append(step("disk-full" if flag == r.DISK_FULL else "disk-read-only", path=state.path))
        Credentials.load(state)
    except IpopError as problem:
        mend = str(problem)
        if "certificate ended at" in problem.sentence:
            steps.append(step("certificate-expired-here", date=problem.sentence.rpartition("ended at ")[2]))
        elif "begins only at" in problem.sentence:
            steps.append(step("clock-before-certificate", why=problem.sentence))
    return explanation([*steps, step("node-down", mend=mend)])
