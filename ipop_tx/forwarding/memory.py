"""A frame port in memory: what a TAP is to the daemon, with the kernel's side in the hands of a test."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from zope.interface import implementer

from ipop_tx.errors import BadDatagram, EnvironmentProblem
from ipop_tx.forwarding import offload
from ipop_tx.interfaces import IFramePort, IFrameReceiver


@implementer(IFramePort)
class FramePair:
    """`give` plays the kernel that sends a frame. What the kernel was given is in `written`, and cut and complete in `taken`."""

    def __init__(self, name: str = "pair0", mtu: int = 1280) -> None:
        self.name = name
        self.mtu = mtu
        self.offloads = offload.OFFLOADS
        self.written: list[bytes] = []
        """Each write: offload head and frame."""
        self.taken: list[bytes] = []
        """Ethernet frames, as they are on a wire."""
        self.refused = 0
        """Writes that no kernel would take."""
        self._receiver: IFrameReceiver | None = None
        self._waiting: deque[bytes] = deque()
        self._reads = 0
        self._paused = self._telling = False

    def start(self, receiver: IFrameReceiver) -> None:
        """Open. Raises `EnvironmentProblem` when it is open."""
        if self._receiver is not None:
            raise EnvironmentProblem(f"{self.name} is open")
        self._receiver = receiver

    def stop(self) -> None:
        """Close; frames that wait, and those given from now on, are lost."""
        self._receiver = None
        self._waiting.clear()

    # frames from the kernel

    def give(self, frame: bytes) -> None:
        """The kernel sends an ordinary Ethernet frame."""
        self.give_super(offload.PLAIN + frame)

    def give_super(self, frame: bytes) -> None:
        """The kernel sends a frame behind an offload head."""
        if self._receiver is not None:
            self._waiting.append(bytes(frame))
            self._tell()

    def _tell(self) -> None:
        """Until no frame waits, or the receiver takes none."""
        if self._telling:  # a frame that came of another: whoever is at it goes on with this one
            return
        self._telling = progress = True
        try:
            while progress and self._waiting and self._receiver is not None and not self._paused:
                before = self._reads
                self._receiver.frames_waiting()
                progress = self._reads > before
        finally:
            self._telling = False

    def readv(self, buffers: Sequence[bytearray | memoryview]) -> int:
        """Fill the next frame into `buffers`, and zeros behind it: whoever relies on what was there before sees nothing."""
        if not self._waiting:
            return 0
        self._reads += 1
        frame = self._waiting.popleft()
        room = sum(map(len, buffers))
        offload.fill(buffers, frame.ljust(room, b"\0"))
        return min(len(frame), room)

    def pause(self) -> None:
        """Tell the receiver nothing until `resume`."""
        self._paused = True

    def resume(self) -> None:
        """Go on after `pause`."""
        self._paused = False
        self._tell()

    # frames to the kernel

    def writev(self, buffers: Sequence[bytes | bytearray | memoryview]) -> None:
        """Hand one frame to the kernel."""
        if self._receiver is None:
            return
        frame = b"".join(buffers)
        self.written.append(frame)
        try:
            self.taken += offload.segment(frame)
        except BadDatagram:
            self.refused += 1
