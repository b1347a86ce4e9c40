"""Ends of batches that go wrong: owners that freeze, commits that hang, inputs that cannot be read or grow too long."""

from __future__ import annotations

import asyncio
import threading
import time
from array import array
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.config import TribesConfig
from cluster.files import FileStore
from cluster.state import Store
from cluster.state.deferred_batches import Batch, BatchPart, InputGoneError, LostClaimError, Sums
from cluster.state.deferred_files import StoredFile, object_of
from cluster.state.ids import new_id
from serve_apps.deferred import housekeeping, queue_lines, results
from serve_apps.deferred.batch_run import BatchRun
from serve_apps.deferred.outputs import write_outputs
from serve_apps.deferred.runner import Request
from serve_apps.deferred.shop import Shop
from tests.unit.serve_apps.deferred_work import ScriptedRunner, jsonl, line, s3_folder, sections, shop_of, with_parts
from tests.unit.serve_apps.harness import configuration
from tests.unit.serve_apps.servers import eventually
from tests.unit.serve_apps.test_deferred_crashes import accept, check, read

LATER_S = 100.0


@pytest.fixture
def shop(state_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    config = TribesConfig.model_validate(configuration(tmp_path, **sections(tmp_path, state={"url": state_url})))
    store = Store(config.state.url)
    store.create()
    store.add_tenants({"a": {}})
    monkeypatch.setattr(results, "PART_LINES", 3)
    monkeypatch.setattr(results, "PART_SECONDS", 0.001)
    yield shop_of(config, store, ScriptedRunner())
    store.close()


@pytest.fixture(scope="module")
def s3_url() -> Iterator[str]:
    with s3_folder() as url:
        yield url


def lines_to(count: int) -> bytes:
    return jsonl(*(line(number) for number in range(count)))


def claim(shop: Shop, later_s: float = 0.0) -> Batch:
    (batch,) = shop.deferred.batches.claim(f"w{later_s}", time.time() + later_s, 10.0, 1, 1)
    return batch


def final(shop: Shop, batch: Batch) -> Batch:
    found = shop.deferred.batches.get("a", batch.id)
    assert found is not None
    return found


@pytest.mark.parametrize("place", ["local", "s3"])
async def test_a_frozen_owner_takes_nothing_from_the_next(shop: Shop, place: str, s3_url: str) -> None:
    """It thaws while it writes the output file that the next owner has finished."""
    url = s3_url if place == "s3" else shop.files.url
    shop, slow = with_parts(shop, files=FileStore(url)), FileStore(url)
    opened: list[str] = []

    def freezing(name: str) -> Any:
        opened.extend([name] if name.startswith(results.FOLDER) else [])
        if len(opened) == 2:
            asyncio.run(BatchRun(shop, claim(shop, LATER_S)).run())
        return FileStore.open(slow, name)

    slow.open = freezing  # type: ignore[method-assign]
    batch = accept(shop, lines_to(7))
    with pytest.raises(FileNotFoundError):
        await BatchRun(with_parts(shop, files=slow), claim(shop)).run()
    assert check(shop, batch, list(range(7))).status == "completed"


async def test_a_commit_that_hangs_until_the_end_is_dropped(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error file says that its lines were not run: they must not be billed after that."""
    monkeypatch.setattr(queue_lines, "LAST_FLUSH_S", 0.05)
    book, go_on, ended = shop.deferred.batches, threading.Event(), threading.Event()
    add_part, parts, lost = book.add_part, book.parts, []

    def hanging(*arguments: Any) -> None:
        go_on.wait(10)
        try:
            add_part(*arguments)
        except LostClaimError as error:
            lost.append(error)
            raise
        finally:
            ended.set()

    def read_for_the_outputs(batch_id: str) -> list[BatchPart]:
        found = parts(batch_id)
        if final(shop, batch).finalizing_at_s is not None:
            go_on.set()
            assert ended.wait(10)
        return found

    monkeypatch.setattr(book, "add_part", hanging)
    monkeypatch.setattr(book, "parts", read_for_the_outputs)
    batch = accept(shop, lines_to(3), life_s=0.5)
    await BatchRun(shop, claim(shop)).run()
    assert len(lost) == 1 and shop.store.usage() == []
    done = final(shop, batch)
    assert (done.status, done.completed, done.failed, done.output_tokens) == ("expired", 0, 3, 0)
    assert [record["error"]["code"] for record in read(shop, done.error_file_id)] == ["batch_expired"] * 3


async def test_a_batch_that_is_finalized_takes_no_results(shop: Shop) -> None:
    batch, book = accept(shop, lines_to(1)), shop.deferred.batches
    fence = claim(shop).fence
    book.begin(batch.id, fence, time.time(), 1, "m", "queue")
    book.begin_finalizing(batch.id, fence, time.time())
    with pytest.raises(LostClaimError):
        book.add_part(batch.id, fence, BatchPart(0, "x", array("I", [2])), Sums(1), ())
    assert book.parts(batch.id) == [] and final(shop, batch).completed == 0


@pytest.mark.parametrize("how", ["in time", "late", "cancelled"])
async def test_an_input_that_cannot_be_read_is_tried_until_the_batch_ends(shop: Shop, how: str) -> None:
    batch = accept(shop, lines_to(1), life_s=-1.0 if how == "late" else 60.0)
    shop.files.delete(object_of(batch.input_file_id))
    if how == "cancelled":
        shop.deferred.batches.cancel("a", batch.id, time.time())
    run = BatchRun(shop, claim(shop)).run()
    if how == "in time":
        with pytest.raises(FileNotFoundError):
            await run
        assert final(shop, batch).status == "validating"
        return
    await run
    done = final(shop, batch)
    assert done.status == {"late": "failed", "cancelled": "cancelled"}[how]
    if how == "late":
        assert done.problems is not None and [problem["code"] for problem in done.problems] == ["input_unreadable"]


async def test_a_limit_that_is_lowered_loses_no_line(shop: Shop) -> None:
    async def held(request: Request) -> None:
        await asyncio.Event().wait()

    batch = accept(shop, jsonl(line(0), line(1, text="x" * 5000), line(2)))
    runner = ScriptedRunner(answer=held)
    first = asyncio.create_task(BatchRun(with_parts(shop, runner=runner), claim(shop)).run())
    await eventually(lambda: runner.running == 3)
    first.cancel()
    await asyncio.wait({first})
    gateway = shop.config.gateway.model_copy(update={"max_body_bytes": 1000})
    lowered = with_parts(shop, config=shop.config.model_copy(update={"gateway": gateway}))
    await BatchRun(lowered, claim(shop, LATER_S)).run()
    assert check(shop, batch, [0, 1, 2]).completed == 3


async def test_lines_of_a_queued_batch_that_were_not_run_expired(shop: Shop) -> None:
    """Whatever the clock says: only an offline job may fail."""
    batch, book = accept(shop, lines_to(3)), shop.deferred.batches
    fence = claim(shop).fence
    book.begin(batch.id, fence, time.time(), 3, "m", "queue")
    finalizing = book.begin_finalizing(batch.id, fence, time.time())
    ending = write_outputs(shop, finalizing, object_of(batch.input_file_id))
    assert ending.status == "expired"
    with shop.files.open(ending.files["error_file_id"].object_name) as source:
        assert source.read().count(b'"batch_expired"') == 3
    job = replace(finalizing, mode="job")
    assert write_outputs(shop, job, object_of(batch.input_file_id)).status == "completed"


async def test_an_expired_input_is_read_or_refused(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """It expired after the gateway saw it and before the batch was there, and just then files are purged."""
    now_s, files = time.time(), shop.deferred.files
    file_id = new_id("file-", now_s)
    shop.files.put(object_of(file_id), lines_to(1))
    files.add(StoredFile(file_id, "a", "batch", "in", object_of(file_id), 1, now_s - 10, now_s - 1))
    batch = Batch(new_id("batch_", now_s), "a", "k", "/v1/chat/completions", file_id, "1h", "validating", now_s, now_s)
    purgeable, created = files.purgeable, []

    def meanwhile(*arguments: Any) -> Any:
        found = purgeable(*arguments)
        try:
            shop.deferred.batches.create(batch)
        except InputGoneError:
            created.append(False)
        else:
            created.append(True)
        return found

    monkeypatch.setattr(files, "purgeable", meanwhile)
    housekeeping.purge(shop)
    assert created and not any(created) and shop.files.size(object_of(file_id)) is None


async def test_an_input_that_expires_is_kept_for_its_batch(shop: Shop) -> None:
    batch = accept(shop, lines_to(1))
    with shop.store.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE files SET expires_at_s = 1")
    housekeeping.purge(shop)
    assert shop.deferred.files.get("a", batch.input_file_id, time.time()) is None
    await BatchRun(shop, claim(shop)).run()
    assert final(shop, batch).status == "completed"
    housekeeping.purge(shop)
    assert shop.files.size(object_of(batch.input_file_id)) is None
