"""What engines and the ledger say to each other.

Owns: the plain data of that conversation. Must not know: who decides what.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple


class Copy(NamedTuple):
    """Where a committed answer lies: the part's name and the record's place in it."""

    part: str
    row: int
    of_id: str
    """The row that it was computed for."""


class Work(NamedTuple):
    """One row to finish: to be asked, or (`copy`) answered from a part, or (`error`) written as an error row."""

    number: int
    payload: bytes
    copy: Copy | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class EngineReport:
    """One engine's turn of the conversation."""

    want: int
    """Rows that it could take now."""
    mean_seconds: float = 0.0
    """Recent time of a row inside the engine; 0 = not known yet."""
    running: int = 1
    """Rows that it runs at once, as far as its KV cache lets it."""
    depth: int = 1
    """Rows that it holds when full."""
    inside: int | None = None
    """Rows inside it that are not finished; those that wait for their part are not among them. None = all it holds."""
    returned: tuple[int, ...] = ()
    """Numbers of rows that it hands back unstarted, as it was asked to."""
    stopped: bool = False
    """Everything finished was published and nothing more will be."""


@dataclass(frozen=True, slots=True)
class Orders:
    """The ledger's answer."""

    work: list[Work] = field(default_factory=list)
    recall: int = 0
    """So many of the youngest rows that the engine has not started are to be handed back."""
    stop: bool = False
    """Publish what is finished and start nothing more."""
    done: bool = False
    """Every row of the job is committed."""
    lost: bool = False
    """The engine was given up, as it was silent for too long: its rows are others' now. Its process must end."""
