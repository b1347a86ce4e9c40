"""The demo's parts without a cluster: its text, its statistics, its bill, its plot, its choice of targets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from cluster.cli.api import Answer
from cluster.cli.errors import UsageError
from cluster.config import load_config
from cluster.demo import corpus
from cluster.demo.bill import all_costs, burst_shares, wait_billed
from cluster.demo.burst import prompts, read_sample
from cluster.demo.results import RequestResult, Sample, percentile, scale_up_s, summarise, summarise_offline
from cluster.demo.targets import choose, keys_for, tenants, weights
from cluster.demo.view import replica_plot, sparkline
from cluster.scheduling.service import ServiceWeights
from cluster.state import Store, hash_key
from tests.unit.cli.conftest import write_config

REPORT = {
    "rows": 4,
    "ok": 3,
    "run": {
        "tokens": {"input": 100, "cached_input": 10, "output": 40},
        "seconds": 2.0,
        "usd": 0.5,
        "usd_per_mtok": 3571.4,
    },
    "pools": [{"name": "batch"}],
}


def request(tenant: str, wait_s: float, output_tokens: int = 10) -> RequestResult:
    answer = Answer("hi", ttft_s=wait_s + 0.1, itl_s=[0.01, 0.03], total_s=wait_s + 1, queue_wait_s=wait_s)
    answer.prompt_tokens, answer.cached_tokens, answer.output_tokens = 20, 5, output_tokens
    return RequestResult(tenant, "p", answer)


def test_the_text_is_real_bounded_and_the_same_every_time(tmp_path: Path) -> None:
    rows = corpus.offline_rows(tmp_path)
    assert len(rows) == corpus.MODULES and len({row["id"] for row in rows}) == corpus.MODULES
    assert rows == corpus.offline_rows(tmp_path)
    for row in rows:
        (message,) = row["messages"]
        assert message["role"] == "user" and corpus.MIN_CHARS < len(message["content"]) < corpus.MAX_CHARS + 100


def test_questions_are_added_where_the_file_is(tmp_path: Path) -> None:
    path = tmp_path / corpus.QUESTIONS_FILE
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps({"question": f"q{n}?"}) + "\n" for n in range(30)))
    rows = corpus.offline_rows(tmp_path)[corpus.MODULES :]
    assert [row["messages"][0]["content"] for row in rows] == [f"q{n}?" for n in range(corpus.QUESTIONS)]
    path.write_text("not json")
    assert len(corpus.offline_rows(tmp_path)) == corpus.MODULES
    target = tmp_path / "input.jsonl"
    corpus.write_rows(target, rows)
    assert [json.loads(line) for line in target.read_text().splitlines()] == rows


def test_percentiles_are_nearest_rank() -> None:
    assert percentile([], 50) is None and percentile([3.0], 95) == 3.0
    assert percentile(list(range(1, 101)), 95) == 95 and percentile([1.0, 2.0], 50) == 1.0


def test_a_class_is_summed_up_over_what_was_answered() -> None:
    failed = RequestResult("a", "p", error="no")
    summary = summarise("semi_online", "d", [request("a", 1.0), request("b", 3.0), failed], wall_s=4.0)
    assert (summary.requests, summary.errors, summary.prompt_tokens, summary.output_tokens) == (3, 1, 40, 20)
    assert (summary.queue_wait_p50_s, summary.queue_wait_max_s) == (2.0, 3.0)
    assert summary.ttft_p50_s == pytest.approx(2.1) and summary.itl_p50_s == pytest.approx(0.02)
    assert summary.output_tokens_per_s == 5.0
    offline = summarise_offline(REPORT)
    assert (offline.requests, offline.errors, offline.output_tokens_per_s, offline.ttft_p50_s) == (4, 1, 20.0, None)
    assert summarise("online", "d", [failed], 0.0).as_json()["output_tokens_per_s"] is None


def test_tenants_show_who_went_first_and_what_it_cost() -> None:
    burst = [request("a", 3.0), request("a", 4.0), request("b", 1.0), request("b", 2.0)]
    bill = [
        {"tenant": "a", "request_class": "semi_online", "usd": 0.25},
        {"tenant": "a", "request_class": "online", "usd": 9.0},
        {"tenant": "b", "request_class": "semi_online", "usd": 0.75},
    ]
    a, b = burst_shares(burst, ServiceWeights(1, 2), {"a": 1.0, "b": 2.0}, bill)
    # (20 - 5) uncached + 2 x 10 = 35 a request
    assert a["service"] == b["service"] == 70 and a["service_share"] == 0.5
    assert (a["first_half_share"], b["first_half_share"]) == (0.0, 1.0)
    assert (a["usd"], b["usd"]) == (0.25, 0.75) and b["usd_per_mtok"] == pytest.approx(0.75 / 60 * 1e6)
    (nothing,) = burst_shares([RequestResult("c", "p", error="x")], ServiceWeights(), {"c": 1.0}, [])
    assert nothing["errors"] == 1 and nothing["service_share"] is None and nothing["usd_per_mtok"] is None


def test_the_offline_job_is_on_the_bill(tmp_path: Path) -> None:
    config = load_config(write_config(tmp_path))
    (row,) = all_costs(config, 0.0, REPORT)
    assert (row["tenant"], row["usd"], row["deployment"]) == ("(offline job)", 0.5, "batch")


def test_waiting_for_the_ledger_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.demo.bill.LEDGER_WAIT_S", 0.01)
    config = load_config(write_config(tmp_path))
    assert wait_billed(config, 0.0, 0) and not wait_billed(config, 0.0, 1)


def test_keys_work_during_the_run_only(tmp_path: Path) -> None:
    config = load_config(write_config(tmp_path))
    names = tenants(config)
    assert names == ["team-b", "team-a", "team-c"]
    store = Store(config.state.url)
    with keys_for(config, names) as keys:
        assert {store.find_key(hash_key(secret)).tenant for secret in keys.values()} == set(names)  # type: ignore[union-attr]
    assert all(store.find_key(hash_key(secret)) is None for secret in keys.values())
    assert weights(config, names) == {"team-b": 2.0, "team-a": 1.0, "team-c": 1.0}


def test_every_class_needs_a_deployment(tmp_path: Path) -> None:
    path = write_config(tmp_path)
    targets = choose(load_config(path))
    assert (targets.online, targets.burst, targets.offline_model) == (("fast",), ("burst",), "m")
    content = yaml.safe_load(path.read_text())
    del content["deployments"]["batch"]
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(UsageError, match="offline"):
        choose(load_config(path))


def test_tenants_take_turns_and_no_prompt_comes_twice() -> None:
    sent = prompts(["a", "b", "c"])
    assert [tenant for tenant, _ in sent[:4]] == ["a", "b", "c", "a"]
    assert len({prompt for _, prompt in sent}) == len(sent) == 36


def test_a_sample_counts_only_the_bursts_replicas() -> None:
    replicas = [
        {"deployment": "burst", "state": "ready"},
        {"deployment": "burst", "state": "starting"},
        {"deployment": "fast", "state": "ready"},
    ]
    book = {"waiting_by_tenant": {"a": 2, "b": 3}, "running_by_tenant": {"a": 1}}
    scaling = {"burst": {"replicas": 2, "reason": "5 waiting"}, "fast": {"replicas": 1, "reason": ""}}
    status = {"models": [{"model": "m", "replicas": replicas, "classes": {"semi_online": book}, "scaling": scaling}]}
    sample = read_sample(status, "m", ("burst",), 1.0)
    assert (sample.wanted, sample.ready, sample.starting, sample.waiting, sample.running) == (2, 1, 1, 5, 1)
    assert read_sample({"models": []}, "m", ("burst",), 0.0).waiting == 0


def test_scaling_up_is_told_from_its_first_sample() -> None:
    samples = [Sample(t, wanted, 0, 0, 0, 0) for t, wanted in ((0.1, 1), (1.1, 1), (2.1, 2), (3.1, 2))]
    assert scale_up_s(samples) == 2.1 and scale_up_s(samples[:2]) is None and scale_up_s([]) is None


def test_the_plot_fits_and_keeps_the_peaks() -> None:
    assert sparkline([]) == "" and sparkline([0, 0]) == "  " and sparkline([0, 1, 2]) == " ▄█"
    assert len(sparkline([1] * 1000)) <= 60 and "█" in sparkline([0] * 500 + [7] + [0] * 499)
    samples = [Sample(float(t), 2, 0, ready, 5 - ready, ready) for t, ready in enumerate((0, 0, 1, 2, 2))]
    assert any("0 -> 1 -> 2" in line for line in replica_plot(samples))
    assert replica_plot([])
