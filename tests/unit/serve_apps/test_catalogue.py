"""What the gateway knows about models before it sees a request."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.config import TribesConfig
from cluster.engines import engine_path
from cluster.vocabulary import RequestClass
from serve_apps.gateway.catalogue import Catalogue
from serve_apps.gateway.doors import BY_PATH, CHAT_PATH, DOORS
from serve_apps.gateway.errors import ApiError
from tests.unit.serve_apps.harness import configuration

ONLINE, SEMI, OFFLINE = RequestClass.ONLINE, RequestClass.SEMI_ONLINE, RequestClass.OFFLINE


def catalogue(**deployments: tuple[str, list[str]]) -> Catalogue:
    """`name=(engine, classes)`."""
    plain = {
        name: {"model": "m", "serves": serves, "engine": {"kind": kind}} for name, (kind, serves) in deployments.items()
    }
    return Catalogue(TribesConfig.model_validate(configuration(Path("weights"), deployments=plain)))


def served_class(made: Catalogue, path: str, wanted: RequestClass) -> RequestClass:
    return made.offer("m").served_class(DOORS[path], wanted)


@pytest.mark.parametrize(
    ("serves", "wanted", "served"),
    [
        (["online", "semi_online"], SEMI, SEMI),
        (["online"], SEMI, ONLINE),
        (["semi_online"], ONLINE, SEMI),
        (["semi_online", "offline"], OFFLINE, OFFLINE),
        (["online", "semi_online"], OFFLINE, SEMI),
        (["online"], OFFLINE, ONLINE),
    ],
)
def test_the_nearest_class_serves(serves: list[str], wanted: RequestClass, served: RequestClass) -> None:
    assert served_class(catalogue(d=("vllm", serves)), CHAT_PATH, wanted) is served


def test_a_door_leads_to_a_class_in_which_every_engine_has_it() -> None:
    apart = catalogue(a=("sglang", ["online"]), b=("vllm", ["semi_online"]))
    assert served_class(apart, CHAT_PATH, ONLINE) is ONLINE
    assert served_class(apart, "/pooling", ONLINE) is SEMI
    mixed = catalogue(a=("sglang", ["online", "semi_online"]), b=("vllm", ["semi_online", "online"]))
    with pytest.raises(ApiError, match="sglang and vllm") as caught:
        served_class(mixed, "/pooling", ONLINE)
    assert (caught.value.status, caught.value.code) == (404, "unsupported_by_engine")


def test_a_model_for_batch_jobs_only() -> None:
    made = catalogue(a=("vllm", ["offline"]))
    with pytest.raises(ApiError, match="batch jobs only") as caught:
        served_class(made, CHAT_PATH, ONLINE)
    assert caught.value.code == "model_not_served" and made.served == []


@pytest.mark.parametrize("model", [None, 3, ["m"], {"a": 1}])
def test_a_body_has_to_name_its_model(model: Any) -> None:
    with pytest.raises(ApiError) as caught:
        catalogue(d=("vllm", ["online"])).offer(model)
    assert (caught.value.status, caught.value.code) == (400, "missing_model")


def test_a_model_that_only_an_upstream_has() -> None:
    upstream = {"base_url": "https://api.example.com/v1", "models": {"far": "theirs"}, "paths": [CHAT_PATH]}
    prices = {"usd_per_mtok": {"input": 1, "output": 2}}
    config = configuration(Path("weights"), upstreams={"other": {**upstream, **prices}})
    made = Catalogue(TribesConfig.model_validate(config))
    assert made.served == ["m", "far"]
    assert made.offer("far").served_class(DOORS[CHAT_PATH], SEMI) is SEMI
    with pytest.raises(ApiError, match="an upstream"):
        made.offer("far").served_class(DOORS["/tokenize"], ONLINE)


def test_every_door_is_some_engines_and_every_engines_path_a_door() -> None:
    for path in BY_PATH:
        assert engine_path("vllm", path) is not None
    assert [path for path in BY_PATH if engine_path("sglang", path) is None] == ["/pooling"]
    for kind in ("vllm", "sglang"):
        own = {engine_path(kind, path) for path in BY_PATH} - {None}
        assert own <= DOORS.keys(), "a client of the bare engine finds its paths here too"
