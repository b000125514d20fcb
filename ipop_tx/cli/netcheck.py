"""`ipop netcheck`: what stands between this node and direct paths, within 80 columns."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

import click

from ipop_tx.cli.daemon import Daemon, daemon_options
from ipop_tx.cli.tables import bare

WIDTH = 80
_LABEL = 14
_ROWS = 8
"""Most peers, observed addresses or relays that are written out; --json has all."""


@click.command()
@click.option("--json", "as_json", is_flag=True, help="All that was found, as one JSON object.")
@daemon_options
def netcheck(daemon: Daemon, as_json: bool) -> None:
    """Find out what the NAT before this node does, and what that means for direct paths. Takes some seconds."""
    found = daemon.post("/netcheck", doing="asking members about the NAT")
    if as_json:
        click.echo(json.dumps(found))
        return
    for line in lines(found):
        click.echo(line)


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """The report, as POST /netcheck gives it."""
    yield from _row("UDP", "works" if found["udp"] else "no answer from any member")
    yield from _row("IPv4, IPv6", f"{_yes(found['ipv4'])}, {_yes(found['ipv6'])}")
    yield from _list("local", [bare(endpoint) for endpoint in found["local"]])
    yield from _list("seen at", [f"{bare(one['endpoint'])} by {_count(one['peers'], 'address')}" for one in found["observed"]])
    yield from _row("mapping", _mapping(found))
    yield from _row("filtering", _filtering(found))
    yield from _row("mapping lives", _lifetime(found))
    yield from _row("hairpin", "no NAT" if found["mapping"] == "none" else {True: "yes", False: "no", None: "not known"}[found["hairpin"]])
    yield from _row("port mapping", _port_mapping(found["port_mapping"]))
    yield from _list("path MTU", [f"{one['name']} {one['mtu']}" for one in found["peers"]])
    yield from _list("relays", [f"{one['name']} {_ms(one['rtt_ms'])}" for one in found["relays"]])
    yield ""
    yield from textwrap.wrap(found["verdict"], WIDTH)


def _row(label: str, text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=f"{label:<{_LABEL}}", subsequent_indent=" " * _LABEL)


def _list(label: str, items: list[str]) -> list[str]:
    more = [f"and {len(items) - _ROWS} more"] if len(items) > _ROWS else []
    return _row(label, ", ".join([*items[:_ROWS], *more]) or "none")


def _mapping(found: Mapping[str, Any]) -> str:
    text = str(found["mapping"])
    if text == "none":
        return "none: others see this machine's own address"
    if found["port_kept"] is not None and text == "endpoint-independent":
        text += ", port kept" if found["port_kept"] else ", port changed"
    if found["sequential_step"]:
        text += f", ports in order (step {found['sequential_step']})"
    return text + ("" if found["mapping_sure"] or found["mapping"] == "unknown" else ", perhaps")


def _filtering(found: Mapping[str, Any]) -> str:
    text = str(found["filtering"]) + ("" if found["filtering_sure"] or found["filtering"] == "unknown" else ", perhaps")
    return text + ("; what comes in unasked takes a port away (plain Linux)" if found["brittle"] else "")


def _lifetime(found: Mapping[str, Any]) -> str:
    alive, dead = found["lifetime_s"]["at_least"], found["lifetime_s"]["less_than"]
    if (found["mapping"], found["filtering"]) == ("none", "endpoint-independent"):
        known = "nothing to keep open"
    elif alive is None and dead is None:
        known = "not known yet"
    elif dead is None:
        known = f"at least {alive:g} s"
    else:
        known = f"between {alive or 0:g} and {dead:g} s"
    return f"{known}; idle links are refreshed every {found['keepalive_s']:g} s"


def _port_mapping(found: Mapping[str, Any]) -> str:
    if not found["enabled"]:
        return "switched off (nat.port_mapping)"
    if found["gateway"] is None:
        return "no gateway that could be asked"
    text = f"{', '.join(found['protocols']) or 'nothing spoken'} at {found['gateway']}"
    text += "; " + ", ".join(bare(endpoint) for endpoint in found["endpoints"]) if found["endpoints"] else ""
    return text + (f"; {found['problem']}" if found["problem"] else "")


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _count(number: int, what: str) -> str:
    return f"1 {what}" if number == 1 else f"{number} {what}es"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} ms"
