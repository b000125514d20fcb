"""`python -m tests.ops [ROW ...] [--json]`: the package and its units on machines of their own, as root."""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ipop_tx.lab import Lab
from tests.ops import rows_dns, rows_newcomer, rows_service  # noqa: F401 - each registers its rows
from tests.ops.case import MACHINES, ROWS
from tests.ops.machine import why_not

LOGS = Path("logs/ops")


def run(lab: Lab, name: str, function: Callable[[Lab], str]) -> dict[str, Any]:
    """One row."""
    begun = time.monotonic()
    try:
        found = {"name": name, "passed": True, "figure": function(lab)}
    except Exception as error:  # noqa: BLE001 - the next rows have their turn
        traceback.print_exc()
        found = {"name": name, "passed": False, "figure": str(error)}
    finally:
        keep_logs(name)
    return {**found, "seconds": round(time.monotonic() - begun, 1)}


def keep_logs(name: str) -> None:
    """What the machines have said; then switch them off."""
    LOGS.mkdir(parents=True, exist_ok=True)
    while MACHINES:
        machine = MACHINES.pop()
        journal = machine.try_("journalctl --no-pager -o short-monotonic")[1]
        (LOGS / f"{name}-{machine.host.name}.log").write_text(journal)
        machine.off()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the rows; gives the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.ops", description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)}; all, unless told")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    options = parser.parse_args(arguments)
    unknown = set(options.rows) - set(ROWS)
    if unknown or (reason := why_not()):
        print(f"there is no row {', '.join(sorted(unknown))}" if unknown else reason, file=sys.stderr)
        return 2
    found = []
    for name in options.rows or ROWS:
        with Lab("ops") as lab:
            found.append(run(lab, name, ROWS[name]))
            shown = found[-1]
            print(
                f"{'passed' if shown['passed'] else 'FAILED'}  {name}  {shown['figure']}  ({shown['seconds']} s)",
                file=sys.stderr,
                flush=True,
            )
    if options.json:
        print(json.dumps({"rows": found}))
    return 0 if all(one["passed"] for one in found) else 1


if __name__ == "__main__":
    sys.exit(main())
