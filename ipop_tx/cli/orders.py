"""Orders of the authority that several keys have to sign, as files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from ipop_tx.errors import EnvironmentProblem

order_option = click.option(
    "--order",
    type=click.Path(path_type=Path),
    default=Path("ipop-order.json"),
    show_default=True,
    help="Where to write the order, if others have to sign it first.",
)


def wait_for_others(answer: Mapping[str, Any], file: Path) -> bool:
    """If the daemon has handed an order over instead of carrying it out, write it down and say what comes next; gives whether it has."""
    content = answer if "ipop_orders" in answer else answer.get("order")
    if content is None:
        return False
    write(file, content["ipop_orders"])
    click.echo(f"more keys have to sign this; wrote {file}", err=True)
    click.echo(
        f"next, wherever those are:  ipop sign {file} --key KEY-FILE   and at the end, on any member:  ipop authority give {file}", err=True
    )
    return True


def write(file: Path, orders: list[str]) -> None:
    """Write a file of orders. Raises `EnvironmentProblem`."""
    try:
        file.write_text(json.dumps({"ipop_orders": orders}, indent=1) + "\n")
    except OSError as error:
        raise EnvironmentProblem(f"{file} cannot be written: {error.strerror}", "name another file") from None


def sign_orders(file: Path, content: bytes, key_file: Path) -> None:
    """Add a signature to each order of a file, and say what they do."""
    from ipop_tx.errors import LocalMisuse
    from ipop_tx.identity.keys import read_key
    from ipop_tx.identity.state import StateDirectory
    from ipop_tx.identity.trust import signatures_in
    from ipop_tx.services.orders import from_file, signed, to_file, told

    try:
        orders = from_file(json.loads(content))
    except ValueError:
        raise LocalMisuse("this is neither a certificate request nor a file of orders", "give what ipop has written") from None
    key = read_key(StateDirectory(key_file.absolute().parent), key_file.name, "make one by ipop authority key")
    done = [signed(key, order) for order in orders]
    write(file, to_file(done)["ipop_orders"])
    for order in done:
        click.echo(f"{told(order)}: {len(signatures_in(order.signature))} signatures")
