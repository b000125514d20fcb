"""The commands that go on: top, log."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import click

from ipop_tx.cli.daemon import Daemon, daemon_options
from ipop_tx.cli.tables import bare, size, table_of


@click.command()
@click.option("--interval", type=click.FloatRange(0.2), default=2.0, show_default=True, help="Seconds between two looks.")
@click.option("-n", "--count", type=click.IntRange(1), help="Looks, then end.  [default: until interrupted]")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line for each look.")
@daemon_options
def top(daemon: Daemon, interval: float, count: int | None, as_json: bool) -> None:
    """Watch which peers the traffic goes to, the busiest first."""
    from rich.console import Console
    from rich.live import Live

    console = Console(file=sys.stdout, highlight=False)
    before, then = daemon.get("/status"), time.monotonic()
    live = Live(console=console, auto_refresh=False, transient=False) if console.is_terminal and not as_json else None
    if live is not None:
        live.start()
    try:
        while count is None or count > 0:
            time.sleep(interval)
            now, moment = daemon.get("/status"), time.monotonic()
            rows = rates(before, now, moment - then)
            before, then, count = now, moment, None if count is None else count - 1
            if as_json:
                click.echo(json.dumps({"peers": rows}))
            elif live is not None:
                live.update(_table(rows, console.height - 2), refresh=True)
            else:
                console.print(_table(rows, len(rows)))
    finally:
        if live is not None:
            live.stop()


def rates(before: dict[str, Any], now: dict[str, Any], seconds: float) -> list[dict[str, Any]]:
    """What went to and came from each peer, in bytes a second, between two looks."""
    past = {peer["ident"]: peer for peer in before["peers"]}
    rows = []
    for peer in now["peers"]:
        old = past.get(peer["ident"], {})
        each = {}
        for key in ("tx", "rx"):
            grown = peer.get(f"{key}_bytes", 0) - old.get(f"{key}_bytes", 0)
            each[f"{key}_bytes_s"] = max(0, grown) / max(seconds, 1e-9)
        rows.append({"name": peer["name"], "address": peer["address"], "path": peer["path"], "rtt_ms": peer["rtt_ms"], **each})
    return sorted(rows, key=lambda row: (-row["tx_bytes_s"] - row["rx_bytes_s"], row["name"]))


def _table(rows: list[dict[str, Any]], most: int) -> Any:
    texts = [
        (
            row["name"] or "-",
            row["address"] or "-",
            f"{size(row['tx_bytes_s'])}/s",
            f"{size(row['rx_bytes_s'])}/s",
            "-" if row["rtt_ms"] is None else f"{row['rtt_ms']:.1f}ms",
            bare(row["path"]),
        )
        for row in rows[: max(1, most)]
    ]
    return table_of(("name", "address", "sent", "received", "rtt", "path"), texts, right=("sent", "received", "rtt"))


@click.command()
@click.option("-n", "--lines", type=click.IntRange(1, 1000), default=50, show_default=True, help="How many of the last lines.")
@click.option("-f", "--follow", is_flag=True, help="Go on with new ones, until interrupted.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object; with --follow one for each look.")
@daemon_options
def log(daemon: Daemon, lines: int, follow: bool, as_json: bool) -> None:
    """Show the last lines of the daemon's log, wherever it writes it."""
    found = daemon.post("/log", {"limit": lines})
    while True:
        if as_json:
            click.echo(json.dumps(found))
        else:
            for line in found["lines"]:
                click.echo(line)
        if not follow:
            return
        sys.stdout.flush()
        time.sleep(1.0)
        found = daemon.post("/log", {"after": found["last"]})
