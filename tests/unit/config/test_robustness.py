"""Whatever a file holds, loading answers with a configuration or a ConfigError, and never with another exception."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.config import ConfigError, load_config
from tests.unit.config.samples import changed, write

ONLINE = "deployments/tiny-online"
JUNK: list[Any] = [None, True, 7, 1.5, "text", [], [[]], {}, {"x": None}, {1: 2}, [{"a": 1}]]


@pytest.mark.parametrize("junk", JUNK, ids=repr)
@pytest.mark.parametrize(
    "path",
    [
        "models",
        "models/tiny",
        "models/tiny/source",
        "deployments",
        ONLINE,
        f"{ONLINE}/model",
        f"{ONLINE}/serves",
        f"{ONLINE}/engine",
        f"{ONLINE}/engine/args",
        f"{ONLINE}/replicas/min",
        f"{ONLINE}/pool",
        "pools",
        "tenants",
        "scheduling/classes",
        "scheduling/classes/online",
        "scheduling/classes/online/floor",
        "gateway/own_door/port",
        "ray/port",
        "state",
        "state/url",
    ],
)
def test_no_value_anywhere_brings_another_exception(tmp_path, path, junk):
    try:
        load_config(write(tmp_path, changed(path, junk)))
    except ConfigError as error:
        assert all(problem.message for problem in error.problems)
