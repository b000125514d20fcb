"""Reads node.toml into frozen values, or says in one line which file, key and value is wrong and what mends it."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ipop_tx.config.readers import Wrong
from ipop_tx.config.refusal import refuse, unknown
from ipop_tx.config.sections import READERS, SECTIONS, Config
from ipop_tx.errors import ConfigError


def load_config(path: str | Path) -> Config:
    """Read and check a node.toml. Relative paths in it start from its directory.

    Raises `ConfigError`, whose text is one line: file, key, value, what is wrong, the mend.
    """
    path = Path(path)
    try:
        text = path.read_bytes().decode()
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file", "name the node's file with --config; conf/node.toml is a model") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}", "check its kind and permissions") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text (byte {error.start})", "save it as UTF-8") from None
    return parse_config(text, path)


def parse_config(text: str, path: Path) -> Config:
    """Check the text of a node.toml; `path` is what messages name and what relative paths start from."""
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: is not TOML: {error}", "correct that line") from None
    foreign = tree.pop("transports", {})
    for name, value in tree.items():
        if name not in SECTIONS or "." in name:
            unknown(path, name, value, [*SECTIONS, "transports"])
    base = path.absolute().parent
    sections = {name: _section(path, base, name, tree[name]) for name in SECTIONS if name in tree and name != "node"}
    transports = _transports(path, foreign)
    return Config(path=path, node=_section(path, base, "node", tree.get("node", {})), transports=transports, **sections)


def _transports(path: Path, tables: Any) -> dict[str, dict[str, Any]]:
    """The tables of foreign transports: that they are tables, and not of our own transports, is all that can be said here."""
    if not isinstance(tables, dict):
        refuse(path, "transports", tables, "is no section", "write [transports.NAME] on a line of its own and its keys below")
    for name, table in tables.items():
        if name in ("udp", "tls"):
            refuse(path, f"transports.{name}", table, "is no foreign transport", f"configure it as listen.{name}")
        if not (name.isascii() and name.isalnum() and name.islower()):
            refuse(path, f"transports.{name}", table, "cannot be the scheme of endpoints", "use lower-case letters and digits")
        if not isinstance(table, dict):
            refuse(path, f"transports.{name}", table, "is no section", f"write [transports.{name}] on a line of its own")
    return tables


def _section(path: Path, base: Path, name: str, table: Mapping[str, Any]) -> Any:
    if not isinstance(table, dict):
        refuse(path, name, table, "is no section", f"write [{name}] on a line of its own and its keys below")
    kind = SECTIONS[name]
    values: dict[str, Any] = {}
    for key, value in table.items():
        full = f"{name}.{key}"
        if full in SECTIONS:
            values[key] = _section(path, base, full, value)
            continue
        if key not in kind.__struct_fields__:
            unknown(path, full, value, [f"{name}.{known}" for known in kind.__struct_fields__])
        try:
            values[key] = READERS[full](value, base)
        except Wrong as wrong:
            refuse(path, full, value, *wrong.args)
    if name == "node" and "state" not in values:
        raise ConfigError(f"{path}: node.state is missing", 'name the directory of the node\'s keys: [node] state = "/var/lib/ipop"')
    return kind(**values)
