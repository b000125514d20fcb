"""The figures of one run as a picture, for those who have matplotlib (`pip install ipop_tx[bench]`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ipop_tx.simulation.plot import pyplot

_PANELS = (
    ("tcp1_gbps", "TCP, one stream\nGbit/s"),
    ("cpu_s_per_gb", "CPU of both daemons\ns/GB"),
    ("udp100_pps", "100-byte datagrams received\nthousands a second"),
    ("ping_load_ms", "ping p99 beside a bulk stream\nms"),
)


def plot(report: dict[str, Any], file: Path) -> None:
    """Write a PNG of what `--json` prints, without raw: its bars would hide the others. Raises `EnvironmentProblem` without matplotlib."""
    plt = pyplot()
    systems = report["systems"]
    names = [name for name in systems if name != "raw"] or list(systems)
    figure, axes = plt.subplots(1, len(_PANELS), figsize=(3.2 * len(_PANELS), 0.6 + 0.45 * max(3, len(names))), sharey=True)
    for axis, (key, title) in zip(axes, _PANELS, strict=True):
        values = [_value(systems[name][key]) / (1000 if key == "udp100_pps" else 1) for name in names]
        bars = axis.barh(names, values, color=["#c44e2f" if name == "ipop_tx" else "#8a9ba8" for name in names])
        axis.bar_label(bars, labels=[f"{value:.3g}" for value in values], padding=3, fontsize=8)
        axis.set_title(title, fontsize=9)
        axis.margins(x=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].invert_yaxis()
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    plt.close(figure)


def _value(found: float | dict[str, float] | None) -> float:
    if isinstance(found, dict):
        return found["p99"] or 0.0
    return found or 0.0
