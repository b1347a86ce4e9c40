"""Sizes of public models, counted from their config.json, against what their makers publish."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster.config import HuggingFace, LocalFolder, PathsConfig
from cluster.planning import ModelFactsError, facts_from_config
from cluster.planning.model_files import find_config, read_facts
from tests.unit.planning.models import DEEPSEEK_V3, LLAMA_8B, LLAMA_70B, MIXTRAL


@pytest.mark.parametrize(
    ("config", "parameters"),
    [(LLAMA_8B, 8_030_261_248), (LLAMA_70B, 70_553_706_496), (MIXTRAL, 46_702_792_704)],
)
def test_parameters_are_counted_exactly(config, parameters):
    assert facts_from_config(config).parameters == parameters


def test_mixtures_pass_a_token_through_few_experts():
    assert facts_from_config(MIXTRAL).active_parameters == pytest.approx(12.9e9, rel=0.01)
    deepseek = facts_from_config(DEEPSEEK_V3)
    assert deepseek.parameters == pytest.approx(671e9, rel=0.001)
    assert deepseek.active_parameters == pytest.approx(37e9, rel=0.03)
    assert deepseek.stored == "fp8"


def test_what_a_token_leaves_in_the_cache():
    assert facts_from_config(LLAMA_8B).kv_numbers(1) * 2 == 131_072  # GQA: 2 x 32 layers x 8 heads x 128, in 16 bits
    assert facts_from_config(DEEPSEEK_V3).kv_numbers(1) == 61 * (512 + 64)  # MLA
    assert facts_from_config(DEEPSEEK_V3).kv_heads == 1


def test_sliding_layers_keep_their_window_only():
    kinds = ["sliding_attention", "full_attention"] * 16
    facts = facts_from_config({**LLAMA_8B, "layer_types": kinds, "sliding_window": 128})
    assert facts.kv_numbers(1000) == 16 * 2 * 8 * 128 * (1000 + 128)
    assert facts.kv_numbers(100) == facts_from_config(LLAMA_8B).kv_numbers(100)


def test_the_text_part_of_a_multimodal_model_counts():
    assert facts_from_config({"model_type": "mllama", "text_config": LLAMA_8B}) == facts_from_config(LLAMA_8B)


@pytest.mark.parametrize(
    ("quantisation", "stored"),
    [
        (None, "16bit"),
        ({"quant_method": "fp8"}, "fp8"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "fp4"),
        ({"quant_method": "mxfp4"}, "fp4"),
        ({"quant_method": "awq", "bits": 4}, "int4"),
    ],
)
def test_how_a_checkpoint_stores_its_weights(quantisation, stored):
    assert facts_from_config({**LLAMA_8B, "quantization_config": quantisation}).stored == stored


def test_what_cannot_be_counted_is_refused_with_the_cure():
    with pytest.raises(ModelFactsError, match="calibrate it"):
        facts_from_config({**LLAMA_8B, "layer_types": ["linear_attention"]})
    with pytest.raises(ModelFactsError, match="no hidden_size"):
        facts_from_config({"model_type": "llama"})


def test_where_the_file_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    source = HuggingFace(kind="huggingface", id="org/name")
    with pytest.raises(ModelFactsError, match="not on this machine yet"):
        find_config("m", source, PathsConfig())
    folder = tmp_path / "hub/models--org--name/snapshots/abc"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(LLAMA_8B))
    assert read_facts(find_config("m", source, PathsConfig())).layers == 32
    assert find_config("m", LocalFolder(kind="local", path=folder), PathsConfig()) == folder / "config.json"


def test_an_unreadable_file_is_one_line(tmp_path: Path):
    with pytest.raises(ModelFactsError, match="cannot be read"):
        read_facts(tmp_path / "config.json")
    (tmp_path / "config.json").write_text("[1")
    with pytest.raises(ModelFactsError, match="not JSON"):
        read_facts(tmp_path)
