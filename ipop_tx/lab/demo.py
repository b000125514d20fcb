"""`python -m ipop_tx.lab.demo`: seven real nodes and more in sites behind NATs form a network, use it, and lose their founder."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from ipop_tx.errors import IpopError
from ipop_tx.lab import netns
from ipop_tx.lab.demo_steps import Demo
from ipop_tx.lab.story import Story
from ipop_tx.lab.topology import Lab


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; gives the exit status."""
    options = _parser().parse_args(argv)
    try:
        netns.require_root_and(netns.PACKAGES)
        with Lab("demo") as lab:
            return _run(lab, options)
    except IpopError as error:
        print(f"demo: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("demo: interrupted; everything was removed", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ipop_tx.lab.demo", description=__doc__)
    parser.add_argument("--check", action="store_true", help="exit with 1 unless everything is as it must be")
    parser.add_argument("--json", action="store_true", help="the result as one JSON object on stdout; the story goes to stderr")
    parser.add_argument("--keep", action="store_true", help="leave everything running, and say how to step into a node")
    parser.add_argument("--megabytes", type=int, default=256, help="size of the file that is fetched (default: %(default)s)")
    return parser


def _run(lab: Lab, options: argparse.Namespace) -> int:
    story = Story(to_stderr=options.json)
    demo = Demo(lab, story, options.megabytes)
    began = time.monotonic()
    try:
        demo.run()
    except IpopError as error:
        demo.report.error = str(error)
    demo.report.seconds = time.monotonic() - began
    faults = demo.report.faults()
    with story.step("Not everything is as it must be" if faults else "Everything is as it must be"):
        for fault in faults:
            story.say(fault)
    if options.keep:
        _keep(lab, demo, story)
    if options.json:
        print(demo.report.as_json(), flush=True)
    return 1 if faults and options.check else 0


def _keep(lab: Lab, demo: Demo, story: Story) -> None:
    lab.keep()
    with story.step("It goes on running"):
        story.table(["to", "type"], [*demo.hints(), ("end it", f"{sys.executable} -m ipop_tx.lab clean")])


if __name__ == "__main__":
    sys.exit(main())
