"""Loading: defaults, paths, plain-data round trip, and files that cannot be read at all."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from pydantic import ValidationError

from cluster.config import ConfigError, LocalFolder, PoolConfig, ResourcesConfig, TribesConfig, load_config
from cluster.vocabulary import RequestClass
from tests.unit.config.samples import changed, problems_of, valid, write


def test_a_small_file_gets_the_documented_defaults(tmp_path):
    config = load_config(write(tmp_path, valid()))
    deployment = config.deployments["tiny-online"]
    assert (deployment.pool, deployment.max_running, deployment.replicas.min, deployment.replicas.max) == (
        "default",
        16,
        1,
        1,
    )
    assert config.pools["default"].usd_per_hour == 0
    assert config.tenants["default"].weight == 1
    assert (config.scheduling.input_weight, config.scheduling.output_weight) == (1, 2)
    assert (config.gateway.host, config.gateway.port, config.gateway.max_body_bytes) == ("127.0.0.1", 8000, 16 << 20)
    assert config.gateway.own_door.port is None
    assert (config.ray.port, config.ray.dashboard_port, config.ray.haproxy) == (6379, 8265, True)
    assert (config.offline.part_rows, config.offline.part_seconds) == (256, 10)


def test_class_defaults_survive_a_partial_override(tmp_path):
    config = load_config(write(tmp_path, changed("scheduling/classes/online/max_queued", 7)))
    classes = config.scheduling.classes
    assert list(classes) == list(RequestClass)
    assert (classes[RequestClass.ONLINE].max_queued, classes[RequestClass.ONLINE].max_wait_s) == (7, 30)
    assert (classes[RequestClass.SEMI_ONLINE].max_queued, classes[RequestClass.SEMI_ONLINE].floor) == (4096, 0.1)
    assert (classes[RequestClass.OFFLINE].max_wait_s, classes[RequestClass.OFFLINE].floor) == (86400, 0.02)


def test_relative_paths_start_at_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    data = changed("paths/data", "../state")
    data["ray"] = {"temp_dir": "ray"}
    data["deployments"]["tiny-online"]["engine"]["python"] = "envs/sglang/bin/python"
    folder = tmp_path / "configs"
    folder.mkdir()
    config = load_config(write(folder, data))
    assert config.source_path == folder / "tribes.yaml"
    assert config.paths.data == tmp_path / "state"
    assert config.state.url == f"sqlite:///{tmp_path}/state/state.db"
    assert config.ray.temp_dir == folder / "ray"
    assert config.deployments["tiny-online"].engine.python == str(folder / "envs/sglang/bin/python")
    source = config.models["tiny"].source
    assert isinstance(source, LocalFolder)
    assert source.path == folder / "weights"


def test_a_path_given_as_text_relative_to_the_working_folder(tmp_path, monkeypatch):
    write(tmp_path, valid())
    monkeypatch.chdir(tmp_path)
    assert load_config("tribes.yaml").source_path == tmp_path / "tribes.yaml"


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    config = load_config(write(tmp_path, changed("paths/data", "~/tribes")))
    assert config.paths.data == tmp_path / "home/tribes"
    assert config.paths.models == tmp_path / "home/.cache/tribes/models"


def test_an_interpreter_is_neither_followed_nor_anchored_when_bare(tmp_path):
    link = tmp_path / "python"
    link.symlink_to("/usr/bin/env")
    engine = "deployments/tiny-online/engine/python"
    assert load_config(write(tmp_path, changed(engine, "./python"))).deployments["tiny-online"].engine.python == str(
        link
    )
    bare = load_config(write(tmp_path, changed(engine, "python3.12")))
    assert bare.deployments["tiny-online"].engine.python == "python3.12"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("sqlite:///bill.db", "sqlite:///{folder}/bill.db"),
        ("sqlite+aiosqlite:///bill.db?mode=ro", "sqlite+aiosqlite:///{folder}/bill.db?mode=ro"),
        ("sqlite:////var/bill.db", "sqlite:////var/bill.db"),
        ("sqlite:///:memory:", "sqlite:///:memory:"),
        ("sqlite://", "sqlite://"),
        ("postgresql://tribes@db/tribes", "postgresql://tribes@db/tribes"),
    ],
)
def test_a_relative_sqlite_file_is_anchored_and_other_urls_are_left_alone(tmp_path, url, expected):
    assert load_config(write(tmp_path, changed("state/url", url))).state.url == expected.format(folder=tmp_path)


def test_plain_data_round_trip_keeps_everything(tmp_path, monkeypatch):
    data = changed("scheduling/classes/offline/floor", 0.3)
    data["deployments"]["tiny-online"]["engine"]["args"] = {"flag": True, "list": [1, 2], "gone": None, "share": 0.3}
    config = load_config(write(tmp_path, data))
    monkeypatch.chdir("/")  # another process, another working folder
    again = TribesConfig.model_validate(config.model_dump(mode="json"))
    assert again == config
    assert again.source_path == tmp_path / "tribes.yaml"


def test_built_without_a_file_paths_start_at_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = TribesConfig.model_validate(valid())
    assert config.source_path is None
    assert config.state.url == f"sqlite:///{tmp_path}/.tribes/state.db"


def test_built_without_a_file_the_cross_checks_hold_too():
    with pytest.raises(ValidationError, match="unknown model 'other'"):
        TribesConfig.model_validate(changed("deployments/tiny-online/model", "other"))


def test_a_loaded_configuration_is_frozen(tmp_path):
    config = load_config(write(tmp_path, valid()))
    with pytest.raises(ValidationError, match="frozen"):
        config.name = "other"
    with pytest.raises(ValidationError, match="frozen"):
        config.gateway.port = 1


def test_a_missing_file_names_the_path(tmp_path):
    path = tmp_path / "nowhere.yaml"
    with pytest.raises(ConfigError, match="there is no such file") as caught:
        load_config(path)
    assert str(path) in str(caught.value)
    assert caught.value.source == path


def test_a_folder_is_not_a_configuration(tmp_path):
    with pytest.raises(ConfigError, match="this is a folder; name the configuration file in it"):
        load_config(tmp_path)


def test_text_that_is_not_utf_8(tmp_path):
    path = tmp_path / "latin.yaml"
    path.write_bytes(b"name: caf\xe9\n")
    with pytest.raises(ConfigError, match=r"not UTF-8 text \(byte 9\)"):
        load_config(path)


@pytest.mark.parametrize(("content", "what"), [("", "is empty"), ("# only a comment\n", "is empty"), ("[1]", "is not")])
def test_a_file_without_keys_says_what_it_needs(tmp_path, content, what):
    (problem,) = problems_of(tmp_path, content)
    assert problem.startswith(f"the file {what}")
    assert "models and deployments" in problem


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ("models:\n  a: [1, 2\n", "line 3, column 1"),
        ("models:\n\ta: 1\n", "line 2, column 1"),
        ("models: {a: 1}\n  b: 2\n", "line 2, column 3"),
        ("a: 1\n---\nb: 2\n", "line 2, column 1"),
        ("a: !!python/object:os.system {}\n", "line 1, column 4"),
    ],
)
def test_a_syntax_error_gives_line_and_column(tmp_path, content, place):
    (problem,) = problems_of(tmp_path, content)
    assert problem.startswith(f"YAML syntax error at {place}:")


@pytest.mark.parametrize("content", ["a: 2026-13-45\n", "a: \x01\n", "[1]: 2\n", "a: &x [*x]\n"])
def test_odd_yaml_is_a_problem_and_never_another_exception(tmp_path, content):
    assert problems_of(tmp_path, content)


def test_duplicate_keys_are_an_error_beside_the_others(tmp_path):
    content = "name: one\nname: two\ngatway: {}\nmodels:\n  m: {max_model_len: 1, max_model_len: 2}\n"
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, content))
    lines = str(caught.value).splitlines()
    assert "  name: duplicate key, first given in line 1; keep one of them (line 2)" in lines
    assert "  models.m.max_model_len: duplicate key, first given in line 5; keep one of them (line 5)" in lines
    assert "  gatway: unknown key; did you mean gateway? (line 3)" in lines


def test_errors_survive_the_way_between_processes(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, changed("gatway", {})))
    again = pickle.loads(pickle.dumps(caught.value))
    assert isinstance(again, ConfigError)
    assert str(again) == str(caught.value)
    assert again.source == Path(tmp_path / "tribes.yaml")


def test_a_replica_costs_as_many_gpus_as_it_holds() -> None:
    pool = PoolConfig(usd_per_hour=3.0)
    for gpus, usd in ((0.0, 3.0), (0.5, 1.5), (1.0, 3.0), (4.0, 12.0)):
        assert pool.replica_usd_per_hour(ResourcesConfig(gpus=gpus)) == usd
