"""`python -m tests.attacks.daemon CHANGES PROGRAM ARGS...`: a daemon with some of its behaviour changed, for tests only.

CHANGES are names out of `undone.DEFENCES`, or `puppet`, one comma between two. The program (twistd) runs in this very process.
"""

from __future__ import annotations

import runpy
import sys

from tests.attacks import puppet, undone


def main(changes: str, program: str, *arguments: str) -> None:
    """Change, then run the program as if it had been called."""
    for name in filter(None, changes.split(",")):
        if name == "puppet":
            puppet.install()
        else:
            undone.DEFENCES[name]()
    sys.argv = [program, *arguments]
    runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    main(*sys.argv[1:])
