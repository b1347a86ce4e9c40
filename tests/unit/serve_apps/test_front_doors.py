"""The engines' calls that write no text: same keys, queue and bill, each engine at its own path."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import orjson
import pytest

from cluster.scheduling import TokenUsage
from serve_apps.gateway.doors import DOORS
from serve_apps.gateway.http import header, headers_of
from tests.unit.serve_apps.conftest import MakeHouse
from tests.unit.serve_apps.odd_engine import OddEngine
from tests.unit.serve_apps.porch import Porch, porch
from tests.unit.serve_apps.servers import Engine, eventually, served
from tests.unit.serve_apps.test_queueing import free, occupy, waiting_now

TEXT = "a text of some length " * 4
TOKENS = len(TEXT) // 4
CALLS = [
    ("/v1/embeddings", {"input": [TEXT, TEXT]}, 2 * TOKENS, "data"),
    ("/v1/rerank", {"query": "", "documents": [TEXT] * 3, "top_n": 1}, 3 * TOKENS, "results"),
    ("/rerank", {"query": "", "documents": [TEXT]}, TOKENS, "results"),
    ("/v2/rerank", {"query": "", "documents": [TEXT]}, TOKENS, "results"),
    ("/v1/score", {"text_1": TEXT, "text_2": [""] * 2}, 2 * TOKENS, "data"),
    ("/score", {"text_1": TEXT, "text_2": ""}, TOKENS, "data"),
    ("/v1/classify", {"input": TEXT}, TOKENS, "data"),
    ("/classify", {"input": TEXT}, TOKENS, "data"),
    ("/pooling", {"input": TEXT}, TOKENS, "data"),
    ("/tokenize", {"prompt": TEXT}, 0, "tokens"),
    ("/v1/tokenize", {"messages": [{"role": "user", "content": TEXT}]}, 0, "tokens"),
    ("/detokenize", {"tokens": [1, 2, 3]}, 0, "prompt"),
    ("/v1/detokenize", {"tokens": [1, 2, 3]}, 0, "prompt"),
]
PATHS = [path for path, *_ in CALLS]


async def post(gateway: Porch, path: str, body: Any, **headers: str) -> tuple[int, Any]:
    async with gateway.http() as http, http.post(path, json=body, headers=headers) as answer:
        return answer.status, orjson.loads(await answer.read())


@pytest.mark.parametrize(("path", "body", "tokens", "field"), CALLS)
async def test_a_call(
    tmp_path: Path, engines: list[Engine], path: str, body: dict[str, Any], tokens: int, field: str
) -> None:
    async with porch(tmp_path, engines[0].url) as gateway:
        status, answer = await post(gateway, path, {"model": "m", "service_tier": "flex", **body})
        assert status == 200 and answer[field] and "service_tier" not in answer
        [row] = await gateway.records(1)
    assert (row.tenant, row.request_class, row.status, row.deployment) == ("default", "semi_online", 200, "d")
    assert (row.prompt_tokens, row.cached_tokens, row.output_tokens) == (tokens, 0, 0)
    assert gateway.leases.released == [TokenUsage(tokens)]
    [ticket] = gateway.leases.tickets
    assert ticket.max_output_tokens == 0 and ticket.prompt_tokens > 0


@pytest.mark.parametrize("path", PATHS)
async def test_nobody_gets_in_without_a_key_or_with_a_body_that_cannot_be_used(tmp_path: Path, path: str) -> None:
    async with porch(tmp_path) as gateway:
        assert (await post(gateway, path, {"model": "m"}, Authorization="Bearer wrong"))[0] == 401
        assert (await post(gateway, path, {}))[1]["error"]["code"] == "missing_model"
        assert (await post(gateway, path, {"model": "other"}))[1]["error"]["code"] == "model_not_found"
        assert (await post(gateway, path, {"model": "m", "background": True}))[1]["error"]["param"] == "background"
        async with gateway.http() as http, http.get(path) as answer:
            assert answer.status == 405
    assert gateway.leases.tickets == []


OWN_PATHS = {
    "vllm": {"/v1/rerank": "/rerank", "/v2/rerank": "/rerank", "/v1/score": "/score", "/v1/classify": "/classify"},
    "sglang": {"/rerank": "/v1/rerank", "/v2/rerank": "/v1/rerank", "/score": "/v1/score", "/classify": "/v1/classify"},
}
OWN_PATHS["vllm"] |= {"/v1/tokenize": "/tokenize", "/v1/detokenize": "/detokenize"}
OWN_PATHS["sglang"] |= {"/tokenize": "/v1/tokenize", "/detokenize": "/v1/detokenize"}


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
async def test_each_engine_is_asked_at_its_own_path(tmp_path: Path, kind: str) -> None:
    odd = OddEngine(parts=[b"{}"])
    asked = [path for path in DOORS if not (kind == "sglang" and path == "/pooling")]
    async with served(odd) as url, porch(tmp_path, url, deployment={"engine": {"kind": kind}}) as gateway:
        for path in asked:
            assert (await post(gateway, path, {"model": "m"}))[0] == 200
    assert odd.paths == [OWN_PATHS[kind].get(path, path) for path in asked]


async def test_what_the_engine_has_not_got_is_said_before_anything_is_asked(tmp_path: Path) -> None:
    async with porch(tmp_path, deployment={"engine": {"kind": "sglang"}}) as gateway:
        status, answer = await post(gateway, "/pooling", {"model": "m", "input": "x"})
    assert status == 404 and gateway.leases.tickets == []
    assert answer["error"]["code"] == "unsupported_by_engine"
    assert "/pooling" in answer["error"]["message"] and "sglang" in answer["error"]["message"]


@pytest.mark.parametrize(
    ("status", "page"),
    [
        (404, b'{"detail":"Not Found"}'),
        (404, b'{"error":{"message":"Not Found","type":"Not Found","param":null,"code":404}}'),
        (405, b'{"detail":"Method Not Allowed"}'),
        (501, b'{"error":{"message":"The model does not support Score API","type":"NotImplementedError","code":501}}'),
    ],
)
async def test_what_the_engine_has_not_got_for_this_model(tmp_path: Path, status: int, page: bytes) -> None:
    async with served(OddEngine(status=status, parts=[page])) as url, porch(tmp_path, url) as gateway:
        got, answer = await post(gateway, "/score", {"model": "m"})
    assert (got, answer["error"]["code"]) == (404, "unsupported_by_engine")
    assert "/v1/score" in answer["error"]["message"] and gateway.leases.released == [None]
    assert ("does not support" in answer["error"]["message"]) is (status == 501)


@pytest.mark.parametrize(
    ("answer", "top_n", "tokens"),
    [
        ([{"score": 0.9, "index": 0, "meta_info": {"prompt_tokens": 7}}, {"score": 0.1, "index": 1}], None, 14),
        ([{"score": 0.9, "index": 0, "meta_info": {"prompt_tokens": 7}}], 1, 14),
        ([{"meta_info": {"prompt_tokens": 7}}, {"meta_info": {"prompt_tokens": 9}}], None, 16),
        ([{"score": 0.9, "index": 0}], 1, None),
        ([3, "x"], None, None),
    ],
)
async def test_a_list_of_ranks_stays_as_it_is(tmp_path: Path, answer: Any, top_n: Any, tokens: int | None) -> None:
    """SGLang's reranking answers no object."""
    raw = orjson.dumps(answer)
    body = orjson.dumps({"model": "m", "query": "q", "documents": ["x" * 80, "y" * 80], "top_n": top_n})
    async with (
        served(OddEngine(parts=[raw])) as url,
        porch(tmp_path, url, deployment={"engine": {"kind": "sglang"}}) as gateway,
        gateway.http() as http,
        http.post("/v1/rerank", data=body) as got,
    ):
        assert await got.read() == raw
        [row] = await gateway.records(1)
    assert row.prompt_tokens == (tokens or len(body) // 4)


async def test_vectors_as_bytes_stay_as_they_are(tmp_path: Path) -> None:
    raw = b'\x00{"a":1}\xff{'
    odd = OddEngine(parts=[raw], content_type=b"application/octet-stream")
    async with served(odd) as url, porch(tmp_path, url) as gateway, gateway.http() as http:
        for path in ("/pooling", "/v1/embeddings"):
            async with http.post(path, json={"model": "m", "encoding_format": "bytes"}) as got:
                assert await got.read() == raw and got.content_type == "application/octet-stream"
        assert all(row.prompt_tokens > 0 for row in await gateway.records(2))


async def test_they_count_as_requests_and_not_as_tokens(make_house: MakeHouse) -> None:
    limits = {"requests_per_minute": 2, "tokens_per_minute": 5000}
    house = await make_house(tenants={"a": {"limits": limits}})
    await eventually(lambda: "a" in house.dispatcher()._feed._known)
    body = {"model": "m", "prompt": "x" * 2000}
    async with house.session("a") as http:
        for left in (1, 0):
            async with http.post("/tokenize", json=body) as answer:
                assert answer.status == 200 and len(orjson.loads(await answer.read())["tokens"]) == 500
                assert answer.headers["x-ratelimit-remaining-requests"] == str(left)
        async with http.post("/tokenize", json=body) as answer:
            assert answer.status == 429 and 0 < int(answer.headers["retry-after"]) <= 60
            assert orjson.loads(await answer.read())["error"]["type"] == "rate_limit_error"
    rows = await house.ledger(2)
    assert [(row.prompt_tokens, row.output_tokens, row.status) for row in rows] == [(0, 0, 200)] * 2
    await house.quiet()
    predictor = house.dispatcher()._queue._desk._predictor
    assert not predictor._seen, "what writes nothing says nothing about the length of answers"


async def test_they_wait_in_the_same_queue(make_house: MakeHouse) -> None:
    house = await make_house(max_running=1)
    blocker = await occupy(house)
    async with house.session() as http:
        asked = asyncio.create_task(http.post("/tokenize", json={"model": "m", "prompt": "x"}))
        await eventually(lambda: waiting_now(house) == 1)
        assert not asked.done()
        await free(blocker)
        async with await asked as answer:
            assert answer.status == 200
    await house.quiet()


async def test_counting_a_conversations_tokens_does_not_move_its_session(tmp_path: Path, engines: list[Engine]) -> None:
    conversation = {"model": "m", "messages": [{"role": "user", "content": TEXT}], "user": "u"}
    async with porch(tmp_path, engines[0].url) as gateway:
        for path in ("/v1/chat/completions", "/tokenize"):
            assert (await post(gateway, path, conversation))[0] == 200
    [written, counted] = gateway.leases.tickets
    assert written.session is not None and counted.session is None


def test_of_headers_with_one_name_the_first_counts() -> None:
    scope = {"headers": [(b"authorization", b"Bearer a"), (b"x", b"y"), (b"authorization", b"Bearer b")]}
    assert headers_of(scope) == {b"authorization": b"Bearer a", b"x": b"y"}
    assert header(scope, b"authorization") == b"Bearer a"
