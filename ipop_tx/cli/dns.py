"""The commands about names: resolve, dns restore."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ipop_tx.cli.daemon import Daemon, daemon_options
from ipop_tx.config import DEFAULT_PATH, load_config


@click.command()
@click.argument("target")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@daemon_options
def resolve(daemon: Daemon, target: str, as_json: bool) -> None:
    """Print which node owns a name or an address of the network."""
    owner = daemon.post("/resolve", {"target": target})
    if as_json:
        click.echo(json.dumps(owner))
        return
    click.echo(f"{owner['name'] or '(no name)'}  {owner['address'] or '(no IPv4 address)'}  {owner['ipv6']}  {owner['ident']}")


@click.group()
def dns() -> None:
    """Names of the network for the programs of this machine."""


@dns.command()
@click.option(
    "--config", type=click.Path(path_type=Path, readable=False), default=DEFAULT_PATH, show_default=True, help="The node's node.toml."
)
def restore(config: Path) -> None:
    """Take out of resolv.conf what a daemon put there that was killed; it does so itself when it starts again.

    For a service manager, to be run after the daemon has ended, however it has.
    """
    from ipop_tx.identity.credentials import Credentials
    from ipop_tx.identity.state import StateDirectory
    from ipop_tx.services.resolvconf import ResolvConf

    loaded = load_config(config)
    network = Credentials.load(StateDirectory(loaded.node.state)).network
    restored = ResolvConf(loaded.dns.resolv_conf, network.name).take_back()
    click.echo(f"{loaded.dns.resolv_conf} is {'as it was before' if restored else 'free of us already'}", err=True)
