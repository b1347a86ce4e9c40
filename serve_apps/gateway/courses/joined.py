"""The events of the engine that goes on, made to look like more of the first engine's.

Every event gets the id, time and model of the first stream; there is no second role; what was sent before is left out;
the one usage event counts the original prompt and all of the output. Only streams that were broken pass here, so each
event may be parsed.

Owns: rewriting events. Must not know: connections, leases, why the first stream ended.
"""

from __future__ import annotations

from typing import Any

import orjson

from cluster.scheduling import TokenUsage
from serve_apps.gateway.courses.continuation import Continuation, Tokens
from serve_apps.gateway.courses.sent import END, TEXTS, TOOL_CALLS, Story, Thread
from serve_apps.gateway.doors import CHAT_PATH
from serve_apps.gateway.sse import read_usage

_DATA = b"data:"
_DONE = b"[DONE]"
_SHARED = ("id", "created", "model", "system_fingerprint")


class DivergedError(Exception):
    """What the engine says does not go on from what was sent. Nothing of it was relayed since the last whole event."""


class JoinedStream:
    """Same interface as `EventStream`; `output_tokens` and what it is watched for are the new engine's only."""

    def __init__(self, continuation: Continuation, tokens: Tokens | None, story: Story, *, wants_usage: bool) -> None:
        self._chat = continuation.path == CHAT_PATH
        self._scored = continuation.scored
        self._by_text = continuation.by_text
        self._repeats = {thread: text for thread, text in continuation.repeats.items() if text}
        self._calls = {thread for thread in story.threads if thread[1] == TOOL_CALLS}
        self._roles, self._ended = set(story.roles), set(story.finish_reasons)
        self._prefix_chars = len(continuation.prefix)
        self._shared = {name: story.envelope[name] for name in _SHARED if name in story.envelope}
        self._sent_tokens = continuation.sent_tokens(tokens)
        self._prompt_surplus = len(tokens.prefix) if tokens is not None else self._sent_tokens
        self._wants_usage = wants_usage
        self._carry = b""
        self.output_tokens = 0
        self.usage: TokenUsage | None = None
        """Of all engines that worked on the answer, as one would have counted it."""

    def feed(self, chunk: bytes) -> bytes:
        """Bytes in, bytes for the client out: whole events."""
        *events, self._carry = (self._carry + chunk).split(END)
        return b"".join(self._event(event) for event in events)

    def rest(self) -> bytes:
        """What came after the last complete event (an engine that ended mid-event)."""
        return self._carry

    def _event(self, event: bytes) -> bytes:
        if not event.startswith(_DATA) or event[len(_DATA) :].strip() == _DONE:
            return event + END
        try:
            parsed = orjson.loads(event[len(_DATA) :])
            choices = parsed["choices"]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            return event + END  # an error of the request's own, or something new
        if parsed.get("usage"):
            parsed["usage"] = self._joined_usage(parsed["usage"])
        if not choices:
            self.usage = read_usage(parsed.get("usage")) or self.usage
            keep = self._wants_usage or not parsed.get("usage")
        else:
            self.output_tokens += 1
            parsed["choices"] = [choice for choice in choices if self._keeps(choice)]
            keep = bool(parsed["choices"])
        return b"data: " + orjson.dumps({**parsed, **self._shared}) + END if keep else b""

    def _keeps(self, choice: dict[str, Any]) -> bool:
        """Take out of one choice what was sent before; False when that is all of it."""
        place = choice.get("delta") if self._chat else choice
        if not isinstance(place, dict):
            raise DivergedError("an event of an unknown shape")
        index = choice.get("index") or 0
        # While a choice still repeats itself, events without a text of their own were sent as well.
        taken = self._take_role(place, index) or self._repeating(index)
        for name in TEXTS:
            if text := place.get(name):
                if self._by_text and name.startswith("reasoning"):
                    raise DivergedError("the engine began to reason")
                place[name] = self._new_part((index, name, 0), text)
                taken = taken or place[name] != text
        if place.get(TOOL_CALLS):
            calls = [call for call in place[TOOL_CALLS] if self._keeps_call(index, call)]
            taken = taken or len(calls) < len(place[TOOL_CALLS])
            place[TOOL_CALLS] = calls
        if choice.get("finish_reason") and index in self._ended:
            choice["finish_reason"], taken = None, True
        if choice.get("finish_reason") and not self._by_text and self._repeating(index):
            raise DivergedError("the engine says less than what was sent")
        new = any(place.get(name) for name in (*TEXTS, TOOL_CALLS)) or choice.get("finish_reason")
        if taken and not new:
            return False
        self._shift(choice.get("logprobs"))
        return True

    def _repeating(self, index: int) -> bool:
        return any(text for thread, text in self._repeats.items() if thread[0] == index)

    def _take_role(self, place: dict[str, Any], index: int) -> bool:
        return self._chat and index in self._roles and place.pop("role", None) is not None

    def _keeps_call(self, index: int, call: dict[str, Any]) -> bool:
        thread, function = (index, TOOL_CALLS, call.get("index") or 0), call.get("function") or {}
        named = thread in self._calls
        if named:
            # The client knows the call by the id that the first engine gave it.
            for place, name in ((call, "id"), (call, "type"), (function, "name")):
                place.pop(name, None)
        if arguments := function.get("arguments"):
            function["arguments"] = self._new_part(thread, arguments)
        return not named or bool(function.get("arguments"))

    def _new_part(self, thread: Thread, text: str) -> str:
        """What is left of a text when that which was sent before is taken off its beginning."""
        sent = self._repeats.get(thread)
        if not sent:
            return text
        if sent.startswith(text):
            self._repeats[thread] = sent[len(text) :]
            return ""
        if not text.startswith(sent) or self._scored:
            # A token's probability belongs to all of its text: an event cannot be divided.
            raise DivergedError(f"{sent[:40]!r} was sent, and the engine says {text[:40]!r}")
        del self._repeats[thread]
        return text[len(sent) :]

    def _shift(self, logprobs: Any) -> None:
        """Offsets of text completions count from the beginning of the answer; SGLang has -1 for all of them."""
        offsets = logprobs.get("text_offset") if isinstance(logprobs, dict) else None
        if isinstance(offsets, list):
            logprobs["text_offset"] = [offset + self._prefix_chars if offset >= 0 else offset for offset in offsets]

    def _joined_usage(self, usage: dict[str, Any]) -> dict[str, Any]:
        prompt = max(0, (usage.get("prompt_tokens") or 0) - self._prompt_surplus)
        output = (usage.get("completion_tokens") or 0) + self._sent_tokens
        joined = {**usage, "prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}
        details = usage.get("prompt_tokens_details")
        if isinstance(details, dict) and details.get("cached_tokens"):
            joined["prompt_tokens_details"] = {**details, "cached_tokens": min(details["cached_tokens"], prompt)}
        return joined


class EndedStream:
    """For a stream that lacks nothing but its last events: they are made here, and pass as they are."""

    def __init__(self, usage: TokenUsage) -> None:
        self.output_tokens = 0
        self.usage: TokenUsage | None = usage

    def feed(self, chunk: bytes) -> bytes:
        return chunk

    def rest(self) -> bytes:
        return b""


def last_events(path: str, story: Story, usage: TokenUsage | None, finish_reason: str | None) -> bytes:
    """The reason for the end and the usage, each where it is given, and the end itself."""
    chunk = {name: value for name, value in story.envelope.items() if name != "usage"}
    events: list[dict[str, Any]] = []
    if finish_reason is not None:
        place: dict[str, Any] = {"delta": {}} if path == CHAT_PATH else {"text": ""}
        choice = {"index": 0, **place, "logprobs": None, "finish_reason": finish_reason}
        events.append({**chunk, "choices": [choice]})
    if usage is not None:
        counts = {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.output_tokens}
        events.append({**chunk, "choices": [], "usage": {**counts, "total_tokens": sum(counts.values())}})
    return b"".join(b"data: " + orjson.dumps(event) + END for event in events) + b"data: [DONE]\n\n"
