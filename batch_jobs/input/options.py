"""From the options of a command line to what is asked of every row.

Role: read templates, JSON and files, and refuse what contradicts itself. Owns: the meaning of each option.
Must not know: the command line library, the input.

Everything that a request body may carry can be given as `--params`; the other options are its common cases by name.
Values that start with @ are read from a file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from batch_jobs.errors import JobRefused
from batch_jobs.input.asks import RESERVED_PARAMS
from batch_jobs.input.rows import TEXT_COLUMNS
from batch_jobs.input.spec import JobSpec, PromptTemplate, Task
from batch_jobs.input.template import check_template

_NAMED = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.DOTALL)
_SCHEMA_NAME = "answer"


def build_spec(
    model: str,
    task: Task = Task.GENERATE,
    prompts: Sequence[str] = (),
    system: str | None = None,
    chat: bool = False,
    params: Sequence[str] = (),
    tools: str | None = None,
    json_schema: str | None = None,
    regex: str | None = None,
    choices: Sequence[str] = (),
    max_tokens: int | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    adapters: Sequence[str] = (),
    openai_batch: bool = False,
) -> JobSpec:
    """The job's spec. Raises JobRefused naming the cure.

    `prompts` are TEMPLATE, @FILE, NAME=TEMPLATE or NAME=@FILE; `system` TEMPLATE or @FILE; `params`, `tools` and
    `json_schema` JSON or @FILE. Tools make text prompts chats, as completions have none.
    """
    generation: dict[str, dict[str, Any]] = {
        "--max-tokens": {} if max_tokens is None else {"max_tokens": max_tokens},
        "--temperature": {} if temperature is None else {"temperature": temperature},
        "--top-p": {} if top_p is None else {"top_p": top_p},
        "--seed": {} if seed is None else {"seed": seed},
        "--tools": {} if tools is None else {"tools": _tools(tools)},
        **_structured(json_schema, regex, choices),
    }
    given = [name for name, fields in generation.items() if fields]
    if not task.generates and given:
        raise JobRefused(f"{', '.join(given)}: a job of the task {task} generates no text. Leave it out.")
    spec = JobSpec(
        model=model,
        task=task,
        prompts=_templates(prompts),
        system=None if system is None else _text(system, "--system"),
        chat=chat or tools is not None,
        params=_merged(_params(params), generation),
        adapters=tuple(adapters),
        openai_batch=openai_batch,
    )
    _check(spec)
    return spec


def _check(spec: JobSpec) -> None:
    templates = list(spec.prompts)
    if spec.system is not None:
        templates.append(PromptTemplate("system", spec.system))
    for template in templates:
        check_template(template)
    if spec.openai_batch and (templates or spec.chat or spec.params):
        raise JobRefused(
            "the input is OpenAI batch requests, which carry prompts and parameters of their own: "
            "leave prompt, system, chat and sampling options out, or give an input of another form."
        )
    if spec.task is Task.SCORE:
        if spec.chat or spec.system is not None:
            raise JobRefused("--chat, --system: a score job compares two texts. Leave them out.")
        if spec.prompts and {template.name for template in spec.prompts} != set(TEXT_COLUMNS):
            raise JobRefused("a score job takes two templates: --prompt 'text_1=...' --prompt 'text_2=...'.")


def _templates(values: Sequence[str]) -> tuple[PromptTemplate, ...]:
    templates: list[PromptTemplate] = []
    for number, value in enumerate(values, 1):
        named = _NAMED.fullmatch(value)
        name, source = (named[1], named[2]) if named else ("" if len(values) == 1 else str(number), value)
        source = _text(source, "--prompt")
        if not source.strip():
            raise JobRefused("--prompt: the template is empty. Give the text of the prompt, as in '{{ text }}'.")
        if any(template.name == name for template in templates):
            raise JobRefused(f"--prompt: two templates are named {name}. Give each a name of its own.")
        templates.append(PromptTemplate(name or "prompt", source))
    return tuple(templates)


def _params(values: Sequence[str]) -> dict[str, Any]:
    params: dict[str, Any] = {}
    for value in values:
        fields = _json(value, "--params")
        if not isinstance(fields, dict):
            raise JobRefused("--params: must be a JSON object, as in '{\"top_k\": 20}'.")
        again = sorted(params.keys() & fields.keys())
        if again:
            raise JobRefused(f"--params: {', '.join(again)} is given twice. Leave one out.")
        params |= fields
    reserved = sorted(RESERVED_PARAMS & params.keys())
    if reserved:
        raise JobRefused(
            f"--params: {', '.join(reserved)} cannot be set for all rows. Use --model, --prompt or the input's columns."
        )
    if params.pop("stream", False):
        raise JobRefused("--params: stream is set, but a job writes whole answers. Leave it out.")
    params.pop("stream_options", None)
    return params


def _merged(params: dict[str, Any], options: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    for option, fields in options.items():
        again = sorted(params.keys() & fields.keys())
        if again:
            raise JobRefused(f"{option} and --params both set {', '.join(again)}. Leave one out.")
        params = params | fields
    return params


def _structured(json_schema: str | None, regex: str | None, choices: Sequence[str]) -> dict[str, dict[str, Any]]:
    forms: dict[str, dict[str, Any]] = {}
    if json_schema is not None:
        forms["--json-schema"] = {"response_format": _response_format(json_schema)}
    if regex is not None:
        forms["--regex"] = {"structured_outputs": {"regex": regex}}
    if choices:
        forms["--choice"] = {"structured_outputs": {"choice": list(choices)}}
    if len(forms) > 1:
        raise JobRefused(f"{', '.join(forms)}: an answer has one form. Leave one.")
    if len(set(choices)) < len(choices):
        raise JobRefused("--choice: a choice is given twice. Leave one out.")
    return forms


def _response_format(value: str) -> dict[str, Any]:
    """From a schema, or from OpenAI's form of one: an object with `name` and `schema`."""
    schema = _json(value, "--json-schema")
    if not isinstance(schema, dict):
        raise JobRefused('--json-schema: must be a JSON object, as in \'{"type": "object", "properties": {...}}\'.')
    if not (isinstance(schema.get("schema"), dict) and "name" in schema):
        schema = {"name": _SCHEMA_NAME, "schema": schema}
    return {"type": "json_schema", "json_schema": schema}


def _tools(value: str) -> list[dict[str, Any]]:
    tools = _json(value, "--tools")
    tools = [tools] if isinstance(tools, dict) else tools
    if not isinstance(tools, list) or not tools or not all(isinstance(tool, dict) for tool in tools):
        raise JobRefused(
            '--tools: must be a JSON list of tools, as in \'[{"type": "function", "function": {"name": ...}}]\'.'
        )
    return tools


def _json(value: str, option: str) -> Any:
    try:
        return orjson.loads(_text(value, option))
    except orjson.JSONDecodeError as error:
        raise JobRefused(f"{option}: not valid JSON: {error}. Give JSON, or @FILE to read it from a file.") from error


def _text(value: str, option: str) -> str:
    if not value.startswith("@"):
        return value
    try:
        return Path(value[1:]).expanduser().read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise JobRefused(f"{option} {value}: the file cannot be read: {error}. Values after @ are paths.") from error
