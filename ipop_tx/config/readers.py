"""Readers of the values in node.toml: each takes what TOML gives, or says what is wrong and what mends it."""

from __future__ import annotations

import ipaddress
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ipop_tx.errors import LocalMisuse
from ipop_tx.values import Endpoint, Proxy

LOG_LEVELS = ("debug", "info", "warn", "error", "critical")
TOR_POLICIES = ("no-tor", "allowed", "tor-only")
RESOLVERS = ("auto", "resolved", "resolv.conf", "none")
MTU_LEAST, MTU_MOST = 1280, 9000  # IPv6 asks for 1280 (RFC 8200, section 5)
LISTED_MOST = 8  # what a DHCP message that every client takes has room for
SOCKET_PATH_BYTES = 107  # sun_path holds 108 with its closing zero: unix(7)
INTERFACE_NAME_BYTES = 15  # IFNAMSIZ holds 16 with its closing zero: netdevice(7)


class Wrong(Exception):
    """A value is no good: (what is wrong, the mend)."""


Reader = Callable[[Any, Path], Any]
"""One for each key: takes the value as TOML gives it, and the directory that relative paths start from. Raises `Wrong`."""


def text(value: Any, _: Path) -> str:
    """A plain word."""
    if not isinstance(value, str):
        raise Wrong(f"is {kind(value)}, not a string", "put it in quotes")
    if not value or not value.isprintable() or value.strip() != value:
        raise Wrong("is empty, or begins or ends with a space, or has characters that cannot be printed", "write a plain word")
    return value


def host(value: Any, base: Path) -> str:
    """An IP address."""
    try:
        return str(ipaddress.ip_address(text(value, base)))
    except ValueError:
        raise Wrong("is not an IP address", 'write "0.0.0.0" or "::" for all addresses of this machine') from None


def whole(least: int, most: int) -> Reader:
    """A reader of whole numbers between two."""

    def read(value: Any, _: Path) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise Wrong(f"is {kind(value)}, not a whole number", "write a number, without quotes")
        if not least <= value <= most:
            raise Wrong("is out of range", f"choose {least} to {most}")
        return value

    return read


def proxy(value: Any, base: Path) -> Proxy | bool:
    """A proxy, or False for `none`."""
    written = text(value, base)
    if written == "none":
        return False
    try:
        return Proxy.parse(written)
    except LocalMisuse as error:
        raise Wrong(f"cannot be used: {error.sentence}", error.mend) from None


def rate(value: Any, _: Path) -> float:
    """Mbit/s, 0 for no limit."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Wrong(f"is {kind(value)}, not a number", "write a number of Mbit/s, without quotes")
    if value and not 0.1 <= value <= 1e6:
        raise Wrong("is out of range", "choose 0.1 to 1000000 Mbit/s, or 0 for no limit")
    return float(value)


def flag(value: Any, _: Path) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise Wrong(f"is {kind(value)}, not a truth value", "write true or false, without quotes")
    return value


def path(value: Any, base: Path) -> Path:
    """A path; a relative one starts from the directory of the file."""
    return base / Path(text(value, base)).expanduser()


def socket_path(value: Any, base: Path) -> Path:
    """A unix socket's path."""
    found = path(value, base)
    if len(os.fsencode(found)) > SOCKET_PATH_BYTES:
        raise Wrong(f"is longer than the {SOCKET_PATH_BYTES} bytes that a unix socket's path may have", "choose a shorter path")
    return found


def endpoint(value: Any, base: Path) -> Endpoint:
    """Where a transport can reach somebody."""
    try:
        return Endpoint.parse(text(value, base))
    except LocalMisuse as error:
        raise Wrong("is not an endpoint", error.mend) from None


def endpoints(value: Any, base: Path) -> tuple[Endpoint, ...]:
    """A list of endpoints, each once."""
    mend = 'write ["udp:198.51.100.7:4500"]'
    if not isinstance(value, list):
        raise Wrong(f"is {kind(value)}, not a list of endpoints", mend)
    found: list[Endpoint] = []
    for item in value:
        try:
            one = endpoint(item, base)
        except Wrong as wrong:
            raise Wrong(f"{shown(item)} {wrong.args[0]}", wrong.args[1]) from None
        if one in found:
            raise Wrong(f"names {one} twice", "name each endpoint once")
        found.append(one)
    return tuple(found)


def bind_address(value: Any, base: Path) -> Endpoint:
    """IP address and port for UDP."""
    return Endpoint("udp", *_address_and_port(value, base, 'write "0.0.0.0:4500" or "[::]:4500"'))


def tor_control(value: Any, base: Path) -> str:
    """A control port of tor: `unix:PATH`, or an address and a port."""
    written, mend = text(value, base), 'write "unix:/run/tor/control" or "127.0.0.1:9051"'
    if written.startswith("unix:/"):
        return written
    host, port = _address_and_port(value, base, mend)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def own_port(value: Any, base: Path) -> tuple[str, int]:
    """An IP address of this machine and a port, for what is nobody else's business."""
    mend = 'write one address of this machine, as "127.0.0.1:9477"'
    host, port = _address_and_port(value, base, mend)
    if ipaddress.ip_address(host).is_unspecified:
        raise Wrong("would answer whoever reaches this machine", mend)
    return host, port


def _address_and_port(value: Any, base: Path, mend: str) -> tuple[str, int]:
    host, _, port = text(value, base).rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if bracketed else host
    try:
        good = (ipaddress.ip_address(host).version == 6) == bracketed
    except ValueError:
        good = False
    if not good or not (port.isascii() and port.isdigit()):
        raise Wrong("is not an IP address and a port", mend)
    if int(port) > 65535:
        raise Wrong(f"has the port {port}", "choose one from 0 (any) to 65535")
    return host, int(port)


def interface_name(value: Any, base: Path) -> str:
    """A network interface's name."""
    name = text(value, base)
    bad = name in (".", "..") or any(c in "/:%" or c.isspace() for c in name)
    if bad or len(name.encode()) > INTERFACE_NAME_BYTES:
        raise Wrong("cannot be an interface's name", f"use 1 to {INTERFACE_NAME_BYTES} letters and digits")
    return name


def mtu(value: Any, _: Path) -> int | None:
    """Bytes of an IP packet; None for "auto"."""
    if value == "auto":
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise Wrong(f"is {kind(value)}, not a whole number", 'write a number of bytes, without quotes, or "auto"')
    if not MTU_LEAST <= value <= MTU_MOST:
        raise Wrong("is out of range", f"choose {MTU_LEAST} to {MTU_MOST} bytes")
    return value


def hours(value: Any, _: Path) -> float:
    """A time in hours."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Wrong(f"is {kind(value)}, not a number", "write a number of hours, without quotes")
    if not 0.01 <= value <= 8760:
        raise Wrong("is out of range", "choose 0.01 to 8760 hours")
    return float(value)


def name_servers(value: Any, base: Path) -> tuple[ipaddress.IPv4Address, ...]:
    """A list of IPv4 addresses."""
    mend = f'write up to {LISTED_MOST} IPv4 addresses: ["10.128.0.7"]'
    if not isinstance(value, list) or len(value) > LISTED_MOST:
        raise Wrong(f"is {kind(value)}, not a list of addresses" if not isinstance(value, list) else "is too long", mend)
    try:
        return tuple(ipaddress.IPv4Address(text(item, base)) for item in value)
    except ipaddress.AddressValueError:
        raise Wrong("has something that is not an IPv4 address", mend) from None


def domain(value: Any, base: Path) -> str:
    """A domain name."""
    name = text(value, base)
    labels = name.split(".")
    if len(name) > 63 or not all(re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?", label) for label in labels):
        raise Wrong("is not a domain", 'write up to 63 letters, digits, - and dots, as "lab.example"')
    return name


def routes(value: Any, base: Path) -> tuple[tuple[ipaddress.IPv4Network, ipaddress.IPv4Address], ...]:
    """A list of networks, each with the address by which it is reached."""
    mend = f'write up to {LISTED_MOST} of the form "192.168.7.0/24 via 10.128.0.9"'
    if not isinstance(value, list) or len(value) > LISTED_MOST:
        raise Wrong(f"is {kind(value)}, not a list of routes" if not isinstance(value, list) else "is too long", mend)
    try:
        parts = [text(item, base).split(" via ") for item in value]
        return tuple((ipaddress.IPv4Network(network), ipaddress.IPv4Address(gateway)) for network, gateway in parts)
    except ValueError:
        raise Wrong("has something that is not a route", mend) from None


def address(value: Any, base: Path) -> ipaddress.IPv4Address:
    """An IPv4 address of the pool."""
    try:
        return ipaddress.IPv4Address(text(value, base))
    except ipaddress.AddressValueError:
        raise Wrong("is not an IPv4 address", 'write one of the network\'s pool, as "10.128.0.7", or leave the key out') from None


def one_of(*words: str) -> Reader:
    """A reader of one of some words."""

    def read(value: Any, base: Path) -> str:
        if text(value, base) not in words:
            raise Wrong("is none of the words that may stand here", f"choose one of {', '.join(words)}")
        return str(value)

    return read


def kind(value: Any) -> str:
    """What TOML calls it."""
    kinds = {bool: "a truth value", int: "a number", float: "a number", str: "a string", list: "a list", dict: "a section"}
    return kinds.get(type(value), "a date or time")


def shown(value: Any) -> str:
    """A value as TOML would write it, on one line of bearable length."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    if not text.isprintable():  # U+2028 and the like would break the line
        text = json.dumps(value, default=str)
    text = re.sub(r"://[^/\s]*@", "://...@", text)  # a password
    return text if len(text) <= 80 else text[:77] + "..."
