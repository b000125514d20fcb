"""The `ipop` command."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click

from ipop_tx.cli import admission, authority, dht, dns, live, membership, netcheck, policy, simulate, trust
from ipop_tx.errors import IpopError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def ipop() -> None:
    """Make, join and look at a private IP network that configures itself."""


@ipop.command()
def version() -> None:
    """Print the version of this command."""
    from ipop_tx import __version__

    click.echo(f"ipop_tx {__version__}")


for command in (live.status, live.metrics, live.ping, dns.resolve, netcheck.netcheck, live.leave):
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
