"""Command line options into a spec, and the refusals that name the cure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from batch_jobs.errors import JobRefused
from batch_jobs.input.options import build_spec
from batch_jobs.input.spec import JobSpec, PromptTemplate, Task

SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}
TOOL = {"type": "function", "function": {"name": "f"}}


def test_nothing_but_a_model() -> None:
    assert build_spec("m") == JobSpec(model="m")


def test_sampling_by_name_and_by_json(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text('{"min_p": 0.1}')
    spec = build_spec(
        "m",
        params=['{"top_k": 20, "stream": false}', f"@{tmp_path}/p.json"],
        max_tokens=5,
        temperature=0,
        top_p=1,
        seed=0,
    )
    assert spec.params == {"top_k": 20, "min_p": 0.1, "max_tokens": 5, "temperature": 0, "top_p": 1, "seed": 0}


def test_prompts(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("From a file: {{ a }}\n")
    spec = build_spec(
        "m", prompts=["{{ a }} = {{ b }}", "short=Say {{ a }}", f"long=@{tmp_path}/t.txt"], system="Be brief"
    )
    assert spec.prompts == (
        PromptTemplate("1", "{{ a }} = {{ b }}"),
        PromptTemplate("short", "Say {{ a }}"),
        PromptTemplate("long", "From a file: {{ a }}\n"),
    )
    assert spec.system == "Be brief"
    assert build_spec("m", prompts=["Hi {{ a }}"]).prompts == (PromptTemplate("prompt", "Hi {{ a }}"),)


def test_forms_of_answers(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text(json.dumps(SCHEMA))
    expected = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}
    assert build_spec("m", json_schema=f"@{tmp_path}/s.json").params == {"response_format": expected}
    wrapped = {"name": "mine", "schema": SCHEMA, "strict": True}
    assert build_spec("m", json_schema=json.dumps(wrapped)).params["response_format"]["json_schema"] == wrapped
    assert build_spec("m", regex="a+").params == {"structured_outputs": {"regex": "a+"}}
    assert build_spec("m", choices=["yes", "no"]).params == {"structured_outputs": {"choice": ["yes", "no"]}}


@pytest.mark.parametrize("tools", [[TOOL], TOOL])
def test_tools_make_chats(tools: Any) -> None:
    spec = build_spec("m", tools=json.dumps(tools))
    assert (spec.params, spec.chat) == ({"tools": [TOOL]}, True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"params": ["{bad"]}, "--params: not valid JSON.*@FILE"),
        ({"params": ["[1]"]}, "--params: must be a JSON object"),
        ({"params": ["@/nowhere/p.json"]}, "--params @/nowhere/p.json: the file cannot be read"),
        ({"params": ['{"n": 1}', '{"n": 2}']}, "n is given twice"),
        ({"params": ['{"model": "x"}']}, "model cannot be set for all rows"),
        ({"params": ['{"stream": true}']}, "stream is set"),
        ({"params": ['{"seed": 1}'], "seed": 2}, "--seed and --params both set seed"),
        ({"params": ['{"response_format": {}}'], "json_schema": "{}"}, "--json-schema and --params both"),
        ({"json_schema": "[]"}, "--json-schema: must be a JSON object"),
        ({"json_schema": "{}", "regex": "a"}, "--json-schema, --regex: an answer has one form"),
        ({"choices": ["a", "a"]}, "given twice"),
        ({"tools": "5"}, "--tools: must be a JSON list"),
        ({"tools": "[]"}, "--tools: must be a JSON list"),
        (
            {"task": Task.EMBED, "max_tokens": 5, "seed": 0},
            "--max-tokens, --seed: a job of the task embed generates no text",
        ),
        ({"task": Task.CLASSIFY, "regex": "a"}, "--regex: .*classify"),
        ({"task": Task.SCORE, "chat": True}, "compares two texts"),
        ({"task": Task.SCORE, "prompts": ["{{ a }}"]}, "takes two templates"),
        ({"prompts": ["{{ a "]}, "template prompt: line 1"),
        ({"prompts": ["{% bad %}"]}, "template prompt: line 1: .*bad"),
        ({"prompts": ["a={{ x }}", "a={{ y }}"]}, "two templates are named a"),
        ({"prompts": [" "]}, "template is empty"),
        ({"prompts": ["@nowhere.txt"]}, "--prompt @nowhere.txt: the file cannot be read"),
        ({"system": "{% if %}"}, "template system"),
        ({"openai_batch": True, "seed": 1}, "parameters of their own"),
        ({"openai_batch": True, "prompts": ["{{ a }}"]}, "prompts and parameters of their own"),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(JobRefused, match=message):
        build_spec("m", **options)
