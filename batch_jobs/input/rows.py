"""What one row is and what its prompt is.

Role: pure checks of a single row. Owns: the reserved column names, the prompt rules, ids.
Must not know: files, engines, Ray.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from batch_jobs.errors import RowError, RowErrorKind

PROMPT_COLUMN = "prompt"
MESSAGES_COLUMN = "messages"
PROMPTS_COLUMN = "prompts"
PROMPT_COLUMNS = (PROMPTS_COLUMN, MESSAGES_COLUMN, PROMPT_COLUMN)
TEXT_COLUMNS = ("text_1", "text_2")
"""The pair that a scoring job compares."""
PARAMS_COLUMN = "params"
LORA_COLUMN = "lora"
ID_COLUMN = "id"
RESULT_COLUMNS = (
    "output",
    "finish_reason",
    "tool_calls",
    "label",
    "prompt_tokens",
    "output_tokens",
    "cached_tokens",
    "duplicate_of",
    "error",
)

Message = dict[str, Any]
Prompt = str | list[Message]


@dataclass(frozen=True)
class Row:
    """One input row. `problem` is set when the row could not even be read; it still gets an output row."""

    id: str
    columns: dict[str, Any]
    problem: RowError | None = None


def given_id(columns: dict[str, Any], column: str = ID_COLUMN) -> str | None:
    """The id that the input gives, None where it gives none. Raises RowError for a value that cannot be an id."""
    value = columns.get(column)
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise RowError(RowErrorKind.INVALID_ID, f"{column} must be a string or an integer, got {type(value).__name__}")
    return str(value)


def prompts_of(columns: dict[str, Any]) -> list[Prompt]:
    """The prompts of a row: those of `prompts`, or the one of `messages` or `prompt`. Raises RowError."""
    value = columns.get(PROMPTS_COLUMN)
    if value is None:
        return [prompt_of(columns)]
    others = [name for name in (MESSAGES_COLUMN, PROMPT_COLUMN) if columns.get(name) is not None]
    if others:
        raise RowError(RowErrorKind.INVALID_PROMPT, f"the row has both prompts and {others[0]}: leave one of them out")
    value = parsed(value, PROMPTS_COLUMN, RowErrorKind.INVALID_PROMPT)
    if not isinstance(value, list):
        raise RowError(RowErrorKind.INVALID_PROMPT, "prompts must be a list of texts or of lists of messages")
    if not value:
        raise RowError(RowErrorKind.MISSING_PROMPT, "prompts is empty")
    return [
        _messages(item, name) if isinstance(item, list) else checked_text(item, name)
        for name, item in ((f"prompts[{index}]", item) for index, item in enumerate(value))
    ]


def prompt_of(columns: dict[str, Any]) -> Prompt:
    """The text prompt or the chat messages of a row. Raises RowError naming what is wrong."""
    prompt, messages = columns.get(PROMPT_COLUMN), columns.get(MESSAGES_COLUMN)
    if prompt is not None and messages is not None:
        raise RowError(RowErrorKind.INVALID_PROMPT, "the row has both prompt and messages: leave one of them out")
    if messages is not None:
        return _messages(parsed(messages, MESSAGES_COLUMN, RowErrorKind.INVALID_PROMPT), MESSAGES_COLUMN)
    if prompt is None:
        raise RowError(RowErrorKind.MISSING_PROMPT, "the row has neither prompt nor messages")
    return checked_text(prompt, PROMPT_COLUMN)


def checked_text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise RowError(RowErrorKind.INVALID_PROMPT, f"{name} must be a string, got {type(value).__name__}")
    if not value.strip():
        raise RowError(RowErrorKind.MISSING_PROMPT, f"{name} is empty")
    return value


def parsed(value: Any, name: str, kind: RowErrorKind) -> Any:
    """A nested value, which CSV has as JSON text, as have Parquet files whose writer had no type for it."""
    if not isinstance(value, str):
        return value
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError as error:
        raise RowError(kind, f"{name} is not valid JSON: {error}") from error


def _messages(value: Any, name: str) -> list[Message]:
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        raise RowError(RowErrorKind.INVALID_PROMPT, f"{name} must be a list of objects with role and content")
    if not value:
        raise RowError(RowErrorKind.MISSING_PROMPT, f"{name} is empty")
    # Parquet structs hold every field of every message; a null field means that the message does not have it.
    messages = [{key: item for key, item in message.items() if item is not None} for message in value]
    for position, message in enumerate(messages):
        _check_message(message, f"{name}[{position}]")
    return messages


def _check_message(message: Message, name: str) -> None:
    if not isinstance(message.get("role"), str):
        raise RowError(RowErrorKind.INVALID_PROMPT, f"{name}.role must be a string")
    content = message.get("content")
    if not content and not message.get("tool_calls"):
        raise RowError(RowErrorKind.MISSING_PROMPT, f"{name}.content is empty")
    if content is not None and not isinstance(content, str | list):
        kind = type(content).__name__
        raise RowError(RowErrorKind.INVALID_PROMPT, f"{name}.content must be text or a list of parts, got {kind}")
