"""The engines' other calls on real engines: `default` is SGLang here, `flex` vLLM. Raw HTTP, as any client could."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.support.stack import Stack

pytestmark = [pytest.mark.engine, pytest.mark.live, pytest.mark.timeout(600)]
MODEL = "smollm2-135m"
PATIENCE_S = 400
"""vLLM may have to start first."""
FRANCE = [{"role": "user", "content": "What is the capital of France?"}]
TIERS = ("default", "flex")


def client(stack: Stack, tenant: str) -> httpx.Client:
    """With the key as Anthropic's clients send it."""
    headers = {"x-api-key": stack.key(tenant), "anthropic-version": "2023-06-01"}
    return httpx.Client(base_url=stack.base_url, headers=headers, timeout=PATIENCE_S)


def asked(tier: str, **fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "max_tokens": 16, "messages": FRANCE, "temperature": 0, "service_tier": tier, **fields}


def assert_billed(stack: Stack, tenant: str, wanted: list[tuple[int, int]]) -> None:
    """(prompt, output) tokens of all that the tenant has sent, in any order."""

    def billed() -> list[tuple[int, int]]:
        return sorted((r.prompt_tokens, r.output_tokens) for r in stack.store.usage() if r.tenant == tenant)

    stack.wait("the ledger", lambda: len(billed()) == len(wanted), 15)
    assert billed() == sorted(wanted)


def prompt_of(usage: dict[str, int]) -> int:
    return usage["input_tokens"] + usage.get("cache_read_input_tokens", 0)


@pytest.mark.parametrize("tier", TIERS)
def test_messages(real_stack: Stack, tier: str) -> None:
    tenant = f"messages-{tier}"
    with client(real_stack, tenant) as http:
        answer = http.post("/v1/messages", json=asked(tier, system="Answer in one sentence."))
        assert answer.status_code == 200, answer.text
        message = answer.json()
        assert (message["type"], message["role"]) == ("message", "assistant")
        assert message["stop_reason"] in ("end_turn", "max_tokens")
        assert "Paris" in "".join(block["text"] for block in message["content"])
        assert answer.headers["x-tribes-class"] == ("online" if tier == "default" else "semi_online")
        text, usage = streamed(http, asked(tier, system="Answer in one sentence."))
        assert text == message["content"][0]["text"]
    told = message["usage"]
    assert (prompt_of(usage), usage["output_tokens"]) == (prompt_of(told), told["output_tokens"])
    assert_billed(real_stack, tenant, [(prompt_of(told), told["output_tokens"])] * 2)


def streamed(http: httpx.Client, body: dict[str, Any]) -> tuple[str, dict[str, int]]:
    """The text of a stream, and its usage, of which engines tell a part in the first and a part in the last event."""
    text, usage, kinds = "", {}, []
    with http.stream("POST", "/v1/messages", json=body | {"stream": True}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            if not line.startswith("data: "):
                continue
            event = json.loads(line.removeprefix("data: "))
            kinds.append(event["type"])
            text += event.get("delta", {}).get("text") or ""
            told = event.get("message", event).get("usage") or {}
            usage |= {name: value for name, value in told.items() if value is not None}
    assert kinds[0] == "message_start" and kinds[-1] == "message_stop" and "message_delta" in kinds
    return text, usage


@pytest.mark.parametrize("tier", TIERS)
def test_errors_of_messages(real_stack: Stack, tier: str) -> None:
    with client(real_stack, "default") as http:
        for body, text in (
            (asked(tier, max_tokens=-1), "max_tokens"),
            (asked(tier, messages=[{"role": "user", "content": "word " * 5000}]), "context"),
        ):
            answer = http.post("/v1/messages", json=body)
            assert answer.status_code == 400 and answer.json()["type"] == "error", answer.text
            assert answer.json()["error"]["type"] == "invalid_request_error"
            assert text in answer.json()["error"]["message"]


@pytest.mark.parametrize("tier", TIERS)
def test_tokens_are_counted_as_they_are_billed(real_stack: Stack, tier: str) -> None:
    tenant = f"tokens-{tier}"
    with client(real_stack, tenant) as http:
        chat = {"model": MODEL, "messages": FRANCE, "service_tier": tier}
        prompt = {"model": MODEL, "prompt": "The capital of France", "service_tier": tier}
        tokens = {path: http.post(path, json=chat).json()["count"] for path in ("/tokenize", "/v1/tokenize")}
        counted = http.post("/v1/messages/count_tokens", json=chat).json()["input_tokens"]
        answered = http.post("/v1/chat/completions", json=chat | {"max_tokens": 1}).json()["usage"]["prompt_tokens"]
        assert {*tokens.values(), counted} == {answered}
        cut = http.post("/tokenize", json=prompt).json()["tokens"]
        text = http.post("/detokenize", json={"model": MODEL, "tokens": cut, "service_tier": tier}).json()
        assert prompt["prompt"] in (text.get("prompt") or text.get("text"))
    assert_billed(real_stack, tenant, [(answered, 1), *[(0, 0)] * 5])


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize(
    ("path", "body"),
    [("/v1/rerank", {"query": "q", "documents": ["a", "b"]}), ("/v1/classify", {"input": "x"})],
)
def test_what_this_model_cannot_do_is_an_error_and_not_billed(
    real_stack: Stack, tier: str, path: str, body: dict[str, Any]
) -> None:
    with client(real_stack, "default") as http:
        answer = http.post(path, json={"model": MODEL, "service_tier": tier, **body})
        assert 400 <= answer.status_code < 500, answer.text
        assert answer.json()["error"]["message"]
        unknown = http.post("/pooling", json={"model": MODEL, "input": "x", "service_tier": tier})
        assert unknown.status_code == 404 and unknown.json()["error"]["code"] == "unsupported_by_engine"
