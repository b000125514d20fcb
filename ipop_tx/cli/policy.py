"""The commands about the network's policy: policy set, show, test, remove."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, BinaryIO

import click

from ipop_tx.cli.daemon import Daemon, daemon_options
from ipop_tx.cli.orders import order_option, wait_for_others
from ipop_tx.errors import LocalMisuse


@click.group()
def policy() -> None:
    """Which traffic between members is allowed (docs/policy.md)."""


@policy.command("set")
@click.argument("file", type=click.File("rb"))
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@order_option
@daemon_options
def set_(daemon: Daemon, file: BinaryIO, as_json: bool, order: Path) -> None:
    """Give the network the policy in FILE ('-' is stdin). Only where the authority's key is."""
    try:
        text = file.read().decode()
    except UnicodeDecodeError:
        raise LocalMisuse("the policy is not UTF-8", "write it as plain text") from None
    if not text.strip():
        raise LocalMisuse("the policy is empty", "to have none, run ipop policy remove")
    answer = daemon.post("/policy", {"text": text})
    if as_json:
        click.echo(json.dumps(answer))
    elif not wait_for_others(answer, order):
        click.echo(f"policy {answer['version']} counts from now on", err=True)


@policy.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@order_option
@daemon_options
def remove(daemon: Daemon, as_json: bool, order: Path) -> None:
    """Let the network have no policy: all traffic between members is allowed. Only where the authority's key is."""
    answer = daemon.post("/policy", {"text": ""})
    if as_json:
        click.echo(json.dumps(answer))
    elif not wait_for_others(answer, order):
        click.echo("the network has no policy any more: all traffic is allowed", err=True)


@policy.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@daemon_options
def show(daemon: Daemon, as_json: bool) -> None:
    """Print the policy as it was set; on stderr what each rule has allowed, and what was dropped last, on this node."""
    answer = daemon.get("/policy")
    if as_json:
        click.echo(json.dumps(answer))
        return
    if not answer["text"]:
        click.echo("the network has no policy: all traffic between members is allowed", err=True)
        return
    click.echo(answer["text"].rstrip("\n"))
    _tell(answer["enforced"])


def _tell(enforced: dict[str, Any]) -> None:
    click.echo(f"policy {enforced['version']}, {enforced['flows']} flows under way on this node", err=True)
    for name, count in enforced["allowed"].items():
        click.echo(f"  {count:>8} flows allowed by {name}", err=True)
    for denial in enforced["denied"]:
        way = f"from {denial['peer']}" if denial["direction"] == "in" else f"to {denial['peer']}"
        click.echo(f"  {denial['frames']:>8} frames {way} dropped: {denial['what']}", err=True)


@policy.command()
@click.argument("source")
@click.argument("target")
@click.argument("service")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@daemon_options
def test(daemon: Daemon, source: str, target: str, service: str, as_json: bool) -> None:
    """Say whether SOURCE may begin SERVICE (tcp/22, udp/53, icmp/echo-request) with TARGET; both are names or addresses.

    Exits with 1 if it may not.
    """
    answer = daemon.post("/policy/test", {"source": source, "target": target, "service": service})
    if as_json:
        click.echo(json.dumps(answer))
    else:
        if answer["rule"] is not None:
            why = f"by {answer['rule']}"
        elif answer["default"] is None:
            why = "there is no policy"
        else:
            why = "no rule allows it" if not answer["allowed"] else "by default"
        click.echo(f"{'allowed' if answer['allowed'] else 'dropped'}: {why}")
        for end in (answer["source"], answer["target"]):
            if end["version"] not in (None, answer["version"]):
                click.echo(f"{end['name']} has another version of the settings ({end['version']})", err=True)
    if not answer["allowed"]:
        sys.exit(1)
