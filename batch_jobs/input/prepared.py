"""A row that is ready to be run, as the work queue sees it.

Role: the few facts that ordering, deduplication and placement need, beside a payload that only engines open.
Must not know: who orders, who runs.
"""

from __future__ import annotations

from dataclasses import dataclass

PREFIX_CHARS = 8192
"""How much of a prompt's beginning is compared with others'."""
CHARS_PER_TOKEN = 4.0
"""A first guess for sizes; nothing that must be right depends on it."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """One pending row."""

    number: int
    """The row's place in the whole input, from 0; ties the output to the input inside a run."""
    payload: bytes
    """The pickled `Row` (rows.py) with its asks; a row that cannot be asked carries its problem instead."""
    prefix: str = ""
    """The leading text of its prompt, at most PREFIX_CHARS; rows with a long common prefix share KV cache."""
    input_tokens: float = 0.0
    """Estimated prompt tokens."""
    output_tokens: float = 0.0
    """Expected tokens of the answer (its limit, when nothing better is known)."""
    key: bytes | None = None
    """16 bytes; rows with equal keys are the same deterministic request. None: never the same as another."""

    @property
    def size_bytes(self) -> int:
        return len(self.payload) + len(self.prefix)
