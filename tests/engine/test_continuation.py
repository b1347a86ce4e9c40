"""Greedy answers of the real engines, cut and continued, are the undisturbed ones: text, end, and usage.

Online is SGLang, flex is vLLM. What the gateway would send to the next replica goes through it as a request of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import orjson
import pytest

from serve_apps.gateway.courses.continuation import COMPLETIONS_PATH, continuation
from serve_apps.gateway.courses.joined import DivergedError, JoinedStream
from serve_apps.gateway.courses.sent import END, SentStream
from serve_apps.gateway.courses.tokens import tokens_of
from serve_apps.gateway.doors import CHAT_PATH
from tests.support.stack import Stack

pytestmark = [pytest.mark.engine, pytest.mark.live, pytest.mark.timeout(900)]
MODEL = "smollm2-135m"
TIERS = {"sglang": "default", "vllm": "flex"}
CUTS = (3, 13)
"""Events after which the first engine dies."""
NEAR_TIE_NATS = 0.3
"""About two steps of a 16-bit logit. The arithmetic of a prefill and that of single steps differ by as much, so between
two tokens that are as close greedy decoding takes either: not every engine repeats even itself there.
"""
LIST = [{"role": "user", "content": "List three animals, each on a line of its own, and say one thing about each."}]
CODE = [{"role": "user", "content": "Write a Python function that adds two numbers. Show only the code."}]
OWN = [*LIST, {"role": "assistant", "content": "Of course:\n\n1."}]
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "a list": (CHAT_PATH, {"messages": LIST, "max_tokens": 24}),
    "code": (CHAT_PATH, {"messages": CODE, "max_completion_tokens": 24}),
    "stop": (CHAT_PATH, {"messages": LIST, "max_tokens": 24, "stop": ["3.", "\n\n\n"]}),
    "begun": (
        CHAT_PATH,
        {"messages": OWN, "max_tokens": 24, "continue_final_message": True, "add_generation_prompt": False},
    ),
    "probabilities": (CHAT_PATH, {"messages": LIST, "max_tokens": 24, "logprobs": True, "top_logprobs": 2}),
    "completion": (COMPLETIONS_PATH, {"prompt": "1, 2, 3, 4,", "max_tokens": 24}),
    "in a word": (COMPLETIONS_PATH, {"prompt": "The capital of France is Par", "max_tokens": 24}),
}


@pytest.fixture(scope="module")
def http(real_stack: Stack) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=real_stack.base_url, headers=real_stack.headers(), timeout=400) as client:
        yield client


def blocks(http: httpx.Client, path: str, body: bytes) -> list[bytes]:
    """The events of a stream."""
    answer = http.post(path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 200, answer.text
    return [event + END for event in answer.content.split(END) if event]


def read(events: list[bytes]) -> dict[str, Any]:
    assert events[-1].startswith(b"data: [DONE]")
    parsed = [orjson.loads(event.removeprefix(b"data: ")) for event in events[:-1]]
    choices = [choice for event in parsed for choice in event["choices"]]
    usage = next(event["usage"] for event in parsed if event.get("usage"))
    scored = [(c.get("logprobs") or {}).get("content") or [] for c in choices]
    return {
        "text": "".join(c.get("text") or c.get("delta", {}).get("content") or "" for c in choices),
        "reason": [c["finish_reason"] for c in choices if c["finish_reason"]],
        "prompt_tokens": usage["prompt_tokens"],
        "completion_tokens": usage["completion_tokens"],
        "scored": [entry["token"] for content in scored for entry in content],
    }


def resumed(http: httpx.Client, path: str, raw: bytes, sent: SentStream, *, exact: bool) -> list[bytes]:
    def ask(text: str, special: bool) -> list[int]:
        answer = http.post("/tokenize", json={"model": MODEL, "prompt": text, "add_special_tokens": special})
        assert answer.status_code == 200, answer.text
        return list(answer.json()["tokens"])

    async def tokenize(text: str, special: bool) -> list[int]:
        return await asyncio.to_thread(ask, text, special)

    story = sent.story()
    plan = continuation(path, raw, story, exact=exact)
    tokens = asyncio.run(tokens_of(plan, tokenize))
    body = plan.body(tokens)
    assert body is not None
    stream = JoinedStream(plan, tokens, story, wants_usage=True)
    out = b"".join(stream.feed(event) for event in blocks(http, path, body))
    return [event + END for event in out.split(END) if event]


@pytest.mark.parametrize("kind", TIERS)
@pytest.mark.parametrize("case", CASES)
def test_cut_anywhere_a_greedy_answer_is_the_undisturbed_one(http: httpx.Client, case: str, kind: str) -> None:
    path, asked = CASES[case]
    options = {"stream": True, "stream_options": {"include_usage": True}, "temperature": 0}
    raw = orjson.dumps({"model": MODEL, "service_tier": TIERS[kind], **options, **asked})
    events = blocks(http, path, raw)
    whole = read(events)
    assert whole["text"]
    wrong = {}
    for cut in (n for n in CUTS if n < len(events) - 3):
        sent = SentStream()
        sent.keep(b"".join(events[:cut]))
        try:
            rest = resumed(http, path, raw, sent, exact=False)
        except DivergedError:
            rest = resumed(http, path, raw, sent, exact=True)
        joined = read([*events[:cut], *rest])
        if joined != whole and not (path == CHAT_PATH and forks_at_a_near_tie(http, raw, whole, joined)):
            wrong[cut] = {name: (whole[name], value) for name, value in joined.items() if value != whole[name]}
    assert not wrong, wrong


def forks_at_a_near_tie(http: httpx.Client, raw: bytes, whole: dict[str, Any], joined: dict[str, Any]) -> bool:
    """Whether the model found two tokens about as likely where the texts begin to differ."""
    pairs = enumerate(zip(whole["text"], joined["text"], strict=False))
    same = next((place for place, (one, other) in pairs if one != other), None)
    if same is None:
        return False
    asked = {**orjson.loads(raw), "stream": False, "logprobs": True, "top_logprobs": 2}
    del asked["stream_options"]
    answer = http.post(CHAT_PATH, json=asked)
    assert answer.status_code == 200, answer.text
    read_chars = 0
    for token in answer.json()["choices"][0]["logprobs"]["content"]:
        read_chars += len(token["token"])
        if read_chars > same:
            first, second = (candidate["logprob"] for candidate in token["top_logprobs"][:2])
            return bool(first - second <= NEAR_TIE_NATS)
    return False
