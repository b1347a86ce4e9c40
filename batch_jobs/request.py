"""What the user asked for, in plain data. Owns: nothing but its fields. Must not know: how any of it is done."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from batch_jobs.engines.base import VLLM_ENGINE
from batch_jobs.input.spec import Task


@dataclass(frozen=True)
class JobRequest:
    """One job."""

    inputs: tuple[str, ...]
    output: str
    config_path: str
    model: str | None = None
    pools: tuple[str, ...] = ()
    """Offline deployments to use; none = all that have the model."""
    task: Task = Task.GENERATE
    options: dict[str, Any] = field(default_factory=dict)
    """What is asked of every row: keyword arguments of `input.options.build_spec`."""
    format: str | None = None
    """Form of the parts; None = that of the input (Parquet, else JSONL)."""
    limit: int | None = None
    preserve_order: bool = False
    ordered: bool = True
    """Whether rows are run in the order that suits the engines best, instead of the input's."""
    dedupe: bool = True
    dry_run: int | None = None
    """Run only so many sampled rows and predict the rest; None = the real thing."""
    tenant: str | None = None
    """Who is billed in the cluster's state store; None = nobody, and without `book_lives` the store is not touched."""
    book_lives: bool = False
    """Write the lives of engines there also if nobody is billed: whoever reads the output bills its tokens."""
    engine_logs: bool = False
    engine_class: str = VLLM_ENGINE
    command: tuple[str, ...] = ()
    """The command line that asks for the same again; kept in the output for `tribes batch resume`."""
