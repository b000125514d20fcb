"""The commands about names: resolve, dns restore."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import click

from ipop_tx.cli.daemon import Daemon, complete_node, daemon_options
from ipop_tx.config import DEFAULT_PATH, Config, load_config
from ipop_tx.errors import EnvironmentProblem
from ipop_tx.values import Network


@click.command()
@click.argument("target", shell_complete=complete_node)
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


config_option = click.option(
    "--config", type=click.Path(path_type=Path, readable=False), default=DEFAULT_PATH, show_default=True, help="The node's node.toml."
)


@dns.command()
@config_option
def tell(config: Path) -> None:
    """Have this machine's resolver ask the daemon that runs; it does so itself where it may, as root.

    For a service manager whose daemon is another user, to be run after the daemon has started and when somebody has rewritten resolv.conf.
    """
    from ipop_tx.services.hostdns import RESOLVECTL, ByResolved, host_dns

    loaded = load_config(config)
    if loaded.dns.listen is None:
        return
    Daemon(loaded.control.socket).get("/version")  # of a dead one nobody is to be told
    host = host_dns(None, loaded.dns, network_of(loaded), loaded.tap.name)
    if isinstance(host, ByResolved):
        for words in host.words():
            done = subprocess.run([RESOLVECTL, *words], capture_output=True, text=True, check=False)
            if done.returncode:
                raise EnvironmentProblem(f"resolvectl {words[0]} failed: {done.stderr.strip()}", "look whether systemd-resolved runs")
    elif host is not None:
        host.put()


@dns.command()
@config_option
def restore(config: Path) -> None:
    """Take out of resolv.conf what a daemon put there that was killed; it does so itself when it starts again.

    For a service manager, to be run after the daemon has ended, however it has.
    """
    from ipop_tx.services.resolvconf import ResolvConf

    loaded = load_config(config)
    restored = ResolvConf(loaded.dns.resolv_conf, network_of(loaded).name).take_back()
    click.echo(f"{loaded.dns.resolv_conf} is {'as it was before' if restored else 'free of us already'}", err=True)


def network_of(config: Config) -> Network:
    """The network of a node."""
    from ipop_tx.identity.credentials import Credentials
    from ipop_tx.identity.state import StateDirectory

    return Credentials.load(StateDirectory(config.node.state)).network
