"""The commands about who gets in: invite, requests, admit, deny, admission."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click

from ipop_tx.cli.daemon import Daemon, daemon_options
from ipop_tx.cli.durations import duration
from ipop_tx.cli.orders import order_option, wait_for_others

_JSON = click.option("--json", "as_json", is_flag=True, help="One JSON value.")


@click.command()
@click.option("--expires", type=duration, default="1h", show_default=True, help="For how long it may be used: 30m, 1h, 2d.")
@click.option("--uses", type=click.IntRange(1, 1000), default=1, show_default=True, help="How many machines may join by it.")
@click.option("--name", help="The name of the node that it admits; for several a pattern such as lab-*.")
@click.option("--approval", is_flag=True, help="Somebody has to let each machine in by hand (ipop requests, ipop admit).")
@click.option("--appoint", is_flag=True, help="Whoever joins by it may invite others.")
@click.option("--address", metavar="IPV4", help="An address to assign: the node then has it, whoever else may hold it.")
@click.option("--group", "groups", multiple=True, help="A group that the node is to be in, for the network's policy; may be repeated.")
@click.option("--route", "routes", multiple=True, metavar="NETWORK", help="An IP network to which the node may lead; may be repeated.")
@click.option("--life", type=duration, default="365d", show_default=True, help="For how long its certificate counts, until it is renewed.")
@click.option("--only-names", metavar="PATTERN", help="With --appoint: it may give only such names.")
@click.option("--only-group", "only_groups", multiple=True, help="With --appoint: a group that it may give; may be repeated.")
@click.option("--only-route", "only_routes", multiple=True, metavar="NETWORK", help="With --appoint: it may give routes into it.")
@click.option("--only-life", type=duration, help="With --appoint: for how long its certificates count at most.")
@click.option("--no-addresses", is_flag=True, help="With --appoint: it may not assign addresses.")
@_JSON
@daemon_options
def invite(daemon: Daemon, expires: int, appoint: bool, life: int, as_json: bool, **wish: Any) -> None:
    """Print an invitation: one line that admits one machine, or as many as --uses says. Any member that admits will take it."""
    limits = _limits(wish)
    answer = daemon.post("/invite", {**wish, "limits": limits, "expires_s": expires, "appoints": appoint, "life_s": life})
    if as_json:
        click.echo(json.dumps(answer))
        return
    until = answer.get("expires")
    if isinstance(until, (int, float)):
        until = time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(until))
    whom = "one machine, once," if wish["uses"] == 1 else f"{wish['uses']} machines"
    click.echo(f"Admits {whom} until {until}. Keep it secret. There:  ipop join TOKEN", err=True)
    click.echo(answer["token"])


def _limits(wish: dict[str, Any]) -> dict[str, Any]:
    """Take the options that limit whoever is appointed out of `wish`."""
    names, groups, routes, life = (wish.pop(key) for key in ("only_names", "only_groups", "only_routes", "only_life"))
    limits = {"names": names, "groups": list(groups), "routes": list(routes), "life": life}
    return {key: value for key, value in limits.items() if value} | ({"addresses": False} if wish.pop("no_addresses") else {})


@click.command()
@_JSON
@daemon_options
def requests(daemon: Daemon, as_json: bool) -> None:
    """Show the machines that wait at this node to be let in by hand."""
    found = daemon.get("/requests")
    if as_json:
        click.echo(json.dumps(found))
        return
    for one in found:
        since = time.strftime("%Y-%m-%d %H:%M", time.localtime(one["since"]))
        click.echo(f"{one['key'][:8]}  {one['name']:<20}  since {since}, asked {max(0, int(time.time() - one['asked']))} s ago")
    if not found:
        click.echo("nobody waits", err=True)


@click.command()
@click.argument("target")
@_JSON
@daemon_options
def admit(daemon: Daemon, target: str, as_json: bool) -> None:
    """Let the machine TARGET in that waits here: its name, or the first digits of its key as 'ipop requests' shows them."""
    _told(daemon.post("/admit", {"target": target}), as_json, "may come in, within seconds if it is waiting")


@click.command()
@click.argument("target")
@_JSON
@daemon_options
def deny(daemon: Daemon, target: str, as_json: bool) -> None:
    """Refuse the machine TARGET that waits here to be let in; it would need another key to ask again."""
    _told(daemon.post("/deny", {"target": target}), as_json, "is not let in")


def _told(answer: dict[str, Any], as_json: bool, what: str) -> None:
    click.echo(json.dumps(answer) if as_json else f"{answer['name']} ({answer['key'][:8]}) {what}")


@click.group()
def admission() -> None:
    """The network's rules for who gets in (docs/trust.md)."""


@admission.command()
@_JSON
@daemon_options
def show(daemon: Daemon, as_json: bool) -> None:
    """Print the rules."""
    _print_rules(daemon.get("/admission"), as_json)


@admission.command()
@_JSON
@daemon_options
def limits(daemon: Daemon, as_json: bool) -> None:
    """Print within what limits this node may admit."""
    found = daemon.get("/admission/limits")
    if as_json:
        click.echo(json.dumps(found))
        return
    click.echo(f"names: {found['names'] or 'any'}")
    for what in ("groups", "routes"):
        click.echo(f"{what}: {'any' if found[what] is None else ', '.join(found[what]) or 'none'}")
    click.echo(f"assigned addresses: {'yes' if found['addresses'] else 'no'}")
    click.echo(f"life of certificates: {str(found['life']) + ' s at most' if found['life'] else 'any'}")


@admission.command("set")
@click.option("--approval/--no-approval", default=None, help="Whether somebody has to let each newcomer in by hand.")
@click.option("--grace", type=duration, help="For how long a certificate that has ended can still be renewed.")
@order_option
@_JSON
@daemon_options
def set_(daemon: Daemon, approval: bool | None, grace: int | None, order: Path, as_json: bool) -> None:
    """Change rules. Only where the authority's key is."""
    if approval is None and grace is None:
        raise click.UsageError("say which rule is to change: --approval, --no-approval or --grace")
    answer = daemon.post("/admission", {"approval": approval, "grace_s": grace})
    if as_json or not wait_for_others(answer, order):
        _print_rules(answer, as_json)


def _print_rules(rules: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(rules))
        return
    click.echo(f"newcomers are let in {'by hand' if rules['approval'] else 'by their invitation alone'}")
    click.echo(f"a certificate that has ended can be renewed for {rules['grace_s'] / 86400:g} days")
