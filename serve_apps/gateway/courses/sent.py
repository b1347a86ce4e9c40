"""What a client has got of a stream so far, kept so that another replica can go on with it.

While a stream runs, nothing is parsed: references to the relayed blocks are kept. Only after a failure (or when they
have grown large, so that memory stays bounded) they are read and folded into a `Story`, which is little more than the
text.

Owns: reading events of chat and text completions. Must not know: what is done about a failure.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import orjson

FOLD_BYTES = 128 * 1024
"""About 500 events: they are read in a millisecond."""
END = b"\n\n"
TOOL_CALLS = "tool_calls"
TEXTS = ("content", "text", "reasoning", "reasoning_content")
"""Under the names of both engines and of both kinds of completion. They send empty ones too."""
_DATA = b"data:"
_DONE = b"[DONE]"
_LAST = b"data: [DONE]\n\n"
_ERROR = b'data: {"error"'

Thread = tuple[int, str, int]
"""One text that grows from event to event: choice, kind, and for tool calls which one."""


@dataclass(slots=True)
class Story:
    """A stream, as far as it was sent."""

    threads: dict[Thread, list[str]] = field(default_factory=dict)
    """The pieces of each text; of tool calls the arguments, from the moment that the call was named."""
    envelope: dict[str, Any] = field(default_factory=dict)
    """The last event without its choices: who answers, since when."""
    finish_reasons: dict[int, str] = field(default_factory=dict)
    """By choice."""
    roles: set[int] = field(default_factory=set)
    """Choices whose role was told."""
    usage: bool = False
    done: bool = False
    odd: bool = False
    """Something was sent that is not understood here."""

    @property
    def _pieces(self) -> list[str]:
        return self.threads.get((0, "content", 0)) or self.threads.get((0, "text", 0)) or []

    @property
    def text(self) -> str:
        """Of the first choice."""
        return "".join(self._pieces)

    @property
    def events(self) -> int:
        """Events that brought text: each brought a token at least."""
        return len(self._pieces)

    @property
    def obstacle(self) -> str | None:
        """What was sent that is more than a text."""
        for choice, kind, _ in self.threads:
            if choice:
                return "it has several choices"
            if kind == TOOL_CALLS:
                return "a tool call had begun"
            if kind.startswith("reasoning"):
                return "reasoning was sent"
        return None

    def read(self, event: bytes) -> None:
        """One more event."""
        for line in event.split(b"\n"):
            if line.startswith(_DATA):
                self._read_data(line[len(_DATA) :].strip())

    def _read_data(self, data: bytes) -> None:
        if data == _DONE:
            self.done = True
            return
        try:
            parsed = orjson.loads(data)
            choices = parsed.pop("choices")
            self.usage = self.usage or not choices
            if choices:
                self.envelope = parsed
            for choice in choices:
                self._read_choice(choice)
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
            self.odd = True

    def _read_choice(self, choice: dict[str, Any]) -> None:
        index = choice.get("index") or 0
        delta = choice.get("delta") or {}
        if delta.get("role"):
            self.roles.add(index)
        for name in TEXTS:
            if text := delta.get(name) or choice.get(name):
                self.threads.setdefault((index, name, 0), []).append(text)
        for call in delta.get(TOOL_CALLS) or ():
            pieces = self.threads.setdefault((index, TOOL_CALLS, call.get("index") or 0), [])
            pieces.append((call.get("function") or {}).get("arguments") or "")
        if reason := choice.get("finish_reason"):
            self.finish_reasons[index] = reason
        self.odd = self.odd or bool(delta.get("function_call"))  # the old form of a tool call


class SentStream:
    """The blocks of whole events that were relayed."""

    __slots__ = ("_blocks", "_size", "_story")

    def __init__(self) -> None:
        self._blocks: list[bytes] = []
        self._size = 0
        self._story: Story | None = None

    def keep(self, block: bytes) -> None:
        self._blocks.append(block)
        self._size += len(block)
        if self._size > FOLD_BYTES:
            self.story()

    @property
    def ended(self) -> bool:
        """The engine's last word has come."""
        if self._blocks:
            return ends(self._blocks[-1])
        return self._story is not None and self._story.done

    def story(self) -> Story:
        """All of it, read."""
        story = self._story = self._story or Story()
        for block in self._blocks:
            for event in block.split(END):
                story.read(event)
        self._blocks.clear()
        self._size = 0
        return story


def ends(block: bytes) -> bool:
    """The engine's last word is in it."""
    # Inside of an event no line break stands unescaped, so no text can look like this.
    return block.endswith(_LAST)


def failure_in(block: bytes) -> str | None:
    """What an engine says that fails in the middle of a stream; None for blocks without such an event, and for errors
    that are the request's own."""
    if _ERROR not in block:
        return None
    for event in block.split(END):
        if event.startswith(_ERROR):
            try:
                error = orjson.loads(event[len(_DATA) :])["error"]
                if int(error["code"]) >= 500:
                    return str(error.get("message"))
            except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError):
                continue
    return None
