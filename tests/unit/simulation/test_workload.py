"""Formats of traces, and drawn loads."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import pytest

from cluster.simulation import Request
from cluster.simulation.simulate import repeated
from cluster.simulation.workload import Lengths, TenantLoad, Trace, TraceError, draw, load_trace
from cluster.vocabulary import RequestClass


def sizes(trace: Trace) -> list[tuple[float, int, int]]:
    return [(round(r.arrived_s, 6), r.prompt_tokens, r.output_tokens) for r in trace.requests]


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def lines(*rows: dict[str, Any]) -> str:
    return "\n".join(json.dumps(row) for row in rows) + "\n"


def test_azure(tmp_path: Path) -> None:
    rows = ["TIMESTAMP,ContextTokens,GeneratedTokens"]
    rows += ["2023-11-16 18:15:46.6805900,374,44", "2023-11-16 18:15:50.9951690,396,109"]
    text = "\n".join(rows) + "\n"
    assert sizes(load_trace(written(tmp_path, "a.csv", text))) == [(0.0, 374, 44), (4.314579, 396, 109)]


def test_servegen_and_arena_have_tenants(tmp_path: Path) -> None:
    text = "arrived_at_s,tenant,prompt_tokens,output_tokens\n2.5,t1,7,8\n0.5,t2,5,6\n"
    trace = load_trace(written(tmp_path, "a.csv", text), rate=2.0, request_class=RequestClass.SEMI_ONLINE)
    assert sizes(trace) == [(0.0, 5, 6), (1.0, 7, 8)]
    assert [(r.tenant, r.request_class, r.number) for r in trace.requests] == [
        ("t2", RequestClass.SEMI_ONLINE, 0),
        ("t1", RequestClass.SEMI_ONLINE, 1),
    ]


def test_mooncake_has_whole_blocks_and_sessions(tmp_path: Path) -> None:
    row = {"timestamp": 1500, "input_length": 1100, "output_length": 9, "hash_ids": [0, 7, 8]}
    trace = load_trace(written(tmp_path, "m.jsonl", lines({**row, "timestamp": 500}, row)))
    assert sizes(trace) == [(0.0, 1100, 9), (1.0, 1100, 9)]
    assert trace.requests[0].blocks == (0, 7) and trace.requests[0].session == "s7" and trace.block_tokens == 512


def test_vllm_runs_and_bench_and_our_own(tmp_path: Path) -> None:
    run = lines({"queued_ts": 9.5, "arrival_time": 1e9, "input_toks": 3, "output_toks": 4})
    assert sizes(load_trace(written(tmp_path, "r.jsonl", run))) == [(0.0, 3, 4)]
    bench = {"start_times": [5.0, 6.0, 7.0], "input_lens": [1, 2, 3], "output_lens": [4, 0, 6]}
    assert sizes(load_trace(written(tmp_path, "b.json", json.dumps(bench)))) == [(0.0, 1, 4), (2.0, 3, 6)]
    own = lines({"arrived_s": 3, "prompt_tokens": 1, "output_tokens": 2, "tenant": "x", "request_class": "offline"})
    (request,) = load_trace(written(tmp_path, "o.jsonl", own)).requests
    assert (request.tenant, request.request_class) == ("x", RequestClass.OFFLINE)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.csv", "x,y\n1,2\n", "no format known"),
        ("a.jsonl", '{"arrived_s": 1, "prompt_tokens": 5}\n', "request 1: no key 'output_tokens'"),
        ("a.jsonl", lines({"arrived_s": 1, "prompt_tokens": 5, "output_tokens": 0}), "need a token at least"),
        ("a.jsonl", "nonsense\n", "request 1"),
        ("a.jsonl", "", "has no requests"),
        ("a.json", "{}", "save-detailed"),
    ],
)
def test_a_bad_trace_says_where_and_why(tmp_path: Path, name: str, text: str, says: str) -> None:
    with pytest.raises(TraceError, match=says):
        load_trace(written(tmp_path, name, text))


def test_a_missing_trace(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="check the path"):
        load_trace(tmp_path / "none.csv")


def test_drawn_loads_have_their_rate_burstiness_and_lengths() -> None:
    load = TenantLoad("a", 10.0, Lengths(200, 0.8), Lengths(64, 0), cv=2.0)
    trace = draw([load], 3000.0, 1)
    times = [r.arrived_s for r in trace.requests]
    gaps = [b - a for a, b in pairwise(times)]
    assert len(times) / 3000 == pytest.approx(10, rel=0.05)
    assert pstdev(gaps) / fmean(gaps) == pytest.approx(2.0, rel=0.08)
    assert fmean(r.prompt_tokens for r in trace.requests) == pytest.approx(200, rel=0.05)
    assert {r.output_tokens for r in trace.requests} == {64}


def test_a_seed_fixes_a_load_and_another_tenant_does_not_change_it() -> None:
    one = TenantLoad("a", 2.0, Lengths(50), Lengths(50))
    other = TenantLoad("b", 3.0, Lengths(50), Lengths(50))
    alone, both = draw([one], 100.0, 4), draw([one, other], 100.0, 4)
    assert sizes(alone) == [s for s, r in zip(sizes(both), both.requests, strict=True) if r.tenant == "a"]
    assert sizes(alone) != sizes(draw([one], 100.0, 5))


def test_a_trace_is_cut_or_repeated_with_other_prompts() -> None:
    requests = [Request(n, float(n), 600, 5, blocks=(0, n), session=f"s{n}") for n in range(3)]
    trace = Trace(requests, 512)
    assert [r.arrived_s for r in repeated(trace, 1.5).requests] == [0.0, 1.0]
    longer = repeated(trace, 5.5).requests
    assert [r.arrived_s for r in longer] == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert [r.number for r in longer] == list(range(6))
    assert longer[3].blocks == (3, 3) and longer[3].session == "s0.1"
