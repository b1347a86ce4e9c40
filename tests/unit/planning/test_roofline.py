"""The built-in performance model and the account of memory against figures worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.hardware import ACCELERATORS, UnknownAcceleratorError, accelerator
from cluster.planning import Shape, facts_from_config
from cluster.planning.memory import Room, room, weight_bytes
from cluster.planning.roofline import roofline
from cluster.presets import generation_of
from tests.unit.planning.models import LLAMA_8B, LLAMA_70B, MIXTRAL

H100 = ACCELERATORS["H100"]
SMALL, LARGE = facts_from_config(LLAMA_8B), facts_from_config(LLAMA_70B)


def step(facts: Any, shape: Shape, sequences: int = 1) -> Any:
    row = ACCELERATORS[shape.accelerator]
    return roofline(facts, shape, row, sequences=sequences, prompt_tokens=1000, context_tokens=1000)


def test_an_8b_model_on_one_h100():
    found = step(SMALL, Shape("H100", "vllm"))
    # 15.010 GB of weights (without the embedding) at 3.35 TB/s take 4.481 ms; x 1.4 = 6.273; 32 x 32 us; 126 us.
    assert found.base_s == pytest.approx(6.273e-3 + 1.024e-3 + 0.126e-3, rel=1e-3)
    # 2 x 6.980e9 + 4 x 32 x 4096 x 500 operations at half of 989.5 TFLOPS.
    assert found.prefill_s_a_token == pytest.approx(14.2213e9 / (0.5 * 989.5e12), rel=1e-3)
    assert found.decode_s_a_request == pytest.approx(4e-6)  # one token's arithmetic hides behind reading the weights
    assert found.decode_s_a_kv_token == pytest.approx(1.9 * 131_072 / 3.35e12, rel=1e-6)


def test_large_batches_pay_for_arithmetic():
    # A token costs 2 x 7.505e9 / 494.75e12 = 30.34 us; 1000 of them take 24.07 ms more than reading the weights.
    found = step(SMALL, Shape("H100", "vllm"), sequences=1000)
    assert found.decode_s_a_request == pytest.approx(4e-6 + (1000 * 30.338e-6 - 6.273e-3) / 1000, rel=1e-3)


def test_tensor_parallelism_halves_the_reading_and_adds_messages():
    one, two = step(SMALL, Shape("H100", "vllm")), step(SMALL, Shape("H100", "vllm", tensor_parallel=2))
    assert two.base_s == pytest.approx((6.273e-3) / 2 + 1.024e-3 + 0.126e-3 + 64 * 10e-6, rel=1e-3)
    # 64 all-reduces of 4096 x 2 bytes over 450 GB/s.
    message_s = 64 * 4096 * 2 / 450e9
    assert two.prefill_s_a_token == pytest.approx(one.prefill_s_a_token / 2 + message_s, rel=1e-3)
    assert two.decode_s_a_kv_token == pytest.approx(one.decode_s_a_kv_token / 2)


def test_beyond_the_kv_heads_the_cache_is_held_twice():
    eight = step(SMALL, Shape("H100", "vllm", tensor_parallel=8))
    assert eight.decode_s_a_kv_token == pytest.approx(1.9 * 131_072 / 8 / 3.35e12)
    few = facts_from_config({**LLAMA_8B, "num_key_value_heads": 2})
    eight = step(few, Shape("H100", "vllm", tensor_parallel=8))
    assert eight.decode_s_a_kv_token == pytest.approx(1.9 * (131_072 / 4) / 2 / 3.35e12)


def test_stages_share_work_and_not_the_latency_of_a_step():
    one, two = step(SMALL, Shape("H100", "vllm")), step(SMALL, Shape("H100", "vllm", pipeline_parallel=2))
    assert two.base_s == pytest.approx(one.base_s + 10e-6)
    assert two.prefill_s_a_token == pytest.approx(one.prefill_s_a_token / 2 / 0.85)
    assert two.decode_s_a_kv_token == pytest.approx(one.decode_s_a_kv_token / 2 / 0.85)


def test_fp8_halves_layers_and_cache():
    found = step(SMALL, Shape("H100", "vllm", "fp8", fp8_cache=True))
    read = (6_979_588_096 * 1 + 525_336_576 * 2) / 3.35e12
    assert found.base_s == pytest.approx(1.4 * read + 1.15e-3, rel=1e-3)
    assert found.decode_s_a_kv_token == pytest.approx(1.9 * 65_536 / 3.35e12)


def test_few_sequences_read_few_experts():
    facts, shape = facts_from_config(MIXTRAL), Shape("H200", "vllm")
    few, many = step(facts, shape, 1).base_s, step(facts, shape, 64).base_s
    experts = 32 * 8 * 3 * 4096 * 14336 * 2 / 4.8e12 * 1.4
    assert many - few == pytest.approx(0.75 * experts, rel=1e-3)  # 2 of 8 against all


def test_room_for_the_cache():
    found = room(SMALL, Shape("H100", "vllm"), H100, chunk_tokens=2048, context_tokens=1000)
    assert isinstance(found, Room)
    # 72 GB - 16.061 of weights - 1.611 - 0.201 - 0.131 of working space, at 131,072 bytes a token.
    assert found.bytes_per_gpu == pytest.approx(53.996e9, rel=1e-4)
    assert found.tokens == pytest.approx(411_958, abs=2)


def test_why_there_is_no_room():
    found = room(LARGE, Shape("H100", "vllm"), H100, 2048, 1000)
    assert isinstance(found, str) and "141.1 GB of weights" in found and "72.0 GB may be used" in found
    fp8 = Shape("H100", "vllm", "fp8", fp8_cache=True)
    assert weight_bytes(LARGE, fp8) == pytest.approx(72.66e9, rel=1e-3)
    assert isinstance(room(LARGE, fp8, H100, 2048, 1000), str)
    assert isinstance(room(LARGE, Shape("H100", "vllm", "fp8", 2, fp8_cache=True), H100, 2048, 1000), Room)
    tight = room(SMALL, Shape("L4", "vllm"), ACCELERATORS["L4"], 2048, 100_000)
    assert isinstance(tight, str) and "one request of 100000 tokens needs 13.11 GB" in tight


def test_every_row_has_a_source_and_a_known_generation():
    for name, row in ACCELERATORS.items():
        assert row.name == name and row.source.startswith("https://")
        assert generation_of(name) is not None
        assert (row.tflops_fp8 or row.tflops_16bit) >= row.tflops_16bit


def test_unknown_accelerators_are_named_with_the_cure():
    assert accelerator("H100") is H100
    with pytest.raises(UnknownAcceleratorError, match="write A100-40G or A100-80G"):
        accelerator("A100")
    with pytest.raises(UnknownAcceleratorError, match="did you mean H100"):
        accelerator("H10")
