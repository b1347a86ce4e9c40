"""Real text that is on every machine: what the offline job reads.

Owns: the choice of modules and questions. Must not know: jobs, clusters.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MODULES = 48
QUESTIONS = 16
MIN_CHARS = 120
MAX_CHARS = 1200
"""About 300 tokens: a context of 2048 holds it with room to spare, and the job stays short on two cores."""
QUESTIONS_FILE = Path("shared/data/gsm8k_test.jsonl")


def offline_rows(beside: Path | None = None) -> list[dict[str, Any]]:
    """Rows with `id` and `messages`: summaries of the standard library's modules, and grade-school maths where the
    file with the questions lies beside the checkout (in the folder `beside`)."""
    rows = [
        _row(f"module-{name}", f"Summarise this module in one sentence: {name}\n\n{text}")
        for name, text in _first(MODULES, module_docstrings())
    ]
    folder = Path(__file__).resolve().parents[3] if beside is None else beside
    return rows + [_row(f"question-{n}", text) for n, text in enumerate(_questions(folder / QUESTIONS_FILE))]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def module_docstrings() -> Iterator[tuple[str, str]]:
    """(module, docstring) in alphabetical order. Modules are parsed, never imported: some act when they are."""
    for name in sorted(sys.stdlib_module_names):
        text = None if name.startswith("_") else _docstring(name)
        if text is not None and len(text) >= MIN_CHARS:
            yield name, text[:MAX_CHARS]


def _docstring(name: str) -> str | None:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        return None  # built in, or compiled
    try:
        return ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8")))
    except (OSError, SyntaxError, UnicodeDecodeError):
        return None


def _questions(path: Path) -> list[str]:
    try:
        with path.open(encoding="utf-8") as file:
            return [str(json.loads(line)["question"]) for _, line in zip(range(QUESTIONS), file, strict=False)]
    except (OSError, ValueError, KeyError):
        return []  # an extra, not a part of the checkout


def _first(count: int, found: Iterator[tuple[str, str]]) -> list[tuple[str, str]]:
    return [item for _, item in zip(range(count), found, strict=False)]


def _row(row_id: str, text: str) -> dict[str, Any]:
    return {"id": row_id, "messages": [{"role": "user", "content": text}]}
