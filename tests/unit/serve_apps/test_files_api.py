"""`/v1/files` through the official client and over plain HTTP: what it answers, and what nobody else sees."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import aiohttp
import openai
import orjson
import pytest
from yarl import URL

from tests.unit.serve_apps.conftest import MakeHouse
from tests.unit.serve_apps.deferred_work import left_in, sections
from tests.unit.serve_apps.harness import House, configuration
from tests.unit.serve_apps.servers import eventually

TWO = {"tenants": {"a": {}, "b": {}}}


@pytest.fixture
async def house(make_house: MakeHouse, tmp_path: Path) -> House:
    return await make_house(replicas=0, **sections(tmp_path, files={"max_bytes": 3 << 20}, **TWO))


async def test_a_file_lives_and_dies(house: House) -> None:
    client = house.openai("a")
    content = bytes(range(256)) * 8000
    before_s = int(time.time())
    file = await client.files.create(file=("my data.bin", content), purpose="user_data")
    assert file.id.startswith("file-") and (file.bytes, file.filename) == (len(content), "my data.bin")
    assert (file.object, file.purpose, file.status, file.expires_at) == ("file", "user_data", "processed", None)
    assert before_s <= file.created_at <= time.time()
    assert await client.files.retrieve(file.id) == file
    assert (await client.files.content(file.id)).content == content
    deleted = await client.files.delete(file.id)
    assert deleted.deleted and deleted.id == file.id
    for ask in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError, match="No such File object"):
            await ask(file.id)


async def test_files_expire(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    client = house.openai("a")
    policy: Any = {"anchor": "created_at", "seconds": 3600}
    short = await client.files.create(file=("x", b"1"), purpose="user_data", expires_after=policy)
    month = await client.files.create(file=("x", b"1"), purpose="batch")
    assert short.expires_at is not None and short.expires_at - short.created_at == 3600
    assert month.expires_at is not None and month.expires_at - month.created_at == 30 * 86400
    now_s = time.time()
    monkeypatch.setattr("serve_apps.gateway.apis.files.time.time", lambda: now_s + 3700)
    with pytest.raises(openai.NotFoundError):
        await client.files.retrieve(short.id)
    assert [file.id async for file in client.files.list()] == [month.id]


async def test_lists_are_paged_even_while_their_files_are_deleted(house: House) -> None:
    client = house.openai("a")
    made = []
    for number in range(5):
        file = await client.files.create(file=(f"{number}", b"x"), purpose="batch" if number % 2 else "user_data")
        made.append(file.id)
        await asyncio.sleep(0.002)
    assert [file.id async for file in client.files.list(limit=2)] == made[::-1]
    assert [file.id async for file in client.files.list(limit=2, order="asc")] == made
    assert [file.id async for file in client.files.list(purpose="batch")] == [made[3], made[1]]
    seen = []
    async for file in client.files.list(limit=2):
        seen.append(file.id)
        await client.files.delete(file.id)
    assert seen == made[::-1]
    empty = await client.files.list()
    assert empty.data == [] and not empty.has_more


async def test_another_tenants_file_is_an_unknown_file(house: House) -> None:
    owner, other = house.openai("a"), house.openai("b")
    mine = await owner.files.create(file=("x", b"secret"), purpose="batch")
    unknown = mine.id[:-4] + ("0000" if not mine.id.endswith("0000") else "1111")
    async with house.session("b") as http:
        for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
            bodies = []
            for file_id in (mine.id, unknown):
                async with http.request(method, f"/v1/files/{file_id}{path}") as answer:
                    bodies.append((answer.status, (await answer.text()).replace(file_id, "ID")))
            assert bodies[0] == bodies[1] and bodies[0][0] == 404
    assert [file.id async for file in other.files.list()] == []
    with pytest.raises(openai.NotFoundError):
        await other.batches.create(input_file_id=mine.id, endpoint="/v1/chat/completions", completion_window="24h")
    assert (await owner.files.content(mine.id)).content == b"secret"


async def test_parts_of_a_file(house: House) -> None:
    file = await house.openai("a").files.create(file=("x", b"0123456789"), purpose="user_data")
    async with house.session("a") as http:
        for asked, status, text, shown in (
            ("bytes=2-4", 206, "234", "bytes 2-4/10"),
            ("bytes=7-", 206, "789", "bytes 7-9/10"),
            ("bytes=-3", 206, "789", "bytes 7-9/10"),
            ("bytes=8-99", 206, "89", "bytes 8-9/10"),
            ("bytes=0-1,4-5", 200, "0123456789", None),
            ("lines=1-2", 200, "0123456789", None),
        ):
            async with http.get(f"/v1/files/{file.id}/content", headers={"Range": asked}) as answer:
                got = answer.status, await answer.text(), answer.headers.get("content-range")
                assert got == (status, text, shown), asked
        for asked in ("bytes=10-", "bytes=-0"):
            async with http.get(f"/v1/files/{file.id}/content", headers={"Range": asked}) as answer:
                error = orjson.loads(await answer.read())["error"]
                assert (answer.status, error["type"]) == (416, "invalid_request_error"), asked


async def post(house: House, form: Any, **headers: str) -> tuple[int, dict[str, Any]]:
    async with house.session("a") as http, http.post("/v1/files", data=form, headers=headers) as answer:
        return answer.status, orjson.loads(await answer.read())["error"]


def form(**fields: Any) -> aiohttp.FormData:
    data = aiohttp.FormData()
    for name, value in fields.items():
        if name == "file":
            data.add_field("file", value, filename="f.jsonl", content_type="application/jsonl")
        else:
            data.add_field(name.replace("__", "[") + ("]" if "__" in name else ""), value)
    data._is_multipart = True
    return data


@pytest.mark.parametrize(
    ("fields", "status", "code", "param"),
    [
        ({"purpose": "batch"}, 400, "missing_required_parameter", "file"),
        ({"file": b"x"}, 400, "missing_required_parameter", "purpose"),
        ({"file": b"x", "purpose": "batch_output"}, 400, "invalid_value", "purpose"),
        ({"file": b"", "purpose": "batch"}, 400, "empty_file", "file"),
        ({"file": b"x" * ((3 << 20) + 1), "purpose": "batch"}, 413, "file_too_large", "file"),
        ({"purpose": "x" * 70_000, "file": b"x"}, 400, "invalid_form", "purpose"),
        (
            {"file": b"x", "purpose": "batch", "expires_after__anchor": "created_at", "expires_after__seconds": "60"},
            400,
            "invalid_value",
            "expires_after.seconds",
        ),
        (
            {"file": b"x", "purpose": "batch", "expires_after__anchor": "now", "expires_after__seconds": "3600"},
            400,
            "invalid_value",
            "expires_after.anchor",
        ),
    ],
)
async def test_bad_uploads(
    house: House, tmp_path: Path, fields: dict[str, Any], status: int, code: str, param: str
) -> None:
    got, error = await post(house, form(**fields))
    assert (got, error["code"], error["param"]) == (status, code, param) and error["message"]
    assert left_in(tmp_path) == [], "nothing of a refused upload is left"
    assert [file.id async for file in house.openai("a").files.list()] == []


async def test_bodies_that_are_no_form(house: House, tmp_path: Path) -> None:
    assert (await post(house, b"{}", **{"Content-Type": "application/json"}))[1]["code"] == "invalid_form"
    kind = {"Content-Type": "multipart/form-data; boundary=xyz"}
    torn = b'--xyz\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nhalf of it'
    assert (await post(house, torn, **kind))[1]["code"] == "invalid_form"
    assert (await post(house, b"nonsense", **kind))[1]["code"] == "invalid_form"
    assert left_in(tmp_path) == []


async def test_a_client_that_leaves_half_way_leaves_nothing(house: House, tmp_path: Path) -> None:
    async def slowly() -> Any:
        yield b'--xyz\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + b"x" * (1 << 20)
        await asyncio.sleep(60)

    async with house.session("a") as http:
        kind = {"Content-Type": "multipart/form-data; boundary=xyz"}
        with pytest.raises(asyncio.TimeoutError):
            async with asyncio.timeout(0.3):
                await http.post("/v1/files", data=slowly(), headers=kind)
    await eventually(lambda: left_in(tmp_path) == [])


async def test_stores_that_are_away(house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is accepted that is not stored: the client hears 503, and its file is not there."""
    client = house.openai("a")

    def away(*_: Any) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(house.gateway._files._files, "create", away)
        with pytest.raises(openai.InternalServerError, match="file store is away") as refused:
            await client.files.create(file=("x", b"1"), purpose="batch")
        assert refused.value.status_code == 503 and refused.value.response.headers["retry-after"] == "1"
    with monkeypatch.context() as patch:
        patch.setattr(house.gateway._files._book, "add", lambda *_: 1 / 0)
        with pytest.raises(openai.InternalServerError):
            await client.files.create(file=("x", b"1"), purpose="batch")
    assert [file.id async for file in client.files.list()] == []
    kept = await client.files.create(file=("x", b"1"), purpose="batch")
    assert (await client.files.content(kept.id)).content == b"1"
    with monkeypatch.context() as patch:
        patch.setattr(house.gateway._files._files, "open", away)
        with pytest.raises(openai.InternalServerError, match="file store is away"):
            await client.files.content(kept.id)


async def test_a_file_that_cannot_be_committed_leaves_nothing(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("cluster.files.store.os.fsync", full)
    with pytest.raises(openai.InternalServerError, match="file store is away"):
        await house.openai("a").files.create(file=("x", b"1"), purpose="batch")
    assert left_in(tmp_path) == []


async def test_a_file_store_that_hangs_stops_nothing_else(
    house: House, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """More uploads hang than there are threads: keys are still looked up, and requests answered."""
    client, released = house.openai("a"), threading.Event()
    create = house.gateway._files._files.create
    # As few as Serve has, and fewer than the uploads.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2))

    def slow(name: str) -> Any:
        assert released.wait(20)
        return create(name)

    monkeypatch.setattr(house.gateway._files._files, "create", slow)
    uploads = [asyncio.create_task(client.files.create(file=("x", b"1"), purpose="batch")) for _ in range(12)]
    try:
        await asyncio.sleep(0.2)
        async with asyncio.timeout(5):
            assert [file.id async for file in house.openai("b").files.list()] == []  # a key nobody has seen yet
    finally:
        released.set()
    assert len({file.id for file in await asyncio.gather(*uploads)}) == 12 == len(left_in(tmp_path))


@pytest.mark.parametrize("file_id", ["%00", "file-%00", "file-" + "0" * 31, "batch_" + "0" * 32, "x" * 5000])
async def test_what_is_no_id_is_unknown_and_not_looked_up(
    house: House, file_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL refuses texts with a zero, which must not look as if it were away."""
    for name in ("get", "delete"):
        monkeypatch.setattr(house.gateway._files._book, name, lambda *_: 1 / 0)
    async with house.session("a") as http:
        for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
            async with http.request(method, URL(f"/v1/files/{file_id}{path}", encoded=True)) as answer:
                assert (answer.status, orjson.loads(await answer.read())["error"]["code"]) == (404, "file_not_found")


async def test_its_threads_end_with_the_gateway(tmp_path: Path) -> None:
    async with House(configuration(tmp_path, **sections(tmp_path, **TWO))).running() as house:
        await house.openai("a").files.create(file=("x", b"1"), purpose="batch")
        threads = set(house.gateway._files._threads._threads)
        assert threads
    await eventually(lambda: not any(thread.is_alive() for thread in threads))


async def test_a_tenant_may_be_full(make_house: MakeHouse, tmp_path: Path) -> None:
    house = await make_house(replicas=0, **sections(tmp_path, files={"max_tenant_bytes": 100}, **TWO))
    client = house.openai("a")
    first = await client.files.create(file=("x", b"x" * 60), purpose="user_data")
    with pytest.raises(openai.APIStatusError, match="more than 100 bytes") as refused:
        await client.files.create(file=("x", b"x" * 60), purpose="user_data")
    assert refused.value.status_code == 413
    await house.openai("b").files.create(file=("x", b"x" * 60), purpose="user_data")
    await client.files.delete(first.id)
    await client.files.create(file=("x", b"x" * 60), purpose="user_data")


async def test_lists_say_what_they_want(house: House) -> None:
    async with house.session("a") as http:
        for query, param in (
            ("limit=0", "limit"),
            ("limit=x", "limit"),
            ("order=up", "order"),
            ("after=../x", "after"),
            ("purpose=%00", "purpose"),
            ("purpose=batches", "purpose"),
        ):
            async with http.get(f"/v1/files?{query}") as answer:
                assert (answer.status, orjson.loads(await answer.read())["error"]["param"]) == (400, param)
        async with http.put("/v1/files") as answer:
            assert answer.status == 405
        async with http.get("/v1/files/x/y") as answer:
            assert answer.status == 404
    async with aiohttp.ClientSession(house.url) as nobody, nobody.get("/v1/files") as answer:
        assert answer.status == 401
