"""What each lever means to each engine, and where it is refused."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.presets import LEVERS, Engine, Generation, Levers, PresetConfig, Target, generation_of, lever_arguments
from cluster.presets import obstacles as all_obstacles

VLLM, SGLANG = Engine("vllm", 16), Engine("sglang", 24)
EAGLE = {"kind": "eagle3", "model": "org/draft", "tokens": 3}


def meant(engine: Engine, **levers: Any) -> dict[str, Any]:
    found = lever_arguments(PresetConfig.model_validate(levers), engine)
    return {option: argument.value for option, argument in found.items()}


@pytest.mark.parametrize(
    ("levers", "vllm", "sglang"),
    [
        ({"tensor_parallel": 2}, {"tensor-parallel-size": 2}, {"tensor-parallel-size": 2}),
        ({"quantisation": "fp8"}, {"quantization": "fp8"}, {"quantization": "fp8"}),
        ({"quantisation": "fp4"}, {"quantization": "nvfp4_per_token"}, {"quantization": "nvfp4_online"}),
        ({"quantisation": "fp4-stored"}, {}, {}),
        ({"quantisation": "none"}, {}, {}),
        ({"kv_cache": "fp8"}, {"kv-cache-dtype": "fp8"}, {"kv-cache-dtype": "fp8_e4m3"}),
        ({"kv_cache": "auto"}, {}, {}),
        (
            {"chunked_prefill": 2048},
            {"enable-chunked-prefill": True, "max-num-batched-tokens": 2048},
            {"chunked-prefill-size": 2048},
        ),
        ({"chunked_prefill": 0}, {"enable-chunked-prefill": False}, {"chunked-prefill-size": -1}),
        ({"mixed_batching": True}, {}, {"enable-mixed-chunk": True}),
        ({"cuda_graphs": False}, {"enforce-eager": True}, {"disable-cuda-graph": True}),
        ({"cuda_graphs": True}, {}, {}),
        ({"prefix_caching": False}, {"enable-prefix-caching": False}, {"disable-radix-cache": True}),
        ({"prefix_caching": True}, {"enable-prefix-caching": True}, {}),
        ({"attention": "flashinfer"}, {"attention-backend": "FLASHINFER"}, {"attention-backend": "flashinfer"}),
        ({"attention": "torch"}, {}, {"attention-backend": "torch_native", "sampling-backend": "pytorch"}),
        ({"speculation": "none"}, {}, {}),
    ],
    ids=str,
)
def test_a_lever_in_the_words_of_both_engines(levers, vllm, sglang):
    assert meant(VLLM, **levers) == vllm
    assert meant(SGLANG, **levers) == sglang


def test_speculation_is_one_object_for_vllm():
    ngram = {"method": "ngram", "num_speculative_tokens": 6, "prompt_lookup_min": 3, "prompt_lookup_max": 5}
    assert meant(VLLM, speculation={"kind": "ngram", "tokens": 6}) == {"speculative-config": ngram}
    eagle = {"method": "eagle3", "num_speculative_tokens": 3, "model": "org/draft"}
    assert meant(VLLM, speculation=EAGLE) == {"speculative-config": eagle}
    assert meant(VLLM, speculation="mtp") == {"speculative-config": {"method": "mtp", "num_speculative_tokens": 1}}


def test_speculation_is_a_chain_for_sglang_which_counts_the_certain_token_too():
    assert meant(SGLANG, speculation={"kind": "ngram", "tokens": 4}) == {
        "speculative-algorithm": "NGRAM",
        "speculative-ngram-max-bfs-breadth": 1,
        "speculative-num-draft-tokens": 5,
        "max-running-requests": 24,
    }
    chain = {"speculative-eagle-topk": 1, "max-running-requests": 24}
    assert meant(SGLANG, speculation=EAGLE) == {
        "speculative-algorithm": "EAGLE3",
        "speculative-draft-model-path": "org/draft",
        "speculative-num-steps": 3,
        "speculative-num-draft-tokens": 4,
        **chain,
    }
    assert meant(SGLANG, speculation={"kind": "mtp", "tokens": 2}) == {
        "speculative-algorithm": "NEXTN",
        "speculative-num-steps": 2,
        "speculative-num-draft-tokens": 3,
        **chain,
    }


def problems(kind: str, gpus: float, accelerator: str | None, **levers: Any) -> list[str]:
    target = Target(Engine(kind, 16), gpus, accelerator)  # type: ignore[arg-type]
    return [message for _, message in all_obstacles(PresetConfig.model_validate(levers), {}, target)]


@pytest.mark.parametrize(
    ("accelerator", "levers", "cure"),
    [
        ("A100", {"quantisation": "fp8"}, "set quantisation: none"),
        ("H100", {"quantisation": "fp4"}, "set quantisation: fp8"),
        ("RTX-PRO-6000", {"quantisation": "fp4"}, "set quantisation: fp4-stored"),
        ("A100", {"quantisation": "fp4-stored"}, "set quantisation: none"),
        ("A100-80G", {"kv_cache": "fp8"}, "set kv_cache: auto"),
        ("T4", {"attention": "flash_attention"}, "set attention: auto"),
        ("H100", {"tensor_parallel": 2}, "set resources.gpus: 2"),
        ("H100", {"speculation": {**EAGLE, "model": "./draft"}}, "absolute"),
        ("H100", {"mixed_batching": True, "chunked_prefill": 0}, "give chunked_prefill a number"),
    ],
)
def test_what_does_not_fit_the_gpu_is_refused_with_the_cure(accelerator, levers, cure):
    for kind in ("vllm", "sglang"):
        (problem,) = problems(kind, 1, accelerator, **levers)
        assert cure in problem


@pytest.mark.parametrize(
    ("accelerator", "levers"),
    [
        ("L4", {"quantisation": "fp8", "kv_cache": "fp8"}),
        ("H100", {"quantisation": "fp8", "tensor_parallel": 1}),
        ("B200", {"quantisation": "fp4"}),
        ("RTX-PRO-6000", {"quantisation": "fp4-stored"}),
        ("AMD-Instinct-MI300X-OAM", {"quantisation": "fp8"}),  # not in the table: nothing is refused
        (None, {"quantisation": "fp4"}),
    ],
)
def test_what_fits_or_is_unknown_is_taken(accelerator, levers):
    assert problems("vllm", 1, accelerator, **levers) == problems("sglang", 1, accelerator, **levers) == []


def test_a_cpu_takes_ngram_on_vllm_and_nothing_that_needs_a_gpu():
    assert problems("vllm", 0, None, speculation="ngram", cuda_graphs=False, attention="torch") == []
    (on_sglang,) = problems("sglang", 0, None, speculation="ngram")
    assert "use kind: vllm" in on_sglang
    for levers in ({"speculation": EAGLE}, {"speculation": "mtp"}, {"cuda_graphs": True}, {"quantisation": "fp8"}):
        (problem,) = problems("vllm", 0, None, **levers)
        assert "CPU" in problem or "needs a GPU" in problem
    (problem,) = problems("sglang", 0, None, attention="triton")
    assert "set attention: auto" in problem


def test_levers_that_exclude_each_other():
    (problem,) = problems("sglang", 1, "H100", mixed_batching=True, speculation="ngram")
    assert "mixed_batching: false" in problem
    assert problems("vllm", 1, "H100", mixed_batching=True, speculation="ngram") == []
    assert problems("sglang", 1, "H100", mixed_batching=True, speculation=EAGLE) == []
    (problem,) = problems("vllm", 1, "H100", mixed_batching=False)
    assert "vLLM always mixes" in problem
    (problem,) = problems("vllm", 1, "H100", attention="torch")
    assert "for CPUs" in problem
    (problem,) = problems("sglang", 1, "B200", attention="flash_attention")
    assert "fa4" in problem
    assert problems("vllm", 1, "B200", attention="flash_attention") == []


def test_every_lever_says_why_for_each_of_its_values():
    values: dict[str, list[Any]] = {
        "tensor_parallel": [1, 4],
        "quantisation": ["none", "fp8", "fp8-stored", "fp4", "fp4-stored"],
        "kv_cache": ["auto", "fp8"],
        "speculation": ["none", "ngram", EAGLE, "mtp"],
        "chunked_prefill": [0, 4096],
        "mixed_batching": [True, False],
        "cuda_graphs": [True, False],
        "prefix_caching": [True, False],
        "attention": ["auto", "flash_attention", "flashinfer", "triton", "torch"],
    }
    assert list(values) == [lever.key for lever in LEVERS] == list(Levers.model_fields)
    for lever in LEVERS:
        said = [lever.why(Levers.model_validate({lever.key: value})) for value in values[lever.key]]
        assert all(len(text) > 20 and not text.endswith(".") for text in said)


def test_no_two_levers_mean_the_same_option():
    everything = {
        "tensor_parallel": 2,
        "quantisation": "fp8",
        "kv_cache": "fp8",
        "speculation": EAGLE,
        "chunked_prefill": 2048,
        "mixed_batching": True,
        "cuda_graphs": False,
        "prefix_caching": False,
        "attention": "torch",
    }
    levers = Levers.model_validate(everything)
    for engine in (VLLM, SGLANG):
        options = [option for lever in LEVERS for option in lever.arguments(levers, engine)]
        assert len(options) == len(set(options))


def test_generations_by_rays_names():
    from ray.util.accelerators import accelerators

    known = {name: getattr(accelerators, f"NVIDIA_{name}", None) for name in ("L4", "A100", "H100", "B200")}
    assert all(generation_of(value) is not None for value in known.values())
    assert generation_of("a100-40g") == Generation.AMPERE
    assert generation_of("TPU-V6E") is None and generation_of(None) is None
