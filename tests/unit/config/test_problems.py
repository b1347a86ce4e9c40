"""What is said about a wrong configuration: where, what, the cure, and all of it at once."""

from __future__ import annotations

import pytest

from cluster.config import ConfigError, load_config, unknown_reference
from tests.unit.config.samples import changed, problems_of, valid, write

ONLINE = "deployments/tiny-online"


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        # unknown keys, at every depth
        ("gatway", {}, "gatway: unknown key; did you mean gateway?"),
        (
            "zzz",
            1,
            "zzz: unknown key; use one of name, models, deployments, pools, tenants, scheduling, gateway, state, ",
        ),
        ("source_path", "/x", "source_path: unknown key; remove it"),
        (f"{ONLINE}/max_runing", 3, "deployments.tiny-online.max_runing: unknown key; did you mean max_running?"),
        (f"{ONLINE}/engine/arg", {}, "deployments.tiny-online.engine.arg: unknown key; did you mean args?"),
        (f"{ONLINE}/replicas/Max", 2, "deployments.tiny-online.replicas.Max: unknown key; did you mean max?"),
        ("models/tiny/source/paht", 1, "models.tiny.source.paht: unknown key; did you mean path?"),
        ("scheduling/classes/online/flor", 0, "scheduling.classes.online.flor: unknown key; did you mean floor?"),
        ("tenants/a/limits/max_queue", 1, "tenants.a.limits.max_queue: unknown key; did you mean max_queued?"),
        ("gateway/own_door/process", 1, "gateway.own_door.process: unknown key; did you mean processes?"),
        # unknown values
        (
            f"{ONLINE}/engine/kind",
            "vlm",
            "deployments.tiny-online.engine.kind: 'vlm' is not one of vllm, sglang; did you mean vllm?",
        ),
        (
            f"{ONLINE}/serves",
            ["onlin"],
            "deployments.tiny-online.serves[0]: 'onlin' is not one of online, semi_online, offline; "
            "did you mean online?",
        ),
        (
            "scheduling/classes/batch",
            {},
            "scheduling.classes.batch: not a valid name here: 'batch' is not one of online, semi_online, offline; "
            "use one of online, semi_online, offline",
        ),
        (
            "models/tiny/source/kind",
            "hugginface",
            "models.tiny.source.kind: unknown kind 'hugginface'; did you mean huggingface?",
        ),
        ("models/tiny/source", {"path": "x"}, "models.tiny.source.kind: required key is missing"),
        ("models/tiny/source", {"kind": "local"}, "models.tiny.source.path: required key is missing"),
        ("models/tiny/source", {"kind": "s3", "url": "http://x"}, "models.tiny.source.url: 'http://x' does not fit; "),
        # unknown references
        (f"{ONLINE}/model", "tinny", "deployments.tiny-online.model: unknown model 'tinny'; did you mean tiny?"),
        (f"{ONLINE}/pool", "defalt", "deployments.tiny-online.pool: unknown pool 'defalt'; did you mean default?"),
        (
            "pools",
            {"gpu": {}},
            "deployments.tiny-online.pool: unknown pool 'default'; use one of gpu (the default, as none is named)",
        ),
        # wrong types
        (
            f"{ONLINE}/replicas",
            [1],
            "deployments.tiny-online.replicas: must be a section of keys and values, not a list",
        ),
        ("gateway", None, "gateway: the section is empty; give it keys, or remove it"),
        (f"{ONLINE}/engine/env", {"A": 1}, 'deployments.tiny-online.engine.env.A: must be text, not 1; quote it: "1"'),
        (
            f"{ONLINE}/engine/env",
            {"A": True},
            'deployments.tiny-online.engine.env.A: must be text, not true; quote it: "true"',
        ),
        (
            "gateway/port",
            "http",
            "gateway.port: must be a valid integer, unable to parse string as an integer; got 'http'",
        ),
        ("gateway/port", 70000, "gateway.port: must be less than or equal to 65535; got 70000"),
        ("scheduling/output_weight", float("nan"), "scheduling.output_weight: must be a finite number; got nan"),
        (f"{ONLINE}/max_running", 0, "deployments.tiny-online.max_running: must be greater than or equal to 1; got 0"),
        # values that do not fit together
        (f"{ONLINE}/serves", [], "deployments.tiny-online.serves: list should have at least 1 item after validation, "),
        (
            f"{ONLINE}/serves",
            ["online", "offline", "online"],
            "deployments.tiny-online.serves: online is listed more than once; list each class once",
        ),
        (
            f"{ONLINE}/serves",
            ["offline"],
            "deployments.tiny-online.engine.kind: serves [offline] alone runs inside batch jobs, "
            "which needs kind: vllm; use it or serve another class",
        ),
        (
            f"{ONLINE}/replicas",
            {"min": 3, "max": 2},
            "deployments.tiny-online.replicas.min: min 3 is above max 2; raise max or lower min",
        ),
        (
            f"{ONLINE}/replicas",
            {"min": 2},
            "deployments.tiny-online.replicas.min: min 2 is above max 1; raise max or lower min",
        ),
        (
            f"{ONLINE}/replicas",
            {"min": 0, "max": 0},
            "deployments.tiny-online.replicas.max: must be greater than or equal to 1; got 0",
        ),
        (
            f"{ONLINE}/engine/args",
            {"--max-model-len": 5},
            "deployments.tiny-online.engine.args.--max-model-len: write it without leading dashes: max-model-len",
        ),
        (
            f"{ONLINE}/engine/args",
            {"max-len": 5, "max_len": 6},
            "deployments.tiny-online.engine.args.max_len: is the same argument as max-len; keep one of them",
        ),
        (
            "gateway/own_door/port",
            8000,
            "gateway.own_door.port: port 8000 is gateway.port already; choose another port",
        ),
        ("ray/dashboard_port", 8000, "ray.dashboard_port: port 8000 is gateway.port already; choose another port"),
        (
            "scheduling/classes",
            {"online": {"floor": 0.5}, "semi_online": {"floor": 0.48}},
            "scheduling.classes: the floors add up to 1 (online 0.5 + semi_online 0.48 + offline 0.02); "
            "lower them to below 1",
        ),
        (
            "state/url",
            "sqlite:///{paths.dta}/x",
            "state.url: unknown placeholder {paths.dta}; only {paths.data} is known",
        ),
        ("tenants/a/weight", 0, "tenants.a.weight: must be greater than 0; got 0"),
        ("tenants", {}, "tenants: dictionary should have at least 1 item after validation, not 0; got an empty dict"),
    ],
)
def test_each_problem_names_the_key_and_the_cure(tmp_path, path, value, expected):
    (problem,) = problems_of(tmp_path, changed(path, value))
    assert problem.startswith(expected)
    if not expected.endswith(", ") and not expected.endswith("; "):
        assert problem == expected


@pytest.mark.parametrize("name", ["Team-A", "-team", ".team", "team a", "", "té", "x" * 64, "a/b", "a\n"])
def test_bad_tenant_names(tmp_path, name):
    (problem,) = problems_of(tmp_path, changed("tenants", {name: {}}))
    assert "not a valid name here" in problem
    assert "use 1 to 63 lower-case letters, digits, dots, underscores and dashes" in problem


@pytest.mark.parametrize("name", ["a", "0", "team-a", "team.b_c-9", "x" * 63])
def test_good_tenant_names(tmp_path, name):
    assert list(load_config(write(tmp_path, changed("tenants", {name: {}}))).tenants) == [name]


def test_model_ids_may_look_like_hub_ids_and_are_quoted_in_key_paths(tmp_path):
    data = valid()
    data["models"]["meta-llama/Llama-3.1-8B"] = {"source": {"kind": "huggingface", "id": "x", "revison": "y"}}
    data["deployments"]["big"] = {"model": "meta-llama/Llama-3.1-8B", "serves": ["online"], "engine": {"kind": "vllm"}}
    (problem,) = problems_of(tmp_path, data)
    assert problem == 'models["meta-llama/Llama-3.1-8B"].source.revison: unknown key; did you mean revision?'


def test_a_model_that_nothing_runs(tmp_path):
    data = valid()
    data["models"]["spare"] = {"source": {"kind": "local", "path": "x"}}
    (problem,) = problems_of(tmp_path, data)
    assert problem == (
        "models.spare: no deployment runs this model; add a deployment with model: spare, or remove it here"
    )


def test_harvest_needs_no_particular_engine(tmp_path):
    config = load_config(write(tmp_path, changed(f"{ONLINE}/serves", ["online", "offline"])))
    assert list(config.serving()) == ["tiny-online"]
    assert config.offline_deployments("tiny") == {}


def test_ports_of_a_cluster_that_exists_are_not_ours(tmp_path):
    config = load_config(write(tmp_path, changed("ray", {"address": "auto", "dashboard_port": 8000})))
    assert config.ray.dashboard_port == 8000


def test_everything_required_is_asked_for(tmp_path):
    assert problems_of(tmp_path, {"name": "x"}) == [
        "models: required key is missing",
        "deployments: required key is missing",
    ]


def test_wrong_shapes_do_not_hide_broken_rules_and_problems_come_in_file_order_with_lines(tmp_path):
    content = """\
models:
  tiny:
    source: {kind: local, path: weights}
deployments:
  one:
    model: tinny
    serves: [offline]
    max_runing: 3
    engine:
      kind: sglang
    replicas:
      min: 4
      max: 2
      maximum: 5
  two: 7
gateway:
  port: 9000
  own_door: {port: 9000}
"""
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, content))
    assert str(caught.value).splitlines() == [
        f"{tmp_path}/tribes.yaml: 7 problems",
        "  deployments.one.model: unknown model 'tinny'; did you mean tiny? (line 6)",
        "  deployments.one.max_runing: unknown key; did you mean max_running? (line 8)",
        "  deployments.one.engine.kind: serves [offline] alone runs inside batch jobs, which needs kind: vllm; "
        "use it or serve another class (line 10)",
        "  deployments.one.replicas.min: min 4 is above max 2; raise max or lower min (line 12)",
        "  deployments.one.replicas.maximum: unknown key; did you mean max? (line 14)",
        "  deployments.two: must be a section of keys and values, not 7 (line 15)",
        "  gateway.own_door.port: port 9000 is gateway.port already; choose another port (line 18)",
    ]


def test_the_wording_for_unknown_references_elsewhere():
    assert unknown_reference("tenant", "team-z", ["team-a", "ops"]) == "unknown tenant 'team-z'; did you mean team-a?"
    assert unknown_reference("deployment", "x", ["a", "b"]) == "unknown deployment 'x'; use one of a, b"
    assert unknown_reference("tenant", "x", []) == "unknown tenant 'x'; there is none"
    many = unknown_reference("tenant", "zzz", [f"name-{index}" for index in range(40)])
    assert many.endswith("name-11, ...")
