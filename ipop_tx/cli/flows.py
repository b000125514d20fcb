"""`ipop flows`: what has passed between nodes, in the order of the fields of a VPC flow log, version 2."""

from __future__ import annotations

import json
from typing import Any

import click

from ipop_tx.cli.daemon import Daemon, daemon_options
from ipop_tx.cli.durations import duration
from ipop_tx.cli.tables import printable

FIELDS = (
    "version", "account-id", "interface-id", "srcaddr", "dstaddr", "srcport", "dstport", "protocol", "packets", "bytes", "start", "end",
    "action", "log-status", "rule",
)  # fmt: skip
"""Those of version 2, then ours."""


@click.command()
@click.option("--between", nargs=2, metavar="A B", help="Only flows between these two nodes, as each of them tells.")
@click.option("--since", type=duration, default="1h", show_default=True, help="How far back: 90s, 30m, 1h, 2d.")
@click.option("--rejected", is_flag=True, help="Only what the policy has dropped.")
@click.option("--limit", type=click.IntRange(1, 1000), default=1000, show_default=True, help="Rows at most, of each node.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@daemon_options
def flows(daemon: Daemon, between: tuple[str, str] | None, since: int, rejected: bool, limit: int, as_json: bool) -> None:
    r"""Show what has passed between this node and others, the newest first, a line for each direction of a flow (docs/flows.md).

    The fields: version, network, node that tells, source, destination, their ports, protocol, packets, bytes, start, end (seconds since
    1970), ACCEPT or REJECT, OK, and the policy's rule.

    \b
    ipop flows --since 10m
    ipop flows --between laptop server --since 1h
    """
    found = daemon.post("/flows", {"between": list(between or ()), "since_s": since, "limit": limit}, doing="reading flows")
    if rejected:
        found["flows"] = [one for one in found["flows"] if one["action"] == "REJECT"]
    if as_json:
        click.echo(json.dumps(found))
        return
    for one in found["flows"]:
        click.echo(line(one, found["network"]))
    for one in found["missing"]:
        click.echo(f"not heard from {printable(one['name'])}: {printable(one['why'])}", err=True)


def line(flow: dict[str, Any], network: str) -> str:
    """One record, its fields between single spaces."""
    ends = flow["source"], flow["target"], flow["source_port"], flow["target_port"], flow["protocol"]
    carried = flow["packets"], flow["bytes"], flow["start"], flow["end"]
    rule = printable("_".join(flow["rule"].split())) or "-"
    return " ".join(map(str, (2, network, flow["reporter"], *ends, *carried, flow["action"], "OK", rule)))
