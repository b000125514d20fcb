"""The key of this node's onion service."""

from __future__ import annotations

from ipop_tx.identity import state as files
from ipop_tx.identity.state import StateDirectory


class OnionKey:
    """Kept as tor writes it, so that the service keeps its name."""

    def __init__(self, state: StateDirectory) -> None:
        self._state = state

    def load(self) -> str:
        """The key; empty when there is none. Raises `StateError`."""
        return self._state.read(files.ONION_KEY).decode() if self._state.exists(files.ONION_KEY) else ""

    def save(self, key: str) -> None:
        """Keep it. Raises `StateError`."""
        self._state.write(files.ONION_KEY, key.encode())
