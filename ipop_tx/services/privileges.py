"""What the daemon may do on its machine: from its start on no more than it needs, whatever it was started with.

A daemon that root has started becomes `daemon.user`, if that is set, before it opens anything, and gives that user what root may have
written into the state directory. Then all capabilities go but those of `needed`, for good: the bounding set is emptied, and no program
that it starts can gain any (`no_new_privs`). Capabilities belong to threads, so this must come before there is a second one.
capabilities(7), prctl(2).
"""

from __future__ import annotations

import grp
import os
import pwd
from pathlib import Path

import pyprctl
from pyprctl import Cap

from ipop_tx.config import Config
from ipop_tx.errors import PermissionProblem, StateError
from ipop_tx.log import Logger

LOW = 1024
"""Ports below are for those with CAP_NET_BIND_SERVICE."""

_log = Logger()


def needed(config: Config) -> frozenset[Cap]:
    """The capabilities without which a node of this configuration would lack something.

    CAP_NET_ADMIN makes the TAP, also later when somebody has removed it, gives it addresses and quietens the kernel on it. With
    CAP_NET_BIND_SERVICE ports below 1024 are bound, if there are any: also the one at which guests renew, and again on each new address.
    """
    wanted = {Cap.NET_ADMIN} if config.tap.enabled else set()
    if any(0 < port < LOW for port in _ports(config).values()):
        wanted.add(Cap.NET_BIND_SERVICE)
    return frozenset(wanted)


def beyond(config: Config) -> list[str]:
    """The keys of ports that cannot be bound any more with what was kept."""
    if Cap.NET_BIND_SERVICE in pyprctl.CapState.get_current().effective:
        return []
    return [key for key, port in _ports(config).items() if 0 < port < LOW]


def _ports(config: Config) -> dict[str, int]:
    """What is bound, by key; 0 for nothing, or for any port."""
    dns, metrics = config.dns.listen, config.metrics.listen
    return {
        "listen.udp": config.listen.udp.port,
        "listen.tls.port": config.listen.tls.port or 0,
        "dhcp.guests": 67 if config.dhcp.guests else 0,
        "dns.listen": dns[1] if dns is not None else 0,
        "metrics.listen": metrics[1] if metrics is not None else 0,
    }


def drop(config: Config) -> None:
    """Give up what is not needed. Raises `PermissionProblem` or `StateError`; the process must end then."""
    try:
        _become(config)
        wanted = needed(config)
        if os.geteuid() == 0:
            _check_own(config.node.state)
            wanted |= {Cap.DAC_READ_SEARCH}  # code and configuration may lie in somebody's home; root could read them in any case
        _keep(wanted)
    except OSError as error:  # some containers give root, and keep even this from it
        mend = "start the daemon as the user that it is to be, with the capabilities of docs/service.md"
        raise PermissionProblem(f"rights cannot be given up: {error.strerror}", mend) from error
    names = " ".join(sorted(f"CAP_{one.name}" for one in pyprctl.CapState.get_current().permitted))
    _log.info("privileges_dropped uid={uid} capabilities={capabilities}", uid=os.geteuid(), capabilities=names or "none")


def _become(config: Config) -> None:
    """`daemon.user`, and a member of `control.group`."""
    account = _account(config.daemon.user)
    if account is not None:
        _hand_over(config, account)
        groups = [*os.getgrouplist(account.pw_name, account.pw_gid), *_readers(config)]
        pyprctl.cap_set_ids(uid=account.pw_uid, gid=account.pw_gid, groups=groups, preserve_effective_caps=True)
        _check_readable(account.pw_name)
    elif Cap.SETGID in pyprctl.cap_effective.probe():
        os.setgroups([*os.getgroups(), *_readers(config)])


def _keep(wanted: frozenset[Cap]) -> None:
    """Those of them that we have."""
    state = pyprctl.CapState.get_current()
    if Cap.SETPCAP in state.effective:
        pyprctl.capbset.clear()
    pyprctl.cap_ambient_clear_all()
    state.permitted &= wanted
    state.effective, state.inheritable = set(state.permitted), set()
    state.set_current()
    pyprctl.set_no_new_privs()


def _account(name: str | None) -> pwd.struct_passwd | None:
    """Whom to become; None for nobody else."""
    if name is None:
        return None
    try:
        account = pwd.getpwnam(name)
    except KeyError:
        raise PermissionProblem(
            f"daemon.user is {name}, and this machine has no such user", "make it: adduser --system --group ipop"
        ) from None
    if account.pw_uid == os.geteuid():
        return None
    if os.geteuid() != 0:
        raise PermissionProblem(f"only root can become {name}", "start the daemon as root or as that user, or leave daemon.user out")
    return account


def _readers(config: Config) -> list[int]:
    """The group to which the control socket is opened: only its members may give it that. Whether there is one, is looked at there."""
    try:
        return [grp.getgrnam(config.control.group).gr_gid] if config.control.group is not None else []
    except KeyError:
        return []


def _hand_over(config: Config, account: pwd.struct_passwd) -> None:
    """What root made in the state directory, and a directory for the control socket, unless there is one."""
    state, place = config.node.state, config.control.socket.parent
    for path in (state, *state.rglob("*")):
        found = path.lstat()
        # A file with two names may be another's, which somebody has put in our way.
        if found.st_uid == 0 and (path.is_dir() or found.st_nlink == 1):
            os.chown(path, account.pw_uid, account.pw_gid, follow_symlinks=False)
    if not place.exists():
        place.mkdir(mode=0o755, parents=True)
        os.chown(place, account.pw_uid, account.pw_gid)


def _check_readable(name: str) -> None:
    """Parts of ipop_tx are read only when they are needed, and by then as that user."""
    own = Path(__file__)
    if not os.access(own, os.R_OK, effective_ids=True):
        raise PermissionProblem(
            f"{name} may not read {own.parent}", "install ipop_tx where everybody may, as in /opt, or choose another daemon.user"
        )


def _check_own(state: Path) -> None:
    owner = state.stat().st_uid
    if owner != 0:
        raise StateError(f"{state} belongs to {_name(owner)}, not to root", f'set daemon.user = "{_name(owner)}"')


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
