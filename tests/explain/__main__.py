"""`python -m tests.explain [NAME...] [--json]`: faults among real daemons; `ipop explain` must name each, and the mend. As root."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

from ipop_tx.lab import Lab
from tests.explain.faults import FAULTS, Fault
from tests.explain.net import Net
from tests.system import why_not


def row(net: Net, fault: Fault) -> dict[str, Any]:
    """Plant it, ask, unmake it. `right` is whether the code is the first cause, with the mend, and was not there before."""
    begun, wrong = time.monotonic(), ""
    asked = fault.plant(net)
    node, words = next(asked)
    if fault.code in net.codes(net.explain(node, *words, probe=fault.probe)):
        wrong = "the code is there without the fault"
    node, words = next(asked)
    found = net.explain(node, *words, probe=fault.probe)
    next(asked, None)
    cause = found["cause"] or {"code": None, "sentence": ""}
    if cause["code"] != fault.code:
        wrong = wrong or f"{cause['code']} instead; all faults: {net.codes(found)}"
    elif fault.mend not in cause["sentence"]:
        wrong = wrong or f"no {fault.mend!r} in {cause['sentence']!r}"
    seconds = round(time.monotonic() - begun, 1)
    return {"fault": fault.name, "code": fault.code, "right": not wrong, "why": wrong, "sentence": cause["sentence"], "seconds": seconds}


def run(faults: Sequence[Fault]) -> list[dict[str, Any]]:
    """All of them, in one lab."""
    rows = []
    with Lab("explain") as lab:
        net = Net(lab)
        net.start()
        for name in ("laptop", "server"):
            net.ready(name)
        for fault in faults:
            try:
                rows.append(row(net, fault))
            except Exception as error:  # noqa: BLE001 one row that is out of order must not hide the others
                rows.append({"fault": fault.name, "code": fault.code, "right": False, "why": f"{type(error).__name__}: {error}"})
            say(rows[-1])
    return rows


def say(one: dict[str, Any]) -> None:
    """Progress, for whoever waits."""
    print(
        f"explain: {'right' if one['right'] else 'WRONG'} {one['fault']} ({one.get('seconds')} s) {one['why']}", file=sys.stderr, flush=True
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run with words of the command line; gives the exit status."""
    parser = argparse.ArgumentParser(prog="tests.explain", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    parser.add_argument("names", nargs="*", help="words of the names of faults (default: all)")
    options = parser.parse_args(argv)
    problem = why_not()
    if problem:
        print(f"explain: {problem}", file=sys.stderr)
        return 1
    wanted = [one for one in FAULTS if not options.names or any(name in (one.name, one.code) for name in options.names)]
    rows = run(wanted)
    right = sum(one["right"] for one in rows)
    print(json.dumps({"right": right, "of": len(rows), "rows": rows}) if options.json else f"{right} of {len(rows)}", flush=True)
    return 0 if rows and right == len(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
