"""Lengths of time on a command line."""

from __future__ import annotations

import re

import click

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "": 1}


def duration(text: str) -> int:
    """Read a length of time such as 90s, 30m, 1h or 2d: whole seconds."""
    match = re.fullmatch(r"([1-9]\d{0,8})([smhd]?)", text)
    if match is None:
        raise click.BadParameter(f"{text!r} is not a duration such as 30m, 1h or 2d")
    return int(match[1]) * _UNITS[match[2]]
