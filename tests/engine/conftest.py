"""The default cluster on real engines (configs/local.yaml), on ports and folders of its own; gone after its tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cluster.config import TribesConfig, load_config
from cluster.local.isolate import isolated
from tests.support.stack import REPO, Stack, running

SMALL_BATCH = 8
"""Lines up to which a batch goes through the queue."""


@pytest.fixture(scope="package")
def real_config(tmp_path_factory: pytest.TempPathFactory) -> TribesConfig:
    config = isolated(load_config(REPO / "configs" / "local.yaml"), tmp_path_factory.mktemp("engines"))
    settings = config.model_dump(mode="json")
    settings["batches"]["offline_job_threshold"] = SMALL_BATCH
    return TribesConfig.model_validate(settings)


@pytest.fixture(scope="package")
def real_stack(real_config: TribesConfig) -> Iterator[Stack]:
    with running(real_config) as stack:
        yield stack
