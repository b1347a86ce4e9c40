"""Role: what both sides are asked. Owns: a small built-in set, and reading a file of prompts. Must not know: answers.

The built-in set is short on purpose: facts, arithmetic, extraction, code, rewriting, structure, a few languages. It
shows whether something broke. Whether a model is good enough for a task only prompts of that task show.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final


class PromptError(ValueError):
    """A file of prompts that cannot be used; the message names the line and the cure."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation to continue."""

    id: str
    messages: tuple[dict[str, Any], ...]


def read_prompts(path: Path) -> list[Prompt]:
    """JSONL: a line has `prompt` (a text) or `messages`, and may have an `id`; empty lines are skipped."""
    try:
        # Not splitlines: JSON may have other ends of lines, such as U+2028, inside its texts.
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(f"{path} cannot be read: {error}") from error
    prompts = [_prompt(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not prompts:
        raise PromptError(f"{path} has no prompts; write one JSON object a line, with `prompt` or `messages`")
    return prompts


def _prompt(path: Path, number: int, line: str) -> Prompt:
    where = f"{path} line {number}"
    try:
        row = json.loads(line)
    except ValueError as error:
        raise PromptError(f"{where} is not JSON ({error})") from error
    if not isinstance(row, dict):
        raise PromptError(f"{where} must be an object with `prompt` or `messages`")
    name, text, messages = str(row.get("id", number)), row.get("prompt"), row.get("messages")
    if isinstance(text, str) and text and messages is None:
        return Prompt(name, ({"role": "user", "content": text},))
    if isinstance(messages, list) and messages and all(isinstance(item, dict) for item in messages) and text is None:
        return Prompt(name, tuple(messages))
    raise PromptError(f"{where} needs either `prompt` (a text) or `messages` (a list of objects)")


_TEXTS: Final = (
    ("fact-capital", "What is the capital of Portugal? Answer with one word."),
    ("fact-water", "At how many degrees Celsius does water boil at sea level? Answer with a number."),
    ("fact-planet", "Which planet of the solar system has the most mass?"),
    ("fact-author", "Who wrote the play Hamlet, and in which language?"),
    ("sum", "What is 17 + 25? Answer with the number only."),
    ("product", "A box holds 12 eggs. How many eggs do 7 boxes hold? Explain in one sentence."),
    ("order", "Sort these numbers from small to large: 42, 7, 19, 3, 88."),
    ("logic", "All cats are animals. Tom is a cat. Is Tom an animal? Answer yes or no and say why."),
    ("weekday", "If today is Wednesday, which day is it in ten days?"),
    ("extract-name", "Which person is named in this sentence: 'The invoice was signed by Maria Lopez on Monday.'?"),
    ("extract-json", 'Write as JSON with the keys "city" and "year": The bridge in Porto was opened in 1886.'),
    ("classify", "Is this review positive or negative? 'The battery died after two days and nobody answered my mail.'"),
    ("rewrite", "Rewrite politely: 'Send me the report now.'"),
    ("shorten", "Say in at most ten words: The meeting was moved from Tuesday to Thursday as the room was not free."),
    ("correct", "Correct the spelling: 'Teh quik brown fox jumpd over teh lazy dog.'"),
    ("copy", "Repeat exactly: 'Order 4711, 3 blue lamps, 19.90 each, deliver to Oslo.'"),
    ("list", "List three things that one needs to bake bread."),
    ("steps", "Explain in three short steps how to change the tyre of a bicycle."),
    ("code-python", "Write a Python function `double(x)` that returns twice its argument. Code only."),
    ("code-sql", "Write an SQL query that counts the rows of the table `orders`. Query only."),
    ("translate-fr", "Translate into French: Good morning, my friend."),
    ("translate-de", "Translate into German: The train leaves at eight."),
    ("define", "What is a glacier? Answer in one sentence."),
    ("compare", "Name one difference between a violin and a cello."),
)
BUILT_IN: Final = tuple(Prompt(name, ({"role": "user", "content": text},)) for name, text in _TEXTS)
