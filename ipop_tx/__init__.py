"""ipop_tx: a virtual private IP network that configures itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ipop_tx.app import Node
    from ipop_tx.config import load_config

__version__ = "0.1.0"
__all__ = ["Node", "__version__", "load_config"]


def __getattr__(name: str) -> Any:
    """Import the public names at their first use, so that the lower floors do not pull in the daemon."""
    if name == "Node":
        from ipop_tx.app import Node

        return Node
    if name == "load_config":
        from ipop_tx.config import load_config

        return load_config
    raise AttributeError(f"module 'ipop_tx' has no attribute {name!r}")
