"""The `ipop` command."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence

import click

from ipop_tx.cli import (
    admission,
    authority,
    bugreport,
    dht,
    dns,
    explain,
    flows,
    lease,
    live,
    manual,
    membership,
    netcheck,
    peers,
    policy,
    simulate,
    trust,
    watch,
)
from ipop_tx.errors import IpopError

_EPILOG = (
    "Exit status: 0 it was done; 1 it could not be done, or what was asked about is at fault; 2 it was asked for wrongly; 130 interrupted. "
    "ipop man has all of it on one page."
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, epilog=_EPILOG)
def ipop() -> None:
    """Make, join and look at a private IP network that configures itself."""


@ipop.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def version(as_json: bool) -> None:
    """Print the version of this command; ipop status tells the daemon's."""
    from ipop_tx import __version__

    click.echo(json.dumps({"version": __version__}) if as_json else f"ipop_tx {__version__}")


for command in (
    peers.peers,
    peers.info,
    peers.route,
    lease.lease,
    watch.top,
    watch.log,
    bugreport.bugreport,
    manual.completion,
    manual.man,
):
    ipop.add_command(command)
for command in (
    live.status,
    live.metrics,
    live.ping,
    explain.explain,
    flows.flows,
    dns.resolve,
    netcheck.netcheck,
    live.reload,
    live.leave,
):
    ipop.add_command(command)
for command in (
    membership.network,
    membership.join,
    membership.request,
    membership.sign,
    membership.install,
    admission.invite,
    admission.requests,
    admission.admit,
    admission.deny,
    admission.admission,
    trust.revoke,
    trust.withdraw,
    trust.revocations,
):
    ipop.add_command(command)
ipop.add_command(authority.authority)
ipop.add_command(dht.dht)
ipop.add_command(dns.dns)
ipop.add_command(policy.policy)
ipop.add_command(simulate.simulate)


_SHORT = {
    "bugreport": "versions, configuration, status, log; no secrets",
    "completion": "what makes a shell complete these commands",
    "dht": "small values kept in the network",
    "dns": "names for the programs of this machine",
    "explain": "why another node is reached or not, and the mend",
    "flows": "what has passed between nodes",
    "info": "all that is known of a node",
    "install": "install a certificate that was carried here",
    "invite": "print a line that admits one machine, once",
    "join": "join a network by an invitation",
    "lease": "the addresses leased here",
    "leave": "give the address back and stop the daemon",
    "log": "the last lines of the daemon's log",
    "man": "print the man page",
    "metrics": "what the daemon counts, for Prometheus",
    "netcheck": "what the NAT before this node does",
    "network": "make a network, or mend it after a great loss",
    "peers": "the nodes that this one has a link to",
    "ping": "whether another node hears us, and by which path",
    "policy": "which traffic between members is allowed",
    "reload": "have the daemon read its node.toml anew",
    "request": "print a request for a certificate, to be carried",
    "resolve": "which node owns a name or an address",
    "revocations": "who was thrown out",
    "revoke": "throw a node out of the network",
    "route": "where packets go",
    "sign": "sign a request that was carried here",
    "simulate": "rings of thousands of nodes in virtual time",
    "status": "this node, its peers, and what is not well",
    "top": "which peers the traffic goes to",
    "version": "the version of this command",
}
"""What each command is for, in the 60 characters that a list in 80 columns has for it."""
for name, text in _SHORT.items():
    ipop.commands[name].short_help = text


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit: 0 done, 1 it could not be done, 2 it was asked for wrongly. An error is one line on stderr."""
    try:
        ipop.main(args=arguments, prog_name="ipop", standalone_mode=False)
        sys.stdout.flush()
    except IpopError as error:
        _fail(str(error), error.exit_status)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(2)
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "ipop"
        _fail(f"{_sentence(error.format_message())}: see '{command} --help'", 2)
    except click.ClickException as error:
        _fail(_sentence(error.format_message()), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _fail("interrupted", 130)
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _sentence(message: str) -> str:
    """Click's messages, on one line and without the full stop."""
    return " ".join(message.split()).rstrip(".")


def _fail(sentence: str, status: int) -> None:
    click.echo(f"ipop: {sentence}", err=True)
    sys.exit(status)


if __name__ == "__main__":
    main()
