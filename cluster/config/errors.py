"""Role: how configuration problems are said. Owns: Problem, ConfigError and the "did you mean" wording.

Must not know: the schema, YAML or pydantic.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

KeyPath = tuple[str | int, ...]

_PLAIN_KEY = re.compile(r"[A-Za-z0-9_-]+")
_MAX_KNOWN_SHOWN = 12


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: where (the key path), what, and what to do about it."""

    path: KeyPath
    message: str
    line: int | None = None

    def __str__(self) -> str:
        where = f"{format_path(self.path)}: " if self.path else ""
        line = f" (line {self.line})" if self.line is not None else ""
        return f"{where}{self.message}{line}"


class ConfigError(ValueError):
    """Everything that is wrong with one configuration, so that one edit can mend it all."""

    def __init__(self, problems: Sequence[Problem], source: Path | None = None) -> None:
        super().__init__(tuple(problems), source)  # as args, so that it survives pickling between Ray processes
        self.problems = tuple(problems)
        self.source = source

    def __str__(self) -> str:
        count = f"{len(self.problems)} problem{'s' if len(self.problems) != 1 else ''}"
        heading = f"{self.source}: {count}" if self.source else f"configuration: {count}"
        return "\n".join([heading, *(f"  {problem}" for problem in self.problems)])


def format_path(path: KeyPath) -> str:
    """`a.b[0].c`; keys that hold dots or slashes (model ids) are quoted, so that the path stays readable."""
    text = ""
    for item in path:
        if isinstance(item, int):
            text += f"[{item}]"
        elif _PLAIN_KEY.fullmatch(item):
            text += f".{item}" if text else item
        else:
            text += f'["{item}"]'
    return text


def hint(word: object, known: Iterable[str]) -> str:
    """The cure for a misspelt word: the closest known one, or the choices when nothing is close."""
    choices = [str(choice) for choice in known]
    folded = {choice.lower(): choice for choice in choices}
    close = get_close_matches(str(word).lower(), folded, n=1, cutoff=0.6)
    if close:
        return f"did you mean {folded[close[0]]}?"
    if not choices:
        return "there is none"
    shown = ", ".join(choices[:_MAX_KNOWN_SHOWN])
    return f"use one of {shown}{', ...' if len(choices) > _MAX_KNOWN_SHOWN else ''}"


def unknown_reference(kind: str, name: object, known: Iterable[str]) -> str:
    """The message for a name (of a model, pool, deployment or tenant) that nothing in the configuration has."""
    return f"unknown {kind} {str(name)!r}; {hint(name, known)}"
