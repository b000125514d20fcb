"""Transports of other packages: found by their entry points, made with the tables of the configuration, held to `ITransport`.

See docs/transports.md. A package that is installed does nothing until the configuration has a table `[transports.NAME]`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ipop_tx.errors import EnvironmentProblem, IpopError
from ipop_tx.interfaces import ITransport

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "ipop_tx.transports"

TransportFactory = Callable[[Any, Mapping[str, Any]], ITransport]
"""What an entry point names: called with the reactor and the configuration's table."""


def foreign_transports(reactor: Any, tables: Mapping[str, Mapping[str, Any]]) -> list[ITransport]:
    """One transport for each table. Raises `EnvironmentProblem` when it is not installed or not a transport; whatever it raises itself."""
    if not tables:
        return []
    from importlib.metadata import entry_points  # not for the many nodes that need none

    found = {point.name: point for point in entry_points(group=GROUP)}
    return [_made(reactor, name, table, found) for name, table in tables.items()]


def _made(reactor: Any, name: str, table: Mapping[str, Any], found: Mapping[str, EntryPoint]) -> ITransport:
    from zope.interface import Invalid
    from zope.interface.verify import verifyObject

    point = found.get(name)
    if point is None:
        known = f"installed are {', '.join(sorted(found))}" if found else "none is installed"
        raise EnvironmentProblem(
            f"[transports.{name}]: no installed package has a transport {name!r}", f"install the one that has it; {known}"
        )
    whose = f"[transports.{name}]: {point.value}"
    try:
        factory: TransportFactory = point.load()
    except Exception as error:
        raise EnvironmentProblem(f"{whose} cannot be loaded ({error})", "install its package anew") from error
    try:
        transport = factory(reactor, table)
        verifyObject(ITransport, transport)
    except IpopError:
        raise
    except Invalid as error:
        raise EnvironmentProblem(
            f"{whose} is no transport ({_one_line(error)})", "ask its author for one that fits this version"
        ) from error
    except Exception as error:
        raise EnvironmentProblem(f"{whose} cannot be made ({_one_line(error)})", "compare the table with its documentation") from error
    if transport.scheme != name:
        raise EnvironmentProblem(f"{whose} is for endpoints {transport.scheme}:...", f"name its table [transports.{transport.scheme}]")
    return transport


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
