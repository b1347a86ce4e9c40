"""The `region` section: what it needs, and that its keys are named and never repeated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.config import TribesConfig, load_config
from cluster.vocabulary import RequestClass
from tests.unit.config.samples import changed, problems_of, write

KEY = "sk-very-secret-0123456789"
EAST: dict[str, Any] = {"base_url": "https://east.example.com/v1/", "probe_key": {"env": "EAST_KEY"}}


def with_region(**fields: Any) -> dict[str, Any]:
    return changed("region", {"name": "west", "peers": {"east": EAST}, **fields})


def test_it_is_read_with_its_defaults(tmp_path: Path) -> None:
    region = load_config(write(tmp_path, with_region())).region
    assert region is not None and region.peers["east"].base_url == "https://east.example.com/v1"
    assert region.ttft_slo_s[RequestClass.ONLINE] == 1.0 and RequestClass.OFFLINE not in region.ttft_slo_s


def test_files_of_keys_are_found_from_the_configuration(tmp_path: Path) -> None:
    peer = {**EAST, "probe_key": {"file": "a"}, "keys": {"default": {"file": "b"}}}
    config = load_config(write(tmp_path, with_region(peers={"east": peer})))
    assert config.region is not None
    east = config.region.peers["east"]
    assert (east.probe_key.file, east.keys["default"].file) == (tmp_path / "a", tmp_path / "b")
    assert TribesConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"peers": {"west": EAST}}, "region.peers.west: is this region's own name; list the others only"),
        ({"peers": {}}, "region.peers: "),
        ({"peers": {"east": {**EAST, "probe_key": KEY}}}, "region.peers.east.probe_key: say where the key is, never"),
        ({"peers": {"east": {**EAST, "base_url": f"https://{KEY}@x/v1"}}}, "region.peers.east.base_url: must be like"),
        (
            {"peers": {"east": {**EAST, "keys": {"defalt": {"env": "A"}}}}},
            "region.peers.east.keys.defalt: unknown tenant 'defalt'; did you mean default?",
        ),
        ({"ttft_slo_s": {"onlin": 1}}, "region.ttft_slo_s.onlin: not a valid name here: 'onlin' is not one of online"),
        ({"ttft_slo_s": {"online": 0}}, "region.ttft_slo_s.online: must be greater than 0; got 0"),
    ],
)
def test_what_is_wrong_is_said_with_its_cure_and_without_keys(
    tmp_path: Path, fields: dict[str, Any], expected: str
) -> None:
    problems = problems_of(tmp_path, with_region(**fields))
    assert any(problem.startswith(expected) for problem in problems), problems
    assert KEY not in str(problems)
