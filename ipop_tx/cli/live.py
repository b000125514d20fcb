"""The commands that ask a running daemon: status, metrics, ping, leave."""

from __future__ import annotations

import json
import time
from typing import Any

import click

from ipop_tx.cli.daemon import Daemon, complete_node, daemon_options
from ipop_tx.errors import Unreachable


@click.command()
@click.option("--json", "as_json", is_flag=True, help="All that the daemon tells, as one JSON object.")
@daemon_options
def status(daemon: Daemon, as_json: bool) -> None:
    """Show this node, a row per peer, and what is not well."""
    value = daemon.get("/status")
    if as_json:
        click.echo(json.dumps(value))
        return
    from ipop_tx.cli.tables import print_status

    print_status(value)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@daemon_options
def reload(daemon: Daemon, as_json: bool) -> None:
    """Have the daemon read its node.toml anew, as SIGHUP does. A wrong one changes nothing, and the exit status is 1.

    The daemon says which keys it has taken, and which of them wait for a restart.
    """
    answer = daemon.post("/reload")
    if as_json:
        click.echo(json.dumps(answer))
        return
    for what, keys in (("taken", answer["taken"]), ("waiting for a restart", answer["restart"])):
        if keys:
            click.echo(f"{what}: {', '.join(keys)}")
    if not answer["taken"] and not answer["restart"]:
        click.echo("nothing has changed")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="The same as one JSON object with a text.")
@daemon_options
def metrics(daemon: Daemon, as_json: bool) -> None:
    """Print what the daemon counts, in the text format of Prometheus."""
    answer = daemon.get("/metrics")
    click.echo(json.dumps(answer) if as_json else answer["text"], nl=as_json)


@click.command()
@click.argument("target", shell_complete=complete_node)
@click.option("-c", "--count", type=click.IntRange(1), default=10, show_default=True, help="Probes at most.")
@click.option("--until-direct/--all", default=True, show_default=True, help="Stop at the first answer by a direct path.")
@click.option("--interval", type=click.FloatRange(0), default=1.0, show_default=True, help="Seconds between probes.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object at the end.")
@daemon_options
def ping(daemon: Daemon, target: str, count: int, until_direct: bool, interval: float, as_json: bool) -> None:
    """Ask another node, by name or address, whether it hears us, and say which path its answer took."""
    answers: list[dict[str, Any]] = []
    sent = 0
    for sent in range(1, count + 1):
        started = time.monotonic()
        answer = _probe(daemon, target, quiet=as_json)
        if answer is not None:
            answers.append(answer)
            if not as_json:
                click.echo(f"{answer['name']} ({answer['address']}) answered in {answer['rtt_ms']:.1f} ms: {answer['path']}")
            if until_direct and answer["direct"]:
                break
        if sent < count:
            time.sleep(max(0.0, interval - (time.monotonic() - started)))
    direct = any(answer["direct"] for answer in answers)
    if as_json:
        click.echo(json.dumps({"target": target, "sent": sent, "received": len(answers), "direct": direct, "answers": answers}))
    if not answers:
        raise Unreachable(f"{target} answered none of {sent} probes", "see 'ipop status' for the state of the ring")
    if not direct and not as_json:
        click.echo("no direct path yet; answers come by relay", err=True)


def _probe(daemon: Daemon, target: str, quiet: bool) -> dict[str, Any] | None:
    try:
        answer: dict[str, Any] = daemon.post("/ping", {"target": target})
    except Unreachable as error:
        if not quiet:
            click.echo(f"no answer: {error}")
        return None
    return answer


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@daemon_options
def leave(daemon: Daemon, as_json: bool) -> None:
    """Hand this node's part of the ring over, give its address back and stop the daemon."""
    left = daemon.post("/leave", doing="handing over what this node keeps")
    if as_json:
        click.echo(json.dumps(left))
        return
    click.echo("left the network; the node's keys are kept, so it may come back")
    if left.get("kept"):
        what = f"{left['kept']} of {left['of']} parts of the DHT stay on this node's disk, since no other node could take them over"
        click.echo(f"{what}: start it again before the network needs them", err=True)
