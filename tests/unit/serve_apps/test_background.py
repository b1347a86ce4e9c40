"""Background requests over HTTP: accepted means stored, asked for by id, cancelled, deleted, nobody else's."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import openai
import orjson
import pytest
from openai.types.chat import ChatCompletion
from openai.types.responses import Response
from sqlalchemy.exc import OperationalError
from yarl import URL

from cluster.scheduling import Refusal
from cluster.state import UsageRecord
from cluster.state.deferred import DeferredStore
from cluster.vocabulary import RequestClass
from serve_apps.gateway.apis import background
from serve_apps.gateway.auth import Caller
from serve_apps.gateway.engine_client import EngineClient
from serve_apps.gateway.headless import Headless
from tests.unit.serve_apps.conftest import MakeHouse
from tests.unit.serve_apps.deferred_work import sections, working
from tests.unit.serve_apps.harness import CHAT, chat
from tests.unit.serve_apps.porch import Porch, porch
from tests.unit.serve_apps.servers import Engine, eventually

RESPONSES = "/v1/responses"
BODIES = {CHAT: chat(background=True), RESPONSES: {"model": "m", "input": "hi", "background": True}}


async def call(gateway: Porch, method: str, path: str, body: Any = None, tenant: str = "a") -> tuple[int, Any]:
    async with gateway.http(tenant) as http, http.request(method, path, json=body) as answer:
        return answer.status, orjson.loads(await answer.read())


async def work(gateway: Porch) -> None:
    """Run what waits to its end, as the worker does."""
    rows = DeferredStore(gateway.store)
    for row in rows.claim_background("test", 1e10, 1e9, 100, 100):
        caller = Caller(row.tenant, row.key_id)
        records: list[UsageRecord] = []
        async with EngineClient(5, 60) as client:
            outcome = await Headless(client, gateway.config, records.append).run(
                row.path,
                row.body,
                caller,
                gateway.leases,  # type: ignore[arg-type]
                request_class=RequestClass(row.request_class),
                request_id=row.id,
                deadline_at_s=None,
            )
        status = "completed" if outcome.status == 200 else "failed"
        assert rows.finish_background(row.id, row.fence, status, outcome.status, outcome.body, records, 2e10)


async def test_a_response_by_the_official_client(tmp_path: Path, engines: list[Engine]) -> None:
    async with porch(tmp_path, engines[0].url) as gateway:
        api = gateway.openai("a")
        asked = {"model": "m", "input": "hi", "instructions": "be brief", "metadata": {"k": "v"}}
        begun = await api.responses.create(**asked, background=True, max_output_tokens=50)  # type: ignore[call-overload]
        assert isinstance(begun, Response) and begun.id.startswith("resp_")
        assert (begun.status, begun.background, begun.output, begun.usage) == ("queued", True, [], None)
        assert (begun.instructions, begun.metadata, begun.max_output_tokens) == ("be brief", {"k": "v"}, 50)
        assert (await api.responses.retrieve(begun.id)).status == "queued"
        await work(gateway)
        done = await api.responses.retrieve(begun.id)
        assert (done.id, done.status, done.background) == (begun.id, "completed", True)
        assert done.output_text.startswith(" w0 w1") and done.usage is not None and done.service_tier == "default"
        assert (await api.responses.cancel(begun.id)).status == "completed"  # too late: it stays as it ended
        [row] = gateway.store.usage()
        assert (row.request_id, row.output_tokens, row.tenant) == (begun.id, done.usage.output_tokens, "a")
        await api.responses.delete(begun.id)
        with pytest.raises(openai.NotFoundError):
            await api.responses.retrieve(begun.id)


async def test_a_chat_completion_by_the_official_client(tmp_path: Path, engines: list[Engine]) -> None:
    async with porch(tmp_path, engines[0].url) as gateway:
        api = gateway.openai("a")
        raw = await api.chat.completions.with_raw_response.create(
            model="m", messages=chat()["messages"], max_tokens=3, extra_body={"background": True}
        )
        note = orjson.loads(raw.text)
        assert raw.status_code == 202 and note.keys() >= {"id", "object", "status", "created", "model"}
        assert (note["object"], note["status"]) == ("chat.completion.background", "queued")
        path = f"/chat/completions/{note['id']}"
        assert (await api.get(path, cast_to=ChatCompletion)).id == note["id"]
        await work(gateway)
        done = await api.get(path, cast_to=ChatCompletion)
        assert (done.id, done.object, done.choices[0].message.content) == (note["id"], "chat.completion", " w0 w1 w2")
        assert (await api.chat.completions.retrieve(note["id"])).choices == done.choices
        assert (await api.chat.completions.delete(note["id"])).deleted
        with pytest.raises(openai.NotFoundError):
            await api.chat.completions.retrieve(note["id"])


async def test_cut_short_is_the_engines_word(tmp_path: Path, engines: list[Engine]) -> None:
    async with porch(tmp_path, engines[0].url) as gateway:
        api = gateway.openai("a")
        begun = await api.responses.create(model="m", input="hi", background=True, max_output_tokens=2)
        await work(gateway)
        done = await api.responses.retrieve(begun.id)
    assert done.status == "incomplete" and done.incomplete_details is not None
    assert done.incomplete_details.reason == "max_output_tokens" and done.output_text == " w0 w1"


@pytest.mark.parametrize("path", BODIES)
async def test_cancelling(tmp_path: Path, engines: list[Engine], path: str) -> None:
    async with porch(tmp_path, engines[0].url) as gateway:
        _, begun = await call(gateway, "POST", path, BODIES[path])
        for _ in range(2):
            status, ended = await call(gateway, "POST", f"{path}/{begun['id']}/cancel")
            assert (status, ended["status"], ended["id"]) == (200, "cancelled", begun["id"])
        await work(gateway)
        assert (await call(gateway, "GET", f"{path}/{begun['id']}"))[1]["status"] == "cancelled"
    assert gateway.leases.tickets == []


@pytest.mark.parametrize("path", BODIES)
async def test_failing(tmp_path: Path, path: str) -> None:
    async with porch(tmp_path, refusal=Refusal("t", 429, "insufficient_quota", "the budget is spent")) as gateway:
        _, begun = await call(gateway, "POST", path, BODIES[path])
        await work(gateway)
        status, ended = await call(gateway, "GET", f"{path}/{begun['id']}")
    assert (status, ended["status"]) == (200, "failed")
    assert ended["error"] == {"code": "insufficient_quota", "message": "the budget is spent"}


@pytest.mark.parametrize("path", BODIES)
async def test_ids_of_others_are_unknown_ids(tmp_path: Path, path: str) -> None:
    async with porch(tmp_path) as gateway:
        _, begun = await call(gateway, "POST", path, BODIES[path])
        other = CHAT if path == RESPONSES else RESPONSES
        unknown = begun["id"][:-1] + ("0" if begun["id"][-1] != "0" else "1")
        for method, suffix in (("GET", ""), ("DELETE", ""), ("POST", "/cancel")):
            answers = [
                await call(gateway, method, f"{path}/{begun['id']}{suffix}", tenant="b"),
                await call(gateway, method, f"{path}/{unknown}{suffix}", tenant="a"),
                await call(gateway, method, f"{other}/{begun['id']}{suffix}", tenant="a"),
            ]
            assert [status for status, _ in answers] == [404] * 3
            texts = {orjson.dumps(e).replace(unknown.encode(), begun["id"].encode()) for _, e in answers[:2]}
            assert len(texts) == 1  # nothing tells an id of another tenant from one that never was
        assert (await call(gateway, "GET", f"{path}/{begun['id']}"))[1]["status"] == "queued"


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"stream": True}, "stream"),
        ({"background": "yes"}, "background"),
        ({"background": 1}, "background"),
        ({"model": None}, "model"),
        ({"service_tier": "gold"}, "service_tier"),
    ],
)
async def test_what_is_not_accepted(tmp_path: Path, path: str, more: dict[str, Any], param: str) -> None:
    async with porch(tmp_path) as gateway:
        status, error = await call(gateway, "POST", path, {**BODIES[path], **more})
        assert (status, error["error"]["param"]) == (400, param)
        assert not list(DeferredStore(gateway.store).claim_background("test", 1e10, 1e9, 100, 100))


async def test_a_tenant_has_so_many_of_them(tmp_path: Path) -> None:
    async with porch(tmp_path, batches={"max_background": 2}) as gateway:
        begun = [(await call(gateway, "POST", path, BODIES[path]))[1] for path in (CHAT, RESPONSES)]
        with pytest.raises(openai.RateLimitError, match="2 unfinished background requests") as refused:
            await gateway.openai("a").responses.create(model="m", input="x", background=True)
        assert refused.value.code == "too_many_background_requests" and refused.value.response.headers["retry-after"]
        assert (await call(gateway, "POST", CHAT, BODIES[CHAT], tenant="b"))[0] == 202
        await call(gateway, "POST", f"{CHAT}/{begun[0]['id']}/cancel")
        assert (await call(gateway, "POST", CHAT, BODIES[CHAT]))[0] == 202


@pytest.mark.parametrize("path", BODIES)
async def test_large_ones_are_for_batches(tmp_path: Path, path: str) -> None:
    async with porch(tmp_path, batches={"max_background_bytes": 500}) as gateway:
        status, error = await call(gateway, "POST", path, {**BODIES[path], "user": "x" * 500})
        assert (status, error["error"]["code"]) == (413, "request_too_large")
        assert (await call(gateway, "POST", path, BODIES[path]))[0] in (200, 202)


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("id", ["%00", "resp_%00", "resp_1", "file-" + "0" * 32])
async def test_what_is_no_id_is_unknown_and_not_looked_up(
    tmp_path: Path, path: str, id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with porch(tmp_path) as gateway:
        for name in ("get_background", "cancel_background", "delete_background"):
            monkeypatch.setattr(gateway.gateway._background._rows, name, lambda *_: 1 / 0)
        for method, suffix in (("GET", ""), ("DELETE", ""), ("POST", "/cancel")):
            url = URL(f"{path}/{id}{suffix}", encoded=True)
            async with gateway.http("a") as http, http.request(method, url) as answer:
                assert answer.status == 404


async def test_other_paths_have_no_background(tmp_path: Path) -> None:
    async with porch(tmp_path) as gateway:
        status, error = await call(gateway, "POST", "/v1/embeddings", {"model": "m", "input": "x", "background": True})
        assert (status, error["error"]["param"]) == (400, "background")
        async with gateway.http("a") as http:
            headers = {"x-deadline-ms": "100"}
            async with http.post(CHAT, json=BODIES[CHAT], headers=headers) as answer:
                assert answer.status == 400 and "x-deadline-ms" in await answer.text()


async def test_not_background_is_not_stored(tmp_path: Path, engines: list[Engine]) -> None:
    async with porch(tmp_path, engines[0].url) as gateway:
        status, answer = await call(gateway, "POST", CHAT, chat(background=False))
        assert (status, answer["object"]) == (200, "chat.completion")
        assert (await call(gateway, "GET", f"{CHAT}/{answer['id']}"))[0] == 404


@pytest.mark.parametrize(
    ("method", "suffix", "status"), [("PUT", "", 405), ("GET", "/cancel", 405), ("GET", "?stream=true", 400)]
)
async def test_methods(tmp_path: Path, method: str, suffix: str, status: int) -> None:
    async with porch(tmp_path) as gateway:
        _, begun = await call(gateway, "POST", RESPONSES, BODIES[RESPONSES])
        assert (await call(gateway, method, f"{RESPONSES}/{begun['id']}{suffix}"))[0] == status
        assert (await call(gateway, "GET", f"{RESPONSES}/{begun['id']}/input_items"))[0] == 404


async def test_a_key_is_needed(tmp_path: Path) -> None:
    async with porch(tmp_path) as gateway, gateway.http(key="sk-wrong") as http:
        for method, path in (("GET", f"{CHAT}/x"), ("DELETE", f"{RESPONSES}/x"), ("POST", f"{RESPONSES}/x/cancel")):
            async with http.request(method, path) as answer:
                assert answer.status == 401


async def test_no_success_before_the_row_is_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*arguments: Any) -> None:
        raise OperationalError("INSERT", {}, Exception("the store is away"))

    async with porch(tmp_path) as gateway:
        gateway.key("a")
        monkeypatch.setattr(gateway.gateway._background._rows, "create_background", away)
        with pytest.raises(openai.InternalServerError) as caught:
            await gateway.openai("a").responses.create(model="m", input="x", background=True)
        assert caught.value.status_code == 503 and caught.value.code == "store_unavailable"


async def test_what_cannot_be_echoed_is_not_accepted(tmp_path: Path) -> None:
    deep: Any = []
    for _ in range(300):
        deep = [deep]
    async with porch(tmp_path) as gateway:
        gateway.key("a")
        body = {"model": "m", "input": "x", "background": True, "tools": deep}
        status, said = await call(gateway, "POST", RESPONSES, body=body)
        assert (status, said["error"]["code"]) == (400, "invalid_json")
        assert not list(DeferredStore(gateway.store).claim_background("test", 1e10, 1e9, 100, 100))


async def test_the_answer_waits_for_the_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with porch(tmp_path) as gateway:
        rows = gateway.gateway._background._rows
        committed: list[str] = []
        create = rows.create_background

        def slow(*arguments: Any) -> None:
            asyncio.run(asyncio.sleep(0.3))
            create(*arguments)
            committed.append(arguments[0])

        monkeypatch.setattr(rows, "create_background", slow)
        begun = await gateway.openai("a").responses.create(model="m", input="x", background=True)
        assert committed == [begun.id]


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("/v1/responses/a", ("/v1/responses", "a", "")),
        ("/v1/chat/completions/a/cancel", (CHAT, "a", "cancel")),
        ("/v1/responses/", None),
        ("/v1/responses/a/b", None),
        ("/v1/responses/a/cancel/c", None),
        ("/v1/response/a", None),
    ],
)
def test_places(path: str, place: Any) -> None:
    assert background.place_of(path) == place


async def test_the_whole_way_with_the_real_worker(make_house: MakeHouse, tmp_path: Path) -> None:
    house = await make_house(**sections(tmp_path), tenants={"a": {}, "b": {}})
    async with working(house):
        api = house.openai("a")
        response = await api.responses.create(model="m", input="hi", background=True, service_tier="flex")
        chats = [
            await api.chat.completions.create(
                model="m", messages=chat()["messages"], max_tokens=2, extra_body={"background": True}
            )
            for _ in range(5)
        ]

        async def ended() -> bool:
            objects = [(await api.chat.completions.retrieve(c.id)).object for c in chats]
            return (await api.responses.retrieve(response.id)).status == "completed" and set(objects) == {
                "chat.completion"
            }

        await eventually(ended)
        assert (await api.responses.retrieve(response.id)).service_tier == "flex"
        with pytest.raises(openai.NotFoundError):
            await house.openai("b").responses.retrieve(response.id)
        running = await api.responses.create(
            model="m", input="hi", background=True, extra_body={"x_script": {"hang_after_tokens": 1}}
        )
        await eventually(lambda: len(house.dispatcher()._queue.leases()) == 1)
        assert (await api.responses.cancel(running.id)).status == "cancelled"
        await eventually(lambda: len(house.dispatcher()._queue.leases()) == 0)
        assert (await api.responses.retrieve(running.id)).status == "cancelled"
    rows = await house.ledger(6)
    assert {r.request_id for r in rows} == {response.id, *(c.id for c in chats)} and len(rows) == 6
    await house.quiet()
