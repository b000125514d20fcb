"""How a value of node.toml is refused: one line that names file, key, value, what is wrong and the mend."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

from ipop_tx.config.readers import shown
from ipop_tx.config.sections import READERS
from ipop_tx.errors import ConfigError


def unknown(path: Path, key: str, value: Any, known: Iterable[str]) -> NoReturn:
    """There is no such key: raises `ConfigError` with the one that was probably meant."""
    names = list(known)
    elsewhere = [other for other in READERS if other.endswith("." + key.rpartition(".")[2])]
    near = elsewhere or difflib.get_close_matches(key, names, n=1)
    mend = f"did you mean {near[0]}?" if near else f"known are {', '.join(names)}"
    refuse(path, key, value, "there is no such key", mend)


def refuse(path: Path, key: str, value: Any, wrong: str, mend: str) -> NoReturn:
    """Raises `ConfigError`."""
    raise ConfigError(f"{path}: {key} = {shown(value)}: {wrong}", mend)
