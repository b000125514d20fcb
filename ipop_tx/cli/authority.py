"""The commands about the authority itself: authority show, roll, approvers, renew, key, give."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import BinaryIO

import click

from ipop_tx.cli.daemon import Daemon, daemon_options
from ipop_tx.cli.durations import duration
from ipop_tx.cli.orders import order_option, wait_for_others
from ipop_tx.errors import LocalMisuse

_JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object.")


@click.group()
def authority() -> None:
    """Who speaks for the network (docs/trust.md)."""


@authority.command()
@_JSON
@daemon_options
def show(daemon: Daemon, as_json: bool) -> None:
    """Show the authority's certificates and the keys that sign its orders."""
    found = daemon.get("/authority")
    if as_json:
        click.echo(json.dumps(found))
        return
    click.echo(f"charter {found['number']}: {found['threshold']} of {len(found['keys'])} keys sign orders")
    for key in found["keys"]:
        click.echo(f"  key   {key}")
    for root in found["roots"]:
        until = time.strftime("until %Y-%m-%d %H:%M", time.localtime(root["until"])) if root["until"] else "in use"
        click.echo(f"  root  {root['fingerprint']}  {until}")


@authority.command()
@click.option("--overlap", type=duration, default="30d", show_default=True, help="For how long what only the old root has signed counts.")
@order_option
@_JSON
@daemon_options
def roll(daemon: Daemon, overlap: int, order: Path, as_json: bool) -> None:
    """Give the authority another key. Only where its key is: the new one is made there. Keep a copy of that, too."""
    answer = daemon.post("/authority/roll", {"overlap_s": overlap})
    if as_json:
        click.echo(json.dumps(answer))
    elif not wait_for_others(answer, order):
        click.echo(f"charter {answer['number']} counts: the authority has another key")
        click.echo("keep a copy of the new authority.key in a safe place; the old one is worth nothing any more", err=True)


@authority.command()
@click.argument("threshold", type=click.IntRange(1, 16))
@click.argument("keys", nargs=-1, required=True)
@order_option
@_JSON
@daemon_options
def approvers(daemon: Daemon, threshold: int, keys: tuple[str, ...], order: Path, as_json: bool) -> None:
    """Let THRESHOLD of KEYS sign what the authority orders from now on, and nobody else. Only where the authority's key is.

    KEYS are what 'ipop authority key' printed; as many of them as must sign have to sign this too.
    """
    answer = daemon.post("/authority/approvers", {"threshold": threshold, "keys": list(keys)})
    if as_json:
        click.echo(json.dumps(answer))
    elif not wait_for_others(answer, order):
        click.echo(f"charter {answer['number']} counts: {threshold} of {len(keys)} keys sign orders")


@authority.command()
@order_option
@_JSON
@daemon_options
def renew(daemon: Daemon, order: Path, as_json: bool) -> None:
    """Renew the rights to admit that have run for half of their time, and list whoever was appointed. Only where the authority's key is."""
    answer = daemon.post("/authority/renew")
    if as_json:
        click.echo(json.dumps(answer))
    elif not wait_for_others(answer, order):
        click.echo(f"charter {answer['number']} counts")


@authority.command()
@click.argument("file", type=click.Path(path_type=Path))
def key(file: Path) -> None:
    """Make an approver's key in FILE, unless one is there, and print its public half for 'ipop authority approvers'."""
    from ipop_tx.identity.keys import compressed_point_of, ensure_key
    from ipop_tx.identity.state import StateDirectory

    if file.suffix != ".key":
        raise LocalMisuse(f"{file} does not end in .key", "call it for instance approver.key")
    made = ensure_key(StateDirectory(file.absolute().parent), file.name)
    click.echo(compressed_point_of(made.public_key()).hex())


@authority.command()
@click.argument("file", type=click.File("rb"))
@_JSON
@daemon_options
def give(daemon: Daemon, file: BinaryIO, as_json: bool) -> None:
    """Have the orders in FILE carried out, which enough keys have signed. On any member."""
    try:
        content = json.loads(file.read())
    except ValueError:
        raise LocalMisuse("this is no file of orders", "give what a command with --order has written") from None
    answer = daemon.post("/orders", content)
    click.echo(json.dumps(answer) if as_json else "\n".join(answer["done"]))
