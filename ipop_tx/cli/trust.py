"""The commands about who is trusted no more: revoke, withdraw, revocations."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click

from ipop_tx.cli.daemon import Daemon, daemon_options
from ipop_tx.cli.orders import order_option, wait_for_others


@click.command()
@click.argument("target", required=False, default="")
@click.option("--key", default="", help="The digest of a key, 64 hex digits: a member's, or one that admits members.")
@click.option("--yes", is_flag=True, help="Do it, rather than only say whom it would be.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@order_option
@daemon_options
def revoke(daemon: Daemon, target: str, key: str, yes: bool, as_json: bool, order: Path) -> None:
    """Throw the node TARGET (a name or an address) out of the network, for ever. Only where the authority's key is.

    Its links end everywhere, its address and its registers are free, and its key is never let in again; to come back, the machine
    joins anew with another key. A key that admits members (--key) is thrown out with all that it has admitted.
    """
    if bool(target) == bool(key):
        raise click.UsageError("give a node, or --key with a digest")
    answer = daemon.post("/revoke", {"target": target, "key": key, "confirm": yes})
    if as_json:
        click.echo(json.dumps(answer))
        return
    whom = f"{answer['name'] or 'the key'} ({answer['ident'][:8] or answer['key'][:16]})"
    if answer["known"]:
        click.echo(f"{whom} was thrown out already")
    elif wait_for_others(answer, order):
        return
    elif yes:
        click.echo(f"{whom} is thrown out; {answer['links']} links of this node ended, the other nodes are being told")
    else:
        click.echo(f"this would throw out {whom}, for ever; if that is the one:  ipop revoke {target or '--key ' + key} --yes", err=True)


@click.command()
@click.argument("target")
@click.option("--yes", is_flag=True, help="Do it, rather than only say whose right it would be.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@order_option
@daemon_options
def withdraw(daemon: Daemon, target: str, yes: bool, as_json: bool, order: Path) -> None:
    """Let the node TARGET admit nobody any more; those that it has admitted stay. Only where the authority's key is.

    TARGET is the name under which it was appointed, or the digest of its admission key. If that key may be in wrong hands, throw it
    out instead (ipop revoke --key): who has it could date certificates back.
    """
    answer = daemon.post("/withdraw", {"target": target, "confirm": yes})
    if as_json:
        click.echo(json.dumps(answer))
    elif answer["known"]:
        click.echo(f"{answer['name']} may admit nobody already")
    elif wait_for_others(answer, order):
        return
    elif yes:
        click.echo(f"{answer['name']} may admit nobody any more; the other nodes are being told")
    else:
        click.echo(f"this would take the right to admit from {answer['name']}; if that is the one:  ipop withdraw {target} --yes", err=True)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON list.")
@daemon_options
def revocations(daemon: Daemon, as_json: bool) -> None:
    """Show who was thrown out, the latest first."""
    found = daemon.get("/revocations")
    if as_json:
        click.echo(json.dumps(found))
        return
    for one in found:
        what = "  (may admit nobody)" if one["since"] else ""
        click.echo(f"{time.strftime('%Y-%m-%d %H:%M', time.localtime(one['time']))}  {one['name'] or '-':<20}  {one['key']}{what}")
    if not found:
        click.echo("nobody was thrown out", err=True)
