"""Reading an engine's load from the text of its Prometheus endpoint. The samples are lines of the real engines."""

from __future__ import annotations

import pytest

from cluster.engines import sglang, vllm
from cluster.engines.metrics import EngineLoad, LoadUnavailableError, parse_load

VLLM = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_waiting{engine="0",model_name="m"} 2.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="m",reason="capacity"} 9.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
# TYPE vllm:prompt_tokens counter
vllm:prompt_tokens_total{engine="0",model_name="m"} 143.0
vllm:prompt_tokens_created{engine="0",model_name="m"} 1.79e+09
vllm:prompt_tokens_cached_total{engine="0",model_name="m"} 90.0
vllm:generation_tokens_total{engine="0",model_name="m"} 25.0
vllm:request_prompt_tokens_bucket{engine="0",le="1.0",model_name="m"} 7.0
"""
SGLANG = """\
sglang:num_running_reqs{engine_type="unified",model_name="m",tp_rank="0"} 1.0
sglang:num_queue_reqs{engine_type="unified",model_name="m",tp_rank="0"} 4.0
sglang:num_grammar_queue_reqs{engine_type="unified",model_name="m",tp_rank="0"} 1.0
sglang:token_usage{engine_type="unified",model_name="m",tp_rank="0"} 0.5
sglang:full_token_usage{engine_type="unified",model_name="m",tp_rank="0"} 0.9
sglang:fwd_occupancy{engine_type="unified",model_name="m",tp_rank="0"} NaN
sglang:prompt_tokens_total{engine_type="unified",is_streaming="false",model_name="m"} 106.0
sglang:prompt_tokens_total{engine_type="unified",is_streaming="true",model_name="m"} 37.0
sglang:generation_tokens_total{engine_type="unified",is_streaming="false",model_name="m"} 21.0
sglang:generation_tokens_total{engine_type="unified",is_streaming="true",model_name="m"} 4.0
"""


def test_vllm():
    assert parse_load(VLLM, vllm.METRICS) == EngineLoad(3, 2, 0.25, 143, 25)


def test_sglang_sums_queues_and_kinds_of_request():
    assert parse_load(SGLANG, sglang.METRICS) == EngineLoad(1, 5, 0.5, 143, 25)


def test_ranks_add_up_and_the_fullest_cache_counts():
    second = VLLM.replace('engine="0"', 'engine="1"').replace("0.25", "0.75")
    assert parse_load(VLLM + second, vllm.METRICS) == EngineLoad(6, 4, 0.75, 286, 50)


def test_what_an_engine_does_not_export_yet_reads_as_zero():
    assert parse_load("sglang:num_running_reqs 0.0\n", sglang.METRICS) == EngineLoad(0, 0, 0.0, 0, 0)


def test_values_that_are_no_numbers_are_skipped():
    text = "vllm:num_requests_running 1\nvllm:kv_cache_usage_perc NaN\nvllm:num_requests_waiting +Inf\n"
    assert parse_load(text, vllm.METRICS) == EngineLoad(1, 0, 0.0, 0, 0)


def test_a_page_without_the_engines_metrics_is_an_error():
    with pytest.raises(LoadUnavailableError, match="num_requests_running"):
        parse_load("python_info 1\n", vllm.METRICS)
