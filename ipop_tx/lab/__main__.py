"""`python -m ipop_tx.lab list|clean`: what labs there are on this machine, and away with those that nobody owns any more."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ipop_tx.errors import IpopError
from ipop_tx.lab import netns
from ipop_tx.lab.registry import Record, clean, records


def main(argv: Sequence[str] | None = None) -> int:
    """Run one of the commands; gives the exit status."""
    parser = argparse.ArgumentParser(prog="ipop_tx.lab", description=__doc__)
    parser.add_argument(
        "command", choices=["list", "clean"], help="clean: remove the labs that were kept or left behind, never a running one"
    )
    options = parser.parse_args(argv)
    try:
        netns.require_root_and(["ip"])
        found = clean(kept=True) if options.command == "clean" else records()
    except IpopError as error:
        print(f"lab: {error}", file=sys.stderr)
        return error.exit_status
    for record in found:
        print(f"{record.lab}: {'removed' if options.command == 'clean' else _state(record)}; {len(record.namespaces)} namespaces")
    if not found:
        print("there is nothing to remove" if options.command == "clean" else "there are no labs")
    return 0


def _state(record: Record) -> str:
    if record.kept:
        return "kept"
    return f"owned by process {record.owner}" if record.alive else "left behind"


if __name__ == "__main__":
    sys.exit(main())
