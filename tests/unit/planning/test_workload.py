"""The workload file: what is wrong with one is said with its place; traces become a few sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.config import ConfigError
from cluster.planning import load_request, plan
from cluster.planning.trace import group, read_trace
from cluster.planning.workload import buckets_of
from tests.unit.planning.models import WORKLOAD, with_classes, write_workload

LENGTHS = [{"prompt_tokens": 10, "output_tokens": 10}]


def problem(folder: Path, workload: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        load_request(write_workload(folder, workload))
    return str(caught.value)


@pytest.mark.parametrize(
    ("workload", "said"),
    [
        (with_classes(online={"requests_per_s": 1, "lengths": LENGTHS}), "classes.online.slo: online needs a target"),
        (with_classes(offline={"requests_per_s": 1}), "give one of the two: lengths, or trace"),
        (with_classes(offline={"lengths": LENGTHS}), "give requests_per_s"),
        (with_classes(offline={"lengths": LENGTHS, "requests_per_s": 2, "peak_requests_per_s": 1}), "is below"),
        (with_classes(offline={"lengths": LENGTHS, "requests_per_s": 0}), "classes.offline.requests_per_s"),
        (with_classes(ofline={}), "classes"),
        ({**WORKLOAD, "prices": {}}, "prices: unknown key"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path: Path, workload, said):
    assert said in problem(tmp_path, workload)


def test_what_needs_more_than_the_file(tmp_path: Path):
    with pytest.raises(ConfigError, match="name the accelerators to consider"):
        plan(load_request(write_workload(tmp_path, {**WORKLOAD, "usd_per_gpu_hour": {}})))
    with pytest.raises(ConfigError, match="did you mean H100"):
        plan(load_request(write_workload(tmp_path, {**WORKLOAD, "usd_per_gpu_hour": {"H1000": 1}})))
    short = {**WORKLOAD, "model": {**WORKLOAD["model"], "max_model_len": 1000}}
    with pytest.raises(ConfigError, match=r"requests of 4300 tokens are longer than the model's 1000"):
        plan(load_request(write_workload(tmp_path, short)))
    with pytest.raises(ConfigError, match="cannot be read"):
        load_request(tmp_path / "none.yaml")


def test_a_trace_becomes_sizes_and_a_rate(tmp_path: Path):
    rows = [f"{n * 0.5},t0,{100 + n % 10},{10 if n % 2 else 500}" for n in range(100)]
    trace = tmp_path / "trace.csv"
    trace.write_text("\n".join(["arrived_at_s,tenant,prompt_tokens,output_tokens", *rows]) + "\n")
    sizes, rate = read_trace(trace)
    assert rate == pytest.approx(100 / 49.5)
    assert len(sizes) == 9 and sum(share for share, _, _ in sizes) == pytest.approx(1)
    assert sum(share * output for share, _, output in sizes) == pytest.approx(255)
    request = load_request(write_workload(tmp_path, with_classes(offline={"trace": "trace.csv", "cached_share": 0.5})))
    buckets, rate = buckets_of(request.classes["offline"])
    assert rate == pytest.approx(100 / 49.5)
    assert all(b.uncached_tokens == pytest.approx(b.prompt_tokens / 2) for b in buckets)


def test_long_requests_keep_a_group_of_their_own():
    lengths = [(100.0, 10.0)] * 95 + [(20_000.0, 10.0)] * 5
    assert max(prompt for _, prompt, _ in group(lengths)) > 9000
    assert sum(share * prompt for share, prompt, _ in group(lengths)) == pytest.approx(0.95 * 100 + 0.05 * 20_000)
