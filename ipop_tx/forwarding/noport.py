"""The port of a node without an interface: it has no frames to give, and takes none."""

from __future__ import annotations

from collections.abc import Sequence

from zope.interface import implementer

from ipop_tx.interfaces import IFramePort, IFrameReceiver


@implementer(IFramePort)
class NoPort:
    """Whatever it is handed is lost."""

    name = "none"
    mtu = 0
    offloads: tuple[str, ...] = ()

    def start(self, receiver: IFrameReceiver) -> None:
        """Nothing to open."""

    def stop(self) -> None:
        """Nothing to close."""

    def readv(self, buffers: Sequence[bytearray | memoryview]) -> int:
        """Never anything."""
        return 0

    def writev(self, buffers: Sequence[bytes | bytearray | memoryview]) -> None:
        """Lose one frame."""

    def pause(self) -> None:
        """Nothing to pause."""

    def resume(self) -> None:
        """Nothing to resume."""
