"""How ipop_tx stands beside others: quotients of the medians of one run. Pure; what a quotient needs and lacks makes it None."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

OURS = "ipop_tx"
PACKAGED = ("openvpn", "tinc", "wireguard-go", "nebula", "n2n", "fastd", "yggdrasil")
"""What "the best peer" is chosen of: those that Debian packages, not those of `--peer`."""
LOSSY = (20, 0.1)
"""The condition (round trip in ms, percent lost) whose goodput is compared."""

Number = float | None


@dataclass(frozen=True)
class Wanted:
    """What we want of a ratio. It is shown beside it and decides nothing."""

    bound: float
    at_least: bool = True

    def __str__(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.bound:g}"


_AT_LEAST, _AT_MOST = Wanted(1.0), Wanted(1.0, at_least=False)

WANTED: Mapping[str, Wanted] = {
    "tcp1_vs_openvpn": Wanted(7),
    "tcp1_vs_yggdrasil": Wanted(3),
    "tcp1_vs_best_peer": _AT_LEAST,
    "tcp4_vs_best_peer": _AT_LEAST,
    "tcp_reverse_vs_best_peer": _AT_LEAST,
    "cpu_vs_openvpn": Wanted(0.14, at_least=False),
    "cpu_vs_best_peer": _AT_MOST,
    "udp100_vs_best_peer": Wanted(2),
    "ping_idle_p50_vs_openvpn": Wanted(1.3, at_least=False),
    "ping_load_p99_vs_openvpn": _AT_MOST,
    "lossy_vs_raw": Wanted(0.9),
    "lossy_vs_best_peer": _AT_LEAST,
    "relayed_vs_direct": Wanted(0.4),
}
"""Every ratio, in the order of the table: ours divided by theirs."""


def ratios(report: Mapping[str, Any]) -> dict[str, Number]:
    """From what `--json` prints (`systems`, `lossy`, `relayed`) to each of `WANTED`."""
    systems: Mapping[str, Mapping[str, Any]] = report["systems"]

    def against(other: str, *keys: str) -> Number:
        return quotient(_figure(systems.get(OURS), *keys), _figure(systems.get(other), *keys))

    def against_best(best: Callable[[Iterable[float]], float], key: str) -> Number:
        return quotient(_figure(systems.get(OURS), key), _best(best, (_figure(systems.get(name), key) for name in PACKAGED)))

    lossy = {entry["system"]: entry["goodput_mbps"] for entry in report["lossy"] if (entry["rtt_ms"], entry["loss_percent"]) == LOSSY}
    found = {
        "tcp1_vs_openvpn": against("openvpn", "tcp1_gbps"),
        "tcp1_vs_yggdrasil": against("yggdrasil", "tcp1_gbps"),
        "tcp1_vs_best_peer": against_best(max, "tcp1_gbps"),
        "tcp4_vs_best_peer": against_best(max, "tcp4_gbps"),
        "tcp_reverse_vs_best_peer": against_best(max, "tcp_reverse_gbps"),
        "cpu_vs_openvpn": against("openvpn", "cpu_s_per_gb"),
        "cpu_vs_best_peer": against_best(min, "cpu_s_per_gb"),
        "udp100_vs_best_peer": against_best(max, "udp100_pps"),
        "ping_idle_p50_vs_openvpn": against("openvpn", "ping_idle_ms", "p50"),
        "ping_load_p99_vs_openvpn": against("openvpn", "ping_load_ms", "p99"),
        "lossy_vs_raw": quotient(lossy.get(OURS), lossy.get("raw")),
        "lossy_vs_best_peer": quotient(lossy.get(OURS), _best(max, (lossy.get(name) for name in PACKAGED))),
        "relayed_vs_direct": _figure(report["relayed"], "ratio"),
    }
    return {name: found[name] for name in WANTED}


def rows(found: Mapping[str, Number]) -> list[list[str]]:
    """The lines of the table: ratio, found, wanted."""
    figures = {name: "-" if found[name] is None else f"{found[name]:.3g}" for name in WANTED}
    return [[name.replace("_", " "), figures[name], str(wanted)] for name, wanted in WANTED.items()]


def quotient(ours: Number, theirs: Number) -> Number:
    """None when either is missing, or theirs is nothing."""
    return None if ours is None or not theirs else float(f"{ours / theirs:.4g}")


def _figure(entry: Mapping[str, Any] | None, *keys: str) -> Number:
    found: Any = entry
    for key in keys:
        found = None if found is None else found[key]
    return found  # type: ignore[no-any-return]


def _best(best: Callable[[Iterable[float]], float], values: Iterable[Number]) -> Number:
    """Of those that were measured and are not nothing: no daemon works for nothing."""
    measured = [value for value in values if value]
    return best(measured) if measured else None
