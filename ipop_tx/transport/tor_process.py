"""One tor: started by us, or found running; its control connection is kept, and made anew when it is lost (control-spec)."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, UNIXClientEndpoint
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

from ipop_tx.errors import EnvironmentProblem
from ipop_tx.log import Logger

LOOK_EVERY = 1.0
"""Seconds between questions whether tor knows the way; once it does, five times as long between those whether it is still there."""
PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
"""Seconds until tor is started, or looked for, again."""
ANSWER_SECONDS = 20.0
STARTING_SECONDS = 20.0
"""Until a tor that we started takes control connections."""

_LOG = "see the daemon's log with log.level = debug, where tor's is"
_log = Logger()


class TorConnection:
    """Calls `up` with tor's SOCKS port once tor can be used, and `down` when it is gone; then begins anew.

    `problem` says in a sentence what is missing; empty while all is well.
    """

    def __init__(
        self,
        reactor: Any,
        control: str | TorProcess,
        password: str,
        up: Callable[[tuple[str, int]], None],
        down: Callable[[], None],
    ) -> None:
        self.problem = "tor has not been found yet"
        self._reactor = reactor
        self._control, self._password = control, password
        self._process = control if isinstance(control, TorProcess) else None
        if self._process is not None:
            self._process.ended = self._again
        self._up, self._down = up, down
        self._protocol: Any = None
        self._usable = False
        self._failures = 0
        self._timer: Any = None
        self._running = False

    def start(self) -> None:
        """Begin; gives nothing back, and never fails."""
        self._running = True
        self._begin()

    def stop(self) -> None:
        """End what was begun."""
        self._running = False
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._disconnect()
        if self._process is not None:
            self._process.stop()

    async def ask(self, command: str) -> str:
        """One command to tor; gives its answer's lines. Raises `EnvironmentProblem`; the command is not repeated: it may hold secrets."""
        if self._protocol is None:
            raise EnvironmentProblem("tor is not there", self.problem)
        asked: Deferred[Any] = self._protocol.queue_command(command)
        try:
            return str(await asked.addTimeout(ANSWER_SECONDS, self._reactor))
        except Exception as error:  # noqa: BLE001 - whatever txtorcon raises
            raise EnvironmentProblem(f"tor refuses {command.partition(' ')[0]}: {_one_line(error)}", "look at tor's log") from None

    # --- coming up ---------------------------------------------------------------------------

    def _begin(self) -> None:
        self._timer = None
        Deferred.fromCoroutine(self._connect()).addErrback(self._failed)

    async def _connect(self) -> None:
        where = self._control if isinstance(self._control, str) else f"unix:{await self._control.ready()}"
        import txtorcon  # a node without Tor does without it

        try:
            made: Deferred[Any] = txtorcon.build_tor_connection(
                self._endpoint(where), build_state=False, password_function=lambda: self._password
            )
            self._protocol = await made.addTimeout(ANSWER_SECONDS, self._reactor)
        except Exception as error:
            mend = "check that tor runs, and ControlPort, CookieAuthentication or HashedControlPassword in its torrc"
            raise EnvironmentProblem(f"tor's control port {where} cannot be used ({_one_line(error)})", mend) from error
        protocol = self._protocol
        protocol.when_disconnected().addBoth(lambda _: self._lost(protocol))
        await self._look()

    def _endpoint(self, where: str) -> Any:
        if where.startswith("unix:"):
            return UNIXClientEndpoint(self._reactor, where.removeprefix("unix:"))
        host, _, port = where.rpartition(":")
        return HostnameEndpoint(self._reactor, host.strip("[]"), int(port))

    async def _look(self) -> None:
        """How far tor is with learning the way into the network; then, now and then, whether it still answers."""
        phase = await self.ask("GETINFO status/bootstrap-phase")
        progress = int((re.search(r"PROGRESS=(\d+)", phase) or [0, 0])[1])
        if progress < 100:
            said = re.search(r'SUMMARY="([^"]*)"', phase)
            self.problem = f"tor has not found its network yet: {progress} %, {said[1].lower() if said else 'starting'}"
        elif not self._usable:
            socks = re.search(r'"([\d.]+):(\d+)"', await self.ask("GETINFO net/listeners/socks"))
            if socks is None:
                raise EnvironmentProblem("tor has no SOCKS port on TCP", "add a line SocksPort 127.0.0.1:9050 to its torrc")
            self.problem, self._failures, self._usable = "", 0, True
            _log.info("tor_up socks={host}:{port}", host=socks[1], port=socks[2])
            self._up((socks[1], int(socks[2])))
        if self._running:
            self._timer = self._reactor.callLater(LOOK_EVERY * (5 if self._usable else 1), self._look_again)

    def _look_again(self) -> None:
        self._timer = None
        Deferred.fromCoroutine(self._look()).addErrback(self._failed)

    # --- going down --------------------------------------------------------------------------

    def _failed(self, failure: Failure) -> None:
        if not failure.check(EnvironmentProblem):
            _log.failure("tor_failed", failure)
        self._again(str(failure.value))

    def _lost(self, protocol: Any) -> None:
        if protocol is self._protocol:
            self._again("tor has closed its control connection: it ended, or was told to")

    def _again(self, why: str) -> None:
        if not self._running:
            return
        if self._usable or why != self.problem:
            _log.warn("tor_down reason={reason}", reason=why)
        self.problem = why
        self._disconnect()
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = self._reactor.callLater(PAUSES[min(self._failures, len(PAUSES) - 1)], self._begin)
        self._failures += 1

    def _disconnect(self) -> None:
        protocol, self._protocol = self._protocol, None
        was, self._usable = self._usable, False
        if protocol is not None and protocol.transport is not None:
            protocol.transport.loseConnection()
        if was:
            self._down()


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


class TorProcess(ProcessProtocol):
    """A tor of our own, in a directory that goes with it. It ends when we do, however that is (`__OwningControllerProcess`)."""

    def __init__(self, reactor: Any, binary: str = "tor", torrc: Path | None = None, data: Path | None = None) -> None:
        """`torrc`: more lines for its configuration. `data`: its directory, made if it is missing; None for a passing one."""
        self.ended: Callable[[str], None] = lambda why: None
        """Called when it ends by itself, with a sentence."""
        self._reactor = reactor
        self._binary, self._torrc, self._data = binary, torrc, data
        self._directory: Path | None = None
        self._process: Any = None
        self._opened: Deferred[None] | None = None
        self.pid = 0
        """Of the process; 0 while there is none."""
        self._unfinished = b""
        self._line = self._complaint = ""
        """What tor said last, and what it complained of last."""

    async def ready(self) -> Path:
        """Start it unless it runs; gives the socket for control. Raises `EnvironmentProblem`."""
        if self._process is None:
            self._spawn()
        assert self._directory is not None
        if self._opened is not None:
            try:
                await self._opened.addTimeout(STARTING_SECONDS, self._reactor)
            except EnvironmentProblem:
                raise
            except Exception as error:
                self.stop()
                raise EnvironmentProblem(f"{self._binary} did not start in {STARTING_SECONDS:g} s: {self._said()}", _LOG) from error
            self._opened = None
        return self._directory / "control"

    def _spawn(self) -> None:
        program = shutil.which(self._binary)
        if program is None:
            mend = "install it (apt-get install tor), name it in tor.binary, or name the control port of one that runs in tor.control"
            raise EnvironmentProblem(f"there is no program {self._binary}", mend)
        self._directory = Path(tempfile.mkdtemp(prefix="ipop-tor-"))
        file = self._directory / "torrc"
        file.write_text(self._configuration(self._directory))
        self._opened = Deferred()
        arguments = [program, "-f", str(file), "--defaults-torrc", str(self._directory / "none"), "--ignore-missing-torrc"]
        self._process = self._reactor.spawnProcess(self, program, arguments, env=os.environ)
        self.pid, self._complaint = int(self._process.pid), ""

    def _configuration(self, directory: Path) -> str:
        lines = [
            f"DataDirectory {self._data or directory / 'data'}",
            f"ControlPort unix:{directory}/control",
            "CookieAuthentication 1",
            "SocksPort 127.0.0.1:auto",
            "ClientOnly 1",
            f"__OwningControllerProcess {os.getpid()}",
            "Log notice stdout",
        ]
        return "\n".join([*lines, self._torrc.read_text() if self._torrc else "", ""])

    def outReceived(self, data: bytes) -> None:
        """Tor's log."""
        *lines, self._unfinished = (self._unfinished + data).split(b"\n")
        for line in lines:
            text = line.decode(errors="replace").strip()
            if text:
                self._line = text
                _log.debug("tor_says line={line}", line=text)
            if ("[warn]" in text or "[err]" in text) and "warnings above" not in text:
                self._complaint = text
            if "Opened Control listener" in text and self._opened is not None and not self._opened.called:
                self._opened.callback(None)

    def errReceived(self, data: bytes) -> None:
        """The same."""
        self.outReceived(data)

    def _said(self) -> str:
        return re.sub(r"^\w+ \d+ [\d:.]+ \[\w+\] ", "", self._complaint or self._line).rstrip(".") or "it said nothing"

    def processEnded(self, reason: Failure) -> None:
        """It is gone."""
        expected = self._process is None
        self._process, self.pid = None, 0
        self._remove()
        ended: Any = reason.value
        sentence = f"tor has ended ({f'signal {ended.signal}' if ended.signal else f'status {ended.exitCode}'}): {self._said()}"
        opened, self._opened = self._opened, None
        if opened is not None and not opened.called:
            opened.errback(EnvironmentProblem(sentence, _LOG))
        elif not expected:
            self.ended(sentence)

    def stop(self) -> None:
        """End it."""
        process, self._process = self._process, None
        if process is not None:
            process.signalProcess("TERM")
        self._remove()

    def _remove(self) -> None:
        directory, self._directory = self._directory, None
        if directory is not None:
            shutil.rmtree(directory, ignore_errors=True)
