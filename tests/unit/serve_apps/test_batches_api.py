"""`/v1/batches` through the official client, a worker and scripted engines: from the upload to the output file."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import openai
import orjson
import pytest
from yarl import URL

from tests.unit.serve_apps.conftest import MakeHouse
from tests.unit.serve_apps.deferred_work import doomed, ended, jsonl, line, lines_of, sections, submit, working
from tests.unit.serve_apps.harness import House
from tests.unit.serve_apps.servers import eventually

TWO = {"tenants": {"a": {}, "b": {}}}
SLOW = {"x_script": {"ttft_ms": 60_000}}


@pytest.fixture
async def house(make_house: MakeHouse, tmp_path: Path) -> House:
    return await make_house(**sections(tmp_path, batches={"max_requests": 50}, **TWO))


async def test_a_batch_from_upload_to_output(house: House) -> None:
    client = house.openai("a")
    content = jsonl(*(line(number) for number in range(20)), line(20, max_tokens=-1), line(21, stream=True))
    async with working(house):
        batch = await submit(client, content, metadata={"run": "7"})
        assert (batch.object, batch.status, batch.endpoint) == ("batch", "validating", "/v1/chat/completions")
        assert batch.expires_at == batch.created_at + 86400 and batch.metadata == {"run": "7"}
        done = await ended(client, batch.id)
    assert done.status == "completed" and done.model == "m" and done.errors is None
    counts = done.request_counts
    assert counts is not None and (counts.total, counts.completed, counts.failed) == (22, 21, 1)
    times = [done.created_at, done.in_progress_at, done.finalizing_at, done.completed_at]
    assert None not in times and times == sorted(times)  # type: ignore[type-var]
    output, errors = await lines_of(client, done.output_file_id), await lines_of(client, done.error_file_id)
    assert sorted(record["custom_id"] for record in output) == sorted(f"c{n}" for n in range(22) if n != 20)
    for record in output:
        assert set(record) == {"id", "custom_id", "response", "error"} and record["error"] is None
        response = record["response"]
        assert response["status_code"] == 200 and response["body"]["object"] == "chat.completion"
        assert response["request_id"] and record["id"].startswith("batch_req_")
    (error,) = errors
    assert error["custom_id"] == "c20" and error["response"]["status_code"] == 400
    assert error["response"]["body"]["error"]["message"]
    files = {file.id: file async for file in client.files.list(purpose="batch_output")}
    assert set(files) == {done.output_file_id, done.error_file_id}
    usage = house.store.usage()
    billed = [row for row in usage if row.output_tokens]
    assert len(billed) == 21 and {row.request_class for row in billed} == {"offline"}
    assert {row.tenant for row in billed} == {"a"}
    assert done.usage is not None
    assert done.usage.output_tokens == sum(row.output_tokens for row in billed)
    assert done.usage.output_tokens == sum(r["response"]["body"]["usage"]["completion_tokens"] for r in output)
    await house.quiet()


async def test_other_endpoints(house: House) -> None:
    client = house.openai("a")
    plain = [
        {"custom_id": f"p{n}", "method": "POST", "url": "/v1/completions", "body": {"model": "m", "prompt": "x"}}
        for n in range(3)
    ]
    vectors = [
        {"custom_id": f"v{n}", "method": "POST", "url": "/v1/embeddings", "body": {"model": "m", "input": "x"}}
        for n in range(3)
    ]
    async with working(house):
        for endpoint, records, kind in (
            ("/v1/completions", plain, "text_completion"),
            ("/v1/embeddings", vectors, "list"),
        ):
            batch = await submit(client, jsonl(*records), endpoint=endpoint)
            done = await ended(client, batch.id)
            assert done.status == "completed" and done.error_file_id is None
            output = await lines_of(client, done.output_file_id)
            assert [record["response"]["body"]["object"] for record in output] == [kind] * 3


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (jsonl(b"{not json\n", line(1)), [("invalid_json_line", 1)]),
        (jsonl(line(1), b"\n", line(1), line(2)), [("duplicate_custom_id", 3)]),
        (jsonl(line(1), line(2, url="/v1/completions")), [("invalid_url", 2)]),
        (jsonl(line(1) | {"method": "GET"}), [("invalid_method", 1)]),
        (jsonl(line(1, model="other")), [("model_not_found", 1)]),
        (jsonl({**line(1), "body": None}), [("missing_required_parameter", 1)]),
        (jsonl(line(1) | {"custom_id": ""}, b"[1]\n"), [("missing_required_parameter", 1), ("invalid_json_line", 2)]),
        (jsonl(*(line(n) for n in range(51))), [("too_many_requests", 51)]),
        (b"\n\n", [("empty_file", None)]),
    ],
)  # fmt: skip
async def test_a_bad_input_fails_the_batch_and_runs_nothing(
    house: House, content: bytes, expected: list[tuple[str, int | None]]
) -> None:
    client = house.openai("a")
    async with working(house):
        done = await ended(client, (await submit(client, content)).id)
    assert done.status == "failed" and done.failed_at is not None and done.output_file_id is None
    assert done.errors is not None and done.errors.data is not None
    assert [(error.code, error.line) for error in done.errors.data] == expected
    assert all(error.message for error in done.errors.data)
    assert house.store.usage() == [] and house.sink.records == []


async def test_a_cancelled_batch_keeps_what_is_finished(house: House) -> None:
    client = house.openai("a")
    content = jsonl(*(line(number) for number in range(6)), *(line(number, **SLOW) for number in range(6, 10)))
    async with working(house):
        batch = await submit(client, content)
        await eventually(lambda: len(house.store.usage()) == 6)
        asked = await client.batches.cancel(batch.id)
        assert asked.status == "cancelling" and asked.cancelling_at is not None
        done = await ended(client, batch.id)
        again = await client.batches.cancel(batch.id)
        await house.quiet()
    assert done.status == "cancelled" == again.status and done.cancelled_at is not None
    counts = done.request_counts
    assert counts is not None and (counts.total, counts.completed, counts.failed) == (10, 6, 4)
    assert sorted(r["custom_id"] for r in await lines_of(client, done.output_file_id)) == [f"c{n}" for n in range(6)]
    errors = await lines_of(client, done.error_file_id)
    assert sorted(r["custom_id"] for r in errors) == [f"c{n}" for n in range(6, 10)]
    assert {r["error"]["code"] for r in errors} == {"batch_cancelled"} and {r["response"] for r in errors} == {None}
    assert len(house.store.usage()) == 6


async def test_a_batch_that_runs_out_of_time_expires(house: House) -> None:
    client = house.openai("a")
    content = jsonl(*(line(number) for number in range(4)), *(line(number, **SLOW) for number in range(4, 6)))
    async with working(house):
        batch = await submit(client, content, window="2s")
        assert batch.expires_at == batch.created_at + 2
        began_s = time.monotonic()
        done = await ended(client, batch.id)
        assert time.monotonic() - began_s < 5
        with pytest.raises(openai.ConflictError, match="expired"):
            await client.batches.cancel(batch.id)
    assert done.status == "expired" and done.expired_at is not None and done.completed_at is None
    assert sorted(r["custom_id"] for r in await lines_of(client, done.output_file_id)) == [f"c{n}" for n in range(4)]
    errors = await lines_of(client, done.error_file_id)
    assert [(r["custom_id"], r["error"]["code"]) for r in errors] == [("c4", "batch_expired"), ("c5", "batch_expired")]
    await house.quiet()


async def test_nothing_is_lost_while_no_worker_is_there(house: House) -> None:
    client = house.openai("a")
    batch = await submit(client, jsonl(line(1)))
    await client.files.delete(batch.input_file_id)
    waiting = await submit(client, jsonl(line(1)))
    assert (await client.batches.cancel(waiting.id)).status == "cancelling"
    async with working(house):
        done = await ended(client, batch.id)
        cancelled = await ended(client, waiting.id)
    assert done.status == "completed" and len(await lines_of(client, done.output_file_id)) == 1
    assert cancelled.status == "cancelled" and cancelled.output_file_id is None
    assert [r["error"]["code"] for r in await lines_of(client, cancelled.error_file_id)] == ["batch_cancelled"]


async def test_workers_share_and_take_over(house: House) -> None:
    """Two workers; one is stopped while it works. What it had is finished by the other, each line once."""
    client = house.openai("a")
    batches = []
    async with working(house, "w1"):
        async with working(house, "w2"):
            for _ in range(4):
                content = jsonl(*(line(n, max_tokens=4, x_script={"itl_ms": 30}) for n in range(8)))
                batches.append(await submit(client, content))
            await eventually(lambda: len(house.store.usage()) > 0)
        for batch in batches:
            done = await ended(client, batch.id)
            ids = [record["custom_id"] for record in await lines_of(client, done.output_file_id)]
            assert done.status == "completed" and sorted(ids) == [f"c{n}" for n in range(8)]
    assert len(house.store.usage()) == 32
    await house.quiet()


@pytest.mark.parametrize("lives_s", [(0.15, 0.3, 0.6), (0.5, 0.05, 0.4)])
async def test_workers_that_are_killed_leave_every_line_once(house: House, lives_s: tuple[float, ...]) -> None:
    client = house.openai("a")
    content = jsonl(*(line(n, max_tokens=4, x_script={"itl_ms": 20}) for n in range(40)))
    batch = await submit(client, content)
    for number, life_s in enumerate(lives_s):
        async with doomed(house, f"w{number}"):
            await asyncio.sleep(life_s)
        with house.store.engine.begin() as connection:  # the heartbeat of the dead grows stale
            connection.exec_driver_sql("UPDATE batches SET heartbeat_at_s = 0")
    async with working(house, "last"):
        done = await ended(client, batch.id)
    output = await lines_of(client, done.output_file_id)
    assert done.status == "completed" and done.error_file_id is None
    assert sorted(record["custom_id"] for record in output) == sorted(f"c{n}" for n in range(40))
    usage = house.store.usage()
    assert len(usage) == 40 and {row.output_tokens for row in usage} == {4}
    assert done.usage is not None and done.usage.output_tokens == 160
    await house.quiet()


async def test_another_tenants_batch_is_an_unknown_batch(house: House) -> None:
    owner, other = house.openai("a"), house.openai("b")
    batch = await submit(owner, jsonl(line(1)))
    for ask in (other.batches.retrieve, other.batches.cancel):
        with pytest.raises(openai.NotFoundError, match="No batch found"):
            await ask(batch.id)
    assert [b.id async for b in other.batches.list()] == []
    assert (await owner.batches.retrieve(batch.id)).status == "validating"
    async with working(house):
        done = await ended(owner, batch.id)
    assert done.output_file_id is not None
    with pytest.raises(openai.NotFoundError):
        await other.files.content(done.output_file_id)


async def test_lists_are_paged(house: House) -> None:
    client = house.openai("a")
    made = [(await submit(client, jsonl(line(1)))).id for _ in range(5)]
    first = await client.batches.list(limit=2)
    assert [batch.id for batch in first.data] == made[:2:-1] and first.has_more
    assert [batch.id async for batch in client.batches.list(limit=2)] == made[::-1]


@pytest.mark.parametrize(
    ("changes", "status", "param"),
    [
        ({"input_file_id": "file-000"}, 404, "input_file_id"),
        ({"input_file_id": "\0"}, 404, "input_file_id"),
        ({"input_file_id": "file-" + "0" * 32}, 404, "input_file_id"),
        ({"input_file_id": None}, 400, "input_file_id"),
        ({"input_file_id": 7}, 400, "input_file_id"),
        ({"endpoint": "/v1/images"}, 400, "endpoint"),
        ({"completion_window": "soon"}, 400, "completion_window"),
        ({"completion_window": "0s"}, 400, "completion_window"),
        ({"completion_window": "8d"}, 400, "completion_window"),
        ({"completion_window": 24}, 400, "completion_window"),
        ({"metadata": {"a": 1}}, 400, "metadata"),
        ({"metadata": {str(n): "x" for n in range(17)}}, 400, "metadata"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 60}}, 400, "output_expires_after.seconds"),
    ],
)
async def test_bad_requests(house: House, changes: dict[str, Any], status: int, param: str) -> None:
    file = await house.openai("a").files.create(file=("x", b"1"), purpose="batch")
    body = {"input_file_id": file.id, "endpoint": "/v1/chat/completions", "completion_window": "24h"} | changes
    async with house.session("a") as http, http.post("/v1/batches", json=body) as answer:
        error = orjson.loads(await answer.read())["error"]
        assert (answer.status, error["param"]) == (status, param), error
    assert [batch.id async for batch in house.openai("a").batches.list()] == []


@pytest.mark.parametrize("batch_id", ["%00", "batch_%00", "batch_1", "file-" + "0" * 32])
async def test_what_is_no_id_is_unknown_and_not_looked_up(
    house: House, batch_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL refuses texts with a zero, which must not look as if it were away."""
    for name in ("get", "cancel"):
        monkeypatch.setattr(house.gateway._batches._book, name, lambda *_: 1 / 0)
    monkeypatch.setattr(house.gateway._batches._files, "get", lambda *_: 1 / 0)
    async with house.session("a") as http:
        for method, path in (("GET", ""), ("POST", "/cancel")):
            async with http.request(method, URL(f"/v1/batches/{batch_id}{path}", encoded=True)) as answer:
                assert (answer.status, orjson.loads(await answer.read())["error"]["code"]) == (404, "batch_not_found")
        body = {"input_file_id": "\0", "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        async with http.post("/v1/batches", json=body) as answer:
            assert answer.status == 404


async def test_only_files_for_batches(house: House) -> None:
    file = await house.openai("a").files.create(file=("x", b"1"), purpose="user_data")
    with pytest.raises(openai.BadRequestError, match="purpose"):
        await house.openai("a").batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )


async def test_a_tenant_has_so_many_batches(make_house: MakeHouse, tmp_path: Path) -> None:
    house = await make_house(**sections(tmp_path, batches={"max_unfinished": 2}, **TWO))
    for _ in range(2):
        await submit(house.openai("a"), jsonl(line(1)))
    with pytest.raises(openai.RateLimitError, match="unfinished batches"):
        await submit(house.openai("a"), jsonl(line(1)))
    await submit(house.openai("b"), jsonl(line(1)))


async def test_output_files_expire_as_asked(house: House) -> None:
    client = house.openai("a")
    async with working(house):
        policy = {"anchor": "created_at", "seconds": 7200}
        done = await ended(client, (await submit(client, jsonl(line(1)), output_expires_after=policy)).id)
    assert done.output_file_id is not None
    file = await client.files.retrieve(done.output_file_id)
    assert file.expires_at == file.created_at + 7200 and file.filename == f"{done.id}_output.jsonl"


async def test_a_dispatcher_that_dies_delays_a_batch_and_no_more(house: House) -> None:
    client = house.openai("a")
    async with working(house):
        batch = await submit(client, jsonl(*(line(n, x_script={"ttft_ms": 50}) for n in range(30))))
        await eventually(lambda: len(house.store.usage()) > 0)
        await house.restart_dispatcher(away_s=0.3)
        done = await ended(client, batch.id)
    assert done.status == "completed" and len(await lines_of(client, done.output_file_id)) == 30
    assert len(house.store.usage()) == 30


async def test_refusals_are_waited_out(make_house: MakeHouse, tmp_path: Path) -> None:
    """A tenant whose queue holds two: the worker offers more, is refused, and comes back."""
    limits = {"tenants": {"a": {"limits": {"max_queued": 2, "max_concurrent": 1}}}}
    house = await make_house(**sections(tmp_path, **limits))
    client = house.openai("a")
    async with working(house):
        done = await ended(client, (await submit(client, jsonl(*(line(n) for n in range(12))))).id, patience_s=40)
    assert done.status == "completed" and done.error_file_id is None
    assert len(await lines_of(client, done.output_file_id)) == len(house.store.usage()) == 12
