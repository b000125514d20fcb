"""The matrix as a heat map, for those who have matplotlib (`pip install ipop_tx[bench]`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarks.nat.pairs import Pair
from ipop_tx.simulation.plot import pyplot

_COLOURS = {
    "punched": "#2b7a4b",
    "one-sided": "#58a06d",
    "foretold port": "#8bbf6a",
    "both foretold": "#b5c95a",
    "birthday search": "#e0c341",
    "port search": "#d9a441",
}
_RELAYED, _WRONG = "#8a9ba8", "#c0392b"


def plot(names: Sequence[str], pairs: Sequence[Pair], file: Path) -> None:
    """One field for each pair: the colour tells the technique, the number the median time to a direct path. Raises `EnvironmentProblem`."""
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(1.6 + 0.52 * len(names), 1.2 + 0.46 * len(names)))
    for row, one in enumerate(names):
        for column, other in enumerate(names):
            found = [pair for pair in pairs if {pair.a, pair.b} == {one, other}]
            if not found:
                continue
            axis.add_patch(plt.Rectangle((column - 0.48, row - 0.48), 0.96, 0.96, color=_colour(found)))
            axis.text(column, row, _label(found), ha="center", va="center", fontsize=6.5, color="white")
    axis.set_xlim(-0.5, len(names) - 0.5)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=8)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    marks = [plt.Line2D([], [], marker="s", ls="", color=colour, label=name) for name, colour in _COLOURS.items()]
    marks += [
        plt.Line2D([], [], marker="s", ls="", color=colour, label=name)
        for name, colour in (("relay", _RELAYED), ("not as foretold", _WRONG))
    ]
    axis.legend(handles=marks, loc="lower left", bbox_to_anchor=(0, 1.01), ncols=4, fontsize=7, frameon=False)
    for side in axis.spines.values():
        side.set_visible(False)
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    plt.close(figure)


def _colour(found: Sequence[Pair]) -> str:
    if any(pair.feasible and pair.result != "direct" for pair in found) or any(pair.lost for pair in found):
        return _WRONG
    return _COLOURS.get(found[0].technique, _RELAYED)


def _label(found: Sequence[Pair]) -> str:
    times = [pair.direct_ms for pair in found if pair.direct_ms is not None]
    if not times:
        return "direct" if found[0].result == "direct" else "relay"
    middle = median(times)
    return f"{middle:.0f} ms" if middle < 950 else f"{middle / 1000:.1f} s"
