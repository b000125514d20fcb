"""A frame port in memory: what a TAP is to the daemon, with the kernel's side in the hands of a test."""

from __future__ import annotations

from zope.interface import implementer

from ipop_tx.errors import EnvironmentProblem
from ipop_tx.interfaces import IFramePort, IFrameReceiver


@implementer(IFramePort)
class FramePair:
    """`give` plays the kernel that sends a frame; `taken` holds the frames that the kernel was given."""

    def __init__(self, name: str = "pair0", mtu: int = 1280) -> None:
        self.name = name
        self.mtu = mtu
        self.taken: list[bytes] = []
        self._receiver: IFrameReceiver | None = None

    def start(self, receiver: IFrameReceiver) -> None:
        """Open. Raises `EnvironmentProblem` when it is open."""
        if self._receiver is not None:
            raise EnvironmentProblem(f"{self.name} is open")
        self._receiver = receiver

    def stop(self) -> None:
        """Close; frames given from now on are lost."""
        self._receiver = None

    def write(self, frame: bytes | memoryview) -> None:
        """Hand one frame to the kernel."""
        if self._receiver is not None:
            self.taken.append(bytes(frame))

    def give(self, frame: bytes) -> None:
        """The kernel sends a frame."""
        if self._receiver is not None:
            buffer = bytearray(frame)
            self._receiver.frame_received(memoryview(buffer))
            buffer[:] = bytes(len(buffer))  # whoever kept the view sees what the interface promised: nothing
