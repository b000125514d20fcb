"""What `ipop status` looks like: self, peers, health, within 80 columns."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

_NAME_WIDTH = 12  # of 80 columns, so that "direct 198.51.100.7:4500" stays on one line


def print_status(status: Mapping[str, Any], console: Console | None = None) -> None:
    """Write the daemon's status, as GET /status gives it."""
    console = console or Console(file=sys.stdout, highlight=False, soft_wrap=False)
    _print_self(console, status["self"])
    peers = status.get("peers", [])
    if peers:
        console.print()
        print_peers(peers, console)
    else:
        console.print("no peers yet")
    guests = status.get("guests", [])
    if guests:
        console.print()
        console.print(_guests(guests, name_width=max(_NAME_WIDTH, console.width - 80 + _NAME_WIDTH)))
    if status.get("policy"):
        console.print(Text(policy_line(status["policy"])))
    for sentence in status.get("health", []):
        console.print(Text(f"warning: {sentence}", style="yellow"))


def table_of(columns: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[str] = ()) -> Table:
    """Rows under dim heads; the last column but those at the right takes what is left of the width."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold", no_wrap=column in right)
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[str] = ()) -> None:
    """Within the terminal's width, or 80 columns where it is none."""
    Console(file=sys.stdout, highlight=False).print(table_of(columns, rows, right))


def print_peers(peers: list[Mapping[str, Any]], console: Console | None = None) -> None:
    """A row per peer, and why some are relayed."""
    console = console or Console(file=sys.stdout, highlight=False, soft_wrap=False)
    console.print(_peers(peers, name_width=max(_NAME_WIDTH, console.width - 80 + _NAME_WIDTH)))
    _print_reasons(console, peers)


def policy_line(policy: Mapping[str, Any]) -> str:
    """One line about the network's policy and what it has dropped last."""
    line = f"policy {policy['version']}: {policy['rules']} rules, default {policy['default']}, {policy['flows']} flows"
    dropped = sum(denial["frames"] for denial in policy["denied"])
    return f"{line}; {dropped} frames dropped of late: see ipop policy show" if dropped else line


def _print_self(console: Console, me: Mapping[str, Any]) -> None:
    ring = me.get("ring") or {}
    addresses = "  ".join(str(a) for a in (me.get("address") or "no address yet", me.get("ipv6")) if a)
    console.print(Text.assemble((str(me["name"]), "bold"), f"  {addresses}"))
    about = [f"network {me['network']}", f"up {duration(me.get('uptime_s', 0))}"]
    if me.get("tap"):
        about.append(f"{me['tap']} mtu {me.get('mtu')}")
    if ring.get("nodes_estimate"):
        about.append(f"ring of about {ring['nodes_estimate']}")
    console.print(Text(", ".join(about)))
    if me.get("endpoints"):
        console.print(Text("reached at " + ", ".join(bare(e) for e in me["endpoints"])))
    if me.get("routes"):
        console.print(Text("may lead to " + ", ".join(me["routes"])))


def _peers(peers: list[Mapping[str, Any]], name_width: int) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("address", no_wrap=True)
    table.add_column("name", overflow="fold", max_width=name_width)
    table.add_column("path", overflow="fold")
    for column in ("rtt", "tx", "rx"):
        table.add_column(column, justify="right", no_wrap=True)
    for peer in peers:
        path = str(peer.get("path", ""))
        style = "green" if path.startswith("direct udp") else "dim" if path == "idle" else "yellow"
        note = peer.get("why") or peer.get("technique")
        noted = path.startswith("direct") and note and note != "challenges"
        table.add_row(
            Text(str(peer.get("address") or "-")),
            Text(str(peer.get("name", "-"))),
            Text(f"{bare(path)} ({note})" if noted else bare(path), style=style),
            "-" if peer.get("rtt_ms") is None else f"{peer['rtt_ms']:.1f}ms",
            size(peer.get("tx_bytes", 0)),
            size(peer.get("rx_bytes", 0)),
        )
    return table


def _guests(guests: list[Mapping[str, Any]], name_width: int) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("guest", no_wrap=True)
    table.add_column("name", overflow="fold", max_width=name_width)
    table.add_column("MAC", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column("for", justify="right", no_wrap=True)
    for guest in guests:
        bound = guest.get("state") == "bound"
        left = duration(guest["expires_s"]) if bound and guest.get("expires_s", 0) > 0 else "-"
        state = Text(str(guest.get("state", "")), style="green" if bound else "yellow")
        table.add_row(Text(str(guest.get("address") or "-")), Text(str(guest.get("name") or "-")), Text(str(guest["mac"])), state, left)
    return table


def _print_reasons(console: Console, peers: list[Mapping[str, Any]]) -> None:
    """Why there is no direct path, once for all peers with the same reason."""
    names: dict[str, list[str]] = {}
    for peer in peers:
        if peer.get("why") and not str(peer.get("path", "")).startswith("direct"):
            names.setdefault(str(peer["why"]), []).append(str(peer.get("name") or "-"))
    for why, whom in names.items():
        console.print(Text(f"relayed: {', '.join(whom)}: {why}", style="dim"))


def bare(path: str) -> str:
    """A path or endpoint without the scheme that nearly all have."""
    return path.replace("udp:", "", 1).replace("tls-in:", "tls from ", 1)


def printable(text: object) -> str:
    """What others have written, without anything that would drive a terminal."""
    return "".join(one if one.isprintable() else "?" for one in str(text))


def size(count: float) -> str:
    """Bytes in at most five characters: 0B, 999B, 1.5k, 27M, 3.1G."""
    if count < 1000:
        return f"{count:.0f}B"
    units = iter("kMGT")
    unit = "B"
    while count >= 999.5 and unit != "T":
        count, unit = count / 1000, next(units)
    return f"{count:.1f}{unit}" if count < 9.95 else f"{count:.0f}{unit}"


def duration(seconds: float) -> str:
    """A length of time by its two greatest units: 42 s, 3 min 5 s, 2 h 7 min, 5 d 3 h."""
    whole = int(seconds)
    for unit, length, lesser, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= length:
            return f"{whole // length} {unit} {whole % length // part} {lesser}"
    return f"{whole} s"
