"""The commands about other nodes: peers, info, route."""

from __future__ import annotations

import json
import time
from typing import Any

import click

from ipop_tx.cli.daemon import Daemon, complete_node, daemon_options
from ipop_tx.cli.tables import bare, duration, print_peers, print_table, size


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON list.")
@daemon_options
def peers(daemon: Daemon, as_json: bool) -> None:
    """Show the nodes that this one has a link to, and by which path."""
    found = daemon.get("/status")["peers"]
    if as_json:
        click.echo(json.dumps(found))
    elif found:
        print_peers(found)
    else:
        click.echo("no peers yet: ipop explain NODE says why one is not reached", err=True)


@click.command()
@click.argument("node", shell_complete=complete_node)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@daemon_options
def info(daemon: Daemon, node: str, as_json: bool) -> None:
    """Show all that this node knows of NODE: a name or an address, of a peer or of anybody in the network."""
    status = daemon.get("/status")
    found = next((one for one in [status["self"], *status["peers"]] if is_meant(node, one)), None)
    if found is None:
        owner = daemon.post("/resolve", {"target": node}, doing=f"asking who {node} is")
        found = next((one for one in status["peers"] if one["ident"] == owner["ident"]), {**owner, "path": "idle"})
    if as_json:
        click.echo(json.dumps(found))
        return
    for label, text in described(found):
        click.echo(f"{label:<12}{text}")


def is_meant(text: str, one: dict[str, Any]) -> bool:
    """Whether a name, address or ident is that of a node in the status."""
    return text in (one.get("name"), one.get("address"), one.get("ipv6"), one.get("ident"))


def described(one: dict[str, Any]) -> list[tuple[str, str]]:
    """What is known, a line each."""
    lines = [
        ("name", one.get("name") or "-"),
        ("address", "  ".join(str(one[key]) for key in ("address", "ipv6") if one.get(key)) or "-"),
        ("ident", one["ident"]),
        ("groups", ", ".join(one.get("groups") or ()) or "none"),
    ]
    if one.get("certificate_ends"):
        lines.append(("certificate", f"ends {time.strftime('%Y-%m-%d', time.gmtime(one['certificate_ends']))}"))
    if "path" not in one:
        lines.append(("this node", f"network {one['network']}, up {duration(one.get('uptime_s', 0))}"))
        return lines
    lines.append(("path", bare(str(one["path"])) + (f" ({one['why']})" if one.get("why") else "")))
    if one.get("rtt_ms") is not None:
        lines.append(("round trip", f"{one['rtt_ms']:.1f} ms"))
    if one.get("relays"):
        lines.append(("relays", ", ".join(f"{relay['name']} {relay['rtt_ms']:.1f} ms" for relay in one["relays"])))
    if one.get("mtu"):
        lines.append(("path MTU", f"{one['mtu']} bytes"))
    if "tx_bytes" in one:
        lines.append(
            ("frames", f"{size(one['tx_bytes'])} sent, {size(one['rx_bytes'])} received, {one.get('lost_records', 0)} records lost")
        )
    if one.get("age_s"):
        lines.append(("linked for", duration(one["age_s"])))
    return lines


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON list.")
@daemon_options
def route(daemon: Daemon, as_json: bool) -> None:
    """Show where packets go: the network's ranges to the interface, then each known address to its node, by its path."""
    status = daemon.get("/status")
    rows = routes(status)
    if as_json:
        click.echo(json.dumps(rows))
        return
    texts = [(row["to"], row["node"] or "-", bare(row["via"]), str(row["mtu"] or "-")) for row in rows]
    print_table(("to", "node", "by", "mtu"), texts, right=("mtu",))


def routes(status: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows: destination, node, way, MTU."""
    me = status["self"]
    tap = f"interface {me['tap']}" if me.get("tap") else "no interface"
    rows = [{"to": me.get("pool") or "-", "node": None, "via": tap, "mtu": me.get("mtu")}]
    rows += [{"to": me[key], "node": me["name"], "via": "here", "mtu": None} for key in ("address", "ipv6") if me.get(key)]
    for peer in status["peers"]:
        rows += [
            {"to": peer[key], "node": peer["name"], "via": peer["path"], "mtu": peer.get("mtu")}
            for key in ("address", "ipv6")
            if peer.get(key)
        ]
    rows += [
        {"to": one["address"], "node": one["name"], "via": f"guest {one['mac']}", "mtu": None} for one in status["guests"] if one["address"]
    ]
    return rows
