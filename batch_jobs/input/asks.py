"""From one row to the requests that answer it.

Role: apply the job's templates and parameters to a row. Owns: where prompts come from, and in which order they are
looked for. Must not know: files, Ray, which parameters an engine has.

Prompts come from the job's templates, else from the row's `prompts`, `messages` or `prompt` column. One prompt is one
ask, but a scoring job's two texts, which are one. Parameters are the job's with the row's `params` over them; unknown
ones go to the engine, whose 400 says more about them than a copy of its schema here could.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any

from batch_jobs.engines.base import Ask
from batch_jobs.errors import RowError, RowErrorKind
from batch_jobs.input.answers import combine as combine  # the way back, for those who come from here
from batch_jobs.input.estimates import dedupe_key, expected_tokens, prefix_of
from batch_jobs.input.openai_batch import batch_ask
from batch_jobs.input.prepared import Prepared
from batch_jobs.input.rows import (
    LORA_COLUMN,
    PARAMS_COLUMN,
    TEXT_COLUMNS,
    Message,
    Prompt,
    Row,
    checked_text,
    parsed,
    prompts_of,
)
from batch_jobs.input.spec import JobSpec, PromptTemplate, Task
from batch_jobs.input.template import render

RESERVED_PARAMS = frozenset({"model", "prompt", "messages", "input", *TEXT_COLUMNS})
_PATHS = {Task.EMBED: "/v1/embeddings", Task.CLASSIFY: "/classify", Task.SCORE: "/score"}
_SYSTEM_ROLES = ("system", "developer")


def task_path(task: Task) -> str | None:
    """The path that every row of the task asks; None where it depends on the row."""
    return _PATHS.get(task)


def asks_of(spec: JobSpec, columns: dict[str, Any]) -> list[Ask]:
    """The requests of a row, one per prompt. Raises RowError."""
    if spec.openai_batch:
        return [batch_ask(spec, columns)]
    shared = {"model": _model(spec, columns)} | _params(spec, columns)
    if spec.task is Task.SCORE:
        return [Ask(_PATHS[spec.task], shared | _texts(spec, columns))]
    return [_ask(spec.task, prompt, shared) for prompt in _prompts(spec, columns)]


def _ask(task: Task, prompt: Prompt, shared: dict[str, Any]) -> Ask:
    if not task.generates:
        return Ask(_PATHS[task], shared | {"input" if isinstance(prompt, str) else "messages": prompt})
    if isinstance(prompt, list):
        return Ask("/v1/chat/completions", shared | {"messages": prompt})
    # Completions have a default of 16 tokens, chats none: without the null, the form of the prompt would decide.
    return Ask("/v1/completions", {"max_tokens": None} | shared | {"prompt": prompt})


def _prompts(spec: JobSpec, columns: dict[str, Any]) -> list[Prompt]:
    prompts: list[Prompt] = list(_rendered(spec.prompts, columns)) if spec.prompts else prompts_of(columns)
    if not spec.chat and spec.system is None:
        return prompts
    system = None if spec.system is None else render(PromptTemplate("system", spec.system), columns)
    return [_chat(prompt, system) for prompt in prompts]


def _rendered(templates: Sequence[PromptTemplate], columns: dict[str, Any]) -> list[str]:
    return [checked_text(render(template, columns), f"prompt {template.name}") for template in templates]


def _chat(prompt: Prompt, system: str | None) -> list[Message]:
    """A text as the user's message. A conversation keeps its own system message where it has one."""
    messages: list[Message] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if not system or messages[0]["role"] in _SYSTEM_ROLES:
        return messages
    return [{"role": "system", "content": system}, *messages]


def _texts(spec: JobSpec, columns: dict[str, Any]) -> dict[str, str]:
    """What a scoring request compares."""
    if spec.prompts:
        names = (template.name for template in spec.prompts)
        return dict(zip(names, _rendered(spec.prompts, columns), strict=True))
    missing = [name for name in TEXT_COLUMNS if columns.get(name) is None]
    if missing:
        raise RowError(RowErrorKind.MISSING_PROMPT, f"the row has no {' and no '.join(missing)}")
    return {name: checked_text(columns[name], name) for name in TEXT_COLUMNS}


def _params(spec: JobSpec, columns: dict[str, Any]) -> dict[str, Any]:
    value = columns.get(PARAMS_COLUMN)
    if value is None:
        return spec.params
    own = parsed(value, PARAMS_COLUMN, RowErrorKind.INVALID_PARAMS)
    if not isinstance(own, dict):
        raise RowError(RowErrorKind.INVALID_PARAMS, f"params must be an object, got {type(own).__name__}")
    # Parquet structs hold every field in every row; null means that this row does not set it.
    own = {name: item for name, item in own.items() if item is not None}
    reserved = sorted(RESERVED_PARAMS & own.keys())
    if reserved:
        raise RowError(
            RowErrorKind.INVALID_PARAMS,
            f"params may not set {', '.join(reserved)}: those have columns of their own (the model's is {LORA_COLUMN})",
        )
    if own.pop("stream", False):
        raise RowError(RowErrorKind.INVALID_PARAMS, "params may not set stream: a job writes whole answers")
    own.pop("stream_options", None)
    return spec.params | own


def _model(spec: JobSpec, columns: dict[str, Any]) -> str:
    """The job's model, or the LoRA adapter that the row names: engines address adapters as models."""
    lora = columns.get(LORA_COLUMN)
    if lora is None or lora == "":
        return spec.model
    if not isinstance(lora, str):
        raise RowError(RowErrorKind.INVALID_PARAMS, f"lora must be an adapter's name, got {type(lora).__name__}")
    if spec.adapters and lora != spec.model and lora not in spec.adapters:
        raise RowError(
            RowErrorKind.INVALID_PARAMS, f"lora {lora!r} is not an adapter of this job: {', '.join(spec.adapters)}"
        )
    return lora


def prepare(row: Row, number: int, spec: JobSpec) -> Prepared:
    """A row for the work queue. One that cannot be asked carries its problem, and costs no engine anything."""
    if row.problem is None:
        try:
            asks = asks_of(spec, row.columns)
        except RowError as problem:
            row = Row(row.id, row.columns, problem)
    if row.problem is not None:
        return Prepared(number, pack(row, []))
    input_tokens, output_tokens = expected_tokens(asks)
    prefix = prefix_of(asks, spec.model)
    return Prepared(number, pack(row, asks), prefix, input_tokens, output_tokens, dedupe_key(asks))


def pack(row: Row, asks: Sequence[Ask]) -> bytes:
    """The payload of a `Prepared`. Not Arrow columns: rows of one file need not agree on types, a bad row must never
    fail the block it shares with good ones, and types of Parquet columns survive. Texts that a prompt shares with its
    column are stored once."""
    wire = (row.id, row.columns, row.problem, [(ask.path, ask.body) for ask in asks])
    return pickle.dumps(wire, protocol=5)


def unpack(payload: bytes) -> tuple[Row, list[Ask]]:
    """Payloads are made by `pack` in this job's own processes; nothing from outside is ever unpickled."""
    row_id, columns, problem, asks = pickle.loads(payload)
    return Row(row_id, columns, problem), [Ask(path, body) for path, body in asks]
