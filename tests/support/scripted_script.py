"""Role: what one scripted request asks for. Owns: reading a request body, the fake tokeniser, the fake prefix cache.

The text of a reply is ` w0 w1 w2 ...`, one token each, or what the script says. A prompt that ends in `w7` continues
with `w8`, so a test sees that a stream resumed on another engine has neither a gap nor a repetition.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from tests.support.scripted_text import begun, held_back, pieces, text_of, token_ids

LAST_WORD = re.compile(r"\bw(\d+)\s*$")
LAST_WORDS = re.compile(r"(?: w\d+)+$")
CHARS_PER_TOKEN = 4
BLOCK_CHARS = 16 * CHARS_PER_TOKEN


class BadRequestError(ValueError):
    """A body that the engine refuses with 400."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


@dataclass(frozen=True, slots=True)
class Script:
    """How to behave: the server's flags, overridden per request by the body's `x_script`."""

    ttft_ms: float = 0.0
    itl_ms: float = 0.0
    tokens: int = 20
    """The model's natural end: the number of words of the whole reply, those already in the prompt included."""
    prompt_tokens: int | None = None
    fail_status: int | None = None
    die_after_tokens: int | None = None
    hang_after_tokens: int | None = None
    text: str | None = None
    """The whole reply, instead of words. A chat that goes on from a part of it loses the white space at that part's
    end, as with many chat templates."""

    def with_overrides(self, overrides: Any) -> Script:
        if overrides is None:
            return self
        if not isinstance(overrides, dict) or (unknown := overrides.keys() - {field.name for field in fields(self)}):
            names = ", ".join(sorted(unknown)) if isinstance(overrides, dict) else "not an object"
            raise BadRequestError(f"x_script: {names}", "x_script")
        return Script(**{**{field.name: getattr(self, field.name) for field in fields(self)}, **overrides})

    @property
    def instant(self) -> bool:
        return self.ttft_ms <= 0 and self.itl_ms <= 0 and self.hang_after_tokens is None


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything decided about a generation before its first token."""

    script: Script
    words: list[str]
    finish_reason: str
    choices: int
    prompt_tokens: int
    cached_tokens: int
    stream: bool
    include_usage: bool
    service_tier: str = "auto"
    produced: int | None = None
    """Tokens computed, where that is not one for each of `words`."""

    @property
    def usage(self) -> dict[str, Any]:
        completion_tokens = (len(self.words) if self.produced is None else self.produced) * self.choices
        return {
            "prompt_tokens": self.prompt_tokens,
            "total_tokens": self.prompt_tokens + completion_tokens,
            "completion_tokens": completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }


class PrefixCache:
    """Remembers prompts in blocks of 16 tokens, as the engines do, and forgets the oldest."""

    def __init__(self, blocks: int = 4096) -> None:
        self._blocks: OrderedDict[str, None] = OrderedDict()
        self._capacity = blocks

    def hit_tokens(self, text: str, salt: str = "") -> int:
        """How many leading tokens were seen before under this salt; the prompt is remembered. The last token is always
        computed.
        """
        hit_chars, all_hit = 0, True
        for end in range(BLOCK_CHARS, len(text), BLOCK_CHARS):
            prefix = f"{salt}\0{text[:end]}"
            all_hit = all_hit and prefix in self._blocks
            hit_chars = end if all_hit else hit_chars
            self._blocks[prefix] = None
            self._blocks.move_to_end(prefix)
        while len(self._blocks) > self._capacity:
            self._blocks.popitem(last=False)
        return hit_chars // CHARS_PER_TOKEN


def make_plan(
    body: Mapping[str, Any],
    *,
    chat: bool,
    defaults: Script,
    cache: PrefixCache,
    max_model_len: int | None,
    responses: bool = False,
) -> Plan:
    script = defaults.with_overrides(body.get("x_script"))
    body = {**body, "messages": response_messages(body)} if responses else body
    text, length = chat_prompt(body) if chat or responses else completion_prompt(body, script.text)
    prompt_tokens = script.prompt_tokens if script.prompt_tokens is not None else length
    asked = body.get("max_completion_tokens") or body.get("max_tokens") or body.get("max_output_tokens")
    if asked is not None and (not isinstance(asked, int) or asked < 1):
        raise BadRequestError(f"max_tokens must be at least 1, got {asked}.", "max_tokens")
    _check_context(prompt_tokens, asked, max_model_len)
    produced = None
    if script.text is None:
        words, finish_reason = reply(text, script.tokens, asked, body.get("stop"))
    else:
        tail = (_continued(body) or "").rstrip() if chat or responses else text
        words, finish_reason, produced = told(script.text, tail, asked, body.get("stop"))
    stream = bool(body.get("stream"))
    return Plan(
        script=script,
        words=words,
        finish_reason=finish_reason,
        choices=int(body.get("n") or 1),
        prompt_tokens=prompt_tokens,
        cached_tokens=min(cache.hit_tokens(text, str(body.get("cache_salt") or "")), max(0, prompt_tokens - 1)),
        stream=stream,
        include_usage=stream and bool((body.get("stream_options") or {}).get("include_usage")),
        service_tier=str(body.get("service_tier") or "auto"),
        produced=produced,
    )


def _check_context(prompt_tokens: int, asked: int | None, max_model_len: int | None) -> None:
    """In vLLM's words."""
    if max_model_len is None or prompt_tokens + (asked or 1) <= max_model_len:
        return
    if prompt_tokens >= max_model_len:
        rest = (
            f"However, your prompt contains {prompt_tokens} input tokens, which exceeds this limit even without any "
            "output tokens."
        )
    else:
        rest = (
            f"However, you requested {asked} output tokens and your prompt contains {prompt_tokens} input tokens, "
            f"for a total of {prompt_tokens + (asked or 1)} tokens."
        )
    raise BadRequestError(
        f"This model's maximum context length is {max_model_len} tokens. {rest} "
        "Please reduce the length of the input prompt or the number of requested output tokens.",
        "input_tokens",
    )


def reply(prompt: str, natural_end: int, asked: int | None, stop: str | list[str] | None) -> tuple[list[str], str]:
    last = LAST_WORD.search(prompt)
    first = int(last.group(1)) + 1 if last else 0
    words = [f" w{index}" for index in range(first, natural_end)]
    finish_reason = "stop"
    if asked is not None and asked < len(words):
        words, finish_reason = words[:asked], "length"
    for text in [stop] if isinstance(stop, str) else stop or []:
        for index, word in enumerate(words):
            if text in word:
                words, finish_reason = words[:index], "stop"
                break
    return words, finish_reason


def told(text: str, tail: str, asked: int | None, stop: str | list[str] | None) -> tuple[list[str], str, int]:
    """The rest of a reply of which `tail` has the beginning at its end: events, why it ended, tokens."""
    words, finish_reason = pieces(text[begun(text, tail) :]), "stop"
    # To stop by itself a model has to produce one more token.
    if asked is not None and asked <= len(words):
        words, finish_reason = words[:asked], "length"
    produced, stops = len(words), [stop] if isinstance(stop, str) else stop or []
    rest = "".join(words)
    found = [(rest.find(mark), mark) for mark in stops if mark in rest]
    if found:
        kept, mark = min(found)
        produced = len(pieces(rest[: kept + len(mark)]))
        words, finish_reason = pieces(rest[:kept]), "stop"
    held = max(map(len, stops), default=1) - 1
    return held_back(words, held) if held else words, finish_reason, produced


def chat_prompt(body: Mapping[str, Any]) -> tuple[str, int]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise BadRequestError("messages must be a list with at least one message.", "messages")
    parts = []
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, list):
            content = "".join(part.get("text", "") for part in content if isinstance(part, dict))
        parts.append(content or "")
    # Only a reply that the client wants continued counts as begun; in a question, "w7" is just a word.
    continued = _continued(body)
    if continued is not None:
        return "\n".join(parts), _tokens("\n".join(parts[:-1])) + len(token_ids(continued))
    return "\n".join(parts) + "\nassistant:", _tokens("\n".join(parts))


def _continued(body: Mapping[str, Any]) -> str | None:
    """The reply that is to be continued."""
    last = body["messages"][-1]
    return (
        str(last.get("content") or "")
        if last.get("role") == "assistant" and body.get("continue_final_message")
        else None
    )


def response_messages(body: Mapping[str, Any]) -> list[Any]:
    """What `/v1/responses` is asked, as chat messages."""
    if body.get("background"):
        raise BadRequestError("This engine keeps no responses, so it has no background mode.", "background")
    asked = body.get("input")
    messages = asked if isinstance(asked, list) else [{"role": "user", "content": asked}]
    return [{"role": "system", "content": body.get("instructions") or ""}, *messages]


def completion_prompt(body: Mapping[str, Any], reply_text: str | None = None) -> tuple[str, int]:
    """`reply_text`: the whole reply, of which the prompt may have the beginning; its tokens are counted exactly."""
    prompt = body.get("prompt", "")
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    foreign = 0
    if isinstance(prompt, list):
        prompt, foreign = text_of(prompt)
    if not isinstance(prompt, str):
        raise BadRequestError("prompt must be a string, a list of strings or of token ids.", "prompt")
    words = LAST_WORDS.search(prompt)
    tail = begun(reply_text, prompt) if reply_text is not None else len(words.group()) if words else 0
    rest = prompt[: len(prompt) - tail]
    own = foreign or _tokens(rest)
    return prompt, own + len(token_ids(prompt[len(rest) :]))


def _tokens(text: str) -> int:
    return max(1, len(text) // CHARS_PER_TOKEN)
