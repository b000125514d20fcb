"""Readers of values in node.toml, for keys of several sections: each takes what TOML gives, or says what is wrong and what mends it."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ipop_tx.errors import LocalMisuse
from ipop_tx.values import Proxy


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


def kind(value: Any) -> str:
    """What TOML calls it."""
    kinds = {bool: "a truth value", int: "a number", float: "a number", str: "a string", list: "a list", dict: "a section"}
    return kinds.get(type(value), "a date or time")
