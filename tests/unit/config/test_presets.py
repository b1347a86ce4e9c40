"""Presets in a configuration file: both ways to write them, and what is said when they do not fit."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest

from cluster.config import config_schema, load_config
from tests.unit.config.samples import changed, problems_of, write

PRESET = "deployments/tiny-online/engine/preset"
WHERE = "deployments.tiny-online.engine.preset"


def on(preset: Any, gpus: int = 1, accelerator: str | None = "H100", kind: str = "sglang") -> dict[str, Any]:
    data = changed(PRESET, preset)
    data["deployments"]["tiny-online"]["engine"]["kind"] = kind
    data["deployments"]["tiny-online"]["resources"] = {"gpus": gpus}
    if accelerator:
        data["pools"] = {"default": {"accelerator_type": accelerator}}
    return data


@pytest.mark.parametrize(
    "preset",
    [
        "low-latency-h100",
        {"name": "low-latency-h100", "mixed_batching": False, "speculation": {"kind": "ngram", "tokens": 4}},
        {"tensor_parallel": 1, "speculation": "mtp"},
        {"speculation": {"kind": "eagle3", "model": "org/draft"}},
        None,
    ],
    ids=str,
)
def test_ways_to_write_it_that_the_schema_takes_too(tmp_path, preset):
    data = on(preset)
    load_config(write(tmp_path, data))
    jsonschema.validate(data, config_schema(), jsonschema.Draft202012Validator)


def test_a_name_alone_is_the_named_preset(tmp_path):
    short, long = (
        load_config(write(tmp_path, on(preset))) for preset in ("throughput-h100", {"name": "throughput-h100"})
    )
    assert short.deployments == long.deployments


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("low-latncy-h100", f"{WHERE}.name: 'low-latncy-h100' is not one of low-latency-cpu, "),
        ({"quantization": "fp8"}, f"{WHERE}.quantization: unknown key; did you mean quantisation?"),
        ({"speculation": {"kind": "eagle"}}, f"{WHERE}.speculation.kind: unknown kind 'eagle'; did you mean eagle3?"),
        ({"speculation": "eagle3"}, f"{WHERE}.speculation.model: required key is missing"),
        ({"speculation": {"kind": "ngram", "tokens": 0}}, f"{WHERE}.speculation.tokens: must be greater than or equal"),
        ({"speculation": {"tokens": 4}}, f"{WHERE}.speculation.kind: required key is missing"),
        ({"chunked_prefill": 100}, f"{WHERE}.chunked_prefill: must be a multiple of 64; got 100"),
        ({"tensor_parallel": True}, f"{WHERE}.tensor_parallel: must be a valid integer; got True"),
        (["low-latency-h100"], f"{WHERE}: must be a section of keys and values, not a list"),
        # levers that do not fit the rest
        ({"tensor_parallel": 2}, f"{WHERE}.tensor_parallel: tensor_parallel: 2 needs as many GPUs, and resources.gpus"),
        ({"quantisation": "fp4"}, f"{WHERE}.quantisation: quantisation: fp4 needs Blackwell, not H100; set "),
        (
            "low-latency-b200",
            f"{WHERE}: low-latency-b200 does not fit here: quantisation: fp4-stored needs Blackwell, not H100; "
            "set quantisation: fp8, beside name: low-latency-b200",
        ),
        (
            {"name": "low-latency-h100", "speculation": "ngram"},
            f"{WHERE}: low-latency-h100 does not fit here: SGLang cannot mix prompts into steps with n-gram drafts; ",
        ),
    ],
    ids=str,
)
def test_each_problem_names_the_key_and_the_cure(tmp_path, preset, expected):
    (problem,) = problems_of(tmp_path, on(preset))
    assert problem.startswith(expected)


def test_a_preset_for_gpus_on_a_cpu_shows_every_lever_that_does_not_fit(tmp_path):
    problems = problems_of(tmp_path, on("low-latency-h100", gpus=0, accelerator=None))
    assert len(problems) == 3
    assert all("not a CPU" in problem or "needs a GPU" in problem for problem in problems)


def test_args_that_replace_a_lever_mend_it(tmp_path):
    data = on("low-latency-h100", accelerator="A100", kind="vllm")
    assert len(problems_of(tmp_path, data)) == 2
    data["deployments"]["tiny-online"]["engine"]["args"] = {"quantization": None, "kv-cache-dtype": "auto"}
    (item,) = load_config(write(tmp_path, data)).deployments.values()
    assert item.engine_args["quantization"] is None and item.engine_args["max-num-batched-tokens"] == 2048


@pytest.mark.parametrize("junk", [True, 7, 1.5, "text", [], {"x": None}, {1: 2}, [{"a": 1}]], ids=repr)
@pytest.mark.parametrize(
    "path", ["", "/name", "/speculation", "/speculation/kind", "/quantisation", "/chunked_prefill"]
)
def test_no_value_anywhere_brings_another_exception(tmp_path, path, junk):
    assert problems_of(tmp_path, changed(f"{PRESET}{path}", junk))


@pytest.mark.parametrize("junk", [None, "many", [], float("inf")], ids=repr)
def test_wrong_values_beside_a_preset_bring_no_other_exception(tmp_path, junk):
    for key in ("max_running", "resources", "pool", "engine/kind", "engine/args"):
        data = on({"speculation": "ngram"})
        *parents, last = f"deployments/tiny-online/{key}".split("/")
        section = data
        for name in parents:
            section = section[name]
        section[last] = junk
        assert problems_of(tmp_path, data)
