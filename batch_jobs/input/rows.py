"""What one row is and what its prompt is.

Role: pure checks and conversions of a single row. Owns: the reserved column names, the prompt rules, the row's wire
form. Must not know: files, engines, Ray.

A row travels from reader to actor pickled, not as Arrow columns: rows of one JSONL file need not agree on types, and a
bad row must never fail the block it shares with good ones. Types of Parquet columns survive the trip.
"""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass
from typing import Any

from batch_jobs.errors import RowError, RowErrorKind

PROMPT_COLUMN = "prompt"
MESSAGES_COLUMN = "messages"
ID_COLUMN = "id"
RESULT_COLUMNS = ("output", "finish_reason", "prompt_tokens", "output_tokens", "cached_tokens", "error")

Message = dict[str, Any]
Prompt = str | list[Message]


@dataclass(frozen=True)
class Row:
    """One input row. `problem` is set when the row could not even be read; it still gets an output row."""

    id: str
    columns: dict[str, Any]
    problem: RowError | None = None

    def pack(self) -> bytes:
        return pickle.dumps((self.id, self.columns, self.problem), protocol=5)

    @staticmethod
    def unpack(data: bytes) -> Row:
        row_id, columns, problem = pickle.loads(data)
        return Row(row_id, columns, problem)


def given_id(columns: dict[str, Any]) -> str | None:
    """The id that the input gives, None where it gives none. Raises RowError for a value that cannot be an id."""
    value = columns.get(ID_COLUMN)
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise RowError(RowErrorKind.INVALID_ID, f"id must be a string or an integer, got {type(value).__name__}")
    return str(value)


def prompt_of(columns: dict[str, Any]) -> Prompt:
    """The text prompt or the chat messages of a row. Raises RowError naming what is wrong."""
    prompt, messages = columns.get(PROMPT_COLUMN), columns.get(MESSAGES_COLUMN)
    if prompt is not None and messages is not None:
        raise RowError(RowErrorKind.INVALID_PROMPT, "the row has both prompt and messages: leave one of them out")
    if messages is not None:
        return _messages(messages)
    if prompt is None:
        raise RowError(RowErrorKind.MISSING_PROMPT, "the row has neither prompt nor messages")
    if not isinstance(prompt, str):
        raise RowError(RowErrorKind.INVALID_PROMPT, f"prompt must be a string, got {type(prompt).__name__}")
    if not prompt.strip():
        raise RowError(RowErrorKind.MISSING_PROMPT, "prompt is empty")
    return prompt


def _messages(value: Any) -> list[Message]:
    if isinstance(value, str):  # CSV, and Parquet files that keep messages as JSON text
        try:
            value = json.loads(value)
        except ValueError as error:
            raise RowError(RowErrorKind.INVALID_PROMPT, f"messages is not valid JSON: {error}") from error
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        raise RowError(RowErrorKind.INVALID_PROMPT, "messages must be a list of objects with role and content")
    if not value:
        raise RowError(RowErrorKind.MISSING_PROMPT, "messages is empty")
    # Parquet structs hold every field of every message; a null field means that the message does not have it.
    messages = [{key: item for key, item in message.items() if item is not None} for message in value]
    for position, message in enumerate(messages):
        if not isinstance(message.get("role"), str):
            raise RowError(RowErrorKind.INVALID_PROMPT, f"messages[{position}].role must be a string")
        content = message.get("content")
        if not content and not message.get("tool_calls"):
            raise RowError(RowErrorKind.MISSING_PROMPT, f"messages[{position}].content is empty")
        if content is not None and not isinstance(content, str | list):
            kind = type(content).__name__
            raise RowError(
                RowErrorKind.INVALID_PROMPT, f"messages[{position}].content must be text or a list of parts, got {kind}"
            )
    return messages
