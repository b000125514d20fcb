"""The commands about addresses: lease list, renew."""

from __future__ import annotations

import json

import click

from ipop_tx.cli.daemon import Daemon, daemon_options
from ipop_tx.cli.tables import duration, print_table


@click.group()
def lease() -> None:
    """The address of this node, and those of the guests behind it."""


@lease.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@daemon_options
def list_(daemon: Daemon, as_json: bool) -> None:
    """Show which addresses are leased here, and for how long."""
    found = daemon.get("/leases")
    if as_json:
        click.echo(json.dumps(found))
        return
    rows = []
    for one, whose in [(found["own"], "this node"), *((guest, "guest") for guest in found["guests"])]:
        left = one.get("expires_s")
        rows.append((one["address"] or "-", one["name"] or "-", whose, one["state"], duration(left) if left and left > 0 else "-"))
    print_table(("address", "name", "whose", "state", "for"), rows, right=("for",))
    if found["own"]["problem"]:
        click.echo(f"warning: {found['own']['problem']}", err=True)


@lease.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@daemon_options
def renew(daemon: Daemon, as_json: bool) -> None:
    """Write this node's lease anew now; the daemon does so by itself at half its time."""
    answer = daemon.post("/lease/renew", doing="renewing")
    click.echo(json.dumps(answer) if as_json else f"{answer['address']} is leased anew")
