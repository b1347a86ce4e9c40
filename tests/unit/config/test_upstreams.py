"""The `upstreams` section: what is refused and how it is said; keys are named and never repeated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest

from cluster.config import TribesConfig, config_schema, load_config
from tests.unit.config.samples import changed, problems_of, valid, write

KEY = "sk-very-secret-0123456789"
UP: dict[str, Any] = {
    "base_url": "https://api.example.com/v1/",
    "api_key": {"env": "EXAMPLE_KEY"},
    "models": {"tiny": "their-tiny", "frontier": "their-best"},
    "usd_per_mtok": {"input": 2, "cached_input": 0.5, "output": 10},
}


def with_upstream(**fields: Any) -> dict[str, Any]:
    return changed("upstreams/up", {**UP, **fields})


def test_it_is_read_with_its_defaults(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, with_upstream()))
    up = config.upstreams["up"]
    assert up.use == "on_failure" and up.usd_per_day is None and not up.accepted_work
    assert up.url_of("/v1/chat/completions") == "https://api.example.com/v1/chat/completions"
    assert up.usd_per_mtok.usd(1_000_000, 2_000_000, 100_000) == pytest.approx(2 + 1 + 1)
    assert config.served_models() == ["tiny", "frontier"]
    assert config.only_upstream("frontier") and not config.only_upstream("tiny") and not config.only_upstream("x")


def test_cached_input_costs_what_other_input_costs_if_nothing_is_said(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, with_upstream(usd_per_mtok={"input": 2, "output": 10})))
    assert config.upstreams["up"].usd_per_mtok.usd(0, 1_000_000, 0) == 2


def test_a_model_that_only_batch_jobs_have_is_served_upstream_alone(tmp_path: Path) -> None:
    data = with_upstream()
    data["deployments"]["tiny-online"] = {"model": "tiny", "serves": ["offline"], "engine": {"kind": "vllm"}}
    assert load_config(write(tmp_path, data)).only_upstream("tiny")


def test_a_key_file_is_found_from_the_configuration(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, with_upstream(api_key={"file": "secrets/key"})))
    key = config.upstreams["up"].api_key
    assert key is not None and key.file == tmp_path / "secrets/key"
    assert TribesConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {}),
        ("never", {"*": "never"}),
        ({"up": "never"}, {"up": "never"}),
        ({"up": {"use": "on_overload", "usd_per_day": 2}, "*": "never"}, {"up": "on_overload", "*": "never"}),
        ({"up": {"usd_per_day": 2}}, {"up": None}),
    ],
)
def test_a_tenants_own_rules(tmp_path: Path, given: Any, expected: dict[str, str | None]) -> None:
    data = with_upstream()
    data["tenants"] = {"a": {"upstreams": given}}
    config = load_config(write(tmp_path, data))
    assert {name: item.use for name, item in config.tenants["a"].upstreams.items()} == expected
    assert TribesConfig.model_validate(config.model_dump(mode="json")) == config
    jsonschema.validate(data, config_schema())


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("api_key", KEY, "upstreams.up.api_key: say where the key is, never the key itself: {env: NAME_OF_VARIABLE}"),
        ("api_key", {"env": KEY}, "upstreams.up.api_key.env: not the name of an environment variable; name the"),
        ("api_key", {"value": KEY}, "upstreams.up.api_key: give one of the two: env: NAME_OF_VARIABLE or file: PATH"),
        ("api_key", {"env": "A", "file": "b"}, "upstreams.up.api_key: give one of the two: "),
        ("api_key", {"env": "A", "key": KEY}, "upstreams.up.api_key.key: unknown key; use one of env, file"),
        ("base_url", f"https://me:{KEY}@x/v1", "upstreams.up.base_url: must be like https://api.example.com/v1, "),
        ("base_url", f"https://x/v1?key={KEY}", "upstreams.up.base_url: must be like https://api.example.com/v1, "),
        ("base_url", "api.example.com", "upstreams.up.base_url: must be like https://api.example.com/v1, without"),
        ("use", "on_overlaod", "upstreams.up.use: 'on_overlaod' is not one of never, on_failure, on_overload; did you"),
        ("usd_per_mtok", None, "upstreams.up.usd_per_mtok: the section is empty; give it keys, or remove it"),
        ("usd_per_mtok", {"input": 1}, "upstreams.up.usd_per_mtok.output: required key is missing"),
        ("models", {}, "upstreams.up.models: "),
        ("tenants", ["defalt"], "upstreams.up.tenants[0]: unknown tenant 'defalt'; did you mean default?"),
        ("tenants", [], "upstreams.up.tenants: "),
        ("usd_per_day", 0, "upstreams.up.usd_per_day: must be greater than 0; got 0"),
        ("paths", ["/v1/messages"], "upstreams.up.paths[0]: '/v1/messages' is not one of /v1/chat/completions, "),
    ],
)
def test_what_is_wrong_is_said_with_its_cure_and_without_keys(
    tmp_path: Path, path: str, value: Any, expected: str
) -> None:
    problems = problems_of(tmp_path, with_upstream(**{path: value}))
    assert any(problem.startswith(expected) for problem in problems), problems
    assert KEY not in str(problems)


def test_a_budget_needs_prices(tmp_path: Path) -> None:
    data = with_upstream(usd_per_day=5, usd_per_mtok={"input": 0, "output": 0})
    assert problems_of(tmp_path, data) == [
        "upstreams.up.usd_per_day: never binds, as all prices are 0; give prices, or remove it"
    ]


def test_a_model_that_nobody_would_serve(tmp_path: Path) -> None:
    [problem] = problems_of(tmp_path, with_upstream(use="never"))
    assert problem.startswith("upstreams.up.models.frontier: no deployment serves this model and use: never keeps it")


def test_a_tenant_names_an_upstream_that_is_there(tmp_path: Path) -> None:
    data = with_upstream()
    data["tenants"] = {"a": {"upstreams": {"upp": "never", "*": "never"}}}
    assert problems_of(tmp_path, data) == ["tenants.a.upstreams.upp: unknown upstream 'upp'; did you mean up?"]
    data["tenants"] = {"a": {"upstreams": "sometimes"}}
    assert "'sometimes' is not one of never, on_failure, on_overload" in " ".join(problems_of(tmp_path, data))


def test_no_key_is_in_what_is_shown_of_a_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXAMPLE_KEY", KEY)
    config = load_config(write(tmp_path, with_upstream()))
    assert KEY not in repr(config) + config.model_dump_json() and "EXAMPLE_KEY" in config.model_dump_json()


def test_without_upstreams_nothing_is_different(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, valid()))
    assert config.upstreams == {} and config.served_models() == ["tiny"]
