"""The node's state directory: files written whole or not at all, checked when read, used by one daemon at a time."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from ipop_tx.errors import StateError

NODE_KEY = "node.key"
NODE_CHAIN = "node.crt"
"""PEM: the leaf, its admission certificate, the root."""
ADMISSION_KEY = "admission.key"
ADMISSION_CERTIFICATE = "admission.crt"
AUTHORITY_KEY = "authority.key"
NEXT_AUTHORITY_KEY = "next-authority.key"
"""One that a charter names which does not count yet."""
CHARTERS = "charters.json"
AUTHORITY_CERTIFICATE = "authority.crt"
APPOINTED = "appointed.json"
LEASE = "lease.json"
GUESTS = "guests.json"
PEERS = "peers.json"
REPLICAS = "replicas.db"
FLOWS = "flows.db"
REVOCATIONS = "revocations.json"
REQUESTS = "requests.json"
SETTINGS = "settings.json"
ONION_KEY = "onion.key"
TOR_DATA = "tor"

_MENDS = {
    errno.EACCES: "start ipop as the owner of that directory, or as root",
    errno.EPERM: "start ipop as the owner of that directory, or as root",
    errno.ENOSPC: "free some space on that disk",
    errno.EDQUOT: "free some space on that disk",
    errno.EROFS: "give a state directory on a disk that can be written",
    errno.ENOTDIR: "give a state directory whose path holds directories only",
}
_CHECKSUM = b"sha256 "


class StateDirectory:
    """All files of one node's state. The directory is 0700, every file in it 0600; what root writes there belongs to the directory's owner.

    PEM files are plain, so that other tools read them. The JSON files begin with a line that carries the SHA-256 of the
    rest, and the version before the present one stays beside them as `NAME.bak`.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.notices: list[str] = []
        """Sentences for the user about what had to be mended while reading."""
        self._lock: int | None = None

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        return (self.path / name).exists()

    def prepare(self) -> None:
        """Make the directory unless it is there. Raises `StateError`."""
        try:
            self.path.mkdir(mode=0o700, parents=True)
            give(self.path)
        except FileExistsError:
            if not self.path.is_dir():
                raise StateError(f"{self.path} is not a directory", "give another state directory") from None
        except OSError as problem:
            raise _state_error(self.path, "cannot be made", problem) from problem

    def lock(self) -> None:
        """Take the directory for this process until `unlock` or its end. Raises `StateError` naming who has it."""
        self.prepare()
        path = self.path / "lock"
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as problem:
            raise _state_error(path, "cannot be opened", problem) from problem
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 20).decode("ascii", "replace").strip() or "unknown"
            os.close(descriptor)
            raise StateError(
                f"another ipop daemon (process {holder}) uses {self.path}", "stop it, or give this one a state directory of its own"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
        self._lock = descriptor

    def unlock(self) -> None:
        """Let others use the directory. Idempotent."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def read(self, name: str, mend: str = "") -> bytes:
        """One whole file. Raises `StateError`, with `mend` if the file is missing; for a key also when others may read it."""
        path = self.path / name
        try:
            with open(path, "rb") as file:
                mode = os.fstat(file.fileno()).st_mode
                content = file.read()
        except FileNotFoundError:
            raise StateError(f"{path} is missing", mend) from None
        except OSError as problem:
            raise _state_error(path, "cannot be read", problem) from problem
        if name.endswith(".key") and stat.S_IMODE(mode) & 0o077:
            raise StateError(f"{path} can be read by others than its owner", f"run: chmod 600 {path}")
        return content

    def write(self, name: str, content: bytes) -> None:
        """Replace one file as a whole; after a crash either the old or the new content is there. Raises `StateError`."""
        self.prepare()
        path = self.path / name
        temporary = self.path / f".{name}.new"
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            with open(descriptor, "wb") as file:
                os.fchmod(descriptor, 0o600)  # A file left over from a crash may have another mode.
                give(temporary, descriptor)
                file.write(content)
                file.flush()
                os.fsync(descriptor)
            temporary.replace(path)
            self._sync()
        except OSError as problem:
            temporary.unlink(missing_ok=True)
            raise _state_error(path, "cannot be written", problem) from problem

    def remove(self, name: str) -> None:
        """Remove one file, if it is there. Raises `StateError`."""
        try:
            (self.path / name).unlink(missing_ok=True)
            self._sync()
        except OSError as problem:
            raise _state_error(self.path / name, "cannot be removed", problem) from problem

    def read_json(self, name: str) -> Any:
        """What `write_json` wrote last, None if nothing ever was.

        A damaged file is replaced by the version before it, with a notice; without one it is a `StateError`.
        """
        present, before = self.path / name, self.path / f"{name}.bak"
        if not present.exists() and not before.exists():
            return None
        for candidate in (present, before):
            content = self.read(candidate.name) if candidate.exists() else b""
            good, value = _checked(content)
            if good:
                if candidate is before:
                    self.notices.append(f"{present} was damaged, so the version before it is used")
                    with suppress(StateError):  # else the next damage would be that of the only copy
                        self.write(name, content)
                return value
        raise StateError(f"{present} is damaged, and so is {before.name}", "remove both; the node finds out again what stood in them")

    def write_json(self, name: str, value: Any) -> None:
        """Replace one JSON file and keep the version before it. Raises `StateError`."""
        body = msgspec.json.encode(value) + b"\n"
        content = _CHECKSUM + hashlib.sha256(body).hexdigest().encode() + b"\n" + body
        path = self.path / name
        if path.exists() and _checked(self.read(name))[0]:
            try:
                path.replace(self.path / f"{name}.bak")
            except OSError as problem:
                raise _state_error(path, "cannot be renamed", problem) from problem
        elif not self.exists(f"{name}.bak"):  # the first one, which has no version before it
            self.write(f"{name}.bak", content)
        self.write(name, content)

    def _sync(self) -> None:
        """Make renames durable."""
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def give(path: Path, descriptor: int | None = None) -> None:
    """To the owner of its directory, if we are root and that is not: the daemon is another user than who types `ipop`. Raises OSError."""
    if os.geteuid() != 0:
        return
    owner = path.parent.stat()
    if owner.st_uid != 0 and descriptor is not None:
        os.fchown(descriptor, owner.st_uid, owner.st_gid)
    elif owner.st_uid != 0:
        os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)


def _checked(content: bytes) -> tuple[bool, Any]:
    head, _, body = content.partition(b"\n")
    if head != _CHECKSUM + hashlib.sha256(body).hexdigest().encode():
        return False, None
    try:
        return True, msgspec.json.decode(body)
    except msgspec.DecodeError:
        return False, None


def _state_error(path: Path, what: str, problem: OSError) -> StateError:
    reason = (problem.strerror or str(problem)).lower()
    return StateError(f"{path} {what} ({reason})", _MENDS.get(problem.errno or 0, ""))
