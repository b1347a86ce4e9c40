"""Ratios and bars of benchmarks/gateway.py, from its runs. Owns: what is compared with what. Must not know: loads."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.gateway_sides.cases import SATURATED
from benchmarks.gateway_sides.ours import CONTENDED, OWN_DOOR, SERVE_DOOR
from benchmarks.gateway_sides.plain_serve import HAPROXY
from benchmarks.report import Report

BARS: dict[str, tuple[str, Callable[[float], bool]]] = {
    "added_ttft_p50_ms_c1": ("<= 1.5", lambda got: got <= 1.5),
    "added_ttft_p99_ms_c1": ("<= 6", lambda got: got <= 6),
    "added_ttft_p99_ms_300rps": ("<= 10", lambda got: got <= 10),
    "saturated_rps_vs_serve_haproxy": (">= 1.6", lambda got: got >= 1.6),
    "own_door_added_ttft_p50_ms_c1": ("<= 0.8", lambda got: got <= 0.8),
    "own_door_rps_vs_vllm_router": (">= 0.6", lambda got: got >= 0.6),
    "cpu_s_vs_litellm": ("<= 0.1", lambda got: got <= 0.1),
}
OWN_FIGURES = {
    "added_ttft_p50_ms_c1": (SERVE_DOOR, "c1", "added_ttft_p50_ms"),
    "added_ttft_p99_ms_c1": (SERVE_DOOR, "c1", "added_ttft_p99_ms"),
    "added_total_p50_ms_c1": (SERVE_DOOR, "c1", "added_total_p50_ms"),
    "added_ttft_p99_ms_300rps": (SERVE_DOOR, "open300", "added_ttft_p99_ms"),
    "own_door_added_ttft_p50_ms_c1": (OWN_DOOR, "c1", "added_ttft_p50_ms"),
    "own_door_added_ttft_p99_ms_c1": (OWN_DOOR, "c1", "added_ttft_p99_ms"),
    "own_door_added_ttft_p99_ms_300rps": (OWN_DOOR, "open300", "added_ttft_p99_ms"),
    "contended_added_beyond_queue_p50_ms_c1": (CONTENDED, "c1", "added_beyond_queue_p50_ms"),
}
"""Ratio -> side, case, metric."""
DIVIDED = {
    "saturated_rps_vs_serve_haproxy": (SERVE_DOOR, HAPROXY, SATURATED, "rps"),
    "own_door_rps_vs_vllm_router": (OWN_DOOR, "vllm_router", SATURATED, "rps"),
    "contended_rps_vs_idle": (CONTENDED, SERVE_DOOR, SATURATED, "rps"),
    "cpu_s_vs_litellm": (SERVE_DOOR, "litellm", "c16", "cpu_s_per_1000"),
    "added_p50_vs_litellm": (SERVE_DOOR, "litellm", "c1", "added_ttft_p50_ms"),
}
"""Ratio -> side, by whom it is divided, case, metric."""


def judge(report: Report) -> None:
    """All ratios for which there are runs, and the bars on them."""
    for name, (side, case, metric) in OWN_FIGURES.items():
        if _pairs(report, side, side, case):
            report.compare(name, metric, side, side, lambda mine, _: mine, case=case)
    for name, (side, other, case, metric) in DIVIDED.items():
        if _pairs(report, side, other, case):
            report.compare(name, metric, side, other, lambda mine, theirs: mine / theirs, case=case)
    for name, (need, holds) in BARS.items():
        if name in report.ratios:
            report.bar(name, need, holds)


def _pairs(report: Report, side: str, other: str, case: str) -> set[int]:
    """Rounds in which both were measured."""
    rounds = [{r["pair"] for r in report.runs if r["side"] == s and r["case"] == case} for s in (side, other)]
    return rounds[0] & rounds[1]
