"""node.toml as frozen values, or an error naming file, key, value and the mend."""

from __future__ import annotations

from ipop_tx.config.check import check_against
from ipop_tx.config.load import load_config, parse_config
from ipop_tx.config.sections import DEFAULT_PATH, DEFAULT_SOCKET, Config, TlsSection

__all__ = ["DEFAULT_PATH", "DEFAULT_SOCKET", "Config", "TlsSection", "check_against", "load_config", "parse_config"]
