"""How `engine.args` become a command line."""

from __future__ import annotations

import json

import pytest

from cluster.engines.arguments import EngineConfigError, merge, normalise, option_name, to_argv


@pytest.mark.parametrize(
    ("args", "argv"),
    [
        ({"enforce-eager": True}, ["--enforce-eager"]),
        ({"max-model-len": 2048}, ["--max-model-len", "2048"]),
        ({"gpu-memory-utilization": 0.9}, ["--gpu-memory-utilization", "0.9"]),
        ({"revision": None}, []),
        ({"stop-token-ids": [1, 2]}, ["--stop-token-ids", "1", "2"]),
        ({"allowed": []}, ["--allowed"]),
        ({"seed": -1}, ["--seed=-1"]),
        ({"chat-template": "-x"}, ["--chat-template=-x"]),
        ({"rope-scaling": {"factor": 2.0}}, ["--rope-scaling", '{"factor": 2.0}']),
        ({"lora-modules": [{"name": "a"}, {"name": "b"}]}, ["--lora-modules", '{"name": "a"}', '{"name": "b"}']),
        ({"flags": [True, False]}, ["--flags", "true", "false"]),
    ],
)
def test_each_kind_of_value(args, argv):
    assert to_argv(args, negated_flags=True) == argv


def test_false_is_a_negated_flag_or_no_flag_as_the_engine_has_it():
    assert to_argv({"async-scheduling": False}, negated_flags=True) == ["--no-async-scheduling"]
    assert to_argv({"enable-metrics": False}, negated_flags=False) == []


def test_a_nested_mapping_survives_as_json():
    value = {"method": "ngram", "nested": {"text": 'ü "q"', "list": [1, None]}}
    assert json.loads(to_argv({"speculative-config": value}, negated_flags=True)[1]) == value


def test_names_are_spelled_with_dashes_up_to_a_dot():
    assert option_name("max_model_len") == "max-model-len"
    assert option_name("--tp_size") == "tp-size"
    assert option_name("compilation_config.use_inductor") == "compilation-config.use_inductor"


@pytest.mark.parametrize("args", [{"a_b": 1, "a-b": 2}, {"--": 1}])
def test_ambiguous_or_empty_names_are_refused(args):
    with pytest.raises(EngineConfigError, match=r"engine\.args"):
        normalise(args)


def test_the_deployment_wins_over_defaults_also_with_null():
    defaults = {"log-level": "warning", "enable-metrics": True}
    assert merge({"log_level": "debug", "enable_metrics": None}, defaults, {}) == {
        "log-level": "debug",
        "enable-metrics": None,
    }


def test_owned_arguments_are_refused_with_their_cure():
    with pytest.raises(EngineConfigError, match=r"engine\.args\.api-key.*tenants"):
        merge({"api_key": "x"}, {}, {"api-key": "API keys belong to tenants"})
