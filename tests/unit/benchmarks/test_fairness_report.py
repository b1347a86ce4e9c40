"""What the results file becomes: ratios and bars, README's table, the plots."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmarks import fairness, tables
from benchmarks.fairness_sides.plot import plot
from benchmarks.fairness_sides.workload import ARENA_FILE
from benchmarks.report import Report

TENANTS = 15


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small trace in the arena's format: a greedy tenant and others, for a minute and a half."""
    folder = tmp_path_factory.mktemp("data")
    rows = [f"{n * 0.4:.3f},t{n % TENANTS if n % 2 else 0:02},{50 + n % 90},{20 + (n * 37) % 160}" for n in range(240)]
    (folder / ARENA_FILE).write_text("\n".join(["arrived_at_s,tenant,prompt_tokens,output_tokens", *rows]) + "\n")
    return folder


@pytest.fixture(scope="module")
def result(data: Path) -> dict[str, Any]:
    report = Report("fairness", "python -m benchmarks.fairness", fairness.described())
    fairness.simulate(report, data, repetitions=2)
    return json.loads(json.dumps(report.as_data()))


def test_every_ratio_of_the_simulation_is_there(result: dict[str, Any]) -> None:
    needed = {
        "vtc_vs_fcfs_max", "vtc_vs_fcfs_mean", "ours_vs_vtc_max", "ours_vs_vtc_mean", "ours_vs_oracle_max",
        "throughput_vs_fcfs", "recorded_vtc_oracle_vs_vtc_max", "recorded_vtc_vs_lcf_mean",
        "recorded_lcf_vs_fcfs_max", "overload_gap_vs_bound", "weighted_share_error",
    }  # fmt: skip
    assert needed <= result["ratios"].keys()
    recorded = result["ratios"]["recorded_vtc_vs_lcf_max"]
    assert recorded["min"] == recorded["median"] == recorded["max"], "the order is a claim about the recorded trace"
    pairs = {run["pair"] for run in result["runs"] if run["side"] == "vtc" and run["scenario"] == "arena"}
    assert pairs == {0, 1}


def test_scenarios_that_do_not_depend_on_the_trace_keep_their_bars(result: dict[str, Any]) -> None:
    for name in ("overload_gap_vs_bound", "weighted_share_error"):
        assert result["bars"][name]["holds"] is True
    runs = {(run["scenario"], run["side"]): run for run in result["runs"] if run["pair"] == 0}
    assert runs["overload", "tribes"]["gap_max"] < 0.05 * runs["overload", "fcfs"]["gap_max"]
    assert runs["weights", "fcfs"]["share_error_max"] > 0.5, "FCFS gives what is asked for, not what is due"
    noisy = {side: run for (scenario, side), run in runs.items() if scenario == "noisy"}
    assert noisy["tribes"]["quiet_ttft_p99_s"] < 0.05 * noisy["fcfs"]["quiet_ttft_p99_s"]
    assert noisy["tribes_max_concurrent"]["quiet_ttft_p99_s"] < 2 * noisy["tribes"]["quiet_ttft_p99_s_alone"]


def test_the_readme_table(result: dict[str, Any]) -> None:
    text = tables.table(result)
    assert "| policy | difference, max | mean |" in text and text.count("| `tribes` |") == 1
    assert "| `ours_vs_vtc_max` |" in text and "quiet tenants, live" not in text
    live = [
        {"pair": pair, "side": side, "scenario": "live", "quiet_ttft_p50_s": 0.2, "quiet_ttft_p99_s": p99_s,
         "quiet_missed": 1, "quiet_requests": 100}
        for pair in range(3)
        for side, p99_s in (("alone", 0.5), ("noisy_tribes", 0.51 + pair / 100), ("noisy_fifo", 30.0))
    ]  # fmt: skip
    text = tables.table({**result, "runs": [*result["runs"], *live]})
    assert "| with it | 200 | 520 | 3 of 300 |" in text


def test_plots_are_drawn_from_the_results_alone(result: dict[str, Any], tmp_path: Path) -> None:
    files = plot(result, tmp_path / "plots")
    assert sorted(f.name for f in files) == [
        "fairness_difference.png", "fairness_difference.svg", "fairness_tenants.png", "fairness_tenants.svg",
    ]  # fmt: skip
    assert all(f.stat().st_size > 5_000 for f in files)


def test_a_folder_without_the_trace_is_refused_with_the_cure(tmp_path: Path) -> None:
    import typer

    app = typer.Typer()
    app.command()(fairness.main)
    done = CliRunner().invoke(app, ["--json", str(tmp_path / "f.json"), "--data", str(tmp_path), "--no-live"])
    assert done.exit_code == 2 and not (tmp_path / "f.json").exists()
    assert ARENA_FILE in done.output and "--data" in done.output
