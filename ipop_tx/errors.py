"""Every error that ipop_tx raises on purpose.

Three families tell who has to act:

- `LocalMisuse`: whoever called us, wrote the configuration or typed the command;
- `RemoteMisbehaviour`: a peer, or somebody who pretends to be one. Never fatal: counted, dropped;
- `EnvironmentProblem`: the machine or the network around us.

The text of an error is a sentence fit to show a user; `mend`, where there is one, says what to do about it.
"""

from __future__ import annotations


class IpopError(Exception):
    """The root of all of them. `str()` gives the sentence, followed by the mend if there is one."""

    exit_status = 1

    def __init__(self, sentence: str, mend: str = "") -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.mend = mend

    def __str__(self) -> str:
        return f"{self.sentence}: {self.mend}" if self.mend else self.sentence


class LocalMisuse(IpopError):
    """The caller asked for something that cannot be."""


class ConfigError(LocalMisuse):
    """A configuration file is wrong. Names file, key, value and the mend, in one line."""

    exit_status = 2


class Conflict(LocalMisuse):
    """A register, address or name is already taken, or has changed since it was read."""

    def __init__(self, sentence: str, mend: str = "", version: int = 0) -> None:
        super().__init__(sentence, mend)
        self.version = version


class PoolExhausted(LocalMisuse):
    """No address of the network's pool is free."""


class QuotaExceeded(LocalMisuse):
    """A member may not fill more of the DHT, or its replicas are full. Nothing was written."""


class InvitationRefused(LocalMisuse):
    """An invitation is malformed, unknown, used up or expired."""


class RemoteMisbehaviour(IpopError):
    """A peer sent what it must not send."""


class BadDatagram(RemoteMisbehaviour):
    """Bytes that no honest peer would have sent to us now: malformed, forged, replayed or stale."""


class BadMessage(RemoteMisbehaviour):
    """A control message that does not parse or breaks the protocol."""


class PeerRefused(RemoteMisbehaviour):
    """A peer's certificate is not good enough: other network, expired, wrong usage, wrong ident."""


class EnvironmentProblem(IpopError):
    """The machine or the network around us does not give what we need."""


class StateError(EnvironmentProblem):
    """A file of the node's state is missing, unreadable, too readable or damaged."""


class PermissionProblem(EnvironmentProblem):
    """The operating system refuses for want of rights."""


class Unreachable(EnvironmentProblem):
    """A node did not answer in time."""


class ApprovalAwaited(EnvironmentProblem):
    """Somebody has to let this machine in by hand."""


class NotFound(EnvironmentProblem):
    """The ring could not say who owns a key."""


class Unavailable(EnvironmentProblem):
    """Too few replicas of a register answered, so nothing was written.

    `reached` of `replicas` answered; `needed` would have been enough.
    """

    def __init__(self, reached: int, needed: int, replicas: int) -> None:
        super().__init__(f"{reached} of {replicas} replicas reached", f"{needed} are needed; waiting for the others")
        self.reached = reached
        self.needed = needed
        self.replicas = replicas
