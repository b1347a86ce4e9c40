"""From the replies to a row's asks to its result.

Role: read OpenAI response bodies. Owns: which field of which response is the answer, and which refusal is which row
error. Must not know: how the asks were run, how results are written.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from batch_jobs.engines.base import Reply
from batch_jobs.errors import RowError, RowErrorKind
from batch_jobs.input.rows import Row
from batch_jobs.input.spec import JobSpec, Task
from batch_jobs.output.parts import Result

# vLLM names the parameter where its renderer checks the length, and says it in words where the engine core does.
_TOO_LONG_PARAMETERS = ("input_tokens", "input_text")
_TOO_LONG = re.compile(r"maximum context length|maximum model length|exceeds the max_model_len", re.IGNORECASE)


def combine(spec: JobSpec, row: Row, replies: Sequence[Reply]) -> Result:
    """The result of a row all of whose asks are answered; a row with a problem has none."""
    if row.problem is not None:
        return Result(error={"type": row.problem.kind.value, "message": row.problem.message})
    if not replies:
        return Result(error={"type": RowErrorKind.GENERATION_FAILED.value, "message": "nothing was asked"})
    tokens = _usage(replies)
    for index, reply in enumerate(replies):
        prefix = f"{_prompt_name(spec, index)}: " if len(replies) > 1 else ""
        try:
            _check(reply)
        except RowError as error:
            # What the other prompts cost stays counted: it was spent.
            return Result(error=_error(spec, reply, error, prefix), **tokens)
    if spec.openai_batch:
        return Result(output=replies[0].body, finish_reason=_reasons(replies[0].body), **tokens)
    try:
        return _result(spec.task, replies, tokens)
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        message = f"the engine's answer cannot be read: {type(error).__name__}: {error}"
        return Result(error={"type": RowErrorKind.GENERATION_FAILED.value, "message": message}, **tokens)


def _prompt_name(spec: JobSpec, index: int) -> str:
    return f"prompt {spec.prompts[index].name}" if index < len(spec.prompts) else f"prompts[{index}]"


def _check(reply: Reply) -> None:
    """Raises RowError for a refusal, and for an answer that was broken off by the engine."""
    if reply.ok:
        if any(choice.get("finish_reason") in ("abort", "error") for choice in reply.body.get("choices") or ()):
            raise RowError(RowErrorKind.GENERATION_FAILED, "the engine broke the answer off")
        return
    detail = reply.body.get("error")
    if not isinstance(detail, dict):
        detail = {"message": reply.body.get("message") or f"the engine answered with status {reply.status}"}
    message = str(detail.get("message"))
    raise RowError(_refusal(reply.status, message, detail.get("param")), message)


def _refusal(status: int, message: str, parameter: Any) -> RowErrorKind:
    if status >= 500:
        return RowErrorKind.GENERATION_FAILED
    if parameter in _TOO_LONG_PARAMETERS or _TOO_LONG.search(message):
        return RowErrorKind.PROMPT_TOO_LONG
    return RowErrorKind.INVALID_REQUEST


def _error(spec: JobSpec, reply: Reply, error: RowError, prefix: str) -> dict[str, Any]:
    result: dict[str, Any] = {"type": error.kind.value, "message": prefix + error.message}
    return result | {"status": reply.status, "body": reply.body} if spec.openai_batch else result


def _usage(replies: Sequence[Reply]) -> dict[str, Any]:
    usages = [reply.body.get("usage") or {} for reply in replies]
    return {
        "prompt_tokens": sum(usage.get("prompt_tokens") or 0 for usage in usages),
        "output_tokens": sum(usage.get("completion_tokens") or 0 for usage in usages),
        "cached_tokens": sum((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0 for usage in usages),
    }


@dataclass
class _Answers:
    """What the replies say, answer by answer."""

    outputs: list[Any] = field(default_factory=list)
    reasons: list[str | None] = field(default_factory=list)
    tool_calls: list[list[Any]] = field(default_factory=list)
    labels: list[str | None] = field(default_factory=list)

    def generated(self, body: dict[str, Any]) -> None:
        for choice in sorted(body["choices"], key=lambda choice: choice.get("index", 0)):
            message = choice.get("message")
            text = choice["text"] if message is None else message.get("content")
            calls = [] if message is None else message.get("tool_calls") or []
            # No text is the answer where tools are called; elsewhere it is an empty one.
            self.outputs.append(text if text is not None or calls else "")
            self.reasons.append(choice.get("finish_reason"))
            self.tool_calls.append(calls)

    def pooled(self, task: Task, body: dict[str, Any]) -> None:
        first = body["data"][0]
        self.outputs.append(first[{Task.EMBED: "embedding", Task.SCORE: "score", Task.CLASSIFY: "probs"}[task]])
        if task is Task.CLASSIFY:
            self.labels.append(first.get("label"))


def _result(task: Task, replies: Sequence[Reply], tokens: dict[str, Any]) -> Result:
    answers = _Answers()
    for reply in replies:
        if task.generates:
            answers.generated(reply.body)
        else:
            answers.pooled(task, reply.body)
    several = len(answers.outputs) > 1
    calls: list[Any] | None = None
    if any(answers.tool_calls):
        calls = answers.tool_calls if several else answers.tool_calls[0]
    return Result(
        output=answers.outputs if several else answers.outputs[0],
        finish_reason=_joined(answers.reasons),
        tool_calls=calls,
        label=_joined(answers.labels),
        **tokens,
    )


def _joined(words: Sequence[str | None]) -> str | None:
    given = [word for word in words if word is not None]
    return ",".join(given) if given else None


def _reasons(body: dict[str, Any]) -> str | None:
    return _joined([choice.get("finish_reason") for choice in body.get("choices") or ()])
