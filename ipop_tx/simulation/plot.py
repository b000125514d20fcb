"""A run of the simulation as a picture, for those who have matplotlib (`pip install ipop_tx[bench]`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ipop_tx.errors import EnvironmentProblem


def pyplot() -> Any:
    """matplotlib's, drawing into files. Raises `EnvironmentProblem` without matplotlib: better before a run than after it."""
    try:
        import matplotlib as mpl  # type: ignore[import-not-found,unused-ignore]

        mpl.use("agg")
        from matplotlib import pyplot as plt
    except ImportError:
        raise EnvironmentProblem("--plot needs matplotlib", "pip install 'ipop_tx[bench]'") from None
    return plt


def picture(report: dict[str, Any], samples: dict[str, list[float]], path: Path) -> None:
    """Write a PNG: how many hops look-ups take, how long beside the direct round trip, and what an idle node sends."""
    plt = pyplot()
    figure, (hops, latency, traffic) = plt.subplots(1, 3, figsize=(13, 4))
    counts = [int(value) for value in samples.get("hops", [])] or [0]
    hops.hist(counts, bins=[edge - 0.5 for edge in range(max(counts) + 2)], rwidth=0.8)
    hops.set(xlabel="hops", ylabel="look-ups", title=f"{report['nodes']} nodes: {report['hops_mean']:.2f} hops on average")
    direct, took = ([1000 * value for value in samples.get(name, [])] for name in ("direct", "latency"))
    latency.plot(direct, took, ".", markersize=2)
    if direct:
        latency.plot([0, max(direct)], [0, max(direct)], "k-", linewidth=0.8)
    latency.set(xlabel="round trip to the owner, ms", ylabel="look-up, ms", title=f"stretch {report['stretch_p50']} (median)")
    parts = report.get("bytes_per_s") or {"all": report.get("bytes_per_s_per_node", 0)}
    traffic.bar(list(parts), list(parts.values()))
    traffic.set(ylabel="bytes per second and node", title="maintenance")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
