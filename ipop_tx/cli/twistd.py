"""What `twistd ipop` calls: read the configuration, build the node, or say in one line why not."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from twisted.python import usage

from ipop_tx.config import DEFAULT_PATH, load_config
from ipop_tx.errors import IpopError

if TYPE_CHECKING:
    from twisted.application.service import IService


class Options(usage.Options):
    """The options of `twistd ipop`."""

    synopsis = "[--config FILE]"
    longdesc = "Runs one node of a private IP network. conf/node.toml explains the configuration."
    optParameters = [["config", "c", str(DEFAULT_PATH), "The node's configuration, a node.toml."]]  # noqa: RUF012 twisted's way

    def postOptions(self) -> None:
        """Before twistd looks at its pidfile: one that it was killed over while writing would keep it from starting for ever."""
        path = self.parent.get("pidfile") if self.parent is not None else None
        with suppress(OSError):  # twistd will say what is wrong with it
            if path and os.path.isfile(path) and not Path(path).read_bytes().strip():
                os.unlink(path)


def makeService(options: Options) -> IService:
    """The node that `--config` describes. Nothing on the system is touched before it starts."""
    try:
        config = load_config(options["config"])
        from ipop_tx.daemon import Daemon  # late: a wrong configuration is told before the daemon is even imported

        daemon = Daemon(config)
    except IpopError as error:
        _say(error)
        raise SystemExit(error.exit_status) from None
    sys.excepthook = _one_line
    return daemon


def _one_line(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What ends twistd: starting a service may still find the port taken or rights missing. A sentence serves better than a traceback."""
    if isinstance(error, IpopError):
        _say(error)
    else:
        sys.__excepthook__(kind, error, trace)


def _say(error: IpopError) -> None:
    print(f"ipop: {error}", file=sys.__stderr__, flush=True)  # sys.stderr is the log by now
