"""What the results file of benchmarks.gateway becomes: ratios, bars, kept runs, README's table."""

from __future__ import annotations

import json

import pytest
import typer

from benchmarks import gateway, tables
from benchmarks.gateway_sides.cases import CASES
from benchmarks.gateway_sides.peers import PEERS
from benchmarks.gateway_sides.verdict import BARS, judge
from benchmarks.report import Report

SPEED = {"tribes": 1.0, "tribes_own_door": 0.5, "tribes_contended": 1.5, "serve_haproxy": 2.5, "litellm": 16.0}
ROUNDS = 3


def report(**speeds: float) -> Report:
    """A door of `ms` adds that much, and is that much slower and dearer."""
    made = Report("gateway", "python -m benchmarks.gateway --json f", {"cases": {}})
    for number in range(ROUNDS):
        for side, ms in ({"vllm_router": 0.4} | SPEED | speeds).items():
            for case in CASES:
                figures = {"added_ttft_p50_ms": ms, "added_ttft_p99_ms": 3 * ms, "added_total_p50_ms": 2 * ms}
                figures |= {"added_beyond_queue_p50_ms": ms, "rps": 1000 / ms, "cpu_s_per_1000": ms}
                made.add(number, side, case=case, **figures)
            made.add(number, side, case="saturated", rps=1000 / ms)
            made.add(number, side, case="memory", pss_mib=100 * ms)
            made.add(number, "direct", case="c1", group=side, rps=3000.0)
    judge(made)
    return made


def test_ratios_and_bars() -> None:
    made = report()
    medians = {name: ratio["median"] for name, ratio in made.ratios.items()}
    assert medians["added_ttft_p50_ms_c1"] == 1.0
    assert medians["added_ttft_p99_ms_300rps"] == 3.0
    assert medians["saturated_rps_vs_serve_haproxy"] == pytest.approx(2.5)
    assert medians["own_door_rps_vs_vllm_router"] == pytest.approx(0.8)
    assert medians["cpu_s_vs_litellm"] == medians["added_p50_vs_litellm"] == pytest.approx(1 / 16)
    assert made.bars.keys() == BARS.keys()
    assert all(bar["holds"] for bar in made.bars.values())


def test_a_slow_door_misses_its_bars() -> None:
    bars = report(tribes=4.0, tribes_own_door=1.0).bars
    assert {name for name, bar in bars.items() if not bar["holds"]} == {
        "added_ttft_p50_ms_c1", "added_ttft_p99_ms_c1", "added_ttft_p99_ms_300rps", "saturated_rps_vs_serve_haproxy",
        "own_door_added_ttft_p50_ms_c1", "own_door_rps_vs_vllm_router", "cpu_s_vs_litellm",
    }  # fmt: skip


def test_what_was_not_measured_has_no_ratio() -> None:
    made = Report("gateway", "", {})
    made.add(0, "tribes", case="c1", added_ttft_p50_ms=1.0, added_ttft_p99_ms=2.0, added_total_p50_ms=2.0)
    made.add(1, "litellm", case="c1", added_ttft_p50_ms=16.0)
    judge(made)
    assert made.ratios.keys() == {"added_ttft_p50_ms_c1", "added_ttft_p99_ms_c1", "added_total_p50_ms_c1"}


def test_sides_and_cases_that_are_not_measured_again_are_kept() -> None:
    before = json.loads(json.dumps(report().as_data()))
    before["versions"]["litellm"] = "1.0"
    after = Report("gateway", "again", {"cases": {"c1": {}}})
    gateway.keep_others(after, before, ("tribes",), ("c1",))
    kept = {(run["side"], run["case"]) for run in after.runs}
    assert ("tribes", "c1") not in kept
    assert {("tribes", "c16"), ("tribes", "saturated"), ("litellm", "c1"), ("tribes_own_door", "c1")} <= kept
    assert {run["group"] for run in after.runs if run["side"] == "direct"} == (SPEED | {"vllm_router": 0}).keys() - {
        "tribes"
    }
    assert after.more_versions == {"litellm": "1.0"}
    assert after.command == "python -m benchmarks.gateway --json f; again"
    gateway.keep_others(crowded := Report("gateway", "", {}), before, ("tribes",), ("c64",))
    assert ("tribes", "saturated") not in {(run["side"], run["case"]) for run in crowded.runs}


def test_the_readme_table() -> None:
    text = tables.table(json.loads(json.dumps(report().as_data())))
    (row,) = [line for line in text.splitlines() if line.startswith("| LiteLLM proxy |")]
    assert row == "| LiteLLM proxy | 16 | 48 | 32 | 48 | 62.5 | 62.5 | 16 | 1,600 |"
    assert "plain Serve as shipped" not in text, "it was not measured"
    assert "| `saturated_rps_vs_serve_haproxy` | 2.5 | 2.5 to 2.5 | >= 1.6: holds |" in text


def test_sides_that_do_not_exist_are_named() -> None:
    with pytest.raises(typer.BadParameter, match="no side envoy; there are tribes"):
        gateway._known("side", ["envoy"], gateway.SIDES)
    assert gateway._known("side", None, gateway.SIDES) == gateway.SIDES
    assert set(PEERS) <= set(gateway.SIDES)
