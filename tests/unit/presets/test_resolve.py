"""What wins over what, and that replicas, jobs and the named presets all see the same arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from batch_jobs.plan import make_plan
from cluster.config import DeploymentConfig
from cluster.engines import build_spec
from cluster.presets import PRESETS, Engine, PresetConfig, Target, cautions, chosen, merged, obstacles, silent
from cluster.presets.shape import PresetName

VLLM = Engine("vllm", 16)
ACCELERATORS = {"cpu": None, "a100": "A100", "h100": "H100", "b200": "B200", "l4": "L4"}


def preset(**levers: Any) -> PresetConfig:
    return PresetConfig.model_validate(levers)


def target_of(name: str, kind: Any) -> Target:
    accelerator = ACCELERATORS[name.rpartition("-")[2]]
    return Target(Engine(kind, 16), 0 if accelerator is None else 1, accelerator)


def test_the_names_are_those_that_the_schema_offers():
    assert tuple(PRESETS) == get_args(PresetName)


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_fits_the_accelerator_it_is_named_after_on_both_engines(name, kind):
    assert list(obstacles(preset(name=name), {}, target_of(name, kind))) == []
    assert PRESETS[name].made_for == target_of(name, kind).generation


def test_levers_in_the_deployment_win_over_the_named_preset_and_args_over_both():
    named = preset(name="low-latency-h100", chunked_prefill=4096, kv_cache="auto")
    assert chosen(named).chunked_prefill == 4096 and chosen(named).quantisation == "fp8"
    args = merged(named, {"max_num_batched_tokens": 512, "seed": 1, "quantization": None}, VLLM)
    assert args == {
        "quantization": None,  # left out
        "enable-chunked-prefill": True,
        "max-num-batched-tokens": 512,
        "enable-prefix-caching": True,
        "seed": 1,
    }


def test_without_a_preset_the_arguments_stay_as_they_are_written():
    assert merged(None, {"max_num_seqs": 4}, VLLM) == {"max_num_seqs": 4}


def test_one_key_of_a_levers_object_can_be_changed():
    args = merged(preset(speculation="ngram"), {"speculative-config.prompt_lookup_max": 9}, VLLM)
    assert args["speculative-config"]["prompt_lookup_max"] == 9
    assert args["speculative-config"]["method"] == "ngram"
    assert list(args) == ["speculative-config"]


def test_a_lever_whose_arguments_are_replaced_is_not_checked():
    target = Target(VLLM, 1, "A100")
    assert [key for key, _ in obstacles(preset(quantisation="fp8"), {}, target)] == ["quantisation"]
    assert list(obstacles(preset(quantisation="fp8"), {"quantization": None}, target)) == []


def test_what_the_engine_need_not_be_told_is_still_listed():
    listed = list(silent(preset(name="low-latency-h100", speculation="none"), VLLM))
    assert [(key, source) for key, _, source, _ in listed] == [
        ("speculation", "engine.preset"),
        ("mixed_batching", "preset low-latency-h100"),
        ("cuda_graphs", "preset low-latency-h100"),
    ]


def test_cautions():
    crowded = Target(Engine("vllm", 256), 2, "H100")
    said = "\n".join(cautions(preset(quantisation="fp8", tensor_parallel=2, speculation="mtp"), {}, crowded))
    assert "tribes quality" in said and "tokens per dollar" in said and "256 requests" in said
    assert "MTP layers" in said
    (other,) = cautions(preset(name="low-latency-cpu", cuda_graphs=True), {}, Target(VLLM, 1, "H100"))
    assert other == "low-latency-cpu was made for CPUs, not H100"
    (unknown,) = cautions(preset(prefix_caching=True), {}, Target(VLLM, 1, None))
    assert "names no accelerator_type" in unknown
    assert cautions(preset(quantisation="fp8"), {"quantization": "awq"}, Target(VLLM, 1, "H100")) == []
    (idle,) = cautions(preset(tensor_parallel=1), {}, Target(VLLM, 4, "H100"))
    assert "GPUs idle" in idle


def deployment(**engine: Any) -> DeploymentConfig:
    return DeploymentConfig.model_validate({"model": "m", "serves": ["online"], "engine": engine})


def test_a_replica_gets_the_presets_arguments(tmp_path):
    item = deployment(kind="vllm", preset={"speculation": "ngram"}, args={"seed": 3})
    argv = build_spec(item, "m", tmp_path, "127.0.0.1", 1, "key").argv
    at = argv.index("--speculative-config")
    assert yaml.safe_load(argv[at + 1])["method"] == "ngram"
    assert argv[argv.index("--seed") + 1] == "3"


def test_a_dump_of_a_deployment_means_the_same():
    item = deployment(kind="sglang", preset={"name": "throughput-h100", "speculation": "none"})
    again = DeploymentConfig.model_validate(item.model_dump(mode="json"))
    assert again.engine_args == item.engine_args and again == item


def test_an_offline_job_gets_them_too(tmp_path: Path):
    config = {
        "models": {"m": {"source": {"kind": "local", "path": str(tmp_path)}}},
        "deployments": {
            "batch": {
                "model": "m",
                "serves": ["offline"],
                "engine": {"kind": "vllm", "preset": "throughput-a100", "args": {"max_num_seqs": 7}},
                "resources": {"gpus": 1},
            }
        },
        "pools": {"default": {"accelerator_type": "A100"}},
    }
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(config))
    (pool,) = make_plan(str(path), None).pools
    assert pool.engine_args["max_num_batched_tokens"] == 8192
    assert pool.engine_args["max_num_seqs"] == pool.rows_at_once == 7
