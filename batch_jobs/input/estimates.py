"""What the work queue may know of a request without a tokenizer: its size, its leading text, its equals.

Role: pure functions of asks. Owns: which requests are deterministic. Must not know: rows, jobs, engines.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import orjson

from batch_jobs.engines.base import Ask
from batch_jobs.input.prepared import CHARS_PER_TOKEN, PREFIX_CHARS

DEFAULT_OUTPUT_TOKENS = 128
"""Expected length of an answer that nothing limits, until the job has seen some."""
_GENERATION_PATHS = ("/v1/completions", "/v1/chat/completions")
_MEDIA_TOKENS = 512  # an image or clip in a message; its data URL would look like a hundred thousand
_LIMITS = ("max_completion_tokens", "max_tokens")
_CACHE_PARAMS = ("cache_salt", "chat_template", "chat_template_kwargs", "documents", "tools")
_LONG_PARAM_CHARS = 1024


def expected_tokens(asks: Iterable[Ask]) -> tuple[float, float]:
    """Estimated prompt tokens and expected answer tokens of all asks together."""
    input_tokens = output_tokens = 0.0
    for ask in asks:
        input_tokens += sum(_tokens(ask.body.get(name)) for name in ("prompt", "input", "text_1", "text_2"))
        input_tokens += _tokens(ask.body.get("messages")) + _tokens(ask.body.get("tools"))
        if ask.path in _GENERATION_PATHS:
            output_tokens += _output_limit(ask.body) * _positive(ask.body.get("n"), 1)
    return input_tokens, output_tokens


def _output_limit(body: dict[str, Any]) -> int:
    return next((limit for name in _LIMITS if (limit := _positive(body.get(name), 0))), DEFAULT_OUTPUT_TOKENS)


def _positive(value: Any, otherwise: int) -> int:
    """Rows may hold anything; what is no number of something is the engine's to refuse."""
    return value if type(value) is int and value > 0 else otherwise


def _tokens(value: Any) -> float:
    if isinstance(value, str):
        return len(value) / CHARS_PER_TOKEN
    if isinstance(value, list):
        return sum(_tokens(item) for item in value)
    if isinstance(value, dict):
        if "type" in value and value["type"] in ("image_url", "input_audio", "audio_url", "video_url"):
            return _MEDIA_TOKENS
        return sum(_tokens(item) for item in value.values())
    return 1.0 if type(value) is int else 0.0  # prompts may be lists of token ids


def prefix_of(asks: Sequence[Ask], model: str) -> str:
    """The leading text of the first prompt, as its chat template would see it: at most PREFIX_CHARS.

    What separates KV caches comes before it: another adapter than the job's `model`, a cache salt, tools.
    """
    if not asks:
        return ""
    body = asks[0].body
    pieces: list[str] = []
    room = PREFIX_CHARS
    for piece in _pieces(body, model):
        pieces.append(piece[:room])
        room -= len(pieces[-1])
        if room <= 0:
            break
    return "".join(pieces)


def _pieces(body: dict[str, Any], model: str) -> Iterator[str]:
    if body.get("model") != model:
        yield f"{body.get('model')}\n"
    for name in _CACHE_PARAMS:
        if body.get(name):
            yield _short(_canonical(body[name]) or b"") + "\n"
    messages = body.get("messages")
    for message in messages if isinstance(messages, list) else ():
        if isinstance(message, dict):  # a request of an OpenAI batch file may hold anything
            yield f"{message.get('role')}\n"
            yield from _content(message.get("content"))
            yield "\n"
    for name in ("prompt", "input", "text_1", "text_2"):
        yield from _content(body.get(name))


def _short(data: bytes) -> str:
    """A long parameter by its digest: it is the same in most rows and would hide what follows it."""
    if len(data) <= _LONG_PARAM_CHARS:
        return data.decode()
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _content(content: Any) -> Iterator[str]:
    """The text of a message's content or of a prompt."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        for part in content:
            if isinstance(part, dict) and isinstance(part.get("text"), str):
                yield part["text"]
            elif isinstance(part, dict):
                yield _short(_canonical(part) or b"")
            else:
                yield f"{part} "


def dedupe_key(asks: Sequence[Ask]) -> bytes | None:
    """16 bytes that are equal for equal deterministic requests; None for one that may be answered in several ways."""
    if not asks or not all(_deterministic(ask) for ask in asks):
        return None
    data = _canonical([[ask.path, ask.body] for ask in asks])
    return None if data is None else hashlib.blake2b(data, digest_size=16).digest()


def _deterministic(ask: Ask) -> bool:
    """Pooling always; generation only where the request says so itself: a model's own defaults may sample."""
    if ask.path not in _GENERATION_PATHS:
        return True
    body = ask.body
    greedy = type(body.get("temperature")) in (int, float) and body["temperature"] == 0
    return (greedy or type(body.get("seed")) is int) and body.get("n") in (None, 1)


def _canonical(value: Any) -> bytes | None:
    """JSON with sorted keys; None for what JSON has no word for."""
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except TypeError:
        return None
