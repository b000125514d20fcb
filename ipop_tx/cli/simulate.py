"""`ipop simulate`: rings of thousands of nodes in virtual time, on this machine."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click

SHARE = click.FloatRange(0, 1, max_open=True)


@click.command()
@click.option("--nodes", default=1000, show_default=True, type=click.IntRange(1, 2_000_000), help="Nodes of the ring.")
@click.option("--seed", default=1, show_default=True, help="Same seed, same run.")
@click.option(
    "--minutes", default=10.0, show_default=True, type=click.FloatRange(0, min_open=True), help="Simulated time, idle or under churn."
)
@click.option("--lookups", default=5000, show_default=True, type=click.IntRange(1), help="Look-ups that are judged.")
@click.option("--churn", "session", type=click.FloatRange(0, min_open=True), metavar="MINUTES", help="Nodes come and go: mean session.")
@click.option("--leave", default=0.0, type=SHARE, help="Share of sessions that end with a goodbye; the others crash.")
@click.option("--loss", default=0.0, type=SHARE, help="Share of datagrams lost.")
@click.option("--strangers", default=0.0, type=SHARE, help="Share of pairs that cannot reach each other directly, as behind bad NATs.")
@click.option("--kill", default=0.0, type=SHARE, help="Share of nodes that crash in one moment, at the end.")
@click.option("--asleep", default=0.0, type=SHARE, help="Share of nodes whose machines are suspended at the end, and wake later.")
@click.option("--parts", default=1, type=click.IntRange(1, 16), help="Into so many parts the net falls at the end ...")
@click.option(
    "--parted",
    default=60.0,
    show_default=True,
    type=click.FloatRange(0),
    metavar="MINUTES",
    help="... and for how long; also for --asleep.",
)
@click.option("--joining", is_flag=True, help="Begin with nodes that join one after another, not with a settled ring.")
@click.option("--flood", is_flag=True, help="Begin with all joining at once through one node.")
@click.option("--rtt", type=click.Path(path_type=Path), metavar="FILE", help="Round trips in ms, a square of numbers; else a plane.")
@click.option("--width", default=100.0, show_default=True, metavar="MS", help="Round trip along a side of the plane.")
@click.option("--static", is_flag=True, help="Only links and look-ups, no time: for a million nodes.")
@click.option(
    "--plot", type=click.Path(path_type=Path), metavar="FILE.png", help="A picture of hops, latency and traffic; needs matplotlib."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on the last line.")
def simulate(plot: Path | None, as_json: bool, static: bool, rtt: Path | None, width: float, **planned: Any) -> None:
    r"""Simulate a ring: the daemons' own code in virtual time, over modelled links.

    \b
    ipop simulate --nodes 10000
    ipop simulate --nodes 1000 --churn 5 --minutes 30
    ipop simulate --nodes 1000 --strangers 0.3 --kill 0.5 --plot ring.png
    ipop simulate --nodes 1000000 --static
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from ipop_tx.simulation import plot as drawing
    from ipop_tx.simulation.story import Plan, Story, read_rtt

    if plot is not None:
        drawing.pyplot()
    plan = Plan(rtt_ms=read_rtt(rtt) if rtt else None, width_ms=width, **planned)
    console = Console(stderr=True)
    begun = time.monotonic()
    with Progress(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"), TimeElapsedColumn(),
        console=console, transient=True, disable=not console.is_terminal,
    ) as bar:  # fmt: skip
        task = bar.add_task("...", total=1.0)

        def progress(what: str, share: float) -> None:
            bar.update(task, description=what, completed=share)

        if static:
            from ipop_tx.simulation.static import measure

            report, samples = measure(plan.nodes, plan.seed, plan.lookups, width / 1000, progress)
        else:
            story = Story(plan, progress)
            report, samples = story.run(), story.samples
    report["wall_s"] = round(time.monotonic() - begun, 1)
    if plot is not None:
        drawing.picture(report, samples, plot)
    click.echo(json.dumps(report) if as_json else _text(report))


def _text(report: dict[str, Any], indent: str = "") -> str:
    lines = []
    for name, value in report.items():
        if isinstance(value, dict):
            lines.append(f"{indent}{name}\n{_text(value, indent + '  ')}")
        else:
            lines.append(f"{indent}{name:<24}{value}")
    return "\n".join(lines)
