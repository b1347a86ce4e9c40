"""What the routing benchmark writes: every ratio, reproducible figures, plots."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import routing, tables
from benchmarks.report import Report
from benchmarks.routing_sides import cost, scenarios, workload
from benchmarks.routing_sides.plot import SHOWN, plot
from benchmarks.routing_sides.table import routing_table
from benchmarks.routing_sides.workload import CHAT_FILE, TRACE_FILE

SMALL = [scenarios.Scenario("chat", "high", 2), scenarios.Scenario("mooncake", "moderate", 2)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both files, small: questions of some lengths, and a trace in which every third prompt goes on with another."""
    folder = tmp_path_factory.mktemp("data")
    turns = [{"turns": ["x" * (40 + 37 * n % 400), "y" * 60]} for n in range(20)]
    (folder / CHAT_FILE).write_text("".join(json.dumps(row) + "\n" for row in turns))
    rows = []
    for n in range(300):
        root = n % 100
        ids = [0, *(1 + 50 * root + place for place in range(4 + 3 * (n // 100)))]
        rows.append({"timestamp": 300 * n, "input_length": 512 * len(ids) - 7, "output_length": 100, "hash_ids": ids})
    (folder / TRACE_FILE).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def result(data: Path) -> dict[str, Any]:
    patch = pytest.MonkeyPatch()
    patch.setattr(scenarios, "TRACE_FIRST", 0)
    patch.setattr(scenarios, "CHAT_S", 30.0)
    patch.setattr(scenarios, "USERS_PER_REPLICA", 40)
    report = Report("routing", "python -m benchmarks.routing", routing.described())
    routing.simulate(report, SMALL, data, {"chat": 2, "mooncake": 2})
    patch.undo()
    return json.loads(json.dumps(report.as_data()))


def test_every_side_and_ratio_is_there(result: dict[str, Any]) -> None:
    for name in ("chat", "mooncake"):
        assert f"hit_rate_of_ceiling_{name}" in result["bars"]
        assert f"ttft_p95_unnamed_vs_least_loaded_{name}" in result["ratios"]
        for rival in routing.RIVALS:
            assert f"ttft_p95_vs_{rival}_{name}" in result["bars"]
    assert {run["side"] for run in result["runs"]} == {*routing.RIVALS, "tribes", "tribes_prefix", "tribes_unnamed"}
    assert all(side in result["config"] for side in routing.RIVALS)


def test_a_run_can_be_repeated(data: Path, result: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenarios, "TRACE_FIRST", 0)
    again = dict(scenarios.run(SMALL[1], data, 0))
    for run in result["runs"]:
        if run["workload"] == "mooncake" and run["pair"] == 0:
            assert run["ttft_p95_s"] == pytest.approx(again[run["side"]]["ttft_p95_s"], rel=1e-4)


def test_sessions_that_stay_hit_more_than_random_choice(result: dict[str, Any]) -> None:
    runs = [run for run in result["runs"] if run["workload"] == "chat" and run["pair"] == 0]
    hits = {run["side"]: run["hit_rate"] for run in runs}
    assert hits["tribes"] > hits["random"] + 0.05
    assert all(run["hit_rate"] <= 1.05 * run["ceiling"] for run in runs)


def test_the_tables(result: dict[str, Any]) -> None:
    lines = routing_table(result)
    assert sum(line.startswith("| `tribes` |") for line in lines) == 2
    assert all(line.count("|") in (0, 4) for line in lines)
    assert "| `hit_rate_of_ceiling_chat` |" in tables.table(result)


def test_the_plots(result: dict[str, Any], tmp_path: Path) -> None:
    files = plot(result, tmp_path)
    assert len(files) == 4 and all(file.stat().st_size > 5000 for file in files)
    assert set(SHOWN) <= {run["side"] for run in result["runs"]}


def test_chats_grow_and_share_their_application(data: Path) -> None:
    load = workload.chats(data, users=8, requests_per_s=1.0, seconds=100.0, seed=1)
    assert [c[0].number for c in load.chains] == [
        c[0].number for c in workload.chats(data, users=8, requests_per_s=1.0, seconds=100.0, seed=1).chains
    ]
    for chain in load.chains:
        for one, following in itertools.pairwise(chain):
            if one.session == following.session:
                assert following.blocks[: len(one.blocks) + len(one.answer_blocks)] == one.blocks + one.answer_blocks
            else:
                system = workload.APPLICATIONS[int(one.tenant[1:])] // workload.CHAT_BLOCK
                assert one.blocks[:system] == following.blocks[:system]
                assert not set(one.blocks[system:]) & set(following.blocks[system:])
    total = sum(len(chain) for chain in load.chains)
    assert 70 < total < 130


def test_zipf_without_anybody_faster_than_a_person() -> None:
    rates = workload.zipf_rates(300, 10.0)
    assert sum(rates) == pytest.approx(10.0, rel=0.01) and max(rates) <= 1 / workload.FASTEST_S
    assert rates == sorted(rates, reverse=True) and rates[0] > 5 * rates[-1]


def test_a_later_part_of_the_trace_begins_at_once(data: Path) -> None:
    load = workload.trace(data, 50, 2.0, 0, first=100)
    assert len(load.chains) == 50 and load.chains[0][0].due_at_s == 0.0
    assert load.chains[1][0].due_at_s == pytest.approx(2 * 0.3)
    assert load.chains[0][0].blocks == workload.trace(data, 101, 1.0, 0).chains[100][0].blocks


def test_the_traces_hashes_are_cut_as_a_gateway_would(data: Path) -> None:
    load = workload.trace(data, 300, 1.0, 0)
    first, later = load.chains[0][0], load.chains[100][0]
    assert len(first.prefix) == len(first.blocks) * 8 <= workload.GATEWAY_BLOCKS
    assert later.prefix[: len(first.prefix)] == first.prefix and first.session == later.session
    assert first.session != load.chains[1][0].session


def test_costs_are_measured() -> None:
    assert 0 < cost.hashing_us(1024, 20) < cost.hashing_us(16384, 20)
    for kind in cost.KINDS:
        assert cost.request_us(kind, 800) > 0
