"""Role: the answers of a scripted engine that writes no text: tokens, vectors, scores, in vLLM's shapes and paths.

Owns: these bodies. Must not know: HTTP. A text has a token for every four characters.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from tests.support.scripted_script import CHARS_PER_TOKEN, BadRequestError, chat_prompt
from tests.support.scripted_text import token_ids

Body = Mapping[str, Any]


def answer(path: str, model: str, body: Body) -> bytes | None:
    """The body of the answer; None for a path that the engine has not got. Raises BadRequestError."""
    make = _ANSWERS.get(path)
    return None if make is None else orjson.dumps(make(model, body))


def _tokenize(model: str, body: Body) -> dict[str, Any]:
    ids = list(range(chat_prompt(body)[1])) if "messages" in body else token_ids(_required(body, "prompt"))
    return {"count": len(ids), "max_model_len": 4096, "tokens": ids, "token_strs": None}


def _detokenize(model: str, body: Body) -> dict[str, Any]:
    return {"prompt": " ".join(f"w{token}" for token in _required(body, "tokens"))}


def _count_tokens(model: str, body: Body) -> dict[str, Any]:
    system = [{"role": "system", "content": body["system"]}] if body.get("system") else []
    return {"input_tokens": chat_prompt({"messages": [*system, *_required(body, "messages")]})[1]}


def _embed(model: str, body: Body) -> dict[str, Any]:
    inputs = _inputs(body)
    data = [
        {"object": "embedding", "index": index, "embedding": [float(len(str(text)) % (7 + k)) for k in range(8)]}
        for index, text in enumerate(inputs)
    ]
    return {"object": "list", "data": data, "model": model, "usage": _usage(inputs)}


def _rerank(model: str, body: Body) -> dict[str, Any]:
    documents = _required(body, "documents")
    query = _required(body, "query")
    results = [
        {"index": index, "document": {"text": text}, "relevance_score": 1.0 / (1 + index)}
        for index, text in enumerate(documents)
    ]
    usage = _usage([f"{query}{text}" for text in documents])
    return {"id": "score-1", "model": model, "usage": usage, "results": results[: body.get("top_n") or None]}


def _score(model: str, body: Body) -> dict[str, Any]:
    texts = _required(body, "text_2")
    texts = texts if isinstance(texts, list) else [texts]
    data = [{"index": index, "object": "score", "score": 0.5} for index in range(len(texts))]
    usage = _usage([f"{_required(body, 'text_1')}{text}" for text in texts])
    return {
        "id": "score-1",
        "object": "list",
        "created": int(time.time()),
        "model": model,
        "data": data,
        "usage": usage,
    }


def _classify(model: str, body: Body) -> dict[str, Any]:
    inputs = _inputs(body)
    data = [{"index": i, "label": "LABEL_0", "probs": [0.75, 0.25], "num_classes": 2} for i in range(len(inputs))]
    return {"id": "classify-1", "object": "list", "model": model, "data": data, "usage": _usage(inputs)}


def _pool(model: str, body: Body) -> dict[str, Any]:
    inputs = _inputs(body)
    data = [{"index": i, "object": "pooling", "data": [[0.0, 1.0]]} for i in range(len(inputs))]
    return {"id": "pool-1", "object": "list", "model": model, "data": data, "usage": _usage(inputs)}


_ANSWERS: dict[str, Callable[[str, Body], dict[str, Any]]] = {
    "/tokenize": _tokenize,
    "/detokenize": _detokenize,
    "/v1/messages/count_tokens": _count_tokens,
    "/v1/embeddings": _embed,
    "/rerank": _rerank,
    "/score": _score,
    "/classify": _classify,
    "/pooling": _pool,
}


def tokens_of(text: str) -> int:
    return max(1, len(text) // CHARS_PER_TOKEN)


def _usage(texts: list[Any]) -> dict[str, int]:
    tokens = sum(tokens_of(str(text)) for text in texts)
    return {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0}


def _inputs(body: Body) -> list[Any]:
    asked = _required(body, "input")
    return asked if isinstance(asked, list) else [asked]


def _required(body: Body, name: str) -> Any:
    if body.get(name) is None:
        raise BadRequestError(f"{name}: Field required", name)
    return body[name]
