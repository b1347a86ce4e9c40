"""A batch survives the death of its worker at any point: each line answered once, billed once.

A dead worker is imitated by tools that fail from one call on, before or after that call had its effect. The next worker
takes over what the store holds. State and files are real, requests are answered at once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.config import TribesConfig
from cluster.state import Store
from cluster.state.deferred import DeferredStore
from cluster.state.deferred_batches import Batch, LostClaimError
from cluster.state.deferred_files import StoredFile, object_of
from cluster.state.ids import new_id
from serve_apps.deferred import housekeeping, results
from serve_apps.deferred.batch_run import BatchRun
from serve_apps.deferred.shop import Shop
from tests.unit.serve_apps.deferred_work import ScriptedRunner, jsonl, line, sections, shop_of, with_parts
from tests.unit.serve_apps.harness import configuration
from tests.unit.serve_apps.servers import eventually


class CrashError(Exception):
    """The process is dead: nothing it does has an effect any more."""


class Fate:
    """When the process dies: at its n-th call, before or after the call had its effect."""

    def __init__(self, at: int, after: bool) -> None:
        self.left = at
        self.after = after

    def wrap(self, thing: Any, *names: str) -> Any:
        wrapped = {name: self._fated(getattr(thing, name)) for name in names}
        others = {n: getattr(thing, n) for n in dir(thing) if not n.startswith("__") and n not in wrapped}
        return SimpleNamespace(**others, **wrapped)

    def _fated(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def fated(*arguments: Any, **named: Any) -> Any:
            self.left -= 1
            if self.left < 0 or (self.left == 0 and not self.after):
                raise CrashError
            result = call(*arguments, **named)
            if self.left == 0:
                raise CrashError
            return result

        return fated


@pytest.fixture
def shop(state_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    plain = configuration(tmp_path, **sections(tmp_path, state={"url": state_url}))
    config = TribesConfig.model_validate(plain)
    store = Store(config.state.url)
    store.create()
    store.add_tenants({"a": {}})
    monkeypatch.setattr(results, "PART_LINES", 3)
    monkeypatch.setattr(results, "PART_SECONDS", 0.001)
    yield shop_of(config, store, ScriptedRunner())
    store.close()


def accept(shop: Shop, content: bytes, life_s: float = 3600.0, tenant: str = "a") -> Batch:
    now_s = time.time()
    file_id = new_id("file-", now_s)
    shop.files.put(object_of(file_id), content)
    shop.deferred.files.add(StoredFile(file_id, tenant, "batch", "in", object_of(file_id), len(content), now_s))
    batch = Batch(
        new_id("batch_", now_s), tenant, "k", "/v1/chat/completions", file_id, "1h", "validating", now_s, now_s + life_s
    )
    shop.deferred.batches.create(batch)
    return batch


def mortal(shop: Shop, fate: Fate) -> Shop:
    """The same shop in a process that dies."""
    deferred = DeferredStore(shop.store)
    deferred.batches = fate.wrap(
        deferred.batches, "begin", "add_part", "parts", "begin_finalizing", "finish", "has_part"
    )
    files = fate.wrap(shop.files, "put", "open", "create", "delete_folder")
    files.writing = lambda name: type(shop.files).writing(files, name)
    return with_parts(shop, deferred=deferred, files=files)


async def live(shop: Shop, fates: list[tuple[int, bool]]) -> int:
    """Workers come and go until nothing is left to do; how many there were."""
    for life, (at, after) in enumerate([*fates, (10**9, True)]):
        # A later worker comes when the one before is silent for long enough.
        claimed = shop.deferred.batches.claim(f"w{life}", time.time() + 100 * life, 10.0, 1, 1)
        if not claimed:
            return life
        try:
            await BatchRun(mortal(shop, Fate(at, after)), claimed[0]).run()
        except* CrashError:
            pass
    return len(fates) + 1


def check(shop: Shop, batch: Batch, numbers: list[int]) -> Batch:
    """Every line is in the output or the error file, once, and was billed once."""
    final = shop.deferred.batches.get("a", batch.id)
    assert final is not None
    seen: list[str] = []
    for file_id, failed in ((final.output_file_id, False), (final.error_file_id, True)):
        if file_id is None:
            continue
        file = shop.deferred.files.get("a", file_id, time.time())
        assert file is not None and file.size_bytes == shop.files.size(file.object_name)
        with shop.files.open(file.object_name) as source:
            for text in source.read().splitlines():
                record = orjson.loads(text)
                seen.append(record["custom_id"])
                assert (record["response"] is None or record["response"]["status_code"] != 200) is failed
    assert sorted(seen) == sorted(f"c{number}" for number in numbers)
    assert final.completed + final.failed == final.total == len(numbers)
    usage = shop.store.usage()
    assert len({row.request_id for row in usage}) == len(usage)
    assert final.input_tokens == sum(row.prompt_tokens for row in usage)
    assert final.output_tokens == sum(row.output_tokens for row in usage)
    assert shop.deferred.batches.parts(batch.id) == []
    return final


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    statuses=st.lists(st.sampled_from([200, 200, 400]), min_size=1, max_size=14),
    fates=st.lists(st.tuples(st.integers(1, 18), st.booleans()), max_size=4),
)
def test_workers_that_die_anywhere(shop: Shop, statuses: list[int], fates: list[tuple[int, bool]]) -> None:
    used = len(shop.store.usage())
    batch = accept(shop, jsonl(*(line(number, status=status) for number, status in enumerate(statuses))))
    asyncio.run(live(shop, fates))
    final = shop.deferred.batches.get("a", batch.id)
    assert final is not None and final.status == "completed"
    billed = shop.store.usage()
    assert len(billed) == used + len(statuses)
    mine = [row for row in billed if row.request_id.startswith(batch.id)]
    assert final.input_tokens == sum(row.prompt_tokens for row in mine) == 3 * len(statuses)
    assert (final.completed, final.failed) == (statuses.count(200), statuses.count(400))
    lines = [*read(shop, final.output_file_id), *read(shop, final.error_file_id)]
    assert sorted(record["custom_id"] for record in lines) == sorted(f"c{n}" for n in range(len(statuses)))
    assert len({record["id"] for record in lines}) == len(lines)


def read(shop: Shop, file_id: str | None) -> list[dict[str, Any]]:
    if file_id is None:
        return []
    file = shop.deferred.files.get("a", file_id, time.time())
    assert file is not None
    with shop.files.open(file.object_name) as source:
        return [orjson.loads(text) for text in source.read().splitlines()]


@pytest.mark.parametrize("after", [False, True])
async def test_every_single_crash_point(shop: Shop, after: bool) -> None:
    """One death each, at the first call, the second, ... until a worker gets through."""
    for at in range(1, 100):
        before = len(shop.store.usage())
        batch = accept(shop, jsonl(*(line(number) for number in range(7))))
        lives = await live(shop, [(at, after)])
        final = shop.deferred.batches.get("a", batch.id)
        assert final is not None and (final.status, final.completed, final.failed) == ("completed", 7, 0), at
        assert len(read(shop, final.output_file_id)) == 7 and len(shop.store.usage()) == before + 7, at
        assert shop.deferred.batches.parts(batch.id) == []
        if lives == 1:
            break
    assert 10 < at < 99, "the last crash point must lie behind the worker's end"


async def test_a_worker_that_comes_back_from_the_dead_changes_nothing(shop: Shop) -> None:
    batch = accept(shop, jsonl(*(line(number) for number in range(8))))
    gate = asyncio.Event()

    async def held(request: Any) -> None:
        await gate.wait()

    (first,) = shop.deferred.batches.claim("zombie", time.time(), 10.0, 1, 1)
    stopped = ScriptedRunner(answer=held)
    zombie = asyncio.create_task(BatchRun(with_parts(shop, runner=stopped), first).run())
    await eventually(lambda: stopped.running == 8)
    (second,) = shop.deferred.batches.claim("heir", time.time() + 100, 10.0, 1, 1)
    assert second.fence == first.fence + 1
    await BatchRun(shop, second).run()
    gate.set()
    lost = 0
    try:
        await zombie
    except* LostClaimError:
        lost += 1
    assert lost
    check(shop, batch, list(range(8)))
    assert len(shop.store.usage()) == 8


async def test_a_commit_whose_answer_is_lost_is_not_done_twice(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "RETRY_S", 0.01)
    batch = accept(shop, jsonl(*(line(number) for number in range(7))))
    (claimed,) = shop.deferred.batches.claim("w", time.time(), 10.0, 1, 1)
    deferred = DeferredStore(shop.store)
    add_part, calls = deferred.batches.add_part, 0

    def flaky(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls % 3 == 1:
            raise OSError("the connection broke before the commit")
        add_part(*arguments)
        if calls % 3 == 2:
            raise OSError("the connection broke after the commit")

    deferred.batches.add_part = flaky  # type: ignore[method-assign]
    await BatchRun(with_parts(shop, deferred=deferred), claimed).run()
    check(shop, batch, list(range(7)))
    assert calls > 3 and len(shop.store.usage()) == 7


async def test_what_crashes_left_is_swept(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = accept(shop, jsonl(*(line(number) for number in range(5))))
    await live(shop, [(5, False), (9, False)])
    check(shop, batch, list(range(5)))
    shop.files.put(f"batches/{batch.id}/000001-000000.jsonl", b"an orphan")
    shop.files.put("file-x.jsonl", b"an upload whose row was never written")
    monkeypatch.setattr(housekeeping, "LEFTOVER_S", -60.0)
    housekeeping.sweep(shop)
    assert shop.files.folders("batches") == [] and shop.files.size("file-x.jsonl") is None
    check(shop, batch, list(range(5)))
