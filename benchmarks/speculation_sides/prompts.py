"""Prompts of two kinds, no two of which share a beginning. Owns: their texts. Must not know: engines.

Repetitive: the answer is mostly text that stands in the prompt (copy, edit, quote), which n-gram drafts find. Free: the
answer is not in the prompt. A prompt starts with its number, so that no cache helps any run.
"""

from __future__ import annotations

from typing import Literal

Kind = Literal["repetitive", "free"]

_GOODS = ("blue lamps", "oak tables", "wool blankets", "glass jars", "copper pans", "paper maps", "brass bells")
_CITIES = ("Oslo", "Lisbon", "Vienna", "Dublin", "Athens", "Prague", "Turin")
_TOPICS = (
    "a lighthouse keeper who learns to paint",
    "why bread rises",
    "a market on a rainy morning",
    "how glaciers shape valleys",
    "a violin that was lost and found",
    "the first day in a new town",
    "what makes honey keep for years",
)


def prompts(kind: Kind, run: str, count: int) -> list[str]:
    """`count` prompts that no other `run` has."""
    make = _repetitive if kind == "repetitive" else _free
    return [make(f"{run}-{number}", number) for number in range(count)]


def _repetitive(name: str, number: int) -> str:
    city = _CITIES[number % len(_CITIES)]
    lines = [
        f"Order {name}, line {line + 1}: {3 + (number + line) % 9} {_GOODS[(number + line) % len(_GOODS)]} to {city}."
        for line in range(4)
    ]
    task = (
        "Repeat these lines exactly, word for word.",
        f"Write these lines again with {city} replaced by Madrid, and change nothing else.",
        "Quote each of these lines in quotation marks, one below the other.",
    )[number % 3]
    return "\n".join([f"Note {name}.", *lines, task])


def _free(name: str, number: int) -> str:
    return f"Note {name}. Write a short text about {_TOPICS[number % len(_TOPICS)]}."
