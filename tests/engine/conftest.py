"""The default cluster on real engines (configs/local.yaml), on ports and folders of its own; gone after its tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cluster.config import TribesConfig, load_config
from cluster.local.isolate import isolated
from tests.support.stack import REPO, Stack, running


@pytest.fixture(scope="module")
def real_config(tmp_path_factory: pytest.TempPathFactory) -> TribesConfig:
    return isolated(load_config(REPO / "configs" / "local.yaml"), tmp_path_factory.mktemp("engines"))


@pytest.fixture(scope="module")
def real_stack(real_config: TribesConfig) -> Iterator[Stack]:
    with running(real_config) as stack:
        yield stack
