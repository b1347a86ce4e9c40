"""The worker as Serve builds it, and a batch whose files are all on an S3-compatible server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from serve_apps.app import build
from serve_apps.deferred import deployment
from serve_apps.deferred.deployment import DeferredWorker
from tests.unit.serve_apps.conftest import MakeHouse
from tests.unit.serve_apps.deferred_work import ended, jsonl, left_in, line, lines_of, s3_folder, sections, submit
from tests.unit.serve_apps.harness import House, configuration


@pytest.fixture(scope="module")
def s3_url() -> Iterator[str]:
    with s3_folder() as url:
        yield url


@asynccontextmanager
async def deployed(house: House, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[DeferredWorker]:
    """The deployment's own construction and end, without Ray."""
    monkeypatch.setattr(deployment, "ensure_dispatcher", lambda config, model: house.handles[model])
    worker: Any = object.__new__(DeferredWorker)
    await worker.__init__(house.config)
    try:
        yield worker
    finally:
        await worker.__del__()
        DeferredWorker.__del__ = lambda self: None  # type: ignore[method-assign,assignment]  # Serve calls it once


@pytest.mark.parametrize("place", ["local", "s3"])
async def test_a_batch_by_the_deployed_worker(
    make_house: MakeHouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, s3_url: str
) -> None:
    url = s3_url if place == "s3" else f"{tmp_path}/files"
    house = await make_house(**sections(tmp_path, files={"url": url}))
    client = house.openai()
    monkeypatch.setattr(DeferredWorker, "__del__", DeferredWorker.__del__)  # put back afterwards
    async with deployed(house, monkeypatch) as worker:
        done = await ended(client, (await submit(client, jsonl(*(line(n) for n in range(8))))).id)
        await worker.check_health()
        output = await lines_of(client, done.output_file_id)
    assert done.status == "completed" and sorted(r["custom_id"] for r in output) == [f"c{n}" for n in range(8)]
    assert len(house.store.usage()) == 8
    assert done.output_file_id is not None
    await client.files.delete(done.output_file_id)
    if place == "s3":
        assert left_in(tmp_path) == []
    await house.quiet()


def test_the_application_has_a_worker(tmp_path: Path) -> None:
    config = configuration(tmp_path, **sections(tmp_path, batches={"workers": 3}))
    app: Any = build(type("Args", (), {"config": config})())
    (worker,) = [item for item in app._bound_deployment.init_args if getattr(item, "_bound_deployment", None)
                 and item._bound_deployment.name == "deferred-worker"]  # fmt: skip
    assert worker._bound_deployment.num_replicas == 3
