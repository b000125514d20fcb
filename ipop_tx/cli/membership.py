"""The commands that make a network and bring machines into it: network create, join, request, sign, install."""

from __future__ import annotations

import json
import os
import socket
import stat
import sys
from collections.abc import Sequence
from ipaddress import IPv4Network
from pathlib import Path
from typing import BinaryIO

import click

from ipop_tx.cli.daemon import Daemon, daemon_options
from ipop_tx.cli.durations import duration
from ipop_tx.cli.orders import order_option, sign_orders, wait_for_others
from ipop_tx.config import DEFAULT_PATH, load_config
from ipop_tx.errors import EnvironmentProblem, LocalMisuse, PermissionProblem
from ipop_tx.values import Endpoint, Proxy

DEFAULT_STATE = Path("/var/lib/ipop")
UNIT = Path("/lib/systemd/system/ipop@.service")

_PATH = click.Path(path_type=Path, readable=False)
state_option = click.option(
    "--state", type=_PATH, help=f"Directory of the node's keys.  [default: what the config says, else {DEFAULT_STATE}]"
)
config_option = click.option(
    "--config", type=_PATH, help=f"The node.toml to use; written if it does not exist.  [default without --state: {DEFAULT_PATH}]"
)


def pool_range(text: str) -> IPv4Network:
    """Read an IPv4 range such as 10.128.0.0/16."""
    try:
        return IPv4Network(text)
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is not an IPv4 range such as 10.128.0.0/16 ({error})") from None


def fingerprint_of(text: str) -> bytes:
    """Read an authority's fingerprint: 32 hex digits."""
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a fingerprint: hex digits, as 'ipop sign' told them") from None


def endpoint_text(text: str) -> str:
    """Check an endpoint."""
    try:
        return str(Endpoint.parse(text))
    except LocalMisuse as error:
        raise click.BadParameter(str(error)) from None


def host_name() -> str:
    """A node name made of this machine's: letters, digits and dashes."""
    first = socket.gethostname().partition(".")[0].lower()
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in first)[:40].strip("-") or "node"


@click.group()
def network() -> None:
    """Make a network, or mend it after a great loss."""


@network.command()
@click.argument("name")
@click.option(
    "--pool", type=pool_range, metavar="RANGE", default="10.128.0.0/16", show_default=True, help="The IPv4 addresses of its nodes."
)
@click.option("--name", "node", help="The name of this, the first node.  [default: the machine's]")
@state_option
@config_option
def create(name: str, pool: IPv4Network, node: str | None, state: Path | None, config: Path | None) -> None:
    """Make the network NAME with this machine as its first node and authority."""
    from ipop_tx.app import found_network
    from ipop_tx.identity.state import StateDirectory

    config, state = _places(config, state)
    created = found_network(StateDirectory(state), name, pool, node or host_name())
    click.echo(f"network {created.name}: pool {created.pool}, prefix {created.prefix}")
    click.echo(f"{state} holds its authority key: keep a copy in a safe place", err=True)
    _finish(config, state, (), f'[lease]\naddress = "{created.pool[1]}"\n')


@network.command()
@click.option("--yes", is_flag=True, help="Do it, rather than only say what is lost.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@order_option
@daemon_options
def recover(daemon: Daemon, yes: bool, as_json: bool, order: Path) -> None:
    """Found the parts of the DHT anew whose members are lost for ever. Only where the authority's key is.

    Without --yes it changes nothing. What only the lost members had is gone: leases and names that were written last may be given to
    others, what was deleted may be back. Never do it while the missing members may still run: both sides would give addresses away.
    """
    answer = daemon.post("/recover", {"confirm": yes}, doing="looking at every part of the DHT")
    if as_json:
        click.echo(json.dumps(answer))
        return
    if not answer["lost"]:
        click.echo("every part of the DHT has its majority: there is nothing to recover")
        return
    missing = sorted({name for loss in answer["lost"] for name in loss["missing"]})
    bare = sum(not loss["copies"] for loss in answer["lost"])
    click.echo(f"{len(answer['lost'])} parts of the DHT have no majority; not reached: {', '.join(missing) or 'nobody'}")
    if bare:
        click.echo(f"of {bare} of them no copy is left: those begin empty", err=True)
    if not yes:
        click.echo("if those are lost for ever, and only then:  ipop network recover --yes", err=True)
        return
    if wait_for_others(answer, order):
        return
    works = sum(one["works"] for one in answer["founded"])
    saved = sum(one["registers"] for one in answer["founded"])
    click.echo(f"{works} parts founded anew with {saved} registers; members that come back learn that their copies are void")
    if works < len(answer["founded"]):
        raise EnvironmentProblem(f"{len(answer['founded']) - works} parts do not work yet", "run it again when more members are linked")


@click.command()
@click.argument("token")
@click.option("--name", help="A name for this node, if the invitation gives none.  [default: the machine's]")
@click.option("--wait", type=duration, default="1d", show_default=True, help="How long to wait where somebody has to let it in by hand.")
@click.option("--proxy", metavar="URL", help="Where no UDP passes: http://HOST:PORT or socks5://HOST:PORT.  [default: $https_proxy]")
@state_option
@config_option
def join(token: str, name: str | None, wait: int, proxy: str | None, state: Path | None, config: Path | None) -> None:
    """Join a network by the invitation TOKEN, as 'ipop invite' printed it; '-' reads it from stdin."""
    from ipop_tx.services.enrolment import join as enrol
    from ipop_tx.transport.proxy import chooser

    config, state = _places(config, state)
    if token == "-":
        token = sys.stdin.readline()
    configured = load_config(config).listen.tls.proxy if config is not None and config.exists() else None
    proxy_of = chooser(Proxy.parse(proxy) if proxy else configured, os.environ)
    joined = enrol(token.strip(), state, name or host_name(), proxy_of, wait, lambda sentence: click.echo(sentence, err=True))
    click.echo(f"joined {joined.network} as {joined.name} ({joined.ident[:8]})")
    _finish(config, state, joined.bootstrap, f"[listen.tls]\nproxy = {json.dumps(proxy)}\n" if proxy else "", secret=bool(proxy))


@click.command()
@click.option("--name", help="The name to ask for.  [default: the machine's]")
@state_option
@config_option
def request(name: str | None, state: Path | None, config: Path | None) -> None:
    """Make this node's key and print a request, to be signed by 'ipop sign' on a machine that may admit."""
    from ipop_tx.identity.authority import make_request
    from ipop_tx.identity.state import StateDirectory

    _, state = _places(config, state)
    click.echo(make_request(StateDirectory(state), name or host_name()).decode(), nl=False)


@click.command()
@click.argument("file", type=click.File("rb"))
@click.option("--key", type=_PATH, help="For a file of orders: the key to sign them with.")
@click.option("--name", default="", help="The name to give instead of the one that is asked for.")
@click.option("--address", default="", metavar="IPV4", help="An address to assign: the node then has it, whoever else may hold it.")
@click.option("--group", "groups", multiple=True, help="A group that it is to be in, for the network's policy; may be repeated.")
@click.option("--route", "routes", multiple=True, metavar="NETWORK", help="An IP network to which it may lead; may be repeated.")
@click.option("--life", type=duration, default="365d", show_default=True, help="For how long its certificate counts, until it is renewed.")
@state_option
@config_option
def sign(
    file: BinaryIO,
    key: Path | None,
    name: str,
    address: str,
    groups: tuple[str, ...],
    routes: tuple[str, ...],
    life: int,
    state: Path | None,
    config: Path | None,
) -> None:
    """Sign the request in FILE ('-' is stdin) and print what 'ipop install' takes there.

    A file of the authority's orders, which more keys have to sign, gets one more signature, by --key.
    """
    from ipop_tx.identity.authority import Admitter, sign_request
    from ipop_tx.identity.certificates import Rights, fingerprint
    from ipop_tx.identity.state import StateDirectory

    content = file.read()
    if key is not None:
        sign_orders(Path(file.name), content, key)
        return
    _, state = _places(config, state)
    chain = sign_request(StateDirectory(state), content, name, rights=Rights(address, groups, routes, life))
    authority = fingerprint(Admitter.load(StateDirectory(state)).root).hex()
    click.echo(f"next, there:  ipop install FILE --authority {authority}", err=True)
    click.echo(chain.decode(), nl=False)


@click.command()
@click.argument("file", type=click.File("rb"))
@click.option("--authority", required=True, type=fingerprint_of, metavar="HEX", help="The authority's fingerprint, as 'ipop sign' told it.")
@click.option("--bootstrap", multiple=True, type=endpoint_text, metavar="ENDPOINT", help="A member to ask first: udp:198.51.100.7:4500.")
@state_option
@config_option
def install(file: BinaryIO, authority: bytes, bootstrap: tuple[str, ...], state: Path | None, config: Path | None) -> None:
    """Install what 'ipop sign' printed, in FILE ('-' is stdin): this machine is then a member."""
    from ipop_tx.identity.authority import install_chain
    from ipop_tx.identity.state import StateDirectory

    config, state = _places(config, state)
    joined = install_chain(StateDirectory(state), file.read(), authority)
    click.echo(f"a member of {joined.name}")
    _finish(config, state, bootstrap)


def _places(config: Path | None, state: Path | None) -> tuple[Path | None, Path]:
    """(node.toml to use or write, or None for none; directory of the state)."""
    if config is None and state is None:
        config = DEFAULT_PATH
    if config is None or not config.exists():
        return config, (state or DEFAULT_STATE).absolute()
    configured = load_config(config).node.state
    if state is not None and state.absolute() != configured:
        raise LocalMisuse(f"--state {state} is not the node.state of {config}, which is {configured}", "leave one of the two options out")
    return config, configured


def _finish(config: Path | None, state: Path, bootstrap: Sequence[str], more: str = "", secret: bool = False) -> None:
    """Write the node.toml that is missing, with `more` at its end, and say what comes next. stderr: stdout is for scripts."""
    if config is None:
        click.echo(f"next, with a node.toml that has  node.state = {json.dumps(str(state))}:  twistd ipop --config FILE", err=True)
        if bootstrap:
            click.echo(f"and  node.bootstrap = {json.dumps(list(bootstrap))}", err=True)
        return
    if config.exists():
        _remind(config, bootstrap)
    else:
        _write_config(config, state, bootstrap, more, secret)
        click.echo(f"wrote {config}", err=True)
    click.echo(f"next:  {_start(config)}", err=True)


def _start(config: Path) -> str:
    """How a node is started: by the service manager, where the package has brought the unit for it."""
    if config.parent == DEFAULT_PATH.parent and UNIT.exists():
        return f"systemctl enable --now ipop@{config.stem}"
    return "twistd ipop" if config == DEFAULT_PATH else f"twistd ipop --config {config}"


def _remind(config: Path, bootstrap: Sequence[str]) -> None:
    known = {str(endpoint) for endpoint in load_config(config).node.bootstrap}
    if bootstrap and not known:
        click.echo(f"add to {config}, below [node]:  bootstrap = {json.dumps(list(bootstrap))}", err=True)


def _write_config(config: Path, state: Path, bootstrap: Sequence[str], more: str, secret: bool) -> None:
    text = (
        "# Written by ipop. conf/node.toml of ipop_tx explains every key.\n"
        f"[node]\nstate = {json.dumps(str(state), ensure_ascii=False)}\nbootstrap = {json.dumps(list(bootstrap))}\n{more}"
    )
    try:
        config.parent.mkdir(parents=True, exist_ok=True)
        shared = config.parent.stat().st_mode & stat.S_ISGID  # made so for the daemon's group, as by the package
        mode = 0o644 if not secret else 0o640 if shared else 0o600
        with os.fdopen(os.open(config, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w", encoding="utf-8") as file:
            file.write(text)
    except PermissionError:
        raise PermissionProblem(f"{config} cannot be written", "run as root, or name another file with --config") from None
    except OSError as error:
        raise EnvironmentProblem(f"{config} cannot be written: {error.strerror}", "name another file with --config") from None
